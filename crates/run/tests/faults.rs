//! Random trouble: connections break, machines lose power, programs fail, the operator dies. Whatever happens, applying
//! again ends in the same cluster, and etcd never loses its quorum to us.
//!
//! `QUORATE_SIM_RUNS=10000 cargo test --release -p quorate-run --test faults` for more seeds; `QUORATE_SIM_SEED` for one.

mod sim;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_machine::ErrorKind;
use quorate_machine::fake::Fault;
use quorate_run::{Ended, Listener};
use sim::Sim;

const MINIMAL: &str = include_str!("../../../examples/minimal.yaml");
/// Applies until nothing is left; each of the trouble's leftovers may cost one.
const PATIENCE: usize = 12;

#[test]
fn whatever_breaks_applying_again_converges_and_quorum_holds() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("QUORATE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUORATE_SIM_RUNS").unwrap_or(12),
    };
    let folder = tempfile::tempdir_in(if std::path::Path::new("/dev/shm").is_dir() {
        "/dev/shm"
    } else {
        "/tmp"
    })
    .unwrap();
    let first = Sim::new(MINIMAL, folder.path());
    let expected = run(async {
        assert_eq!(first.apply().await.1.ended, Ended::Complete);
        first.fingerprint()
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (first, expected, seeds) = (&first, &expected, seeds.clone());
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % threads == thread) {
                    run(trouble(seed, first, expected));
                }
            });
        }
    });
}

fn run<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
        .block_on(work)
}

async fn trouble(seed: u64, first: &Sim, expected: &std::collections::BTreeMap<String, String>) {
    let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let sim = Sim::with(first.spec.clone(), first.operator.clone());
    let names: Vec<String> = sim.machines.keys().cloned().collect();
    let formed = Arc::new(AtomicBool::new(false));
    for _ in 0..=dice.below(3) {
        for _ in 0..=dice.below(3) {
            let machine = &sim.machines[&names[dice.below(names.len() as u64) as usize]];
            let call = 1 + dice.below(70);
            match dice.below(6) {
                0 => machine.fault(Fault::call(call, ErrorKind::Failed, "something went wrong")),
                1 => machine.fault(Fault::call(call, ErrorKind::Timeout, "no answer in time")),
                2 | 3 => machine.fault(Fault::dies_after_call(call)),
                4 => machine.fault(Fault::dies_before_call(call)),
                _ => machine.state().disk_full = true,
            }
        }
        // One machine may be without power, unless that alone ends a quorum that is not whole yet.
        let name = &names[dice.below(names.len() as u64) as usize];
        if dice.below(3) == 0 && (!formed.load(Ordering::Relaxed) || sim.world.has_quorum_without(name)) {
            sim.power_off(name);
        }
        if dice.below(2) == 0 {
            let _ = sim.apply_killed_after(dice.below(100) as usize).await;
        } else {
            let _ = sim.apply_with(&watch(&sim, &formed, seed)).await;
        }
        check(&sim, &formed, seed);
        for machine in sim.machines.values() {
            machine.power_on();
            machine.state().disk_full = false;
        }
        sim.world.settle();
    }
    for _ in 0..PATIENCE {
        let _ = sim.apply_with(&watch(&sim, &formed, seed)).await;
        check(&sim, &formed, seed);
        for machine in sim.machines.values() {
            machine.state().unreachable = false;
        }
        let left = sim.left().await;
        if left.is_empty() {
            let found = sim.fingerprint();
            for (key, value) in expected {
                assert_eq!(found.get(key), Some(value), "seed {seed}: {key}");
            }
            return;
        }
    }
    panic!(
        "seed {seed}: not done after {PATIENCE} applies: {:#?}",
        sim.left().await
    );
}

fn watch(sim: &Sim, formed: &Arc<AtomicBool>, seed: u64) -> Listener {
    let (world, formed) = (sim.world.clone(), formed.clone());
    Arc::new(move |_| {
        let now = world.was_formed() && world.has_quorum();
        assert!(
            now || !formed.load(Ordering::Relaxed),
            "seed {seed}: the quorum is lost"
        );
        formed.fetch_or(now, Ordering::Relaxed);
    })
}

fn check(sim: &Sim, formed: &AtomicBool, seed: u64) {
    sim.world.settle();
    let now = sim.world.was_formed() && sim.world.has_quorum();
    assert!(
        now || !formed.load(Ordering::Relaxed),
        "seed {seed}: the quorum is lost"
    );
    formed.fetch_or(now, Ordering::Relaxed);
}

/// xorshift64*
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }
}
