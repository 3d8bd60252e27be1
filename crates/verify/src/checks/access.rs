//! Every node's own way to the API works, where that is not the endpoint.

use futures_util::future::join_all;
use quorate_spec::{Access, Balancer, RunAs};

use crate::checks::endpoint::ready;
use crate::{Check, Cluster, check};

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    let address = match &cluster.spec.access {
        Access::Endpoint => return Vec::new(),
        Access::Proxy { listen } => *listen,
        Access::Ipvs { virtual_address, .. } | Access::Ebpf { virtual_address } => *virtual_address,
    };
    let nodes = cluster
        .spec
        .nodes()
        .into_iter()
        .filter(|node| !node.is_control_plane() || matches!(cluster.spec.access, Access::Proxy { .. }));
    // Kernel work is the agent's, whoever proxies.
    let by_haproxy = cluster.spec.balancer == Balancer::Haproxy && matches!(cluster.spec.access, Access::Proxy { .. });
    let hint = if by_haproxy {
        "on the machine: journalctl -u haproxy-quorate"
    } else if cluster.spec.balancer_as == RunAs::StaticPod {
        "on the machine: tail /var/log/pods/kube-system_quorate-agent-*/agent/*.log"
    } else {
        "on the machine: journalctl -u quorate-agent"
    };
    join_all(
        nodes
            .filter_map(|node| Some((node, cluster.machine(&node.name)?)))
            .map(|(node, machine)| async move {
                check(
                    "access",
                    &node.name,
                    ready(machine, &address.to_string(), "/etc/kubernetes/pki/ca.crt", hint),
                )
                .await
            }),
    )
    .await
}
