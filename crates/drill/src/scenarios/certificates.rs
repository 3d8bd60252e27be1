//! Certificates that have expired although nobody noticed.

use super::*;
use crate::scenario::Need;

pub(super) const ALL: [Scenario; 2] = [
    Scenario {
        needs: &[Need::VipOnControlPlane],
        ..one(
            "api-server-certificate-expired",
            19,
            "kube-apiserver on the VIP's holder restarts with a certificate that expired yesterday",
            &[Part {
                target: Target::VipHolder,
                fault: Fault::Expired {
                    certificate: "apiserver",
                    unit: "kube-apiserver",
                },
            }],
            UNSEEN,
        )
    },
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        ..one(
            "etcd-peer-certificate-expired",
            19,
            "a following etcd member restarts with a peer certificate that expired yesterday",
            &[Part {
                target: Target::EtcdFollower,
                fault: Fault::Expired {
                    certificate: "etcd-peer",
                    unit: "etcd",
                },
            }],
            HUNG,
        )
    },
];
