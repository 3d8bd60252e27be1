//! What kubeadm is told in each state of a machine, and what is settled before it is called.

#![expect(clippy::disallowed_methods, reason = "a test reads the examples")]

mod fabricated;

use quorate_facts::*;
use quorate_plan::{Action, Content, Plan, lint::lint, paths, plan};
use quorate_spec::Spec;

use crate::fabricated::{fresh, load};

const FOUNDING: &str = "/etc/quorate/kubeadm/founding";

#[test]
fn the_member_of_a_control_plane_that_left_the_file_is_removed_before_others_join() {
    let (spec, mut facts) = colocated();
    for name in ["m1", "m2"] {
        for pod in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
            put(&mut facts, name, &format!("{}/{pod}.yaml", paths::STATIC_PODS));
        }
        put(&mut facts, name, paths::KUBELET_CLIENT);
        facts.cluster.ready_api_servers.insert(name.into());
    }
    let member = |id: &str, name: &str, peer: &str, healthy| EtcdMember {
        id: id.into(),
        name: name.into(),
        peer_urls: vec![format!("https://{peer}:2380")],
        learner: false,
        healthy,
    };
    let address = |name: &str| spec.machine(name).unwrap().address.to_string();
    facts.cluster.etcd = Some(EtcdFacts {
        cluster_id: "1".into(),
        leader: Some("m1".into()),
        members: vec![
            member("1", "m1", &address("m1"), true),
            member("2", "m2", &address("m2"), true),
            member("9", "gone", "10.77.0.99", false),
        ],
    });
    let made = plan(&spec, &facts);
    assert_eq!(lint(&made), []);
    let remove = made
        .steps()
        .find(|step| step.id == "control-plane/gone/remove")
        .unwrap();
    assert!(matches!(&remove.action, Action::EtcdRemove { id, .. } if id == "9"));
    assert!(["m1", "m2"].contains(&remove.machine.as_str()));
    let removals = made
        .steps()
        .filter(|step| matches!(step.action, Action::EtcdRemove { .. }));
    assert_eq!(removals.count(), 1);
    assert!(comes_after(&made, "control-plane/m3/join", "control-plane/gone/remove"));
}

#[test]
fn a_founder_s_ports_are_kubeadm_s_to_check_until_it_has_begun() {
    let (spec, mut facts) = colocated();
    let (init, join) = (
        content(&plan(&spec, &facts), "m1", "init.yaml"),
        content(&plan(&spec, &facts), "m2", "join.yaml"),
    );
    assert!(!init.contains("Port-") && init.contains("FileAvailable--etc-kubernetes-manifests-etcd.yaml"));
    // A file system of its own is never empty.
    for text in [&init, &join] {
        assert!(text.contains("DirAvailable--var-lib-etcd"), "{text}");
        assert!(text.contains("timeouts:\n  etcdAPICall: 60s\n"), "{text}");
    }
    let attempts = |facts: &Facts| {
        let made = plan(&spec, facts);
        made.steps()
            .find(|step| step.id == "control-plane/m1/init")
            .map(|step| step.attempts)
    };
    assert_eq!(attempts(&facts), Some(1));

    let config = content(&plan(&spec, &facts), "m1", "config.yaml");
    put(&mut facts, "m1", FOUNDING);
    let init = content(&plan(&spec, &facts), "m1", "init.yaml");
    assert!(init.contains("Port-6443") && init.contains("Port-2379"));
    assert_eq!(attempts(&facts), Some(2));
    // What stays on the machine does not change with the mark.
    assert_eq!(content(&plan(&spec, &facts), "m1", "config.yaml"), config);
}

fn colocated() -> (Spec, Facts) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/colocated.yaml");
    let spec = load(&std::fs::read_to_string(path).unwrap());
    let facts = fresh(&spec);
    (spec, facts)
}

fn put(facts: &mut Facts, machine: &str, path: &str) {
    let Some(MachineFacts::Found(host)) = facts.machines.get_mut(machine) else {
        unreachable!()
    };
    let file = FileFacts {
        kind: FileKind::File,
        ..FileFacts::absent()
    };
    host.files.insert(path.into(), file);
}

/// Of a file of kubeadm's, as it will be written on a machine.
fn content(plan: &Plan, machine: &str, name: &str) -> String {
    let path = format!("/etc/quorate/kubeadm/{name}");
    let files = plan
        .steps()
        .filter(|step| step.machine == machine)
        .filter_map(|step| match &step.action {
            Action::Files { files } => Some(files),
            _ => None,
        });
    match files.flatten().find(|file| file.path == path).map(|file| &file.content) {
        Some(Content::Text { text }) => text.clone(),
        Some(Content::Template { template, .. }) => template.clone(),
        other => panic!("{path} on {machine}: {other:?}"),
    }
}

fn comes_after(plan: &Plan, step: &str, first: &str) -> bool {
    let needs = |id: &str| plan.steps().find(|step| step.id == id).map(|step| step.needs.clone());
    let mut open = vec![step.to_owned()];
    while let Some(id) = open.pop() {
        if id == first {
            return true;
        }
        open.extend(needs(&id).unwrap_or_default());
    }
    false
}
