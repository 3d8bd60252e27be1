//! Sending and watching address announcements on the link: ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861).
//!
//! [`Announcer`] sends the frames that `lb` built, [`Watcher`] tells when somebody else claims one of our VIPs,
//! [`vip_in_use`] and [`listen_vrrp`] are the questions to ask the link before a VIP or a VRID is chosen, [`send_vrrp`] what
//! holders of a VIP send each other to see whether it passes.

mod filter;
mod probe;
mod sys;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

pub use probe::{Owner, SeenRouter, listen_vrrp, send_vrrp, vip_in_use};
use sys::PacketSocket;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IP6: u16 = 0x86dd;
/// Hardware address of ff02::1, where unsolicited advertisements go.
const ALL_NODES_MAC: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
/// Longest frame looked at: ARP is 42 octets, an advertisement with options less than 128.
const FRAME_MAX: usize = 256;
/// Frames handled per wake-up, so that a flood of claims cannot hold up the VRRP thread.
const READ_BURST: usize = 64;

/// What can go wrong on the link layer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A packet socket could not be used.
    #[error("interface {interface}: {operation}: {source}")]
    Socket {
        /// Name or number of the interface.
        interface: String,
        /// What was being done.
        operation: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The interface has no Ethernet hardware address, so nobody can be asked on it.
    #[error("interface {interface} has no Ethernet address: a VIP needs an Ethernet-like interface")]
    NotEthernet {
        /// Name of the interface.
        interface: String,
    },
    /// Looking up the interface failed.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::Error),
}

/// Sends complete Ethernet frames.
#[derive(Debug)]
pub struct Announcer(PacketSocket);

impl Announcer {
    /// Opens the socket in the calling thread's network namespace. Needs CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        PacketSocket::sender().map(Self)
    }

    /// Sends one frame out of an interface, without waiting for the device.
    pub fn send(&self, index: u32, frame: &[u8]) -> io::Result<()> {
        self.0.send(index, frame)
    }
}

/// Somebody on the link claims an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The address claimed.
    pub address: IpAddr,
    /// Hardware address of who claims it.
    pub mac: [u8; 6],
}

/// Watches one interface for claims of our VIPs. A kernel filter keeps it asleep for everything else.
#[derive(Debug)]
pub struct Watcher {
    arp: Option<PacketSocket>,
    neighbours: Option<PacketSocket>,
}

impl Watcher {
    /// Watches `addresses` on the interface. Needs CAP_NET_RAW.
    pub fn open(index: u32, addresses: &[IpAddr]) -> Result<Self, Error> {
        let v4: Vec<Ipv4Addr> = addresses
            .iter()
            .filter_map(|one| if let IpAddr::V4(one) = one { Some(*one) } else { None })
            .collect();
        let v6: Vec<Ipv6Addr> = addresses
            .iter()
            .filter_map(|one| if let IpAddr::V6(one) = one { Some(*one) } else { None })
            .collect();
        let failed = |operation| {
            move |source| Error::Socket {
                interface: format!("{index}"),
                operation,
                source,
            }
        };
        let arp = (!v4.is_empty())
            .then(|| PacketSocket::receiver(index, ETHERTYPE_ARP, &filter::arp_claims(&v4)))
            .transpose()
            .map_err(failed("watching ARP"))?;
        let neighbours = (!v6.is_empty())
            .then(|| {
                let socket = PacketSocket::receiver(index, ETHERTYPE_IP6, &filter::neighbour_claims(&v6))?;
                socket.join(index, ALL_NODES_MAC)?;
                Ok(socket)
            })
            .transpose()
            .map_err(failed("watching neighbour advertisements"))?;
        Ok(Self { arp, neighbours })
    }

    /// The descriptors to poll for reading.
    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.arp.iter().chain(&self.neighbours).map(AsFd::as_fd)
    }

    /// Reads the frames that are there, without waiting, leaving out claims made from `own` hardware address.
    /// `each` gets who claims what, and the frame from the Ethernet header on.
    pub fn read(&self, own: Option<[u8; 6]>, mut each: impl FnMut(Claim, &[u8])) {
        let mut buffer = [0; FRAME_MAX];
        let arp = self
            .arp
            .iter()
            .map(|socket| (socket, read_arp as fn(&[u8]) -> Option<Claim>));
        let neighbours = self
            .neighbours
            .iter()
            .map(|socket| (socket, read_advertisement as fn(&[u8]) -> Option<Claim>));
        for (socket, read) in arp.chain(neighbours) {
            for _ in 0..READ_BURST {
                // An error is "nothing there" or a downed interface, which netlink reports.
                let Ok(frame) = socket.receive(&mut buffer) else { break };
                if let Some(claim) = read(frame).filter(|claim| Some(claim.mac) != own) {
                    each(claim, frame);
                }
            }
        }
    }
}

fn read_arp(frame: &[u8]) -> Option<Claim> {
    let mac = frame.get(22..28)?.try_into().ok()?;
    let address: [u8; 4] = frame.get(28..32)?.try_into().ok()?;
    Some(Claim {
        address: Ipv4Addr::from(address).into(),
        mac,
    })
}

/// The hardware address is taken from the Ethernet source: the target link-layer option is optional.
fn read_advertisement(frame: &[u8]) -> Option<Claim> {
    let at = filter::NA_TARGET as usize;
    let address: [u8; 16] = frame.get(at..at + 16)?.try_into().ok()?;
    Some(Claim {
        address: Ipv6Addr::from(address).into(),
        mac: frame.get(6..12)?.try_into().ok()?,
    })
}
