//! Ethernet frames around a VIP: gratuitous ARP, unsolicited neighbour advertisement, ARP probe, neighbour
//! solicitation, and reading those of others; and a bare datagram to a neighbour.
//!
//! Sources: RFC 826, RFC 5227 (probe, announcement), RFC 4861 §4.4 and §7.2.6 (neighbour advertisement), RFC 4862 §5.4.2
//! (solicitation), RFC 791 and RFC 8200 (datagram).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::Sum;

pub type Mac = [u8; 6];

const BROADCAST: Mac = [0xff; 6];
const ETHERTYPE_ARP: [u8; 2] = [0x08, 0x06];
const ETHERTYPE_IPV4: [u8; 2] = [0x08, 0x00];
const ETHERTYPE_IPV6: [u8; 2] = [0x86, 0xdd];
const ETHERTYPE_VLAN: [u8; 2] = [0x81, 0x00];
const ICMPV6: u8 = 58;
/// Internetwork control, as VRRP is marked.
const TRAFFIC_CLASS: u8 = 0xc0;
/// As VRRP wants it: nobody forwarded it.
const HOP_LIMIT: u8 = 255;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const OPTION_TARGET_LINK_ADDRESS: u8 = 2;

/// Someone says: this address is at this link-layer address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    pub address: IpAddr,
    pub mac: Mac,
}

/// Everything that makes neighbours learn `mac` for `vip`: for IPv4 a gratuitous ARP in request and in
/// reply form (some stacks heed only one), for IPv6 an unsolicited neighbour advertisement.
pub fn announcement(mac: Mac, vip: IpAddr) -> Vec<Vec<u8>> {
    match vip {
        IpAddr::V4(ip) => vec![
            arp(Operation::Request, mac, ip, [0; 6], ip),
            arp(Operation::Reply, mac, ip, BROADCAST, ip),
        ],
        IpAddr::V6(ip) => vec![neighbour_advertisement(mac, ip)],
    }
}

/// Asks whether anyone has `address`, without claiming it: from the unspecified address, as before an address is used
/// (RFC 5227 §2.1.1, RFC 4862 §5.4.2).
pub fn probe(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(ip) => arp(Operation::Request, mac, Ipv4Addr::UNSPECIFIED, [0; 6], ip),
        IpAddr::V6(ip) => neighbour_solicitation(mac, ip),
    }
}

/// An unfragmented IP datagram of `protocol` from `mac` to `to`; `None`: addresses of two families, or a payload that is
/// too long for one frame.
pub fn datagram(
    mac: Mac,
    to: Mac,
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok().filter(|length| *length <= 1_400)?;
    let mut f = Vec::with_capacity(54 + payload.len());
    f.extend(to);
    f.extend(mac);
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, TRAFFIC_CLASS];
            header.extend((20 + length).to_be_bytes());
            // No identification; may not be fragmented.
            header.extend([0, 0, 0x40, 0, HOP_LIMIT, protocol, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = Sum::new().bytes(&header).checksum();
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            f.extend(ETHERTYPE_IPV4);
            f.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            f.extend(ETHERTYPE_IPV6);
            f.extend([0x60 | TRAFFIC_CLASS >> 4, (TRAFFIC_CLASS & 0xf) << 4, 0, 0]);
            f.extend(length.to_be_bytes());
            f.extend([protocol, HOP_LIMIT]);
            f.extend(source.octets());
            f.extend(destination.octets());
        }
        _ => return None,
    }
    f.extend(payload);
    Some(f)
}

/// Reads a frame from its Ethernet header on; None when it claims no address or is malformed.
pub fn parse_claim(frame: &[u8]) -> Option<Claim> {
    let (ethertype, payload) = match (frame.get(12..14)?, frame.get(14..)?) {
        (t, rest) if t == ETHERTYPE_VLAN => (rest.get(2..4)?, rest.get(4..)?),
        other => other,
    };
    if ethertype == ETHERTYPE_ARP {
        parse_arp(payload)
    } else if ethertype == ETHERTYPE_IPV6 {
        parse_neighbour_advertisement(payload)
    } else {
        None
    }
}

#[derive(Clone, Copy)]
enum Operation {
    Request = 1,
    Reply = 2,
}

fn arp(operation: Operation, sender: Mac, sender_ip: Ipv4Addr, target: Mac, target_ip: Ipv4Addr) -> Vec<u8> {
    let mut f = Vec::with_capacity(42);
    f.extend(BROADCAST);
    f.extend(sender);
    f.extend(ETHERTYPE_ARP);
    // Hardware Ethernet, protocol IPv4, address lengths 6 and 4.
    f.extend([0, 1, 0x08, 0x00, 6, 4, 0, operation as u8]);
    f.extend(sender);
    f.extend(sender_ip.octets());
    f.extend(target);
    f.extend(target_ip.octets());
    f
}

fn neighbour_advertisement(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let mut icmp = Vec::with_capacity(32);
    // Flags: override only; not solicited, not a router.
    icmp.extend([NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, 0x20, 0, 0, 0]);
    icmp.extend(ip.octets());
    icmp.extend([OPTION_TARGET_LINK_ADDRESS, 1]);
    icmp.extend(mac);
    icmp6(mac, ip, all_nodes, icmp)
}

fn neighbour_solicitation(mac: Mac, ip: Ipv6Addr) -> Vec<u8> {
    let [.., a, b, c] = ip.octets();
    // The solicited-node multicast address.
    let group = Ipv6Addr::from([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, a, b, c]);
    let mut icmp = Vec::with_capacity(24);
    icmp.extend([NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
    icmp.extend(ip.octets());
    icmp6(mac, Ipv6Addr::UNSPECIFIED, group, icmp)
}

/// A frame to a multicast group around `icmp`, whose checksum is still zero.
fn icmp6(mac: Mac, source: Ipv6Addr, group: Ipv6Addr, mut icmp: Vec<u8>) -> Vec<u8> {
    let sum = Sum::new()
        .pseudo_header(source.into(), group.into(), ICMPV6, icmp.len())
        .bytes(&icmp)
        .checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());

    let mut f = Vec::with_capacity(54 + icmp.len());
    f.extend([0x33, 0x33]);
    f.extend(&group.octets()[12..]);
    f.extend(mac);
    f.extend(ETHERTYPE_IPV6);
    f.extend([0x60, 0, 0, 0, 0, icmp.len() as u8, ICMPV6, 255]);
    f.extend(source.octets());
    f.extend(group.octets());
    f.extend(icmp);
    f
}

fn parse_arp(p: &[u8]) -> Option<Claim> {
    let fixed = p.get(..28)?;
    if fixed[..6] != [0, 1, 0x08, 0x00, 6, 4] || fixed[6] != 0 || !(1..=2).contains(&fixed[7]) {
        return None;
    }
    let ip = Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[14..18]).ok()?);
    // A zero sender is a probe and claims nothing.
    (!ip.is_unspecified()).then_some(Claim {
        address: ip.into(),
        mac: fixed[8..14].try_into().ok()?,
    })
}

fn parse_neighbour_advertisement(p: &[u8]) -> Option<Claim> {
    let header = p.get(..40)?;
    let length = usize::from(u16::from_be_bytes([header[4], header[5]]));
    // RFC 4861 §7.1.2: hop limit 255, valid checksum, code 0.
    if header[0] >> 4 != 6 || header[6] != ICMPV6 || header[7] != 255 {
        return None;
    }
    let icmp = p.get(40..40 + length)?;
    if icmp.len() < 24 || icmp[0] != NEIGHBOUR_ADVERTISEMENT || icmp[1] != 0 {
        return None;
    }
    let address = |at: usize| <[u8; 16]>::try_from(&header[at..at + 16]).map(Ipv6Addr::from).ok();
    let sum = Sum::new().pseudo_header(address(8)?.into(), address(24)?.into(), ICMPV6, icmp.len());
    if sum.bytes(icmp).checksum() != 0 {
        return None;
    }
    let target = Ipv6Addr::from(<[u8; 16]>::try_from(&icmp[8..24]).ok()?);
    let mut options = &icmp[24..];
    while let [kind, units, ..] = *options {
        let option = options.get(..usize::from(units) * 8).filter(|o| !o.is_empty())?;
        if kind == OPTION_TARGET_LINK_ADDRESS {
            return Some(Claim {
                address: target.into(),
                mac: option[2..8].try_into().ok()?,
            });
        }
        options = &options[option.len()..];
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn announcements_are_read_back_as_claims() {
        for ip in ["10.77.0.100", "fd00::100"] {
            let ip: IpAddr = ip.parse().unwrap();
            for frame in announcement(MAC, ip) {
                let claim = Some(Claim { address: ip, mac: MAC });
                assert_eq!(parse_claim(&frame), claim);
                let mut tagged = frame.clone();
                tagged.splice(12..12, [0x81, 0x00, 0x00, 0x05]);
                assert_eq!(parse_claim(&tagged), claim);
                for cut in 0..frame.len() {
                    assert_eq!(parse_claim(&frame[..cut]), None, "{ip} cut to {cut}");
                }
            }
        }
    }

    #[test]
    fn probes_claim_nothing() {
        for ip in ["10.0.0.1", "fd00::1:2:3"] {
            assert_eq!(parse_claim(&probe(MAC, ip.parse().unwrap())), None, "{ip}");
        }
        let arp = probe(MAC, "10.0.0.9".parse().unwrap());
        assert_eq!(arp[28..32], [0; 4], "sender address is zero");
        assert_eq!(arp[38..42], [10, 0, 0, 9]);
    }

    #[test]
    fn a_neighbour_advertisement_with_a_wrong_checksum_or_hop_limit_is_ignored() {
        let good = &announcement(MAC, "fd00::100".parse().unwrap())[0];
        for at in [14 + 7, 14 + 42, 14 + 50, 85] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            assert_eq!(parse_claim(&bad), None, "octet {at}");
        }
    }

    #[test]
    fn an_independent_decoder_reads_a_datagram() {
        use etherparse::{NetSlice, SlicedPacket};
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let to = [2, 0, 0, 0, 0, 8];
        let frame = datagram(MAC, to, ip("10.0.0.1"), ip("10.0.0.2"), 112, b"payload").unwrap();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv4(v4)) = packet.net else {
            panic!("not IPv4")
        };
        let header = v4.header();
        assert_eq!((header.ttl(), header.protocol().0), (255, 112));
        assert_eq!((header.source(), header.destination()), ([10, 0, 0, 1], [10, 0, 0, 2]));
        assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
        assert_eq!(v4.payload().payload, b"payload");
        let frame = datagram(MAC, to, ip("fd00::1"), ip("fd00::2"), 112, b"payload").unwrap();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(v6)) = packet.net else {
            panic!("not IPv6")
        };
        assert_eq!((v6.header().hop_limit(), v6.header().next_header().0), (255, 112));
        assert_eq!(v6.header().traffic_class(), 0xc0);
        assert_eq!(v6.payload().payload, b"payload");
        assert_eq!((&frame[..6], &frame[6..12]), (&to[..], &MAC[..]));
        assert_eq!(datagram(MAC, to, ip("10.0.0.1"), ip("fd00::2"), 112, b""), None);
        assert_eq!(
            datagram(MAC, to, ip("10.0.0.1"), ip("10.0.0.2"), 112, &[0; 2_000]),
            None
        );
    }

    #[test]
    fn an_independent_decoder_agrees() {
        use etherparse::{Icmpv6Slice, LinkSlice, NetSlice, SlicedPacket, TransportSlice};
        let frame = &announcement(MAC, "fd00::100".parse().unwrap())[0];
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(LinkSlice::Ethernet2(link)) = packet.link else {
            panic!("no Ethernet header")
        };
        assert_eq!((link.source(), link.destination()), (MAC, [0x33, 0x33, 0, 0, 0, 1]));
        let (Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) = (packet.net, packet.transport) else {
            panic!("not ICMPv6")
        };
        assert_eq!(ip.header().hop_limit(), 255);
        let check = |i: &Icmpv6Slice<'_>| i.is_checksum_valid(ip.header().source(), ip.header().destination());
        assert!(check(&icmp));
        let frame = &probe(MAC, "fd00::1:2:3".parse().unwrap());
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let (Some(LinkSlice::Ethernet2(link)), Some(NetSlice::Ipv6(ip)), Some(TransportSlice::Icmpv6(icmp))) =
            (packet.link, packet.net, packet.transport)
        else {
            panic!("not ICMPv6")
        };
        assert_eq!((link.source(), link.destination()), (MAC, [0x33, 0x33, 0xff, 2, 0, 3]));
        assert_eq!((ip.header().source(), ip.header().hop_limit()), ([0; 16], 255));
        assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));
        for frame in &announcement(MAC, "10.77.0.100".parse().unwrap()) {
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let Some(NetSlice::Arp(arp)) = packet.net else {
                panic!("not ARP")
            };
            assert_eq!(arp.sender_hw_addr(), MAC);
            assert_eq!(arp.sender_protocol_addr(), [10, 77, 0, 100]);
            assert_eq!(arp.target_protocol_addr(), [10, 77, 0, 100]);
        }
    }
}
