//! The firewall matrix: who must reach whom, on which port, for what. One table, which `plan --firewall` prints, preflight
//! tries out and the prepare stage opens.

use std::fmt::Write;
use std::net::IpAddr;

use quorate_spec::{Access, Cni, EndpointOn, EtcdTopology, FlannelBackend, Machine, Role, Spec};
use serde::Serialize;

use crate::components::{apiserver, etcd};

/// kubelet's own API (`--port`, upstream's default).
const KUBELET: u16 = 10_250;
const SSH: u16 = 22;
/// Linux's default `net.ipv4.ip_local_port_range`.
const EPHEMERAL: (u16, u16) = (32_768, 60_999);
/// Named for nftables, which it is printed for.
const TABLE: &str = "quorate_input";

/// A group of machines, or somebody outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Any client of the API or of a Service.
    Anyone,
    /// Where `quorate` is run.
    Operator,
    /// Every Pod, by the Pod ranges.
    Pods,
    Machines,
    /// Machines with a kubelet.
    Nodes,
    Workers,
    ControlPlanes,
    EtcdMembers,
    LoadBalancers,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    Tcp,
    Udp,
    /// IP protocol 112 (RFC 9568).
    Vrrp,
    Icmp,
}

/// One row of the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Flow {
    pub from: Side,
    pub to: Side,
    pub protocol: Protocol,
    /// First and last; `None` for protocols without ports.
    pub ports: Option<(u16, u16)>,
    pub purpose: &'static str,
    /// `false`: without it everything works, more slowly.
    pub needed: bool,
}

/// Every flow the cluster file's options need, nothing else. Rows about one pair of sides follow each other.
pub fn matrix(spec: &Spec) -> Vec<Flow> {
    let mut rows = Rows::default();
    for port in ssh_ports(spec) {
        rows.tcp(Side::Operator, Side::Machines, port, "ssh");
    }
    to_the_api(spec, &mut rows);
    let several = spec.etcd_members().len() > 1;
    if several {
        rows.tcp(Side::EtcdMembers, Side::EtcdMembers, etcd::PEER_PORT, "etcd peers");
        // Stacked members are control planes: the next row names them.
        if spec.etcd.topology == EtcdTopology::External {
            rows.tcp(
                Side::EtcdMembers,
                Side::EtcdMembers,
                etcd::CLIENT_PORT,
                "etcd, by its other members",
            );
        }
    }
    rows.tcp(Side::ControlPlanes, Side::EtcdMembers, etcd::CLIENT_PORT, "etcd");
    if let Some(vip) = &spec.etcd.vip {
        rows.tcp(
            Side::ControlPlanes,
            Side::EtcdMembers,
            vip.port,
            "etcd, through its VIP",
        );
        rows.bare(
            Side::EtcdMembers,
            Side::EtcdMembers,
            Protocol::Vrrp,
            "who holds etcd's VIP",
        );
    }
    rows.tcp(
        Side::ControlPlanes,
        Side::Nodes,
        KUBELET,
        "kubelet: logs, exec, port-forward",
    );
    rows.tcp(Side::Pods, Side::Nodes, KUBELET, "kubelet: metrics");
    rows.tcp(Side::Pods, Side::ControlPlanes, apiserver::PORT, "API server");
    if matches!(spec.network.cni, Cni::Flannel(_)) {
        // What a Pod sends to a machine that is not its own leaves with its node's address (`--ip-masq`). Nodes with a proxy
        // reach the API servers anyway.
        if !matches!(spec.access, Access::Proxy { .. }) {
            rows.tcp(
                Side::Nodes,
                Side::ControlPlanes,
                apiserver::PORT,
                "API server, for Pods behind their node's address",
            );
        }
        rows.tcp(
            Side::Nodes,
            Side::Nodes,
            KUBELET,
            "kubelet: metrics, for Pods behind their node's address",
        );
    }
    if let Cni::Flannel(flannel) = &spec.network.cni
        && flannel.backend == FlannelBackend::Vxlan
        && spec.nodes().len() > 1
    {
        rows.push(
            Side::Nodes,
            Side::Nodes,
            Protocol::Udp,
            Some((flannel.port, flannel.port)),
            "Pod network (vxlan)",
        );
    }
    let ports = (spec.network.node_ports.first, spec.network.node_ports.last);
    rows.push(
        Side::Anyone,
        Side::Nodes,
        Protocol::Tcp,
        Some(ports),
        "Services of type NodePort",
    );
    rows.push(
        Side::Anyone,
        Side::Nodes,
        Protocol::Udp,
        Some(ports),
        "Services of type NodePort",
    );
    rows.bare(
        Side::Machines,
        Side::Machines,
        Protocol::Icmp,
        "path MTU, unreachable ports",
    );
    rows.push(
        Side::Machines,
        Side::Machines,
        Protocol::Tcp,
        Some(EPHEMERAL),
        "programs handed on during apply (else the operator sends all)",
    );
    if let Some(last) = rows.0.last_mut() {
        last.needed = false;
    }
    rows.0
}

fn to_the_api(spec: &Spec, rows: &mut Rows) {
    let holders = spec.endpoint.as_ref().map(|endpoint| match endpoint.on {
        EndpointOn::ControlPlanes => Side::ControlPlanes,
        EndpointOn::LoadBalancers => Side::LoadBalancers,
    });
    if let (Some(endpoint), Some(holders)) = (&spec.endpoint, holders) {
        rows.tcp(Side::Anyone, holders, endpoint.port, "API, through the VIP");
        if let Some(statistics) = &endpoint.statistics {
            rows.tcp(
                Side::Anyone,
                holders,
                statistics.port,
                "statistics page of the balancer",
            );
        }
        if spec.vip_holders().len() > 1 {
            rows.bare(holders, holders, Protocol::Vrrp, "who holds the VIP");
        }
        if matches!(spec.access, Access::Endpoint) && !spec.workers().is_empty() {
            rows.tcp(Side::Workers, holders, endpoint.port, "API, through the VIP");
        }
        rows.tcp(
            holders,
            Side::ControlPlanes,
            apiserver::PORT,
            "API servers, from the balancer",
        );
    } else {
        rows.tcp(Side::Anyone, Side::ControlPlanes, apiserver::PORT, "API server");
    }
    let direct = match &spec.access {
        Access::Proxy { .. } => Some((Side::Nodes, "API servers, from each node's own proxy")),
        Access::Ipvs { .. } => Some((Side::Workers, "API servers, from each node's IPVS")),
        Access::Ebpf { .. } => Some((Side::Workers, "API servers, from each node's eBPF")),
        Access::Endpoint if spec.endpoint.is_none() => Some((Side::Workers, "API server")),
        Access::Endpoint => None,
    };
    if let Some((from, purpose)) = direct.filter(|(from, _)| !from.machines(spec).is_empty()) {
        rows.tcp(from, Side::ControlPlanes, apiserver::PORT, purpose);
    }
}

#[derive(Default)]
struct Rows(Vec<Flow>);

impl Rows {
    fn tcp(&mut self, from: Side, to: Side, port: u16, purpose: &'static str) {
        self.push(from, to, Protocol::Tcp, Some((port, port)), purpose);
    }

    fn bare(&mut self, from: Side, to: Side, protocol: Protocol, purpose: &'static str) {
        self.push(from, to, protocol, None, purpose);
    }

    fn push(&mut self, from: Side, to: Side, protocol: Protocol, ports: Option<(u16, u16)>, purpose: &'static str) {
        self.0.push(Flow {
            from,
            to,
            protocol,
            ports,
            purpose,
            needed: true,
        });
    }
}

impl Side {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Anyone => "anyone",
            Self::Operator => "operator",
            Self::Pods => "pods",
            Self::Machines => "machines",
            Self::Nodes => "nodes",
            Self::Workers => "workers",
            Self::ControlPlanes => "control planes",
            Self::EtcdMembers => "etcd members",
            Self::LoadBalancers => "load balancers",
        }
    }

    /// Machines of the cluster file; none for those outside it.
    pub fn machines(self, spec: &Spec) -> Vec<&Machine> {
        spec.machines
            .iter()
            .filter(|machine| self.contains(spec, machine))
            .collect()
    }

    pub fn contains(self, spec: &Spec, machine: &Machine) -> bool {
        match self {
            Self::Anyone | Self::Operator | Self::Pods => false,
            Self::Machines => true,
            Self::Nodes => machine.is_node(),
            // A control plane with the role of a worker has its own API server.
            Self::Workers => machine.is_node() && !machine.is_control_plane(),
            Self::ControlPlanes => machine.is_control_plane(),
            Self::EtcdMembers => match spec.etcd.topology {
                EtcdTopology::Stacked => machine.is_control_plane(),
                EtcdTopology::External => machine.roles.contains(&Role::Etcd),
            },
            Self::LoadBalancers => machine.roles.contains(&Role::LoadBalancer),
        }
    }

    /// Who that is, as addresses and ranges of nftables; `None`: everybody.
    fn sources(self, spec: &Spec) -> Option<Vec<String>> {
        match self {
            Self::Anyone | Self::Operator => None,
            Self::Pods => Some(spec.network.pods.iter().map(ToString::to_string).collect()),
            _ => Some(
                self.machines(spec)
                    .into_iter()
                    .flat_map(Machine::all_addresses)
                    .map(|address| address.to_string())
                    .collect(),
            ),
        }
    }
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Vrrp => "vrrp",
            Self::Icmp => "icmp",
        }
    }
}

/// A table that lets in what the matrix names, and nothing else, on one machine. It is for those who write their own
/// firewall: Quorate prints it and loads it nowhere.
pub fn nftables(spec: &Spec, machine: &Machine) -> String {
    let mut text = format!(
        "# {}: what must come in; all else is dropped. Forwarded packets (Pods, Services) are not touched.\n\
         table inet {TABLE} {{\n\tchain input {{\n\t\ttype filter hook input priority filter; policy drop;\n\
         \t\tct state established,related accept\n\t\tiifname \"lo\" accept\n\
         \t\tmeta l4proto {{ icmp, ipv6-icmp }} accept\n",
        machine.name
    );
    let flows = matrix(spec)
        .into_iter()
        .filter(|flow| flow.to.contains(spec, machine) && flow.protocol != Protocol::Icmp);
    for flow in flows {
        let what = match (flow.protocol, flow.ports) {
            (Protocol::Vrrp, _) => "meta l4proto 112".to_owned(),
            (protocol, Some((first, last))) if first == last => format!("{} dport {first}", protocol.as_str()),
            (protocol, Some((first, last))) => format!("{} dport {first}-{last}", protocol.as_str()),
            (protocol, None) => format!("meta l4proto {}", protocol.as_str()),
        };
        let comment = format!("accept comment \"{}: {}\"", flow.from.as_str(), flow.purpose);
        match flow.from.sources(spec) {
            None => {
                let _ = writeln!(text, "\t\t{what} {comment}");
            }
            Some(sources) => {
                for (family, v6) in [("ip", false), ("ip6", true)] {
                    let of_family: Vec<&str> = sources
                        .iter()
                        .filter(|source| source.contains(':') == v6)
                        .map(String::as_str)
                        .collect();
                    if !of_family.is_empty() {
                        let _ = writeln!(
                            text,
                            "\t\t{family} saddr {{ {} }} {what} {comment}",
                            of_family.join(", ")
                        );
                    }
                }
            }
        }
    }
    text.push_str("\t}\n}\n");
    text
}

/// Ports and protocols that anyone may reach on a machine, SSH left out: it is open, or we would not be there.
pub(crate) fn public(spec: &Spec, machine: &Machine) -> Vec<(Protocol, u16, u16)> {
    let flows = matrix(spec).into_iter().filter(|flow| flow.from == Side::Anyone);
    flows
        .filter(|flow| flow.to.contains(spec, machine))
        .filter_map(|flow| flow.ports.map(|(first, last)| (flow.protocol, first, last)))
        .collect()
}

/// Whom a machine trusts: the other machines' addresses, and the Pods'.
pub(crate) fn trusted(spec: &Spec) -> Vec<String> {
    let machines = spec.machines.iter().flat_map(Machine::all_addresses);
    let pods = spec.network.pods.iter().map(ToString::to_string);
    machines
        .map(|address: IpAddr| address.to_string())
        .chain(pods)
        .collect()
}

fn ssh_ports(spec: &Spec) -> Vec<u16> {
    let mut ports: Vec<u16> = spec
        .machines
        .iter()
        .map(|machine| machine.ssh.port.unwrap_or(SSH))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}
