//! Plans, notes and findings as people read them.

use std::collections::BTreeMap;
use std::fmt::Write;

use quorate_plan::{Action, Change, ChangeKind, Note, Plan, Step, changes};
use serde_json::{Value, json};

/// How much of a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Steps, reasons, diffs of files and objects that change.
    Normal,
    /// Every reason, and the content of new files and objects as well.
    Full,
}

/// Reasons shown per step before the rest is counted.
const REASONS: usize = 4;

pub(crate) fn plan(plan: &Plan, detail: Detail) -> String {
    let mut text = String::new();
    for stage in &plan.stages {
        let _ = writeln!(text, "{} — {}", stage.name, stage.title);
        let width = stage.steps.iter().map(|step| step.machine.len()).max().unwrap_or(0);
        for step in &stage.steps {
            let _ = writeln!(text, "  {} {:width$}  {}", sign(step), step.machine, step.title);
            let reasons = match detail {
                Detail::Normal => step.why.len().min(REASONS),
                Detail::Full => step.why.len(),
            };
            for reason in &step.why[..reasons] {
                let _ = writeln!(text, "    {:width$}  because {reason}", "");
            }
            if step.why.len() > reasons {
                let _ = writeln!(text, "    {:width$}  and {} more reasons", "", step.why.len() - reasons);
            }
            for change in shown(step, detail) {
                for line in change.diff().lines() {
                    let _ = writeln!(text, "      {line}");
                }
            }
        }
        text.push('\n');
    }
    text.push_str(&summary(plan));
    text
}

/// The plan as data, and with each step `changes`: what a person is shown of its files and objects.
pub(crate) fn json(plan: &Plan, detail: Detail) -> serde_json::Result<Value> {
    let mut all = serde_json::to_value(plan)?;
    for (stage, of) in plan.stages.iter().enumerate() {
        for (step, of) in of.steps.iter().enumerate() {
            let changes = shown(of, detail)
                .map(|change| json!({"kind": change.kind, "path": change.path, "diff": change.diff()}));
            all["stages"][stage]["steps"][step]["changes"] = changes.collect();
        }
    }
    Ok(all)
}

/// New files and objects are named by the step's reasons; their content is shown on request.
fn shown(step: &Step, detail: Detail) -> impl Iterator<Item = Change<'_>> {
    changes(step)
        .into_iter()
        .filter(move |change| detail == Detail::Full || change.kind != ChangeKind::Created)
}

/// In this order.
const COUNTED: [&str; 10] = [
    "files created",
    "files changed",
    "files removed",
    "units started",
    "units restarted",
    "units reloaded",
    "units stopped",
    "objects created",
    "objects changed",
    "objects deleted",
];

/// `what` begins with a plural.
fn counted(count: usize, what: &str) -> String {
    match what.split_once("s ") {
        Some((one, done)) if count == 1 => format!("1 {one} {done}"),
        _ => format!("{count} {what}"),
    }
}

/// `Plan: 12 steps on 5 machines: 30 files created, 9 units started.`
pub(crate) fn summary(plan: &Plan) -> String {
    if plan.is_empty() {
        return format!("Plan: 0 steps. Cluster {} is as its file says.\n", plan.cluster);
    }
    let machines: std::collections::BTreeSet<&str> = plan.steps().map(|step| step.machine.as_str()).collect();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut count = |what, more| *counts.entry(what).or_default() += more;
    for step in plan.steps() {
        let object = matches!(step.action, Action::Apply { .. } | Action::Delete { .. });
        for change in changes(step) {
            let what = match (object, change.kind) {
                (false, ChangeKind::Created) => "files created",
                (false, ChangeKind::Changed) => "files changed",
                (false, ChangeKind::Removed) => "files removed",
                (true, ChangeKind::Created) => "objects created",
                (true, ChangeKind::Changed) => "objects changed",
                (true, ChangeKind::Removed) => "objects deleted",
            };
            count(what, 1);
        }
        if let Action::Units {
            start,
            restart,
            reload_units,
            stop,
            ..
        } = &step.action
        {
            count("units started", start.len());
            count("units restarted", restart.len());
            count("units reloaded", reload_units.len());
            count("units stopped", stop.len());
        }
    }
    let parts: Vec<String> = COUNTED
        .iter()
        .filter_map(|what| Some((what, counts.get(what).filter(|count| **count > 0)?)))
        .map(|(what, count)| counted(*count, what))
        .collect();
    let details = if parts.is_empty() {
        String::new()
    } else {
        format!(": {}", parts.join(", "))
    };
    format!(
        "Plan: {} steps on {} machines{details}.\n",
        plan.step_count(),
        machines.len()
    )
}

pub(crate) fn notes(notes: &[Note]) -> String {
    let mut text = String::new();
    for note in notes {
        let machine = note
            .machine
            .as_ref()
            .map_or(String::new(), |machine| format!("{machine}: "));
        let _ = writeln!(text, "note: {machine}{}", note.message);
        if let Some(hint) = &note.hint {
            let _ = writeln!(text, "hint: {hint}");
        }
    }
    text
}

/// `+` adds, `~` changes, `-` removes, `!` restarts or touches membership.
fn sign(step: &Step) -> char {
    match &step.action {
        Action::Clean { .. } | Action::RemoveUsers { .. } | Action::Forget { .. } | Action::EtcdRemove { .. } => '-',
        Action::Units { restart, stop, .. } if !(restart.is_empty() && stop.is_empty()) => '!',
        Action::Units { reload_units, .. } if !reload_units.is_empty() => '~',
        Action::Sysctls { .. } | Action::SwapOff => '~',
        _ => {
            let kinds: Vec<ChangeKind> = changes(step).iter().map(|change| change.kind).collect();
            if kinds.contains(&ChangeKind::Changed) {
                '~'
            } else if kinds.contains(&ChangeKind::Removed) {
                '-'
            } else {
                '+'
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_plan::{ApiObject, Before, Content, FileChange, Stage, Undo};

    fn step(action: Action, why: Vec<String>) -> Step {
        Step {
            id: "prepare/m1/files".into(),
            machine: "m1".into(),
            title: "write 6 files".into(),
            why,
            action,
            needs: Vec::new(),
            done_when: Vec::new(),
            undo: Undo::Kept,
            attempts: 1,
            essential: true,
        }
    }

    fn of(steps: Vec<Step>) -> Plan {
        Plan {
            cluster: "demo".into(),
            kubernetes: "v1.36.3".into(),
            stages: vec![Stage {
                name: "prepare".into(),
                title: "machines are ready".into(),
                with_previous: false,
                steps,
            }],
            notes: Vec::new(),
        }
    }

    fn object(name: &str, before: Option<Value>) -> ApiObject {
        ApiObject {
            path: format!("/api/v1/namespaces/kube-system/configmaps/{name}"),
            body: json!({"kind": "ConfigMap", "data": {"port": "54"}}),
            secrets: Vec::new(),
            before,
        }
    }

    #[test]
    fn changed_objects_and_blocks_are_shown_as_diffs_and_what_goes_is_named() {
        let hosts = Action::Block {
            path: "/etc/hosts".into(),
            marker: "quorate".into(),
            content: "10.0.0.1 m1\n".into(),
            before: Before::Text {
                text: "127.0.0.1 localhost\n".into(),
            },
        };
        let live = json!({"kind": "ConfigMap", "data": {"port": "53"}, "metadata": {"uid": "1"}});
        let objects = vec![object("old", Some(live)), object("new", None)];
        let deleted = Action::Delete {
            paths: vec!["/api/v1/nodes/m9".into()],
        };
        let why = || vec!["it differs".to_owned()];
        let made = of(vec![
            step(hosts, why()),
            step(Action::Apply { objects }, why()),
            step(deleted, why()),
        ]);
        let normal = plan(&made, Detail::Normal);
        for part in [
            "--- /etc/hosts\n",
            "\n       127.0.0.1 localhost\n      +# BEGIN quorate\n      +10.0.0.1 m1\n",
            "--- /api/v1/namespaces/kube-system/configmaps/old\n",
            "--- /api/v1/nodes/m9\n      +++ /dev/null\n",
            "1 file changed, 1 object created, 1 object changed, 1 object deleted",
        ] {
            assert!(normal.contains(part), "{part}\n{normal}");
        }
        assert!(!normal.contains("configmaps/new"), "{normal}");
        assert!(normal.contains("  ~ m1") && normal.contains("  - m1"), "{normal}");
        assert!(plan(&made, Detail::Full).contains("+++ /api/v1/namespaces/kube-system/configmaps/new\n"));

        let data = json(&made, Detail::Normal).unwrap();
        let changes = |step: usize| data["stages"][0]["steps"][step]["changes"].clone();
        assert_eq!(changes(0)[0]["kind"], "changed");
        assert_eq!(changes(1).as_array().unwrap().len(), 1);
        assert!(changes(1)[0]["diff"].as_str().unwrap().contains("53"));
        assert_eq!(changes(2)[0]["kind"], "removed");
        // The plan itself is as it was.
        assert_eq!(serde_json::from_value::<Plan>(data).unwrap(), made);
    }

    #[test]
    fn a_full_plan_lists_every_reason_and_every_file() {
        let files = (1..=6).map(|n| FileChange {
            path: format!("/etc/{n}"),
            owner: "root".into(),
            mode: 0o644,
            content: Content::text(format!("content of {n}\n")),
            before: Before::Absent,
        });
        let why = (1..=6).map(|n| format!("/etc/{n} does not exist")).collect();
        let made = of(vec![step(Action::Files { files: files.collect() }, why)]);
        let normal = plan(&made, Detail::Normal);
        assert!(
            normal.contains("because /etc/4 ") && !normal.contains("because /etc/5 "),
            "{normal}"
        );
        assert!(
            normal.contains("and 2 more reasons") && !normal.contains("content of"),
            "{normal}"
        );
        let full = plan(&made, Detail::Full);
        for n in 1..=6 {
            assert!(full.contains(&format!("because /etc/{n} does not exist\n")), "{full}");
            assert!(full.contains(&format!("content of {n}")), "{full}");
        }
        assert!(!full.contains("more reasons"), "{full}");
    }
}
