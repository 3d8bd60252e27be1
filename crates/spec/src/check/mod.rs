//! From the raw file to the [`Spec`]: one file per part of it. Each check reports what it finds with its reason and
//! its way out, and goes on; a `Spec` comes about only without errors.

mod access;
mod address;
mod endpoint;
mod etcd;
mod flags;
mod kubernetes;
mod machines;
mod names;
mod network;
mod options;
mod overlaps;

pub(crate) use kubernetes::DEFAULT_VERSION;

use crate::document::{Document, at};
use crate::file::ClusterFile;
use crate::spec::{Access, Drill, Spec};

/// `None` if anything is missing; then at least one error was reported.
pub(crate) fn spec(document: &mut Document<'_>, file: &ClusterFile) -> Option<Spec> {
    let name = options::name(document, &file.metadata);
    let file = file.spec.as_ref()?;

    let drafts = machines::drafts(document, &file.machines);
    let kubernetes = kubernetes::kubernetes(document, &file.kubernetes);
    let network = network::network(document, &file.network, &drafts);
    let dns = network::dns(document, &file.dns, network.as_ref(), &drafts);
    let endpoint = endpoint::endpoint(document, &file.endpoint, &drafts);
    let domain = file.kubernetes.domain.as_deref().unwrap_or("cluster.local");
    let readable = match &endpoint {
        Ok(endpoint) => Ok(endpoint.as_ref()),
        Err(()) => Err(()),
    };
    let access = access::access(document, file, readable, domain, &drafts);
    let etcd = etcd::etcd(document, file, readable.ok().flatten(), &drafts);
    let security = options::security(document, &file.security);
    let host = options::host(document, &file.host);
    let ssh = machines::ssh(document, &file.ssh);
    let bundle = options::bundle(document, &file.bundle);
    let machines = machines::finish(document, &drafts, &ssh);

    // From here on parts are compared with each other.
    if let Some(network) = &network {
        let ranges = overlaps::taken(network, &file.network);
        let mut virtuals = Vec::new();
        let mut add = |at, what: &str, address: std::net::IpAddr| {
            virtuals.push(overlaps::Taken {
                at,
                what: format!("{what} {address}"),
                field: "address",
                net: endpoint::single(address),
            });
        };
        if let Ok(Some(endpoint)) = &endpoint {
            add(at!["spec", "endpoint", "vip"], "the VIP", endpoint.vip);
        }
        if let Some(vip) = etcd.as_ref().and_then(|e| e.vip.as_ref()) {
            add(at!["spec", "etcd", "vip"], "etcd's VIP", vip.address);
        }
        match &access {
            Some(Access::Ipvs { virtual_address, .. }) => {
                add(
                    at!["spec", "accessOptions", "ipvs", "virtual"],
                    "the virtual address",
                    virtual_address.ip(),
                );
            }
            Some(Access::Ebpf { virtual_address }) => {
                add(
                    at!["spec", "accessOptions", "ebpf", "virtual"],
                    "the virtual address",
                    virtual_address.ip(),
                );
            }
            _ => {}
        }
        overlaps::check(document, &ranges, &drafts, &virtuals);
    }
    let (network, endpoint, access, etcd) = (network?, endpoint.ok()?, access?, etcd?);
    let (balancer, balancer_as) = access::pairs(document, file, endpoint.as_ref(), &access, &etcd, &drafts);
    access::ports(document, endpoint.as_ref(), &access, &network, &etcd, &drafts);
    let mut kubernetes = kubernetes?;
    kubernetes.kubelet.max_pods = network::max_pods(document, &file.kubernetes.kubelet, &network);
    Some(Spec {
        name,
        kubernetes,
        endpoint,
        access,
        balancer,
        balancer_as,
        etcd,
        network,
        dns: dns?,
        security,
        host,
        ssh,
        drill: Drill {
            allowed: file.drill.allowed.unwrap_or(false),
        },
        bundle,
        machines: machines?,
    })
}

/// `250ms` or `1.5s`, in milliseconds.
fn milliseconds(text: &str) -> Option<f64> {
    match text.strip_suffix("ms") {
        Some(number) => number.trim().parse().ok(),
        None => {
            let seconds: f64 = text.strip_suffix('s')?.trim().parse().ok()?;
            Some(seconds * 1000.0)
        }
    }
}
