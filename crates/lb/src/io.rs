//! What goes into the decision core and what comes out.
//!
//! Both are plain data: every [`Input`] can be written as a JSON line and replayed, and every [`Action`]
//! is carried out by the process around this crate.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::config::{AgentConfig, SetKind, Vip};

/// Time since the process started, from a clock that also counts while the machine is suspended
/// (CLOCK_BOOTTIME). Never goes back.
pub type Now = Duration;

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "input", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Input {
    /// The process is ready to carry out actions. The first answer is to remove every VIP left over.
    Start,
    /// Nothing but time passed; due whenever `poll_timeout()` says so.
    Tick,
    /// Give everything up; [`Action::Stopped`] follows, at once or a few advertisement intervals later.
    Stop,
    /// A new configuration, already validated. Unchanged instances and backends are not touched.
    Config { config: Box<AgentConfig> },
    /// An IP packet of protocol 112 arrived on `interface`.
    Vrrp {
        interface: String,
        source: IpAddr,
        destination: IpAddr,
        /// TTL or hop limit.
        ttl: u8,
        /// What follows the IP header (and its options).
        payload: Bytes,
        /// Only in recordings, which hold no keys: whether it was signed by the key it names. None: to be found out.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authentic: Option<bool>,
    },
    /// An ARP packet or neighbour advertisement seen on `interface`, from the Ethernet header on.
    Frame { interface: String, frame: Bytes },
    /// State of a network interface; sent at start and on each change.
    Link {
        interface: String,
        up: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mac: Option<[u8; 6]>,
        /// Sources of virtual routers that are no address of this machine at the moment: nothing can be advertised.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        missing: Vec<IpAddr>,
    },
    /// [`Action::AddVip`] or [`Action::RemoveVip`] was carried out.
    VipDone {
        instance: String,
        vip: Vip,
        change: VipChange,
        /// None: done, or already so.
        error: Option<String>,
    },
    /// The kernel says that a VIP was removed by someone else while held.
    VipLost { vip: Vip },
    /// Answer to [`Action::Probe`] with the same `id`.
    Probed {
        frontend: String,
        backend: String,
        id: u64,
        outcome: ProbeOutcome,
        /// How late the prober itself ran; its time-outs prove nothing when it was starved.
        #[serde(default)]
        late: Duration,
    },
    /// A real connection to a backend had trouble. Successes need not be reported.
    Dial {
        frontend: String,
        backend: String,
        outcome: DialOutcome,
    },
    /// An operator's order.
    Command { command: Command },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VipChange {
    Add,
    Remove,
}

/// What a health check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeOutcome {
    /// Ready (2xx), or accepted for a TCP check.
    Ready,
    /// Answered, but not ready.
    Unready {
        status: u16,
        /// The only failing checks are etcd's (`[-]etcd failed`, `[-]etcd-readiness failed`).
        etcd_only: bool,
    },
    /// Connection refused or reset while connecting: host alive, process gone.
    Refused,
    /// No answer in time; how far it came.
    Timeout { stage: ProbeStage },
    /// Host or network unreachable.
    Unreachable,
    /// Answered wrongly: TLS failure, garbage, closed early.
    Broken { error: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProbeStage {
    /// TCP did not connect: host dead or cut off.
    Connect,
    /// TCP connected (the kernel does that alone), TLS did not finish: process hung.
    Tls,
    /// TLS finished or was not used, no HTTP answer.
    Http,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DialOutcome {
    /// Connected, after a doubt; only needed for backends without checks.
    Connected,
    Refused,
    /// No answer within `hedgeAfter`; another backend is being tried.
    Slow,
    /// No answer within `connectTimeout`.
    Timeout,
    Unreachable,
}

/// Orders of `quorate agent ctl`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Command {
    /// Ready, draining (no new connections) or in maintenance (also no checks, connections reset).
    SetAdmin {
        frontend: String,
        backend: String,
        state: AdminState,
    },
    /// 0-256; None goes back to the file's.
    SetWeight {
        frontend: String,
        backend: String,
        weight: Option<u16>,
    },
    /// Hand the VIPs to the next machine and do not take them back before `hold` is over.
    Release { instance: String, hold: Duration },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "kebab-case")]
pub enum AdminState {
    #[default]
    Ready,
    Drain,
    Maintenance,
}

/// Something to be done, in the order given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Action {
    /// Add an address to an interface (IPv6: no DAD, preferred lifetime 0 for /128). Answer: `VipDone`.
    AddVip {
        instance: String,
        interface: String,
        vip: Vip,
    },
    /// Remove it if it is there. Answer: `VipDone`.
    RemoveVip {
        instance: String,
        interface: String,
        vip: Vip,
    },
    /// Send an IP packet, protocol 112, TTL 255, TOS 0xc0.
    SendVrrp {
        instance: String,
        interface: String,
        source: IpAddr,
        destination: IpAddr,
        payload: Bytes,
    },
    /// Send a complete Ethernet frame.
    SendFrame { interface: String, frame: Bytes },
    /// The whole backend set of a frontend, level-triggered: what is not in it is gone.
    Backends {
        frontend: String,
        kind: SetKind,
        backends: Vec<BackendView>,
    },
    /// Check one backend now as its `health` says; answer with the same `id` by `timeout` at the latest.
    /// Several checks of one backend may be under way. `connect_timeout` is for TCP's part: a kernel answers at once
    /// however busy its programs are.
    Probe {
        frontend: String,
        backend: String,
        id: u64,
        timeout: Duration,
        connect_timeout: Duration,
    },
    /// Reset (RST) every client connection of this backend, in random order spread over `spread`.
    /// For IPVS and eBPF: destroy local sockets connected to `address`.
    ResetConnections {
        frontend: String,
        backend: String,
        address: SocketAddr,
        spread: Duration,
    },
    /// Something an operator should be able to read: log it, count it.
    Report { event: Event },
    /// Everything is given up; the process may end.
    Stopped,
}

/// One backend as those who pick one must see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendView {
    pub name: String,
    pub address: SocketAddr,
    /// Effective weight: configured or commanded, scaled by slow start. 0: no new connections.
    pub weight: u16,
    pub max_connections: u32,
    pub backup: bool,
    pub local: bool,
    pub availability: Availability,
    pub reason: Reason,
}

/// Whether new connections may go to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Availability {
    /// Yes.
    Up,
    /// Alive but not ready: only when none is up (fail open). Its connections are kept.
    LastResort,
    /// No. Its connections are kept unless reset by an action of its own.
    Down,
}

/// Why a backend is as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// Not checked yet.
    Unchecked,
    Ready,
    /// Connections are refused.
    Refused,
    /// No answer at all.
    Silent,
    /// Accepts connections and does not answer.
    Hung,
    Unreachable,
    /// Was ready, now says it is not: shutting down.
    Unready,
    /// Not ready because of etcd only.
    Etcd,
    /// Not ready yet since it came up.
    Starting,
    /// Answers wrongly.
    Broken,
    /// By order.
    Admin,
}

/// States of a virtual router, in keepalived's and the RFC's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VrrpState {
    Init,
    Backup,
    Master,
    /// A tracked thing is missing.
    Fault,
}

/// Transitions and findings, each with its reason.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
pub enum Event {
    VrrpState {
        instance: String,
        from: VrrpState,
        to: VrrpState,
        reason: String,
    },
    /// Another router uses our VRID, or another machine our VIP; at most one report per kind in 10 s.
    Conflict {
        instance: String,
        kind: ConflictKind,
        detail: String,
    },
    /// This process ran late by `late` and did not act on the silence it caused itself.
    Late { what: String, late: Duration },
    Backend {
        frontend: String,
        backend: String,
        from: Availability,
        to: Availability,
        reason: Reason,
        detail: String,
    },
    /// No backend is up; `usable` tells whether some are used nevertheless.
    FailOpen { frontend: String, usable: usize },
    /// Whether a frontend has any backend to pass connections to.
    Path { frontend: String, usable: bool },
    /// An action could not be carried out.
    Failed { what: String, error: String },
    /// A command named something that does not exist.
    Refused { what: String, hint: String },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConflictKind {
    /// Advertisement for our VRID from a machine that is no peer.
    ForeignRouter,
    /// Advertisement for our VRID that is not (rightly) signed.
    Unauthenticated,
    /// Advertisement for our VRID with other VIPs.
    OtherVips,
    /// Another machine answers for our VIP.
    ForeignOwner,
    /// Two machines held the VIP; resolved.
    TwoMasters,
}

impl ConflictKind {
    pub const ALL: [Self; 5] = [
        Self::ForeignRouter,
        Self::Unauthenticated,
        Self::OtherVips,
        Self::ForeignOwner,
        Self::TwoMasters,
    ];

    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ForeignRouter => "foreign-router",
            Self::Unauthenticated => "unauthenticated",
            Self::OtherVips => "other-vips",
            Self::ForeignOwner => "foreign-owner",
            Self::TwoMasters => "two-masters",
        }
    }
}

/// Octets; hexadecimal text in JSON.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct Bytes(pub Vec<u8>);

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(v: Vec<u8>) -> Self {
        Self(v)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in &self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{self:?}"))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        let bad = || serde::de::Error::custom("octets must be pairs of hexadecimal digits");
        if !text.is_ascii() || text.len() % 2 != 0 {
            return Err(bad());
        }
        (0..text.len())
            .step_by(2)
            .map(|i| u8::from_str_radix(&text[i..i + 2], 16).map_err(|_| bad()))
            .collect::<Result<Vec<u8>, _>>()
            .map(Self)
    }
}
