//! One file per family.

mod certificates;
mod composite;
mod control_plane;
mod disk;
mod etcd;
mod network;
mod node;
mod power;
mod vip;

use std::time::Duration;

use crate::holders::CONTESTED_MS;
use crate::scenario::{Fault, Limits, Moves, Part, Scenario, Target};

pub(crate) const FAMILIES: [&[Scenario]; 9] = [
    &control_plane::ALL,
    &etcd::ALL,
    &node::ALL,
    &power::ALL,
    &network::ALL,
    &disk::ALL,
    &certificates::ALL,
    &vip::ALL,
    &composite::ALL,
];

/// For a client that does not give up for five seconds a single machine's or program's death is a slow answer, never an
/// error.
/// Those on a connection of its own are freed within a second, then connect again.
const UNSEEN: Limits = Limits {
    new_worst_ms: Some(1_000),
    new_failed: Some(0),
    new_outage_ms: Some(1_000),
    reused_failed: Some(0),
    reused_outage_ms: Some(2_000),
    watch_worst_ms: Some(2_000),
    write_outage_ms: Some(2_000),
    vip: Moves::Never,
    vip_shared_ms: Some(CONTESTED_MS),
    leases: Moves::WithItsHolder(1),
    recovery_s: 120,
};
/// The VIP goes with its holder, and may come back.
const WITH_ITS_HOLDER: Moves = Moves::WithItsHolder(2);
/// A hung server is found by its health check: interval, timeout and two failures. One that waits for a hung etcd member
/// says so itself, two to four seconds later.
const HUNG: Limits = Limits {
    new_worst_ms: Some(5_000),
    new_outage_ms: Some(2_000),
    reused_outage_ms: Some(5_000),
    watch_worst_ms: Some(5_000),
    write_outage_ms: Some(5_000),
    ..UNSEEN
};
/// Elections take an election timeout (1 s) and a vote; `/readyz` asks etcd, and fails meanwhile.
const ELECTION: Limits = Limits {
    new_failed: None,
    new_outage_ms: Some(4_000),
    reused_failed: None,
    ..HUNG
};
/// Without a quorum nothing is promised but to come back.
const BACK: Limits = Limits::recovery(240);

/// No promise about clients while it lasts.
const REPORTED_ONLY: Limits = Limits::recovery(120);

/// The usual: one script on one machine for eight seconds.
const fn one(name: &'static str, row: u8, what: &'static str, parts: &'static [Part], limits: Limits) -> Scenario {
    Scenario {
        name,
        row,
        what,
        parts,
        hold: Duration::from_secs(8),
        limits,
        loses_quorum: false,
        needs: &[],
        clients_there: false,
        short: false,
    }
}

const fn script(target: Target, inject: &'static str, revert: &'static str) -> Part {
    Part {
        target,
        fault: Fault::Script {
            inject,
            revert,
            lasting: false,
        },
    }
}

/// One that a restart of the machine does not end.
const fn lasting(target: Target, inject: &'static str, revert: &'static str) -> Part {
    Part {
        target,
        fault: Fault::Script {
            inject,
            revert,
            lasting: true,
        },
    }
}

const fn power_cut(target: Target) -> Part {
    Part {
        target,
        fault: Fault::PowerCut,
    }
}

#[cfg(test)]
mod tests;
