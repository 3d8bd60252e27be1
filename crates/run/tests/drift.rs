//! What changed by itself and was once not put right, or not safely: found by `faults`.

mod sim;

use quorate_run::Ended;
use sim::Sim;

const MINIMAL: &str = include_str!("../../../examples/minimal.yaml");

/// Its etcd has what it had as a member, and with it ends at once.
#[tokio::test(start_paused = true)]
async fn a_member_that_was_removed_from_etcd_joins_again_without_its_data() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    sim.no_member("m2").unwrap();
    let (plan, outcome) = sim.apply().await;
    let steps: Vec<&str> = plan
        .steps()
        .map(|step| step.id.as_str())
        .filter(|id| id.starts_with("etcd/"))
        .collect();
    assert_eq!(
        steps,
        [
            "etcd/m2/stop",
            "etcd/m2/forget-data",
            "etcd/m2/add-learner",
            "etcd/m2/files",
            "etcd/m2/units",
            "etcd/m2/promote"
        ]
    );
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_others_could_read_is_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    let (m1, key) = (&sim.machines["m1"], "/etc/kubernetes/pki/apiserver.key");
    let before = m1.file(key).unwrap();
    m1.state().files.get_mut(key).unwrap().mode = 0o644;
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_ne!(m1.file(key).unwrap(), before);
    assert_eq!(m1.state().files[key].mode, 0o600);
    assert_eq!(sim.left().await, []);
}

fn etcd_needs_a_restart(sim: &Sim, machine: &str) {
    let path = "/etc/systemd/system/etcd.service";
    sim.machines[machine].put_file(path, "# by somebody else\n", 0o644);
}

#[tokio::test(start_paused = true)]
async fn a_member_that_is_down_is_up_again_before_another_one_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    etcd_needs_a_restart(&sim, "m1");
    sim.machines["m3"].state().units.get_mut("etcd.service").unwrap().active = false;
    let (plan, outcome) = sim.apply().await;
    let restart = plan.steps().find(|step| step.id == "etcd/m1/files").unwrap();
    assert_eq!(restart.needs, ["etcd/m3/units"]);
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
}

#[tokio::test(start_paused = true)]
async fn no_member_restarts_while_the_others_are_no_quorum() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(MINIMAL, folder.path());
    sim.apply().await;
    etcd_needs_a_restart(&sim, "m1");
    sim.power_off("m3");
    let plan = sim.plan().await;
    assert!(!plan.steps().any(|step| step.id.starts_with("etcd/m1/")));
    let note = plan
        .notes
        .iter()
        .find(|note| note.machine.as_deref() == Some("m1"))
        .unwrap();
    assert!(note.message.contains("m3 does not answer"), "{}", note.message);
    sim.machines["m3"].power_on();
    let (plan, outcome) = sim.apply().await;
    assert!(plan.steps().any(|step| step.id == "etcd/m1/units"));
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
}
