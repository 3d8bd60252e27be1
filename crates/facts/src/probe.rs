//! What machines found out about each other when asked to try: ports, packets, disks, clocks, the link of the VIP.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::Transport;

/// Whether a port could be listened on for a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Listening {
    Opened,
    /// Somebody listens there already; nothing was touched.
    Taken,
    Failed(String),
}

/// What came of dialling a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Somebody answered after so many microseconds.
    Open(u32),
    Refused,
    /// Nothing came back in time.
    Silent,
    Failed(String),
}

/// One size of packet that was to be echoed, never fragmented.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Echo {
    pub address: IpAddr,
    /// Bytes of the whole IP packet.
    pub size: u16,
    /// Fastest answer in microseconds; `None`: there was none.
    pub us: Option<u32>,
}

/// Small writes, each forced to disk, as a database's log makes them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskLatency {
    pub writes: u32,
    pub p50_us: u32,
    pub p99_us: u32,
    pub max_us: u32,
}

/// A VRRP router heard on a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Router {
    pub vrid: u8,
    /// Of the protocol, 2 or 3.
    pub version: u8,
    pub priority: u8,
    pub source: IpAddr,
}

/// What one machine saw on the link that is to carry VIPs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkSeen {
    /// Hardware address of whoever answered for an address asked for, lower case with colons.
    pub owners: BTreeMap<IpAddr, String>,
    pub routers: Vec<Router>,
}

/// One port tried from one machine to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dialled {
    pub from: String,
    pub to: String,
    pub transport: Transport,
    pub address: SocketAddr,
    /// The matrix' own words.
    pub purpose: String,
    pub reach: Reach,
}

/// Echoes of one machine's packets from another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Echoed {
    pub from: String,
    pub to: String,
    /// Of the sender's interface.
    pub mtu: u16,
    pub echoes: Vec<Echo>,
}

/// VRRP from one holder of a VIP to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Advertised {
    pub from: String,
    pub to: String,
    /// It got through whatever filters packets on the way.
    pub heard: bool,
}

/// A machine's clock against the operator's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ClockOffset {
    pub offset_ns: i64,
    /// Half of the time the question took.
    pub error_ns: i64,
}

/// Everything measured between and on the machines, by machine name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Measured {
    pub dialled: Vec<Dialled>,
    pub echoed: Vec<Echoed>,
    /// Of the file system that is to hold etcd's data.
    pub disks: BTreeMap<String, DiskLatency>,
    pub clocks: BTreeMap<String, ClockOffset>,
    pub links: BTreeMap<String, LinkSeen>,
    pub vrrp: Vec<Advertised>,
    /// Names as the machine's own resolver answers; `None`: not in time.
    pub names: BTreeMap<String, BTreeMap<String, Option<Vec<IpAddr>>>>,
    /// Machine and what could not be measured there, with the reason.
    pub problems: Vec<(String, String)>,
    pub took_ms: u64,
}
