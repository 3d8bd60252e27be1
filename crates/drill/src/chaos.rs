//! A seeded random walk through scenarios that leave a quorum.

use std::time::Duration;

use quorate_spec::Spec;

use crate::drill::{Run, expand};
use crate::scenario::{self, Around};

/// Endless; the same seed on the same cluster gives the same walk.
pub struct Walk {
    runs: Vec<Run>,
    seed: u64,
    state: u64,
}

impl Walk {
    /// `None` if no scenario suits the cluster.
    pub fn new(spec: &Spec, around: Around, seed: u64) -> Option<Self> {
        let suitable: Vec<_> = scenario::all()
            .filter(|scenario| !scenario.takes_api_away(spec) && scenario.skipped(spec, around).is_none())
            .collect();
        let runs = expand(spec, &suitable);
        (!runs.is_empty()).then_some(Self {
            runs,
            seed,
            state: seed,
        })
    }

    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// SplitMix64 (Steele, Lea, Flood 2014).
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

impl Iterator for Walk {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let index = usize::try_from(self.random() % self.runs.len() as u64).unwrap_or(0);
        let hold = Duration::from_millis(1_000 + self.random() % 14_000);
        let mut run = self.runs[index].clone();
        run.hold = Some(hold);
        Some(run)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::scenario::{Fault, Part, Target};

    /// `control_planes` of them and a worker; `more` of the cluster file; `etcd` machines of etcd's own.
    fn cluster(control_planes: usize, etcd: usize, more: &str) -> Spec {
        let mut text =
            format!("apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n{more}  machines:\n");
        for (letter, role, count) in [
            ("m", "control-plane", control_planes),
            ("e", "etcd", etcd),
            ("w", "worker", 1),
        ] {
            for number in 1..=count {
                let address = format!("10.0.{}.{number}", letter.as_bytes()[0]);
                text.push_str(&format!(
                    "    - {{name: {letter}{number}, address: {address}, roles: [{role}]}}\n"
                ));
            }
        }
        let loaded = quorate_spec::load(&text, "cluster.yaml");
        loaded.unwrap_or_else(|findings| panic!("{text}{findings:?}")).0
    }

    fn around() -> Around {
        Around {
            power: true,
            shared_clock: false,
            foreign_vip: false,
            bundle: true,
        }
    }

    #[test]
    fn a_seed_is_a_walk() {
        let spec = cluster(3, 0, "  endpoint: {vip: 10.0.0.100}\n");
        let names = |seed| {
            Walk::new(&spec, around(), seed)
                .unwrap()
                .take(200)
                .map(|run| (run.name(), run.hold))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(7), names(7));
        assert_ne!(names(7), names(8));
    }

    /// What may cost a control plane its etcd member: all but the death of an API server or of what is beside it.
    fn takes_member(part: &Part) -> bool {
        match part.fault {
            Fault::Script { inject, .. } => ![
                "kube-",
                "kubelet",
                "containerd",
                "quorate-agent",
                "haproxy",
                "keepalived",
            ]
            .iter()
            .any(|beside| inject.contains(beside)),
            Fault::Expired { unit, .. } => unit == "etcd",
            Fault::PowerCut | Fault::PlannedRestart | Fault::Applied { .. } => true,
        }
    }

    #[test]
    fn ten_thousand_walks_leave_a_quorum_and_an_api_server() {
        let vip = "  endpoint: {vip: 10.0.0.100}\n";
        let clusters = [
            cluster(1, 0, ""),
            cluster(2, 0, vip),
            cluster(3, 0, ""),
            cluster(3, 0, vip),
            cluster(5, 0, vip),
            cluster(3, 0, &format!("{vip}  balancer: haproxy\n")),
            cluster(3, 0, &format!("{vip}  kubernetes: {{bootstrap: kubeadm}}\n")),
            cluster(3, 3, &format!("{vip}  etcd: {{topology: external}}\n")),
            cluster(3, 1, &format!("{vip}  etcd: {{topology: external}}\n")),
            cluster(1, 3, &format!("{vip}  etcd: {{topology: external}}\n")),
        ];
        let mut met = BTreeSet::new();
        for seed in 0..10_000_u64 {
            let spec = &clusters[(seed % clusters.len() as u64) as usize];
            let Some(walk) = Walk::new(spec, around(), seed) else {
                continue;
            };
            for run in walk.take(20) {
                let (scenario, name) = (run.scenario, run.name());
                assert!(scenario.skipped(spec, around()).is_none(), "seed {seed}: {name}");
                // One after the other, each when all is well again: only its own parts count.
                let vital: Vec<_> = scenario
                    .parts
                    .iter()
                    .filter(|part| part.target.is_vital(spec))
                    .collect();
                let members = vital.iter().filter(|part| takes_member(part)).count();
                assert!(members <= spec.quorum().tolerates, "seed {seed}: {name}");
                assert!(
                    vital.is_empty() || vital.len() < spec.control_planes().len(),
                    "seed {seed}: {name}"
                );
                let whole = [Target::EtcdMajority, Target::EveryMachine];
                assert!(
                    !vital.iter().any(|part| whole.contains(&part.target)),
                    "seed {seed}: {name}"
                );
                let hold = run.hold.unwrap();
                assert!(
                    hold >= Duration::from_secs(1) && hold < Duration::from_secs(15),
                    "{hold:?}"
                );
                met.insert(scenario.name);
            }
        }
        // Whatever leaves a quorum is come by.
        let left: Vec<_> = scenario::all()
            .filter(|scenario| !scenario.loses_quorum && !met.contains(scenario.name))
            .map(|scenario| scenario.name)
            .collect();
        assert_eq!(left, ["agent-killed-on-worker"; 0]);
    }
}
