//! `report.html`: one file, nothing fetched. Data as JSON, drawn by a script in the page.

use std::io;

use serde_json::{Value, json};

use super::{Outcome, Report};
use crate::probe::Kind;

const PAGE: &str = include_str!("page.html");

pub(super) fn render(report: &Report) -> io::Result<String> {
    let data =
        json!({"cluster": report.cluster, "scenarios": report.scenarios.iter().map(scenario).collect::<Vec<_>>()});
    // Inside a script element nothing but its end tag has a meaning.
    let data = serde_json::to_string(&data)?.replace("</", "<\\/");
    Ok(PAGE.replace("\"@DATA@\"", &data))
}

fn scenario(outcome: &Outcome) -> Value {
    let details = &outcome.details;
    let samples: Vec<Value> = details
        .vantages
        .iter()
        .enumerate()
        .flat_map(|(vantage, seen)| {
            seen.samples.iter().map(move |sample| {
                let kind = match sample.kind {
                    Kind::New => 0,
                    Kind::Reused => 1,
                    Kind::Write => 2,
                    Kind::Watch => 3,
                };
                let at = (sample.at_us - details.fault_us) / 1_000;
                json!([
                    at,
                    sample.took_us as f64 / 1_000.0,
                    u8::from(sample.ok),
                    kind,
                    vantage,
                    sample.error
                ])
            })
        })
        .collect();
    json!({
        "name": outcome.name,
        "row": outcome.row,
        "ok": outcome.ok,
        "why": outcome.why,
        "skipped": outcome.skipped,
        "what": details.what,
        "targets": details.targets,
        "reverted": details.reverted_ms,
        "recovery": details.recovery_ms,
        "new": outcome.new,
        "reused": outcome.reused,
        "watch": outcome.watch,
        "writes": outcome.writes,
        "vip": outcome.vip_owner,
        "leader": outcome.leader,
        "vantages": details.vantages.iter().map(|vantage| vantage.name.as_str()).collect::<Vec<_>>(),
        "samples": samples,
    })
}
