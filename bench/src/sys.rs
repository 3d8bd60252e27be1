//! The few system calls the load generator needs beyond the standard library.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(crate) const IN: u32 = libc::EPOLLIN as u32;
pub(crate) const OUT: u32 = libc::EPOLLOUT as u32;

/// A level-triggered epoll instance.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the descriptor is owned by nobody else.
        let fd = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: just created.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn add(&self, fd: &impl AsRawFd, events: u32, token: u64) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_ADD, fd, events, token)
    }

    pub(crate) fn change(&self, fd: &impl AsRawFd, events: u32, token: u64) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_MOD, fd, events, token)
    }

    fn ctl(&self, op: i32, fd: &impl AsRawFd, events: u32, token: u64) -> io::Result<()> {
        let mut e = libc::epoll_event { events, u64: token };
        // SAFETY: `e` lives over the call.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd.as_raw_fd(), &raw mut e) }).map(drop)
    }

    /// Tokens with their events.
    pub(crate) fn wait(&self, out: &mut Vec<(u64, u32)>, timeout_ms: i32) -> io::Result<()> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 256];
        // SAFETY: room for 256 events.
        let n = unsafe { libc::epoll_wait(self.0.as_raw_fd(), events.as_mut_ptr(), 256, timeout_ms) };
        out.clear();
        match check(n) {
            Ok(n) => out.extend(events[..n as usize].iter().map(|e| (e.u64, e.events))),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

/// Throws received bytes away without copying them out of the kernel; 0 is the end.
pub(crate) fn discard(fd: &impl AsRawFd, max: usize) -> io::Result<usize> {
    // SAFETY: with MSG_TRUNC on TCP nothing is written to the buffer (tcp(7)).
    let n = unsafe {
        libc::recv(
            fd.as_raw_fd(),
            std::ptr::null_mut(),
            max,
            libc::MSG_TRUNC | libc::MSG_DONTWAIT,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Sends a signal to a process started by this program.
pub(crate) fn signal(pid: u32, signal: i32) {
    // SAFETY: plain integers.
    unsafe { libc::kill(pid as i32, signal) };
}

/// Keeps the calling thread, and what it starts, on these CPUs.
pub(crate) fn pin(cpus: &[usize]) {
    // SAFETY: `set` is a plain bit set of the size given.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        for c in cpus {
            libc::CPU_SET(*c, &mut set);
        }
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

fn check(r: i32) -> io::Result<i32> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}
