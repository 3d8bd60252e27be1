//! What follows from a [`Spec`] alone.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::spec::*;

/// Names and addresses of a certificate, sorted, without duplicates.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sans {
    pub dns: BTreeSet<String>,
    pub ips: BTreeSet<IpAddr>,
}

/// How much fits into the ranges of one address family.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FamilyCapacity {
    pub pods: IpNet,
    pub services: IpNet,
    /// Nodes that can get a share of the Pod range.
    pub nodes: u128,
    /// Usable Pod addresses of one node (an IPv4 share loses its network and broadcast addresses).
    pub pod_addresses_per_node: u128,
    /// Usable Service addresses (an IPv4 range loses its network and broadcast addresses).
    pub service_addresses: u128,
}

/// How large the cluster can grow with its ranges.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// In the order of `network.pods`.
    pub families: Vec<FamilyCapacity>,
    /// The smallest over the families.
    pub nodes: u128,
    /// The smallest of kubelet's `maxPods` and the families' addresses.
    pub pods_per_node: u128,
    pub services: u128,
    pub node_ports: u32,
    /// Nodes in the cluster file.
    pub nodes_used: u128,
}

impl Spec {
    pub fn machine(&self, name: &str) -> Option<&Machine> {
        self.machines.iter().find(|m| m.name == name)
    }

    /// All in the file's order, as for the other lists here.
    pub fn control_planes(&self) -> Vec<&Machine> {
        self.with_role(Role::ControlPlane)
    }

    /// Machines with role `worker`; one of them may be a control plane as well.
    pub fn workers(&self) -> Vec<&Machine> {
        self.with_role(Role::Worker)
    }

    pub fn load_balancers(&self) -> Vec<&Machine> {
        self.with_role(Role::LoadBalancer)
    }

    /// Machines that run an etcd member.
    pub fn etcd_members(&self) -> Vec<&Machine> {
        match self.etcd.topology {
            EtcdTopology::Stacked => self.control_planes(),
            EtcdTopology::External => self.with_role(Role::Etcd),
        }
    }

    /// Everything that runs a kubelet.
    pub fn nodes(&self) -> Vec<&Machine> {
        self.machines.iter().filter(|m| m.is_node()).collect()
    }

    /// Machines that may hold the endpoint's VIP; empty without an endpoint.
    pub fn vip_holders(&self) -> Vec<&Machine> {
        match self.endpoint.as_ref().map(|e| e.on) {
            None => Vec::new(),
            Some(EndpointOn::ControlPlanes) => self.control_planes(),
            Some(EndpointOn::LoadBalancers) => self.load_balancers(),
        }
    }

    /// `Quorum{members, needed, tolerates}` of etcd.
    pub fn quorum(&self) -> Quorum {
        Quorum::of(self.etcd_members().len())
    }

    /// The `n`-th address of each Service range, `n` ≥ 1, in the order of `network.services`; `None` beyond its end.
    pub fn service_ip(&self, n: u128) -> Option<Vec<IpAddr>> {
        self.network.services.iter().map(|net| nth_address(*net, n)).collect()
    }

    /// The address of the `kubernetes` Service, per family.
    pub fn api_service_ips(&self) -> Vec<IpAddr> {
        self.service_ip(1).unwrap_or_default()
    }

    /// What every API server's serving certificate must answer to, over all of them; one certificate's own names are
    /// all of these, so that any of them can stand behind any address.
    pub fn api_server_sans(&self) -> Sans {
        let domain = &self.kubernetes.domain;
        let mut sans = Sans::default();
        for name in [
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "localhost",
        ] {
            sans.dns.insert(name.to_owned());
        }
        sans.dns.insert(format!("kubernetes.default.svc.{domain}"));
        sans.ips.extend(self.api_service_ips());
        sans.ips.insert(IpAddr::from([127, 0, 0, 1]));
        sans.ips.insert(IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]));
        for machine in self.control_planes() {
            sans.dns.insert(machine.name.clone());
            sans.ips.extend(machine.all_addresses());
        }
        if let Some(endpoint) = &self.endpoint {
            sans.ips.insert(endpoint.vip);
            sans.dns.extend(endpoint.name.clone());
        }
        match &self.access {
            Access::Endpoint => {}
            Access::Proxy { listen } => {
                sans.ips.insert(listen.ip());
            }
            Access::Ipvs { virtual_address, name } => {
                sans.ips.insert(virtual_address.ip());
                sans.dns.insert(name.clone());
            }
            Access::Ebpf { virtual_address } => {
                sans.ips.insert(virtual_address.ip());
            }
        }
        for san in &self.kubernetes.api_server.sans {
            match san.parse() {
                Ok(ip) => sans.ips.insert(ip),
                Err(_) => sans.dns.insert(san.clone()),
            };
        }
        sans
    }

    /// `host:port` of one control plane's own API server.
    pub fn api_server_of(&self, control_plane: &Machine) -> SocketAddr {
        SocketAddr::new(control_plane.address, API_PORT)
    }

    /// `https://host:port` that this machine's kubelet and kube-proxy use. A control plane always talks to its own API
    /// server, so that it depends on no balancer (kubeadm's ControlPlaneKubeletLocalMode).
    pub fn endpoint_url_for(&self, machine: &Machine) -> String {
        if machine.is_control_plane() {
            return url(&host_of(machine.address), API_PORT);
        }
        match &self.access {
            Access::Endpoint => self.admin_url(),
            Access::Proxy { listen } => url(&host_of(listen.ip()), listen.port()),
            Access::Ipvs { virtual_address, name } => url(name, virtual_address.port()),
            Access::Ebpf { virtual_address } => url(&host_of(virtual_address.ip()), virtual_address.port()),
        }
    }

    /// `https://host:port` for people and programs outside: the endpoint (by VIP, so that it needs no name
    /// resolution), or else the first control plane that is not under maintenance.
    pub fn admin_url(&self) -> String {
        match &self.endpoint {
            Some(endpoint) => url(&host_of(endpoint.vip), endpoint.port),
            None => {
                let control_planes = self.control_planes();
                let first = control_planes
                    .iter()
                    .find(|m| !m.maintenance)
                    .or(control_planes.first());
                first.map(|m| url(&host_of(m.address), API_PORT)).unwrap_or_default()
            }
        }
    }

    /// The names kubeadm's `controlPlaneEndpoint` needs: what workers use, without `https://`.
    pub fn control_plane_endpoint(&self) -> String {
        let via = match &self.access {
            Access::Endpoint => self.admin_url(),
            Access::Proxy { listen } => url(&host_of(listen.ip()), listen.port()),
            Access::Ipvs { virtual_address, name } => url(name, virtual_address.port()),
            Access::Ebpf { virtual_address } => url(&host_of(virtual_address.ip()), virtual_address.port()),
        };
        via.trim_start_matches("https://").to_owned()
    }

    pub fn is_dual_stack(&self) -> bool {
        self.network.pods.len() > 1
    }

    pub fn capacity(&self) -> Capacity {
        let families: Vec<FamilyCapacity> = self
            .network
            .pods
            .iter()
            .zip(&self.network.services)
            .map(|(pods, services)| FamilyCapacity {
                pods: *pods,
                services: *services,
                nodes: share_count(*pods, self.network.node_mask(*pods)),
                pod_addresses_per_node: usable(*pods, self.network.node_mask(*pods)),
                service_addresses: usable(*services, services.prefix_len()),
            })
            .collect();
        let least = |f: fn(&FamilyCapacity) -> u128| families.iter().map(f).min().unwrap_or(0);
        let range = self.network.node_ports;
        Capacity {
            nodes: least(|f| f.nodes),
            pods_per_node: least(|f| f.pod_addresses_per_node).min(u128::from(self.kubernetes.kubelet.max_pods)),
            services: least(|f| f.service_addresses),
            node_ports: u32::from(range.last - range.first) + 1,
            nodes_used: self.nodes().len() as u128,
            families,
        }
    }

    fn with_role(&self, role: Role) -> Vec<&Machine> {
        self.machines.iter().filter(|m| m.roles.contains(&role)).collect()
    }
}

impl Machine {
    pub fn is_control_plane(&self) -> bool {
        self.roles.contains(&Role::ControlPlane)
    }

    /// Whether it runs a kubelet.
    pub fn is_node(&self) -> bool {
        self.is_control_plane() || self.roles.contains(&Role::Worker)
    }

    /// `address` first.
    pub fn all_addresses(&self) -> Vec<IpAddr> {
        std::iter::once(self.address)
            .chain(self.addresses.iter().copied())
            .collect()
    }

    /// Its address of the same family as `net`.
    pub fn address_like(&self, net: IpNet) -> Option<IpAddr> {
        self.all_addresses()
            .into_iter()
            .find(|a| a.is_ipv4() == net.addr().is_ipv4())
    }
}

impl Kubernetes {
    /// `v1.36.3`
    pub fn tag(&self) -> String {
        format!("v{}", self.version)
    }

    /// 36 of `v1.36.3`
    pub fn minor(&self) -> u64 {
        self.version.minor
    }
}

impl Network {
    /// Prefix length of one node's share of `pods`.
    pub fn node_mask(&self, pods: IpNet) -> u8 {
        if pods.addr().is_ipv4() {
            self.node_mask_v4
        } else {
            self.node_mask_v6
        }
    }
}

impl fmt::Display for Taint {
    /// As kubectl and kubelet's `--register-with-taints` write it: `key=value:Effect`, `key:Effect` without a value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let equals = if self.value.is_empty() { "" } else { "=" };
        write!(f, "{}{equals}{}:{:?}", self.key, self.value, self.effect)
    }
}

impl Role {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
            Self::Etcd => "etcd",
            Self::LoadBalancer => "load-balancer",
        }
    }
}

/// The arithmetic of a majority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    pub members: usize,
    /// Members that must agree.
    pub needed: usize,
    /// Members that may be away.
    pub tolerates: usize,
}

impl Quorum {
    pub fn of(members: usize) -> Self {
        let needed = members / 2 + 1;
        Self {
            members,
            needed,
            tolerates: members.saturating_sub(needed),
        }
    }
}

/// Shares of prefix length `mask` in `net`.
pub(crate) fn share_count(net: IpNet, mask: u8) -> u128 {
    1u128
        .checked_shl(u32::from(mask.saturating_sub(net.prefix_len())))
        .unwrap_or(u128::MAX)
}

/// Addresses that can be given out of a range of prefix length `mask` of the family of `net`. An IPv4 range loses the
/// network and broadcast addresses, an IPv6 one the subnet-router anycast address.
pub(crate) fn usable(net: IpNet, mask: u8) -> u128 {
    let all = 1u128
        .checked_shl(u32::from(net.max_prefix_len() - mask))
        .unwrap_or(u128::MAX);
    all.saturating_sub(if net.addr().is_ipv4() { 2 } else { 1 })
}

/// The `n`-th address after the first of `net`, if still inside.
pub(crate) fn nth_address(net: IpNet, n: u128) -> Option<IpAddr> {
    let address = match net.network() {
        IpAddr::V4(first) => {
            let sum = u128::from(u32::from(first)).checked_add(n)?;
            IpAddr::V4(u32::try_from(sum).ok()?.into())
        }
        IpAddr::V6(first) => IpAddr::V6(u128::from(first).checked_add(n)?.into()),
    };
    net.contains(&address).then_some(address)
}

fn host_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => a.to_string(),
        IpAddr::V6(a) => format!("[{a}]"),
    }
}

fn url(host: &str, port: u16) -> String {
    format!("https://{host}:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn majorities() {
        for (members, needed, tolerates) in [(1, 1, 0), (2, 2, 0), (3, 2, 1), (4, 3, 1), (5, 3, 2), (7, 4, 3)] {
            assert_eq!(
                Quorum::of(members),
                Quorum {
                    members,
                    needed,
                    tolerates
                }
            );
        }
    }

    #[test]
    fn shares_and_addresses_of_ranges() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(share_count(net("10.244.0.0/16"), 24), 256);
        assert_eq!(share_count(net("fd00::/56"), 64), 256);
        assert_eq!(share_count(net("::/0"), 128), u128::MAX);
        assert_eq!(usable(net("10.244.0.0/16"), 26), 62);
        assert_eq!(usable(net("fd00::/64"), 124), 15);
        assert_eq!(nth_address(net("10.96.0.0/16"), 10), Some(ip("10.96.0.10")));
        assert_eq!(nth_address(net("10.96.0.0/28"), 16), None);
        assert_eq!(nth_address(net("255.255.255.0/24"), 1 << 40), None);
        assert_eq!(nth_address(net("fd00:10:96::/112"), 10), Some(ip("fd00:10:96::a")));
    }

    #[test]
    fn ipv6_alone() {
        let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  machines:\n    \
                    - {address: \"fd00:77::11\", roles: [control-plane]}\n    \
                    - {address: \"fd00:77::12\", roles: [control-plane]}\n    \
                    - {address: \"fd00:77::13\", roles: [control-plane]}\n    \
                    - {address: \"fd00:77::14\", roles: [worker]}\n";
        let (spec, findings) = crate::load(text, "v6.yaml").unwrap();
        assert_eq!(findings, []);
        assert_eq!(spec.admin_url(), "https://[fd00:77::11]:6443");
        assert_eq!(spec.endpoint_url_for(&spec.machines[3]), "https://[::1]:7443");
        assert_eq!(spec.api_service_ips()[0].to_string(), "fd00:10:96::1");
        assert_eq!(spec.capacity().pods_per_node, 110);
    }
}
