//! Questions to the link before an address or a VRID is taken.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use super::sys::{PacketSocket, wait_readable};
use super::{Announcer, Error, Watcher, filter};
use crate::netlink::route::{Link, Routes};

/// ETH_P_ALL.
const EVERY_ETHERTYPE: u16 = 0x0003;
/// Hardware addresses of 224.0.0.18 and ff02::12 (RFC 9568 §7.2).
const VRRP_GROUPS: [[u8; 6]; 2] = [[0x01, 0x00, 0x5e, 0, 0, 0x12], [0x33, 0x33, 0, 0, 0, 0x12]];
/// Probes sent during the time allowed: one may be lost (RFC 5227 §2.1.1 sends three).
const PROBES: u32 = 3;
/// IP protocol number.
const VRRP: u8 = quorate_lb::vrrp::PROTOCOL;
/// A neighbour answers within a millisecond, a busy one later.
const NEIGHBOUR: Duration = Duration::from_millis(600);
/// One may be lost.
const TIMES: u32 = 3;
const BETWEEN: Duration = Duration::from_millis(20);

/// Who answered for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// Hardware address of the answering host.
    pub mac: [u8; 6],
}

/// A VRRP router heard on the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SeenRouter {
    /// Virtual router id.
    pub vrid: u8,
    /// Protocol version, 2 or 3.
    pub version: u8,
    /// Priority it advertised.
    pub priority: u8,
    /// Its own address.
    pub source: IpAddr,
}

/// Asks whether another host on `interface` owns `address`, by ARP probes or neighbour solicitations from the
/// unspecified address, which change nobody's tables. Waits at most `timeout`; an owner is usually reported within 1 ms.
/// Blocks the calling thread. Needs CAP_NET_RAW.
pub fn vip_in_use(interface: &str, address: IpAddr, timeout: Duration) -> Result<Option<Owner>, Error> {
    let link = Routes::open()?.link(interface)?;
    let own = link.mac.ok_or_else(|| Error::NotEthernet {
        interface: interface.to_owned(),
    })?;
    let failed = |operation| {
        move |source| Error::Socket {
            interface: interface.to_owned(),
            operation,
            source,
        }
    };
    let watcher = Watcher::open(link.index, &[address])?;
    let announcer = Announcer::open().map_err(failed("opening a packet socket"))?;
    let frame = quorate_lb::frames::probe(own, address);
    let start = Instant::now();
    let sockets: Vec<&PacketSocket> = watcher.arp.iter().chain(&watcher.neighbours).collect();
    let mut owner = None;
    for round in 1..=PROBES {
        announcer.send(link.index, &frame).map_err(failed("sending a probe"))?;
        let until = timeout * round / PROBES;
        loop {
            let left = until.saturating_sub(start.elapsed());
            if left.is_zero() {
                break;
            }
            if wait_readable(&sockets, left.max(Duration::from_millis(1))).map_err(failed("waiting for an answer"))? {
                watcher.read(Some(own), |claim, _| owner = Some(Owner { mac: claim.mac }));
            }
            if owner.is_some() {
                return Ok(owner);
            }
        }
    }
    Ok(None)
}

/// Listens for VRRP routers on `interface` for `duration`: VRIDs that are taken on this link. Multicast advertisements
/// of both families are heard, and unicast ones sent to this host. Blocks the calling thread. Needs CAP_NET_RAW.
pub fn listen_vrrp(interface: &str, duration: Duration) -> Result<Vec<SeenRouter>, Error> {
    let link: Link = Routes::open()?.link(interface)?;
    let failed = |operation| {
        move |source| Error::Socket {
            interface: interface.to_owned(),
            operation,
            source,
        }
    };
    let socket =
        PacketSocket::receiver(link.index, EVERY_ETHERTYPE, &filter::vrrp()).map_err(failed("listening for VRRP"))?;
    for group in VRRP_GROUPS {
        socket
            .join(link.index, group)
            .map_err(failed("joining the VRRP groups"))?;
    }
    let start = Instant::now();
    let mut seen = BTreeSet::new();
    let mut buffer = [0; super::FRAME_MAX];
    while let Some(left) = duration.checked_sub(start.elapsed()).filter(|left| !left.is_zero()) {
        if wait_readable(&[&socket], left.max(Duration::from_millis(1))).map_err(failed("listening for VRRP"))? {
            while let Ok(frame) = socket.receive(&mut buffer) {
                seen.extend(read_router(frame));
            }
        }
    }
    Ok(seen.into_iter().collect())
}

/// Sends datagrams of VRRP's protocol, with TTL 255, from an address of this host to a neighbour on `interface`, some times
/// each. `false`: nobody answered for the address. Blocks the calling thread. Needs CAP_NET_RAW.
///
/// They go out below this host's packet filter. Had its connection tracking seen them, it would take what the other side
/// sends for their answer and let it in, and a filter that keeps VRRP out would not be found.
pub fn send_vrrp(interface: &str, packets: &[(IpAddr, IpAddr)], payload: &[u8]) -> Result<Vec<bool>, Error> {
    let link = Routes::open()?.link(interface)?;
    let own = link.mac.ok_or_else(|| Error::NotEthernet {
        interface: interface.to_owned(),
    })?;
    let failed = |operation| {
        move |source| Error::Socket {
            interface: interface.to_owned(),
            operation,
            source,
        }
    };
    let owners: Vec<Result<Option<Owner>, Error>> = std::thread::scope(|scope| {
        let asked: Vec<_> = packets
            .iter()
            .map(|(_, to)| scope.spawn(|| vip_in_use(interface, *to, NEIGHBOUR)))
            .collect();
        asked.into_iter().map(|one| one.join().unwrap_or(Ok(None))).collect()
    });
    let mut frames = Vec::new();
    let mut sent = Vec::new();
    for ((from, to), owner) in packets.iter().zip(owners) {
        let owner = owner?;
        frames.extend(owner.and_then(|owner| quorate_lb::frames::datagram(own, owner.mac, *from, *to, VRRP, payload)));
        sent.push(owner.is_some());
    }
    let announcer = Announcer::open().map_err(failed("opening a packet socket"))?;
    for round in 0..TIMES {
        if round > 0 {
            std::thread::sleep(BETWEEN);
        }
        for frame in &frames {
            announcer.send(link.index, frame).map_err(failed("sending VRRP"))?;
        }
    }
    Ok(sent)
}

fn read_router(frame: &[u8]) -> Option<SeenRouter> {
    let packet = frame.get(14..)?;
    let (source, vrrp): (IpAddr, &[u8]) = match packet.first()? >> 4 {
        4 => {
            let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
            (
                Ipv4Addr::from(source).into(),
                packet.get(usize::from(packet[0] & 0x0f) * 4..)?,
            )
        }
        6 => {
            let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
            (Ipv6Addr::from(source).into(), packet.get(40..)?)
        }
        _ => return None,
    };
    let &[first, vrid, priority, ..] = vrrp else {
        return None;
    };
    // Nobody's: what [`send_vrrp`] sends.
    if !matches!(first >> 4, 2 | 3) {
        return None;
    }
    Some(SeenRouter {
        vrid,
        version: first >> 4,
        priority,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn router_is_read_from_both_families() {
        let mut v4 = vec![0; 14];
        v4.extend([
            0x45, 0, 0, 32, 0, 0, 0, 0, 255, 112, 0, 0, 10, 0, 0, 1, 224, 0, 0, 18, 0x31, 7, 100, 1,
        ]);
        let seen = read_router(&v4).expect("router");
        assert_eq!(
            (seen.vrid, seen.version, seen.priority, seen.source),
            (7, 3, 100, "10.0.0.1".parse().expect("ip"))
        );
        assert_eq!(read_router(&v4[..30]), None);
        v4[34] = 0;
        assert_eq!(read_router(&v4), None, "no version of VRRP");
    }
}
