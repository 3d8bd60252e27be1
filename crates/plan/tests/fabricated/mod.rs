//! Facts of machines that nobody has.

#![allow(dead_code, reason = "each test uses a part")]

use std::collections::BTreeMap;

use quorate_facts::*;
use quorate_spec::Spec;

pub(crate) fn load(text: &str) -> Spec {
    quorate_spec::load(text, "cluster.yaml")
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, text, false)))
        .0
}

/// Machines as a distribution leaves them, and a bundle with everything.
pub(crate) fn fresh(spec: &Spec) -> Facts {
    let machines = spec
        .machines
        .iter()
        .map(|machine| (machine.name.clone(), MachineFacts::Found(Box::new(host(machine)))));
    Facts {
        taken_unix: 1_800_000_000,
        machines: machines.collect(),
        bundle: bundle(),
        ..Facts::default()
    }
}

pub(crate) fn host(machine: &quorate_spec::Machine) -> HostFacts {
    let mut host = HostFacts {
        hostname: machine.name.clone(),
        kernel: "6.1.0-18-amd64".into(),
        arch: "x86_64".into(),
        cpus: 4,
        memory_bytes: 8 << 30,
        systemd: Some(SystemdFacts {
            version: 252,
            state: "running".into(),
            ..SystemdFacts::default()
        }),
        oom_score_adj_writable: true,
        conntrack_writable: true,
        ..HostFacts::default()
    };
    host.firewall.nft = Some("/usr/sbin/nft".into());
    host.users.insert("etcd".into(), None);
    host.network.addresses = machine
        .all_addresses()
        .into_iter()
        .map(|address| AddressFacts {
            interface: "eth0".into(),
            address,
            prefix: 24,
        })
        .collect();
    host
}

pub(crate) fn bundle() -> BundleFacts {
    let binaries = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubectl",
        "kubelet",
        "kube-proxy",
        "kubeadm",
        "etcd",
        "etcdctl",
        "etcdutl",
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "runc",
        "flanneld",
        "bridge",
        "host-local",
        "loopback",
        "portmap",
        "firewall",
        "bandwidth",
        "tuning",
    ];
    let images = [
        "image:registry.k8s.io/pause:3.10.2",
        "image:quorate.dev/probe:0.1.0",
        "image:quorate.dev/agent:0.1.0",
        "image:registry.k8s.io/coredns/coredns:v1.14.2",
        "image:registry.k8s.io/kube-apiserver:v1.36.3",
        "image:registry.k8s.io/kube-controller-manager:v1.36.3",
        "image:registry.k8s.io/kube-scheduler:v1.36.3",
        "image:registry.k8s.io/kube-proxy:v1.36.3",
        "image:registry.k8s.io/etcd:3.6.16-0",
    ];
    let item = |name: &str, kind| BundleItem {
        name: name.into(),
        kind,
        version: "1".into(),
        sha256: format!("{:064x}", name.len()),
        size: 1,
        packed_size: 1,
    };
    let items: BTreeMap<String, BundleItem> = binaries
        .iter()
        .map(|name| ((*name).to_owned(), item(name, ItemKind::Binary)))
        .chain(
            images
                .iter()
                .map(|name| ((*name).to_owned(), item(name, ItemKind::Image))),
        )
        .collect();
    BundleFacts {
        kubernetes: "v1.36.3".into(),
        items,
    }
}
