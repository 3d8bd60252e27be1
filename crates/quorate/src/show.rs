//! Plans, notes and findings as people read them.

use std::fmt::Write;

use quorate_plan::{Action, Before, FileChange, Note, Plan, Step, file_diff};

/// How much of a plan is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Steps, reasons, diffs of files that change.
    Normal,
    /// The content of new files as well.
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
            for reason in step.why.iter().take(REASONS) {
                let _ = writeln!(text, "    {:width$}  because {reason}", "");
            }
            if step.why.len() > REASONS {
                let _ = writeln!(text, "    {:width$}  and {} more reasons", "", step.why.len() - REASONS);
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
    let (mut new, mut changed, mut removed, mut started, mut restarted, mut stopped, mut objects) =
        (0, 0, 0, 0, 0, 0, 0);
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
                start, restart, stop, ..
            } => {
                started += start.len();
                restarted += restart.len();
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
        Action::Sysctls { .. } | Action::Block { .. } | Action::SwapOff => '~',
        _ => '+',
    }
}
