//! One value of the cluster file is changed: exactly what follows from it is planned, and carried out nothing is left.

mod sim;

use quorate_run::Ended;
use sim::Sim;

const BINARY: &str = include_str!("../../../examples/minimal.yaml");
const KUBEADM: &str = include_str!("../../../examples/lb-pair.yaml");

/// Ids of the steps that follow in a converged cluster when `from` in its file becomes `to`.
async fn follows(file: &str, from: &str, to: &str) -> Vec<String> {
    assert_eq!(file.matches(from).count(), 1, "{from}");
    let folder = tempfile::tempdir().unwrap();
    let mut sim = Sim::new(file, folder.path());
    let (_, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, []);
    sim.spec = sim::load(&file.replace(from, to));
    let (plan, outcome) = sim.apply().await;
    assert_eq!(outcome.ended, Ended::Complete, "{:#?}", outcome.failures);
    assert_eq!(sim.left().await, [], "{to}");
    plan.steps().map(|step| step.id.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_flag_of_the_api_server_renews_the_api_servers_one_after_the_other() {
    let flag = "apiServer: {extraArgs: {max-requests-inflight: \"500\"}}";
    assert_eq!(
        follows(BINARY, "spec:\n", &format!("spec:\n  kubernetes: {{{flag}}}\n")).await,
        [
            "control-plane/m1/files",
            "control-plane/m1/units",
            "control-plane/m2/files",
            "control-plane/m2/units",
            "control-plane/m3/files",
            "control-plane/m3/units",
        ]
    );
    // Their Pods, kubeadm's configuration on each machine, and its record in the cluster.
    let version = "    version: v1.36.3\n";
    assert_eq!(
        follows(KUBEADM, version, &format!("{version}    {flag}\n")).await,
        [
            "control-plane/m1/files",
            "control-plane/m1/kube-apiserver",
            "control-plane/m2/files",
            "control-plane/m2/kube-apiserver",
            "control-plane/m3/files",
            "control-plane/m3/kube-apiserver",
            "control-plane/m1/rbac",
        ]
    );
}

/// API servers read a new certificate by themselves: nothing starts again.
#[tokio::test(start_paused = true)]
async fn a_name_of_the_api_server_issues_its_certificates_again() {
    let sans = "apiServer: {sans: [api.example.org]}";
    assert_eq!(
        follows(BINARY, "spec:\n", &format!("spec:\n  kubernetes: {{{sans}}}\n")).await,
        [
            "control-plane/m1/files",
            "control-plane/m2/files",
            "control-plane/m3/files",
        ]
    );
    let version = "    version: v1.36.3\n";
    assert_eq!(
        follows(KUBEADM, version, &format!("{version}    {sans}\n")).await,
        [
            "certificates/m1/files",
            "certificates/m2/files",
            "certificates/m3/files",
            "control-plane/m1/files",
            "control-plane/m2/files",
            "control-plane/m3/files",
            "control-plane/m1/rbac",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_label_changes_its_node_alone() {
    let worker = "{address: 10.77.0.14, roles: [worker]}";
    let labelled = "{address: 10.77.0.14, roles: [worker], labels: {zone: a}}";
    assert_eq!(follows(BINARY, worker, labelled).await, ["labels/m1/nodes"]);
    assert_eq!(
        follows(&BINARY.replace(worker, labelled), "zone: a", "zone: b").await,
        ["labels/m1/nodes"]
    );
    let worker = "address: 10.77.0.14, roles: [worker]}";
    let labelled = "address: 10.77.0.14, roles: [worker], labels: {zone: a}}";
    assert_eq!(follows(KUBEADM, worker, labelled).await, ["labels/m1/nodes"]);
    assert_eq!(
        follows(&KUBEADM.replace(worker, labelled), "zone: a", "zone: b").await,
        ["labels/m1/nodes"]
    );
}
