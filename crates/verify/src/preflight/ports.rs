//! Addresses and ports our programs will listen on are free, unless it is they who listen.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use quorate_facts::{HostFacts, Listener, Transport};
use quorate_plan::balancer_listens;
use quorate_spec::{Cni, FlannelBackend, Machine};

use super::{Input, List, deployed};

/// Of no process: the kernel holds vxlan's socket.
const VXLAN: &str = "vxlan";

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let mut taken = Vec::new();
    for wanted in wanted(input, machine) {
        let listeners = host.listening.iter().filter(|found| wanted.clashes(found));
        for listener in listeners.filter(|found| !is_ours(wanted.program, found, host)) {
            let process = listener.process.as_deref().unwrap_or("an unknown process");
            let pid = listener.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
            let udp = if wanted.transport == Transport::Udp { "udp " } else { "" };
            let text = format!("{udp}{} ({}) by {process}{pid}", wanted.port, wanted.program);
            // One that listens everywhere takes each address of a port.
            if !taken.contains(&text) {
                taken.push(text);
            }
        }
    }
    let found = if taken.is_empty() {
        "free".to_owned()
    } else {
        format!("taken: {}", taken.join("; "))
    };
    list.require(
        "ports",
        &machine.name,
        taken.is_empty(),
        found,
        "stop what listens there, or move it",
    );
}

/// What one of our programs will listen on.
struct Wanted {
    transport: Transport,
    address: IpAddr,
    port: u16,
    program: &'static str,
}

impl Wanted {
    /// Both cannot listen. An IPv6 socket for any address usually takes IPv4 as well.
    fn clashes(&self, found: &Listener) -> bool {
        self.transport == found.transport
            && self.port == found.port
            && (self.address == found.address || self.address.is_unspecified() || found.address.is_unspecified())
    }
}

/// A program of this cluster's, or the balancer of before, which `apply` takes away when the other one is wanted. Where nothing
/// is deployed a program of the right name is somebody else's.
fn is_ours(program: &str, listener: &Listener, host: &HostFacts) -> bool {
    let runs = |unit: &str| host.units.get(unit).is_some_and(|found| found.is_active());
    match (program, listener.process.as_deref()) {
        (VXLAN, process) => deployed(host) && process.is_none(),
        (_, None) => false,
        ("quorate", Some("haproxy")) => runs("haproxy-quorate.service"),
        // The unit's process, and the Pod's.
        ("haproxy", Some("quorate" | "quorate-agent")) => deployed(host),
        // The kernel cuts process names at 15 bytes.
        (_, Some(process)) => deployed(host) && (program.starts_with(process) || process.starts_with(program)),
    }
}

fn wanted(input: &Input<'_>, machine: &Machine) -> Vec<Wanted> {
    const EVERYWHERE: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let spec = input.spec;
    let mut wanted: Vec<(IpAddr, u16, &'static str)> = Vec::new();
    if machine.is_control_plane() {
        wanted.extend([
            (EVERYWHERE, 6443, "kube-apiserver"),
            (EVERYWHERE, 10257, "kube-controller-manager"),
            (EVERYWHERE, 10259, "kube-scheduler"),
        ]);
    }
    if spec.etcd_members().iter().any(|member| member.name == machine.name) {
        // Not everywhere: the VIP in front of etcd may have the same port.
        wanted.extend([
            (machine.address, 2379, "etcd"),
            (LOCAL, 2379, "etcd"),
            (machine.address, 2380, "etcd"),
            (LOCAL, 2381, "etcd"),
        ]);
    }
    if machine.is_node() {
        wanted.extend([
            (EVERYWHERE, 10250, "kubelet"),
            (EVERYWHERE, 10248, "kubelet"),
            (EVERYWHERE, 10249, "kube-proxy"),
            (EVERYWHERE, 10256, "kube-proxy"),
        ]);
    }
    let balancers = balancer_listens(spec, machine).into_iter();
    wanted.extend(balancers.map(|(address, program)| (address.ip(), address.port(), program)));
    let tcp = wanted.into_iter().map(|(address, port, program)| Wanted {
        transport: Transport::Tcp,
        address,
        port,
        program,
    });
    let vxlan = match &spec.network.cni {
        Cni::Flannel(flannel) if flannel.backend == FlannelBackend::Vxlan && machine.is_node() => Some(Wanted {
            transport: Transport::Udp,
            address: EVERYWHERE,
            port: flannel.port,
            program: VXLAN,
        }),
        _ => None,
    };
    tcp.chain(vxlan).collect()
}
