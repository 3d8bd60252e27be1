//! What the programs and the agent share: keys and values of the maps. Changing any of it needs a new [`VERSION`].

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Directory below the pin path; a new layout gets new maps beside the old ones.
pub(super) const VERSION: &str = "v1";
/// Slots of a service's table. A power of two, so that choosing is one AND; large enough that weights come out right
/// within half a percent.
pub(super) const SLOTS: usize = 256;
/// An address as the maps hold it: 16 octets (IPv4 mapped into IPv6) and the port in network order in 4 octets, just as
/// `struct bpf_sock_addr` has it.
pub(super) const ADDRESS: usize = 20;
/// Number of used slots (0: no backend) and padding to 8.
pub(super) const HEADER: usize = 8;
/// Value of the services map.
pub(super) const SERVICE: usize = HEADER + SLOTS * ADDRESS;
/// Value kept with each socket: the virtual address, then the backend's.
pub(super) const SOCKET: usize = 2 * ADDRESS;
/// Services at most; an agent has a handful.
pub(super) const SERVICES_MAX: u32 = 256;

/// Writes an address in the maps' form.
pub(super) fn encode(address: SocketAddr) -> [u8; ADDRESS] {
    let octets = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let mut bytes = [0; ADDRESS];
    bytes[..16].copy_from_slice(&octets);
    bytes[16..18].copy_from_slice(&address.port().to_be_bytes());
    bytes
}

/// Reads an address in the maps' form.
pub(super) fn decode(bytes: &[u8]) -> Option<SocketAddr> {
    let octets: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    let port: [u8; 2] = bytes.get(16..18)?.try_into().ok()?;
    Some(SocketAddr::new(
        Ipv6Addr::from(octets).to_canonical(),
        u16::from_be_bytes(port),
    ))
}

/// The whole value of a service: each backend gets slots in proportion to its weight, at least one; those of weight 0
/// get none. Without any backend, connections are refused.
pub(super) fn service(backends: &[(SocketAddr, u16)]) -> Vec<u8> {
    let mut value = vec![0; SERVICE];
    let slots = share(backends);
    value[..4].copy_from_slice(&(slots.len() as u32).to_ne_bytes());
    for (slot, address) in value[HEADER..].chunks_exact_mut(ADDRESS).zip(&slots) {
        slot.copy_from_slice(&encode(*address));
    }
    value
}

/// The backends that a service's value names, with the number of slots of each.
pub(super) fn read_shares(value: &[u8]) -> BTreeMap<SocketAddr, usize> {
    let used = value
        .get(..4)
        .and_then(|count| count.try_into().ok())
        .map_or(0, u32::from_ne_bytes) as usize;
    let slots = value.get(HEADER..).unwrap_or_default().chunks_exact(ADDRESS).take(used);
    count(slots.filter_map(decode))
}

/// The number of slots that each backend gets.
pub(super) fn shares(backends: &[(SocketAddr, u16)]) -> BTreeMap<SocketAddr, usize> {
    count(share(backends).into_iter())
}

fn count(slots: impl Iterator<Item = SocketAddr>) -> BTreeMap<SocketAddr, usize> {
    let mut counts = BTreeMap::new();
    for address in slots {
        *counts.entry(address).or_insert(0) += 1;
    }
    counts
}

fn share(backends: &[(SocketAddr, u16)]) -> Vec<SocketAddr> {
    let weighted: Vec<_> = backends.iter().filter(|(_, weight)| *weight > 0).take(SLOTS).collect();
    let total: u64 = weighted.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return Vec::new();
    }
    // One slot for each, the rest by weight: positions on a line of length `total`, so that rounding never loses one.
    let rest = SLOTS - weighted.len();
    let mut slots: Vec<SocketAddr> = weighted.iter().map(|(address, _)| *address).collect();
    let mut sum = 0;
    for (address, weight) in &weighted {
        let from = sum * rest as u64 / total;
        sum += u64::from(*weight);
        let to = sum * rest as u64 / total;
        slots.extend(std::iter::repeat_n(*address, (to - from) as usize));
    }
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    #[test]
    fn addresses_round_trip() {
        for text in ["10.0.0.1:6443", "[fd00::1]:443"] {
            assert_eq!(decode(&encode(address(text))), Some(address(text)));
        }
        assert_eq!(
            encode(address("1.2.3.4:258"))[8..20],
            [0, 0, 0xff, 0xff, 1, 2, 3, 4, 1, 2, 0, 0]
        );
    }

    #[test]
    fn slots_follow_the_weights() {
        let [a, b, c] = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"].map(address);
        let slots = share(&[(a, 300), (b, 100), (c, 0)]);
        assert_eq!(slots.len(), SLOTS);
        let count = |which| slots.iter().filter(|slot| **slot == which).count();
        assert!((190..=193).contains(&count(a)), "{}", count(a));
        assert_eq!((count(a) + count(b), count(c)), (SLOTS, 0));
        let backends = [(a, 300), (b, 100), (c, 0)];
        assert_eq!(read_shares(&service(&backends)), shares(&backends));
        let tiny = share(&[(a, 65535), (b, 1)]);
        assert!(tiny.contains(&b), "the smallest weight is not nothing");
    }

    #[test]
    fn no_backend_is_an_empty_table() {
        assert!(read_shares(&service(&[])).is_empty());
        let all_down = service(&[(address("10.0.0.1:1"), 0)]);
        assert_eq!(all_down[..4], [0; 4]);
        assert_eq!(all_down.len(), SERVICE);
    }
}
