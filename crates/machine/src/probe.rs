//! Trying things out: what may be asked, and what comes back.

use std::net::{IpAddr, SocketAddr};

use quorate_facts::{DiskLatency, Echo, LinkSeen, Listening, Reach, Transport};
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// Listens on these for so long, or until asked again: TCP accepts and closes, UDP echoes. A port somebody uses is left
    /// alone. [`Probed::Listening`] in the order asked.
    Listen {
        ports: Vec<(Transport, SocketAddr)>,
        for_ms: u64,
    },
    /// [`Probed::Reach`] in the order asked. UDP needs the other side to [`Probe::Listen`].
    Dial {
        targets: Vec<(Transport, SocketAddr)>,
        timeout_ms: u64,
    },
    /// ICMP echoes that may not be fragmented; `size` counts the whole IP packet. [`Probed::Echoes`] in the order asked.
    Echo {
        targets: Vec<(IpAddr, u16)>,
        timeout_ms: u64,
    },
    /// Small writes forced to disk in the nearest directory above `path` that exists. [`Probed::Disk`].
    Disk { path: String, writes: u32, for_ms: u64 },
    /// [`Probed::Clock`].
    Clock,
    /// Who answers for these addresses on the interface's link, and which VRRP routers are heard. [`Probed::Link`].
    Link {
        interface: String,
        addresses: Vec<IpAddr>,
        for_ms: u64,
    },
    /// Listens for VRRP (IP protocol 112) on these addresses of its own until [`Probe::VrrpHeard`]. [`Probed::Done`].
    VrrpListen { addresses: Vec<IpAddr> },
    /// From and to: sends each neighbour on the interface's link packets of protocol 112 that no router heeds.
    /// [`Probed::Sent`] in the order asked.
    VrrpSend {
        interface: String,
        packets: Vec<(IpAddr, IpAddr)>,
    },
    /// Whether [`Probe::VrrpSend`]'s packets came, from and to, since listening began; waits for those that did not for so
    /// long, and ends the listening. [`Probed::Heard`] in the order asked.
    VrrpHeard {
        packets: Vec<(IpAddr, IpAddr)>,
        for_ms: u64,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probed {
    Listening(Vec<Listening>),
    Reach(Vec<Reach>),
    Echoes(Vec<Echo>),
    Disk(DiskLatency),
    /// Nanoseconds since 1970.
    Clock(u64),
    Link(LinkSeen),
    Done,
    /// `false`: nobody on the link answered for the address, so nothing was sent.
    Sent(Vec<bool>),
    Heard(Vec<bool>),
}

impl Probe {
    pub(crate) fn operation(&self) -> String {
        match self {
            Self::Listen { ports, .. } => format!("listen on {} ports", ports.len()),
            Self::Dial { targets, .. } => format!("dial {} ports", targets.len()),
            Self::Echo { targets, .. } => format!("send {} echo requests", targets.len()),
            Self::Disk { path, .. } => format!("measure the disk below {path}"),
            Self::Clock => "read the clock".into(),
            Self::Link { interface, .. } => format!("listen on the link of {interface}"),
            Self::VrrpListen { addresses } => format!("listen for VRRP on {} addresses", addresses.len()),
            Self::VrrpSend { packets, .. } => format!("send VRRP to {} machines", packets.len()),
            Self::VrrpHeard { packets, .. } => format!("tell whose VRRP came, of {}", packets.len()),
        }
    }
}
