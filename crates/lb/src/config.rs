//! The agent's configuration file: `apiVersion: quorate.dev/v1, kind: Agent`.
//!
//! A minimal file names the node, one VRRP instance with its VIP and peers, and one frontend with its
//! backends; everything else has a default. Reading YAML is the caller's business (`serde`);
//! [`AgentConfig::validate`] then finds what the types alone cannot refuse.

mod units;
mod validate;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use units::{Span, UnitError, Vip};
pub use validate::{Finding, MAX_BACKENDS};

/// The whole file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentConfig {
    pub api_version: ApiVersion,
    pub kind: Kind,
    /// Name of this machine; appears in logs, metrics and the statistics page.
    pub node: String,
    /// Virtual routers this machine takes part in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vrrp: Vec<VrrpInstance>,
    /// Layer 4 proxies.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frontends: Vec<Frontend>,
    /// Kernel IPVS virtual servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ipvs: Vec<IpvsService>,
    /// Virtual addresses rewritten at connect(2) by cgroup eBPF programs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ebpf: Vec<EbpfService>,
    /// Statistics web page; off unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stats: Option<Stats>,
    /// Prometheus metrics; off unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<Metrics>,
    #[serde(default)]
    pub admin: Admin,
    /// Folder for what outlives restarts of the machine: the boot id of its virtual routers.
    #[serde(default = "state_folder", skip_serializing_if = "is_state_folder")]
    pub state: PathBuf,
    /// Every input of the decision core is appended here as JSON lines, for `quorate agent replay`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<PathBuf>,
}

impl AgentConfig {
    /// An empty configuration for `node`: nothing to announce, nothing to serve.
    pub fn new(node: impl Into<String>) -> Self {
        Self {
            api_version: ApiVersion::V1,
            kind: Kind::Agent,
            node: node.into(),
            vrrp: Vec::new(),
            frontends: Vec::new(),
            ipvs: Vec::new(),
            ebpf: Vec::new(),
            stats: None,
            metrics: None,
            admin: Admin::default(),
            state: state_folder(),
            record: None,
        }
    }

    /// Everything wrong with this configuration; empty means it can be run.
    pub fn validate(&self) -> Vec<Finding> {
        validate::validate(self)
    }

    /// Backend sets of all kinds, in file order. Names are unique across the three kinds.
    pub fn backend_sets(&self) -> impl Iterator<Item = BackendSetRef<'_>> {
        let frontends = self.frontends.iter().map(|f| BackendSetRef {
            name: &f.name,
            kind: SetKind::Proxy,
            backends: &f.backends,
            health: &f.health,
            slow_start: f.slow_start,
        });
        let ipvs = self.ipvs.iter().map(|f| BackendSetRef {
            name: &f.name,
            kind: SetKind::Ipvs,
            backends: &f.backends,
            health: &f.health,
            slow_start: Span::ZERO,
        });
        let ebpf = self.ebpf.iter().map(|f| BackendSetRef {
            name: &f.name,
            kind: SetKind::Ebpf,
            backends: &f.backends,
            health: &f.health,
            slow_start: Span::ZERO,
        });
        frontends.chain(ipvs).chain(ebpf)
    }
}

/// What a proxy frontend, an IPVS service and an eBPF service have in common.
#[derive(Clone, Copy, Debug)]
pub struct BackendSetRef<'a> {
    pub name: &'a str,
    pub kind: SetKind,
    pub backends: &'a [Backend],
    pub health: &'a Health,
    pub slow_start: Span,
}

/// How a backend set is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SetKind {
    Proxy,
    Ipvs,
    Ebpf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApiVersion {
    #[serde(rename = "quorate.dev/v1")]
    V1,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Kind {
    Agent,
}

/// One virtual router (RFC 9568), one address family.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VrrpInstance {
    pub name: String,
    /// Virtual router id, 1-255; must be alone in its layer 2 network.
    pub vrid: u8,
    pub interface: String,
    /// This machine's own address on the interface; source of advertisements.
    pub source: IpAddr,
    pub vips: Vec<Vip>,
    /// 1-254, higher wins.
    #[serde(default = "default_priority")]
    pub priority: u8,
    /// Advertisement interval: 10ms to 40.95s in steps of 10ms (version 3), whole seconds (version 2).
    #[serde(default = "default_vrrp_interval")]
    pub interval: Span,
    #[serde(default)]
    pub version: VrrpVersion,
    /// Take over from a holder with a lower priority.
    #[serde(default = "yes")]
    pub preempt: bool,
    /// How long a lower-priority holder must have been heard before it is preempted.
    #[serde(default)]
    pub preempt_delay: Span,
    /// The other machines' own addresses; advertisements go to each of them by unicast.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<IpAddr>,
    /// Use 224.0.0.18 / ff02::12 instead of `peers`.
    #[serde(default)]
    pub multicast: bool,
    /// Least TTL/hop limit accepted from a peer; 255 means "from this network only".
    #[serde(default = "default_ttl")]
    pub min_ttl: u8,
    #[serde(default)]
    pub auth: VrrpAuth,
    /// Checksum form sent in version 3 over IPv4; both are accepted.
    #[serde(default)]
    pub checksum: ChecksumForm,
    #[serde(default)]
    pub garp: Garp,
    #[serde(default)]
    pub track: Track,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(try_from = "u8", into = "u8")]
pub enum VrrpVersion {
    V2,
    #[default]
    V3,
}

impl TryFrom<u8> for VrrpVersion {
    type Error = String;

    fn try_from(n: u8) -> Result<Self, String> {
        match n {
            2 => Ok(Self::V2),
            3 => Ok(Self::V3),
            _ => Err(format!("VRRP version {n} does not exist; write 3 or 2")),
        }
    }
}

impl From<VrrpVersion> for u8 {
    fn from(v: VrrpVersion) -> Self {
        match v {
            VrrpVersion::V2 => 2,
            VrrpVersion::V3 => 3,
        }
    }
}

impl JsonSchema for VrrpVersion {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "VrrpVersion".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "integer", "enum": [2, 3]})
    }
}

/// Which bytes the version 3 checksum over IPv4 covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum ChecksumForm {
    /// RFC 9568 §5.2.8: the VRRP message alone.
    #[default]
    Rfc,
    /// keepalived's default: an IPv4 pseudo-header as well.
    Keepalived,
}

/// Authentication by an HMAC-SHA-256 trailer behind the advertisement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct VrrpAuth {
    #[serde(default)]
    pub mode: AuthMode,
    /// The first key signs; every key is accepted. To rotate: add the new key last everywhere, then
    /// move it to the front everywhere, then remove the old one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<KeyFile>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum AuthMode {
    /// Sign; drop what is not signed.
    Enforce,
    /// Sign; accept unsigned advertisements, drop wrongly signed ones.
    Permissive,
    /// Do not sign yet; accept unsigned advertisements, drop wrongly signed ones.
    ReceiveOnly,
    /// No trailer: plain VRRP, for interoperation with other implementations.
    #[default]
    None,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeyFile {
    /// Written into each advertisement; unique in the list.
    pub id: u8,
    /// Holds the secret (any bytes, at least 16; surrounding white space is ignored). Mode 0600.
    pub file: PathBuf,
}

/// Gratuitous ARP and unsolicited neighbour advertisements of a new holder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Garp {
    /// Announcements at once, and again after `delay`.
    pub repeat: u8,
    /// When the second burst is sent; 0s for none.
    pub delay: Span,
    /// Announced again at this period for as long as the VIP is held; 0s for never.
    pub refresh: Span,
}

impl Default for Garp {
    fn default() -> Self {
        // 5 now, 5 after 5 s as keepalived; a refresh a minute is cheap and heals stale ARP tables.
        Self {
            repeat: 5,
            delay: Span::from_secs(5),
            refresh: Span::from_secs(60),
        }
    }
}

/// What the VIP's holder must have; without it the VIP is given up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Track {
    /// Frontend (or ipvs/ebpf service) of this file that must have a usable backend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontend: Option<String>,
    /// The interface must be up with carrier.
    pub interface: bool,
}

impl Default for Track {
    fn default() -> Self {
        Self {
            frontend: None,
            interface: true,
        }
    }
}

/// A layer 4 proxy: listens on `listen`, passes each connection to one backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Frontend {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    #[serde(default)]
    pub balance: Algorithm,
    /// Connections of this frontend at one time; more are not accepted until others end.
    #[serde(default = "default_max_connections")]
    pub max_connections: u32,
    /// Connections of one client address at one time; 0 for no cap.
    #[serde(default)]
    pub per_source: u32,
    #[serde(default)]
    pub queue: Queue,
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// Time for all dial attempts of one connection together.
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout: Span,
    /// A second backend is dialled when the first has not answered for this long; 0s for never.
    #[serde(default = "default_hedge")]
    pub hedge_after: Span,
    pub backends: Vec<Backend>,
    #[serde(default)]
    pub health: Health,
    /// A backend that came back gets its full share only after this time.
    #[serde(default)]
    pub slow_start: Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "kebab-case")]
pub enum Algorithm {
    /// The less loaded, by weight, of two drawn at random.
    #[default]
    LeastConnections,
    RoundRobin,
    /// The same client address keeps its backend (rendezvous hashing).
    Source,
}

/// Connections that wait while all backends are at `maxConnections`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Queue {
    /// How many may wait; 0 for none.
    pub length: u32,
    /// How long each may wait.
    pub timeout: Span,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            length: 128,
            timeout: Span::from_secs(5),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    #[default]
    None,
    V2,
}

/// One server behind a frontend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    /// 0-256; 0 takes no new connections.
    #[serde(default = "default_weight")]
    pub weight: u16,
    /// Connections to this backend at one time; 0 for no limit.
    #[serde(default)]
    pub max_connections: u32,
    /// Used only when no other backend is up.
    #[serde(default)]
    pub backup: bool,
    /// Runs on this machine: slightly preferred.
    #[serde(default)]
    pub local: bool,
}

impl Backend {
    /// A backend with default weight and no limits.
    pub fn new(name: impl Into<String>, address: SocketAddr) -> Self {
        Self {
            name: name.into(),
            address,
            weight: default_weight(),
            max_connections: 0,
            backup: false,
            local: false,
        }
    }
}

/// How backends are checked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Health {
    pub kind: HealthKind,
    /// Path asked for by `http` and `https`; 2xx means ready.
    pub path: String,
    /// CA bundle (PEM) for `https`; needed there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PathBuf>,
    /// Name the certificate must hold; the backend's address if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_key: Option<PathBuf>,
    pub interval: Span,
    /// Interval while a backend is in doubt or down.
    pub fast_interval: Span,
    pub timeout: Span,
    /// Good answers in a row until a backend that was down is used again.
    pub rise: u8,
    /// Unanswered checks in a row until a backend is down.
    pub fall: u8,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            kind: HealthKind::Tcp,
            path: "/readyz".into(),
            ca: None,
            server_name: None,
            client_cert: None,
            client_key: None,
            interval: Span::from_secs(1),
            fast_interval: Span::from_millis(100),
            // Doubt raised by a dial (75 ms) + 2 fast intervals + this stays below one second.
            timeout: Span::from_millis(500),
            rise: 2,
            fall: 3,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum HealthKind {
    Https,
    Http,
    /// A connection is accepted.
    #[default]
    Tcp,
    /// No checks; only refused and unanswered dials count.
    None,
}

/// A virtual server in the kernel's IPVS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IpvsService {
    pub name: String,
    #[serde(rename = "virtual")]
    pub virtual_address: SocketAddr,
    #[serde(default)]
    pub scheduler: Scheduler,
    pub backends: Vec<Backend>,
    #[serde(default)]
    pub health: Health,
    /// Rewrite the source of connections from this machine so that answers come back through it.
    #[serde(default = "yes")]
    pub masquerade: bool,
}

/// IPVS schedulers (ipvsadm(8)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    Rr,
    #[default]
    Wrr,
    Lc,
    Wlc,
    Sh,
    Mh,
}

/// A virtual address that needs no interface: connect(2) to it is sent to a backend.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EbpfService {
    pub name: String,
    #[serde(rename = "virtual")]
    pub virtual_address: SocketAddr,
    pub backends: Vec<Backend>,
    #[serde(default)]
    pub health: Health,
    /// cgroup v2 directory whose processes are served; found in /proc/mounts if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// bpffs directory the programs and maps are pinned in, so that they outlive the agent.
    #[serde(default = "default_pin")]
    pub pin: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stats {
    pub listen: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Login {
    pub user: String,
    /// Holds the password; mode 0600.
    pub password_file: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Metrics {
    pub listen: SocketAddr,
}

/// Control socket of `quorate agent ctl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Admin {
    pub socket: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self {
            socket: "/run/quorate/agent.sock".into(),
        }
    }
}

fn state_folder() -> PathBuf {
    "/var/lib/quorate/agent".into()
}

fn is_state_folder(path: &PathBuf) -> bool {
    *path == state_folder()
}

fn yes() -> bool {
    true
}

fn default_priority() -> u8 {
    100
}

fn default_vrrp_interval() -> Span {
    // Three missed advertisements and the skew stay below 400 ms; still 36 packets a second at most
    // in a network of four.
    Span::from_millis(100)
}

fn default_ttl() -> u8 {
    255
}

fn default_max_connections() -> u32 {
    20_000
}

fn default_connect_timeout() -> Span {
    Span::from_secs(5)
}

fn default_hedge() -> Span {
    Span::from_millis(75)
}

fn default_weight() -> u16 {
    100
}

fn default_pin() -> PathBuf {
    "/sys/fs/bpf/quorate".into()
}
