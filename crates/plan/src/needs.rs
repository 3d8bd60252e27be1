//! What a cluster needs of a machine's own distribution and kernel: programs that steps and upstream programs run there, and
//! options of the kernel's configuration. Named here so that gathering, planning and preflight cannot disagree.

use quorate_facts::{CgroupVersion, Feature, HostFacts};
use quorate_spec::{Bootstrap, Cni, Machine, ProxyMode, RunAs, Spec, Swap};

use crate::components::agent;
use crate::profile::{self, Profile};
use crate::stages;

pub use crate::profile::kernel_at_least;

/// A program of the distribution, by the name it is started by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    /// Who runs it, or what for.
    pub purpose: &'static str,
    /// Debian's package, then Red Hat's.
    pub packages: [&'static str; 2],
}

/// All that [`programs`] may ask for, and haproxy and keepalived.
pub(crate) const PROGRAMS: [&str; 14] = [
    "nft",
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ipset",
    "mount",
    "umount",
    "losetup",
    "modprobe",
    "swapoff",
    "useradd",
    "hostnamectl",
    "haproxy",
    "keepalived",
];

/// kube-proxy's mode on this machine; `auto` is decided by what was found there.
pub fn proxy_mode(spec: &Spec, host: &HostFacts) -> &'static str {
    Profile::of(host, spec.kubernetes.proxy_mode).proxy_mode
}

/// Programs this machine needs for what the cluster file asks, beyond haproxy and keepalived ([`crate::programs_needed`]).
pub fn programs(spec: &Spec, machine: &Machine, host: &HostFacts) -> Vec<Program> {
    let mut needed = Needed::default();
    if machine.is_node() {
        for name in ["mount", "umount", "losetup"] {
            needed.add(name, "kubelet, for volumes", ["mount", "util-linux"]);
        }
        packet_filters(spec, host, &mut needed);
        let modules = stages::modules(spec, machine, proxy_mode(spec, host));
        let loaded_by_us = |module: &String| host.kernel_features.get(module) == Some(&Feature::Loadable);
        if modules.iter().any(loaded_by_us) {
            needed.add("modprobe", "kernel modules", ["kmod", "kmod"]);
        }
        if spec.host.swap == Swap::Off && !host.swaps.is_empty() && host.container.is_none() {
            needed.add("swapoff", "turning swap off", ["mount", "util-linux"]);
        }
    }
    if agent::masquerades(spec, machine) && spec.balancer_as == RunAs::Unit {
        needed.add("nft", "`access: ipvs`", NFTABLES);
    }
    if runs_etcd_as_a_unit(spec, machine) && host.users.get("etcd") == Some(&None) {
        needed.add("useradd", "etcd's user", ["passwd", "shadow-utils"]);
    }
    if spec.host.hostname && host.hostname != machine.name {
        needed.add("hostnamectl", "`host.hostname`", ["systemd", "systemd"]);
    }
    needed.0
}

/// What keeps this machine's kube-proxy from running in the mode it is to run in: a kernel or `nft` that is too old, or a
/// kernel without IPVS. Missing programs are told by [`programs`].
pub fn proxy_mode_obstacle(spec: &Spec, host: &HostFacts) -> Option<String> {
    match proxy_mode(spec, host) {
        "nftables" if !kernel_at_least(&host.kernel, 5, 13) => {
            Some(format!("the kernel {} is older than 5.13", host.kernel))
        }
        // As a DaemonSet kube-proxy brings its own.
        "nftables" if spec.kubernetes.bootstrap == Bootstrap::Binary && !profile::nft_is_recent(host) => {
            let version = host.firewall.nft_version.as_deref().unwrap_or_default();
            Some(format!("nft {version} is older than 1.0.1"))
        }
        "ipvs" => {
            let absent = |module: &&str| host.kernel_features.get(*module) == Some(&Feature::Absent);
            let lacking: Vec<&str> = IPVS.into_iter().filter(absent).collect();
            (!lacking.is_empty()).then(|| format!("the kernel {} lacks {}", host.kernel, lacking.join(", ")))
        }
        _ => None,
    }
}

/// Modules of kube-proxy's `ipvs` mode (with its usual scheduler) and of `access: ipvs`.
pub(crate) const IPVS: [&str; 4] = ["ip_vs", "ip_vs_rr", "ip_vs_sh", "nf_conntrack"];

/// Options of the kernel's configuration, of which one must be there.
pub type AnyOf = &'static [&'static str];

/// What kubeadm's system verification demands (k8s.io/system-validators, `DefaultSysSpec`), but for ext4, which nothing here
/// needs, and for iptables, which is not always used.
const CONTAINERS: [AnyOf; 13] = [
    &["CONFIG_NAMESPACES"],
    &["CONFIG_NET_NS"],
    &["CONFIG_PID_NS"],
    &["CONFIG_IPC_NS"],
    &["CONFIG_UTS_NS"],
    &["CONFIG_INET"],
    &["CONFIG_PROC_FS"],
    &["CONFIG_CGROUPS"],
    &["CONFIG_CGROUP_PIDS"],
    &["CONFIG_CGROUP_SCHED"],
    &["CONFIG_FAIR_GROUP_SCHED"],
    &["CONFIG_CPUSETS"],
    &["CONFIG_MEMCG"],
];
const CGROUP_V1: [AnyOf; 3] = [
    &["CONFIG_CGROUP_CPUACCT"],
    &["CONFIG_CGROUP_DEVICE"],
    &["CONFIG_CGROUP_FREEZER"],
];
/// runc guards devices by it.
const CGROUP_V2: [AnyOf; 1] = [&["CONFIG_CGROUP_BPF"]];
const BY_IPTABLES: [AnyOf; 2] = [
    &["CONFIG_NETFILTER_XT_TARGET_REDIRECT", "CONFIG_IP_NF_TARGET_REDIRECT"],
    &["CONFIG_NETFILTER_XT_MATCH_COMMENT"],
];
/// What kube-proxy's rules are made of (pkg/proxy/nftables).
const BY_NFTABLES: [AnyOf; 6] = [
    &["CONFIG_NFT_CT"],
    &["CONFIG_NFT_NAT"],
    &["CONFIG_NFT_MASQ"],
    &["CONFIG_NFT_NUMGEN"],
    &["CONFIG_NFT_REJECT"],
    &["CONFIG_NFT_FIB_IPV4"],
];
/// The bridge of every node's Pods.
const BRIDGE: [AnyOf; 2] = [&["CONFIG_VETH"], &["CONFIG_BRIDGE"]];
/// Without them everything runs, and something is not done that people count on.
const WISHED: [(&str, &str); 3] = [
    ("CONFIG_CFS_BANDWIDTH", "limits of CPU time"),
    ("CONFIG_SECCOMP", "seccomp profiles"),
    ("CONFIG_SECCOMP_FILTER", "seccomp profiles"),
];

/// Of a node.
pub fn kernel_options(spec: &Spec, host: &HostFacts) -> Vec<AnyOf> {
    let mut needed = CONTAINERS.to_vec();
    match host.cgroup.version {
        CgroupVersion::V1 => needed.extend(CGROUP_V1),
        CgroupVersion::V2 => needed.extend(CGROUP_V2),
    }
    match proxy_mode(spec, host) {
        "nftables" => needed.extend(BY_NFTABLES),
        _ => needed.extend(BY_IPTABLES),
    }
    if matches!(spec.network.cni, Cni::Flannel(_)) {
        needed.extend(BRIDGE);
    }
    needed
}

/// Options a node is better off with, and what for.
pub fn kernel_options_wished() -> &'static [(&'static str, &'static str)] {
    &WISHED
}

/// All that may be asked about.
pub(crate) fn every_option() -> Vec<String> {
    let needed = [
        &CONTAINERS[..],
        &CGROUP_V1,
        &CGROUP_V2,
        &BY_IPTABLES,
        &BY_NFTABLES,
        &BRIDGE,
    ];
    let needed = needed.into_iter().flatten().copied().flatten().copied();
    needed
        .chain(WISHED.map(|(option, _)| option))
        .map(str::to_owned)
        .collect()
}

const NFTABLES: [&str; 2] = ["nftables", "nftables"];
const IPTABLES: [&str; 2] = ["iptables", "iptables-nft"];

fn packet_filters(spec: &Spec, host: &HostFacts, needed: &mut Needed) {
    let profile = Profile::of(host, spec.kubernetes.proxy_mode);
    // Where there is neither, nft does for all of it if the kernel is new enough.
    let neither = host.firewall.nft.is_none() && host.firewall.iptables.is_none();
    let filter = if profile.nftables || neither && profile::nftables_kernel(host) {
        ("nft", NFTABLES)
    } else {
        ("iptables", IPTABLES)
    };
    // As a DaemonSet kube-proxy brings its own.
    if spec.kubernetes.bootstrap == Bootstrap::Binary {
        let purpose = "kube-proxy";
        match spec.kubernetes.proxy_mode {
            ProxyMode::Nftables => needed.add("nft", purpose, NFTABLES),
            ProxyMode::Auto if filter.0 == "nft" => needed.add("nft", purpose, NFTABLES),
            mode => {
                for name in ["iptables", "iptables-save", "iptables-restore"] {
                    needed.add(name, purpose, IPTABLES);
                }
                if mode == ProxyMode::Ipvs {
                    needed.add("ipset", purpose, ["ipset", "ipset"]);
                }
            }
        }
    }
    if matches!(spec.network.cni, Cni::Flannel(_)) {
        needed.add(filter.0, "flannel", filter.1);
    }
}

fn runs_etcd_as_a_unit(spec: &Spec, machine: &Machine) -> bool {
    let external = spec.etcd.topology == quorate_spec::EtcdTopology::External;
    (external || spec.kubernetes.bootstrap == Bootstrap::Binary)
        && spec.etcd_members().iter().any(|member| member.name == machine.name)
}

#[derive(Default)]
struct Needed(Vec<Program>);

impl Needed {
    /// The first purpose is told.
    fn add(&mut self, name: &'static str, purpose: &'static str, packages: [&'static str; 2]) {
        if self.0.iter().all(|known| known.name != name) {
            self.0.push(Program {
                name,
                purpose,
                packages,
            });
        }
    }
}
