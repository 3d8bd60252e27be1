//! A thousand machines: the promise is a plan within 1 s, a run within 10 s and 500 MB (SPECIFICATION.md). Times are those
//! of the processor, so that a busy computer breaks no promise; a debug build has fewer machines and ten times as long.

#![allow(clippy::print_stderr)] // what was measured

mod sim;

use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_run::Ended;
use sim::Sim;

const MACHINES: usize = if cfg!(debug_assertions) { 200 } else { 1_000 };
const MEMORY_KIB: u64 = 500 * 1024;

#[tokio::test(start_paused = true)]
async fn a_thousand_machines_are_planned_and_run_in_time_and_memory() {
    let slack = if cfg!(debug_assertions) { 10 } else { 1 };
    let folder = tempfile::tempdir().unwrap();
    let mut yaml = String::from(
        "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  network: {pods: 10.192.0.0/12, podsPerNodeMask: 24}\n  machines:\n",
    );
    for index in 0..MACHINES {
        let role = if index < 3 { "control-plane" } else { "worker" };
        yaml.push_str(&format!(
            "    - {{name: m{index:04}, address: 10.77.{}.{}, roles: [{role}]}}\n",
            index / 200,
            index % 200 + 10
        ));
    }
    let sim = Sim::new(&yaml, folder.path());
    sim.world.lazy.store(true, Ordering::Relaxed);
    let (session, options) = (sim.session(), sim::options());

    let facts = session.gather().await.unwrap();
    let begun = processor();
    let plan = quorate_plan::plan(&sim.spec, &facts);
    let planning = processor() - begun;
    drop(facts);

    let begun = processor();
    let listener = quorate_run::silent();
    let outcome = sim
        .while_time_passes(session.execute(&plan, &options, &listener))
        .await
        .unwrap();
    let running = processor() - begun;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures.first());
    assert_eq!(sim.left().await, []);
    let memory = peak_memory_kib();

    let report = format!(
        "{} steps on {MACHINES} machines: planned in {planning:?}, run in {running:?}, at most {} MiB",
        plan.step_count(),
        memory / 1024
    );
    eprintln!("{report}");
    assert!(planning <= Duration::from_secs(1) * slack, "{report}");
    assert!(running <= Duration::from_secs(10) * slack, "{report}");
    assert!(memory <= MEMORY_KIB, "{report}");
}

/// Time this process has used, in the kernel's hundredths (proc_pid_stat(5), fields 14 and 15).
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    Duration::from_millis(
        fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().unwrap() * 10)
            .sum(),
    )
}

/// Of this process, the fake machines and their files included.
fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
