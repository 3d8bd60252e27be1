//! Every example file, planned on fresh machines: the plan keeps the linter's rules, and its steps are reviewed as a snapshot.

#![expect(clippy::disallowed_methods, reason = "a test reads the examples")]

mod fabricated;

use quorate_facts::*;
use quorate_plan::{Action, Before, Condition, Content, Plan, lint::lint, plan};
use quorate_spec::Spec;

use crate::fabricated::{fresh, load};

#[test]
fn every_example_plans_by_the_rules() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let spec = load(&std::fs::read_to_string(&path).unwrap());
        let made = plan(&spec, &fresh(&spec));
        assert_eq!(lint(&made), [], "{name}");
        insta::with_settings!({snapshot_suffix => name}, { insta::assert_snapshot!(outline(&made)) });
    }
}

#[test]
fn units_and_configuration_of_the_smallest_cluster() {
    let spec =
        load(&std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/minimal.yaml")).unwrap());
    let made = plan(&spec, &fresh(&spec));
    let mut text = String::new();
    let first = &spec.machines[0].name;
    for step in made.steps().filter(|step| step.machine == *first) {
        if let Action::Files { files } = &step.action {
            for file in files {
                text.push_str(&format!(
                    "=== {} {:o} {}\n{}\n",
                    file.owner,
                    file.mode,
                    file.path,
                    quorate_plan::file_diff(file)
                ));
            }
        }
    }
    insta::assert_snapshot!(text);
}

/// What kubeadm is told on the machine that founds, on one that joins, and on a worker.
#[test]
fn kubeadm_configuration_of_the_pair_of_load_balancers() {
    let spec =
        load(&std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/lb-pair.yaml")).unwrap());
    let made = plan(&spec, &fresh(&spec));
    let mut text = String::new();
    let told = |path: &str| path.contains("/kubeadm") || path.contains("kubelet.service");
    for (machine, file) in [("m1", "init.yaml"), ("m2", "join.yaml"), ("w1", "join.yaml")] {
        for step in made.steps().filter(|step| step.machine == machine) {
            let Action::Files { files } = &step.action else {
                continue;
            };
            let shown = files.iter().filter(|change| {
                told(&change.path)
                    && (machine == "m1" && !change.path.ends_with("config.yaml") || change.path.ends_with(file))
            });
            for change in shown {
                let content = match &change.content {
                    Content::Text { text } => text,
                    Content::Template { template, .. } => template,
                    other => panic!("{other:?}"),
                };
                text.push_str(&format!("=== {machine} {:o} {}\n{content}\n", change.mode, change.path));
            }
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn an_unreachable_worker_is_a_note_and_the_others_are_planned() {
    let spec =
        load(&std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/minimal.yaml")).unwrap());
    let mut facts = fresh(&spec);
    let away = spec.workers().last().unwrap().name.clone();
    facts.machines.insert(
        away.clone(),
        MachineFacts::Unreachable {
            reason: "no route".into(),
        },
    );
    let made = plan(&spec, &facts);
    assert!(
        made.notes
            .iter()
            .any(|note| note.machine.as_deref() == Some(away.as_str()))
    );
    assert!(made.steps().all(|step| step.machine != away));
    assert_eq!(lint(&made), []);
}

#[test]
fn a_member_without_data_is_removed_and_added_again_never_beside_another_change() {
    let spec = minimal();
    let mut facts = fresh(&spec);
    for member in ["m2", "m3"] {
        holds_data(&mut facts, member);
    }
    // Drill etcd-data-wiped: what etcd makes anew before it finds out that this member is known already.
    directory(&mut facts, "m1", "/var/lib/etcd/member");
    facts.cluster.etcd = Some(members(&spec));
    let etcd = facts.cluster.etcd.as_mut().unwrap();
    etcd.members[0].healthy = false;
    let made = plan(&spec, &facts);
    assert_eq!(lint(&made), []);
    assert_eq!(
        membership(&made),
        ["etcd/m1/remove-stale", "etcd/m1/add-learner", "etcd/m1/promote"]
    );
}

/// The run that added m3 was killed before it promoted it; m1 has lost its disk since.
#[test]
fn a_learner_that_has_started_is_promoted_before_another_is_added() {
    let spec = minimal();
    let mut facts = fresh(&spec);
    for member in ["m2", "m3"] {
        holds_data(&mut facts, member);
    }
    let mut etcd = members(&spec);
    etcd.members[0].healthy = false;
    (etcd.members[2].learner, etcd.members[2].healthy) = (true, false);
    facts.cluster.etcd = Some(etcd);
    let made = plan(&spec, &facts);
    assert_eq!(lint(&made), []);
    assert_eq!(
        membership(&made),
        [
            "etcd/m3/promote",
            "etcd/m1/remove-stale",
            "etcd/m1/add-learner",
            "etcd/m1/promote"
        ]
    );
    let promoted = made.steps().find(|step| step.id == "etcd/m3/promote").unwrap();
    assert_eq!(promoted.done_when[0].until, Condition::EtcdMember { name: "m3".into() });
}

#[test]
fn credentials_of_an_earlier_cluster_are_not_shown() {
    let spec = minimal();
    let mut facts = fresh(&spec);
    let leftover = |secret: &str| FileFacts {
        kind: FileKind::File,
        sha256: Some("ab".repeat(32)),
        text: Some(format!("apiVersion: v1\nkind: Config\nusers:\n- user:\n    {secret}\n")),
        ..FileFacts::absent()
    };
    let MachineFacts::Found(host) = facts.machines.get_mut("m1").unwrap() else {
        unreachable!()
    };
    for (file, secret) in [
        ("controller-manager.conf", "client-key-data: Q0FOQVJZ"),
        ("scheduler.conf", "token: Q0FOQVJZ"),
        (
            "kubelet.conf",
            "key: |-\n      -----BEGIN EC PRIVATE KEY-----\n      Q0FOQVJZ",
        ),
    ] {
        host.files.insert(format!("/etc/kubernetes/{file}"), leftover(secret));
    }
    // It has joined, so its kubelet.conf is ours to change.
    host.files
        .insert(quorate_plan::paths::KUBELET_CLIENT.into(), leftover(""));
    let node = "/api/v1/nodes/m1".to_owned();
    facts.cluster.objects.insert(node, serde_json::json!({}));
    let made = plan(&spec, &facts);
    let changes: Vec<_> = made
        .steps()
        .filter_map(|step| match &step.action {
            Action::Files { files } if step.machine == "m1" => Some(files),
            _ => None,
        })
        .flatten()
        .filter(|change| change.path.ends_with(".conf") && matches!(change.before, Before::Hash { .. }))
        .collect();
    assert_eq!(changes.len(), 3);
    assert!(
        changes
            .iter()
            .all(|change| !quorate_plan::file_diff(change).contains("Q0FOQVJZ"))
    );
    assert!(!serde_json::to_string(&made).unwrap().contains("Q0FOQVJZ"));
}

#[test]
fn a_machine_that_could_go_through_stages_out_of_order_is_a_violation() {
    let spec = minimal();
    let mut made = plan(&spec, &fresh(&spec));
    let network = made.stages.iter_mut().find(|stage| stage.name == "network").unwrap();
    assert!(network.with_previous);
    let first = network
        .steps
        .iter_mut()
        .find(|step| step.id == "network/m4/files")
        .unwrap();
    assert!(first.needs.contains(&"nodes/m4/units".to_owned()), "{:?}", first.needs);
    first.needs.clear();
    let rules: Vec<(&str, String)> = lint(&made)
        .into_iter()
        .map(|broken| (broken.rule, broken.step))
        .collect();
    assert!(!rules.is_empty());
    assert!(
        rules
            .iter()
            .all(|(rule, step)| *rule == "machines-keep-the-order-of-stages" && step.starts_with("network/m4/")),
        "{rules:#?}"
    );
}

fn minimal() -> Spec {
    load(include_str!("../../../examples/minimal.yaml"))
}

fn directory(facts: &mut Facts, machine: &str, path: &str) {
    let MachineFacts::Found(host) = facts.machines.get_mut(machine).unwrap() else {
        unreachable!()
    };
    host.files.insert(
        path.into(),
        FileFacts {
            kind: FileKind::Directory,
            ..FileFacts::absent()
        },
    );
}

fn holds_data(facts: &mut Facts, machine: &str) {
    directory(facts, machine, "/var/lib/etcd/member");
    directory(facts, machine, "/var/lib/etcd/member/wal");
}

/// All voters, all well.
fn members(spec: &Spec) -> EtcdFacts {
    let members = spec.etcd_members();
    let member = |(index, machine): (usize, &&quorate_spec::Machine)| EtcdMember {
        id: index.to_string(),
        name: machine.name.clone(),
        peer_urls: vec![format!("https://{}:2380", machine.address)],
        learner: false,
        healthy: true,
    };
    EtcdFacts {
        cluster_id: "1".into(),
        leader: Some("m2".into()),
        members: members.iter().enumerate().map(member).collect(),
    }
}

/// Ids of the steps that change etcd's membership.
fn membership(plan: &Plan) -> Vec<&str> {
    plan.steps()
        .filter(|step| {
            matches!(
                step.action,
                Action::EtcdAddLearner { .. } | Action::EtcdPromote { .. } | Action::EtcdRemove { .. }
            )
        })
        .map(|step| step.id.as_str())
        .collect()
}

/// Stage by stage: id, what it needs, title.
fn outline(plan: &Plan) -> String {
    let mut text = String::new();
    for stage in &plan.stages {
        text.push_str(&format!("{} — {}\n", stage.name, stage.title));
        for step in &stage.steps {
            let needs = if step.needs.is_empty() {
                String::new()
            } else {
                format!("  after {}", step.needs.join(", "))
            };
            text.push_str(&format!("  {}: {}{needs}\n", step.id, step.title));
        }
    }
    for note in &plan.notes {
        text.push_str(&format!("note: {}\n", note.message));
    }
    text
}
