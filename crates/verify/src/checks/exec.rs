//! The API server reaches kubelets: logs and exec work on every node.

use futures_util::future::join_all;
use quorate_machine::proto::Exec;

use crate::{Check, Cluster, Finding, Probe, View, check, fail};

const KUBECTL: &str = "/opt/quorate/bin/kubectl";
/// Not in root's home, where it would outlive the cluster.
const CACHE: &str = "--cache-dir=/run/quorate/kubectl";

pub(crate) async fn checks(cluster: &Cluster<'_>, view: &View) -> Vec<Check> {
    let Ok(probes) = &view.probes else { return Vec::new() };
    // kubectl is on the control planes; any that answers will do.
    let Some(via) = cluster
        .spec
        .control_planes()
        .iter()
        .find_map(|machine| cluster.machine(&machine.name))
    else {
        return Vec::new();
    };
    let groups = join_all(probes.iter().map(|(node, probe)| async move {
        if cluster.machine(node).is_none() {
            // The API server would wait for a dead kubelet longer than all other checks take together.
            let silent = || async { fail("its machine does not answer", "see the machine") };
            return vec![check("logs", node, silent()).await, check("exec", node, silent()).await];
        }
        let (logs, exec) = tokio::join!(
            check("logs", node, logs(cluster, probe)),
            check("exec", node, exec(cluster, via, probe))
        );
        vec![logs, exec]
    }))
    .await;
    groups.into_iter().flatten().collect()
}

async fn logs(cluster: &Cluster<'_>, probe: &Probe) -> Finding {
    let Some(api) = &cluster.api else {
        return fail("no API server answers", "see the API servers");
    };
    let path = format!("/api/v1/namespaces/kube-system/pods/{}/log?tailLines=1", probe.pod);
    match api.text(&path).await {
        Ok(_) => Ok("can be read".into()),
        Err(error) => fail(
            error.to_string(),
            "the kubelet's serving certificate, and port 10250 from the control planes",
        ),
    }
}

async fn exec(cluster: &Cluster<'_>, via: &quorate_machine::MachineRef, probe: &Probe) -> Finding {
    let command = [
        KUBECTL,
        "--kubeconfig=/dev/stdin",
        CACHE,
        "-n",
        "kube-system",
        "exec",
        &probe.pod,
        "--",
        "/quorate",
        "--version",
    ];
    let exec = Exec::new(command).stdin(cluster.kubeconfig.as_str()).timeout_ms(15_000);
    match via.exec_ok(exec).await {
        Ok(output) => Ok(output.stdout.lossy().trim().to_owned()),
        Err(error) => fail(
            error.to_string(),
            "port 10250 from the control planes, and the RBAC of kube-apiserver-kubelet-client",
        ),
    }
}
