//! Packets that are dropped rather than fragmented: ip(7) `IP_MTU_DISCOVER`, which has no safe wrapper here.
#![allow(unsafe_code)]

use std::{io, os::fd::AsRawFd};

/// `IP_PMTUDISC_PROBE`: sets DF and ignores what the kernel learned of the path, so that every packet is tried.
pub(super) fn set(socket: &impl AsRawFd, v6: bool) -> io::Result<()> {
    let (level, name, value) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    };
    let value: libc::c_int = value;
    // SAFETY: the pointer is to a live integer of the length given; the kernel only reads it.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
