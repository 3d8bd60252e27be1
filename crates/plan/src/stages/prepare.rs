//! Hosts: what every machine needs before any program of the cluster is on it.

pub(crate) mod firewall;
pub(crate) mod journal;
pub(crate) mod settings;

use std::collections::BTreeMap;

use quorate_facts::{Feature, HostFacts, block};
use quorate_spec::{Machine, Spec, Swap};

use crate::model::*;
use crate::stages::Planned;
use crate::want::{Context, Draft, Wanted};
use crate::{needs, paths, queries};

/// Kernel modules a node needs; those of the chosen options are added.
const MODULES: [&str; 2] = ["overlay", "br_netfilter"];
const MODULES_FILE: &str = "/etc/modules-load.d/quorate.conf";
const SYSCTL_FILE: &str = "/etc/sysctl.d/90-quorate.conf";
/// kubelet, kube-proxy, flannel and many Pods watch files; with the kernel's 128 instances a node of 110 Pods runs out.
pub(crate) const AT_LEAST: [(&str, u64); 2] = [
    ("fs.inotify.max_user_instances", 8_192),
    ("fs.inotify.max_user_watches", 524_288),
];
/// Set by kubelet (pkg/kubelet/cm, `setupKernelTunables`) and by kube-proxy (cmd/kube-proxy/app, `conntrack`) when they
/// start, and left so when they end: `reset` puts them back.
pub(crate) const SET_BY_PROGRAMS: [&str; 9] = [
    "vm.overcommit_memory",
    "vm.panic_on_oom",
    "kernel.panic",
    "kernel.panic_on_oops",
    "kernel.keys.root_maxkeys",
    "kernel.keys.root_maxbytes",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_tcp_timeout_established",
    "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
];
/// The same in a network namespace of its own (kube-proxy in iptables mode).
pub(crate) const SET_IN_NAMESPACE: &str = "net.ipv4.conf.all.route_localnet";
pub(crate) const HOSTS: &str = "/etc/hosts";
const HOSTS_MARKER: &str = "quorate";
/// Why nothing is awaited after `hostnamectl set-hostname`.
pub(crate) const HOSTNAME_SET: &str = "hostnamed answers when the kernel has the name";

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "prepare", "machines are ready for the cluster's programs");
    let mut notes = Vec::new();
    let hosts = hosts_block(context);
    for machine in context.reached(context.spec.machines.iter().collect()) {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        directories(&mut wanted);
        let modules = modules(context.spec, machine, wanted.profile().proxy_mode);
        let values = sysctls(&wanted);
        let before = remember(&wanted, &values);
        if !modules.is_empty() {
            wanted.text(
                MODULES_FILE,
                modules.iter().map(|module| format!("{module}\n")).collect::<String>(),
            );
        }
        wanted.text(
            SYSCTL_FILE,
            values
                .iter()
                .map(|(key, value)| format!("{key} = {value}\n"))
                .collect::<String>(),
        );
        notes.extend(firewall::note(context.spec, machine, wanted.host));
        let loadable: Vec<String> = modules
            .iter()
            .filter(|module| wanted.host.kernel_features.get(module.as_str()) == Some(&Feature::Loadable))
            .cloned()
            .collect();
        let host = wanted.host;
        let name = machine.name.clone();
        let first: Vec<String> = before.iter().map(|step| step.id.clone()).collect();
        draft.stage.steps.extend(before);
        let needs: Vec<String> = draft.add(wanted, &first).map_or(first, |last| vec![last]);
        let step = |what: &str, title: &str, why: Vec<String>, action: Action, undo: Undo| Step {
            id: format!("prepare/{name}/{what}"),
            machine: name.clone(),
            title: title.into(),
            why,
            action,
            needs: needs.clone(),
            done_when: Vec::new(),
            undo,
            attempts: 2,
            essential: machine.roles.iter().any(|role| *role != quorate_spec::Role::Worker),
        };
        if !loadable.is_empty() {
            let why = loadable
                .iter()
                .map(|module| format!("module {module} is not loaded"))
                .collect();
            draft.push(step(
                "modules",
                "load kernel modules",
                why,
                Action::Modules { names: loadable },
                Undo::Nothing {
                    because: "a loaded module harms nobody".into(),
                },
            ));
        }
        let differing: BTreeMap<String, String> = values
            .iter()
            .filter(|(key, value)| !matches!(host.sysctls.get(*key), Some(Some(found)) if satisfies(key, found, value)))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if !differing.is_empty() {
            let why = differing
                .iter()
                .map(|(key, value)| {
                    format!(
                        "{key} is {}, wanted {value}",
                        host.sysctls.get(key).and_then(Option::as_deref).unwrap_or("absent")
                    )
                })
                .collect();
            draft.push(step(
                "sysctls",
                "set kernel parameters",
                why,
                Action::Sysctls { values: differing },
                Undo::Kept,
            ));
        }
        if context.spec.host.swap == Swap::Off
            && machine.is_node()
            && !host.swaps.is_empty()
            && host.container.is_none()
        {
            let why = host.swaps.iter().map(|swap| format!("swap on {}", swap.path)).collect();
            draft.push(step(
                "swap",
                "turn swap off, now and at boot",
                why,
                Action::SwapOff,
                Undo::Manual {
                    hint: "the lines kept in /etc/fstab start with '#quorate '; remove that and run `swapon -a`; `reset` does so".into(),
                },
            ));
        }
        if context.spec.host.hosts {
            let found = host
                .files
                .get(HOSTS)
                .and_then(|file| file.text.as_deref())
                .unwrap_or_default();
            if block::content(found, HOSTS_MARKER) != Some(hosts.as_str()) {
                draft.push(step(
                    "hosts",
                    "name the machines in /etc/hosts",
                    vec!["the managed block in /etc/hosts differs".into()],
                    Action::Block {
                        path: HOSTS.into(),
                        marker: HOSTS_MARKER.into(),
                        content: hosts.clone(),
                        before: Before::of(host.files.get(HOSTS)),
                    },
                    Undo::Kept,
                ));
            }
        }
        if context.spec.host.hostname && host.hostname != machine.name {
            draft.push(step(
                "hostname",
                "set the hostname",
                vec![format!("the hostname is {}, wanted {}", host.hostname, machine.name)],
                Action::Run {
                    argv: vec!["hostnamectl".into(), "set-hostname".into(), machine.name.clone()],
                    stdin: None,
                    timeout_ms: 10_000,
                    exit_shows: Some(HOSTNAME_SET.into()),
                },
                Undo::Manual {
                    hint: format!("hostnamectl set-hostname {}", host.hostname),
                },
            ));
        }
        for settings in own_settings(context.spec, machine, host) {
            let mut needs = needs.clone();
            for (what, title, why, action, undo) in settings.changes(host) {
                let mut next = step(&what, &title, why, action, undo);
                next.needs = std::mem::replace(&mut needs, vec![next.id.clone()]);
                draft.push(next);
            }
        }
    }
    Planned {
        stage: draft.stage,
        notes,
        awaited: Vec::new(),
    }
}

fn directories(wanted: &mut Wanted<'_>) {
    wanted.directory(paths::BIN, "root", 0o755);
    wanted.directory(paths::QUORATE, "root", 0o700);
    let spec = wanted.context.spec;
    let machine = wanted.machine;
    if machine.is_node() {
        for (path, mode) in [
            (paths::KUBERNETES, 0o755),
            (paths::PKI, 0o700),
            (paths::STATIC_PODS, 0o755),
            (paths::CNI_BIN, 0o755),
            (paths::CNI_CONF, 0o755),
            (paths::KUBELET, 0o750),
        ] {
            wanted.directory(path, "root", mode);
        }
    }
    if wanted.context.runs_etcd(machine) && !wanted.context.etcd_unit() {
        wanted.directory(&spec.etcd.data_dir, "root", 0o700);
    } else if wanted.context.runs_etcd(machine) {
        wanted.user("etcd", &spec.etcd.data_dir);
        wanted.directory(paths::ETCD, "etcd", 0o700);
        wanted.directory(&format!("{}/pki", paths::ETCD), "etcd", 0o700);
        wanted.directory(&spec.etcd.data_dir, "etcd", 0o700);
    }
}

/// Kernel modules that are loaded on a machine.
pub(crate) fn modules(spec: &Spec, machine: &Machine, proxy_mode: &str) -> Vec<String> {
    if !machine.is_node() {
        return Vec::new();
    }
    let mut modules: Vec<&str> = MODULES.to_vec();
    if matches!(spec.access, quorate_spec::Access::Ipvs { .. }) || proxy_mode == "ipvs" {
        modules.extend(needs::IPVS);
    }
    if matches!(spec.network.cni, quorate_spec::Cni::Flannel(_)) {
        modules.push("vxlan");
    }
    modules.into_iter().map(str::to_owned).collect()
}

/// Only what the cluster cannot do without, so that `reset` has little to put back.
fn sysctls(wanted: &Wanted<'_>) -> BTreeMap<String, String> {
    let mut values = BTreeMap::new();
    let host = wanted.host;
    if wanted.machine.is_node() {
        values.insert("net.ipv4.ip_forward".to_owned(), "1".to_owned());
        if wanted.context.spec.network.pods.iter().any(|net| net.addr().is_ipv6()) {
            values.insert("net.ipv6.conf.all.forwarding".to_owned(), "1".to_owned());
        }
        // Absent unless br_netfilter is there; with it, bridged Pod traffic must pass the Service rules.
        for key in [
            "net.bridge.bridge-nf-call-iptables",
            "net.bridge.bridge-nf-call-ip6tables",
        ] {
            let known = matches!(host.sysctls.get(key), Some(Some(_)));
            if known || host.kernel_features.get("br_netfilter") == Some(&Feature::Loadable) {
                values.insert(key.to_owned(), "1".to_owned());
            }
        }
    }
    // Not a namespace's own: in a container they are its host's business.
    if wanted.machine.is_node() && host.container.is_none() {
        values.extend(AT_LEAST.map(|(key, value)| (key.to_owned(), value.to_string())));
    }
    values.extend(
        wanted
            .context
            .spec
            .host
            .sysctls
            .iter()
            .map(|(key, value)| (key.clone(), value.clone())),
    );
    values
}

/// What `reset` puts back, written once and before anything else: a run that ends early must not make the next one take
/// for found what this one made.
fn remember(wanted: &Wanted<'_>, values: &BTreeMap<String, String>) -> Option<Step> {
    let host = wanted.host;
    if host.files.get(queries::BEFORE).is_some_and(|file| file.exists()) {
        return None;
    }
    let mut keys: Vec<&str> = values.keys().map(String::as_str).collect();
    if wanted.machine.is_node() {
        keys.push(SET_IN_NAMESPACE);
    }
    // As with those set here: a container's host may run other kubelets.
    if wanted.machine.is_node() && host.container.is_none() {
        keys.extend(SET_BY_PROGRAMS);
    }
    let sysctls: BTreeMap<&str, &String> = keys
        .into_iter()
        .filter_map(|key| Some((key, host.sysctls.get(key)?.as_ref()?)))
        .collect();
    let users: Vec<&String> = host
        .users
        .iter()
        .filter(|(_, found)| found.is_none())
        .map(|(name, _)| name)
        .collect();
    let directories: Vec<&str> = queries::DIRECTORIES
        .into_iter()
        .chain([wanted.context.spec.etcd.data_dir.as_str()])
        .filter(|path| !host.files.get(*path).is_some_and(|file| file.exists()))
        .collect();
    let swaps: Vec<&str> = host.swaps.iter().map(|swap| swap.path.as_str()).collect();
    let before = serde_json::json!({"hostname": host.hostname, "swaps": swaps, "sysctls": sysctls, "users": users, "directories": directories, "nftTables": host.firewall.nft_tables});
    let file = FileChange {
        path: queries::BEFORE.into(),
        owner: "root".into(),
        mode: 0o600,
        content: Content::text(format!("{before:#}\n")),
        before: Before::Absent,
    };
    let machine = &wanted.machine.name;
    Some(Step {
        id: format!("prepare/{machine}/before"),
        machine: machine.clone(),
        title: "remember how the machine was".into(),
        why: vec![format!("{} does not exist", queries::BEFORE)],
        action: Action::Files { files: vec![file] },
        needs: Vec::new(),
        done_when: Vec::new(),
        undo: Undo::Kept,
        attempts: 2,
        essential: wanted
            .machine
            .roles
            .iter()
            .any(|role| *role != quorate_spec::Role::Worker),
    })
}

/// Every machine's name, and the endpoint's.
fn hosts_block(context: &Context<'_>) -> String {
    let mut text = String::new();
    for machine in &context.spec.machines {
        for address in machine.all_addresses() {
            text.push_str(&format!("{address} {}\n", machine.name));
        }
    }
    if let Some(endpoint) = &context.spec.endpoint
        && let Some(name) = &endpoint.name
    {
        text.push_str(&format!("{} {name}\n", endpoint.vip));
    }
    if let quorate_spec::Access::Ipvs { virtual_address, name } = &context.spec.access {
        text.push_str(&format!("{} {name}\n", virtual_address.ip()));
    }
    text
}

/// Settings of the machine's own programs.
pub(crate) fn own_settings(spec: &Spec, machine: &Machine, host: &HostFacts) -> Vec<settings::Settings> {
    let mut all = vec![journal::settings(spec)];
    all.extend(firewall::settings(spec, machine, host));
    all
}

/// A higher limit than ours is as good.
fn satisfies(key: &str, found: &str, wanted: &str) -> bool {
    let limit = AT_LEAST.iter().any(|(name, _)| *name == key);
    match (found.trim().parse::<u64>(), wanted.parse::<u64>()) {
        (Ok(found), Ok(wanted)) if limit => found >= wanted,
        _ => words(found) == words(wanted),
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}
