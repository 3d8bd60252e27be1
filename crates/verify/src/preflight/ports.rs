//! Ports our programs will listen on are free, unless it is they who listen.

use quorate_facts::{HostFacts, Transport};
use quorate_spec::{Access, Balancer, Machine};

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let mut taken = Vec::new();
    for (port, program) in wanted(input, machine) {
        let listeners = host.listening.iter();
        for listener in listeners.filter(|found| found.port == port && found.transport == Transport::Tcp) {
            let process = listener.process.as_deref().unwrap_or("an unknown process");
            // The kernel cuts process names at 15 bytes.
            if !program.starts_with(process) && !process.starts_with(program) && !replaced(program, process, host) {
                let pid = listener.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
                taken.push(format!("{port} ({program}) by {process}{pid}"));
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

/// The balancer of before, which `apply` takes away when the other one is wanted.
fn replaced(program: &str, process: &str, host: &HostFacts) -> bool {
    let ours = |unit: &str| host.units.get(unit).is_some_and(|found| found.is_active());
    match (program, process) {
        ("quorate", "haproxy") => ours("haproxy-quorate.service"),
        // The unit's process, and the Pod's.
        ("haproxy", "quorate" | "quorate-agent") => true,
        _ => false,
    }
}

fn wanted(input: &Input<'_>, machine: &Machine) -> Vec<(u16, &'static str)> {
    let spec = input.spec;
    let balancer = match spec.balancer {
        Balancer::Quorate => "quorate",
        Balancer::Haproxy => "haproxy",
    };
    let mut wanted: Vec<(u16, &'static str)> = Vec::new();
    if machine.is_control_plane() {
        wanted.extend([
            (6443, "kube-apiserver"),
            (10257, "kube-controller-manager"),
            (10259, "kube-scheduler"),
        ]);
    }
    if spec.etcd_members().iter().any(|member| member.name == machine.name) {
        wanted.extend([(2379, "etcd"), (2380, "etcd"), (2381, "etcd")]);
    }
    if machine.is_node() {
        wanted.extend([
            (10250, "kubelet"),
            (10248, "kubelet"),
            (10249, "kube-proxy"),
            (10256, "kube-proxy"),
        ]);
        if let Access::Proxy { listen } = &spec.access {
            wanted.push((listen.port(), balancer));
        }
    }
    if let Some(endpoint) = &spec.endpoint
        && spec.vip_holders().iter().any(|holder| holder.name == machine.name)
    {
        wanted.push((endpoint.port, balancer));
        wanted.extend(
            endpoint
                .statistics
                .as_ref()
                .map(|statistics| (statistics.port, balancer)),
        );
    }
    wanted
}
