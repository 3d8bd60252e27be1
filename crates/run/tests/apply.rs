//! Whole runs on fake machines.

mod sim;

use std::sync::{Arc, Mutex};

use quorate_run::{Ended, Listener, Stop, read_journal, runs};
use sim::Sim;

const MINIMAL: &str = include_str!("../../../examples/minimal.yaml");

#[tokio::test(start_paused = true)]
async fn bare_machines_become_a_cluster_and_a_second_plan_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(outcome.done, plan.step_count());
    let again = sim.plan().await;
    assert_eq!(again.steps().map(|step| (&step.id, &step.why)).collect::<Vec<_>>(), []);
    let story = read_journal(folder.path(), &outcome.run).unwrap();
    assert_eq!(story.ended(), Some("complete"));
    assert_eq!(story.begun().len(), plan.step_count());
    assert_eq!(story.plan.unwrap().hash(), plan.hash());
    assert_eq!(runs(folder.path()).len(), 1);
}
