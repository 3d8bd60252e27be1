//! Interfaces, addresses and routes as the kernel tells them (rtnetlink(7)): `ip` need not be installed to look.

use std::{
    collections::BTreeMap,
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use quorate_facts::{AddressFacts, LinkFacts, NetworkFacts, RouteFacts};
use socket2::{Domain, Protocol, Socket, Type};

/// linux/socket.h and linux/rtnetlink.h; part of the kernel's ABI.
const AF_NETLINK: i32 = 16;
const NETLINK_ROUTE: i32 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
/// NLM_F_REQUEST | NLM_F_DUMP
const DUMP: u16 = 0x301;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_TABLE: u16 = 15;
const IFF_UP: u32 = 1;
const IFF_RUNNING: u32 = 0x40;
const RT_TABLE_MAIN: u32 = 254;
const RTN_UNICAST: u8 = 1;

pub(super) fn network() -> io::Result<NetworkFacts> {
    let mut names: BTreeMap<u32, String> = BTreeMap::new();
    let mut facts = NetworkFacts::default();
    dump(RTM_GETLINK, RTM_NEWLINK, 16, |header, attributes| {
        let index = u32_at(header, 4);
        let flags = u32_at(header, 8);
        let name = attributes
            .get(&IFLA_IFNAME)
            .map(|name| String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
            .unwrap_or_default();
        let mac: Vec<String> = attributes
            .get(&IFLA_ADDRESS)
            .into_iter()
            .flat_map(|mac| mac.iter())
            .map(|byte| format!("{byte:02x}"))
            .collect();
        names.insert(index, name.clone());
        facts.links.push(LinkFacts {
            name,
            mtu: attributes.get(&IFLA_MTU).map_or(0, |mtu| u32_at(mtu, 0)),
            mac: if mac.len() == 6 { mac.join(":") } else { String::new() },
            up: flags & IFF_UP != 0,
            running: flags & IFF_RUNNING != 0,
        });
    })?;
    dump(RTM_GETADDR, RTM_NEWADDR, 8, |header, attributes| {
        // On a point-to-point link IFA_ADDRESS is the peer's.
        let address = attributes
            .get(&IFA_LOCAL)
            .or_else(|| attributes.get(&IFA_ADDRESS))
            .and_then(|bytes| ip(bytes));
        if let (Some(address), Some(interface)) = (address, names.get(&u32_at(header, 4))) {
            facts.addresses.push(AddressFacts {
                interface: interface.clone(),
                address,
                prefix: header[1],
            });
        }
    })?;
    dump(RTM_GETROUTE, RTM_NEWROUTE, 12, |header, attributes| {
        let (family, prefix, kind) = (header[0], header[1], header[7]);
        let table = attributes
            .get(&RTA_TABLE)
            .map_or(u32::from(header[4]), |table| u32_at(table, 0));
        let unspecified: IpAddr = match family {
            AF_INET => Ipv4Addr::UNSPECIFIED.into(),
            AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
            _ => return,
        };
        if table != RT_TABLE_MAIN || kind != RTN_UNICAST {
            return;
        }
        facts.routes.push(RouteFacts {
            destination: attributes
                .get(&RTA_DST)
                .and_then(|bytes| ip(bytes))
                .unwrap_or(unspecified),
            prefix,
            gateway: attributes.get(&RTA_GATEWAY).and_then(|bytes| ip(bytes)),
            interface: attributes
                .get(&RTA_OIF)
                .and_then(|index| names.get(&u32_at(index, 0)).cloned()),
            metric: attributes.get(&RTA_PRIORITY).map_or(0, |metric| u32_at(metric, 0)),
        });
    })?;
    facts.default_interface = facts
        .routes
        .iter()
        .filter(|route| route.prefix == 0 && route.interface.is_some())
        .min_by_key(|route| (route.destination.is_ipv6(), route.metric))
        .and_then(|route| route.interface.clone());
    Ok(facts)
}

type Attributes<'a> = BTreeMap<u16, &'a [u8]>;

/// Asks for everything of one kind and hands each message's fixed header and attributes to `each`.
fn dump(ask: u16, expect: u16, header_length: usize, mut each: impl FnMut(&[u8], &Attributes<'_>)) -> io::Result<()> {
    let mut socket = Socket::new(Domain::from(AF_NETLINK), Type::RAW, Some(Protocol::from(NETLINK_ROUTE)))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut request = Vec::new();
    request.extend((16 + header_length as u32).to_ne_bytes());
    request.extend(ask.to_ne_bytes());
    request.extend(DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.resize(16 + header_length, 0);
    socket.send(&request)?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let got = socket.read(&mut buffer)?;
        let mut rest = &buffer[..got];
        while rest.len() >= 16 {
            let length = u32_at(rest, 0) as usize;
            if length < 16 || length > rest.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let kind = u16::from_ne_bytes([rest[4], rest[5]]);
            let body = &rest[16..length];
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => return Err(io::Error::from_raw_os_error(-(u32_at(body, 0) as i32))),
                _ if kind == expect && body.len() >= header_length => {
                    each(&body[..header_length], &attributes(&body[header_length..]))
                }
                _ => {}
            }
            rest = &rest[length.next_multiple_of(4).min(rest.len())..];
        }
    }
}

fn attributes(mut rest: &[u8]) -> Attributes<'_> {
    let mut found = BTreeMap::new();
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        if length < 4 || length > rest.len() {
            break;
        }
        // The two upper bits are flags (nested, byte order).
        let kind = u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff;
        found.insert(kind, &rest[4..length]);
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    found
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes
        .get(at..at + 4)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u32::from_ne_bytes)
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_has_a_loopback() {
        let facts = network().unwrap();
        let lo = facts.links.iter().find(|link| link.name == "lo").unwrap();
        assert!(lo.mtu > 0);
        if lo.up {
            assert_eq!(facts.interface_of(Ipv4Addr::LOCALHOST.into()), Some("lo"));
        }
    }

    #[test]
    fn cut_attributes_end_the_list() {
        assert_eq!(attributes(&[8, 0, 1, 0, 127, 0, 0, 1, 9, 0, 2, 0]).len(), 1);
        assert!(attributes(&[0, 0, 1, 0]).is_empty());
    }
}
