//! Clusters of kubeadm's, founded, interrupted and mended on fake machines.

mod sim;

use std::sync::atomic::Ordering;

use quorate_run::Ended;
use sim::Sim;

const PAIR: &str = include_str!("../../../examples/lb-pair.yaml");
const JOIN: &str = "/etc/quorate/kubeadm/join.yaml";

#[tokio::test(start_paused = true)]
async fn bare_machines_become_a_cluster_and_a_second_plan_is_empty() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(PAIR, folder.path());
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
    // Nobody can join any more, and nobody of system:masters is left.
    for machine in sim.machines.values() {
        for path in [
            JOIN,
            "/etc/quorate/kubeadm/init.yaml",
            "/etc/kubernetes/super-admin.conf",
        ] {
            assert!(machine.file(path).is_none(), "{path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn killed_after_every_step_it_converges_to_the_same_cluster() {
    // What an interrupted join left of kubeadm's own work may be there beside it.
    sim::killed_after_every_step(PAIR, 7, |expected, found, when| {
        for (key, value) in expected {
            assert_eq!(found.get(key), Some(value), "{when}: {key}");
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_join_that_dies_after_its_member_was_added_is_taken_back_and_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(PAIR, folder.path());
    sim.world.dies_in_join.store(true, Ordering::Relaxed);
    let (_, outcome) = sim.apply().await;
    assert_eq!(
        outcome.ended,
        Ended::Failed {
            stage: "control-plane".into()
        }
    );
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    let mended: Vec<&str> = plan
        .steps()
        .map(|step| step.id.as_str())
        .filter(|id| id.starts_with("control-plane/m2/"))
        .collect();
    assert_eq!(
        mended,
        [
            "control-plane/m2/remove-stale",
            "control-plane/m2/reset",
            "control-plane/m2/forget-data",
            "control-plane/m2/join",
            "control-plane/m2/servers",
            "control-plane/m2/kubelet",
            "control-plane/m2/register",
            "control-plane/m2/joined"
        ]
    );
    assert_eq!(sim.left().await, []);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_is_not_founded_while_a_control_plane_is_away() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(PAIR, folder.path());
    sim.power_off("m1");
    let plan = sim.plan().await;
    assert!(plan.steps().all(|step| !step.id.ends_with("/init")));
    assert!(plan.notes.iter().any(|note| note.message.contains("none is founded")));
}

#[tokio::test(start_paused = true)]
async fn an_object_the_api_fails_to_give_is_unknown_and_nothing_follows_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(PAIR, folder.path());
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    let node = "/api/v1/nodes/w1".to_owned();
    *sim.world.unreadable.lock().unwrap() = Some(node.clone());
    let facts = sim.session().gather().await.unwrap();
    assert_eq!(facts.cluster.unknown, [node].into());
    assert_eq!(sim.left().await, []);
    let plan = sim.plan().await;
    assert!(plan.notes.iter().any(|note| note.message.contains("/api/v1/nodes/w1")));
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_does_not_answer_keeps_its_workers() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(PAIR, folder.path());
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    for name in ["m1", "m2", "m3"] {
        sim.power_off(name);
    }
    let plan = sim.plan().await;
    let ids: Vec<&str> = plan.steps().map(|step| step.id.as_str()).collect();
    assert!(
        ids.iter().all(|id| !id.ends_with("/reset") && !id.ends_with("/join")),
        "{ids:#?}"
    );
}

#[tokio::test(start_paused = true)]
async fn client_certificates_in_kubeconfigs_are_renewed_and_their_pods_start_again() {
    const CONFS: [&str; 3] = ["controller-manager", "scheduler", "admin"];
    let folder = tempfile::tempdir().unwrap();
    let first = Sim::new(PAIR, folder.path());
    let mut count = 0;
    // The operator dies after each step in turn, at last after none.
    loop {
        let sim = Sim::with(first.spec.clone(), first.operator.clone());
        sim.apply().await;
        for conf in CONFS {
            let path = format!("/etc/kubernetes/{conf}.conf");
            sim.machines["m2"].put_file(&path, sim::kubeadm::client_kubeconfig(100), 0o600);
        }
        assert_eq!(sim.left().await, [], "265 days are enough");
        let pods = ["kube-controller-manager", "kube-scheduler"].map(|pod| (pod, sim.inputs("m2", pod)));
        for conf in CONFS {
            let path = format!("/etc/kubernetes/{conf}.conf");
            sim.machines["m2"].put_file(&path, sim::kubeadm::client_kubeconfig(300), 0o600);
        }
        let plan = sim.plan().await;
        let steps: Vec<&str> = plan
            .steps()
            .filter_map(|step| step.id.strip_prefix("control-plane/m2/"))
            .collect();
        assert_eq!(
            steps,
            [
                "files",
                "renew-controller-manager",
                "renew-scheduler",
                "renew-admin",
                "kube-controller-manager",
                "kube-scheduler"
            ]
        );
        let killed = sim.apply_killed_after(count).await.is_some();
        let (_, outcome) = sim.apply().await;
        assert_eq!(outcome.ended, Ended::Complete, "after {count}: {:#?}", outcome.failures);
        assert_eq!(sim.left().await, [], "after {count}");
        for (pod, before) in pods {
            let now = sim.inputs("m2", pod);
            assert!(now.starts_with(&format!("{before}-")), "after {count}: {pod} {now}");
        }
        if !killed {
            break;
        }
        count += 1;
    }
    assert!(count >= 6, "{count}");
}

#[tokio::test(start_paused = true)]
async fn no_program_is_told_a_secret_in_its_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let sim = Sim::new(PAIR, folder.path());
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    let words = sim.world.words.lock().unwrap().clone();
    assert!(words.contains("join"), "{words:#?}");
    let mut secrets = 0;
    let mut folders = vec![folder.path().to_owned()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let is_secret =
                path.extension().is_some_and(|is| is == "key") || path.parent().unwrap().ends_with("secrets");
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            // Any line of a key, and either half of a token, would do harm.
            for part in text
                .split(['\n', '.'])
                .filter(|part| is_secret && part.len() >= 6 && !part.starts_with("-----"))
            {
                secrets += 1;
                assert!(words.iter().all(|word| !word.contains(part)), "{}", path.display());
            }
        }
    }
    assert!(secrets >= 8, "{secrets}");
}
