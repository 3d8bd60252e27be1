//! What must be found out before a plan can be made: paths, units, sysctls, API objects. Named here so that planning and
//! gathering cannot disagree.

use std::collections::BTreeSet;

use quorate_facts::HostFacts;
use quorate_pki::inventory::{Inventory, Place};
use quorate_spec::{Bootstrap, Machine, Spec};

use crate::components::{agent, coredns, haproxy, keepalived, kube_proxy, kubeadm, objects, probe};
use crate::{needs, paths};

/// What to look at on one machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineQuery {
    /// Stat and hash.
    pub paths: Vec<String>,
    /// Folders of which every file is stat and hashed.
    pub roots: Vec<String>,
    /// Public text files whose content is wanted.
    pub texts: Vec<String>,
    /// Private keys whose public half is wanted.
    pub keys: Vec<String>,
    /// kubeconfigs with a client certificate inside.
    pub kubeconfigs: Vec<String>,
    pub units: Vec<String>,
    pub sysctls: Vec<String>,
    pub users: Vec<String>,
    pub modules: Vec<String>,
    /// Options of the kernel's configuration.
    pub options: Vec<String>,
    pub programs: Vec<String>,
}

/// Other distributions of Kubernetes, and another runtime.
pub const FOREIGN_UNITS: [&str; 7] = [
    "k3s.service",
    "k3s-agent.service",
    "rke2-server.service",
    "rke2-agent.service",
    "k0scontroller.service",
    "k0sworker.service",
    "crio.service",
];

/// Settings that upstream's packages of kubeadm give `kubelet.service`, whosever unit that is.
pub const KUBELET_PACKAGE: [&str; 2] = [
    "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf",
    kubeadm::KUBELET_DROP_IN,
];

/// Values as they were before the first apply, for `reset`.
pub const BEFORE: &str = "/var/lib/quorate/before.json";

/// Directories Quorate makes, and removes again.
pub(crate) const DIRECTORIES: [&str; 15] = [
    "/etc/systemd/system/kubelet.service.d",
    paths::BIN,
    "/opt/quorate",
    "/opt/cni",
    paths::CNI_BIN,
    "/etc/cni",
    paths::CNI_CONF,
    paths::KUBERNETES,
    paths::PKI,
    paths::STATIC_PODS,
    paths::ETCD,
    paths::CONTAINERD,
    paths::QUORATE,
    paths::KUBELET,
    "/etc/systemd/journald.conf.d",
];

/// `inventory`: [`crate::certificates`], made once for all machines.
pub fn machine(spec: &Spec, machine: &Machine, inventory: &Inventory) -> MachineQuery {
    let mut paths_: BTreeSet<String> = DIRECTORIES.iter().map(|path| (*path).to_owned()).collect();
    let mut texts: BTreeSet<String> = BTreeSet::new();
    let mut keys = BTreeSet::new();
    let mut kubeconfigs = Vec::new();
    for row in inventory.on(&machine.name) {
        match &row.place {
            Place::Files { certificate, key } => {
                texts.insert(certificate.clone());
                paths_.insert(key.clone());
                keys.insert(key.clone());
            }
            Place::Kubeconfig { path } => kubeconfigs.push(path.clone()),
        }
    }
    for row in inventory.authorities.iter().filter(|row| row.machine == machine.name) {
        texts.insert(row.certificate.clone());
        paths_.extend(row.key.clone());
    }
    paths_.insert(paths::BLOBS.into());
    for file in ["sa.key", "sa.pub", "etcd"] {
        paths_.insert(paths::pki(file));
    }
    if spec.kubernetes.bootstrap == Bootstrap::Kubeadm {
        kubeadm(machine, &mut paths_, &mut texts);
    } else {
        texts.extend(["controller-manager.conf", "scheduler.conf", "kubelet.conf"].map(etc));
    }
    for file in [
        "authentication.yaml",
        "admission.yaml",
        "audit-policy.yaml",
        "kube-proxy.conf",
        "kube-proxy.yaml",
        "flannel.conf",
        "flannel-net.json",
    ] {
        texts.insert(format!("{}/{file}", paths::KUBERNETES));
    }
    paths_.extend(KUBELET_PACKAGE.map(str::to_owned));
    for file in ["encryption.yaml", "bootstrap-kubelet.conf"] {
        paths_.insert(format!("{}/{file}", paths::KUBERNETES));
    }
    texts.insert(format!("{}/config.yaml", paths::KUBELET));
    texts.insert(format!("{}/config.toml", paths::CONTAINERD));
    texts.insert(agent::CONFIG.into());
    texts.insert(agent::CA.into());
    texts.insert(agent::MANIFEST.into());
    texts.insert("/etc/hosts".into());
    texts.insert("/etc/fstab".into());
    texts.insert("/etc/sysctl.d/90-quorate.conf".into());
    texts.insert("/etc/modules-load.d/quorate.conf".into());
    texts.insert(BEFORE.into());
    for settings in crate::stages::own_settings(spec, machine, &HostFacts::default()) {
        texts.extend(settings.paths());
    }
    paths_.insert(agent::RUNNING.into());
    paths_.insert(agent::VRRP_KEY.into());
    paths_.insert(agent::STATISTICS_PASSWORD.into());
    texts.extend([haproxy::CONFIG, keepalived::CONFIG, keepalived::SCRIPT].map(str::to_owned));
    paths_.extend([haproxy::STATISTICS, keepalived::PASSWORD].map(str::to_owned));
    texts.insert(format!("{}/bootstrap.env", paths::ETCD));
    texts.extend(paths::ALL_UNITS.iter().map(|unit| paths::unit(unit)));
    paths_.extend(
        [
            paths::KUBELET_CLIENT,
            paths::KUBELET_SERVING,
            "/run/systemd/resolve/resolv.conf",
        ]
        .map(str::to_owned),
    );
    paths_.insert(format!("{}/pki", paths::ETCD));
    paths_.insert(spec.etcd.data_dir.clone());
    paths_.insert(format!("{}/member", spec.etcd.data_dir));
    paths_.insert(format!("{}/member/wal", spec.etcd.data_dir));
    paths_.insert(format!("{}/{}", paths::CNI_CONF, paths::CNI_FILE));
    for program in PROGRAMS {
        paths_.insert(paths::bin(program));
    }
    for plugin in crate::stages::CNI_PLUGINS {
        paths_.insert(format!("{}/{plugin}", paths::CNI_BIN));
    }
    let mut sysctls: Vec<String> = [
        "net.ipv4.ip_forward",
        "net.ipv6.conf.all.forwarding",
        "net.ipv6.conf.all.disable_ipv6",
        "net.bridge.bridge-nf-call-iptables",
        "net.bridge.bridge-nf-call-ip6tables",
    ]
    .map(str::to_owned)
    .to_vec();
    sysctls.extend(crate::stages::AT_LEAST.map(|(key, _)| key.to_owned()));
    sysctls.extend(crate::stages::SET_BY_PROGRAMS.map(str::to_owned));
    sysctls.push(crate::stages::SET_IN_NAMESPACE.into());
    sysctls.extend(spec.host.sysctls.keys().cloned());
    MachineQuery {
        paths: paths_.into_iter().collect(),
        roots: vec![paths::CNI_CONF.into(), paths::STATIC_PODS.into()],
        texts: texts.into_iter().collect(),
        keys: keys.into_iter().collect(),
        kubeconfigs,
        units: paths::ALL_UNITS
            .iter()
            .chain(&[agent::UNTIL_JOINED])
            .chain(&FOREIGN_UNITS)
            .map(|unit| (*unit).to_owned())
            .collect(),
        sysctls,
        users: vec!["etcd".into()],
        modules: needs::IPVS
            .iter()
            .chain(&["vxlan", "overlay", "br_netfilter"])
            .map(|module| (*module).to_owned())
            .collect(),
        options: needs::every_option(),
        programs: needs::PROGRAMS.map(str::to_owned).to_vec(),
    }
}

const PROGRAMS: [&str; 16] = [
    "quorate",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubectl",
    "kubeadm",
    "etcd",
    "etcdctl",
    "etcdutl",
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "runc",
    "kubelet",
    "kube-proxy",
    "flanneld",
];

fn etc(file: &str) -> String {
    format!("{}/{file}", paths::KUBERNETES)
}

/// Its kubeconfigs have keys in them, so they are not read. A worker's kubelet has a file of its own for its key.
fn kubeadm(machine: &Machine, paths_: &mut BTreeSet<String>, texts: &mut BTreeSet<String>) {
    if machine.is_control_plane() {
        paths_.insert(etc("kubelet.conf"));
    } else {
        texts.insert(etc("kubelet.conf"));
    }
    for secret in [kubeadm::INIT, kubeadm::JOIN] {
        paths_.insert(secret.into());
    }
    paths_.extend([kubeadm::FOLDER, kubeadm::PATCHES, paths::AUDIT_LOGS].map(str::to_owned));
    texts.extend(
        [
            kubeadm::CONFIG,
            kubeadm::RESET,
            kubeadm::DISCOVERY,
            kubeadm::FOUNDING,
            kubeadm::JOINING,
            kubeadm::FLAGS,
            kubeadm::KUBELET_DROP_IN,
        ]
        .map(str::to_owned),
    );
    texts.insert(kubeadm::patch("kubeletconfiguration"));
    for pod in kubeadm::PODS {
        texts.insert(kubeadm::patch(pod));
        texts.insert(format!("{}/{pod}.yaml", paths::STATIC_PODS));
    }
}

/// API paths of every object a plan may want to change.
pub fn objects(spec: &Spec) -> Vec<String> {
    let kubeadm = spec.kubernetes.bootstrap == Bootstrap::Kubeadm;
    let dns = coredns::objects("", &spec.kubernetes.domain, 1, &spec.dns.cluster_ips, false);
    let all = objects::rbac()
        .into_iter()
        .chain(objects::flannel_rbac())
        .chain(dns)
        .chain(probe::objects(""));
    let nodes = spec.nodes();
    let mut found: Vec<String> = all
        .map(|object| object.path)
        .chain(nodes.iter().map(|node| crate::stages::node_path(&node.name)))
        .collect();
    if kubeadm {
        let shared = kube_proxy::Shared {
            mode: "nftables",
            oom_adjustable: true,
            conntrack_writable: true,
        };
        let proxy = kube_proxy::objects(spec, "", &shared);
        found.extend(proxy.into_iter().map(|object| object.path));
        found.extend(["kubeadm-config", "kubelet-config"].map(crate::stages::config_map));
    }
    found
}
