//! Signals, process descriptors and waiting: where the supervisor meets the kernel.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::time::Duration;

/// Signals the supervisor takes from a descriptor instead of being interrupted by them.
const WATCHED: [i32; 7] = [
    libc::SIGCHLD,
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGHUP,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// Where the child has its end of the lifeline. High, because descriptors of a dying process are closed from the top.
const LIFELINE: i32 = 1000;
const LIFELINE_VARIABLE: &str = "QUORATE_LIFELINE";
/// The words said over it, an octet each.
const HOLDS: u8 = b'h';
const RELEASED: u8 = b'r';
/// The child's end, once looked for.
static KEPT: OnceLock<Option<i32>> = OnceLock::new();

/// What became of the child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    /// Ended with this exit code.
    Exited(i32),
    /// Killed by this signal.
    Killed(i32),
    /// Stopped (SIGSTOP and its like): it holds everything and does nothing.
    Stopped,
    /// Goes on.
    Continued,
}

/// Signals of this process as a readable descriptor.
#[derive(Debug)]
pub(super) struct Signals(OwnedFd);

impl Signals {
    /// Blocks the watched signals for the calling thread and receives them here. To be called before any other thread
    /// is started, so that all inherit the mask.
    pub(super) fn watch() -> io::Result<Self> {
        let set = watched_set();
        // SAFETY: reads the set from a local; no old mask is asked for.
        let done = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if done != 0 {
            return Err(io::Error::from_raw_os_error(done));
        }
        // SAFETY: reads the set from a local; the result is checked before it is owned.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits for a signal, for one of the other descriptors, or for the end of `timeout`; returns the signals that came.
    pub(super) fn wait(&self, others: &[&OwnedFd], timeout: Option<Duration>) -> io::Result<Vec<i32>> {
        let entry = |fd: &OwnedFd| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let mut entries: Vec<libc::pollfd> = [&self.0].into_iter().chain(others.iter().copied()).map(entry).collect();
        let milliseconds = timeout.map_or(-1, |timeout| timeout.as_millis().min(i32::MAX as u128) as i32);
        // SAFETY: pointer and count describe `entries`, which outlives the call.
        if unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, milliseconds) } < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(Vec::new())
            } else {
                Err(error)
            };
        }
        let mut signals = Vec::new();
        loop {
            // SAFETY: all-zero bytes are a valid signalfd_siginfo.
            let mut info: libc::signalfd_siginfo = unsafe { mem::zeroed() };
            let size = mem::size_of::<libc::signalfd_siginfo>();
            // SAFETY: writes at most `size` octets into a local of that size.
            let got = unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) };
            if got != size as isize {
                return Ok(signals);
            }
            signals.push(info.ssi_signo as i32);
        }
    }
}

/// A descriptor of the child that becomes readable when it has ended (Linux 5.3), whatever becomes of SIGCHLD.
pub(super) fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointers; the child has not been waited for, so its number is still its own.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Starts the child with the watched signals unblocked again, and with SIGTERM due to it when the supervisor dies: it
/// then hands its VIPs over in order. The descriptor returned hangs up as soon as the child's descriptors are closed,
/// which for a dying child is tens of milliseconds before it counts as ended (packet sockets wait for all processors).
pub(super) fn spawn(command: &mut Command) -> io::Result<(Child, OwnedFd)> {
    let (lifeline, end) = io::pipe()?;
    let (parent, end_fd) = (std::process::id(), end.as_raw_fd());
    command.env(LIFELINE_VARIABLE, LIFELINE.to_string());
    // SAFETY: the closure runs between fork and exec and calls only async-signal-safe functions on locals; `end` is
    // open then, since this function keeps it until the child is started.
    unsafe {
        command.pre_exec(move || {
            let set = watched_set();
            libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM as libc::c_ulong) < 0 {
                return Err(io::Error::last_os_error());
            }
            // The parent may have died before the line above took effect.
            if libc::getppid() as u32 != parent {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            // Without it (a very low limit of open files), the end of the process is what tells.
            libc::fcntl(end_fd, libc::F_DUPFD, LIFELINE);
            Ok(())
        });
    }
    Ok((command.spawn()?, lifeline.into()))
}

/// What the lifeline says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    Goes,
    /// The child takes part in VRRP: VIPs on this machine are its own.
    Holds,
    /// The child gave its VIPs up in order.
    Released,
    /// The other end is closed.
    Ended,
}

/// Reads the lifeline's next word without waiting.
pub(super) fn look(lifeline: &OwnedFd) -> Life {
    let mut entry = libc::pollfd {
        fd: lifeline.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one pollfd in a local that outlives the call.
    if unsafe { libc::poll(&raw mut entry, 1, 0) } <= 0 {
        return Life::Goes;
    }
    if entry.revents & libc::POLLIN == 0 {
        return Life::Ended;
    }
    let mut word = 0u8;
    // SAFETY: writes at most one octet into a local; poll said that there is one, so that it does not wait.
    match unsafe { libc::read(lifeline.as_raw_fd(), (&raw mut word).cast(), 1) } {
        1 if word == HOLDS => Life::Holds,
        1 => Life::Released,
        _ => Life::Goes,
    }
}

/// The environment of a supervised child names its lifeline.
pub(super) fn is_supervised() -> bool {
    std::env::var_os(LIFELINE_VARIABLE).is_some()
}

/// In the child: finds the lifeline, and keeps it from being inherited by children, which may outlive this process.
pub(super) fn keep_lifeline() {
    KEPT.get_or_init(|| {
        let number = std::env::var(LIFELINE_VARIABLE).ok()?.parse().ok()?;
        // SAFETY: all-zero bytes are a valid stat.
        let mut found: libc::stat = unsafe { mem::zeroed() };
        // SAFETY: writes one stat to a local; without such a descriptor it fails.
        let is_pipe =
            unsafe { libc::fstat(number, &raw mut found) } == 0 && found.st_mode & libc::S_IFMT == libc::S_IFIFO;
        // SAFETY: takes no pointers.
        (is_pipe && unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0).then_some(number)
    });
}

/// In the child: says that VIPs are its own from now on.
pub(super) fn holds() {
    say(HOLDS);
}

/// In the child: says that its VIPs are given up.
pub(super) fn released() {
    say(RELEASED);
}

fn say(word: u8) {
    if let Some(Some(number)) = KEPT.get() {
        // SAFETY: reads one octet from a local; the descriptor was found to be the lifeline and is never closed.
        unsafe { libc::write(*number, (&raw const word).cast(), 1) };
    }
}

/// What became of the child since last asked, without waiting.
pub(super) fn changed(pid: u32) -> io::Result<Option<Change>> {
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let options = libc::WEXITED | libc::WSTOPPED | libc::WCONTINUED | libc::WNOHANG;
    // SAFETY: writes one siginfo_t to a local.
    if unsafe { libc::waitid(libc::P_PID, pid, &raw mut info, options) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: waitid filled the structure (or left it zero), so its child fields may be read.
    let (child, status) = unsafe { (info.si_pid(), info.si_status()) };
    if child == 0 {
        return Ok(None);
    }
    Ok(match info.si_code {
        libc::CLD_EXITED => Some(Change::Exited(status)),
        libc::CLD_KILLED | libc::CLD_DUMPED => Some(Change::Killed(status)),
        libc::CLD_STOPPED | libc::CLD_TRAPPED => Some(Change::Stopped),
        libc::CLD_CONTINUED => Some(Change::Continued),
        _ => None,
    })
}

/// Sends a signal to the child, which has not been waited for yet, so its number cannot have been reused.
pub(super) fn signal(pid: u32, signal: i32) {
    // SAFETY: takes no pointers. Failing means that it is gone already, which the next wait tells.
    unsafe { libc::kill(pid as libc::pid_t, signal) };
}

fn watched_set() -> libc::sigset_t {
    // SAFETY: all-zero bytes are a valid sigset_t; both functions write only to that local.
    unsafe {
        let mut set: libc::sigset_t = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        for signal in WATCHED {
            libc::sigaddset(&raw mut set, signal);
        }
        set
    }
}
