//! Nothing of another Kubernetes, which apply would fight with.

use quorate_facts::HostFacts;
use quorate_plan::paths;
use quorate_spec::Machine;

use super::{Input, List, deployed};

const UNITS: [&str; 4] = [
    "kubelet.service",
    "etcd.service",
    "kube-apiserver.service",
    "containerd.service",
];
/// Interfaces that Pod networks and kube-proxy make.
const INTERFACES: [&str; 7] = [
    "cni0",
    "flannel.1",
    "kube-ipvs0",
    "cilium_host",
    "vxlan.calico",
    "weave",
    "kube-bridge",
];

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let mut found = Vec::new();
    if !deployed(host) {
        let exists = |path: &str| host.files.get(path).is_some_and(|file| file.exists());
        let data = format!("{}/member", input.spec.etcd.data_dir);
        for (path, what) in [(paths::PKI, paths::PKI), (data.as_str(), "data of an etcd")] {
            if exists(path) {
                found.push(if path == what {
                    path.to_owned()
                } else {
                    format!("{path} ({what})")
                });
            }
        }
        let runs = |unit: &&&str| {
            host.units
                .get(**unit)
                .is_some_and(|unit| unit.exists() && unit.is_active())
        };
        found.extend(UNITS.iter().filter(runs).map(|unit| format!("{unit} runs")));
        let there = |name: &&&str| host.network.links.iter().any(|link| link.name == **name);
        found.extend(INTERFACES.iter().filter(there).map(|name| format!("interface {name}")));
        let tables = host
            .firewall
            .nft_tables
            .iter()
            .filter(|table| table.ends_with(" kube-proxy"));
        found.extend(tables.map(|table| format!("nftables table {table}")));
    }
    let text = if found.is_empty() {
        "none".to_owned()
    } else {
        found.join(", ")
    };
    list.require(
        "leftovers",
        &machine.name,
        found.is_empty(),
        text,
        "remove the other cluster first (`kubeadm reset`, `k3s-uninstall.sh`, …) and reboot",
    );
}
