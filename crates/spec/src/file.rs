//! The cluster file as it is written: every field, optional as in the file, with the description and default that the
//! JSON schema and the reference page are made from. Nothing here is checked beyond its type; see [`crate::check`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::spec::*;

/// A Kubernetes cluster that Quorate plans, deploys and operates.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(title = "Quorate cluster file")]
pub(crate) struct ClusterFile {
    /// The version of this file's format.
    #[schemars(required, extend("const" = "quorate.dev/v1"))]
    #[expect(dead_code, reason = "compared by its schema's `const`")]
    api_version: Option<String>,
    /// What this file describes.
    #[schemars(required, extend("const" = "Cluster"))]
    #[expect(dead_code, reason = "compared by its schema's `const`")]
    kind: Option<String>,
    /// What the cluster is called.
    #[serde(default)]
    pub(crate) metadata: Metadata,
    /// What the cluster shall be.
    #[schemars(required)]
    pub(crate) spec: Option<SpecFile>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Metadata {
    /// The cluster's name: a DNS label. It appears in kubeconfig contexts and names the operator's folder.
    #[schemars(extend("default" = "kubernetes"))]
    pub(crate) name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("required" = ["machines"]))]
pub(crate) struct SpecFile {
    /// The Kubernetes version, how it is brought up, and its components' settings.
    pub(crate) kubernetes: KubernetesFile,
    /// The stable address of the API for everyone: a VIP and who holds it.
    pub(crate) endpoint: EndpointFile,
    /// How a node's own kubelet and kube-proxy reach the API. Default: `endpoint` with a VIP, else `proxy`.
    pub(crate) access: Option<AccessMode>,
    /// Details of the access mode in use.
    pub(crate) access_options: AccessOptions,
    /// What carries the VIP and proxies to the API servers.
    #[schemars(extend("default" = "quorate"))]
    pub(crate) balancer: Option<BalancerFile>,
    /// How the balancer is run on the machines.
    pub(crate) agent: AgentFile,
    /// The database behind the API.
    pub(crate) etcd: EtcdFile,
    /// Address ranges and the Pod network.
    pub(crate) network: NetworkFile,
    /// The cluster's DNS (CoreDNS).
    pub(crate) dns: DnsFile,
    /// Security settings; the defaults are the safe ones.
    pub(crate) security: SecurityFile,
    /// What may be changed on the machines themselves.
    pub(crate) host: HostFile,
    /// How to log in to the machines; what is not given is left to ssh and its configuration.
    pub(crate) ssh: SshFile,
    /// Breaking things on purpose.
    pub(crate) drill: DrillFile,
    /// Where the upstream binaries and images come from.
    pub(crate) bundle: BundleFile,
    /// The Linux machines the cluster is made of.
    #[schemars(length(min = 1))]
    pub(crate) machines: Vec<MachineFile>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct KubernetesFile {
    /// An exact version of Kubernetes 1.34, 1.35 or 1.36.
    #[schemars(extend("default" = "v1.36.3"))]
    pub(crate) version: Option<String>,
    /// How the control plane is brought up.
    #[schemars(extend("default" = "binary"))]
    pub(crate) bootstrap: Option<BootstrapFile>,
    /// The cluster's DNS domain.
    #[schemars(extend("default" = "cluster.local"))]
    pub(crate) domain: Option<String>,
    /// kube-proxy's mode. `auto`: nftables on kernels from 5.13 with an nft from 1.0.1, else iptables.
    #[schemars(extend("default" = "auto"))]
    pub(crate) proxy_mode: Option<ProxyModeFile>,
    /// Settings of kube-apiserver.
    pub(crate) api_server: ApiServerFile,
    /// Settings of kube-controller-manager.
    pub(crate) controller_manager: ComponentFile,
    /// Settings of kube-scheduler.
    pub(crate) scheduler: ComponentFile,
    /// Settings of kube-proxy.
    pub(crate) kube_proxy: ComponentFile,
    /// Settings of kubelet, on every node.
    pub(crate) kubelet: KubeletFile,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ComponentFile {
    /// Further flags, without dashes: `v: 4`. Flags that Quorate sets itself are refused.
    pub(crate) extra_args: BTreeMap<String, String>,
    /// Feature gates.
    pub(crate) feature_gates: BTreeMap<String, bool>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ApiServerFile {
    /// Further flags, without dashes: `v: 4`. Flags that Quorate sets itself are refused.
    pub(crate) extra_args: BTreeMap<String, String>,
    /// Feature gates.
    pub(crate) feature_gates: BTreeMap<String, bool>,
    /// Further names and addresses in the serving certificate, e.g. of an outer load balancer.
    pub(crate) sans: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct KubeletFile {
    /// Further flags, without dashes. Flags that Quorate sets itself are refused.
    pub(crate) extra_args: BTreeMap<String, String>,
    /// Feature gates.
    pub(crate) feature_gates: BTreeMap<String, bool>,
    /// Pods one node may run. Default: 110, or as many as its share of the Pod range has addresses.
    #[schemars(range(min = 4, max = 10000))]
    pub(crate) max_pods: Option<u32>,
    /// Percent of the image file system in use at which unused images are deleted.
    #[schemars(range(min = 1, max = 100), extend("default" = 85))]
    pub(crate) image_gc_high_percent: Option<u8>,
    /// Percent of the image file system in use down to which they are deleted.
    #[schemars(range(min = 1, max = 100), extend("default" = 80))]
    pub(crate) image_gc_low_percent: Option<u8>,
    /// Size at which a container's log is rotated, in MiB.
    #[serde(rename = "containerLogMaxMiB")]
    #[schemars(range(min = 1, max = 10240), extend("default" = 10))]
    pub(crate) container_log_max_mib: Option<u32>,
    /// Files kept of a container's log.
    #[schemars(range(min = 2, max = 100), extend("default" = 5))]
    pub(crate) container_log_max_files: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct EndpointFile {
    /// A DNS name for the VIP. It is written to the machines' hosts files and into the certificates.
    pub(crate) name: Option<String>,
    /// An unused address in the holders' network, which always belongs to exactly one of them. Default: no VIP.
    pub(crate) vip: Option<String>,
    /// Where the API answers on the VIP; the API servers themselves have 6443.
    #[schemars(range(min = 1, max = 65535), extend("default" = 8443))]
    pub(crate) port: Option<u16>,
    /// Who holds the VIP. Default: `none` without a VIP, else `load-balancers` if there are any, else `control-planes`.
    pub(crate) on: Option<EndpointOnFile>,
    /// The holders' interface that carries the VIP. Default: the one with the machine's address.
    pub(crate) interface: Option<String>,
    /// VRRP router id, 1–255 (RFC 9568, section 5.2.3); must be unused in the holders' network.
    #[schemars(range(min = 1, max = 255), extend("default" = 51))]
    pub(crate) vrid: Option<u8>,
    /// VRRP priorities by machine name, 1–254; the highest one holds the VIP when all are well. Default: 240, 230, 220 …
    /// in the file's order.
    #[schemars(extend("additionalProperties" = {
        "type": "integer", "minimum": 1, "maximum": 254,
        "description": "VRRP priorities of backups are 1–254; 0 and 255 have meanings of their own (RFC 9568, section 5.2.4)."
    }))]
    pub(crate) priorities: BTreeMap<String, u8>,
    /// Time between VRRP advertisements, 10ms to 40.95s; a dead holder is noticed after about three.
    #[schemars(extend("default" = "100ms"))]
    pub(crate) interval: Option<String>,
    /// Connections one holder carries at most. Default: no limit.
    #[schemars(range(min = 1))]
    pub(crate) max_connections: Option<u32>,
    /// The balancer's statistics page, with a login whose password Quorate makes. Default: no page.
    pub(crate) statistics: Option<StatisticsFile>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct StatisticsFile {
    /// Where the page is served on every holder.
    #[schemars(range(min = 1, max = 65535), extend("default" = 9000))]
    pub(crate) port: Option<u16>,
    /// The login's user name.
    #[schemars(extend("default" = "admin"))]
    pub(crate) user: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AccessOptions {
    /// For `access: proxy`.
    pub(crate) proxy: Option<AccessProxy>,
    /// For `access: ipvs`.
    pub(crate) ipvs: Option<AccessIpvs>,
    /// For `access: ebpf`.
    pub(crate) ebpf: Option<AccessEbpf>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AccessProxy {
    /// Loopback address and port of the proxy on every node. Default: `127.0.0.1:7443`, or `[::1]:7443` with IPv6 first.
    pub(crate) listen: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AccessIpvs {
    /// An unused address and a port, the same on every node. Default: `10.103.97.2:6443`, or `[fd67:7561::2]:6443` with
    /// IPv6 first.
    #[serde(rename = "virtual")]
    pub(crate) virtual_address: Option<String>,
    /// The name for it in the machines' hosts files. Default: `apiserver.` and the cluster's DNS domain.
    pub(crate) name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AccessEbpf {
    /// An unused address and a port, the same on every node. Default: `10.103.97.2:6443`, or `[fd67:7561::2]:6443` with
    /// IPv6 first.
    #[serde(rename = "virtual")]
    pub(crate) virtual_address: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AgentFile {
    /// As a systemd unit or as a static Pod (which needs a kubelet on the machine).
    #[serde(rename = "as")]
    #[schemars(extend("default" = "unit"))]
    pub(crate) run_as: Option<RunAsFile>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct EtcdFile {
    /// Where the members run. Default: `external` if any machine has the role `etcd`, else `stacked`.
    pub(crate) topology: Option<EtcdTopologyFile>,
    /// An exact version of etcd 3.6 or 3.7. Default: the bundle's.
    pub(crate) version: Option<String>,
    /// Where a member keeps its data; a fast disk of its own is best.
    #[schemars(extend("default" = "/var/lib/etcd"))]
    pub(crate) data_dir: Option<String>,
    /// A VIP in front of external etcd, held by the etcd machines. Default: none; API servers know all members.
    pub(crate) vip: Option<String>,
    /// Where etcd answers on its VIP.
    #[schemars(range(min = 1, max = 65535), extend("default" = 2379))]
    pub(crate) vip_port: Option<u16>,
    /// VRRP router id of etcd's VIP, another one than the endpoint's.
    #[schemars(range(min = 1, max = 255), extend("default" = 52))]
    pub(crate) vrid: Option<u8>,
    /// VRRP priorities of etcd's VIP by machine name, 1–254. Default: 240, 230, 220 … in the file's order.
    #[schemars(extend("additionalProperties" = {
        "type": "integer", "minimum": 1, "maximum": 254,
        "description": "VRRP priorities of backups are 1–254; 0 and 255 have meanings of their own (RFC 9568, section 5.2.4)."
    }))]
    pub(crate) priorities: BTreeMap<String, u8>,
    /// Largest size of the database, in GiB (etcd advises at most 8).
    #[serde(rename = "quotaGiB")]
    #[schemars(range(min = 1, max = 8), extend("default" = 8))]
    pub(crate) quota_gib: Option<u8>,
    /// How long members wait for a leader that is silent before they elect another, 100ms to 50s; its heartbeats come ten
    /// times as often. At least ten round trips between the members (etcd.io, "Tuning").
    #[schemars(extend("default" = "500ms"))]
    pub(crate) election_timeout: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct NetworkFile {
    /// The Pod range, or for dual stack a list of one IPv4 and one IPv6 range. Default: `10.244.0.0/16`, or
    /// `fd00:10:244::/56` if the machines have IPv6 addresses.
    pub(crate) pods: Option<OneOrMany>,
    /// The Service range, or a list of the same families in the same order as `pods`. Default: `10.96.0.0/16`, or
    /// `fd00:10:96::/112`.
    pub(crate) services: Option<OneOrMany>,
    /// Prefix length of one node's share of the IPv4 Pod range: 24 gives 254 Pod addresses.
    #[schemars(range(min = 1, max = 32), extend("default" = 24))]
    pub(crate) pods_per_node_mask: Option<u8>,
    /// Prefix length of one node's share of the IPv6 Pod range.
    #[schemars(range(min = 1, max = 128), extend("default" = 64))]
    pub(crate) pods_per_node_mask_v6: Option<u8>,
    /// The Pod network. `none`: bring your own; nodes are not Ready before.
    #[schemars(extend("default" = "flannel"))]
    pub(crate) cni: Option<CniFile>,
    /// Details of flannel.
    pub(crate) flannel: Option<FlannelFile>,
    /// Ports for Services of type NodePort, both ends included.
    #[schemars(extend("default" = "30000-32767"))]
    pub(crate) node_ports: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct FlannelFile {
    /// `vxlan` works everywhere; `host-gw` is faster and needs all machines in one network.
    #[schemars(extend("default" = "vxlan"))]
    pub(crate) backend: Option<FlannelBackendFile>,
    /// UDP port of vxlan.
    #[schemars(range(min = 1, max = 65535), extend("default" = 8472))]
    pub(crate) port: Option<u16>,
    /// MTU of Pods' interfaces, 1280 to 65535, or `auto`: the machine's less what vxlan adds.
    #[schemars(extend("default" = "auto"))]
    pub(crate) mtu: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DnsFile {
    /// CoreDNS Pods. Default: 2, or 1 if there is only one node.
    #[schemars(range(min = 1, max = 100))]
    pub(crate) replicas: Option<u32>,
    /// Address of the DNS Service, or one per family. Default: the 10th address of each Service range.
    pub(crate) cluster_ip: Option<OneOrMany>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SecurityFile {
    /// How Secrets are encrypted in etcd.
    #[schemars(extend("default" = "secretbox"))]
    pub(crate) encryption: Option<EncryptionFile>,
    /// The API servers' audit log.
    pub(crate) audit: AuditFile,
    /// What Pods may do in namespaces that say nothing themselves.
    pub(crate) pod_security: PodSecurityFile,
    /// Lowest TLS version that any component accepts.
    #[schemars(extend("default" = "1.2"))]
    pub(crate) tls_min: Option<TlsVersionFile>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct AuditFile {
    /// Whether requests are logged on every control plane.
    #[schemars(extend("default" = true))]
    pub(crate) enabled: Option<bool>,
    /// Days a log file is kept.
    #[schemars(range(min = 1, max = 3650), extend("default" = 30))]
    pub(crate) max_age_days: Option<u32>,
    /// Log files kept.
    #[schemars(range(min = 1, max = 1000), extend("default" = 10))]
    pub(crate) max_backups: Option<u32>,
    /// Size at which a log file is rotated, in MiB.
    #[serde(rename = "maxSizeMiB")]
    #[schemars(range(min = 1, max = 10240), extend("default" = 100))]
    pub(crate) max_size_mib: Option<u32>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PodSecurityFile {
    /// Pods beyond this level are refused.
    #[schemars(extend("default" = "baseline"))]
    pub(crate) enforce: Option<PodSecurityLevelFile>,
    /// Pods beyond this level are noted in the audit log.
    #[schemars(extend("default" = "restricted"))]
    pub(crate) audit: Option<PodSecurityLevelFile>,
    /// Pods beyond this level make kubectl warn.
    #[schemars(extend("default" = "restricted"))]
    pub(crate) warn: Option<PodSecurityLevelFile>,
    /// Namespaces without these limits, beside `kube-system`.
    pub(crate) exempt_namespaces: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct HostFile {
    /// What happens to swap.
    #[schemars(extend("default" = "off"))]
    pub(crate) swap: Option<SwapFile>,
    /// What happens to the machines' firewall.
    #[schemars(extend("default" = "auto"))]
    pub(crate) firewall: Option<FirewallFile>,
    /// Keep a marked block with all machines' names in /etc/hosts.
    #[schemars(extend("default" = true))]
    pub(crate) hosts: Option<bool>,
    /// Set each machine's hostname to its name in this file.
    #[schemars(extend("default" = false))]
    pub(crate) hostname: Option<bool>,
    /// Whether synchronised clocks are demanded.
    #[schemars(extend("default" = "check"))]
    pub(crate) time_sync: Option<TimeSyncFile>,
    /// Limit of the systemd journal, in MiB. Default: left as it is.
    #[serde(rename = "journalMaxMiB")]
    #[schemars(range(min = 16, max = 1048576))]
    pub(crate) journal_max_mib: Option<u32>,
    /// Further kernel settings: `vm.max_map_count: 262144`.
    pub(crate) sysctls: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SshFile {
    /// User to log in as: root, or one who may use sudo.
    pub(crate) user: Option<String>,
    /// Port of sshd.
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) port: Option<u16>,
    /// Path of an ssh_config to use in place of the user's own (`ssh -F`).
    pub(crate) config: Option<String>,
    /// Path of the private key (`ssh -i`).
    pub(crate) identity: Option<String>,
    /// Jump host, `[user@]host[:port]` (`ssh -J`).
    pub(crate) jump: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct DrillFile {
    /// Whether `quorate drill` may break things in this cluster.
    #[schemars(extend("default" = false))]
    pub(crate) allowed: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct BundleFile {
    /// A bundle's directory or `.tar.zst`. Default: the one for this version in the operator's cache.
    pub(crate) path: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[schemars(extend("required" = ["address", "roles"]))]
pub(crate) struct MachineFile {
    /// The machine's and node's name. Default: `m1`, `m2` … by its place in the list.
    pub(crate) name: Option<String>,
    /// The IPv4 or IPv6 address that all components use.
    pub(crate) address: Option<String>,
    /// Its other addresses; a dual-stack cluster needs one of the second family.
    pub(crate) addresses: Vec<String>,
    /// What the machine is for; it may have several roles.
    #[schemars(length(min = 1))]
    pub(crate) roles: Vec<RoleFile>,
    /// Node labels, reconciled at each apply.
    pub(crate) labels: BTreeMap<String, String>,
    /// Node taints as kubectl writes them, `key=value:Effect` or `key:Effect`. Default: for control planes
    /// `node-role.kubernetes.io/control-plane:NoSchedule` if there are workers, else none.
    pub(crate) taints: Option<Vec<String>>,
    /// How to log in to this machine, where it differs from `spec.ssh`.
    pub(crate) ssh: MachineSsh,
    /// Known to be away: left out of every run until this is removed.
    #[schemars(extend("default" = false))]
    pub(crate) maintenance: Option<bool>,
    /// The interface that carries a VIP on this machine, where it differs from `endpoint.interface`.
    pub(crate) interface: Option<String>,
    /// Share of new connections that this machine's API server gets, relative to the others'.
    #[schemars(range(min = 1, max = 256), extend("default" = 1))]
    pub(crate) weight: Option<u16>,
}

#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct MachineSsh {
    /// User to log in as.
    pub(crate) user: Option<String>,
    /// Port of sshd.
    #[schemars(range(min = 1, max = 65535))]
    pub(crate) port: Option<u16>,
    /// Address, name or ssh_config alias to log in to. Default: the machine's address.
    pub(crate) address: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

/// Raw enumerations: the words of the file, their meaning for the reference page, and what they become.
macro_rules! words {
    ($($raw:ident -> $spec:ty { $($(#[doc = $doc:literal])+ $word:literal $variant:ident => $value:expr,)+ })+) => {$(
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
        pub(crate) enum $raw {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $variant,)+
        }

        impl From<$raw> for $spec {
            fn from(raw: $raw) -> Self {
                match raw {
                    $($raw::$variant => $value,)+
                }
            }
        }
    )+};
}

/// `access` before its options are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum AccessMode {
    /// Through the endpoint's VIP.
    Endpoint,
    /// Through a proxy on the node itself.
    Proxy,
    /// Through a virtual address realised by IPVS on the node itself.
    Ipvs,
    /// Through a virtual address that BPF rewrites at connect(2), on the node itself.
    Ebpf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CniFile {
    /// flannel.
    Flannel,
    /// Nothing is installed.
    None,
}

words! {
    EndpointOnFile -> Option<EndpointOn> {
        /// On the control planes themselves.
        "control-planes" ControlPlanes => Some(EndpointOn::ControlPlanes),
        /// On the machines with role `load-balancer`.
        "load-balancers" LoadBalancers => Some(EndpointOn::LoadBalancers),
        /// There is no VIP.
        "none" None => None,
    }
    BalancerFile -> Balancer {
        /// `quorate agent`.
        "quorate" Quorate => Balancer::Quorate,
        /// haproxy, and keepalived for the VIP.
        "haproxy" Haproxy => Balancer::Haproxy,
    }
    RunAsFile -> RunAs {
        /// A systemd unit.
        "unit" Unit => RunAs::Unit,
        /// A static Pod.
        "static-pod" StaticPod => RunAs::StaticPod,
    }
    BootstrapFile -> Bootstrap {
        /// Upstream programs as systemd units.
        "binary" Binary => Bootstrap::Binary,
        /// Upstream kubeadm; the control plane runs as static Pods.
        "kubeadm" Kubeadm => Bootstrap::Kubeadm,
    }
    ProxyModeFile -> ProxyMode {
        /// nftables where kernel and nft are new enough, else iptables.
        "auto" Auto => ProxyMode::Auto,
        /// nftables.
        "nftables" Nftables => ProxyMode::Nftables,
        /// iptables.
        "iptables" Iptables => ProxyMode::Iptables,
        /// IPVS, deprecated upstream since 1.35.
        "ipvs" Ipvs => ProxyMode::Ipvs,
    }
    EtcdTopologyFile -> EtcdTopology {
        /// A member on every control plane.
        "stacked" Stacked => EtcdTopology::Stacked,
        /// Members on the machines with role `etcd`.
        "external" External => EtcdTopology::External,
    }
    FlannelBackendFile -> FlannelBackend {
        /// Encapsulated in UDP.
        "vxlan" Vxlan => FlannelBackend::Vxlan,
        /// Routes between machines of one network.
        "host-gw" HostGw => FlannelBackend::HostGw,
    }
    EncryptionFile -> Encryption {
        /// XSalsa20 and Poly1305.
        "secretbox" Secretbox => Encryption::Secretbox,
        /// Not at all.
        "none" None => Encryption::None,
    }
    PodSecurityLevelFile -> PodSecurityLevel {
        /// No limits.
        "privileged" Privileged => PodSecurityLevel::Privileged,
        /// No known way to more rights.
        "baseline" Baseline => PodSecurityLevel::Baseline,
        /// Best current practice.
        "restricted" Restricted => PodSecurityLevel::Restricted,
    }
    TlsVersionFile -> TlsVersion {
        /// TLS 1.2 and later.
        "1.2" V1_2 => TlsVersion::V1_2,
        /// TLS 1.3 only.
        "1.3" V1_3 => TlsVersion::V1_3,
    }
    SwapFile -> Swap {
        /// Turned off, now and at boot.
        "off" Off => Swap::Off,
        /// Left alone; kubelet is told to accept it.
        "keep" Keep => Swap::Keep,
    }
    FirewallFile -> Firewall {
        /// Opened where a firewall runs.
        "auto" Auto => Firewall::Auto,
        /// Opened, and an error where that is not possible.
        "open" Open => Firewall::Open,
        /// Nothing is changed; what is closed is reported.
        "explain" Explain => Firewall::Explain,
    }
    TimeSyncFile -> TimeSync {
        /// Clocks must agree and be kept by a service.
        "check" Check => TimeSync::Check,
        /// Not looked at.
        "ignore" Ignore => TimeSync::Ignore,
    }
    RoleFile -> Role {
        /// Runs the API server, controller manager and scheduler, and an etcd member if etcd is stacked.
        "control-plane" ControlPlane => Role::ControlPlane,
        /// Runs Pods.
        "worker" Worker => Role::Worker,
        /// Runs a member of external etcd.
        "etcd" Etcd => Role::Etcd,
        /// Holds the endpoint's VIP.
        "load-balancer" LoadBalancer => Role::LoadBalancer,
    }
}
