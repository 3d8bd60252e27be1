//! The API answers at its stable address, from every machine that has business with it.

use futures_util::future::join_all;
use quorate_machine::MachineRef;
use quorate_machine::proto::HttpRequest;
use quorate_spec::Machine;

use crate::{Check, Cluster, Finding, check, fail};

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    let Some(endpoint) = &cluster.spec.endpoint else {
        return Vec::new();
    };
    let address = quorate_plan::host_port(endpoint.vip, endpoint.port);
    let holders = cluster.spec.vip_holders();
    // Machines of etcd alone need no API, and have no authority to know it by.
    let concerned = |machine: &&Machine| machine.is_node() || holders.iter().any(|holder| holder.name == machine.name);
    let machines = cluster
        .expected()
        .filter(concerned)
        .filter_map(|machine| Some((machine, cluster.machine(&machine.name)?)));
    join_all(machines.map(|(machine, connection)| {
        let address = address.clone();
        async move {
            let ca = if machine.is_node() {
                "/etc/kubernetes/pki/ca.crt"
            } else {
                "/etc/quorate/ca.crt"
            };
            check(
                "endpoint",
                &machine.name,
                ready(
                    connection,
                    &address,
                    ca,
                    "see the checks of the VIP and the API servers",
                ),
            )
            .await
        }
    }))
    .await
}

/// `/readyz` at `address`, asked by the machine itself.
pub(crate) async fn ready(machine: &MachineRef, address: &str, ca: &str, hint: &str) -> Finding {
    let mut request = HttpRequest::get(format!("https://{address}/readyz")).ca(ca);
    request.server_name = Some("kubernetes".into());
    request.timeout_ms = 5_000;
    match machine.http(request).await {
        Ok(reply) if reply.status == 200 => Ok(format!("{address} answers")),
        Ok(reply) => fail(format!("{address} answers {}", reply.status), hint),
        Err(error) => fail(error.to_string(), hint),
    }
}
