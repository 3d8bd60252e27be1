//! The netlink socket itself: the only place where this module meets the kernel.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

const SOL_NETLINK: libc::c_int = 270;
const NETLINK_EXT_ACK: libc::c_int = 11;
const NETLINK_CAP_ACK: libc::c_int = 10;

/// An `AF_NETLINK` datagram socket bound to a port the kernel chose.
#[derive(Debug)]
pub(crate) struct RawSocket(OwnedFd);

impl RawSocket {
    /// `groups` is the legacy multicast bit mask (`RTMGRP_*`).
    pub(crate) fn open(protocol: i32, groups: u32) -> io::Result<Self> {
        // SAFETY: socket(2) takes no pointers; the returned descriptor is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nothing else owns.
        let socket = Self(unsafe { OwnedFd::from_raw_fd(fd) });
        // Older kernels lack these two: the only loss is the text behind an error number.
        let _ = socket.set_option(SOL_NETLINK, NETLINK_EXT_ACK, 1);
        let _ = socket.set_option(SOL_NETLINK, NETLINK_CAP_ACK, 1);
        // SAFETY: all-zero bytes are a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as u16;
        address.nl_groups = groups;
        // SAFETY: `address` lives across the call and its exact size is passed.
        let bound = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of::<libc::sockaddr_nl>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }

    /// Bounds every receive; `None` waits for ever.
    pub(crate) fn set_receive_timeout(&self, timeout: Duration) -> io::Result<()> {
        let value = libc::timeval {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_usec: libc::suseconds_t::from(timeout.subsec_micros()),
        };
        // SAFETY: `value` lives across the call and its exact size is passed.
        let done = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const value).cast(),
                mem::size_of::<libc::timeval>() as libc::socklen_t,
            )
        };
        check(done as isize).map(drop)
    }

    pub(crate) fn set_receive_buffer(&self, bytes: i32) {
        // Best effort: a small buffer only means an ENOBUFS, which the readers answer with a new dump.
        let _ = self.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, bytes);
    }

    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // SAFETY: the pointer and length describe `bytes`, which outlives the call. Port 0 (the kernel) is the default peer.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        check(sent).map(drop)
    }

    /// Reads one datagram; fails with `InvalidData` when it did not fit.
    pub(crate) fn receive<'b>(&self, buffer: &'b mut [u8], wait: bool) -> io::Result<&'b [u8]> {
        let flags = libc::MSG_TRUNC | if wait { 0 } else { libc::MSG_DONTWAIT };
        loop {
            // SAFETY: the pointer and length describe `buffer`, which outlives the call.
            let got = unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), flags) };
            match check(got) {
                Ok(length) if length > buffer.len() => return Err(io::ErrorKind::InvalidData.into()),
                Ok(length) => return Ok(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn set_option(&self, level: i32, name: i32, value: i32) -> io::Result<()> {
        // SAFETY: `value` lives across the call and its exact size is passed.
        let done = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                (&raw const value).cast(),
                mem::size_of::<i32>() as libc::socklen_t,
            )
        };
        check(done as isize).map(drop)
    }
}

impl AsFd for RawSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Moves the calling thread into the network namespace behind `namespace`.
pub(crate) fn enter_network_namespace(namespace: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: setns(2) takes no pointers; it changes only the calling thread.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } as isize).map(drop)
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
