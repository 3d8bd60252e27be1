//! What the planner works from. A value of these types came out of [`crate::load`] and has passed every check:
//! names are unique, CIDRs do not overlap, options fit each other, every default is filled in. It holds no secret
//! and serialises, so it can be hashed and written to a journal.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Where every kube-apiserver listens (kube-apiserver `--secure-port`, upstream's default).
pub const API_PORT: u16 = 6443;

/// A checked cluster file with all defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// The cluster's name: in kubeconfig contexts, `--cluster-name`, the operator's folder. A DNS label.
    pub name: String,
    pub kubernetes: Kubernetes,
    /// The VIP everyone outside uses. `None`: no VIP (one control plane, or every node has its own way).
    pub endpoint: Option<Endpoint>,
    /// How a worker's kubelet and kube-proxy reach the API servers.
    pub access: Access,
    /// What carries the VIP and proxies behind it (and on nodes with [`Access::Proxy`]).
    pub balancer: Balancer,
    /// How the balancer (agent, or haproxy and keepalived) is kept running.
    pub balancer_as: RunAs,
    pub etcd: Etcd,
    pub network: Network,
    pub dns: Dns,
    pub security: Security,
    pub host: Host,
    pub ssh: Ssh,
    pub drill: Drill,
    /// Path of the bundle as written in the file; `None`: the one made for this version in the operator's cache.
    pub bundle: Option<String>,
    /// In the file's order. At least one control plane.
    pub machines: Vec<Machine>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubernetes {
    /// Without the `v`; [`Kubernetes::tag`] has it.
    pub version: semver::Version,
    pub bootstrap: Bootstrap,
    /// The cluster's DNS domain, `cluster.local` by default.
    pub domain: String,
    /// kube-proxy's mode; `Auto` is decided from the machine's kernel and written out explicitly.
    pub proxy_mode: ProxyMode,
    pub api_server: Component,
    pub controller_manager: Component,
    pub scheduler: Component,
    pub kube_proxy: Component,
    pub kubelet: Kubelet,
}

/// Extra settings of one component. No flag that Quorate sets itself is ever in here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Component {
    /// Flag without dashes → value.
    pub extra_args: BTreeMap<String, String>,
    pub feature_gates: BTreeMap<String, bool>,
    /// Further names and addresses for the serving certificate (API server only).
    pub sans: BTreeSet<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Kubelet {
    pub extra_args: BTreeMap<String, String>,
    pub feature_gates: BTreeMap<String, bool>,
    pub max_pods: u32,
    /// Percent of the image file system at which unused images are deleted, and down to which.
    pub image_gc_high_percent: u8,
    pub image_gc_low_percent: u8,
    pub container_log_max_mib: u32,
    pub container_log_max_files: u32,
}

/// The stable address of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// A DNS name for the VIP; goes into hosts files, kubeconfigs and the API servers' certificates.
    pub name: Option<String>,
    pub vip: IpAddr,
    pub port: u16,
    pub on: EndpointOn,
    /// Carries the VIP on every holder, unless [`Machine::interface`] says otherwise. `None`: the interface that has
    /// the machine's address.
    pub interface: Option<String>,
    pub vrid: u8,
    /// VRRP priority of every holder, by machine name; 1–254, all different.
    pub priorities: BTreeMap<String, u8>,
    /// Advertisement interval, a multiple of 10 (RFC 9568 counts centiseconds), 10–40950.
    pub interval_ms: u32,
    /// Connections one holder proxies at most; `None`: no limit.
    pub max_connections: Option<u32>,
    pub statistics: Option<Statistics>,
}

/// The balancer's statistics page. Its password is made by Quorate and kept with the cluster's other secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statistics {
    pub port: u16,
    pub user: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EndpointOn {
    ControlPlanes,
    LoadBalancers,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    rename_all = "kebab-case",
    rename_all_fields = "camelCase",
    tag = "mode",
    deny_unknown_fields
)]
pub enum Access {
    /// Through [`Spec::endpoint`]; with no endpoint there is exactly one control plane, reached directly.
    Endpoint,
    /// A proxy on every node.
    Proxy { listen: SocketAddr },
    /// A virtual address realised by the kernel's IPVS on every node, under a name in the hosts files.
    Ipvs { virtual_address: SocketAddr, name: String },
    /// A virtual address rewritten at connect(2) by BPF on every node.
    Ebpf { virtual_address: SocketAddr },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balancer {
    Quorate,
    Haproxy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunAs {
    /// A systemd unit.
    Unit,
    StaticPod,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bootstrap {
    /// Upstream programs as systemd units.
    Binary,
    /// Upstream kubeadm: control plane as static Pods.
    Kubeadm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProxyMode {
    /// nftables on kernels ≥ 5.13, else iptables (KEP-3866).
    Auto,
    Nftables,
    Iptables,
    Ipvs,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Etcd {
    pub topology: EtcdTopology,
    /// `None`: the bundle's.
    pub version: Option<semver::Version>,
    /// Absolute path.
    pub data_dir: String,
    /// A VIP in front of external etcd's client port, held by the etcd machines.
    pub vip: Option<EtcdVip>,
    /// `--quota-backend-bytes` in GiB, 1–8 (etcd advises at most 8).
    pub quota_gib: u8,
    /// `--election-timeout`, 100–50,000; `--heartbeat-interval` is a tenth of it.
    pub election_timeout_ms: u32,
}

impl Etcd {
    /// How often a leader says that it lives, milliseconds.
    pub fn heartbeat_ms(&self) -> u32 {
        self.election_timeout_ms / 10
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EtcdVip {
    pub address: IpAddr,
    /// Where the etcd machines' balancer listens on the VIP; etcd itself has 2379.
    pub port: u16,
    pub vrid: u8,
    /// By machine name.
    pub priorities: BTreeMap<String, u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EtcdTopology {
    /// A member on every control plane.
    Stacked,
    /// Members on the machines with role `etcd`.
    External,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// One range, or one of each family (dual stack); the first one's family is the cluster's primary.
    pub pods: Vec<IpNet>,
    /// Same families in the same order as `pods`.
    pub services: Vec<IpNet>,
    /// Prefix length of one node's share of the IPv4 Pod range.
    pub node_mask_v4: u8,
    /// Prefix length of one node's share of the IPv6 Pod range.
    pub node_mask_v6: u8,
    pub cni: Cni,
    pub node_ports: PortRange,
}

/// Both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortRange {
    pub first: u16,
    pub last: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "name", deny_unknown_fields)]
pub enum Cni {
    Flannel(Flannel),
    /// The user installs one; nodes stay NotReady until then.
    None,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flannel {
    pub backend: FlannelBackend,
    /// UDP port of vxlan.
    pub port: u16,
    /// `None`: the interface's, less the encapsulation.
    pub mtu: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FlannelBackend {
    Vxlan,
    HostGw,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dns {
    pub replicas: u32,
    /// Of CoreDNS's Service, one per family of `network.services`, in that order.
    pub cluster_ips: Vec<IpAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Security {
    pub encryption: Encryption,
    pub audit: Audit,
    pub pod_security: PodSecurity,
    pub tls_min: TlsVersion,
}

/// Of Secrets at rest in etcd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encryption {
    Secretbox,
    None,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Audit {
    pub enabled: bool,
    pub max_age_days: u32,
    pub max_backups: u32,
    pub max_size_mib: u32,
}

/// Defaults of the PodSecurity admission plugin for namespaces without labels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PodSecurity {
    pub enforce: PodSecurityLevel,
    pub audit: PodSecurityLevel,
    pub warn: PodSecurityLevel,
    /// `kube-system` is always among them.
    pub exempt_namespaces: BTreeSet<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PodSecurityLevel {
    Privileged,
    Baseline,
    Restricted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TlsVersion {
    #[serde(rename = "1.2")]
    V1_2,
    #[serde(rename = "1.3")]
    V1_3,
}

/// What is done to the machines themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Host {
    pub swap: Swap,
    pub firewall: Firewall,
    /// Keep a block with all machines' names in /etc/hosts.
    pub hosts: bool,
    /// Set each machine's hostname to its name in the cluster file.
    pub hostname: bool,
    pub time_sync: TimeSync,
    /// journald's `SystemMaxUse`; `None`: leave it as it is.
    pub journal_max_mib: Option<u32>,
    /// Further sysctls, key → value.
    pub sysctls: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Swap {
    /// Turned off now and at boot.
    Off,
    /// Left alone; kubelet gets `failSwapOn: false`.
    Keep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Firewall {
    /// Opened where a firewall is running, otherwise nothing.
    Auto,
    /// Opened, and an error where that is not possible.
    Open,
    /// Nothing is changed; what is closed is reported.
    Explain,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeSync {
    /// Machines' clocks must agree and be kept by some service.
    Check,
    Ignore,
}

/// How to log in. Whatever is `None` is left to ssh and its configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ssh {
    pub user: Option<String>,
    pub port: Option<u16>,
    /// `ssh -F`
    pub config: Option<String>,
    /// `ssh -i`; a path, never a key.
    pub identity: Option<String>,
    /// `ssh -J`
    pub jump: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drill {
    /// Whether `quorate drill` may break things in this cluster.
    pub allowed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// Also the node's name. A DNS subdomain, unique.
    pub name: String,
    /// The address all components use and advertise.
    pub address: IpAddr,
    /// The others, e.g. the second family's in a dual-stack cluster.
    pub addresses: Vec<IpAddr>,
    pub roles: BTreeSet<Role>,
    /// Node labels, those that follow from the role included; empty if the machine is no node.
    pub labels: BTreeMap<String, String>,
    /// Node taints, the control plane's default included.
    pub taints: Vec<Taint>,
    /// [`Spec::ssh`] with this machine's own settings applied, and the host to give to ssh.
    pub ssh: Ssh,
    /// What to give to ssh as the host: the machine's `ssh.address` or its address.
    pub ssh_host: String,
    /// Known to be away: left out of every run, never an error.
    pub maintenance: bool,
    /// Overrides [`Endpoint::interface`] on this machine.
    pub interface: Option<String>,
    /// Share of new connections its API server gets, 1–256.
    pub weight: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    ControlPlane,
    Worker,
    Etcd,
    LoadBalancer,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Taint {
    pub key: String,
    /// Empty for none.
    pub value: String,
    pub effect: TaintEffect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}
