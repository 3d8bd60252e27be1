//! ICMP echoes that may not be fragmented: latency, and whether a packet of a given size passes (RFC 792, RFC 4443).

use std::{
    io::{self, Read},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use quorate_facts::Echo;
use socket2::{Domain, Protocol, Socket, Type};

use super::dont_fragment;
use crate::error::RemoteError;

const HEADER_V4: usize = 20;
const HEADER_V6: usize = 40;
const ICMP: usize = 8;
/// One may be lost, and the first one waits for the neighbour's hardware address.
const ROUNDS: u16 = 3;
/// The largest packet a jumbo frame carries.
const LARGEST: usize = 9_216;

/// The fastest answer of three for each target, within the time given for all.
pub(super) fn echoes(targets: &[(IpAddr, u16)], limit: Duration) -> Result<Vec<Echo>, RemoteError> {
    let mut found: Vec<Echo> = targets
        .iter()
        .map(|(address, size)| Echo {
            address: *address,
            size: *size,
            us: None,
        })
        .collect();
    for v6 in [false, true] {
        if targets.iter().any(|(address, _)| address.is_ipv6() == v6) {
            let family = Family::open(v6).map_err(|error| RemoteError::io("a raw ICMP socket", &error))?;
            family
                .ask(&mut found, limit)
                .map_err(|error| RemoteError::io("ICMP", &error))?;
        }
    }
    Ok(found)
}

struct Family {
    socket: Socket,
    v6: bool,
    /// Tells our echoes from those of others on this machine.
    id: u16,
}

impl Family {
    fn open(v6: bool) -> io::Result<Self> {
        let (domain, protocol) = if v6 {
            (Domain::IPV6, Protocol::ICMPV6)
        } else {
            (Domain::IPV4, Protocol::ICMPV4)
        };
        let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
        dont_fragment::set(&socket, v6)?;
        // Three times a jumbo frame for each of some hundred machines.
        socket.set_recv_buffer_size(4 << 20)?;
        Ok(Self {
            socket,
            v6,
            id: std::process::id() as u16,
        })
    }

    /// Sends everything in three rounds and gathers what comes back, until all is there or the time is over.
    fn ask(mut self, found: &mut [Echo], limit: Duration) -> io::Result<()> {
        let started = Instant::now();
        let mut sent: Vec<Instant> = Vec::new();
        let targets: Vec<usize> = (0..found.len())
            .filter(|index| found[*index].address.is_ipv6() == self.v6)
            .collect();
        for round in 0..ROUNDS {
            for (place, index) in targets.iter().enumerate() {
                sent.push(Instant::now());
                let sequence = place as u16 * ROUNDS + round;
                let packet = self.packet(sequence, usize::from(found[*index].size));
                // Larger than our own interface takes, or no route: it does not come back either.
                let _ = self
                    .socket
                    .send_to(&packet, &SocketAddr::new(found[*index].address, 0).into());
            }
            let until = limit * u32::from(round + 1) / u32::from(ROUNDS);
            self.gather(found, &targets, &sent, started, until)?;
            if targets.iter().all(|index| found[*index].us.is_some()) {
                break;
            }
        }
        Ok(())
    }

    fn gather(
        &mut self,
        found: &mut [Echo],
        targets: &[usize],
        sent: &[Instant],
        started: Instant,
        until: Duration,
    ) -> io::Result<()> {
        let mut buffer = vec![0; LARGEST + HEADER_V6];
        loop {
            let left = until.saturating_sub(started.elapsed());
            if left.is_zero() || targets.iter().all(|index| found[*index].us.is_some()) {
                return Ok(());
            }
            self.socket.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let length = match self.socket.read(&mut buffer) {
                Ok(length) => length,
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => continue,
                // A neighbour that cannot be reached is reported here; its echo stays unanswered.
                Err(_) => continue,
            };
            let arrived = Instant::now();
            let Some(sequence) = self.answer(&buffer[..length]) else {
                continue;
            };
            let (place, round) = (usize::from(sequence / ROUNDS), usize::from(sequence % ROUNDS));
            let Some(index) = targets.get(place) else { continue };
            if let Some(sent) = sent.get(round * targets.len() + place) {
                let us = arrived.duration_since(*sent).as_micros() as u32;
                let best = &mut found[*index].us;
                *best = Some(best.map_or(us, |best: u32| best.min(us)));
            }
        }
    }

    fn packet(&self, sequence: u16, size: usize) -> Vec<u8> {
        let header = if self.v6 { HEADER_V6 } else { HEADER_V4 };
        let mut packet = vec![0; size.clamp(header + ICMP, LARGEST) - header];
        packet[0] = if self.v6 { 128 } else { 8 };
        packet[4..6].copy_from_slice(&self.id.to_be_bytes());
        packet[6..8].copy_from_slice(&sequence.to_be_bytes());
        if !self.v6 {
            // The kernel fills in ICMPv6's, which covers addresses as well.
            let sum = checksum(&packet);
            packet[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        packet
    }

    /// The sequence number of an answer to one of ours. Raw IPv4 sockets hand out the IP header too.
    fn answer(&self, packet: &[u8]) -> Option<u16> {
        let icmp = if self.v6 {
            packet
        } else {
            packet.get(usize::from(packet.first()? & 0x0f) * 4..)?
        };
        let &[kind, code, _, _, id_high, id_low, high, low, ..] = icmp else {
            return None;
        };
        let reply = if self.v6 { 129 } else { 0 };
        (kind == reply && code == 0 && u16::from_be_bytes([id_high, id_low]) == self.id)
            .then(|| u16::from_be_bytes([high, low]))
    }
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let mut sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::print_stderr, reason = "says why it cannot run")]
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn this_host_echoes_and_what_is_larger_than_its_interface_does_not_come_back() {
        let targets = [
            (IpAddr::from(Ipv4Addr::LOCALHOST), 84),
            (IpAddr::from(Ipv4Addr::LOCALHOST), 1_500),
            (IpAddr::from(Ipv6Addr::LOCALHOST), 1_280),
        ];
        match echoes(&targets, Duration::from_millis(500)) {
            Ok(found) => {
                assert!(found[0].us.is_some() && found[1].us.is_some(), "{found:?}");
            }
            Err(error) => eprintln!("skipped: {}", error.message),
        }
    }

    #[test]
    fn a_checksum_of_a_whole_packet_is_zero() {
        let mut packet = vec![8, 0, 0, 0, 1, 2, 3, 4, 5];
        let sum = checksum(&packet);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
        assert_eq!(checksum(&packet), 0);
    }
}
