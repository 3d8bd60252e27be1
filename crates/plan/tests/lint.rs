//! Each rule of the linter, broken once.

#![expect(clippy::disallowed_methods, reason = "a test reads the examples")]

mod fabricated;

use quorate_plan::lint::lint;
use quorate_plan::{Action, Condition, Content, Plan, Step, Undo, Wait, plan};

use crate::fabricated::{fresh, load};

/// What the smallest cluster's plan violates after `spoil`.
fn violations(spoil: impl Fn(&mut Plan)) -> Vec<(&'static str, String)> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/minimal.yaml");
    let spec = load(&std::fs::read_to_string(path).unwrap());
    let mut made = plan(&spec, &fresh(&spec));
    assert_eq!(lint(&made), []);
    spoil(&mut made);
    lint(&made)
        .into_iter()
        .map(|broken| (broken.rule, broken.step))
        .collect()
}

/// Adds steps to the last stage, in which nothing else runs.
fn added(steps: Vec<Step>) -> Vec<(&'static str, String)> {
    violations(|plan| plan.stages.last_mut().unwrap().steps.extend(steps.clone()))
}

fn one(plan: &mut Plan, is: impl Fn(&Step) -> bool) -> &mut Step {
    let mut steps = plan.stages.iter_mut().flat_map(|stage| &mut stage.steps);
    steps.find(|step| is(step)).unwrap()
}

fn step(id: &str, action: Action) -> Step {
    Step {
        id: id.into(),
        machine: "m1".into(),
        title: "spoil".into(),
        why: vec!["a test".into()],
        action,
        needs: Vec::new(),
        done_when: Vec::new(),
        undo: Undo::Nothing {
            because: "a test".into(),
        },
        attempts: 1,
        essential: true,
    }
}

fn awaited(mut step: Step) -> Step {
    step.done_when = vec![Wait {
        until: Condition::File { path: "/x".into() },
        timeout_ms: 1_000,
    }];
    step
}

fn run(exit_shows: Option<&str>) -> Action {
    Action::Run {
        argv: vec!["true".into()],
        stdin: None,
        timeout_ms: 1_000,
        exit_shows: exit_shows.map(str::to_owned),
    }
}

fn units(start: &[&str], restart: &[&str], stop: &[&str]) -> Action {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Action::Units {
        reload: false,
        enable: Vec::new(),
        disable: Vec::new(),
        stop: names(stop),
        start: names(start),
        restart: names(restart),
    }
}

fn learner(id: &str) -> Step {
    let action = Action::EtcdAddLearner {
        name: "m9".into(),
        peer_url: "https://10.77.0.19:2380".into(),
    };
    step(id, action)
}

#[test]
fn two_steps_of_one_id() {
    let twice = awaited(step("labels/m1/x", run(None)));
    assert_eq!(
        added(vec![twice.clone(), twice]),
        [("unique-ids", "labels/m1/x".into())]
    );
}

#[test]
fn a_need_that_does_not_come_before() {
    let mut early = awaited(step("labels/m1/x", run(None)));
    early.needs = vec!["labels/m1/y".into()];
    let late = awaited(step("labels/m1/y", run(None)));
    assert_eq!(added(vec![early, late]), [("needs-come-first", "labels/m1/x".into())]);
}

#[test]
fn two_members_at_a_time() {
    let (first, mut second) = (learner("labels/m1/x"), learner("labels/m1/y"));
    assert_eq!(
        added(vec![first.clone(), second.clone()]),
        [("one-etcd-member-at-a-time", "labels/m1/y".into())]
    );
    second.needs = vec![first.id.clone()];
    assert_eq!(added(vec![first, second]), []);
}

#[test]
fn two_api_servers_at_a_time() {
    let restart = || units(&[], &["kube-apiserver.service"], &[]);
    let steps = ["labels/m1/x", "labels/m2/x"].map(|id| awaited(step(id, restart())));
    assert_eq!(added(steps.to_vec()), [("rolling-restarts", "labels/m2/x".into())]);
}

#[test]
fn a_change_without_a_reason_or_an_undo() {
    let broken = violations(|plan| {
        let found = one(plan, |step| step.id == "labels/m1/nodes");
        found.why.clear();
        found.undo = Undo::Manual { hint: String::new() };
    });
    let id = || "labels/m1/nodes".to_owned();
    assert_eq!(
        broken,
        [("every-change-has-a-reason", id()), ("every-change-has-an-undo", id())]
    );
}

#[test]
fn a_key_everybody_may_read() {
    let broken = violations(|plan| {
        let found = one(plan, |step| step.id == "control-plane/m1/files");
        let Action::Files { files } = &mut found.action else {
            panic!("{found:?}")
        };
        let key = files
            .iter_mut()
            .find(|file| matches!(file.content, Content::Key { .. }));
        key.unwrap().mode = 0o644;
    });
    assert_eq!(broken, [("secrets-stay-private", "control-plane/m1/files".into())]);
}

#[test]
fn a_change_that_nothing_confirms() {
    let unconfirmed = [
        units(&["x.service"], &[], &[]),
        units(&[], &["x.service"], &[]),
        run(None),
        run(Some("")),
        Action::Await,
    ];
    for action in unconfirmed {
        let spoiled = step("labels/m1/x", action);
        let broken = [("every-change-is-confirmed", "labels/m1/x".to_owned())];
        assert_eq!(added(vec![spoiled.clone()]), broken, "{spoiled:?}");
        assert_eq!(added(vec![awaited(spoiled)]), []);
    }
    for action in [
        units(&[], &[], &["x.service"]),
        run(Some("it fails if it could not")),
        Action::SwapOff,
    ] {
        assert_eq!(added(vec![step("labels/m1/x", action)]), []);
    }
    let promote = Action::EtcdPromote { name: "m1".into() };
    let broken = added(vec![step("labels/m1/x", promote)]);
    assert_eq!(broken, [("every-change-is-confirmed", "labels/m1/x".into())]);
}

/// A learner is healthy only when it is promoted; without that nobody awaits it.
#[test]
fn a_learner_that_starts_is_awaited_by_its_promotion() {
    let start = || step("labels/m1/x", units(&["etcd.service"], &[], &[]));
    let mut promote = awaited(step("labels/m1/y", Action::EtcdPromote { name: "m1".into() }));
    promote.needs = vec!["labels/m1/x".into()];
    assert_eq!(added(vec![start(), promote.clone()]), []);
    promote.needs.clear();
    assert_eq!(
        added(vec![start(), promote]),
        [("every-change-is-confirmed", "labels/m1/x".into())]
    );
}
