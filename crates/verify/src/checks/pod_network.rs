//! What Pods reach: a Pod on another machine, a Service, a name. Asked of the probe Pods through the machine they are on.

use futures_util::future::join_all;
use quorate_machine::proto::HttpRequest;
use serde_json::Value;

use crate::{Check, Cluster, Finding, Probe, View, check, fail};

pub(crate) async fn checks(cluster: &Cluster<'_>, view: &View) -> Vec<Check> {
    if matches!(cluster.spec.network.cni, quorate_spec::Cni::None) {
        return Vec::new();
    }
    let nodes: Vec<&str> = cluster
        .spec
        .nodes()
        .iter()
        .filter(|node| cluster.machine(&node.name).is_some())
        .map(|node| node.name.as_str())
        .collect();
    let service = view
        .services
        .get("quorate-probe")
        .and_then(|service| service.pointer("/spec/clusterIP"))
        .and_then(Value::as_str);
    let groups = join_all(nodes.iter().enumerate().map(|(index, node)| {
        // Each Pod asks the one on the next machine, so that every machine is asked and asks once.
        let next = nodes[(index + 1) % nodes.len()];
        async move {
            let (pod, service, dns) = tokio::join!(
                check("pod-to-pod", node, pod_to_pod(cluster, view, node, next)),
                check("service", node, reach_service(cluster, view, node, service)),
                check("dns", node, name(cluster, view, node)),
            );
            vec![pod, service, dns]
        }
    }))
    .await;
    groups.into_iter().flatten().collect()
}

async fn pod_to_pod(cluster: &Cluster<'_>, view: &View, from: &str, to: &str) -> Finding {
    let target = probe(view, to)?;
    let hint = format!("UDP between {from} and {to} (vxlan, port 8472), and journalctl -u flanneld");
    let question = format!("/get?to={}", socket(&target.address, quorate_plan::PROBE_PORT));
    ask(cluster, view, from, &question)
        .await
        .map(|_| format!("reaches the Pod on {to}"))
        .map_err(|error| (error, hint))
}

async fn reach_service(cluster: &Cluster<'_>, view: &View, from: &str, service: Option<&str>) -> Finding {
    let Some(address) = service else {
        return fail("the probe's Service does not exist", "quorate apply");
    };
    let hint = format!("on {from}: journalctl -u kube-proxy");
    ask(cluster, view, from, &format!("/get?to={}", socket(address, 80)))
        .await
        .map(|_| format!("{address} answers"))
        .map_err(|error| (error, hint))
}

async fn name(cluster: &Cluster<'_>, view: &View, from: &str) -> Finding {
    if cluster.spec.dns.replicas == 0 {
        return Ok("no cluster DNS wanted".into());
    }
    let name = format!("kubernetes.default.svc.{}", cluster.spec.kubernetes.domain);
    let hint = "kubectl -n kube-system logs deployment/coredns".to_owned();
    ask(cluster, view, from, &format!("/dns?name={name}"))
        .await
        .map(|found| format!("{name} is {found}"))
        .map_err(|error| (error, hint))
}

/// A question to the probe Pod on `node`, sent by that machine.
async fn ask(cluster: &Cluster<'_>, view: &View, node: &str, question: &str) -> Result<String, String> {
    let probe = probe(view, node).map_err(|(detail, _)| detail)?;
    let machine = cluster.machine(node).ok_or_else(|| format!("{node} does not answer"))?;
    let mut request = HttpRequest::get(format!(
        "http://{}{question}",
        socket(&probe.address, quorate_plan::PROBE_PORT)
    ));
    request.timeout_ms = 5_000;
    let reply = machine.http(request).await.map_err(|error| error.to_string())?;
    let body = reply.body.lossy();
    if reply.status == 200 {
        Ok(body.trim().to_owned())
    } else {
        Err(body.trim().to_owned())
    }
}

fn probe<'a>(view: &'a View, node: &str) -> Result<&'a Probe, (String, String)> {
    let probes = view
        .probes
        .as_ref()
        .map_err(|error| (error.clone(), "see the API servers".to_owned()))?;
    probes.get(node).ok_or_else(|| {
        (
            format!("no probe Pod on {node}"),
            "kubectl -n kube-system describe daemonset quorate-probe".to_owned(),
        )
    })
}

fn socket(address: &str, port: u16) -> String {
    address.parse().map_or_else(
        |_| format!("{address}:{port}"),
        |address| quorate_plan::host_port(address, port),
    )
}
