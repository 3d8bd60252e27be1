//! Raw IP sockets for protocol 112, the clock, polling and scheduling: where the VRRP thread meets the kernel.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// IP protocol number of VRRP.
const PROTOCOL: libc::c_int = 112;
/// Internetwork control, as routers mark their protocol traffic (RFC 9568 does not ask for it, keepalived does it).
const TOS_NETWORK_CONTROL: libc::c_int = 0xc0;
/// Highest SO_PRIORITY that needs no capability.
const SOCKET_PRIORITY: libc::c_int = 6;
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);
/// The best ordinary priority there is.
const BEST_NICE: i32 = -20;
/// Low in the real-time range: above every ordinary process, below the kernel's own threads (50).
const REALTIME_PRIORITY: libc::c_int = 40;
/// Room for IPV6_PKTINFO and IPV6_HOPLIMIT.
const CONTROL_LEN: usize = 128;

/// What came with a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Received<'b> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    /// TTL or hop limit.
    pub(super) ttl: u8,
    /// What follows the IP header.
    pub(super) payload: &'b [u8],
}

/// Receiving and sending sockets of one interface and one address family.
///
/// Two sockets, because a socket that both sends and receives would have to be unbound, and then an interface with
/// several addresses could not be told apart; the sending one rejects all input by a filter.
#[derive(Debug)]
pub(super) struct Pair {
    receive: OwnedFd,
    send: OwnedFd,
    index: u32,
    v4: bool,
}

impl Pair {
    /// Opens both, bound to `interface`, with the VRRP group joined (also for unicast peers: foreign advertisements
    /// of our VRID are to be noticed). Needs CAP_NET_RAW.
    pub(super) fn open(interface: &str, index: u32, v4: bool) -> io::Result<Self> {
        let receive = raw_socket(v4)?;
        bind_to_device(&receive, interface)?;
        if v4 {
            option(&receive, libc::IPPROTO_IP, libc::IP_MULTICAST_ALL, &0i32)?;
            let group = libc::ip_mreqn {
                imr_multiaddr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(GROUP_V4.octets()),
                },
                imr_address: libc::in_addr { s_addr: 0 },
                imr_ifindex: index as i32,
            };
            option(&receive, libc::IPPROTO_IP, libc::IP_ADD_MEMBERSHIP, &group)?;
        } else {
            option(&receive, libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, &1i32)?;
            option(&receive, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, &1i32)?;
            let group = libc::ipv6_mreq {
                ipv6mr_multiaddr: libc::in6_addr {
                    s6_addr: GROUP_V6.octets(),
                },
                ipv6mr_interface: index,
            };
            option(&receive, libc::IPPROTO_IPV6, libc::IPV6_ADD_MEMBERSHIP, &group)?;
        }
        Ok(Self {
            receive,
            send: Self::sender(interface, index, v4)?,
            index,
            v4,
        })
    }

    fn sender(interface: &str, index: u32, v4: bool) -> io::Result<OwnedFd> {
        let send = raw_socket(v4)?;
        let nothing = libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0,
        };
        let program = libc::sock_fprog {
            len: 1,
            filter: (&raw const nothing).cast_mut(),
        };
        // The kernel copies the one-instruction program during the call and does not write to it.
        option(&send, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
        bind_to_device(&send, interface)?;
        option(&send, libc::SOL_SOCKET, libc::SO_PRIORITY, &SOCKET_PRIORITY)?;
        if v4 {
            option(&send, libc::IPPROTO_IP, libc::IP_TTL, &255i32)?;
            option(&send, libc::IPPROTO_IP, libc::IP_TOS, &TOS_NETWORK_CONTROL)?;
            option(&send, libc::IPPROTO_IP, libc::IP_FREEBIND, &1i32)?;
            option(&send, libc::IPPROTO_IP, libc::IP_MULTICAST_TTL, &255i32)?;
            option(&send, libc::IPPROTO_IP, libc::IP_MULTICAST_LOOP, &0i32)?;
            let interface = libc::ip_mreqn {
                imr_multiaddr: libc::in_addr { s_addr: 0 },
                imr_address: libc::in_addr { s_addr: 0 },
                imr_ifindex: index as i32,
            };
            option(&send, libc::IPPROTO_IP, libc::IP_MULTICAST_IF, &interface)?;
        } else {
            option(&send, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, &255i32)?;
            option(&send, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_HOPS, &255i32)?;
            option(&send, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_LOOP, &0i32)?;
            option(&send, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &TOS_NETWORK_CONTROL)?;
            option(&send, libc::IPPROTO_IPV6, libc::IPV6_MULTICAST_IF, &(index as i32))?;
        }
        Ok(send)
    }

    /// Sends one VRRP packet (without IP header) from `source` to `destination`, without waiting.
    pub(super) fn send(&self, source: IpAddr, destination: IpAddr, payload: &[u8]) -> io::Result<()> {
        let (address, address_len) = socket_address(destination, self.index);
        let mut control = Control::default();
        match source {
            IpAddr::V4(source) => control.push(
                libc::IPPROTO_IP,
                libc::IP_PKTINFO,
                libc::in_pktinfo {
                    ipi_ifindex: self.index as i32,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(source.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                },
            ),
            IpAddr::V6(source) => control.push(
                libc::IPPROTO_IPV6,
                libc::IPV6_PKTINFO,
                libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: source.octets(),
                    },
                    ipi6_ifindex: self.index,
                },
            ),
        }
        let mut part = libc::iovec {
            iov_base: payload.as_ptr().cast_mut().cast(),
            iov_len: payload.len(),
        };
        // SAFETY: all-zero bytes are a valid msghdr.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = (&raw const address).cast_mut().cast();
        message.msg_namelen = address_len;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_controllen = control.len;
        // SAFETY: every pointer in `message` refers to a local that outlives the call, with its exact length;
        // sendmsg does not write through any of them.
        let sent = unsafe { libc::sendmsg(self.send.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT) };
        check(sent).map(drop)
    }

    /// Reads one datagram without waiting.
    pub(super) fn receive<'b>(&self, buffer: &'b mut [u8]) -> io::Result<Option<Received<'b>>> {
        // SAFETY: all-zero bytes are a valid sockaddr_storage and a valid msghdr.
        let (mut name, mut message): (libc::sockaddr_storage, libc::msghdr) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let mut control = Control::default();
        let mut part = libc::iovec {
            iov_base: buffer.as_mut_ptr().cast(),
            iov_len: buffer.len(),
        };
        message.msg_name = (&raw mut name).cast();
        message.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.bytes.as_mut_ptr().cast();
        message.msg_controllen = CONTROL_LEN;
        // SAFETY: every pointer in `message` refers to a local or to `buffer`, with its exact length, for the call.
        let got = unsafe { libc::recvmsg(self.receive.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let length = check(got)?;
        if self.v4 {
            return Ok(read_ip4(&buffer[..length]));
        }
        // SAFETY: a raw IPv6 socket names its peer with a sockaddr_in6, which sockaddr_storage has room and alignment for.
        let peer: libc::sockaddr_in6 = unsafe { (&raw const name).cast::<libc::sockaddr_in6>().read() };
        let (mut destination, mut ttl) = (None, None);
        control.len = message.msg_controllen;
        control.each(|level, kind, data| match (level, kind) {
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                destination = data
                    .get(..16)
                    .and_then(|octets| <[u8; 16]>::try_from(octets).ok())
                    .map(Ipv6Addr::from);
            }
            (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                ttl = data
                    .get(..4)
                    .and_then(|octets| octets.try_into().ok())
                    .map(i32::from_ne_bytes);
            }
            _ => {}
        });
        let (Some(destination), Some(ttl)) = (destination, ttl) else {
            return Ok(None);
        };
        Ok(Some(Received {
            source: Ipv6Addr::from(peer.sin6_addr.s6_addr).into(),
            destination: destination.into(),
            ttl: ttl as u8,
            payload: &buffer[..length],
        }))
    }
}

impl AsFd for Pair {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receive.as_fd()
    }
}

/// Wakes a polling thread from any other.
#[derive(Debug)]
pub(super) struct Waker(OwnedFd);

impl Waker {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: eventfd(2) takes no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        check(fd as isize)?;
        // SAFETY: `fd` is a fresh descriptor that nothing else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight octets are read from a local. A full counter (EAGAIN) means that it is awake already.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    pub(super) fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: eight octets are written to a local; "nothing there" is fine.
        let _ = unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Time since boot, suspends included: a machine that slept must see that time went by.
pub(super) fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec to a local; CLOCK_BOOTTIME exists since Linux 2.6.39, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits until a descriptor is readable, a signal comes, or `timeout` is over.
pub(super) fn wait(descriptors: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<()> {
    let mut entries: Vec<libc::pollfd> = descriptors
        .iter()
        .map(|one| libc::pollfd {
            fd: one.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        })
        .collect();
    let time = timeout.map(|timeout| libc::timespec {
        tv_sec: timeout.as_secs() as libc::time_t,
        tv_nsec: libc::c_long::from(timeout.subsec_nanos()),
    });
    let time_pointer = time.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: pointer and count describe `entries`; the timeout is null or points to a local; no signal mask is given.
    let result = unsafe {
        libc::ppoll(
            entries.as_mut_ptr(),
            entries.len() as libc::nfds_t,
            time_pointer,
            std::ptr::null(),
        )
    };
    match check(result as isize) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(error),
        _ => Ok(()),
    }
}

/// Gives the calling thread a real-time priority, not inherited by children. Where that is not to be had (a container
/// without the right, a control group without a share of real time) it gets the best ordinary one, and the error tells.
pub(crate) fn realtime() -> io::Result<()> {
    let parameter = libc::sched_param {
        sched_priority: REALTIME_PRIORITY,
    };
    // SAFETY: reads one sched_param from a local; pid 0 is the calling thread.
    let done =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameter) };
    check(done as isize).map(drop).inspect_err(|_| {
        // SAFETY: takes no pointers; 0 is the calling thread, since Linux keeps nice values per thread.
        let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, BEST_NICE) };
    })
}

/// Keeps pages of the process in memory once they were touched (untouched ones stay free, so stacks cost nothing).
pub(super) fn lock_memory() -> io::Result<()> {
    // SAFETY: takes no pointers.
    let done = unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) };
    check(done as isize).map(drop)
}

#[derive(Debug)]
#[repr(C, align(8))]
struct Control {
    bytes: [u8; CONTROL_LEN],
    len: usize,
}

impl Default for Control {
    fn default() -> Self {
        Self {
            bytes: [0; CONTROL_LEN],
            len: 0,
        }
    }
}

impl Control {
    fn push<T: Copy>(&mut self, level: i32, kind: i32, value: T) {
        let header = mem::size_of::<libc::cmsghdr>();
        let total = header + mem::size_of::<T>();
        debug_assert!(self.len + total <= CONTROL_LEN);
        let message = libc::cmsghdr {
            cmsg_len: total,
            cmsg_level: level,
            cmsg_type: kind,
        };
        // SAFETY: `bytes` starts 8-aligned, `len` stays a multiple of 8, and header plus value fit (asserted above: the
        // only callers push one value of at most 20 octets into an empty buffer of 128).
        unsafe {
            let start = self.bytes.as_mut_ptr().add(self.len);
            start.cast::<libc::cmsghdr>().write(message);
            start.add(header).cast::<T>().write_unaligned(value);
        }
        self.len += (total + 7) & !7;
    }

    fn each(&self, mut take: impl FnMut(i32, i32, &[u8])) {
        let header = mem::size_of::<libc::cmsghdr>();
        let mut rest = self.bytes.get(..self.len).unwrap_or_default();
        while rest.len() >= header {
            // SAFETY: at least a whole header is left; read_unaligned asks for no alignment.
            let message: libc::cmsghdr = unsafe { rest.as_ptr().cast::<libc::cmsghdr>().read_unaligned() };
            let Some(data) = rest.get(header..message.cmsg_len) else {
                return;
            };
            take(message.cmsg_level, message.cmsg_type, data);
            rest = rest.get((message.cmsg_len + 7) & !7..).unwrap_or_default();
        }
    }
}

/// Takes the IPv4 header off; `None` if it is cut or malformed.
fn read_ip4(packet: &[u8]) -> Option<Received<'_>> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    if header < 20 {
        return None;
    }
    Some(Received {
        source: address(12)?,
        destination: address(16)?,
        ttl: *packet.get(8)?,
        // Short frames are padded by Ethernet: the header's total length counts, not the datagram's.
        payload: packet.get(header..total.min(packet.len()))?,
    })
}

fn raw_socket(v4: bool) -> io::Result<OwnedFd> {
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: socket(2) takes no pointers; the result is checked before it is owned.
    let fd = unsafe {
        libc::socket(
            family,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            PROTOCOL,
        )
    };
    check(fd as isize)?;
    // SAFETY: `fd` is a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bind_to_device(socket: &OwnedFd, interface: &str) -> io::Result<()> {
    let name = CString::new(interface).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let octets = name.as_bytes_with_nul();
    // SAFETY: pointer and length describe `octets`, which outlives the call.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_BINDTODEVICE,
            octets.as_ptr().cast(),
            octets.len() as libc::socklen_t,
        )
    };
    check(done as isize).map(drop)
}

fn option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is a plain C structure that lives across the call; its exact size is passed.
    let done = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            mem::size_of::<T>() as libc::socklen_t,
        )
    };
    check(done as isize).map(drop)
}

/// A destination for a raw socket; link-local IPv6 ones need the interface as scope.
fn socket_address(address: IpAddr, index: u32) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all-zero bytes are a valid sockaddr_storage.
    let mut storage: libc::sockaddr_storage = unsafe { mem::zeroed() };
    match address {
        IpAddr::V4(address) => {
            let value = libc::sockaddr_in {
                sin_family: libc::AF_INET as u16,
                sin_port: 0,
                sin_addr: libc::in_addr {
                    s_addr: u32::from_ne_bytes(address.octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is larger than and aligned for every socket address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(value) };
            (storage, mem::size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        IpAddr::V6(address) => {
            let value = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as u16,
                sin6_port: 0,
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr {
                    s6_addr: address.octets(),
                },
                sin6_scope_id: index,
            };
            // SAFETY: as above.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(value) };
            (storage, mem::size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip4_header_is_taken_off_and_padding_cut() {
        let mut packet = vec![
            0x46, 0, 0, 28, 0, 0, 0, 0, 255, 112, 0, 0, 10, 0, 0, 1, 224, 0, 0, 18, 1, 1, 1, 1,
        ];
        packet.extend([0x31, 1, 100, 1, 0, 0]);
        let read = read_ip4(&packet).expect("packet");
        assert_eq!((read.ttl, read.payload), (255, &[0x31, 1, 100, 1][..]));
        assert_eq!(read.destination, IpAddr::from(GROUP_V4));
        for cut in 0..24 {
            assert!(read_ip4(&packet[..cut]).is_none_or(|read| read.payload.is_empty()));
        }
    }

    #[test]
    fn control_messages_round_trip() {
        let mut control = Control::default();
        control.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, 255i32);
        let mut seen = Vec::new();
        control.each(|level, kind, data| seen.push((level, kind, data.to_vec())));
        assert_eq!(
            seen,
            [(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, 255i32.to_ne_bytes().to_vec())]
        );
    }
}
