//! The agent as a static Pod: founded, changed, made a unit again and back, on fake machines.

mod sim;

use quorate_run::Ended;
use sim::Sim;

const COLOCATED: &str = include_str!("../../../examples/colocated.yaml");
const MANIFEST: &str = "/etc/kubernetes/manifests/quorate-agent.yaml";

fn node_local(bootstrap: &str) -> String {
    include_str!("../../../examples/minimal.yaml").replace(
        "spec:\n",
        &format!("spec:\n  kubernetes: {{bootstrap: {bootstrap}}}\n  access: proxy\n  agent: {{as: static-pod}}\n"),
    )
}

async fn complete(sim: &Sim, what: &str) -> Vec<String> {
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{what}: {:#?}", outcome.failures);
    assert_eq!(sim.left().await, [], "{what}");
    plan.steps().map(|step| step.id.clone()).collect()
}

fn position(steps: &[String], id: &str) -> usize {
    steps
        .iter()
        .position(|step| step == id)
        .unwrap_or_else(|| panic!("{id} is not in {steps:#?}"))
}

#[tokio::test(start_paused = true)]
async fn the_manifest_lies_there_before_kubeadm_begins_and_a_unit_serves_until_then() {
    for text in [COLOCATED.to_owned(), node_local("kubeadm")] {
        let folder = tempfile::tempdir().unwrap();
        let sim = Sim::new(&text, folder.path());
        let founder = sim.spec.machines[0].name.clone();
        let steps = complete(&sim, "apply").await;
        let until = position(&steps, &format!("endpoint/{founder}/until-joined"));
        let pods = position(&steps, &format!("control-plane/{founder}/pods"));
        let init = position(&steps, &format!("control-plane/{founder}/init"));
        assert!(until < pods && pods < init, "{steps:#?}");
    }
}

#[tokio::test(start_paused = true)]
async fn another_configuration_renews_the_pods_one_holder_after_the_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut sim = Sim::new(COLOCATED, folder.path());
    complete(&sim, "apply").await;
    sim.spec = sim::load(&COLOCATED.replace("interval: 100ms", "interval: 200ms"));
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
    for (one, next) in [("m1", "m2"), ("m2", "m3")] {
        let files = plan
            .steps()
            .find(|step| step.id == format!("endpoint/{next}/files"))
            .unwrap();
        assert_eq!(files.needs, [format!("endpoint/{one}/pods")]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_becomes_a_unit_and_a_pod_again() {
    for text in [COLOCATED.to_owned(), node_local("binary")] {
        let folder = tempfile::tempdir().unwrap();
        let mut sim = Sim::new(&text, folder.path());
        let machine = sim.spec.machines[0].name.clone();
        complete(&sim, "as a Pod").await;
        let there = |sim: &Sim| sim.machines[&machine].file(MANIFEST).is_some();
        assert!(there(&sim));
        sim.spec = sim::load(&text.replace("as: static-pod", "as: unit"));
        let steps = complete(&sim, "as a unit").await;
        assert!(!there(&sim));
        let gone = position(&steps, &format!("endpoint/{machine}/no-pods"));
        assert!(gone < position(&steps, &format!("endpoint/{machine}/units")));
        sim.spec = sim::load(&text);
        let steps = complete(&sim, "as a Pod again").await;
        assert!(there(&sim));
        let stopped = position(&steps, &format!("endpoint/{machine}/units"));
        assert!(stopped < position(&steps, &format!("endpoint/{machine}/pods")));
    }
}

#[tokio::test(start_paused = true)]
async fn killed_after_every_step_it_converges_to_the_same_cluster() {
    for text in [COLOCATED.to_owned(), node_local("binary")] {
        sim::killed_after_every_step(&text, 7, |expected, found, when| {
            for (key, value) in expected {
                assert_eq!(found.get(key), Some(value), "{when}: {key}");
            }
        })
        .await;
    }
}
