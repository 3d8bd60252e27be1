//! (Spec, Facts) → Plan. Pure: no clock, no socket, no file, no randomness.
//!
//! Start with `stages.rs`, the table of contents of a deployment.

mod components;
mod diff;
pub mod firewall;
mod json;
pub mod lint;
pub mod model;
mod names;
pub mod paths;
mod profile;
pub mod queries;
mod reset;
pub mod secrets;
pub mod sizing;
mod stages;
mod want;
mod waves;
mod yaml;

use std::collections::BTreeMap;

use quorate_facts::{Facts, MachineFacts};
use quorate_pki::inventory::{self, EtcdRun, Host, Inputs, Inventory};
use quorate_spec::{Bootstrap, Spec};

pub use components::probe::PORT as PROBE_PORT;
pub use diff::{Change, ChangeKind, changes, file_diff};
pub use model::*;
pub use names::host_port;
pub use reset::{SWAP_MARK, reset};
pub use stages::imported_name;

use crate::profile::Profile;
use crate::stages::Planned;
use crate::want::Context;

/// What leads from what was found to what is wanted. A healthy cluster yields an empty plan.
pub fn plan(spec: &Spec, facts: &Facts) -> Plan {
    let mut context = Context {
        spec,
        facts,
        inventory: certificates(spec),
        profiles: profiles(spec, facts),
        awaited: Vec::new(),
    };
    let mut plan = Plan {
        cluster: spec.name.clone(),
        kubernetes: spec.kubernetes.tag(),
        ..Plan::default()
    };
    for machine in spec.machines.iter().filter(|machine| !machine.maintenance) {
        let message = match facts.machines.get(&machine.name) {
            Some(MachineFacts::Unreachable { reason }) => Some(format!("not reached: {reason}")),
            Some(MachineFacts::Silent { reason }) => Some(format!("reached, but gave no facts: {reason}")),
            _ => None,
        };
        if let Some(message) = message {
            plan.notes.push(Note {
                machine: Some(machine.name.clone()),
                message,
                hint: Some("nothing is planned for it; apply again when it is back".into()),
            });
        }
    }
    plan.notes.extend(unanswered(facts));
    // Whether there is anything to do in the wave so far: if not, its next stage has nothing to begin with.
    let mut begun = false;
    for stage in stages::of(spec) {
        let Planned {
            mut stage,
            notes,
            awaited,
        } = stage(&context);
        plan.notes.extend(notes);
        context.awaited.extend(awaited);
        begun &= stage.with_previous;
        if !stage.steps.is_empty() {
            stage.with_previous = begun;
            begun = true;
            plan.stages.push(stage);
        }
    }
    waves::keep_order(&mut plan.stages);
    plan
}

/// An API server is ready and did not answer for some objects: those are left as they are.
fn unanswered(facts: &Facts) -> Option<Note> {
    let cluster = &facts.cluster;
    let first = cluster
        .unknown
        .first()
        .filter(|_| !cluster.ready_api_servers.is_empty())?;
    let more = match cluster.unknown.len() {
        1 => String::new(),
        all => format!(" and {} more", all - 1),
    };
    Some(Note {
        machine: None,
        message: format!("the API did not answer for {first}{more}; nothing is planned for them"),
        hint: Some("run `quorate apply` again".into()),
    })
}

/// Programs of the distribution, not of the bundle, that this machine needs: haproxy and keepalived where they balance.
pub fn programs_needed(spec: &Spec, machine: &quorate_spec::Machine) -> Vec<&'static str> {
    components::agent::programs(spec, machine)
}

/// Addresses on which a machine's balancers listen: for VIPs, for the node itself, for statistics; each with its program.
pub fn balancer_listens(spec: &Spec, machine: &quorate_spec::Machine) -> Vec<(std::net::SocketAddr, &'static str)> {
    components::agent::listens(spec, machine)
}

/// The certificate inventory of a cluster file.
pub fn certificates(spec: &Spec) -> Inventory {
    let host = |machine: &&quorate_spec::Machine| Host {
        name: machine.name.clone(),
        names: Vec::new(),
        addresses: machine.all_addresses(),
    };
    // Whoever comes through the VIP in front of etcd asks for that address.
    let etcd_host = |machine: &&quorate_spec::Machine| {
        let mut host = host(machine);
        host.addresses.extend(spec.etcd.vip.as_ref().map(|vip| vip.address));
        host
    };
    let sans = spec.api_server_sans();
    let kubeadm = spec.kubernetes.bootstrap == Bootstrap::Kubeadm;
    let stacked_kubeadm = kubeadm && spec.etcd.topology == quorate_spec::EtcdTopology::Stacked;
    inventory::inventory(&Inputs {
        bootstrap: if kubeadm {
            inventory::Bootstrap::Kubeadm
        } else {
            inventory::Bootstrap::Binary
        },
        control_planes: spec.control_planes().iter().map(host).collect(),
        etcd_members: spec.etcd_members().iter().map(etcd_host).collect(),
        workers: spec
            .workers()
            .iter()
            .filter(|machine| !machine.is_control_plane())
            .map(host)
            .collect(),
        etcd: if stacked_kubeadm {
            EtcdRun::StaticPod
        } else {
            EtcdRun::Systemd {
                user: "etcd".into(),
                group: "etcd".into(),
            }
        },
        endpoint_names: sans.dns.into_iter().collect(),
        endpoint_addresses: sans.ips.into_iter().collect(),
        service_addresses: spec.api_service_ips(),
        domain: spec.kubernetes.domain.clone(),
        extra_names: Vec::new(),
        extra_addresses: Vec::new(),
        kube_proxy: true,
    })
}

fn profiles<'a>(spec: &'a Spec, facts: &Facts) -> BTreeMap<&'a str, Profile> {
    spec.machines
        .iter()
        .filter_map(|machine| {
            Some((
                machine.name.as_str(),
                Profile::of(facts.host(&machine.name)?, spec.kubernetes.proxy_mode),
            ))
        })
        .collect()
}
