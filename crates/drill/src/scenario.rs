//! Scenarios as data. [`ALL`] is the list; one file per family below `scenarios/`.
//!
//! Faults are shell scripts for the machine they happen on, so that what is done can be read, shown before it is done,
//! and reverted by a timer there when nobody else does. In a script `{vip}` is the VIP, `{others}` the addresses of the
//! other control planes, `{other}` the first of them and `{data}` etcd's data directory, nft sets being what a list of
//! addresses is for; `{haproxy}` and `{keepalived}` are the units of those; `signal NAME UNIT` and a few more are defined
//! (see [`PRELUDE`]).

use std::time::Duration;

use quorate_spec::{Bootstrap, EndpointOn, EtcdTopology, RunAs, Spec};
use serde::Serialize;

use crate::scenarios;

/// Ends an inject script that cannot be carried out on this machine, its last word on standard error saying why.
pub(crate) const CANNOT: i32 = 77;

/// Begins every script. Kubernetes' programs are units, or (kubeadm) processes in static Pods. What fails ends the script:
/// a fault that is not there must not count, nor one that was not taken back.
pub(crate) const PRELUDE: &str = r#"set -eu
PATH=/opt/quorate/bin:/usr/sbin:/usr/bin:/sbin:/bin
running() { systemctl --quiet is-active "$1.service" || pidof "$1" >/dev/null; }
processes() { pidof "$1" || { echo "no $1 here" >&2; return 1; }; }
signal() {
  if systemctl --quiet is-active "$2.service"; then systemctl kill --kill-who=all --signal="$1" "$2.service"; return; fi
  pids=$(processes "$2") || return
  kill -s "$1" $pids
}
enabled() { systemctl --quiet is-enabled "$1.service" 2>/dev/null; }
start() { systemctl reset-failed "$1.service" 2>/dev/null || true
  if enabled "$1"; then systemctl start --no-block "$1.service"; fi; }
stop() {
  if enabled "$1"; then systemctl stop "$1.service"; return; fi
  pids=$(processes "$1") || return
  kill -s TERM $pids
  for pid in $pids; do timeout 30 tail --pid="$pid" -f /dev/null || return; done
}
again() { if enabled "$1"; then systemctl restart --no-block "$1.service"; elif running "$1"; then signal TERM "$1"; fi; }
thaw() { if running "$1"; then signal CONT "$1"; fi; start "$1"; }
cannot() { echo "$*" >&2; exit 77; }
undo() { if nft list table inet quorate_drill >/dev/null 2>&1; then nft delete table inet quorate_drill; fi; }
"#;

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Scenario {
    pub name: &'static str,
    /// Of the fault matrix in docs/reference/drills.md.
    pub row: u8,
    pub what: &'static str,
    /// Injected in this order at the same moment, reverted backwards.
    pub parts: &'static [Part],
    /// How long the fault stays. Clients are watched longer.
    pub hold: Duration,
    pub limits: Limits,
    /// etcd or all API servers are gone meanwhile; clients must fail.
    pub loses_quorum: bool,
    pub needs: &'static [Need],
    /// Clients are on the machines the fault is on, and nowhere else.
    pub clients_there: bool,
    /// Part of `--short`.
    pub short: bool,
}

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Part {
    pub target: Target,
    pub fault: Fault,
}

/// On which machine, found out right before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// One run for each control plane.
    EachControlPlane,
    /// So many etcd members' machines that those left are no quorum.
    EtcdMajority,
    VipHolder,
    /// A VIP holder that has no VIP now.
    VipBackup,
    EtcdLeader,
    EtcdFollower,
    ControllerManagerLeader,
    SchedulerLeader,
    Worker,
    EveryMachine,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    Script {
        inject: &'static str,
        revert: &'static str,
        /// It is still there after a restart of the machine.
        lasting: bool,
    },
    /// The power goes and comes back.
    PowerCut,
    /// As an administrator does it: drain, stop in order, power off and on, uncordon.
    PlannedRestart,
    /// A certificate (by its name in the inventory) that expired yesterday, and its unit restarted.
    Expired {
        certificate: &'static str,
        unit: &'static str,
    },
    /// Taken back by what an administrator would do: `quorate apply`. `otherwise` is for the timer on the machine.
    Applied {
        inject: &'static str,
        otherwise: &'static str,
    },
}

/// What must hold, and what is only reported (`None`).
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Limits {
    /// Slowest new connection, ms.
    pub new_worst_ms: Option<u64>,
    /// New connections not answered within five seconds.
    pub new_failed: Option<u64>,
    /// Longest time in which no new connection was answered, ms.
    pub new_outage_ms: Option<u64>,
    /// The same of requests that share a connection.
    pub reused_failed: Option<u64>,
    pub reused_outage_ms: Option<u64>,
    /// Longest time from an acknowledged write until a watch showed it, ms; all must be shown.
    pub watch_worst_ms: Option<u64>,
    /// Longest time in which no write was acknowledged, ms.
    pub write_outage_ms: Option<u64>,
    /// How often the VIP may move, from the fault until all is well again.
    pub vip: Moves,
    /// Longest time in which two machines have it while the fault is there, ms.
    pub vip_shared_ms: Option<u64>,
    /// How often a lease of controller managers or schedulers may go to another process. One whose holder the fault ends must
    /// do so in time ([`crate::holders::takeover`]).
    pub leases: Moves,
    /// Seconds from the end of the fault until every check holds.
    pub recovery_s: u64,
}

/// How often something may pass from one holder to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Moves {
    Reported,
    Never,
    /// Never, unless its holder is one of the machines the fault is on.
    WithItsHolder(u64),
    AtMost(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    Vip,
    /// The VIP is quorate's own agent's.
    Agent,
    /// The VIP is keepalived's, in front of haproxy.
    Haproxy,
    /// Every node has a balancer of its own.
    NodeAccess,
    /// A cluster file that says how it is.
    Applied,
    /// A machine whose disks are its own.
    OwnDisk,
    StackedEtcd,
    /// Stays away once it is stopped: the control plane's programs are units, not static Pods.
    Units,
    /// The same of etcd.
    EtcdUnit,
    /// The same of the agent.
    AgentUnit,
    /// The machine with the VIP runs an API server.
    VipOnControlPlane,
    Worker,
    ThreeControlPlanes,
    /// Somebody who can switch machines off and on.
    Power,
    /// A machine whose clock is its own.
    OwnClock,
}

/// In the order of the fault matrix.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    scenarios::FAMILIES.iter().flat_map(|family| family.iter())
}

pub fn find(name: &str) -> Option<&'static Scenario> {
    all().find(|scenario| scenario.name == name)
}

/// What is there besides the cluster file.
#[derive(Clone, Copy, Debug, Default)]
pub struct Around {
    pub power: bool,
    pub shared_clock: bool,
    /// The VIP is not the cluster file's.
    pub foreign_vip: bool,
    /// Programs and images to apply the cluster file with.
    pub bundle: bool,
}

impl Limits {
    /// Nothing is promised but that the cluster comes back.
    pub(crate) const fn recovery(recovery_s: u64) -> Self {
        Self {
            new_worst_ms: None,
            new_failed: None,
            new_outage_ms: None,
            reused_failed: None,
            reused_outage_ms: None,
            watch_worst_ms: None,
            write_outage_ms: None,
            vip: Moves::Reported,
            vip_shared_ms: None,
            leases: Moves::Reported,
            recovery_s,
        }
    }

    pub(crate) const fn vip(self, moves: Moves, shared_ms: Option<u64>) -> Self {
        Self {
            vip: moves,
            vip_shared_ms: shared_ms,
            ..self
        }
    }

    pub(crate) const fn leases(self, moves: Moves) -> Self {
        Self { leases: moves, ..self }
    }
}

impl std::fmt::Display for Moves {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Reported => f.write_str("reported"),
            Self::Never => f.write_str("stays"),
            Self::WithItsHolder(times) => write!(f, "{times}× with its holder"),
            Self::AtMost(times) => write!(f, "{times}×"),
        }
    }
}

impl Moves {
    /// `None`: as often as it may.
    pub(crate) fn allowed(self, is_holder_broken: bool) -> Option<u64> {
        match self {
            Self::Reported => None,
            Self::Never => Some(0),
            Self::WithItsHolder(times) => Some(if is_holder_broken { times } else { 0 }),
            Self::AtMost(times) => Some(times),
        }
    }
}

impl Scenario {
    /// Whether the whole API goes away for a while: always, or because this cluster does not survive the loss of one
    /// control plane or etcd member.
    pub fn takes_api_away(&self, spec: &Spec) -> bool {
        let fragile = spec.control_planes().len() == 1 || spec.quorum().tolerates == 0;
        self.loses_quorum || (fragile && self.is_on_vital(spec))
    }

    /// Whether a control plane or an etcd member is broken.
    pub(crate) fn is_on_vital(&self, spec: &Spec) -> bool {
        self.parts.iter().any(|part| part.target.is_vital(spec))
    }

    /// What must hold on this cluster.
    pub(crate) fn limits_on(&self, spec: &Spec) -> Limits {
        if self.takes_api_away(spec) {
            Limits::recovery(self.limits.recovery_s)
        } else {
            self.limits
        }
    }

    /// Why it cannot be run on such a cluster.
    pub fn skipped(&self, spec: &Spec, around: Around) -> Option<&'static str> {
        let implied = self.parts.iter().map(|part| match part.fault {
            Fault::PowerCut | Fault::PlannedRestart => Some(Need::Power),
            Fault::Applied { .. } => Some(Need::Applied),
            Fault::Script { .. } | Fault::Expired { .. } => None,
        });
        let targets = self.parts.iter().map(|part| match part.target {
            Target::VipHolder | Target::VipBackup => Some(Need::Vip),
            Target::Worker => Some(Need::Worker),
            _ => None,
        });
        let needs = self.needs.iter().copied().map(Some);
        let needs = targets.chain(needs).chain(implied).flatten();
        needs.filter_map(|need| need.missing(spec, around)).next()
    }
}

impl Target {
    /// A control plane or an etcd member.
    pub(crate) fn is_vital(self, spec: &Spec) -> bool {
        let on_balancers = Need::VipOnControlPlane.missing(spec, Around::default()).is_some();
        match self {
            Self::Worker => false,
            Self::VipHolder | Self::VipBackup => !on_balancers,
            _ => true,
        }
    }
}

impl Need {
    fn missing(self, spec: &Spec, around: Around) -> Option<&'static str> {
        let there = match self {
            Self::Vip => spec.endpoint.is_some(),
            Self::Agent => spec.endpoint.is_some() && spec.balancer == quorate_spec::Balancer::Quorate,
            Self::Haproxy => spec.endpoint.is_some() && spec.balancer == quorate_spec::Balancer::Haproxy,
            Self::NodeAccess => !matches!(spec.access, quorate_spec::Access::Endpoint),
            Self::Applied => !around.foreign_vip && around.bundle,
            Self::OwnDisk => !around.shared_clock,
            Self::StackedEtcd => spec.etcd.topology == EtcdTopology::Stacked,
            Self::Units => spec.kubernetes.bootstrap == Bootstrap::Binary,
            Self::EtcdUnit => {
                spec.kubernetes.bootstrap == Bootstrap::Binary || spec.etcd.topology == EtcdTopology::External
            }
            Self::AgentUnit => spec.balancer_as == RunAs::Unit,
            Self::VipOnControlPlane => spec
                .endpoint
                .as_ref()
                .is_some_and(|endpoint| endpoint.on == EndpointOn::ControlPlanes),
            Self::Worker => spec.workers().iter().any(|machine| !machine.is_control_plane()),
            Self::ThreeControlPlanes => spec.control_planes().len() >= 3 && spec.quorum().tolerates >= 1,
            Self::Power => around.power,
            Self::OwnClock => !around.shared_clock,
        };
        let reason = match self {
            Self::Vip => "the cluster has no VIP",
            Self::Agent => "the VIP is not carried by quorate's agent",
            Self::Haproxy => "the VIP is not carried by keepalived in front of haproxy",
            Self::NodeAccess => "nodes reach the API through the VIP, not through a balancer of their own",
            Self::Applied if around.foreign_vip => {
                "the VIP is not the cluster file's, so that nothing can be planned from it"
            }
            Self::Applied => "it is taken back by an apply, and there is no bundle (`quorate bundle build`)",
            Self::OwnDisk => "the machines share one disk, the computer's",
            Self::StackedEtcd => "etcd has machines of its own",
            Self::Units => "the control plane is static Pods: their kubelet starts at once what is stopped",
            Self::EtcdUnit => "etcd is a static Pod: its kubelet starts it at once when it is stopped",
            Self::AgentUnit => "the agent is a static Pod: its kubelet starts it at once when it is stopped",
            Self::VipOnControlPlane => "the VIP is not on the control planes",
            Self::Worker => "there is no machine that is only a worker",
            Self::ThreeControlPlanes => "fewer than three control planes do not survive the loss of one",
            Self::Power => "nobody can switch the machines off and on: a lab's machines, or --power sysrq",
            Self::OwnClock => "the machines share one clock, the computer's",
        };
        (!there).then_some(reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_words() {
        let mut names: Vec<_> = all().map(|scenario| scenario.name).collect();
        assert!(
            names
                .iter()
                .all(|name| name.chars().all(|c| c.is_ascii_lowercase() || c == '-'))
        );
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn every_fault_can_be_taken_back() {
        for scenario in all() {
            for part in scenario.parts {
                if let Fault::Script { inject, revert, .. }
                | Fault::Applied {
                    inject,
                    otherwise: revert,
                } = part.fault
                {
                    assert!(!inject.is_empty() && !revert.is_empty(), "{}", scenario.name);
                    assert!(!inject.contains("nft ") || revert.contains("undo"), "{}", scenario.name);
                    assert!(
                        !inject.contains("signal STOP") || revert.contains("thaw"),
                        "{}",
                        scenario.name
                    );
                    assert!(
                        !inject.contains("signal=STOP") || revert.contains("signal=CONT"),
                        "{}",
                        scenario.name
                    );
                }
            }
            assert!(scenario.hold >= Duration::from_secs(1), "{}", scenario.name);
        }
    }

    #[test]
    fn losing_quorum_is_never_short() {
        assert!(
            all()
                .filter(|scenario| scenario.short)
                .all(|scenario| !scenario.loses_quorum)
        );
        assert_eq!(all().filter(|scenario| scenario.short).count(), 2);
    }

    #[test]
    fn what_an_apply_takes_back_is_skipped_without_a_bundle_and_nothing_else_is() {
        let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  endpoint: {vip: 10.0.0.100}\n  machines:\n    - {name: m1, address: 10.0.0.1, roles: [control-plane]}\n    - {name: m2, address: 10.0.0.2, roles: [control-plane]}\n    - {name: m3, address: 10.0.0.3, roles: [control-plane]}\n";
        let (spec, _) = quorate_spec::load(text, "cluster.yaml").unwrap();
        let with = Around {
            power: true,
            bundle: true,
            ..Around::default()
        };
        let without = Around { bundle: false, ..with };
        let mut skipped = 0;
        for scenario in all().filter(|scenario| scenario.skipped(&spec, with).is_none()) {
            let applied = scenario
                .parts
                .iter()
                .any(|part| matches!(part.fault, Fault::Applied { .. }));
            assert_eq!(scenario.skipped(&spec, without).is_some(), applied, "{}", scenario.name);
            skipped += usize::from(applied);
        }
        assert!(skipped > 0);
    }
}
