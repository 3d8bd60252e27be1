//! Operators who change their mind in the middle of a drill, and operators who die there.

#![expect(clippy::print_stderr, reason = "stories say what they skip and what they measured")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use quorate_tests::{Lab, cannot_run, edit, text};
use serde_json::Value;

/// Beyond the time a fault is meant to stay, its timer on the machine; then everything starts again on a busy computer.
const DEADMAN: Duration = Duration::from_secs(45);
const GREEN: Duration = Duration::from_secs(150);

#[test]
#[ignore = "four minutes; make test-drill"]
fn a_drill_that_is_ended_takes_everything_back() {
    if let Some(reason) = cannot_run() {
        eprintln!("skipped: {reason}");
        return;
    }
    let lab = Lab::up("drill", 4);
    text(&lab.cluster("apply", &["--yes"]), &["apply"]);
    lab.await_green(GREEN);

    breaks_nothing_when_asked_before(&lab);
    excludes_an_apply_and_stops_when_asked(&lab);
    for (scenario, gone) in [
        ("api-server-hung", frozen as fn(&Lab) -> Option<String>),
        ("partitioned-vip-holder", cut_off),
        ("etcd-disk-full", mounted),
        ("machine-off-worker", off),
    ] {
        killed(&lab, scenario, gone);
    }
}

/// Clients are being watched, nothing is broken yet.
fn breaks_nothing_when_asked_before(lab: &Lab) {
    let report = lab.folder.join("asked-before");
    let mut drill = begin(lab, "scheduler-leader-killed", &report, "started");
    signal(&drill, "INT");
    let status = drill.wait().expect("wait for the drill");
    assert_eq!(status.code(), Some(3), "what was not done did not hold");
    let journal = std::fs::read_to_string(report.join("journal.jsonl")).expect("journal");
    assert!(!journal.contains(r#""event":"broken""#), "{journal}");
    let outcome = outcome(&report);
    assert!(
        outcome["why"]
            .as_str()
            .unwrap_or_default()
            .contains("interrupted before"),
        "{outcome}"
    );
}

fn excludes_an_apply_and_stops_when_asked(lab: &Lab) {
    let report = lab.folder.join("interrupted");
    // It stays long enough for another operator to be refused meanwhile, who must have something to do.
    let file = lab.cluster_file();
    edit(
        &file,
        "roles: [worker]",
        "labels: {drilled: meanwhile}, roles: [worker]",
    );
    let mut drill = begin(lab, "scheduler-leader-killed", &report, "broken");
    assert!(stopped(lab).is_some(), "it was broken");
    let apply = lab.cluster("apply", &["--yes"]);
    let said = String::from_utf8_lossy(&apply.stderr);
    assert!(
        !apply.status.success() && said.contains("is locked by run"),
        "apply in the middle of a drill: {said}"
    );
    let asked = Instant::now();
    signal(&drill, "INT");
    let status = drill.wait().expect("wait for the drill");
    eprintln!("interrupted: ended with {status} after {:.1?}", asked.elapsed());
    assert_eq!(status.code(), Some(3), "what was interrupted did not hold");
    assert_eq!(stopped(lab), None, "the fault is still there");
    let outcome = outcome(&report);
    assert_eq!(outcome["ok"], false);
    assert!(
        outcome["why"].as_str().unwrap_or_default().contains("interrupted"),
        "{outcome}"
    );
    assert!(
        outcome["new"]["sent"].as_u64() > Some(0),
        "what was measured is there: {outcome}"
    );
    lab.await_green(GREEN);
    // The lock was given back.
    text(&lab.cluster("apply", &["--yes"]), &["apply"]);
}

/// SIGKILL to the operator: the timers on the machines do the rest.
fn killed(lab: &Lab, scenario: &str, fault: fn(&Lab) -> Option<String>) {
    let report = lab.folder.join(scenario);
    let mut drill = begin(lab, scenario, &report, "broken");
    assert!(fault(lab).is_some(), "{scenario}: it was broken");
    signal(&drill, "KILL");
    let _ = drill.wait();
    let killed = Instant::now();
    while let Some(left) = fault(lab) {
        assert!(
            killed.elapsed() < DEADMAN,
            "{scenario}: {left} {DEADMAN:?} after the operator died"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    eprintln!("{scenario}: operator killed, fault gone {:.1?} later", killed.elapsed());
    let outcome = outcome(&report);
    assert_eq!(outcome["name"], scenario);
    assert!(
        outcome["why"]
            .as_str()
            .unwrap_or_default()
            .contains("the drill ended before"),
        "{outcome}"
    );
    lab.await_green(GREEN);
}

/// A drill that has come to this event: `broken`, its fault is there.
fn begin(lab: &Lab, scenario: &str, report: &Path, event: &str) -> Child {
    let arguments = [
        "run",
        "-f",
        &lab.cluster_file().display().to_string(),
        "--yes",
        "--report",
        &report.display().to_string(),
        scenario,
    ];
    let log = std::fs::File::create(lab.folder.join(format!("{scenario}.out"))).expect("log");
    let child = Command::new(quorate_tests::quorate().expect("checked before"))
        .arg("drill")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .expect("start drill");
    let journal = report.join("journal.jsonl");
    let begun = Instant::now();
    while !std::fs::read_to_string(&journal)
        .unwrap_or_default()
        .contains(&format!(r#""event":"{event}""#))
    {
        assert!(begun.elapsed() < Duration::from_secs(90), "{scenario}: never {event}");
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}

fn signal(child: &Child, name: &str) {
    let _ = Command::new("kill")
        .arg(format!("-{name}"))
        .arg(child.id().to_string())
        .status();
}

fn outcome(report: &Path) -> Value {
    let text = std::fs::read(report.join("report.json")).expect("a report although the drill ended");
    let report: Value = serde_json::from_slice(&text).expect("JSON");
    report["scenarios"][0].clone()
}

/// What the first of the machines says that is not nothing.
fn somewhere(lab: &Lab, command: &str) -> Option<String> {
    ["m1", "m2", "m3"].into_iter().find_map(|machine| {
        let said = lab.ssh(machine, &["sh", "-c", &format!("'{command}; true'")]);
        (!said.trim().is_empty()).then(|| format!("{machine}: {}", said.trim()))
    })
}

fn stopped(lab: &Lab) -> Option<String> {
    somewhere(
        lab,
        "systemctl is-active --quiet kube-scheduler || echo kube-scheduler is stopped",
    )
}

fn cut_off(lab: &Lab) -> Option<String> {
    somewhere(lab, "nft list tables | grep quorate_drill")
}

fn frozen(lab: &Lab) -> Option<String> {
    somewhere(
        lab,
        "for pid in $(pidof kube-apiserver); do grep -H stopped /proc/$pid/status; done",
    )
}

fn mounted(lab: &Lab) -> Option<String> {
    somewhere(lab, "grep ^quorate-drill /proc/mounts")
}

fn off(lab: &Lab) -> Option<String> {
    let reached = lab.run(&["lab", "ssh", &lab.name, "m4", "--", "true"]);
    (!reached.status.success()).then(|| "m4 does not answer".into())
}
