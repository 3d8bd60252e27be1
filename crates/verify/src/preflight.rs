//! What would go wrong, found from Facts before anything is changed. Pure; one function per check, all findings at once.

use std::collections::BTreeMap;

use quorate_facts::{Facts, Feature, HostFacts, MachineFacts, Transport};
use quorate_spec::{Machine, Role, Spec};

use crate::{Check, Report};

/// kubeadm refuses control planes below this (1700 MB, 2 CPUs).
const CONTROL_PLANE_MEMORY: u64 = 1_700_000_000;
const CONTROL_PLANE_CPUS: u32 = 2;
/// A kubelet and its system Pods alone take about 300 MB.
const NODE_MEMORY: u64 = 700_000_000;
/// Images, blobs and an etcd snapshot; below it the first image pull may end in disk pressure.
const FREE_DISK: u64 = 5_000_000_000;
/// Certificates are back-dated by five minutes; leave room for the operator's own clock.
const MAX_SKEW_NS: i128 = 60_000_000_000;

/// Every preflight check of the cluster file against what was found.
pub fn preflight(spec: &Spec, facts: &Facts) -> Report {
    let mut list = List::default();
    for machine in spec.machines.iter().filter(|machine| !machine.maintenance) {
        match facts.machines.get(&machine.name) {
            Some(MachineFacts::Found(host)) => {
                list.note("reachable", &machine.name, Ok("answers".into()));
                one(spec, machine, host, &mut list);
            }
            Some(MachineFacts::Unreachable { reason }) => list.note(
                "reachable",
                &machine.name,
                Err((reason.clone(), "check the address, sshd and your ssh_config".into())),
            ),
            None => {}
        }
    }
    duplicates(facts, &mut list);
    clocks(facts, &mut list);
    architectures(facts, &mut list);
    vip(spec, facts, &mut list);
    routes(spec, facts, &mut list);
    Report {
        cluster: spec.name.clone(),
        checks: list.0,
    }
}

type Finding = Result<String, (String, String)>;

#[derive(Default)]
struct List(Vec<Check>);

impl List {
    fn note(&mut self, name: &str, target: &str, finding: Finding) {
        let (ok, detail, hint) = match finding {
            Ok(detail) => (true, detail, String::new()),
            Err((detail, hint)) => (false, detail, hint),
        };
        self.0.push(Check {
            name: name.into(),
            target: target.into(),
            ok,
            detail,
            hint,
            took_ms: 0,
        });
    }

    fn require(&mut self, name: &str, target: &str, holds: bool, found: String, hint: &str) {
        self.note(
            name,
            target,
            if holds {
                Ok(found)
            } else {
                Err((found, hint.to_owned()))
            },
        );
    }
}

fn one(spec: &Spec, machine: &Machine, host: &HostFacts, list: &mut List) {
    let name = machine.name.as_str();
    list.require(
        "root",
        name,
        host.privilege.uid == 0,
        format!("works as user id {}", host.privilege.uid),
        "log in as root, or as a user with sudo (--ask-sudo-password)",
    );
    list.require(
        "systemd",
        name,
        host.systemd.is_some(),
        host.systemd.as_ref().map_or("not booted by systemd".into(), |systemd| {
            format!("systemd {}", systemd.version)
        }),
        "Quorate runs programs as systemd units; use a machine that boots with systemd",
    );
    let has_address = host
        .network
        .addresses
        .iter()
        .any(|found| found.address == machine.address);
    list.require(
        "address",
        name,
        has_address,
        if has_address {
            format!("has {}", machine.address)
        } else {
            format!("does not have its address {}", machine.address)
        },
        "`address` must be one of the machine's own; use ssh.address for another way to log in",
    );
    memory(machine, host, list);
    disk(machine, host, list);
    ports(spec, machine, host, list);
    leftovers(host, machine, list);
    kernel(machine, host, list);
    balancing(spec, machine, host, list);
    if machine.is_node() && spec.host.swap == quorate_spec::Swap::Off && host.container.is_none() {
        // Turned off by apply; worth saying beforehand.
        let found = if host.swaps.is_empty() {
            "off".to_owned()
        } else {
            format!(
                "on: {}; apply turns it off",
                host.swaps
                    .iter()
                    .map(|swap| swap.path.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            )
        };
        list.note("swap", name, Ok(found));
    }
    if spec.host.time_sync == quorate_spec::TimeSync::Check && host.container.is_none() {
        let synchronized = host.clock.synchronized.unwrap_or(true) || host.clock.service.is_some();
        list.require(
            "time-sync",
            name,
            synchronized,
            if synchronized {
                "kept by a time service".into()
            } else {
                "nothing keeps the clock".into()
            },
            "install chrony, or enable systemd-timesyncd; `host.timeSync: ignore` if you know better",
        );
    }
    if let Some(mode) = &host.security.selinux {
        list.note("selinux", name, Ok(mode.clone()));
    }
}

fn memory(machine: &Machine, host: &HostFacts, list: &mut List) {
    let control = machine.roles.contains(&Role::ControlPlane);
    let least = if control { CONTROL_PLANE_MEMORY } else { NODE_MEMORY };
    if control || machine.is_node() {
        let found = format!("{} MB", host.memory_bytes / 1_000_000);
        list.require(
            "memory",
            &machine.name,
            host.memory_bytes >= least,
            found,
            &format!("give it at least {} MB", least / 1_000_000),
        );
    }
    if control {
        list.require(
            "cpus",
            &machine.name,
            host.cpus >= CONTROL_PLANE_CPUS,
            format!("{}", host.cpus),
            "a control plane needs two CPUs",
        );
    }
}

/// The file system that holds `/var/lib`.
fn disk(machine: &Machine, host: &HostFacts, list: &mut List) {
    let holder = host
        .mounts
        .iter()
        .filter(|mount| "/var/lib/quorate".starts_with(mount.target.trim_end_matches('/')))
        .max_by_key(|mount| mount.target.len());
    if let Some(mount) = holder.filter(|mount| mount.total_bytes > 0) {
        let found = format!("{} MB free on {}", mount.free_bytes / 1_000_000, mount.target);
        list.require(
            "disk",
            &machine.name,
            mount.free_bytes >= FREE_DISK,
            found,
            &format!("free at least {} MB", FREE_DISK / 1_000_000),
        );
    }
}

/// Ports our programs will listen on, unless it is they who do already.
fn ports(spec: &Spec, machine: &Machine, host: &HostFacts, list: &mut List) {
    let mut wanted: Vec<(u16, &str)> = Vec::new();
    if machine.is_control_plane() {
        wanted.extend([
            (6443, "kube-apiserver"),
            (10257, "kube-controller-manager"),
            (10259, "kube-scheduler"),
        ]);
    }
    if spec.etcd_members().iter().any(|member| member.name == machine.name) {
        wanted.extend([(2379, "etcd"), (2380, "etcd")]);
    }
    if machine.is_node() {
        wanted.extend([(10250, "kubelet"), (10249, "kube-proxy"), (10256, "kube-proxy")]);
    }
    if let Some(endpoint) = spec
        .endpoint
        .as_ref()
        .filter(|_| spec.vip_holders().iter().any(|holder| holder.name == machine.name))
    {
        let program = match spec.balancer {
            quorate_spec::Balancer::Quorate => "quorate",
            quorate_spec::Balancer::Haproxy => "haproxy",
        };
        wanted.push((endpoint.port, program));
    }
    let mut taken = Vec::new();
    for (port, program) in wanted {
        for listener in host
            .listening
            .iter()
            .filter(|listener| listener.port == port && listener.transport == Transport::Tcp)
        {
            let process = listener.process.as_deref().unwrap_or("an unknown process");
            // The kernel cuts process names at 15 bytes.
            if !program.starts_with(process) && !process.starts_with(program) {
                taken.push(format!(
                    "{port} ({program}) by {process}{}",
                    listener.pid.map_or(String::new(), |pid| format!(", pid {pid}"))
                ));
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

/// Another installer's cluster, which apply would fight with.
fn leftovers(host: &HostFacts, machine: &Machine, list: &mut List) {
    let ours = host
        .files
        .get(quorate_plan::paths::BIN)
        .is_some_and(|file| file.exists());
    let mut found = Vec::new();
    if !ours {
        if host
            .files
            .get(quorate_plan::paths::PKI)
            .is_some_and(|file| file.exists())
        {
            found.push("/etc/kubernetes/pki".to_owned());
        }
        for unit in [
            "kubelet.service",
            "etcd.service",
            "kube-apiserver.service",
            "containerd.service",
        ] {
            if host
                .units
                .get(unit)
                .is_some_and(|unit| unit.exists() && unit.is_active())
            {
                found.push(format!("{unit} runs"));
            }
        }
    }
    let text = if found.is_empty() {
        "none".to_owned()
    } else {
        found.join(", ")
    };
    list.require(
        "leftovers",
        &machine.name,
        found.is_empty(),
        text,
        "remove the other cluster first (`kubeadm reset`, `k3s-uninstall.sh`, …)",
    );
}

fn kernel(machine: &Machine, host: &HostFacts, list: &mut List) {
    if !machine.is_node() {
        return;
    }
    let absent = |feature: &str| host.kernel_features.get(feature) == Some(&Feature::Absent);
    let lacking: Vec<&str> = ["overlay", "nf_tables"]
        .into_iter()
        .filter(|feature| absent(feature))
        .collect();
    let found = if lacking.is_empty() {
        host.kernel.clone()
    } else {
        format!("{} lacks {}", host.kernel, lacking.join(", "))
    };
    list.require(
        "kernel",
        &machine.name,
        lacking.is_empty(),
        found,
        "install the distribution's full kernel",
    );
    let tools = host.firewall.nft.is_some() || host.firewall.iptables.is_some();
    list.require(
        "packet-filter",
        &machine.name,
        tools,
        if tools {
            "nft or iptables is there".into()
        } else {
            "neither nft nor iptables is installed".into()
        },
        "apt install nftables / dnf install nftables",
    );
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|controller| !host.cgroup.controllers.iter().any(|found| found == controller))
        .collect();
    let found = if missing.is_empty() {
        format!("{:?}", host.cgroup.version).to_lowercase()
    } else {
        format!("without {}", missing.join(", "))
    };
    list.require(
        "cgroups",
        &machine.name,
        missing.is_empty(),
        found,
        "enable the controllers on the kernel's command line (cgroup_enable=memory)",
    );
}

/// What the chosen access wants of the kernel, and the chosen balancer of the distribution: not half-way into a deployment.
fn balancing(spec: &Spec, machine: &Machine, host: &HostFacts, list: &mut List) {
    let (mode, features): (&str, &[&str]) = match spec.access {
        quorate_spec::Access::Ipvs { .. } => ("ipvs", &["ip_vs"]),
        quorate_spec::Access::Ebpf { .. } => ("ebpf", &["bpf", "cgroup_bpf"]),
        _ => ("", &[]),
    };
    if machine.is_node() && !features.is_empty() {
        let absent = |feature: &&&str| host.kernel_features.get(**feature) == Some(&Feature::Absent);
        let lacking: Vec<&str> = features.iter().filter(absent).copied().collect();
        let found = if lacking.is_empty() {
            format!("the kernel {} can do `access: {mode}`", host.kernel)
        } else {
            format!(
                "the kernel {} lacks {} for `access: {mode}`",
                host.kernel,
                lacking.join(" and ")
            )
        };
        list.require(
            "access-kernel",
            &machine.name,
            lacking.is_empty(),
            found,
            "write `access: proxy`, which needs nothing of the kernel, or install the distribution's full kernel",
        );
    }
    let needed = quorate_plan::programs_needed(spec, machine);
    if !needed.is_empty() {
        let there = |program: &&&str| matches!(host.programs.get(**program), Some(Some(_)));
        let missing: Vec<&str> = needed.iter().filter(|program| !there(program)).copied().collect();
        let found = if missing.is_empty() {
            format!("{} installed", needed.join(" and "))
        } else {
            format!("without {}", missing.join(" and "))
        };
        list.require(
            "balancer",
            &machine.name,
            missing.is_empty(),
            found,
            "`balancer: haproxy` runs the distribution's programs: apt install haproxy keepalived / dnf install haproxy keepalived; \
             or write `balancer: quorate`, which needs none",
        );
    }
}

/// Clones of one image share identifiers the cluster takes for unique.
fn duplicates(facts: &Facts, list: &mut List) {
    type Identifier = (&'static str, fn(&HostFacts) -> Option<String>, &'static str);
    let identifiers: [Identifier; 3] = [
        (
            "machine-id",
            |host| Some(host.machine_id.clone()),
            "rm /etc/machine-id && systemd-machine-id-setup, then reboot",
        ),
        (
            "product-uuid",
            |host| host.product_uuid.clone().filter(|_| host.container.is_none()),
            "give each virtual machine its own UUID",
        ),
        (
            "hostname",
            |host| Some(host.hostname.clone()),
            "hostnamectl set-hostname NAME",
        ),
    ];
    for (what, read, hint) in identifiers {
        let mut holders: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (name, machine) in &facts.machines {
            if let MachineFacts::Found(host) = machine
                && let Some(value) = read(host).filter(|value| !value.is_empty())
            {
                holders.entry(value).or_default().push(name);
            }
        }
        let shared: Vec<String> = holders
            .into_iter()
            .filter(|(_, names)| names.len() > 1)
            .map(|(value, names)| format!("{} share {value}", names.join(" and ")))
            .collect();
        list.require(
            what,
            "cluster",
            shared.is_empty(),
            if shared.is_empty() {
                "all different".into()
            } else {
                shared.join("; ")
            },
            hint,
        );
    }
}

fn clocks(facts: &Facts, list: &mut List) {
    for (name, machine) in &facts.machines {
        let MachineFacts::Found(host) = machine else { continue };
        let skew = i128::from(host.clock.unix_ns) - i128::from(facts.taken_unix) * 1_000_000_000;
        list.require(
            "clock",
            name,
            skew.abs() <= MAX_SKEW_NS,
            format!("{:+.1} s from here", skew as f64 / 1e9),
            "set the clock (chronyc makestep); certificates depend on it",
        );
    }
}

fn architectures(facts: &Facts, list: &mut List) {
    let found: std::collections::BTreeSet<&str> = facts
        .machines
        .keys()
        .filter_map(|name| facts.host(name))
        .map(|host| host.arch.as_str())
        .collect();
    let text = found.iter().copied().collect::<Vec<_>>().join(", ");
    list.require(
        "architecture",
        "cluster",
        found.len() <= 1,
        text,
        "all machines must have one architecture, that of the bundle",
    );
}

/// The VIP belongs to nobody, or to us.
fn vip(spec: &Spec, facts: &Facts, list: &mut List) {
    let Some(endpoint) = &spec.endpoint else { return };
    let holders = spec.vip_holders();
    for (name, machine) in &facts.machines {
        let MachineFacts::Found(host) = machine else { continue };
        if host.network.interface_of(endpoint.vip).is_some() && !holders.iter().any(|holder| holder.name == *name) {
            list.note(
                "vip",
                name,
                Err((
                    format!("has the VIP {} as an address of its own", endpoint.vip),
                    "choose another VIP".into(),
                )),
            );
        }
    }
    for holder in holders {
        let Some(host) = facts.host(&holder.name) else { continue };
        let near = host.network.interface_towards(endpoint.vip);
        let found = near.map_or_else(
            || format!("no interface with a subnet that holds {}", endpoint.vip),
            |interface| format!("reachable on {interface}"),
        );
        list.require(
            "vip-subnet",
            &holder.name,
            near.is_some(),
            found,
            "the VIP must lie in a subnet its holders share",
        );
    }
}

/// Cluster ranges must not hide what the machines reach already.
fn routes(spec: &Spec, facts: &Facts, list: &mut List) {
    for (name, machine) in &facts.machines {
        let MachineFacts::Found(host) = machine else { continue };
        let ranges = spec.network.pods.iter().chain(&spec.network.services);
        let mut clashes = Vec::new();
        for range in ranges {
            for route in host.network.routes.iter().filter(|route| route.prefix > 0) {
                let ours = route.interface.as_deref().is_some_and(|interface| {
                    interface.starts_with("cni") || interface.starts_with("flannel") || interface.starts_with("kube-")
                });
                let Ok(other) = ipnet::IpNet::new(route.destination, route.prefix) else {
                    continue;
                };
                if !ours && (range.contains(&other.network()) || other.contains(&range.network())) {
                    clashes.push(format!("{range} overlaps the route to {other}"));
                }
            }
        }
        list.require(
            "routes",
            name,
            clashes.is_empty(),
            if clashes.is_empty() {
                "no overlap".into()
            } else {
                clashes.join("; ")
            },
            "choose other network.pods or network.services",
        );
    }
}
