//! Strangers on the VIP's network.

use super::*;
use crate::scenario::Need;

pub(super) const ALL: [Scenario; 2] = [
    Scenario {
        needs: &[Need::Agent, Need::Worker],
        ..one(
            "foreign-vip-owner",
            21,
            "a worker takes the VIP as its own address, and answers ARP for it",
            &[script(
                Target::Worker,
                "ip address add {vip}/32 dev {interface}; arping -q -A -c 2 -I {interface} {vip} 2>/dev/null || true",
                "if ip -o address show dev {interface} | grep -qF ' {vip}/32 '; then ip address delete {vip}/32 dev {interface}; fi",
            )],
            // Two machines that both say the address is theirs cannot both be right; what is asked for is that it ends with the stranger.
            REPORTED_ONLY,
        )
    },
    Scenario {
        needs: &[Need::Agent, Need::Worker],
        ..one(
            "foreign-vrid",
            22,
            "a worker sends VRRP advertisements of the VIP's own VRID with priority 255, unauthenticated",
            &[script(
                Target::Worker,
                "systemd-run --quiet --collect --unit=quorate-drill-adverts {program} drill advertise --vrid {vrid} --vip {vip} --to {holders} --for 30",
                "systemctl stop quorate-drill-adverts.service 2>/dev/null || true",
            )],
            UNSEEN,
        )
    },
];
