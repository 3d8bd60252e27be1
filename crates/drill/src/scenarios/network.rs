//! Partitions, loss, and half of a network. The operator's own connection is left alone: it is how the fault ends.

use super::*;
use crate::scenario::Need;

const BOTH_WAYS: &str = "nft 'table inet quorate_drill {
  chain in { type filter hook prerouting priority -300; ip saddr { {others} } drop; }
  chain out { type filter hook postrouting priority 300; ip daddr { {others} } drop; }
}'";
const INBOUND: &str = "nft 'table inet quorate_drill {
  chain in { type filter hook prerouting priority -300; ip saddr { {others} } drop; }
}'";
const BRIDGE: &str = "nft 'table inet quorate_drill {
  chain in { type filter hook prerouting priority -300; ip saddr { {other} } drop; }
  chain out { type filter hook postrouting priority 300; ip daddr { {other} } drop; }
}'";
const VRRP: &str = "nft 'table inet quorate_drill {
  chain in { type filter hook prerouting priority -300; meta l4proto 112 drop; }
  chain out { type filter hook postrouting priority 300; meta l4proto 112 drop; }
}'";
const API: &str = "nft 'table inet quorate_drill {
  chain in { type filter hook prerouting priority -300; tcp dport 6443 ip saddr { {others} } drop; }
}'";
const LOSS_5: &str = "nft 'table inet quorate_drill {
  chain in { type filter hook prerouting priority -300; ip saddr { {others} } numgen random mod 100 < 5 drop; }
  chain out { type filter hook postrouting priority 300; ip daddr { {others} } numgen random mod 100 < 5 drop; }
}'";
const LOSS_20: &str = "nft 'table inet quorate_drill {
  chain in { type filter hook prerouting priority -300; ip saddr { {others} } numgen random mod 100 < 20 drop; }
  chain out { type filter hook postrouting priority 300; ip daddr { {others} } numgen random mod 100 < 20 drop; }
}'";

/// Packets to the other control planes take a way through a program that lets them wait. A socket bound to an interface is
/// not led there: VRRP is not late. Whatever ends that program ends the way.
const LATE: &str = "[ -c /dev/net/tun ] || cannot '{machine} has no /dev/net/tun'
systemd-run --quiet --collect --unit=quorate-drill-late {program} drill late --device qdrill0 --ms 50 --jitter-ms 40 --for 90
for i in $(seq 50); do [ -e /sys/class/net/qdrill0 ] && break; sleep 0.1; done
ip link set qdrill0 up
for peer in {peers}; do ip route add $peer dev qdrill0 src {address} table 7701; done
ip rule add priority 100 fwmark 7701 lookup main
ip rule add priority 101 iif lo lookup 7701";
const IN_TIME: &str = "for rule in 101 100; do ip rule delete priority $rule 2>/dev/null || true; done
systemctl stop quorate-drill-late.service 2>/dev/null || true
ip route flush table 7701 2>/dev/null || true";

/// Requests may be lost twice in a row before a server is known to be cut off.
const CUT_OFF: Limits = Limits {
    new_outage_ms: Some(4_000),
    ..HUNG
};
/// Machines that do not hear each other may each take the VIP, for as long as they do not.
const UNHEARD: Limits = CUT_OFF.vip(Moves::AtMost(2), None);
/// Advertisements are lost as well: that three or more in a row are is rare, and ends with the next one.
const LOSSY: Limits = CUT_OFF.vip(Moves::AtMost(2), Some(1_000));
const REPORTED: Limits = Limits {
    new_outage_ms: Some(5_000),
    ..REPORTED_ONLY
};

pub(super) const ALL: [Scenario; 9] = [
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        hold: Duration::from_secs(12),
        ..one(
            "partitioned-vip-holder",
            9,
            "the VIP's holder and the other control planes do not hear each other",
            &[script(Target::VipHolder, BOTH_WAYS, "undo")],
            UNHEARD,
        )
    },
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        hold: Duration::from_secs(12),
        ..one(
            "partitioned-vip-backup",
            9,
            "a control plane without the VIP and the others do not hear each other",
            &[script(Target::VipBackup, BOTH_WAYS, "undo")],
            UNHEARD,
        )
    },
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        hold: Duration::from_secs(12),
        ..one(
            "one-way-partition",
            10,
            "the VIP's holder does not hear the other control planes, they hear it",
            &[script(Target::VipHolder, INBOUND, "undo")],
            UNHEARD,
        )
    },
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        hold: Duration::from_secs(12),
        ..one(
            "bridge-partition",
            11,
            "two control planes do not hear each other, a third hears both",
            &[script(Target::VipHolder, BRIDGE, "undo")],
            UNHEARD.leases(Moves::AtMost(1)),
        )
    },
    Scenario {
        needs: &[Need::Agent],
        ..one(
            "vrrp-blocked",
            12,
            "only VRRP is dropped at the VIP's holder; everything else passes",
            &[script(Target::VipHolder, VRRP, "undo")],
            UNHEARD,
        )
    },
    one(
        "api-blocked",
        13,
        "the VIP holder's API server is reached by no other control plane; etcd is well",
        &[script(Target::VipHolder, API, "undo")],
        UNSEEN,
    ),
    Scenario {
        hold: Duration::from_secs(15),
        ..one(
            "loss-five-percent",
            14,
            "one in twenty packets between the VIP's holder and the other control planes is lost",
            &[script(Target::VipHolder, LOSS_5, "undo")],
            LOSSY,
        )
    },
    Scenario {
        hold: Duration::from_secs(15),
        ..one(
            "loss-twenty-percent",
            14,
            "one in five packets between the VIP's holder and the other control planes is lost",
            &[script(Target::VipHolder, LOSS_20, "undo")],
            REPORTED,
        )
    },
    Scenario {
        hold: Duration::from_secs(15),
        ..one(
            "late-and-out-of-order",
            14,
            "what the VIP's holder sends to the other control planes is 50 to 90 ms late, and out of order",
            &[script(Target::VipHolder, LATE, IN_TIME)],
            UNSEEN,
        )
    },
];
