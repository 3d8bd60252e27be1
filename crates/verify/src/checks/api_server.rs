//! Every API server says of itself that it is ready.

use futures_util::future::join_all;
use quorate_machine::proto::HttpRequest;

use crate::{Check, Cluster, check, fail};

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    join_all(cluster.spec.control_planes().into_iter().map(|control_plane| {
        check("api-server", &control_plane.name, async move {
            let hint = format!("on {}: {}", control_plane.name, cluster.logs_of("kube-apiserver"));
            let Some(machine) = cluster.machine(&control_plane.name) else {
                return fail("its machine does not answer", hint);
            };
            let url = format!(
                "https://{}/readyz?verbose",
                quorate_plan::host_port(control_plane.address, quorate_spec::API_PORT)
            );
            let mut request = HttpRequest::get(url).ca("/etc/kubernetes/pki/ca.crt");
            request.server_name = Some("kubernetes".into());
            request.timeout_ms = 5_000;
            match machine.http(request).await {
                Ok(reply) if reply.status == 200 => Ok("ready".into()),
                Ok(reply) => {
                    let body = reply.body.lossy();
                    let failing: Vec<&str> = body.lines().filter(|line| line.starts_with("[-]")).collect();
                    fail(format!("not ready: {}", failing.join(" ")), hint)
                }
                Err(error) => fail(error.to_string(), hint),
            }
        })
    }))
    .await
}
