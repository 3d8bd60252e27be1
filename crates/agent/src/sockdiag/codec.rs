//! `inet_diag` requests and answers (include/uapi/linux/inet_diag.h).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::codec::{Message, MessageBuilder, u32_at};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// Length of `struct inet_diag_sockid`.
const ID_LEN: usize = 48;
/// Every state in which a process waits for its peer: ESTABLISHED, SYN_SENT, FIN_WAIT1/2, CLOSE_WAIT, LAST_ACK.
/// TIME_WAIT needs no help, and LISTEN and SYN_RECV belong to nobody in particular.
const CONNECTED_STATES: u32 = 1 << 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9;

/// One TCP socket, with what is needed to destroy exactly this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// `AF_INET` or `AF_INET6` (which may carry mapped IPv4 addresses).
    family: u8,
    /// The kernel's `inet_diag_sockid`, cookie included, so that a reused port is never hit by mistake.
    id: [u8; ID_LEN],
    /// Local address.
    pub source: SocketAddr,
    /// Remote address.
    pub destination: SocketAddr,
}

/// Asks for the connected TCP sockets of one family whose remote port is `port`; 0 for all of them.
pub(super) fn list(family: u8, port: u16) -> MessageBuilder {
    let mut id = [0; ID_LEN];
    id[2..4].copy_from_slice(&port.to_be_bytes());
    request(SOCK_DIAG_BY_FAMILY, family, CONNECTED_STATES, &id)
}

/// Asks to destroy one socket.
pub(super) fn destroy(socket: &Socket) -> MessageBuilder {
    request(SOCK_DESTROY, socket.family, u32::MAX, &socket.id)
}

/// A request to destroy a socket that cannot exist: tells whether the kernel knows how (ENOENT) or not (EOPNOTSUPP).
pub(super) fn destroy_nothing() -> MessageBuilder {
    request(SOCK_DESTROY, libc::AF_INET as u8, u32::MAX, &[0; ID_LEN])
}

/// Reads one `inet_diag_msg`; mapped IPv4 addresses are returned as IPv4.
pub(super) fn read(message: &Message<'_>) -> Option<Socket> {
    if message.kind != SOCK_DIAG_BY_FAMILY {
        return None;
    }
    let family = *message.payload.first()?;
    let id: [u8; ID_LEN] = message.payload.get(4..4 + ID_LEN)?.try_into().ok()?;
    let port = |at: usize| u16::from_be_bytes([id[at], id[at + 1]]);
    let address = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = id[at..at + 16].try_into().ok()?;
        if i32::from(family) == libc::AF_INET {
            return Some(Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]).into());
        }
        Some(Ipv6Addr::from(octets).to_canonical())
    };
    Some(Socket {
        family,
        id,
        source: SocketAddr::new(address(4)?, port(0)),
        destination: SocketAddr::new(address(20)?, port(2)),
    })
}

/// `struct inet_diag_req_v2`.
fn request(kind: u16, family: u8, states: u32, id: &[u8; ID_LEN]) -> MessageBuilder {
    let mut fixed = [0; 8 + ID_LEN];
    fixed[0] = family;
    fixed[1] = libc::IPPROTO_TCP as u8;
    fixed[4..8].copy_from_slice(&states.to_ne_bytes());
    fixed[8..].copy_from_slice(id);
    MessageBuilder::new(kind, 0).fixed(&fixed)
}

/// The cookie of a socket, for tests and logs.
impl Socket {
    /// The kernel's identity of the socket.
    pub fn cookie(&self) -> u64 {
        let low = u32_at(&self.id, 40).unwrap_or_default();
        let high = u32_at(&self.id, 44).unwrap_or_default();
        u64::from(high) << 32 | u64::from(low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::messages;

    #[test]
    fn request_has_the_kernels_layout() {
        let bytes = list(libc::AF_INET as u8, 6443).finish(1);
        assert_eq!(bytes.len(), 16 + 56);
        assert_eq!(bytes[16..18], [2, 6]);
        assert_eq!(bytes[20..24], 0b11_0011_0110u32.to_ne_bytes());
        assert_eq!(bytes[26..28], 6443u16.to_be_bytes(), "destination port");
    }

    #[test]
    fn mapped_addresses_are_ipv4() {
        let mut payload = vec![0; 72];
        payload[0] = libc::AF_INET6 as u8;
        payload[4..6].copy_from_slice(&40000u16.to_be_bytes());
        payload[6..8].copy_from_slice(&443u16.to_be_bytes());
        let mapped: Ipv6Addr = "::ffff:10.0.0.7".parse().expect("ip");
        payload[24..40].copy_from_slice(&mapped.octets());
        let bytes = MessageBuilder::new(SOCK_DIAG_BY_FAMILY, 0).fixed(&payload).finish(1);
        let socket = read(&messages(&bytes).next().expect("message")).expect("socket");
        assert_eq!(socket.destination, "10.0.0.7:443".parse().expect("address"));
        assert_eq!(socket.source.port(), 40000);
    }
}
