//! What would go wrong, found before anything is changed. One file per check; each judges Facts, and what [`measure`]
//! found between the machines if that was asked for. Judging is pure, and all findings come at once.

mod address;
mod architecture;
mod balancing;
mod bundle;
mod cgroups;
mod clock;
mod duplicates;
mod firewall;
mod fsync;
mod http_proxy;
mod images;
mod ipv6;
mod kernel;
mod latency;
mod leftovers;
mod measure;
mod names;
mod path_mtu;
mod ports;
mod programs;
mod proxy_mode;
mod reach;
mod reachable;
mod root;
mod routes;
mod security;
mod size;
mod swap;
mod systemd;
mod time_sync;
mod unmeasured;
mod vip;
mod vip_taken;
mod vrid;
mod vrrp;

use std::net::IpAddr;

use quorate_facts::{Facts, HostFacts, MachineFacts, Measured};
use quorate_spec::{Machine, Spec};

pub use measure::{measure, worth_measuring};

use crate::{Check, Finding, Report};

/// Of one machine that was reached.
const OF_A_MACHINE: [fn(&Input<'_>, &Machine, &HostFacts, &mut List); 19] = [
    root::check,       // commands run as root
    systemd::check,    // booted by systemd
    address::check,    // has the address the file gives it
    size::check,       // CPUs, memory, disk for its roles
    ports::check,      // nobody else listens on our ports
    leftovers::check,  // no other Kubernetes
    kernel::check,     // its age, overlay, nf_tables, what containers need
    cgroups::check,    // cpu, memory, pids
    programs::check,   // nft, mount, …: what the distribution brings
    proxy_mode::check, // kube-proxy's mode against kernel and nft
    balancing::check,  // what access and balancer want of kernel and distribution
    ipv6::check,       // is on where it is wanted
    swap::check,       // off, or will be
    time_sync::check,  // a service keeps the clock
    security::check,   // SELinux, AppArmor
    firewall::check,   // can be opened as the file says
    http_proxy::check, // takes none of the cluster's requests
    names::check,      // name servers, localhost, the endpoint's name
    fsync::check,      // etcd's disk is fast enough
];

/// Of all machines together.
const OF_THE_CLUSTER: [fn(&Input<'_>, &mut List); 13] = [
    duplicates::check,   // machine-id, product UUID, hostname
    clock::check,        // clocks agree
    architecture::check, // one architecture
    bundle::check,       // the bundle has the versions asked for
    images::check,       // all images are in the bundle
    vip::check,          // the VIP lies in its holders' subnet
    vip_taken::check,    // nobody answers for the VIP
    vrid::check,         // nobody advertises its VRID
    vrrp::check,         // its holders hear each other
    routes::check,       // ranges hide nothing that is reached already
    reach::check,        // the firewall matrix, port by port
    path_mtu::check,     // whole packets pass
    latency::check,      // and do so quickly
];

/// Every preflight check that needs nothing but Facts.
pub fn preflight(spec: &Spec, facts: &Facts) -> Report {
    judge(spec, facts, None)
}

/// Every preflight check, those between machines included.
pub fn preflight_measured(spec: &Spec, facts: &Facts, measured: &Measured) -> Report {
    judge(spec, facts, Some(measured))
}

/// What checks judge.
struct Input<'a> {
    spec: &'a Spec,
    facts: &'a Facts,
    measured: Option<&'a Measured>,
}

fn judge(spec: &Spec, facts: &Facts, measured: Option<&Measured>) -> Report {
    let input = Input { spec, facts, measured };
    let mut list = List::default();
    for machine in spec.machines.iter().filter(|machine| !machine.maintenance) {
        reachable::check(&input, machine, &mut list);
        if let Some(host) = facts.host(&machine.name) {
            for check in OF_A_MACHINE {
                check(&input, machine, host, &mut list);
            }
        }
    }
    for check in OF_THE_CLUSTER {
        check(&input, &mut list);
    }
    unmeasured::check(&input, &mut list);
    Report {
        cluster: spec.name.clone(),
        checks: list.0,
    }
}

impl<'a> Input<'a> {
    /// Machines that were reached, with what was found there.
    fn hosts(&self) -> impl Iterator<Item = (&'a Machine, &'a HostFacts)> {
        self.spec
            .machines
            .iter()
            .filter_map(|machine| Some((machine, self.facts.host(&machine.name)?)))
    }

    /// VIPs with their field of the cluster file, VRID and holders.
    fn vips(&self) -> Vec<Vip<'a>> {
        let mut vips = Vec::new();
        if let Some(endpoint) = &self.spec.endpoint {
            vips.push(Vip {
                field: "endpoint",
                address: endpoint.vip,
                vrid: endpoint.vrid,
                holders: self.spec.vip_holders(),
            });
        }
        if let Some(vip) = &self.spec.etcd.vip {
            vips.push(Vip {
                field: "etcd",
                address: vip.address,
                vrid: vip.vrid,
                holders: self.spec.etcd_members(),
            });
        }
        vips
    }
}

struct Vip<'a> {
    field: &'static str,
    address: IpAddr,
    vrid: u8,
    holders: Vec<&'a Machine>,
}

/// Quorate's programs are on the machine: what listens and runs there is the cluster's.
fn deployed(host: &HostFacts) -> bool {
    host.files
        .get(quorate_plan::paths::BIN)
        .is_some_and(|file| file.exists())
}

/// The machine that was reached and has this address.
fn machine_at(facts: &Facts, address: IpAddr) -> Option<(&str, &HostFacts)> {
    facts.machines.iter().find_map(|(name, machine)| match machine {
        MachineFacts::Found(host) if host.network.interface_of(address).is_some() => Some((name.as_str(), &**host)),
        _ => None,
    })
}

#[derive(Default)]
struct List(Vec<Check>);

impl List {
    fn note(&mut self, name: &str, target: &str, finding: Finding) {
        let (ok, detail, hint) = match finding {
            Ok(detail) => (true, detail, String::new()),
            Err((detail, hint)) => (false, detail, hint),
        };
        self.push(name, target, ok, detail, hint);
    }

    /// Holds, and yet somebody should know: a hint on a check that holds.
    fn warn(&mut self, name: &str, target: &str, detail: impl Into<String>, hint: &str) {
        self.push(name, target, true, detail.into(), hint.to_owned());
    }

    fn require(&mut self, name: &str, target: &str, holds: bool, found: impl Into<String>, hint: &str) {
        let hint = if holds { String::new() } else { hint.to_owned() };
        self.push(name, target, holds, found.into(), hint);
    }

    fn push(&mut self, name: &str, target: &str, ok: bool, detail: String, hint: String) {
        self.0.push(Check {
            name: name.into(),
            target: target.into(),
            ok,
            detail,
            hint,
            took_ms: 0,
        });
    }
}
