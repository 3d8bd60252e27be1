//! The disk that holds etcd's data: how long its log waits for each entry. Never an obstacle: a slow disk makes a slow
//! cluster, and a busy one is only busy now.

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};

/// "99th percentile of fdatasync should be less than 10 ms" (etcd.io, "Hardware recommendations").
const GOOD_US: u32 = 10_000;

pub(super) fn check(input: &Input<'_>, machine: &Machine, _: &HostFacts, list: &mut List) {
    let Some(disk) = input.measured.and_then(|measured| measured.disks.get(&machine.name)) else {
        return;
    };
    let found = format!(
        "p99 {:.1} ms, median {:.1} ms of {} writes below {}",
        f64::from(disk.p99_us) / 1e3,
        f64::from(disk.p50_us) / 1e3,
        disk.writes,
        input.spec.etcd.data_dir
    );
    if disk.p99_us > GOOD_US {
        list.warn(
            "fsync",
            &machine.name,
            found,
            "etcd wants p99 below 10 ms: give etcd.dataDir a fast disk of its own",
        );
    } else {
        list.note("fsync", &machine.name, Ok(found));
    }
}
