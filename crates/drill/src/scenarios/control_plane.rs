//! API server, controller manager, scheduler.

use super::*;
use crate::scenario::Need;

const BACK_AGAIN: &str = "start kube-apiserver";

/// Its neighbours want it: when one of them restarts meanwhile, systemd starts it again and calls the stop canceled.
const STOPPED: &str = "stop kube-apiserver || true";

/// Longer than it takes another one to get the lease: whoever is killed is not to get it back.
const LEASE_TAKEN: Duration = Duration::from_secs(26);

pub(super) const ALL: [Scenario; 7] = [
    Scenario {
        short: true,
        needs: &[Need::VipOnControlPlane],
        ..one(
            "api-server-killed",
            1,
            "kube-apiserver gets SIGKILL on the VIP's holder",
            &[script(Target::VipHolder, "signal KILL kube-apiserver", BACK_AGAIN)],
            UNSEEN,
        )
    },
    one(
        "api-server-killed-each",
        1,
        "kube-apiserver gets SIGKILL, on one control plane after the other",
        &[script(
            Target::EachControlPlane,
            "signal KILL kube-apiserver",
            BACK_AGAIN,
        )],
        UNSEEN,
    ),
    Scenario {
        needs: &[Need::VipOnControlPlane],
        ..one(
            "api-server-hung",
            3,
            "kube-apiserver is frozen on the VIP's holder, its port stays open",
            &[script(
                Target::VipHolder,
                "signal STOP kube-apiserver",
                "thaw kube-apiserver",
            )],
            HUNG,
        )
    },
    one(
        "api-server-hung-each",
        3,
        "kube-apiserver is frozen, its port stays open, on one control plane after the other",
        &[script(
            Target::EachControlPlane,
            "signal STOP kube-apiserver",
            "thaw kube-apiserver",
        )],
        HUNG,
    ),
    Scenario {
        needs: &[Need::Units, Need::VipOnControlPlane],
        ..one(
            "api-server-stopped",
            1,
            "kube-apiserver is stopped in order on the VIP's holder",
            &[script(Target::VipHolder, STOPPED, BACK_AGAIN)],
            UNSEEN,
        )
    },
    Scenario {
        hold: LEASE_TAKEN,
        needs: &[Need::Units, Need::ThreeControlPlanes],
        ..one(
            "controller-manager-leader-killed",
            1,
            "the leading kube-controller-manager is killed and kept down; another takes its lease",
            &[script(
                Target::ControllerManagerLeader,
                "signal KILL kube-controller-manager; stop kube-controller-manager",
                "start kube-controller-manager",
            )],
            UNSEEN,
        )
    },
    Scenario {
        hold: LEASE_TAKEN,
        needs: &[Need::Units, Need::ThreeControlPlanes],
        ..one(
            "scheduler-leader-killed",
            1,
            "the leading kube-scheduler is killed and kept down; another takes its lease",
            &[script(
                Target::SchedulerLeader,
                "signal KILL kube-scheduler; stop kube-scheduler",
                "start kube-scheduler",
            )],
            UNSEEN,
        )
    },
];
