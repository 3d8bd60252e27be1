//! Clocks agree, with the operator's and among each other.

use super::{Input, List};
use crate::fail;

/// Certificates are back-dated by five minutes; leave room for the operator's own clock.
const FROM_HERE_NS: i128 = 60_000_000_000;
/// Leases and logs are compared between machines; kubelets and etcd bear about this much.
const APART_NS: i64 = 5_000_000_000;
/// What a time service keeps easily.
const GOOD_NS: i64 = 500_000_000;
const HINT: &str = "set the clock (chronyc makestep); certificates depend on it";

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    for (machine, host) in input.hosts() {
        let skew = i128::from(host.clock.unix_ns) - i128::from(input.facts.taken_unix) * 1_000_000_000;
        list.require(
            "clock",
            &machine.name,
            skew.abs() <= FROM_HERE_NS,
            format!("{:+.1} s from here", skew as f64 / 1e9),
            HINT,
        );
    }
    let Some(measured) = input.measured.filter(|measured| measured.clocks.len() > 1) else {
        return;
    };
    let mut offsets: Vec<i64> = measured.clocks.values().map(|clock| clock.offset_ns).collect();
    offsets.sort_unstable();
    let median = offsets[offsets.len() / 2];
    let (mut far, mut off, mut widest) = (Vec::new(), Vec::new(), 0);
    for (name, clock) in &measured.clocks {
        let apart = clock.offset_ns.saturating_sub(median);
        // What the question itself took is no fault of the clock.
        let certain = apart.saturating_abs().saturating_sub(clock.error_ns);
        widest = widest.max(apart.saturating_abs());
        let text = format!("{name} {:+.2} s", apart as f64 / 1e9);
        if certain > APART_NS {
            far.push(text);
        } else if certain > GOOD_NS {
            off.push(text);
        }
    }
    if !far.is_empty() {
        let found = format!("from the others': {}", far.join(", "));
        list.note("clock-skew", "cluster", fail(found, HINT));
    } else if !off.is_empty() {
        list.warn(
            "clock-skew",
            "cluster",
            format!("from the others': {}", off.join(", ")),
            HINT,
        );
    } else {
        list.note("clock-skew", "cluster", Ok(format!("within {} ms", widest / 1_000_000)));
    }
}
