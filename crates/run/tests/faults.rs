//! Random trouble: connections break, machines lose power, programs fail, the operator dies; and between two applies files,
//! units, memberships and objects change by themselves. Whatever happens, applying again ends in the same cluster, and etcd
//! never loses its quorum to us.
//!
//! `QUORATE_SIM_RUNS=10000 cargo test --release -p quorate-run --test faults` for more seeds; `QUORATE_SIM_SEED` for one.

mod sim;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quorate_machine::ErrorKind;
use quorate_machine::fake::Fault;
use quorate_plan::{Action, Plan};
use quorate_run::{Ended, Event, Listener};
use sim::Sim;
use sim::drift::Dice;

const MINIMAL: &str = include_str!("../../../examples/minimal.yaml");
/// Applies until nothing is left; each of the trouble's leftovers may cost one.
const PATIENCE: usize = 12;

#[test]
fn whatever_breaks_applying_again_converges_and_quorum_holds() {
    for_all_seeds(12, |seed, first, expected| run(trouble(seed, first, expected)));
}

#[test]
fn whatever_changes_by_itself_one_apply_puts_it_right_and_quorum_holds() {
    for_all_seeds(60, |seed, first, expected| run(drifted(seed, first, expected)));
}

/// `usual`: seeds of a run that nobody asked more of.
fn for_all_seeds(usual: u64, story: impl Fn(u64, &Sim, &BTreeMap<String, String>) + Sync) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("QUORATE_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("QUORATE_SIM_RUNS").unwrap_or(usual),
    };
    let folder = tempfile::tempdir_in(if std::path::Path::new("/dev/shm").is_dir() {
        "/dev/shm"
    } else {
        "/tmp"
    })
    .unwrap();
    let labelled = "{address: 10.77.0.14, roles: [worker], labels: {zone: a}, taints: [\"for=tests:NoSchedule\"]}";
    let cluster = MINIMAL.replace("{address: 10.77.0.14, roles: [worker]}", labelled);
    let first = Sim::new(&cluster, folder.path());
    let expected = run(async {
        assert_eq!(first.apply().await.1.ended, Ended::Complete);
        first.fingerprint()
    });
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (first, expected, seeds, story) = (&first, &expected, seeds.clone(), &story);
            scope.spawn(move || {
                for seed in seeds.filter(|seed| seed % threads == thread) {
                    story(seed, first, expected);
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

/// Up to four changes in a whole cluster, then an apply in which nothing fails.
async fn drifted(seed: u64, first: &Sim, expected: &BTreeMap<String, String>) {
    let mut dice = Dice::new(seed);
    let sim = first.copy();
    let mut what = Vec::new();
    for _ in 0..=dice.below(4) {
        what.extend(sim.drift(&mut dice));
    }
    let formed = Arc::new(AtomicBool::new(true));
    let when = format!("seed {seed}: {}", what.join(", "));
    let mut later = true;
    // What a plan leaves for later, it says.
    while std::mem::take(&mut later) {
        let plan = sim.plan().await;
        let outcome = sim.carry_out(&plan, &watch(&sim, &plan, &formed, seed)).await;
        check(&sim, &formed, seed);
        assert_eq!(outcome.ended, Ended::Complete, "{when}: {:#?}", outcome.failures);
        later = plan.step_count() > 0 && plan.notes.iter().any(|note| note.machine.is_some());
    }
    assert_eq!(sim.left().await, [], "{when}");
    same(expected, &sim.fingerprint(), &when);
}

fn same(expected: &BTreeMap<String, String>, found: &BTreeMap<String, String>, when: &str) {
    for (key, value) in expected {
        assert_eq!(found.get(key), Some(value), "{when}: {key}");
    }
}

async fn trouble(seed: u64, first: &Sim, expected: &BTreeMap<String, String>) {
    let mut dice = Dice::new(seed);
    let sim = Sim::with(first.spec.clone(), first.operator.clone());
    let names: Vec<String> = sim.machines.keys().cloned().collect();
    let formed = Arc::new(AtomicBool::new(false));
    let mut what = Vec::new();
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
            apply(&sim, &formed, seed).await;
        }
        check(&sim, &formed, seed);
        for machine in sim.machines.values() {
            machine.power_on();
            machine.state().disk_full = false;
        }
        sim.world.settle();
        for _ in 0..dice.below(3) {
            what.extend(sim.drift(&mut dice));
            check(&sim, &formed, seed);
        }
    }
    for _ in 0..PATIENCE {
        apply(&sim, &formed, seed).await;
        check(&sim, &formed, seed);
        for machine in sim.machines.values() {
            machine.state().unreachable = false;
        }
        let left = sim.left().await;
        if left.is_empty() {
            let when = format!("seed {seed}: {}", what.join(", "));
            same(expected, &sim.fingerprint(), &when);
            return;
        }
    }
    panic!(
        "seed {seed}: {}: not done after {PATIENCE} applies: {:#?}",
        what.join(", "),
        sim.left().await
    );
}

async fn apply(sim: &Sim, formed: &Arc<AtomicBool>, seed: u64) {
    let plan = sim.plan().await;
    sim.carry_out(&plan, &watch(sim, &plan, formed, seed)).await;
}

/// Also while a member is restarted, which a fake machine does within no time.
fn watch(sim: &Sim, plan: &Plan, formed: &Arc<AtomicBool>, seed: u64) -> Listener {
    let (world, formed) = (sim.world.clone(), formed.clone());
    let restarts: BTreeMap<String, String> = plan
        .steps()
        .filter(|step| matches!(&step.action, Action::Units { restart, .. } if restart.iter().any(|unit| unit == "etcd.service")))
        .map(|step| (step.id.clone(), step.machine.clone()))
        .collect();
    Arc::new(move |event| {
        let now = world.was_formed() && world.has_quorum();
        assert!(
            now || !formed.load(Ordering::Relaxed),
            "seed {seed}: the quorum is lost"
        );
        formed.fetch_or(now, Ordering::Relaxed);
        if let Event::StepStarted { step, .. } = event
            && let Some(machine) = restarts.get(step).filter(|_| now)
        {
            assert!(
                world.has_quorum_without(machine),
                "seed {seed}: the quorum is lost while {machine} restarts"
            );
        }
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
