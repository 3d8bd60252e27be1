//! Between machines: how long a small packet takes there and back, the fastest of three.

use quorate_facts::Echoed;

use super::{Input, List};
use crate::fail;

/// Members agree on every write; more than this is felt in each.
const GOOD_US: u32 = 10_000;
pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let Some(measured) = input.measured else { return };
    let members = input.spec.etcd_members();
    // Members that are farther apart than a heartbeat elect leaders over and over (etcd.io, "Tuning").
    let etcd = &input.spec.etcd;
    let heartbeat_us = etcd.heartbeat_ms() * 1_000;
    let is_member = |name: &str| members.iter().any(|member| member.name == name);
    let round_trip = |one: &Echoed| {
        let smallest = one.echoes.iter().min_by_key(|echo| echo.size)?;
        Some((smallest.us?, one.from.clone(), one.to.clone()))
    };
    let mut all: Vec<_> = measured.echoed.iter().filter_map(round_trip).collect();
    all.sort();
    let Some((slowest, from, to)) = all.last() else { return };
    let text = |us: u32, from: &str, to: &str| format!("{:.1} ms between {from} and {to}", f64::from(us) / 1e3);
    let apart = all
        .iter()
        .rev()
        .find(|(us, from, to)| *us > heartbeat_us && is_member(from) && is_member(to));
    if let Some((us, from, to)) = apart {
        let found = text(*us, from, to);
        let hint = format!(
            "with `etcd.electionTimeout: {}ms` members must be within {} ms of each other; place them nearer, or let \
             them wait at least ten round trips",
            etcd.election_timeout_ms,
            etcd.heartbeat_ms()
        );
        list.note("latency", "cluster", fail(found, hint));
    } else if *slowest > GOOD_US {
        let hint = "above 10 ms every write is slower; keep control planes in one place";
        list.warn("latency", "cluster", text(*slowest, from, to), hint);
    } else {
        list.note(
            "latency",
            "cluster",
            Ok(format!("at most {}", text(*slowest, from, to))),
        );
    }
}
