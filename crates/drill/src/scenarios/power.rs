//! Machines lose their power, or are restarted by their administrator.

use super::*;
use crate::scenario::Need;

/// Nothing a client notices, not even as slowness.
const PLANNED: Limits = Limits {
    new_worst_ms: Some(250),
    new_outage_ms: Some(250),
    ..OFF
};
/// A machine without power holds nothing.
pub(super) const OFF: Limits = UNSEEN.vip(WITH_ITS_HOLDER, Some(CONTESTED_MS));

pub(super) const ALL: [Scenario; 6] = [
    Scenario {
        short: true,
        needs: &[Need::ThreeControlPlanes],
        ..one(
            "machine-off-each",
            7,
            "a control plane loses its power, one after the other",
            &[power_cut(Target::EachControlPlane)],
            OFF,
        )
    },
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        ..one(
            "machine-off-vip-holder",
            7,
            "the VIP's holder loses its power",
            &[power_cut(Target::VipHolder)],
            OFF,
        )
    },
    one(
        "machine-off-worker",
        7,
        "a worker loses its power",
        &[power_cut(Target::Worker)],
        UNSEEN,
    ),
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        ..one(
            "planned-restart-each",
            7,
            "drain, stop in order, power off and on, uncordon: one control plane after the other",
            &[Part {
                target: Target::EachControlPlane,
                fault: Fault::PlannedRestart,
            }],
            PLANNED,
        )
    },
    Scenario {
        loses_quorum: true,
        ..one(
            "quorum-lost",
            32,
            "a majority of the machines with an etcd member lose their power, and come back",
            &[power_cut(Target::EtcdMajority)],
            BACK,
        )
    },
    Scenario {
        loses_quorum: true,
        ..one(
            "cold-start",
            8,
            "every machine loses its power; all come back unattended",
            &[power_cut(Target::EveryMachine)],
            BACK,
        )
    },
];
