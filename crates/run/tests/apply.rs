//! Whole runs on fake machines.

mod sim;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quorate_machine::fake::Fault;
use quorate_machine::{ErrorKind, Machine};
use quorate_run::{Ended, Error, Event, Listener, Lock, Options, RunId, Stop, read_journal, runs, silent};
use sim::{Sim, options};

const MINIMAL: &str = include_str!("../../../examples/minimal.yaml");
const EXTERNAL_ETCD: &str = include_str!("../../../examples/one-click.yaml");

#[tokio::test(start_paused = true)]
async fn bare_machines_become_a_cluster_and_a_second_plan_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(outcome.done, plan.step_count());
    assert_eq!(sim.left().await, []);
    let story = read_journal(folder.path(), &outcome.run).unwrap();
    assert_eq!(story.ended(), Some("complete"));
    assert_eq!(story.begun().len(), plan.step_count());
    assert_eq!(story.plan.unwrap().hash(), plan.hash());
    assert_eq!(runs(folder.path()).len(), 1);
    // The token admits nobody any more.
    assert!(
        sim.machines
            .values()
            .all(|machine| machine.file("/etc/kubernetes/bootstrap-kubelet.conf").is_none())
    );
}

#[tokio::test(start_paused = true)]
async fn every_example_is_carried_out() {
    for entry in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let folder = tempfile::tempdir().unwrap();
        let sim = Sim::new(&text, folder.path());
        let (_, outcome) = sim.apply().await;
        assert_eq!(
            outcome.ended,
            Ended::Complete,
            "{}: {:#?}",
            path.display(),
            outcome.failures
        );
        assert_eq!(sim.left().await, [], "{}", path.display());
    }
}

#[tokio::test(start_paused = true)]
async fn killed_after_every_step_it_converges_to_the_same_cluster() {
    sim::killed_after_every_step(MINIMAL, 1, assert_same).await;
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_dies_drops_out_and_joins_at_the_next_apply() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.machines["m5"].fault(Fault::dies_before_call(14));
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Partial);
    assert_eq!(outcome.lost.keys().collect::<Vec<_>>(), ["m5"]);
    assert!(outcome.way_on().is_some());
    assert!(sim.world.object("/api/v1/nodes/m4").is_some() && sim.world.object("/api/v1/nodes/m5").is_none());
    sim.machines["m5"].power_on();
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_loses_its_disk_joins_again_and_quorum_holds() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    sim.replace("m1");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (world, noted) = (sim.world.clone(), seen.clone());
    let events: Listener = Arc::new(move |event| {
        if let Event::StepDone { step, .. } = event {
            noted.lock().unwrap().push((step.clone(), world.has_quorum()));
        }
    });
    let (plan, outcome) = sim.apply_with(&events).await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    let changes: Vec<&str> = plan
        .steps()
        .map(|step| step.id.as_str())
        .filter(|id| {
            ["remove-stale", "add-learner", "promote"]
                .iter()
                .any(|what| id.ends_with(what))
        })
        .collect();
    assert_eq!(
        changes,
        ["etcd/m1/remove-stale", "etcd/m1/add-learner", "etcd/m1/promote"]
    );
    assert!(seen.lock().unwrap().iter().all(|(_, quorum)| *quorum));
    assert_eq!(sim.left().await, []);
}

#[tokio::test(start_paused = true)]
async fn killed_after_every_step_of_a_join_to_a_running_cluster_it_converges() {
    for (cluster, machine) in [(MINIMAL, "m1"), (EXTERNAL_ETCD, "e1")] {
        sim::killed_after_every_step_of_a_join(cluster, machine, assert_same).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_kubelet_that_asks_for_another_serving_certificate_gets_it() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    let asked = ["m1", "m4"].map(|node| sim.world.asks_again(node, node));
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(
        plan.steps().map(|step| step.id.as_str()).collect::<Vec<_>>(),
        ["ready/m1/serving-certificate", "ready/m4/serving-certificate"]
    );
    for path in asked {
        assert_eq!(sim.world.object(&path).unwrap()["status"]["certificate"], "signed");
    }
    assert_eq!(sim.left().await, []);
}

#[tokio::test(start_paused = true)]
async fn another_serving_certificate_for_a_foreign_name_is_not_approved() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    let path = sim.world.asks_again("m1", "m2");
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Partial);
    assert!(
        outcome.failures[0].error.contains("is not approved"),
        "{:#?}",
        outcome.failures
    );
    assert_eq!(sim.world.object(&path).unwrap()["status"], serde_json::json!({}));
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_shuts_while_stages_run_together_stops_the_later_ones() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.machines["m1"]
        .state()
        .failing_units
        .insert("kubelet.service".into(), 1);
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Failed { stage: "nodes".into() });
    let together = |name: &str| {
        plan.stages
            .iter()
            .any(|stage| stage.name == name && stage.with_previous)
    };
    assert!(together("network") && together("dns"));
    assert!(
        !sim.machines["m1"]
            .state()
            .files
            .contains_key("/etc/kubernetes/flannel.conf")
    );
    assert!(outcome.stages.iter().all(|(stage, _)| stage != "ready"));
    sim.machines["m1"].state().failing_units.clear();
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_failed_unit_stops_the_run_after_its_stage_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.machines["m2"]
        .state()
        .failing_units
        .insert("kube-apiserver.service".into(), 1);
    let (_, outcome) = sim.apply().await;
    assert_eq!(
        outcome.ended,
        Ended::Failed {
            stage: "control-plane".into()
        }
    );
    let [failure] = outcome.failures.as_slice() else {
        panic!("{:#?}", outcome.failures)
    };
    assert_eq!(failure.step, "control-plane/m2/units");
    assert!(
        failure.error.contains("kube-apiserver.service is failed"),
        "{}",
        failure.error
    );
    assert_eq!(
        failure.hint.as_deref(),
        Some(
            "on m2: journalctl -u kube-apiserver.service -u kube-controller-manager.service -u kube-scheduler.service"
        )
    );
    assert!(outcome.stages.iter().all(|(stage, _)| stage != "nodes"));
    sim.machines["m2"].state().failing_units.clear();
    assert_eq!(sim.apply().await.1.ended, Ended::Complete);
}

#[tokio::test(start_paused = true)]
async fn asked_to_stop_it_ends_at_a_safe_point_and_goes_on_later() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    let plan = sim.plan().await;
    let stop = Stop::default();
    let asked = stop.clone();
    let events: Listener = Arc::new(move |event| {
        if matches!(event, Event::StepDone { step, .. } if step == "etcd/m1/files") {
            asked.stop();
        }
    });
    let outcome = sim
        .session()
        .execute(&plan, &Options { stop, ..options() }, &events)
        .await
        .unwrap();
    assert_eq!(
        outcome.ended,
        Ended::Stopped {
            because: "asked to".into()
        }
    );
    assert!(outcome.failures.is_empty() && outcome.done > 0 && outcome.done + outcome.skipped == plan.step_count());
    assert_eq!(sim.apply().await.1.ended, Ended::Complete);
}

#[tokio::test(start_paused = true)]
async fn two_runs_exclude_each_other_and_the_lock_says_who_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    let plan = sim.plan().await;
    let held = quorate_run::Lock::take(
        &sim.spec,
        &sim.session().fleet,
        &quorate_run::RunId::from("other".to_owned()),
        false,
    )
    .await
    .unwrap();
    let refused = sim.session().execute(&plan, &Options::default(), &silent()).await;
    let Err(error @ Error::Locked { .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(error.to_string().contains("m1 is locked by run other of"), "{error}");
    assert!(error.hint().unwrap().contains("--steal"));
    held.give_back().await;
    assert!(
        sim.session()
            .execute(&plan, &Options::default(), &silent())
            .await
            .is_ok()
    );
}

/// A lock for `run`, as `fleet` can have it.
async fn take(sim: &Sim, run: &str, steal: bool) -> Result<Lock, Error> {
    Lock::take(&sim.spec, &sim.session().fleet, &RunId::from(run.to_owned()), steal).await
}

#[tokio::test(start_paused = true)]
async fn whoever_lost_the_lock_stops() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    let plan = sim.plan().await;
    // One call to it outlasts three renewals.
    sim.machines["m4"].state().latency = Duration::from_secs(30);
    let (session, options, listener) = (sim.session(), options(), silent());
    let thief = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        take(&sim, "thief", true).await.ok().unwrap()
    };
    let (outcome, lock) = tokio::join!(
        sim.while_time_passes(session.execute(&plan, &options, &listener)),
        thief
    );
    let outcome = outcome.unwrap();
    assert_eq!(
        outcome.ended,
        Ended::Stopped {
            because: "another run took the lock over".into()
        }
    );
    assert!((10_000..11_000).contains(&outcome.took_ms), "{}", outcome.took_ms);
    // Its changes are the thief's to write to disk.
    assert!(sim.machines.values().all(|machine| synced(machine) == 0));
    lock.give_back().await;
}

#[tokio::test(start_paused = true)]
async fn a_minority_of_the_control_planes_gives_no_lock_unless_stolen() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.machines["m2"].fault(Fault::operation("take lock", 1, ErrorKind::Timeout, "no answer"));
    sim.machines["m3"].state().unreachable = true;
    let Err(error @ Error::NoLock { .. }) = take(&sim, "a", false).await else {
        panic!("one of three is a majority")
    };
    let said = error.to_string();
    assert!(
        said.starts_with("1 of 3 control planes gave the cluster's lock, which takes 2: "),
        "{said}"
    );
    assert!(
        said.contains("m3: no route to host") && said.contains("m2: take lock"),
        "{said}"
    );
    assert!(error.hint().unwrap().contains("--steal"));
    // What it got it gave back; and with a majority one that is away hinders nobody.
    let lock = take(&sim, "b", false).await.ok().unwrap();
    lock.give_back().await;
    // Most are lost for good.
    sim.machines["m2"].state().unreachable = true;
    assert!(matches!(
        take(&sim, "c", false).await,
        Err(Error::NoLock { given: 1, of: 3, .. })
    ));
    let lock = take(&sim, "c", true).await.ok().unwrap();
    lock.give_back().await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_left_with_a_minority_has_lost_the_lock() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    let once = |machine: &str| {
        let fault = Fault::operation("take lock", 1, ErrorKind::Timeout, "no answer");
        sim.machines[machine].fault(fault);
    };
    once("m3");
    let first = take(&sim, "first", false).await.ok().unwrap();
    once("m1");
    let second = take(&sim, "second", true).await.ok().unwrap();
    let noticed = tokio::time::timeout(Duration::from_secs(15), first.lost().stopped()).await;
    assert!(noticed.is_ok() && !second.lost().is_stopped());
    first.give_back().await;
    second.give_back().await;
}

#[tokio::test(start_paused = true)]
async fn control_planes_that_were_reset_first_take_the_lock_from_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    let facts = sim.session().gather().await.unwrap();
    let plan = quorate_plan::reset(&sim.spec, &facts);
    // The others are done long before: their lock is renewed without being there.
    sim.machines["m3"].state().latency = Duration::from_secs(8);
    let outcome = sim.session().execute(&plan, &options(), &silent()).await.unwrap();
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert!(outcome.took_ms > 30_000, "{}", outcome.took_ms);
    for (name, machine) in &sim.machines {
        assert!(machine.state().locks.is_empty(), "{name} has a lock again");
    }
}

fn synced(machine: &quorate_machine::FakeMachine) -> usize {
    let state = machine.state();
    state
        .journal
        .iter()
        .filter(|operation| *operation == "sync disks")
        .count()
}

#[tokio::test(start_paused = true)]
async fn what_a_run_wrote_is_on_disk_before_it_ends_and_an_empty_one_waits_for_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(outcome.stages.last().unwrap().0, "sync");
    for (name, machine) in &sim.machines {
        let state = machine.state();
        let last = state.journal.iter().rfind(|operation| !operation.contains(" lock "));
        assert_eq!(last.map(String::as_str), Some("sync disks"), "{name}");
    }
    let (plan, outcome) = sim.apply().await;
    assert!(plan.is_empty() && outcome.is_complete() && outcome.stages.is_empty());
    assert!(sim.machines.values().all(|machine| synced(machine) == 1));
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_at_the_end_is_a_failure_of_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.machines["m2"].fault(Fault::operation(
        "sync disks",
        1,
        ErrorKind::Failed,
        "Input/output error",
    ));
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Partial);
    assert_eq!((outcome.done, outcome.skipped), (plan.step_count(), 0));
    let [failure] = outcome.failures.as_slice() else {
        panic!("{:#?}", outcome.failures)
    };
    assert_eq!((failure.step.as_str(), failure.machine.as_str()), ("sync/m2", "m2"));
    assert!(
        failure.error.contains("m2: sync disks: Input/output error"),
        "{}",
        failure.error
    );
    assert!(failure.hint.is_some() && outcome.way_on().is_some());
    let story = read_journal(folder.path(), &outcome.run).unwrap();
    assert_eq!(story.ended(), Some("partial"));
}

#[tokio::test(start_paused = true)]
async fn a_run_is_taken_back() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    let before = sim.fingerprint();
    let changed = Sim {
        spec: sim.spec.clone(),
        machines: sim.machines.clone(),
        world: sim.world.clone(),
        operator: sim.operator.clone(),
        catalogue: sim.catalogue.clone(),
    };
    let mut changed = changed;
    changed
        .spec
        .kubernetes
        .api_server
        .extra_args
        .insert("v".into(), "4".into());
    changed.spec.machines[3].labels.insert("disk".into(), "ssd".into());
    let (plan, outcome) = changed.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    let touched: Vec<&str> = plan.stages.iter().map(|stage| stage.name.as_str()).collect();
    assert_eq!(touched, ["control-plane", "labels"]);
    let undone = sim
        .session()
        .rollback(&outcome.run, &options(), &silent())
        .await
        .unwrap();
    assert_eq!((undone.failed, undone.manual), (vec![], vec![]));
    assert_eq!(undone.steps.len(), plan.step_count());
    sim.world.settle();
    assert_same(&before, &sim.fingerprint(), "after the rollback");
}

#[tokio::test(start_paused = true)]
async fn reset_leaves_the_machines_as_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    for machine in sim.machines.values() {
        machine.put_file("/etc/hosts", "127.0.0.1 localhost\n", 0o644);
    }
    let before = sim.fingerprint();
    sim.apply().await;
    let facts = sim.session().gather().await.unwrap();
    let plan = quorate_plan::reset(&sim.spec, &facts);
    assert_eq!(quorate_plan::lint::lint(&plan), []);
    let outcome = sim.session().execute(&plan, &options(), &silent()).await.unwrap();
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    let machines = |all: BTreeMap<String, String>| -> BTreeMap<String, String> {
        // Directories of the system itself, which a fake makes when it first needs them.
        all.into_iter()
            .filter(|(key, value)| {
                !key.starts_with('/')
                    && key != "etcd"
                    && !value.ends_with("a directory")
                    && !value.starts_with("active false")
            })
            .collect()
    };
    assert_same(&machines(before), &machines(sim.fingerprint()), "after the reset");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_and_a_passing_error_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.machines["m4"].fault(Fault::operation("write", 2, ErrorKind::Failed, "interrupted"));
    let retried = Arc::new(Mutex::new(Vec::new()));
    let noted = retried.clone();
    let events: Listener = Arc::new(move |event| {
        if let Event::StepRetry { step, .. } = event {
            noted.lock().unwrap().push(step.clone());
        }
    });
    assert_eq!(sim.apply_with(&events).await.1.ended, Ended::Complete);
    assert_eq!(*retried.lock().unwrap(), ["prepare/m4/files"]);

    let sim = Sim::with(sim.spec.clone(), sim.operator.clone());
    sim.machines["m4"].state().disk_full = true;
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Partial);
    assert!(
        outcome
            .failures
            .iter()
            .all(|failure| failure.machine == sim.machines["m4"].name()),
        "{:#?}",
        outcome.failures
    );
    assert!(outcome.failures[0].error.contains("No space left on device"));
}

/// Every secret of the operator is looked for in everything a run leaves behind or tells.
#[tokio::test(start_paused = true)]
async fn no_secret_is_in_a_journal_plan_event_or_world_readable_file() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    let told = Arc::new(Mutex::new(String::new()));
    let noted = told.clone();
    let events: Listener = Arc::new(move |event| {
        noted
            .lock()
            .unwrap()
            .push_str(&format!("{event:?}{}", serde_json::to_string(event).unwrap()))
    });
    sim.machines["m2"].fault(Fault::operation("write", 2, ErrorKind::Failed, "interrupted"));
    let (plan, outcome) = sim.apply_with(&events).await;
    let facts = sim.session().gather().await.unwrap();
    let mut texts = vec![
        ("events".to_owned(), told.lock().unwrap().clone()),
        (
            "plan".to_owned(),
            format!("{}{plan:?}", serde_json::to_string(&plan).unwrap()),
        ),
        (
            "facts".to_owned(),
            format!("{}{facts:?}", serde_json::to_string(&facts).unwrap()),
        ),
        (
            "outcome".to_owned(),
            format!("{}{outcome:?}", serde_json::to_string(&outcome).unwrap()),
        ),
        ("operator".to_owned(), format!("{:?}", sim.operator)),
    ];
    for entry in std::fs::read_dir(folder.path().join("runs")).unwrap() {
        let path = entry.unwrap().path();
        texts.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
    }
    for (name, machine) in &sim.machines {
        let state = machine.state();
        texts.push((format!("{name}: operations"), state.journal.join("\n")));
        for (path, file) in state.files.iter().filter(|(_, file)| file.mode & 0o077 != 0) {
            texts.push((format!("{name}: {path}"), format!("{:?}", file.kind)));
            if let quorate_machine::fake::FakeKind::File { content, .. } = &file.kind {
                texts.push((format!("{name}: {path}"), String::from_utf8_lossy(content).into_owned()));
            }
        }
    }
    let secrets = canaries(folder.path());
    assert!(secrets.len() > 10);
    for (secret, value) in &secrets {
        for (place, text) in &texts {
            assert!(!text.contains(value), "{secret} is in {place}");
        }
    }
}

/// The distinctive part of every secret file of the operator.
fn canaries(folder: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![folder.join("pki")];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let name = path.display().to_string();
            if name.ends_with(".key") {
                let line = text.lines().nth(1).unwrap();
                found.push((name, line.to_owned()));
                // Its beginning is the same in all keys of a kind.
                found.push((path.display().to_string(), text.lines().nth(2).unwrap().to_owned()));
            } else if name.contains("/secrets/") {
                let secret = text.trim().rsplit('.').next().unwrap();
                found.push((name, secret.to_owned()));
            }
        }
    }
    found
}

fn assert_same(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>, when: &str) {
    for (key, value) in expected {
        assert_eq!(found.get(key), Some(value), "{key} {when}");
    }
    let more: Vec<&String> = found.keys().filter(|key| !expected.contains_key(*key)).collect();
    assert!(more.is_empty(), "{more:?} {when}");
}
