//! `AF_PACKET` sockets (packet(7)): the only place where this module meets the kernel.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use super::filter::Instruction;

/// Not to see what we sent ourselves (kernel ≥ 4.20).
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

/// A raw link-layer socket.
#[derive(Debug)]
pub(super) struct PacketSocket(OwnedFd);

impl PacketSocket {
    /// A socket that only sends: with protocol 0 the kernel queues nothing on it.
    pub(super) fn sender() -> io::Result<Self> {
        // SAFETY: socket(2) takes no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` is a fresh descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// A socket that receives frames of `ethertype` on one interface that pass `filter`.
    /// The filter is set before the socket is bound, so that nothing else is ever queued.
    pub(super) fn receiver(index: u32, ethertype: u16, filter: &[Instruction]) -> io::Result<Self> {
        let socket = Self::sender()?;
        socket.attach(filter)?;
        let _ = socket.set_option(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, &1i32);
        let address = link_address(index, ethertype, [0; 6]);
        // SAFETY: `address` lives across the call and its exact size is passed.
        let bound = unsafe {
            libc::bind(
                socket.0.as_raw_fd(),
                (&raw const address).cast(),
                mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        check(bound as isize).map(|_| socket)
    }

    /// Makes the interface accept frames to a multicast hardware address for as long as the socket lives.
    pub(super) fn join(&self, index: u32, group: [u8; 6]) -> io::Result<()> {
        let mut octets = [0; 8];
        octets[..6].copy_from_slice(&group);
        let request = libc::packet_mreq {
            mr_ifindex: index as i32,
            mr_type: libc::PACKET_MR_MULTICAST as u16,
            mr_alen: 6,
            mr_address: octets,
        };
        self.set_option(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
    }

    /// Sends one complete Ethernet frame without waiting.
    pub(super) fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        let destination = frame
            .get(0..6)
            .and_then(|octets| octets.try_into().ok())
            .unwrap_or([0xff; 6]);
        let address = link_address(index, 0, destination);
        // SAFETY: both pointers describe values that live across the call, with their exact sizes.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
                (&raw const address).cast(),
                mem::size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        check(sent).map(drop)
    }

    /// Reads one frame without waiting; longer ones are cut to the buffer.
    pub(super) fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        // SAFETY: the pointer and length describe `buffer`, which outlives the call.
        let got = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_DONTWAIT,
            )
        };
        check(got).map(|length| &buffer[..length])
    }

    fn attach(&self, filter: &[Instruction]) -> io::Result<()> {
        let code: Vec<libc::sock_filter> = filter
            .iter()
            .map(|one| libc::sock_filter {
                code: one.code,
                jt: one.if_true,
                jf: one.if_false,
                k: one.value,
            })
            .collect();
        let program = libc::sock_fprog {
            len: code.len() as u16,
            filter: code.as_ptr().cast_mut(),
        };
        // The kernel copies the program during the call and does not write to it.
        self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
    }

    fn set_option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        // SAFETY: `value` is a plain C structure that lives across the call; its exact size is passed.
        let done = unsafe {
            libc::setsockopt(
                self.0.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                mem::size_of::<T>() as libc::socklen_t,
            )
        };
        check(done as isize).map(drop)
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of the sockets is readable; `false` after `timeout`.
pub(super) fn wait_readable(sockets: &[&PacketSocket], timeout: Duration) -> io::Result<bool> {
    let mut entries: Vec<libc::pollfd> = sockets
        .iter()
        .map(|socket| libc::pollfd {
            fd: socket.0.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let milliseconds = timeout.as_millis().min(i32::MAX as u128) as i32;
    // SAFETY: the pointer and count describe `entries`, which outlives the call.
    let ready = unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, milliseconds) };
    match check(ready as isize) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(false),
        other => other.map(|count| count > 0),
    }
}

fn link_address(index: u32, ethertype: u16, destination: [u8; 6]) -> libc::sockaddr_ll {
    let mut octets = [0; 8];
    octets[..6].copy_from_slice(&destination);
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: ethertype.to_be(),
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: octets,
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
