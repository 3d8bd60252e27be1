//! Nothing of another Kubernetes, which apply would fight with.

use quorate_facts::{FileKind, HostFacts};
use quorate_plan::{paths, queries};
use quorate_spec::{Bootstrap, Cni, Machine};

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
        let kubelet = ["kubelet.conf", "bootstrap-kubelet.conf"].map(|name| format!("{}/{name}", paths::KUBERNETES));
        found.extend(
            [paths::PKI, &kubelet[0], &kubelet[1]]
                .into_iter()
                .filter(|path| exists(path))
                .map(str::to_owned),
        );
        if exists(&data) {
            found.push(format!("{data} (data of an etcd)"));
        }
        found.extend(manifests(host).map(|path| format!("{path}, which our kubelet would run")));
        found.extend(
            settings_of_packages(input, host)
                .map(|path| format!("{path}, which changes our kubelet's unit: remove the package kubeadm")),
        );
        let runs = |unit: &&&str| {
            host.units
                .get(**unit)
                .is_some_and(|unit| unit.exists() && unit.is_active())
        };
        found.extend(UNITS.iter().filter(runs).map(|unit| format!("{unit} runs")));
        // Stopped, they come back with the next boot or by their own timers.
        let installed = |unit: &&&str| host.units.get(**unit).is_some_and(|unit| unit.exists());
        let foreign = queries::FOREIGN_UNITS.iter().filter(installed);
        found.extend(foreign.map(|unit| format!("{unit} is installed")));
        if matches!(input.spec.network.cni, Cni::Flannel(_)) {
            found.extend(before_ours(host).map(|path| format!("{path}, which containerd prefers to ours")));
        }
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

/// Static Pods of somebody else's.
fn manifests(host: &HostFacts) -> impl Iterator<Item = &str> {
    let files = host.files.iter().filter(|(_, file)| file.kind == FileKind::File);
    let within = |path: &&str| {
        let name = path
            .strip_prefix(paths::STATIC_PODS)
            .and_then(|name| name.strip_prefix('/'));
        // As the kubelet: it passes hidden files over.
        name.is_some_and(|name| !name.contains('/') && !name.starts_with('.'))
    };
    files.map(|(path, _)| path.as_str()).filter(within)
}

/// Where kubeadm deploys, a file of ours with the same name takes the place of theirs.
fn settings_of_packages<'a>(input: &Input<'_>, host: &'a HostFacts) -> impl Iterator<Item = &'a str> {
    let ours = input.spec.kubernetes.bootstrap == Bootstrap::Kubeadm;
    let there = move |path: &&str| !ours && host.files.get(*path).is_some_and(|file| file.exists());
    queries::KUBELET_PACKAGE.into_iter().filter(there)
}

/// Pod networks that sort before ours: containerd takes the first configuration of the folder.
fn before_ours(host: &HostFacts) -> impl Iterator<Item = &str> {
    let there = host.files.iter().filter(|(_, file)| file.exists());
    there.map(|(path, _)| path.as_str()).filter(|path| {
        path.strip_prefix(paths::CNI_CONF)
            .and_then(|name| name.strip_prefix('/'))
            .is_some_and(|name| {
                let read = [".conf", ".conflist", ".json"].iter().any(|end| name.ends_with(end));
                read && !name.contains('/') && name < paths::CNI_FILE
            })
    })
}
