//! Plans, notes and findings as people read them.

use std::fmt::Write;

use quorate_plan::{Action, Before, FileChange, Note, Plan, Step, file_diff};

/// How much of a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Steps, reasons, diffs of files that change.
    Normal,
    /// Every reason, and the content of new files as well.
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
            let shown = match detail {
                Detail::Normal => step.why.len().min(REASONS),
                Detail::Full => step.why.len(),
            };
            for reason in &step.why[..shown] {
                let _ = writeln!(text, "    {:width$}  because {reason}", "");
            }
            if step.why.len() > shown {
                let _ = writeln!(text, "    {:width$}  and {} more reasons", "", step.why.len() - shown);
            }
            for change in
                files(step).filter(|change| detail == Detail::Full || !matches!(change.before, Before::Absent))
            {
                for line in file_diff(change).lines() {
                    let _ = writeln!(text, "      {line}");
                }
            }
        }
        text.push('\n');
    }
    text.push_str(&summary(plan));
    text
}

/// `Plan: 12 steps on 5 machines (files: 30 new, 1 changed; units: 9 started, 1 restarted).`
pub(crate) fn summary(plan: &Plan) -> String {
    if plan.is_empty() {
        return format!("Plan: 0 steps. Cluster {} is as its file says.\n", plan.cluster);
    }
    let machines: std::collections::BTreeSet<&str> = plan.steps().map(|step| step.machine.as_str()).collect();
    let (mut new, mut changed, mut removed, mut started, mut restarted, mut reloaded, mut stopped, mut objects) =
        (0, 0, 0, 0, 0, 0, 0, 0);
    for step in plan.steps() {
        match &step.action {
            Action::Files { files } => {
                let absent = files
                    .iter()
                    .filter(|file| matches!(file.before, Before::Absent))
                    .count();
                new += absent;
                changed += files.len() - absent;
            }
            Action::Remove { paths, .. } => removed += paths.len(),
            Action::Units {
                start,
                restart,
                reload_units,
                stop,
                ..
            } => {
                started += start.len();
                restarted += restart.len();
                reloaded += reload_units.len();
                stopped += stop.len();
            }
            Action::Apply { objects: all } => objects += all.len(),
            _ => {}
        }
    }
    let mut parts = Vec::new();
    for (count, what) in [
        (new, "files created"),
        (changed, "files changed"),
        (removed, "files removed"),
        (started, "units started"),
        (restarted, "units restarted"),
        (reloaded, "units reloaded"),
        (stopped, "units stopped"),
        (objects, "objects applied"),
    ] {
        if count > 0 {
            parts.push(format!("{count} {what}"));
        }
    }
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

fn files(step: &Step) -> impl Iterator<Item = &FileChange> {
    let files: &[FileChange] = match &step.action {
        Action::Files { files } => files,
        _ => &[],
    };
    files.iter()
}

/// `+` adds, `~` changes, `-` removes, `!` restarts or touches membership.
fn sign(step: &Step) -> char {
    match &step.action {
        Action::Files { files } if files.iter().any(|file| !matches!(file.before, Before::Absent)) => '~',
        Action::Remove { .. }
        | Action::Delete { .. }
        | Action::Clean { .. }
        | Action::RemoveUsers { .. }
        | Action::Forget { .. }
        | Action::EtcdRemove { .. } => '-',
        Action::Units { restart, stop, .. } if !(restart.is_empty() && stop.is_empty()) => '!',
        Action::Units { reload_units, .. } if !reload_units.is_empty() => '~',
        Action::Sysctls { .. } | Action::Block { .. } | Action::SwapOff => '~',
        _ => '+',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_plan::{Content, Stage, Undo};

    #[test]
    fn a_full_plan_lists_every_reason_and_every_file() {
        let files = (1..=6).map(|n| FileChange {
            path: format!("/etc/{n}"),
            owner: "root".into(),
            mode: 0o644,
            content: Content::text(format!("content of {n}\n")),
            before: Before::Absent,
        });
        let step = Step {
            id: "prepare/m1/files".into(),
            machine: "m1".into(),
            title: "write 6 files".into(),
            why: (1..=6).map(|n| format!("/etc/{n} does not exist")).collect(),
            action: Action::Files { files: files.collect() },
            needs: Vec::new(),
            done_when: Vec::new(),
            undo: Undo::Kept,
            attempts: 1,
            essential: true,
        };
        let made = Plan {
            cluster: "demo".into(),
            kubernetes: "v1.36.3".into(),
            stages: vec![Stage {
                name: "prepare".into(),
                title: "machines are ready".into(),
                with_previous: false,
                steps: vec![step],
            }],
            notes: Vec::new(),
        };
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
