//! Rules every plan must keep, whoever made it. The planner does not check itself: this knows nothing of how plans are made.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::{Action, Condition, Content, Plan, Step, Undo};

/// A rule a plan breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub rule: &'static str,
    pub step: String,
    pub message: String,
}

/// All violations, in the order of the plan.
pub fn lint(plan: &Plan) -> Vec<Violation> {
    let order = Order::of(plan);
    let rules: [(&'static str, Rule); 9] = [
        ("unique-ids", unique_ids),
        ("needs-come-first", needs_come_first),
        ("machines-keep-the-order-of-stages", machines_keep_the_order_of_stages),
        ("one-etcd-member-at-a-time", one_etcd_member_at_a_time),
        ("rolling-restarts", rolling_restarts),
        ("every-change-has-a-reason", has_reason),
        ("every-change-has-an-undo", has_undo),
        ("secrets-stay-private", secrets_stay_private),
        ("every-change-is-confirmed", is_confirmed),
    ];
    rules
        .into_iter()
        .flat_map(|(rule, check)| {
            check(plan, &order)
                .into_iter()
                .map(move |(step, message)| Violation { rule, step, message })
        })
        .collect()
}

type Rule = fn(&Plan, &Order<'_>) -> Vec<(String, String)>;

/// Which steps are certainly done before which.
struct Order<'a> {
    wave: BTreeMap<&'a str, usize>,
    needs: BTreeMap<&'a str, &'a [String]>,
}

impl<'a> Order<'a> {
    fn of(plan: &'a Plan) -> Self {
        let waves = plan.waves().enumerate();
        Self {
            wave: waves
                .flat_map(|(index, wave)| wave.iter().map(move |stage| (index, stage)))
                .flat_map(|(index, stage)| stage.steps.iter().map(move |step| (step.id.as_str(), index)))
                .collect(),
            needs: plan
                .steps()
                .map(|step| (step.id.as_str(), step.needs.as_slice()))
                .collect(),
        }
    }

    /// `first` is done before `second` starts.
    fn before(&self, first: &str, second: &str) -> bool {
        if self.wave.get(first) < self.wave.get(second) {
            return true;
        }
        let mut seen = BTreeSet::new();
        let mut open = vec![second];
        while let Some(step) = open.pop() {
            for need in self.needs.get(step).copied().unwrap_or_default() {
                if need == first {
                    return true;
                }
                if seen.insert(need.as_str()) {
                    open.push(need);
                }
            }
        }
        false
    }

    /// Pairs of `steps` that may run at the same time.
    fn concurrent<'s>(&self, steps: &[&'s Step]) -> Vec<(&'s str, &'s str)> {
        let mut pairs = Vec::new();
        for (index, first) in steps.iter().enumerate() {
            for second in &steps[index + 1..] {
                if !self.before(&first.id, &second.id) && !self.before(&second.id, &first.id) {
                    pairs.push((first.id.as_str(), second.id.as_str()));
                }
            }
        }
        pairs
    }
}

fn unique_ids(plan: &Plan, _: &Order<'_>) -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    plan.steps()
        .filter(|step| !seen.insert(&step.id))
        .map(|step| (step.id.clone(), "another step has this id".to_owned()))
        .collect()
}

/// Every need names a step of an earlier stage, or an earlier step of the same one: so there are no cycles either.
fn needs_come_first(plan: &Plan, _: &Order<'_>) -> Vec<(String, String)> {
    let mut seen = BTreeSet::new();
    let mut broken = Vec::new();
    for step in plan.steps() {
        broken.extend(
            step.needs
                .iter()
                .filter(|need| !seen.contains(need.as_str()))
                .map(|need| (step.id.clone(), format!("needs {need}, which does not come before it"))),
        );
        seen.insert(step.id.as_str());
    }
    broken
}

/// Stages may run together; what they change on one machine is still changed in their order.
fn machines_keep_the_order_of_stages(plan: &Plan, order: &Order<'_>) -> Vec<(String, String)> {
    let mut broken = Vec::new();
    for wave in plan.waves().filter(|wave| wave.len() > 1) {
        let mut earlier: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for stage in wave {
            let steps = stage
                .steps
                .iter()
                .filter_map(|step| Some((step.concerns()?, step.id.as_str())));
            for (machine, step) in steps.clone() {
                let unordered = earlier.get(machine).into_iter().flatten();
                broken.extend(
                    unordered
                        .filter(|first| !order.before(first, step))
                        .map(|first| (step.to_owned(), format!("may run before {first}"))),
                );
            }
            for (machine, step) in steps {
                earlier.entry(machine).or_default().push(step);
            }
        }
    }
    broken
}

fn one_etcd_member_at_a_time(plan: &Plan, order: &Order<'_>) -> Vec<(String, String)> {
    let changes: Vec<&Step> = plan
        .steps()
        .filter(|step| {
            matches!(step.action, Action::EtcdAddLearner { .. } | Action::EtcdPromote { .. } | Action::EtcdRemove { .. })
                || is_kubeadms_member(step)
                || matches!(&step.action, Action::Units { restart, stop, .. } if restart.iter().chain(stop).any(|unit| unit == "etcd.service") && !is_reset(plan))
        })
        .collect();
    order
        .concurrent(&changes)
        .into_iter()
        .map(|(first, second)| (second.to_owned(), format!("may run at the same time as {first}")))
        .collect()
}

/// kubeadm changes membership or the member itself, and the step awaits that member.
fn is_kubeadms_member(step: &Step) -> bool {
    matches!(&step.action, Action::Run { .. })
        && step
            .done_when
            .iter()
            .any(|wait| matches!(wait.until, Condition::EtcdMember { .. }))
}

fn rolling_restarts(plan: &Plan, order: &Order<'_>) -> Vec<(String, String)> {
    let restarts: Vec<&Step> = plan
        .steps()
        .filter(|step| match &step.action {
            Action::Units { restart, .. } => restart.iter().any(|unit| unit == "kube-apiserver.service"),
            Action::Run { argv, .. } => argv.iter().any(|word| word == "apiserver"),
            _ => false,
        })
        .collect();
    order
        .concurrent(&restarts)
        .into_iter()
        .map(|(first, second)| (second.to_owned(), format!("restarts an API server while {first} does")))
        .collect()
}

fn has_reason(plan: &Plan, _: &Order<'_>) -> Vec<(String, String)> {
    plan.steps()
        .filter(|step| step.why.is_empty())
        .map(|step| (step.id.clone(), "says no reason".to_owned()))
        .collect()
}

fn has_undo(plan: &Plan, _: &Order<'_>) -> Vec<(String, String)> {
    plan.steps()
        .filter(|step| match &step.undo {
            Undo::Nothing { because } => because.is_empty(),
            Undo::Manual { hint } => hint.is_empty(),
            Undo::Kept | Undo::Units | Undo::Objects => false,
        })
        .map(|step| {
            (
                step.id.clone(),
                "says neither how it is taken back nor why it need not be".to_owned(),
            )
        })
        .collect()
}

fn secrets_stay_private(plan: &Plan, _: &Order<'_>) -> Vec<(String, String)> {
    let files = plan.steps().filter_map(|step| match &step.action {
        Action::Files { files } => Some((step, files)),
        _ => None,
    });
    files
        .flat_map(|(step, files)| files.iter().map(move |file| (step, file)))
        .filter(|(_, file)| holds_secret(&file.content) && file.mode & 0o077 != 0)
        .map(|(step, file)| {
            (
                step.id.clone(),
                format!("{} holds a secret and has mode {:04o}", file.path, file.mode),
            )
        })
        .collect()
}

fn holds_secret(content: &Content) -> bool {
    match content {
        Content::Template { secrets, .. } => secrets
            .iter()
            .any(|id| *id != quorate_facts::SecretId::ServiceAccountPublicKey),
        other => other.is_secret(),
    }
}

/// A change that nobody sees through is a failure found too late.
fn is_confirmed(plan: &Plan, _: &Order<'_>) -> Vec<(String, String)> {
    plan.steps()
        .filter(|step| step.done_when.is_empty() && step.action.confirmed_by().is_none_or(str::is_empty))
        .filter(|step| !step.needs_promotion(plan))
        .map(|step| {
            (
                step.id.clone(),
                "waits for nothing, and says no other way to know that it had its effect".to_owned(),
            )
        })
        .collect()
}

fn is_reset(plan: &Plan) -> bool {
    plan.stages.first().is_some_and(|stage| stage.name == "reset")
}

impl Step {
    /// A learner cannot be healthy before it is promoted; the promotion is what awaits it.
    fn needs_promotion(&self, plan: &Plan) -> bool {
        plan.steps()
            .any(|other| matches!(other.action, Action::EtcdPromote { .. }) && other.needs.contains(&self.id))
    }
}
