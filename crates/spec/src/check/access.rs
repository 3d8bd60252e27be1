//! `spec.access`, `spec.balancer`, `spec.agent`: which pairs of options make sense together, and which ports they take.

use std::net::{IpAddr, SocketAddr};

use super::address;
use super::machines::Draft;
use super::names;
use crate::document::{Document, Path, at};
use crate::file::{AccessMode, SpecFile};
use crate::spec::*;

/// `None` if it could not be read.
pub(super) fn access(
    document: &mut Document<'_>,
    file: &SpecFile,
    endpoint: Result<Option<&Endpoint>, ()>,
    domain: &str,
    drafts: &[Draft<'_>],
) -> Option<Access> {
    let at = at!["spec", "access"];
    if file.access.is_none() && document.is_written(&at) {
        return None;
    }
    let has_endpoint = endpoint.map_or(true, |e| e.is_some());
    let mode = file.access.unwrap_or(if has_endpoint {
        AccessMode::Endpoint
    } else {
        AccessMode::Proxy
    });
    unused(document, file, mode);
    let control_planes = drafts.iter().filter(|d| d.has(Role::ControlPlane)).count();
    let v6 = drafts.iter().find_map(|d| d.address).is_some_and(|a| a.is_ipv6());
    let options = at!["spec", "accessOptions"];
    match mode {
        AccessMode::Endpoint => {
            if !has_endpoint && control_planes > 1 {
                document
                    .error(
                        "access-without-endpoint",
                        &at,
                        format!(
                            "`access: endpoint`, but there is no VIP in front of the {control_planes} control planes"
                        ),
                    )
                    .reason("each node would know one of them only, and be lost with it")
                    .fix("add `endpoint: {vip: …}`, or write `access: proxy`, which needs no VIP");
            }
            Some(Access::Endpoint)
        }
        AccessMode::Proxy => {
            let here = options.join("proxy").join("listen");
            let default = if v6 { "[::1]:7443" } else { "127.0.0.1:7443" };
            let text = file
                .access_options
                .proxy
                .as_ref()
                .and_then(|p| p.listen.as_deref())
                .unwrap_or(default);
            let listen = address::socket(document, &here, text, "the proxy's address")?;
            if !listen.ip().is_loopback() {
                document
                    .error(
                        "proxy-not-local",
                        &here,
                        format!("the proxy's address {listen} is not a loopback address"),
                    )
                    .reason("it is the node's own way to the API; elsewhere it would let others in past the firewall")
                    .fix(format!("write `127.0.0.1:{}`", listen.port()));
            }
            Some(Access::Proxy { listen })
        }
        AccessMode::Ipvs => {
            let given = file.access_options.ipvs.as_ref();
            let here = options.join("ipvs");
            let virtual_address = virtual_address(
                document,
                &here.join("virtual"),
                given.and_then(|i| i.virtual_address.as_deref()),
                v6,
                drafts,
            );
            let name = given
                .and_then(|i| i.name.clone())
                .unwrap_or_else(|| format!("apiserver.{domain}"));
            virtual_name(document, &here.join("name"), &name, endpoint.ok().flatten(), drafts);
            Some(Access::Ipvs {
                virtual_address: virtual_address?,
                name,
            })
        }
        AccessMode::Ebpf => {
            let given = file
                .access_options
                .ebpf
                .as_ref()
                .and_then(|e| e.virtual_address.as_deref());
            let virtual_address = virtual_address(document, &options.join("ebpf").join("virtual"), given, v6, drafts)?;
            Some(Access::Ebpf { virtual_address })
        }
    }
}

/// Pairs of options that leave one of them without anything to do, or without what it needs.
pub(super) fn pairs(
    document: &mut Document<'_>,
    file: &SpecFile,
    endpoint: Option<&Endpoint>,
    access: &Access,
    etcd: &Etcd,
    drafts: &[Draft<'_>],
) -> (Balancer, RunAs) {
    let balancer: Balancer = file.balancer.map_or(Balancer::Quorate, Into::into);
    let run_as: RunAs = file.agent.run_as.map_or(RunAs::Unit, Into::into);
    let proxies = endpoint.is_some() || matches!(access, Access::Proxy { .. }) || etcd.vip.is_some();
    if balancer == Balancer::Haproxy && !proxies {
        let at = at!["spec", "balancer"];
        let finding = document.error(
            "haproxy-without-work",
            &at,
            "`balancer: haproxy`, but there is nothing for haproxy to carry",
        );
        match access {
            Access::Ipvs { .. } | Access::Ebpf { .. } => {
                let mode = if matches!(access, Access::Ipvs { .. }) {
                    "ipvs"
                } else {
                    "ebpf"
                };
                finding
                    .reason(format!(
                        "`access: {mode}` is kernel work that only `quorate agent` does, and there is no VIP"
                    ))
                    .fix("write `balancer: quorate`, or `access: proxy`, or add `endpoint: {vip: …}`");
            }
            _ => {
                finding
                    .reason("there is no VIP, and nodes reach the only control plane directly")
                    .fix("leave `balancer` out, or add `endpoint: {vip: …}`");
            }
        }
    }
    if run_as == RunAs::StaticPod {
        let at = at!["spec", "agent", "as"];
        let holders: Vec<&Draft<'_>> = drafts
            .iter()
            .filter(|d| match endpoint.map(|e| e.on) {
                Some(EndpointOn::LoadBalancers) => d.has(Role::LoadBalancer),
                _ => false,
            } || (etcd.vip.is_some() && d.has(Role::Etcd)))
            .filter(|d| !d.is_node())
            .collect();
        if let Some(first) = holders.first() {
            let (text, span) = (document.text, document.span(&first.at().join("roles")));
            let more = if holders.len() > 1 {
                format!(" (and {} more)", holders.len() - 1)
            } else {
                String::new()
            };
            document
                .error(
                    "static-pod-without-kubelet",
                    &at,
                    format!("`as: static-pod`, but machine `{}`{more} runs no kubelet", first.name),
                )
                .reason("static Pods are started by kubelet, which only control planes and workers have")
                .fix("write `as: unit`, or `endpoint: {on: control-planes}`, or add the role `worker` there")
                .also(text, span, "holds a VIP without being a node");
        }
        if !proxies && matches!(access, Access::Endpoint) {
            document
                .warn(
                    "options-unused",
                    &at,
                    "`as: static-pod` is not used: there is nothing to balance",
                )
                .reason("there is no VIP, and nodes reach the only control plane directly")
                .fix("leave it out");
        } else if balancer == Balancer::Haproxy && !matches!(access, Access::Ipvs { .. } | Access::Ebpf { .. }) {
            document
                .warn(
                    "options-unused",
                    &at,
                    "`as: static-pod` is not used: haproxy and keepalived do all the balancing",
                )
                .reason("they are the distribution's programs and run as units; no work is left for the agent")
                .fix("leave it out, or write `balancer: quorate`");
        }
    }
    (balancer, run_as)
}

/// TCP ports that the options open, against what else listens on the same machines.
pub(super) fn ports(
    document: &mut Document<'_>,
    endpoint: Option<&Endpoint>,
    access: &Access,
    network: &Network,
    etcd: &Etcd,
    drafts: &[Draft<'_>],
) {
    let mut ours: Vec<(Path, u16, &str, Vec<usize>)> = Vec::new();
    let all =
        |wanted: &dyn Fn(&Draft<'_>) -> bool| drafts.iter().filter(|d| wanted(d)).map(|d| d.index).collect::<Vec<_>>();
    let nodes = all(&|d| d.is_node());
    if let Some(endpoint) = endpoint {
        let role = match endpoint.on {
            EndpointOn::ControlPlanes => Role::ControlPlane,
            EndpointOn::LoadBalancers => Role::LoadBalancer,
        };
        let holders = all(&|d| d.has(role));
        ours.push((
            at!["spec", "endpoint", "port"],
            endpoint.port,
            "the endpoint",
            holders.clone(),
        ));
        if let Some(statistics) = &endpoint.statistics {
            ours.push((
                at!["spec", "endpoint", "statistics", "port"],
                statistics.port,
                "the statistics page",
                holders,
            ));
        }
    }
    if let Access::Proxy { listen } = access {
        ours.push((
            at!["spec", "accessOptions", "proxy", "listen"],
            listen.port(),
            "the nodes' proxy",
            nodes.clone(),
        ));
    }
    let etcd_role = if etcd.topology == EtcdTopology::External {
        Role::Etcd
    } else {
        Role::ControlPlane
    };
    let control_planes = all(&|d| d.has(Role::ControlPlane));
    let etcds = all(&|d| d.has(etcd_role));
    let everywhere = all(&|_| true);
    let fixed: &[(u16, &str, &[usize])] = &[
        (22, "sshd", &everywhere),
        (API_PORT, "kube-apiserver", &control_planes),
        (2379, "etcd (clients)", &etcds),
        (2380, "etcd (peers)", &etcds),
        (2381, "etcd (metrics)", &etcds),
        (10248, "kubelet (health)", &nodes),
        (10249, "kube-proxy (metrics)", &nodes),
        (10250, "kubelet", &nodes),
        (10256, "kube-proxy (health)", &nodes),
        (10257, "kube-controller-manager", &control_planes),
        (10259, "kube-scheduler", &control_planes),
    ];
    let text = document.text;
    for (i, (at, port, what, machines)) in ours.iter().enumerate() {
        let shared = |others: &[usize]| {
            machines
                .iter()
                .find(|m| others.contains(m))
                .map(|m| drafts[*m].name.clone())
        };
        for (taken, by, on) in fixed {
            if taken == port
                && let Some(machine) = shared(on)
            {
                let advice = if *port == API_PORT && what.starts_with("the endpoint") {
                    "choose another port, e.g. 8443; 6443 is possible on load balancers of their own"
                } else {
                    "choose another port"
                };
                document
                    .error(
                        "port-clash",
                        at,
                        format!("{what} and {by} both want port {port} on machine `{machine}`"),
                    )
                    .reason("only one program can listen there, and the other one does not start")
                    .fix(advice);
            }
        }
        for (other_at, other_port, other, others) in &ours[..i] {
            if other_port == port
                && let Some(machine) = shared(others)
            {
                let span = document.span(other_at);
                document
                    .error(
                        "port-clash",
                        at,
                        format!("{what} and {other} both want port {port} on machine `{machine}`"),
                    )
                    .reason("only one program can listen there, and the other one does not start")
                    .fix("choose another port for one of them")
                    .also(text, span, "the other one");
            }
        }
        let range = network.node_ports;
        if (range.first..=range.last).contains(port) && shared(&nodes).is_some() {
            document
                .error(
                    "port-clash",
                    at,
                    format!(
                        "{what}'s port {port} is in the range of node ports, {}-{}",
                        range.first, range.last
                    ),
                )
                .reason("a Service that is given this node port would take its connections away on every node")
                .fix("choose a port outside of that range");
        }
    }
}

fn unused(document: &mut Document<'_>, file: &SpecFile, mode: AccessMode) {
    let options = &file.access_options;
    for (word, of, given) in [
        ("proxy", AccessMode::Proxy, options.proxy.is_some()),
        ("ipvs", AccessMode::Ipvs, options.ipvs.is_some()),
        ("ebpf", AccessMode::Ebpf, options.ebpf.is_some()),
    ] {
        if given && of != mode {
            let current = match mode {
                AccessMode::Endpoint => "endpoint",
                AccessMode::Proxy => "proxy",
                AccessMode::Ipvs => "ipvs",
                AccessMode::Ebpf => "ebpf",
            };
            document
                .warn(
                    "options-unused",
                    &at!["spec", "accessOptions", word],
                    format!("`accessOptions.{word}` is not used with `access: {current}`"),
                )
                .reason("each access mode has its own options")
                .fix(format!("write `access: {word}`, or leave these options out"));
        }
    }
}

fn virtual_address(
    document: &mut Document<'_>,
    at: &Path,
    given: Option<&str>,
    v6: bool,
    drafts: &[Draft<'_>],
) -> Option<SocketAddr> {
    let default = if v6 { "[fd67:7561::2]:6443" } else { "10.103.97.2:6443" };
    let socket = address::socket(document, at, given.unwrap_or(default), "the virtual address")?;
    address::host(document, at, &socket.ip().to_string(), "the virtual address")?;
    if socket.is_ipv6() != v6 && drafts.iter().any(|d| d.address.is_some()) {
        let (this, that) = (address::family(socket.ip()), if v6 { "IPv6" } else { "IPv4" });
        document
            .error(
                "vip-family",
                at,
                format!(
                    "the virtual address {} is {this}, the machines' addresses are {that}",
                    socket.ip()
                ),
            )
            .reason(
                "connections are forwarded to the API servers as they are, and cannot change their family on the way",
            )
            .fix(format!("write an {that} address, or leave it out to get {default}"));
    }
    if let Some(draft) = drafts
        .iter()
        .find(|d| d.all_addresses().iter().any(|a| neighbours(*a, socket.ip())))
    {
        let (text, span) = (document.text, document.span(&draft.at().join("address")));
        document
            .warn("virtual-near-machines", at, format!("the virtual address {} seems to be in the machines' own network", socket.ip()))
            .reason("it exists on every node at once; a machine that gets this address later cannot be reached from the nodes")
            .fix(format!("choose an address that no network uses, or leave it out to get {default}"))
            .also(text, span, "a machine nearby");
    }
    Some(socket)
}

fn virtual_name(document: &mut Document<'_>, at: &Path, name: &str, endpoint: Option<&Endpoint>, drafts: &[Draft<'_>]) {
    if let Some(why) = names::why_no_hostname(name) {
        document
            .error(
                "bad-endpoint-name",
                at,
                format!("`{name}` cannot be the virtual address's name"),
            )
            .reason(why)
            .fix("write a DNS name such as `apiserver.cluster.local`");
    } else if drafts.iter().any(|d| d.name == name) || endpoint.is_some_and(|e| e.name.as_deref() == Some(name)) {
        document
            .error("reserved-name", at, format!("`{name}` already has another meaning"))
            .reason("it is the name of a machine or of the endpoint, and a hosts file cannot say which is meant")
            .fix("leave it out, or choose another name");
    }
}

/// Within one /24 or /64.
fn neighbours(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.octets()[..3] == b.octets()[..3],
        (IpAddr::V6(a), IpAddr::V6(b)) => a.segments()[..4] == b.segments()[..4],
        _ => false,
    }
}
