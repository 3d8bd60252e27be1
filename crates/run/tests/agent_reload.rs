//! A changed configuration of the agent is read again; only what it cannot change that way restarts it. On fake machines.

mod sim;

use quorate_plan::{Action, Plan};
use quorate_run::Ended;
use sim::Sim;

const LB_PAIR: &str = include_str!("../../../examples/lb-pair.yaml");
const AGENT: &str = "quorate-agent.service";
const RUNNING: &str = "/run/quorate/agent.running";

/// Of the agent's unit on `lb1`: how often it was started and reloaded.
fn counts(sim: &Sim) -> (u32, u32) {
    let state = sim.machines["lb1"].state();
    let unit = &state.units[AGENT];
    (unit.starts, unit.reloads)
}

async fn applied(sim: &Sim, what: &str) -> Plan {
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{what}: {:#?}", outcome.failures);
    assert_eq!(sim.left().await, [], "{what}");
    plan
}

#[tokio::test(start_paused = true)]
async fn backends_and_limits_are_read_again_and_a_listener_of_statistics_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut sim = Sim::new(LB_PAIR, folder.path());
    applied(&sim, "first").await;
    assert_eq!(counts(&sim), (1, 0));

    sim.spec = sim::load(&LB_PAIR.replace("maxConnections: 20000", "maxConnections: 10000"));
    let plan = applied(&sim, "another limit").await;
    assert_eq!(counts(&sim), (1, 1));
    let step = |id: &str| plan.steps().find(|step| step.id == id).unwrap();
    let units = step("endpoint/lb1/units");
    assert_eq!(units.title, "reload quorate-agent");
    let Action::Units {
        restart, reload_units, ..
    } = &units.action
    else {
        panic!("{units:#?}")
    };
    assert_eq!((restart.len(), reload_units.as_slice()), (0, &[AGENT.to_owned()][..]));
    // A configuration that is wrong must not reach the second holder before the first has it in force.
    assert_eq!(step("endpoint/lb2/files").needs, ["endpoint/lb1/units"]);

    sim.spec = sim::load(&LB_PAIR.replace("port: 9000", "port: 9001"));
    applied(&sim, "another port for statistics").await;
    assert_eq!(counts(&sim), (2, 1));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_runs_with_what_was_there_before_is_told_again() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(LB_PAIR, folder.path());
    applied(&sim, "first").await;
    sim.machines["lb1"].put_file(RUNNING, "0123  /etc/quorate/agent.yaml\n", 0o600);
    let plan = applied(&sim, "again").await;
    let ids: Vec<&str> = plan.steps().map(|step| step.id.as_str()).collect();
    assert_eq!(ids, ["endpoint/lb1/units"]);
    assert_eq!(counts(&sim), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_refuses_fails_its_step_and_spares_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut sim = Sim::new(LB_PAIR, folder.path());
    applied(&sim, "first").await;
    sim.spec = sim::load(&LB_PAIR.replace("maxConnections: 20000", "maxConnections: 10000"));
    sim.machines["lb1"].state().failing_units.insert(AGENT.into(), 1);
    let (_, outcome) = sim.apply().await;
    assert_ne!(outcome.ended, Ended::Complete);
    let failed: Vec<&str> = outcome.failures.iter().map(|failure| failure.step.as_str()).collect();
    assert_eq!(failed, ["endpoint/lb1/units"]);
    assert!(
        outcome.failures[0].error.contains("control process"),
        "{:#?}",
        outcome.failures
    );
    assert_eq!(sim.machines["lb2"].state().units[AGENT].reloads, 0);
    sim.machines["lb1"].state().failing_units.clear();
    applied(&sim, "mended").await;
    assert_eq!(counts(&sim), (1, 1));
}
