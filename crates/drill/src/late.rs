//! Packets that arrive late, and not in order: `quorate drill late`. For kernels without netem, and without leaving
//! anything behind when it ends.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::tun;

/// Of packets sent on, so that routing rules do not lead them here again.
const MARK: u32 = 7_701;
/// More than an Ethernet frame carries.
const LONGEST: usize = 65_536;
/// What a second of a busy link may bring; beyond it packets are lost, as in any queue.
const QUEUE: usize = 100_000;

/// Sends on what is routed to the interface `device` (made here), each packet `late` and up to `jitter` more after it came.
/// Needs the rights of root.
pub fn run(device: &str, late: Duration, jitter: Duration, length: Duration) -> io::Result<()> {
    let mut tun = tun::open(device)?;
    let raw = |domain| -> io::Result<Socket> {
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        socket.set_mark(MARK)?;
        Ok(socket)
    };
    let (v4, v6) = (raw(Domain::IPV4)?, raw(Domain::IPV6)?);
    let (arrived, packets) = mpsc::sync_channel::<Vec<u8>>(QUEUE);
    std::thread::spawn(move || {
        let mut buffer = vec![0; LONGEST];
        // An interface that is not up yet has nothing to read, and says so with an error.
        loop {
            match tun.read(&mut buffer) {
                Ok(length) if arrived.send(buffer[..length].to_vec()).is_err() => return,
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    });
    let ends = Instant::now() + length;
    let mut random = 0x9e37_79b9_7f4a_7c15;
    let mut waiting: BinaryHeap<Reverse<(Instant, Vec<u8>)>> = BinaryHeap::new();
    loop {
        let now = Instant::now();
        if now >= ends {
            return Ok(());
        }
        while waiting.peek().is_some_and(|Reverse((due, _))| *due <= now) {
            let Some(Reverse((_, packet))) = waiting.pop() else {
                break;
            };
            if let Some(to) = destination(&packet) {
                let socket = if to.is_ipv4() { &v4 } else { &v6 };
                // One that cannot be sent is one more lost on the way.
                let _ = socket.send_to(&packet, &SocketAddr::new(to, 0).into());
            }
        }
        let due = waiting.peek().map_or(ends, |Reverse((due, _))| *due);
        match packets.recv_timeout(due.saturating_duration_since(now)) {
            Ok(packet) if waiting.len() < QUEUE => {
                waiting.push(Reverse((Instant::now() + late + part(&mut random, jitter), packet)));
            }
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(io::Error::other("the interface is gone")),
        }
    }
}

/// Of an IP packet; `None` if it is none.
fn destination(packet: &[u8]) -> Option<IpAddr> {
    match packet.first()? >> 4 {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(packet.get(16..20)?).ok()?)),
        6 => Some(IpAddr::from(<[u8; 16]>::try_from(packet.get(24..40)?).ok()?)),
        _ => None,
    }
}

/// Between nothing and all of it (xorshift64, Marsaglia 2003).
fn part(state: &mut u64, all: Duration) -> Duration {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    Duration::from_nanos(*state % (u64::try_from(all.as_nanos()).unwrap_or(u64::MAX) + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_of_both_families() {
        let mut packet = vec![0x45; 20];
        packet[16..].copy_from_slice(&[10, 0, 0, 7]);
        assert_eq!(destination(&packet), Some([10, 0, 0, 7].into()));
        let mut packet = vec![0x60; 40];
        packet[24..].copy_from_slice(&[0xfd; 16]);
        assert_eq!(destination(&packet), Some([0xfd; 16].into()));
        assert_eq!(destination(&packet[..30]), None);
        assert_eq!(destination(&[]), None);
    }

    #[test]
    fn a_part_is_never_more_than_all() {
        let (mut state, all) = (7, Duration::from_millis(40));
        let parts: Vec<_> = (0..1_000).map(|_| part(&mut state, all)).collect();
        assert!(parts.iter().all(|part| *part <= all));
        assert!(
            parts.iter().any(|part| *part > all * 3 / 4) && parts.iter().any(|part| *part < all / 4),
            "they are spread"
        );
    }
}
