//! `report.md`.

use std::fmt::Write;

use super::table::ms;
use super::{Outcome, Report};

pub(super) fn render(report: &Report) -> String {
    let mut text = format!("# Drill of {}\n\n{}.\n\n", report.cluster, report.held());
    text.push_str("Times are those clients saw. *New* is a connection per request, *reused* one HTTP/2 connection for all; failed means no good answer within five seconds. Of the failed reads those under way when a machine lost its power are named besides, as cut off: what it had taken, nobody else can answer.\n\n");
    text.push_str("| | scenario | row | new: failed / sent | worst | p99 | outage | reused: failed / sent | worst | watch: worst | writes: acknowledged | lost | green after |\n");
    text.push_str("|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for outcome in &report.scenarios {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} / {} | {} | {} | {} | {} / {} | {} | {} | {} | {} | {} |",
            match outcome.word() {
                "skip" => "skipped",
                "FAIL" => "**FAIL**",
                word => word,
            },
            outcome.name,
            outcome.row,
            outcome.new.failed,
            outcome.new.sent,
            ms(outcome.new.worst_ms),
            ms(outcome.new.p99_ms),
            ms(outcome.new.outage_ms),
            outcome.reused.failed,
            outcome.reused.sent,
            ms(outcome.reused.worst_ms),
            ms(outcome.watch.worst_ms),
            outcome.writes.acknowledged,
            outcome.writes.lost,
            outcome.details.recovery_ms.map_or("never".into(), ms),
        );
    }
    for outcome in &report.scenarios {
        section(&mut text, outcome);
    }
    text
}

fn section(text: &mut String, outcome: &Outcome) {
    let _ = write!(text, "\n## {}\n\n{}", outcome.name, capital(&outcome.details.what));
    if outcome.details.targets.is_empty() {
        // Nobody knew yet where it would be.
        let _ = writeln!(text, ".\n\n{}", capital(&outcome.why));
        return;
    }
    let _ = write!(text, ", on {}.", outcome.details.targets.join(", "));
    let _ = writeln!(
        text,
        " Taken back after {}.",
        ms(u64::try_from(outcome.details.reverted_ms).unwrap_or(0))
    );
    if outcome.skipped || outcome.ok {
        if !outcome.why.is_empty() {
            let _ = writeln!(text, "\n{}", capital(&outcome.why));
        }
    } else {
        let _ = writeln!(text, "\n**Did not hold: {}**", outcome.why);
    }
    let _ = writeln!(
        text,
        "\n| | sent | failed | of these cut off | tried again | first failure | last failure |\n|---|--:|--:|--:|--:|--:|--:|"
    );
    for (name, series) in [
        ("new", &outcome.new),
        ("reused", &outcome.reused),
        ("watch", &outcome.watch),
    ] {
        let at = |ms: Option<i64>| ms.map_or("–".into(), |ms| format!("{ms} ms"));
        let _ = writeln!(
            text,
            "| {name} | {} | {} | {} | {} | {} | {} |",
            series.sent,
            series.failed,
            series.interrupted,
            series.retried,
            at(series.first_failure_ms),
            at(series.last_failure_ms)
        );
    }
    let _ = writeln!(
        text,
        "\nWrites not acknowledged: {}; the slowest took {}.",
        outcome.writes.failed,
        ms(outcome.writes.worst_ms)
    );
    for vantage in &outcome.details.vantages {
        let late = vantage.samples.iter().map(|sample| sample.late_us).max().unwrap_or(0);
        let _ = writeln!(
            text,
            "\nSeen from {}: {} requests, its clock known to {:.1} ms; itself late by {:.1} ms at most, which counts in the times.",
            vantage.name,
            vantage.samples.len(),
            vantage.clock_error_us as f64 / 1_000.0,
            late as f64 / 1_000.0
        );
    }
    let named = |name: &str| {
        if name.is_empty() {
            "nobody".to_owned()
        } else {
            name.to_owned()
        }
    };
    if !outcome.vip_owner.is_empty() {
        let line: Vec<String> = outcome
            .vip_owner
            .iter()
            .map(|owner| format!("{} at {} ms", named(&owner.owner), owner.at_ms))
            .collect();
        let _ = writeln!(text, "\nVIP: {}", line.join(", "));
    }
    for of in ["etcd", "kube-controller-manager", "kube-scheduler"] {
        let line: Vec<String> = outcome
            .leader
            .iter()
            .filter(|leader| leader.of == of)
            .map(|leader| format!("{} at {} ms", named(&leader.leader), leader.at_ms))
            .collect();
        if !line.is_empty() {
            let _ = writeln!(text, "\nLeader of {of}: {}", line.join(", "));
        }
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}
