//! IPVS generic netlink messages (include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::netlink::codec::{self, Message, MessageBuilder, u16_at, u32_at};
use crate::netlink::generic;

pub(super) const FAMILY: &str = "IPVS";
const VERSION: u8 = 1;

/// `IPVS_CMD_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Command {
    NewService = 1,
    SetService = 2,
    DeleteService = 3,
    GetService = 4,
    NewDestination = 5,
    SetDestination = 6,
    DeleteDestination = 7,
    GetDestination = 8,
    GetInfo = 15,
}

const ATTR_SERVICE: u16 = 1;
const ATTR_DESTINATION: u16 = 2;

const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;
const SERVICE_FIREWALL_MARK: u16 = 5;
const SERVICE_SCHEDULER: u16 = 6;
const SERVICE_FLAGS: u16 = 7;
const SERVICE_TIMEOUT: u16 = 8;
const SERVICE_NETMASK: u16 = 9;

const DESTINATION_ADDRESS: u16 = 1;
const DESTINATION_PORT: u16 = 2;
const DESTINATION_FORWARDING: u16 = 3;
const DESTINATION_WEIGHT: u16 = 4;
const DESTINATION_UPPER: u16 = 5;
const DESTINATION_LOWER: u16 = 6;
const DESTINATION_ACTIVE: u16 = 7;
const DESTINATION_INACTIVE: u16 = 8;
const DESTINATION_FAMILY: u16 = 11;

/// `IP_VS_CONN_F_MASQ`.
const MASQUERADE: u32 = 0;
/// Bits of the connection flags that are the forwarding method.
const FORWARDING_MASK: u32 = 7;
/// `IP_VS_SVC_F_HASHED`, which the kernel sets itself.
const FLAG_HASHED: u32 = 2;

/// A virtual service as we program it: TCP, without persistence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    pub(super) address: SocketAddr,
    pub(super) scheduler: String,
    /// Anything but 0 was set by somebody else (persistence, one-packet).
    pub(super) flags: u32,
}

/// A real server of a service, masquerading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Destination {
    pub(super) address: SocketAddr,
    pub(super) weight: u32,
    /// Anything but 0 was set by somebody else (tunnel, direct routing).
    pub(super) forwarding: u32,
    /// Connections established now; only read.
    pub(super) active: u32,
    /// Other connections; only read.
    pub(super) inactive: u32,
}

impl Destination {
    pub(super) fn new(address: SocketAddr, weight: u32) -> Self {
        Self {
            address,
            weight,
            forwarding: MASQUERADE,
            active: 0,
            inactive: 0,
        }
    }

    /// Whether the kernel's entry `self` is as wanted; the counts do not matter.
    pub(super) fn is_like(&self, wanted: &Self) -> bool {
        (self.address, self.weight, self.forwarding) == (wanted.address, wanted.weight, wanted.forwarding)
    }
}

/// A message about a service as a whole.
pub(super) fn service(family: u16, command: Command, service: &Service) -> MessageBuilder {
    let message = MessageBuilder::new(family, 0).fixed(&generic::header(command as u8, VERSION));
    message.nested(ATTR_SERVICE, |inner| {
        let inner = identity(inner, service.address);
        if command == Command::DeleteService {
            return inner;
        }
        let (all, netmask) = match service.address {
            SocketAddr::V4(_) => (u32::MAX, u32::MAX),
            // The "netmask" of an IPv6 service is its prefix length.
            SocketAddr::V6(_) => (u32::MAX, 128),
        };
        let mut flags = service.flags.to_ne_bytes().to_vec();
        flags.extend(all.to_ne_bytes());
        inner
            .attr_str(SERVICE_SCHEDULER, &service.scheduler)
            .attr(SERVICE_FLAGS, &flags)
            .attr_u32(SERVICE_TIMEOUT, 0)
            .attr_u32(SERVICE_NETMASK, netmask)
    })
}

/// A message about one destination of a service.
pub(super) fn destination(
    family: u16,
    command: Command,
    service: SocketAddr,
    destination: &Destination,
) -> MessageBuilder {
    MessageBuilder::new(family, 0)
        .fixed(&generic::header(command as u8, VERSION))
        .nested(ATTR_SERVICE, |inner| identity(inner, service))
        .nested(ATTR_DESTINATION, |inner| {
            let (kind, octets) = encode(destination.address.ip());
            let inner = inner
                .attr(DESTINATION_FAMILY, &kind.to_ne_bytes())
                .attr(DESTINATION_ADDRESS, &octets)
                .attr(DESTINATION_PORT, &destination.address.port().to_be_bytes());
            if command == Command::DeleteDestination {
                return inner;
            }
            inner
                .attr_u32(DESTINATION_FORWARDING, destination.forwarding)
                .attr_u32(DESTINATION_WEIGHT, destination.weight)
                .attr_u32(DESTINATION_UPPER, 0)
                .attr_u32(DESTINATION_LOWER, 0)
        })
}

/// Asks for all services.
pub(super) fn list_services(family: u16) -> MessageBuilder {
    MessageBuilder::new(family, 0).fixed(&generic::header(Command::GetService as u8, VERSION))
}

/// Asks for all destinations of a service.
pub(super) fn list_destinations(family: u16, service: SocketAddr) -> MessageBuilder {
    MessageBuilder::new(family, 0)
        .fixed(&generic::header(Command::GetDestination as u8, VERSION))
        .nested(ATTR_SERVICE, |inner| identity(inner, service))
}

/// Asks for version and table size.
pub(super) fn get_info(family: u16) -> MessageBuilder {
    MessageBuilder::new(family, 0).fixed(&generic::header(Command::GetInfo as u8, VERSION))
}

/// Reads a service; `None` for those by firewall mark or of other protocols, which are never ours.
pub(super) fn read_service(message: &Message<'_>) -> Option<Service> {
    let (mut kind, mut octets, mut port, mut protocol) = (None, None, None, None);
    let (mut scheduler, mut flags) = (String::new(), 0);
    for (attribute, data) in codec::attributes(nested(message, ATTR_SERVICE)?) {
        match attribute {
            SERVICE_FAMILY => kind = u16_at(data, 0),
            SERVICE_PROTOCOL => protocol = u16_at(data, 0),
            SERVICE_ADDRESS => octets = Some(data),
            SERVICE_PORT => port = u16_at(data, 0).map(u16::from_be),
            SERVICE_FIREWALL_MARK => return None,
            SERVICE_SCHEDULER => scheduler = codec::string(data),
            SERVICE_FLAGS => flags = u32_at(data, 0)? & !FLAG_HASHED,
            _ => {}
        }
    }
    if protocol != Some(libc::IPPROTO_TCP as u16) {
        return None;
    }
    Some(Service {
        address: SocketAddr::new(decode(kind?, octets?)?, port?),
        scheduler,
        flags,
    })
}

/// Reads a destination of a service with addresses of family `service`.
pub(super) fn read_destination(message: &Message<'_>, service: SocketAddr) -> Option<Destination> {
    // Kernels before 3.18 do not tell the family: it is the service's then.
    let mut kind = encode(service.ip()).0;
    let (mut octets, mut port) = (None, None);
    let (mut weight, mut forwarding, mut active, mut inactive) = (0, 0, 0, 0);
    for (attribute, data) in codec::attributes(nested(message, ATTR_DESTINATION)?) {
        match attribute {
            DESTINATION_FAMILY => kind = u16_at(data, 0)?,
            DESTINATION_ADDRESS => octets = Some(data),
            DESTINATION_PORT => port = u16_at(data, 0).map(u16::from_be),
            DESTINATION_FORWARDING => forwarding = u32_at(data, 0)? & FORWARDING_MASK,
            DESTINATION_WEIGHT => weight = u32_at(data, 0)?,
            DESTINATION_ACTIVE => active = u32_at(data, 0)?,
            DESTINATION_INACTIVE => inactive = u32_at(data, 0)?,
            _ => {}
        }
    }
    let address = SocketAddr::new(decode(kind, octets?)?, port?);
    Some(Destination {
        address,
        weight,
        forwarding,
        active,
        inactive,
    })
}

/// What names a service.
fn identity(message: MessageBuilder, address: SocketAddr) -> MessageBuilder {
    let (kind, octets) = encode(address.ip());
    message
        .attr(SERVICE_FAMILY, &kind.to_ne_bytes())
        .attr(SERVICE_PROTOCOL, &(libc::IPPROTO_TCP as u16).to_ne_bytes())
        .attr(SERVICE_ADDRESS, &octets)
        .attr(SERVICE_PORT, &address.port().to_be_bytes())
}

fn nested<'a>(message: &Message<'a>, kind: u16) -> Option<&'a [u8]> {
    let body = message.payload.get(generic::HEADER_LEN..)?;
    codec::attributes(body)
        .find(|(attribute, _)| *attribute == kind)
        .map(|(_, data)| data)
}

/// Address family and the 16 octets of `union nf_inet_addr`.
fn encode(address: IpAddr) -> (u16, [u8; 16]) {
    match address {
        IpAddr::V4(address) => {
            let mut octets = [0; 16];
            octets[..4].copy_from_slice(&address.octets());
            (libc::AF_INET as u16, octets)
        }
        IpAddr::V6(address) => (libc::AF_INET6 as u16, address.octets()),
    }
}

fn decode(kind: u16, octets: &[u8]) -> Option<IpAddr> {
    match i32::from(kind) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets.get(..4)?).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(octets.get(..16)?).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::codec::messages;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    fn hex(text: &str) -> Vec<u8> {
        let digits: String = text.split_whitespace().collect();
        (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex"))
            .collect()
    }

    /// `ipvsadm -A -t 10.9.9.9:6443 -s wrr`, by hand from the kernel's policy (little endian).
    #[test]
    fn new_service_is_the_kernels_bytes() {
        let wanted = Service {
            address: address("10.9.9.9:6443"),
            scheduler: "wrr".to_owned(),
            flags: 0,
        };
        let expected = hex("68000000 1c00 0100 05000000 00000000
             01010000
             5400 0180
               0600 0100 0200 0000
               0600 0200 0600 0000
               1400 0300 0a090909 00000000 00000000 00000000
               0600 0400 192b 0000
               0800 0600 77727200
               0c00 0700 00000000 ffffffff
               0800 0800 00000000
               0800 0900 ffffffff");
        assert_eq!(service(0x1c, Command::NewService, &wanted).finish(5), expected);
    }

    /// `ipvsadm -d -t [fd00::9]:443 -r [fd00::1]:6443`.
    #[test]
    fn delete_destination_is_the_kernels_bytes() {
        let bytes = destination(
            0x1c,
            Command::DeleteDestination,
            address("[fd00::9]:443"),
            &Destination::new(address("[fd00::1]:6443"), 9),
        )
        .finish(6);
        let expected = hex("6c000000 1c00 0100 06000000 00000000
             07010000
             3000 0180
               0600 0100 0a00 0000
               0600 0200 0600 0000
               1400 0300 fd000000 00000000 00000000 00000009
               0600 0400 01bb 0000
             2800 0280
               0600 0b00 0a00 0000
               1400 0100 fd000000 00000000 00000000 00000001
               0600 0200 192b 0000");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn what_is_written_is_read() {
        for virtual_address in ["10.9.9.9:443", "[fd00::9]:443"].map(address) {
            let wanted = Service {
                address: virtual_address,
                scheduler: "wlc".to_owned(),
                flags: 0,
            };
            let bytes = service(1, Command::NewService, &wanted).finish(1);
            assert_eq!(read_service(&messages(&bytes).next().expect("message")), Some(wanted));
        }
        let wanted = Destination::new(address("10.0.0.1:6443"), 7);
        let bytes = destination(1, Command::NewDestination, address("10.9.9.9:443"), &wanted).finish(1);
        assert_eq!(
            read_destination(&messages(&bytes).next().expect("message"), address("10.9.9.9:443")),
            Some(wanted)
        );
    }

    #[test]
    fn foreign_kinds_of_services_are_left_alone() {
        let udp = MessageBuilder::new(1, 0)
            .fixed(&[1, 1, 0, 0])
            .nested(ATTR_SERVICE, |inner| {
                inner
                    .attr(SERVICE_FAMILY, &2u16.to_ne_bytes())
                    .attr(SERVICE_PROTOCOL, &17u16.to_ne_bytes())
            });
        let mark = MessageBuilder::new(1, 0)
            .fixed(&[1, 1, 0, 0])
            .nested(ATTR_SERVICE, |inner| {
                inner
                    .attr(SERVICE_FAMILY, &2u16.to_ne_bytes())
                    .attr_u32(SERVICE_FIREWALL_MARK, 1)
            });
        for message in [udp, mark] {
            assert_eq!(
                read_service(&messages(&message.finish(1)).next().expect("message")),
                None
            );
        }
    }

    #[test]
    fn cut_messages_do_not_panic() {
        let wanted = Destination::new(address("10.0.0.1:6443"), 7);
        let bytes = destination(1, Command::NewDestination, address("10.9.9.9:443"), &wanted).finish(1);
        for cut in 16..bytes.len() {
            let message = Message {
                kind: 1,
                flags: 0,
                sequence: 1,
                payload: &bytes[16..cut],
            };
            let _ = (
                read_service(&message),
                read_destination(&message, address("10.9.9.9:443")),
            );
        }
    }
}
