//! The few system calls that std has no safe form of.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

/// Moves the calling thread, and whatever it starts from now on, into a network namespace.
pub(crate) fn enter_network(namespace: &Path) -> io::Result<()> {
    let file = File::open(namespace)?;
    // SAFETY: setns takes a descriptor, which `file` keeps open during the call, and a flag; it touches no memory
    // of ours. It changes the network namespace of this thread only.
    match unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// SIGKILL; a process that is gone already is no error.
pub(crate) fn kill(pid: u32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    if pid <= 1 {
        // 0, -1 and negative numbers mean groups or everyone.
        return Err(io::Error::other("refusing to kill process 0 or 1"));
    }
    // SAFETY: kill takes two integers.
    match unsafe { libc::kill(pid, libc::SIGKILL) } {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            e => Err(e),
        },
    }
}

/// Has the kernel kill what `command` starts when the calling thread ends: a helper that goes on working after
/// this program was killed would work against the one that repairs.
pub(crate) fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: runs between fork and exec, where only async-signal-safe calls are allowed; prctl is one, takes
    // integers, and nothing is allocated unless it fails.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        })
    }
}

pub(crate) fn effective_uid() -> u32 {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Bytes an ordinary process may still write to the file system `path` is on.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is NUL-terminated, `stat` is writable and of the right size; it is read only after
    // the call said that it was filled.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return Err(io::Error::last_os_error());
        }
        stat.assume_init()
    };
    Ok(stat.f_bavail * stat.f_frsize)
}
