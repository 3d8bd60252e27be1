//! Every example file, planned on fresh machines: the plan keeps the linter's rules, and its steps are reviewed as a snapshot.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test reads the examples and says what it skips"
)]

use std::collections::BTreeMap;

use quorate_facts::*;
use quorate_plan::{Action, Plan, lint::lint, plan};
use quorate_spec::Spec;

#[test]
fn every_example_plans_by_the_rules() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let spec = load(&std::fs::read_to_string(&path).unwrap());
        if !quorate_plan::not_deployable(&spec).is_empty() {
            eprintln!("skipped: {name}: {}", quorate_plan::not_deployable(&spec).join(", "));
            continue;
        }
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
    let spec =
        load(&std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/minimal.yaml")).unwrap());
    let mut facts = fresh(&spec);
    let members = spec.etcd_members();
    for member in &members[1..] {
        let MachineFacts::Found(host) = facts.machines.get_mut(&member.name).unwrap() else {
            unreachable!()
        };
        host.files.insert(
            "/var/lib/etcd/member".into(),
            FileFacts {
                kind: FileKind::Directory,
                ..FileFacts::absent()
            },
        );
    }
    let live = members
        .iter()
        .enumerate()
        .map(|(index, member)| EtcdMember {
            id: index.to_string(),
            name: member.name.clone(),
            peer_urls: vec![format!("https://{}:2380", member.address)],
            learner: false,
            healthy: index > 0,
        })
        .collect();
    facts.cluster.etcd = Some(EtcdFacts {
        cluster_id: "1".into(),
        leader: Some("2".into()),
        members: live,
    });
    let made = plan(&spec, &facts);
    assert_eq!(lint(&made), []);
    let changes: Vec<&str> = made
        .steps()
        .filter(|step| {
            matches!(
                step.action,
                Action::EtcdAddLearner { .. } | Action::EtcdPromote { .. } | Action::EtcdRemove { .. }
            )
        })
        .map(|step| step.id.as_str())
        .collect();
    let first = &members[0].name;
    assert_eq!(
        changes,
        [
            format!("etcd/{first}/remove-stale"),
            format!("etcd/{first}/add-learner"),
            format!("etcd/{first}/promote")
        ]
    );
}

fn load(text: &str) -> Spec {
    quorate_spec::load(text, "cluster.yaml")
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, text, false)))
        .0
}

/// Machines as a distribution leaves them, and a bundle with everything.
fn fresh(spec: &Spec) -> Facts {
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

fn host(machine: &quorate_spec::Machine) -> HostFacts {
    let mut host = HostFacts {
        hostname: machine.name.clone(),
        kernel: "6.1.0-18-amd64".into(),
        arch: "x86_64".into(),
        cpus: 4,
        memory_bytes: 8 << 30,
        systemd: Some(SystemdFacts {
            version: 252,
            state: "running".into(),
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

fn bundle() -> BundleFacts {
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
        "image:registry.k8s.io/coredns/coredns:v1.14.2",
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
