//! What a step did is seen through: taken for done only when it had its effect, and shown beforehand as it comes.

mod sim;

use quorate_machine::proto::ExecOutput;
use quorate_plan::{Before, ChangeKind, Content, FileChange, changes, file_diff};
use quorate_run::{Ended, silent};
use sim::{Sim, options};

const MINIMAL: &str = include_str!("../../../examples/minimal.yaml");
const PAIR: &str = include_str!("../../../examples/lb-pair.yaml");
const HOSTS: &str = "/etc/hosts";

#[tokio::test(start_paused = true)]
async fn the_hosts_file_becomes_what_the_plan_has_shown() {
    let folder = tempfile::tempdir().unwrap();
    let mut sim = Sim::new(MINIMAL, folder.path());
    // Without a block, with one between others' lines, without a last line's end, and without a file.
    let found = [
        Some("127.0.0.1 localhost\n"),
        Some("127.0.0.1 localhost\n# BEGIN quorate\n10.0.0.9 old\n# END quorate\n10.9.9.9 other\n"),
        Some("127.0.0.1 localhost\n# BEGIN quorate\nno end"),
        Some(""),
        None,
    ];
    for (machine, text) in sim.machines.values().zip(found) {
        if let Some(text) = text {
            machine.put_file(HOSTS, text, 0o644);
        }
    }
    let read = |sim: &Sim| -> Vec<Option<String>> {
        let machines = sim.machines.values();
        let text = |content: Vec<u8>| String::from_utf8(content).unwrap();
        machines.map(|machine| machine.file(HOSTS).map(text)).collect()
    };
    for change in ["10.77.0.15", "10.77.0.99"] {
        sim.spec = sim::load(&MINIMAL.replace("10.77.0.15", change));
        let (before, plan) = (read(&sim), sim.plan().await);
        let steps = plan
            .steps()
            .filter(|step| step.id.starts_with("prepare/") && step.id.ends_with("/hosts"));
        let shown: Vec<(ChangeKind, String)> = steps
            .flat_map(changes)
            .map(|change| (change.kind, change.diff()))
            .collect();
        sim.apply().await;
        let after = read(&sim);
        let expected: Vec<(ChangeKind, String)> = before
            .into_iter()
            .zip(after)
            .filter(|(before, after)| before != after)
            .map(|(before, after)| {
                let kind = if before.is_none() {
                    ChangeKind::Created
                } else {
                    ChangeKind::Changed
                };
                let file = FileChange {
                    path: HOSTS.into(),
                    owner: "root".into(),
                    mode: 0o644,
                    content: Content::text(after.unwrap()),
                    before: before.map_or(Before::Absent, |text| Before::Text { text }),
                };
                (kind, file_diff(&file))
            })
            .collect();
        assert_eq!(expected.len(), 5, "{change}");
        assert_eq!(shown, expected, "{change}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_deleted_and_still_there_is_not_called_gone() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.world.finalized.store(true, std::sync::atomic::Ordering::Relaxed);
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Partial);
    let failed: Vec<&str> = outcome.failures.iter().map(|failure| failure.step.as_str()).collect();
    assert_eq!(failed, ["ready/m1/revoke-token"]);
    assert!(outcome.failures[0].error.ends_with("deleted, and still there"));
    sim.world.finalized.store(false, std::sync::atomic::Ordering::Relaxed);
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_reset_did_not_empty_is_not_called_removed() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    // Every program ends well and does nothing.
    sim.machines["m4"].on_exec(|_, _| {
        Some(ExecOutput {
            status: Some(0),
            ..ExecOutput::default()
        })
    });
    let facts = sim.session().gather().await.unwrap();
    let plan = quorate_plan::reset(&sim.spec, &facts);
    let outcome = sim.session().execute(&plan, &options(), &silent()).await.unwrap();
    let failed: Vec<&str> = outcome.failures.iter().map(|failure| failure.step.as_str()).collect();
    assert_eq!(failed, ["reset/m4/store"], "{:#?}", outcome.failures);
    assert!(outcome.failures[0].error.contains("/var/lib/quorate still holds"));
}

/// kubeadm's addon, like all that runs in the cluster: applied is not yet running.
#[tokio::test(start_paused = true)]
async fn a_kube_proxy_that_is_changed_is_awaited_on_every_node() {
    let folder = tempfile::tempdir().unwrap();
    let mut sim = Sim::new(PAIR, folder.path());
    sim.apply().await;
    let version = "    version: v1.36.3\n";
    sim.spec = sim::load(&PAIR.replace(
        version,
        &format!("{version}    kubeProxy: {{featureGates: {{LoggingBetaOptions: true}}}}\n"),
    ));
    let plan = sim.plan().await;
    let ids: Vec<&str> = plan.steps().map(|step| step.id.as_str()).collect();
    assert_eq!(
        ids,
        [
            "control-plane/m1/files",
            "control-plane/m2/files",
            "control-plane/m3/files",
            "control-plane/m1/kube-proxy",
            "ready/m1/kube-proxy",
        ]
    );
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
}
