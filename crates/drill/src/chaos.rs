//! A seeded random walk through scenarios that leave a quorum.

use std::time::Duration;

use quorate_spec::Spec;

use crate::drill::{Run, expand};
use crate::scenario::{self, Around};

/// Endless; the same seed on the same cluster gives the same walk.
pub struct Walk {
    runs: Vec<Run>,
    state: u64,
}

impl Walk {
    /// `None` if no scenario suits the cluster.
    pub fn new(spec: &Spec, around: Around, seed: u64) -> Option<Self> {
        let suitable: Vec<_> = scenario::all()
            .filter(|scenario| !scenario.takes_api_away(spec) && scenario.skipped(spec, around).is_none())
            .collect();
        let runs = expand(spec, &suitable);
        (!runs.is_empty()).then_some(Self { runs, state: seed })
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
    use super::*;

    const CLUSTER: &str = "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  kubernetes: {version: v1.36.3}\n  endpoint: {vip: 10.0.0.100, port: 8443, on: control-planes}\n  machines:\n    - {name: m1, address: 10.0.0.1, roles: [control-plane]}\n    - {name: m2, address: 10.0.0.2, roles: [control-plane]}\n    - {name: m3, address: 10.0.0.3, roles: [control-plane]}\n    - {name: m4, address: 10.0.0.4, roles: [worker]}\n";

    #[test]
    fn a_seed_is_a_walk_that_keeps_a_quorum() {
        let (spec, _) = quorate_spec::load(CLUSTER, "cluster.yaml").unwrap();
        let around = Around {
            power: true,
            shared_clock: true,
            foreign_vip: false,
            bundle: true,
        };
        let names = |seed| {
            Walk::new(&spec, around, seed)
                .unwrap()
                .take(200)
                .map(|run| (run.name(), run.hold))
                .collect::<Vec<_>>()
        };
        assert_eq!(names(7), names(7));
        assert_ne!(names(7), names(8));
        let walk = Walk::new(&spec, around, 7).unwrap();
        assert!(
            walk.take(1_000)
                .all(|run| !run.scenario.takes_api_away(&spec) && run.scenario.skipped(&spec, around).is_none())
        );
    }
}
