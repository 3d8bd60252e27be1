//! The table for terminals.

use super::{Outcome, Report};
use crate::observe::LEASES;

/// Lines of equal columns, header first; what did not hold, was skipped or allowed follows its line.
pub fn table(report: &Report) -> Vec<String> {
    let mut rows = vec![header()];
    rows.extend(report.scenarios.iter().map(row));
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut lines = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if (2..=11).contains(&column) {
                    format!("{cell:>width$}")
                } else {
                    format!("{cell:width$}")
                }
            })
            .collect();
        lines.push(cells.join("  ").trim_end().to_owned());
        if let Some(outcome) = number
            .checked_sub(1)
            .and_then(|index| report.scenarios.get(index))
            .filter(|outcome| !outcome.why.is_empty())
        {
            lines.push(format!("      {}", outcome.why));
        }
    }
    lines
}

fn header() -> Vec<String> {
    [
        "",
        "SCENARIO",
        "REQUESTS",
        "FAILED",
        "CUT OFF",
        "WORST",
        "OUTAGE",
        "REUSED",
        "WATCH",
        "WRITES",
        "LOST",
        "GREEN AFTER",
        "VIP",
        "ETCD LEADER",
        "LEASES",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn row(outcome: &Outcome) -> Vec<String> {
    let path = |names: Vec<&str>| {
        let mut short: Vec<&str> = Vec::new();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            if short.last() != Some(&name) {
                short.push(name);
            }
        }
        short.join("→")
    };
    vec![
        format!("{:4}", outcome.word()),
        outcome.name.clone(),
        (outcome.new.sent + outcome.reused.sent).to_string(),
        (outcome.new.failed + outcome.reused.failed).to_string(),
        (outcome.new.interrupted + outcome.reused.interrupted).to_string(),
        ms(outcome.new.worst_ms),
        ms(outcome.new.outage_ms),
        ms(outcome.reused.worst_ms),
        ms(outcome.watch.worst_ms),
        outcome.writes.acknowledged.to_string(),
        outcome.writes.lost.to_string(),
        outcome.details.recovery_ms.map_or("never".into(), ms),
        path(outcome.vip_owner.iter().map(|owner| owner.owner.as_str()).collect()),
        path(
            outcome
                .leader
                .iter()
                .filter(|leader| leader.of == "etcd")
                .map(|leader| leader.leader.as_str())
                .collect(),
        ),
        leases(outcome),
    ]
}

/// Those that moved: `kube-scheduler m1→m3 after 17.1 s`.
fn leases(outcome: &Outcome) -> String {
    let mut moved: Vec<String> = Vec::new();
    for name in LEASES {
        let held = outcome.leader.iter().filter(|leader| leader.of == name);
        let held: Vec<_> = held.filter(|leader| !leader.leader.is_empty()).collect();
        moved.extend(held.windows(2).filter(|pair| pair[1].at_ms > 0).map(|pair| {
            let after = pair[1].at_ms as f64 / 1_000.0;
            format!("{name} {}→{} after {after:.1} s", pair[0].leader, pair[1].leader)
        }));
    }
    moved.join(", ")
}

pub(super) fn ms(ms: u64) -> String {
    if ms < 10_000 {
        format!("{ms} ms")
    } else {
        format!("{:.1} s", ms as f64 / 1_000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Leader;

    #[test]
    fn leases_that_moved_are_shown_with_old_and_new_holder() {
        let leader = |of: &str, at_ms: i64, leader: &str| Leader {
            of: of.into(),
            at_ms,
            leader: leader.into(),
        };
        let outcome = Outcome {
            leader: vec![
                leader("etcd", -1_500, "m1"),
                leader("etcd", 300, "m2"),
                leader("kube-controller-manager", -1_600, "m1"),
                leader("kube-controller-manager", -200, "m2"),
                leader("kube-scheduler", -1_500, "m1"),
                leader("kube-scheduler", 9_511, ""),
                leader("kube-scheduler", 10_990, "m3"),
            ],
            ..Outcome::default()
        };
        assert_eq!(leases(&outcome), "kube-scheduler m1→m3 after 11.0 s");
        let report = Report {
            cluster: "demo".into(),
            seed: None,
            scenarios: vec![outcome],
        };
        let line = &table(&report)[1];
        assert!(line.ends_with("  kube-scheduler m1→m3 after 11.0 s"), "{line}");
    }
}
