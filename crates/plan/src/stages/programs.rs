//! Programs: the bundle's blobs on the machines that need them, and links to them.

use quorate_facts::{BundleItem, ItemKind};
use quorate_spec::{Bootstrap, Cni, Machine};

use crate::components::agent;
use crate::model::*;
use crate::paths;
use crate::stages::Planned;
use crate::want::{Context, Draft};

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "programs", "upstream programs and images are on the machines");
    let mut notes = Vec::new();
    for machine in context.reached(context.spec.machines.iter().collect()) {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        let items = items(context, machine);
        let missing: Vec<BlobRef> = items
            .iter()
            .filter(|item| !wanted.host.blobs.contains(&item.sha256))
            .map(|item| BlobRef {
                name: item.name.clone(),
                sha256: item.sha256.clone(),
                packed_size: item.packed_size,
            })
            .collect();
        let images = image_names(context, machine).into_iter();
        let images = images.filter(|name| machine.is_node() && context.image(name).is_none());
        for name in wanted_names(context, machine)
            .into_iter()
            .filter(|name| !context.facts.bundle.items.contains_key(*name))
            .map(str::to_owned)
            .chain(images.map(|name| format!("image {}", name.trim_start_matches('/'))))
        {
            notes.push(Note {
                machine: None,
                message: format!("the bundle has no {name}"),
                hint: Some("quorate bundle verify".into()),
            });
        }
        // etcd runs as its own user and must get through to its program.
        wanted.directory(paths::BLOBS, "root", 0o711);
        wanted.link(
            &paths::bin("quorate"),
            &format!("{}/{}/quorate", paths::PROGRAMS, context.facts.operator.program_sha256),
        );
        for item in items.iter().filter(|item| item.kind == ItemKind::Binary) {
            let folder = if CNI_PLUGINS.contains(&item.name.as_str()) {
                paths::CNI_BIN
            } else {
                paths::BIN
            };
            wanted.program(&format!("{folder}/{}", item.name), &item.name);
        }
        let mut after = Vec::new();
        if !missing.is_empty() {
            let id = draft.id(&machine.name, "blobs");
            let bytes: u64 = missing.iter().map(|blob| blob.packed_size).sum();
            draft.push(Step {
                id: id.clone(),
                machine: machine.name.clone(),
                title: format!("receive {} blobs, {} MB packed", missing.len(), bytes / 1_000_000),
                why: missing
                    .iter()
                    .map(|blob| format!("{} is not on the machine", blob.name))
                    .collect(),
                action: Action::Blobs { blobs: missing },
                needs: Vec::new(),
                done_when: Vec::new(),
                undo: Undo::Nothing {
                    because: "blobs are content-addressed and unused until linked; reset removes them".into(),
                },
                attempts: 3,
                essential: machine.roles.iter().any(|role| *role != quorate_spec::Role::Worker),
            });
            after.push(id);
        }
        draft.add(wanted, &after);
    }
    notes.dedup();
    Planned {
        stage: draft.stage,
        notes,
        awaited: Vec::new(),
    }
}

pub(crate) const CNI_PLUGINS: [&str; 7] = [
    "bridge",
    "host-local",
    "loopback",
    "portmap",
    "firewall",
    "bandwidth",
    "tuning",
];

/// Images a node's runtime should hold, by the end of their repository's name.
pub(crate) fn image_names(context: &Context<'_>, machine: &Machine) -> Vec<&'static str> {
    let mut names = vec!["/pause", "/probe"];
    if context.spec.kubernetes.bootstrap == Bootstrap::Kubeadm {
        names.push("/kube-proxy");
        if machine.is_control_plane() {
            names.extend(["/kube-apiserver", "/kube-controller-manager", "/kube-scheduler"]);
            names.extend((!context.etcd_unit()).then_some("/etcd"));
        }
    }
    if agent::is_pod(context.spec, machine) {
        names.push("/agent");
    }
    if !matches!(context.spec.network.cni, Cni::None) || context.spec.dns.replicas > 0 {
        names.push("/coredns");
    }
    names
}

fn wanted_names(context: &Context<'_>, machine: &Machine) -> Vec<&'static str> {
    let spec = context.spec;
    let kubeadm = spec.kubernetes.bootstrap == Bootstrap::Kubeadm;
    let mut names = Vec::new();
    if machine.is_control_plane() {
        if !kubeadm {
            names.extend(["kube-apiserver", "kube-controller-manager", "kube-scheduler"]);
        }
        names.push("kubectl");
    }
    if context.runs_etcd(machine) {
        names.extend(context.etcd_unit().then_some("etcd"));
        names.extend(["etcdctl", "etcdutl"]);
    }
    if machine.is_node() {
        names.extend([
            "containerd",
            "containerd-shim-runc-v2",
            "ctr",
            "runc",
            "kubelet",
            if kubeadm { "kubeadm" } else { "kube-proxy" },
        ]);
        names.extend(CNI_PLUGINS);
        if matches!(spec.network.cni, Cni::Flannel(_)) {
            names.push("flanneld");
        }
    }
    names
}

fn items<'a>(context: &Context<'a>, machine: &Machine) -> Vec<&'a BundleItem> {
    let bundle = &context.facts.bundle.items;
    let programs = wanted_names(context, machine)
        .into_iter()
        .filter_map(|name| bundle.get(name));
    let images = image_names(context, machine)
        .into_iter()
        .filter(|_| machine.is_node())
        .filter_map(|name| context.image(name));
    programs.chain(images).collect()
}
