//! The VIP has exactly one owner.

use std::net::IpAddr;

use futures_util::future::join_all;
use quorate_machine::{Request, Response};
use quorate_spec::Balancer;

use crate::{Check, Cluster, check, fail};

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    let mut vips: Vec<(&str, IpAddr, Vec<&str>)> = Vec::new();
    if let Some(endpoint) = &cluster.spec.endpoint {
        vips.push((
            "vip",
            endpoint.vip,
            cluster
                .spec
                .vip_holders()
                .iter()
                .map(|machine| machine.name.as_str())
                .collect(),
        ));
    }
    if let Some(vip) = &cluster.spec.etcd.vip {
        vips.push((
            "etcd-vip",
            vip.address,
            cluster
                .spec
                .etcd_members()
                .iter()
                .map(|machine| machine.name.as_str())
                .collect(),
        ));
    }
    join_all(vips.into_iter().map(|(name, vip, holders)| async move {
        check(name, &vip.to_string(), async {
            let owners = owners(cluster, vip, &holders).await;
            match owners.as_slice() {
                [owner] => Ok(format!("held by {owner}")),
                [] => fail(
                    "nobody holds it",
                    match cluster.spec.balancer {
                        Balancer::Quorate => format!("on {}: quorate agent ctl show", holders.join(", ")),
                        Balancer::Haproxy => format!("on {}: journalctl -u keepalived-quorate", holders.join(", ")),
                    },
                ),
                several => fail(
                    format!("held by {} at once", several.join(" and ")),
                    "their VRRP advertisements do not reach each other (protocol 112)",
                ),
            }
        })
        .await
    }))
    .await
}

/// Machines among `holders` that have `vip` on an interface now.
pub(crate) async fn owners(cluster: &Cluster<'_>, vip: IpAddr, holders: &[&str]) -> Vec<String> {
    let found = join_all(
        holders
            .iter()
            .filter_map(|name| Some((name, cluster.machine(name)?)))
            .map(|(name, machine)| async move {
                match machine.call(Request::Network).await {
                    Ok(Response::Network(network)) if network.interface_of(vip).is_some() => Some((*name).to_owned()),
                    _ => None,
                }
            }),
    )
    .await;
    found.into_iter().flatten().collect()
}
