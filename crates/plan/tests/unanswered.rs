//! A cluster that does not answer is not a cluster that is gone: what runs on its machines goes on.

#![expect(clippy::disallowed_methods, reason = "a test reads the examples")]

mod fabricated;

use quorate_facts::*;
use quorate_plan::{Action, lint::lint, paths, plan};
use quorate_spec::Spec;

use crate::fabricated::{fresh, load};

const MANIFEST: &str = "/etc/kubernetes/manifests/quorate-agent.yaml";

#[test]
fn kubeadm_workers_are_not_reset_while_no_api_server_answers() {
    let (spec, facts) = deployed(&example("lb-pair"));
    let made = plan(&spec, &facts);
    assert_eq!(lint(&made), []);
    assert_eq!(joins(&spec, &facts), Vec::<String>::new());
}

#[test]
fn a_kubeadm_worker_joins_anew_only_if_the_api_has_no_node_of_it() {
    let (spec, mut facts) = deployed(&example("lb-pair"));
    facts.cluster.ready_api_servers = spec
        .control_planes()
        .iter()
        .map(|machine| machine.name.clone())
        .collect();
    facts.cluster.unknown = spec.nodes().iter().map(|node| path(&node.name)).collect();
    assert_eq!(joins(&spec, &facts), Vec::<String>::new());
    let made = plan(&spec, &facts);
    assert!(
        made.notes
            .iter()
            .any(|note| note.message.contains("did not answer for"))
    );
    assert!(made.steps().all(|step| step.id.split('/').next() != Some("labels")));

    facts.cluster.unknown.remove(&path("w1"));
    assert_eq!(joins(&spec, &facts), ["nodes/w1/reset", "nodes/w1/join"]);
}

#[test]
fn the_agent_s_manifest_stays_while_no_api_server_answers() {
    let text = example("minimal").replace("spec:\n", "spec:\n  access: proxy\n  agent: {as: static-pod}\n");
    let (spec, facts) = deployed(&text);
    let made = plan(&spec, &facts);
    assert_eq!(lint(&made), []);
    for step in made.steps() {
        assert!(!step.id.ends_with("/until-joined"), "{}", step.id);
        if let Action::Remove { paths, .. } = &step.action {
            assert!(!paths.iter().any(|path| path == MANIFEST), "{}", step.id);
        }
    }
}

/// Steps that take kubeadm's work back or do it again.
fn joins(spec: &Spec, facts: &Facts) -> Vec<String> {
    let made = plan(spec, facts);
    let ids = made.steps().map(|step| step.id.clone());
    ids.filter(|id| ["/init", "/reset", "/join"].iter().any(|end| id.ends_with(end)))
        .collect()
}

fn path(node: &str) -> String {
    format!("/api/v1/nodes/{node}")
}

/// Machines that have joined, each with its static Pods, and a cluster that says nothing.
fn deployed(text: &str) -> (Spec, Facts) {
    let spec = load(text);
    let mut facts = fresh(&spec);
    for machine in &spec.machines {
        let Some(MachineFacts::Found(host)) = facts.machines.get_mut(&machine.name) else {
            unreachable!()
        };
        let mut there: Vec<String> = [paths::KUBELET_CLIENT, "/etc/kubernetes/kubelet.conf", MANIFEST]
            .map(str::to_owned)
            .to_vec();
        if machine.is_control_plane() {
            let pods = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
            there.extend(pods.map(|pod| format!("{}/{pod}.yaml", paths::STATIC_PODS)));
        }
        for path in there {
            let file = FileFacts {
                kind: FileKind::File,
                ..FileFacts::absent()
            };
            host.files.insert(path, file);
        }
    }
    (spec, facts)
}

fn example(name: &str) -> String {
    std::fs::read_to_string(format!("{}/../../examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"))).unwrap()
}
