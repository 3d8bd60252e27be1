//! Whether VRRP passes between two machines: packets of IP protocol 112 that no router heeds, heard behind the filter.

use std::{
    io,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::error::RemoteError;

/// IP protocol number.
const VRRP: i32 = 112;
/// Version, type and VRID 0 are nobody's: keepalived looks for the VRID first and ignores one it does not have, Quorate's
/// agent does the same and counts it. Eight octets are a whole VRRP header, so that it is not reported as cut off.
pub(super) const PAYLOAD: &[u8] = b"\0\0\0\0\0\0\0\0quorate-probe";

/// Sockets that keep what comes until it is asked for. At most one set at a time.
#[derive(Default)]
pub(in crate::local) struct Ears(Mutex<Vec<Ear>>);

pub(super) struct Ear {
    address: IpAddr,
    /// A raw socket in truth; the operations are the same, and these tell the sender without `unsafe`.
    socket: UdpSocket,
}

impl Ears {
    /// Opens one for each address, in place of those there were.
    pub(super) fn listen(&self, addresses: &[IpAddr]) -> Result<(), RemoteError> {
        let ears: io::Result<Vec<Ear>> = addresses.iter().map(|address| Ear::open(*address)).collect();
        let ears = ears.map_err(|error| RemoteError::io("a raw VRRP socket", &error))?;
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ears;
        Ok(())
    }

    pub(super) fn take(&self) -> Vec<Ear> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Ear {
    fn open(address: IpAddr) -> io::Result<Self> {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(VRRP)))?;
        socket.bind(&SocketAddr::new(address, 0).into())?;
        Ok(Self {
            address,
            socket: socket.into(),
        })
    }

    /// Who sent the next one of ours; `None`: there is none within the time.
    fn next(&self, limit: Duration) -> io::Result<Option<IpAddr>> {
        let started = Instant::now();
        let mut buffer = [0; 256];
        loop {
            // What has come already is read even when no time is left.
            let left = limit.saturating_sub(started.elapsed()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.recv_from(&mut buffer) {
                // Raw IPv4 sockets hand out the IP header too, and short frames are padded behind.
                Ok((length, from)) if holds(&buffer[..length], PAYLOAD) => return Ok(Some(from.ip())),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(None);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

fn holds(packet: &[u8], wanted: &[u8]) -> bool {
    packet.windows(wanted.len()).any(|part| part == wanted)
}

/// Whether each (from, to) came; waits for the missing ones until the time is over. Blocks.
pub(super) fn heard(ears: &[Ear], packets: &[(IpAddr, IpAddr)], limit: Duration) -> Result<Vec<bool>, RemoteError> {
    let started = Instant::now();
    let mut found = vec![false; packets.len()];
    for ear in ears {
        let waits = |found: &[bool]| {
            let mut all = packets.iter().zip(found);
            all.any(|((_, to), heard)| *to == ear.address && !heard)
        };
        while waits(&found) {
            let left = limit.saturating_sub(started.elapsed());
            let next = ear
                .next(left)
                .map_err(|error| RemoteError::io("a raw VRRP socket", &error))?;
            let Some(source) = next else { break };
            for (index, (from, to)) in packets.iter().enumerate() {
                found[index] |= *to == ear.address && *from == source;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::print_stderr, reason = "says why it cannot run")]
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn what_comes_is_told_by_its_sender_and_other_vrrp_is_not_taken_for_it() {
        for (here, stranger) in [
            (IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from([127, 0, 0, 9])),
            (Ipv6Addr::LOCALHOST.into(), "fd00::9".parse().unwrap()),
        ] {
            let ears = Ears::default();
            if let Err(error) = ears.listen(&[here]) {
                eprintln!("skipped: {}", error.message);
                return;
            }
            let asked = [(here, here), (stranger, here)];
            let send = |payload: &[u8]| {
                let sender = Ear::open(here).unwrap();
                sender.socket.send_to(payload, SocketAddr::new(here, 0)).unwrap();
            };
            send(&[0x31, 51, 100, 1, 0, 10, 0, 0, 10, 0, 0, 100]);
            let limit = Duration::from_millis(100);
            assert_eq!(heard(&ears.take(), &asked, limit).unwrap(), [false, false]);
            ears.listen(&[here]).unwrap();
            send(PAYLOAD);
            assert_eq!(heard(&ears.take(), &asked, limit).unwrap(), [true, false]);
            assert!(ears.take().is_empty());
        }
    }
}
