//! Two faults at once.

use super::*;
use crate::scenario::Need;

pub(super) const ALL: [Scenario; 2] = [
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        ..one(
            "machine-off-and-kubelet-killed",
            7,
            "the VIP's holder loses its power while a worker's kubelet dies",
            &[
                power_cut(Target::VipHolder),
                script(Target::Worker, "signal KILL kubelet", "start kubelet"),
            ],
            super::power::OFF,
        )
    },
    Scenario {
        needs: &[Need::VipOnControlPlane, Need::ThreeControlPlanes],
        ..one(
            "api-server-killed-and-etcd-follower-killed",
            2,
            "the API server on the VIP's holder and a following etcd member get SIGKILL at once",
            &[
                script(Target::VipHolder, "signal KILL kube-apiserver", "start kube-apiserver"),
                script(Target::EtcdFollower, "signal KILL etcd", "start etcd"),
            ],
            HUNG,
        )
    },
];
