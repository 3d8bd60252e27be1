//! What runs on a node, and quorate's agent.

use super::*;
use crate::scenario::Need;

/// The kernel takes the VIP from a machine whose agent is dead, supervisor included, after two to three seconds; somebody else
/// has it by then.
const OUTLIVED_MS: u64 = 3_500;

pub(super) const ALL: [Scenario; 12] = [
    one(
        "kubelet-killed",
        36,
        "kubelet gets SIGKILL on a worker",
        &[script(Target::Worker, "signal KILL kubelet", "start kubelet")],
        UNSEEN,
    ),
    one(
        "containerd-killed",
        36,
        "containerd gets SIGKILL on a worker; its containers go on",
        &[script(
            Target::Worker,
            "systemctl kill --kill-who=main --signal=KILL containerd.service",
            "start containerd; start kubelet",
        )],
        UNSEEN,
    ),
    one(
        "kubelet-hung",
        36,
        "kubelet is frozen on a worker",
        &[script(Target::Worker, "signal STOP kubelet", "thaw kubelet")],
        UNSEEN,
    ),
    one(
        "containerd-hung",
        36,
        "containerd is frozen on a worker; its containers go on",
        &[script(
            Target::Worker,
            "systemctl kill --kill-who=main --signal=STOP containerd.service",
            "if systemctl --quiet is-active containerd.service; then systemctl kill --kill-who=main --signal=CONT containerd.service; fi
start containerd; start kubelet",
        )],
        UNSEEN,
    ),
    Scenario {
        needs: &[Need::VipOnControlPlane],
        ..one(
            "kubelet-killed-on-vip-holder",
            36,
            "kubelet and containerd get SIGKILL on the VIP's holder",
            &[script(
                Target::VipHolder,
                "signal KILL kubelet; systemctl kill --kill-who=main --signal=KILL containerd.service",
                "start containerd; start kubelet",
            )],
            UNSEEN,
        )
    },
    Scenario {
        needs: &[Need::Agent],
        ..one(
            "agent-killed",
            6,
            "the agent gets SIGKILL on the VIP's holder",
            &[script(
                Target::VipHolder,
                "signal KILL quorate-agent",
                "start quorate-agent",
            )],
            UNSEEN.vip(WITH_ITS_HOLDER, Some(OUTLIVED_MS)),
        )
    },
    Scenario {
        needs: &[Need::Agent],
        ..one(
            "agent-hung",
            5,
            "the agent is frozen on the VIP's holder until its watchdog kills it",
            &[script(
                Target::VipHolder,
                "signal STOP quorate-agent",
                "thaw quorate-agent",
            )],
            HUNG.vip(WITH_ITS_HOLDER, Some(OUTLIVED_MS)),
        )
    },
    Scenario {
        needs: &[Need::NodeAccess],
        clients_there: true,
        ..one(
            "agent-killed-on-worker",
            6,
            "the agent gets SIGKILL on a worker whose clients go through it",
            &[script(
                Target::Worker,
                "signal KILL quorate-agent",
                "start quorate-agent",
            )],
            UNSEEN,
        )
    },
    Scenario {
        needs: &[Need::Haproxy],
        ..one(
            "haproxy-killed",
            6,
            "haproxy gets SIGKILL on the VIP's holder",
            &[script(Target::VipHolder, "signal KILL {haproxy}", "start {haproxy}")],
            UNSEEN.vip(WITH_ITS_HOLDER, Some(CONTESTED_MS)),
        )
    },
    Scenario {
        needs: &[Need::Haproxy],
        ..one(
            "haproxy-hung",
            5,
            "haproxy is frozen on the VIP's holder",
            &[script(
                Target::VipHolder,
                "signal STOP {haproxy}",
                "thaw {haproxy}",
            )],
            HUNG.vip(WITH_ITS_HOLDER, Some(CONTESTED_MS)),
        )
    },
    Scenario {
        needs: &[Need::Agent, Need::AgentUnit],
        ..one(
            "agent-stopped",
            36,
            "the agent is stopped in order on the VIP's holder",
            &[script(Target::VipHolder, "stop quorate-agent", "start quorate-agent")],
            UNSEEN.vip(WITH_ITS_HOLDER, Some(CONTESTED_MS)),
        )
    },
    Scenario {
        needs: &[Need::Agent],
        ..one(
            "agent-starved",
            31,
            "four processes per core compete with everything on the VIP's holder",
            &[script(
                Target::VipHolder,
                "systemd-run --quiet --collect --unit=quorate-drill-load /bin/sh -c 'for i in $(seq $(($(nproc) * 4))); do while :; do :; done & done; sleep 30'",
                "systemctl stop quorate-drill-load.service 2>/dev/null || true",
            )],
            ELECTION.vip(WITH_ITS_HOLDER, Some(CONTESTED_MS)).leases(Moves::Reported),
        )
    },
];
