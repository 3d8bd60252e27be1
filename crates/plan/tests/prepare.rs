//! What the prepare stage does to a machine's own programs: their settings are written, read, and taken back.

#![expect(clippy::disallowed_methods, reason = "a test reads an example")]

use quorate_facts::*;
use quorate_plan::{Action, Before, Plan, Step, lint::lint, plan, reset};
use quorate_spec::{Firewall, Spec};

#[test]
fn a_firewall_that_runs_is_opened_once_and_closed_by_reset() {
    for (name, switch) in [
        (
            "firewalld",
            (|host| host.firewall.firewalld_active = true) as fn(&mut HostFacts),
        ),
        ("ufw", |host| host.firewall.ufw_active = true),
    ] {
        let spec = spec();
        let mut facts = facts(&spec);
        change(&mut facts, switch);
        let made = plan(&spec, &facts);
        let found = steps(&made, name);
        assert_eq!(lint(&made), []);
        assert!(found.last().unwrap().ends_with("-mark"), "{found:?}");
        insta::assert_snapshot!(format!("opened_{name}"), contents(&made, name));
        // The run ended before the firewall was told.
        let mut half = facts.clone();
        carry_out(&mut half, &made, &format!("{name}-mark"));
        let again = steps(&plan(&spec, &half), name);
        assert_eq!(again.len(), 2, "{again:?}");
        carry_out(&mut facts, &made, "");
        assert_eq!(steps(&plan(&spec, &facts), name), Vec::<String>::new());
        let taken_back = reset(&spec, &touched(facts.clone()));
        assert!(steps(&taken_back, name).iter().any(|id| id.ends_with("-reload")));
        assert_eq!(lint(&taken_back), []);
        // A file that says otherwise closes it as well.
        let mut explain = spec.clone();
        explain.host.firewall = Firewall::Explain;
        let closed = plan(&explain, &facts);
        assert!(steps(&closed, name).iter().any(|id| id.ends_with("-reload")));
        assert!(
            closed
                .notes
                .iter()
                .any(|note| note.message.contains("nothing is opened"))
        );
        carry_out(&mut facts, &closed, "");
        assert_eq!(steps(&plan(&explain, &facts), name), Vec::<String>::new());
    }
}

#[test]
fn rules_loaded_by_hand_are_explained_and_never_edited() {
    let spec = spec();
    let mut facts = facts(&spec);
    change(&mut facts, |host| {
        host.firewall.dropping = vec!["inet filter input".into()]
    });
    let made = plan(&spec, &facts);
    let note = &made.notes[0];
    assert_eq!(note.message, "inet filter input drops what is not named there");
    assert!(note.hint.as_deref().unwrap().contains("quorate plan --firewall"));
}

#[test]
fn the_journal_is_limited_as_the_file_says() {
    let mut spec = spec();
    let mut facts = facts(&spec);
    assert_eq!(steps(&plan(&spec, &facts), "journal"), Vec::<String>::new());
    spec.host.journal_max_mib = Some(500);
    let made = plan(&spec, &facts);
    assert_eq!(
        steps(&made, "journal"),
        [
            "prepare/m1/journal-files",
            "prepare/m1/journal-reload",
            "prepare/m1/journal-mark"
        ]
    );
    assert!(contents(&made, "journal").contains("SystemMaxUse=500M"));
    carry_out(&mut facts, &made, "");
    assert_eq!(steps(&plan(&spec, &facts), "journal"), Vec::<String>::new());
    spec.host.journal_max_mib = None;
    let removed = plan(&spec, &facts);
    assert_eq!(steps(&removed, "journal")[0], "prepare/m1/journal-remove");
    carry_out(&mut facts, &removed, "");
    assert_eq!(steps(&plan(&spec, &facts), "journal"), Vec::<String>::new());
}

#[test]
fn reset_puts_swap_and_hostname_back() {
    let mut spec = spec();
    spec.host.hostname = true;
    let mut facts = touched(facts(&spec));
    change(&mut facts, |host| {
        host.files.insert(
            "/var/lib/quorate/before.json".into(),
            file("{\"hostname\": \"old\", \"swaps\": [\"/dev/sda2\"]}"),
        );
        host.files
            .insert("/etc/fstab".into(), file("#quorate /dev/sda2 none swap sw 0 0\n"));
    });
    let made = reset(&spec, &facts);
    let actions: Vec<&Action> = made
        .steps()
        .filter(|step| step.id == "reset/m1/swap" || step.id == "reset/m1/hostname")
        .map(|step| &step.action)
        .collect();
    assert!(matches!(&actions[0], Action::SwapOn { paths } if paths == &["/dev/sda2"]));
    assert!(matches!(&actions[1], Action::Run { argv, .. } if argv.last().unwrap() == "old"));
}

#[test]
fn what_kubelet_and_kube_proxy_set_by_themselves_is_given_back_by_reset() {
    let sysctls = |host: &mut HostFacts, values: [Option<&str>; 4]| {
        let names = [
            "kernel.panic",
            "net.ipv4.conf.all.route_localnet",
            "net.netfilter.nf_conntrack_max",
            "vm.overcommit_memory",
        ];
        for (name, value) in names.into_iter().zip(values) {
            host.sysctls.insert(name.into(), value.map(str::to_owned));
        }
    };
    // What a container shares with its host is the host's business.
    for (container, expected) in [
        (
            None,
            &[
                "kernel.panic",
                "net.ipv4.conf.all.route_localnet",
                "vm.overcommit_memory",
            ][..],
        ),
        (Some("systemd-nspawn"), &["net.ipv4.conf.all.route_localnet"]),
    ] {
        let spec = spec();
        let mut facts = facts(&spec);
        change(&mut facts, |host| {
            host.container = container.map(str::to_owned);
            sysctls(host, [Some("0"), Some("0"), Some("262144"), Some("0")]);
        });
        let made = plan(&spec, &facts);
        let ours =
            |step: &&Step| matches!(&step.action, Action::Sysctls { values } if values.contains_key("kernel.panic"));
        assert_eq!(made.steps().find(ours), None, "they are not set here");
        carry_out(&mut facts, &made, "");
        // The module of one of them is gone since.
        change(&mut facts, |host| {
            sysctls(host, [Some("10"), Some("1"), None, Some("1")])
        });
        let taken_back = reset(&spec, &facts);
        assert_eq!(lint(&taken_back), []);
        let step = taken_back.steps().find(|step| step.id == "reset/m4/sysctls").unwrap();
        let Action::Sysctls { values } = &step.action else {
            panic!("{step:?}")
        };
        assert_eq!(values.keys().collect::<Vec<_>>(), expected);
        assert!(values.values().all(|value| value == "0"), "{values:?}");
    }
}

/// Ids of m1's steps about one program.
fn steps(plan: &Plan, name: &str) -> Vec<String> {
    plan.steps()
        .filter(|step| step.machine == "m1" && step.id.contains(&format!("/{name}-")))
        .map(|step| step.id.clone())
        .collect()
}

fn contents(plan: &Plan, name: &str) -> String {
    let mut text = String::new();
    for step in plan
        .steps()
        .filter(|step| step.machine == "m1" && step.id.contains(&format!("/{name}-")))
    {
        text.push_str(&format!("{}: {}\n", step.id, step.title));
        match &step.action {
            Action::Files { files } if !step.id.ends_with("-mark") => {
                for file in files {
                    text.push_str(&format!("{}\n{}\n", file.path, quorate_plan::file_diff(file)));
                }
            }
            Action::Block { path, content, .. } => text.push_str(&format!("{path}\n{content}\n")),
            Action::Run { argv, .. } => text.push_str(&format!("  {}\n", argv.join(" "))),
            _ => {}
        }
    }
    text
}

/// What the prepare stage's steps leave on the machines; steps whose id ends with `without` are not carried out.
fn carry_out(facts: &mut Facts, plan: &Plan, without: &str) {
    for step in plan.steps() {
        if !step.id.starts_with("prepare/") || (!without.is_empty() && step.id.ends_with(without)) {
            continue;
        }
        let Some(MachineFacts::Found(host)) = facts.machines.get_mut(&step.machine) else {
            continue;
        };
        match &step.action {
            Action::Files { files } => {
                for change in files {
                    assert!(!matches!(change.before, Before::Hash { .. }));
                    if let quorate_plan::Content::Text { text } = &change.content {
                        host.files.insert(change.path.clone(), file(text));
                    }
                }
            }
            Action::Remove { paths, .. } => host.files.retain(|path, _| !paths.contains(path)),
            Action::Block { path, content, .. } => {
                let block = if content.is_empty() {
                    String::new()
                } else {
                    format!("# BEGIN quorate\n{content}# END quorate\n")
                };
                host.files
                    .insert(path.clone(), file(&format!("others' lines\n{block}")));
            }
            _ => {}
        }
    }
}

/// The first run left its note.
fn touched(mut facts: Facts) -> Facts {
    change(&mut facts, |host| {
        host.files
            .entry("/var/lib/quorate/before.json".into())
            .or_insert_with(|| file("{}"));
    });
    facts
}

fn change(facts: &mut Facts, with: impl Fn(&mut HostFacts)) {
    for machine in facts.machines.values_mut() {
        if let MachineFacts::Found(host) = machine {
            with(host);
        }
    }
}

fn file(text: &str) -> FileFacts {
    FileFacts {
        kind: FileKind::File,
        mode: 0o644,
        owner: "root".into(),
        group: "root".into(),
        text: Some(text.into()),
        ..FileFacts::absent()
    }
}

fn spec() -> Spec {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/minimal.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    quorate_spec::load(&text, "minimal")
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, &text, false)))
        .0
}

fn facts(spec: &Spec) -> Facts {
    let host = |machine: &quorate_spec::Machine| {
        let mut host = HostFacts {
            hostname: machine.name.clone(),
            kernel: "6.1.0".into(),
            ..HostFacts::default()
        };
        host.network.addresses = vec![AddressFacts {
            interface: "eth0".into(),
            address: machine.address,
            prefix: 24,
        }];
        host
    };
    Facts {
        taken_unix: 1_800_000_000,
        machines: spec
            .machines
            .iter()
            .map(|machine| (machine.name.clone(), MachineFacts::Found(Box::new(host(machine)))))
            .collect(),
        ..Facts::default()
    }
}
