//! Endpoint: the balancers run, the VIPs answer, every node has its way to the API.

use quorate_facts::Feature;
use quorate_lb::config::AgentConfig;
use quorate_pki::inventory::Ca;
use quorate_spec::{Access, Bootstrap, Machine, RunAs};

use crate::components::{agent, haproxy, keepalived};
use crate::model::*;
use crate::names::host_port;
use crate::paths;
use crate::stages::{Planned, agent_pod};
use crate::want::{Context, Draft, Wanted};

/// Three missed advertisements and the proxies' first checks are below a second; machines may be busy.
const ENDPOINT_TIMEOUT_MS: u64 = 30_000;
const AGENT: &str = "quorate-agent.service";

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(
        context,
        "endpoint",
        "the API answers at its stable address, wherever it is asked",
    );
    let machines = context.spec.machines.iter();
    let machines = machines.filter(|machine| !fronts_etcd(context, machine)).collect();
    let notes = balance(&mut draft, context, machines, api_answers);
    Planned {
        stage: draft.stage,
        notes,
        awaited: Vec::new(),
    }
}

/// API servers reach etcd through its VIP, so that is there before they are.
pub(crate) fn in_front_of_etcd(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "etcd-endpoint", "etcd answers at its stable address");
    let machines = context.spec.machines.iter();
    let machines = machines.filter(|machine| fronts_etcd(context, machine)).collect();
    let notes = balance(&mut draft, context, machines, etcd_answers);
    Planned {
        stage: draft.stage,
        notes,
        awaited: Vec::new(),
    }
}

fn fronts_etcd(context: &Context<'_>, machine: &Machine) -> bool {
    context.spec.etcd.vip.is_some() && context.runs_etcd(machine)
}

fn balance<'a>(
    draft: &mut Draft<'a>,
    context: &'a Context<'a>,
    machines: Vec<&'a Machine>,
    answers: fn(&Wanted<'_>) -> Vec<Wait>,
) -> Vec<Note> {
    let mut notes = Vec::new();
    // Holders of a VIP change one at a time, so that it always has somewhere to go.
    let mut chain: Vec<String> = Vec::new();
    for machine in context.reached(machines) {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        lacks(&wanted, &mut notes);
        let work = agent::work(context.spec, machine, wanted.host);
        let holder = !work.vrrp.is_empty();
        let (by_agent, by_haproxy) = agent::divide(work, context.spec.balancer);
        // What is no longer wanted goes first: it may hold the ports and addresses.
        let as_pod = context.spec.balancer_as == RunAs::StaticPod;
        if by_agent.is_none() || as_pod {
            wanted.no_unit(AGENT);
        }
        if by_agent.is_none() || !as_pod {
            wanted.no_pod(agent::MANIFEST, pod_is_gone());
        }
        let vrrp = by_haproxy.as_ref().filter(|work| !work.vrrp.is_empty());
        if vrrp.is_none() {
            wanted.no_unit(keepalived::UNIT);
        }
        if by_haproxy.is_none() {
            wanted.no_unit(haproxy::UNIT);
        }
        let works = by_agent.is_some() || by_haproxy.is_some();
        let answers = if works { answers(&wanted) } else { Vec::new() };
        let mut before_joining = false;
        if let Some(work) = &by_agent {
            agent_files(&mut wanted, work);
            if !as_pod {
                run_agent(&mut wanted);
            } else if agent_pod::has_joined(context, machine) {
                agent_pod::renew(&mut wanted, work, &answers);
            } else {
                wanted.no_pod(agent::MANIFEST, Vec::new());
                before_joining = true;
            }
        }
        if let Some(work) = &by_haproxy {
            run_haproxy(&mut wanted, work);
        }
        if let Some(work) = vrrp {
            run_keepalived(&mut wanted, work);
        }
        authority(&mut wanted, works);
        // A Pod comes after the units.
        if by_haproxy.is_some() || !as_pod {
            for wait in &answers {
                wanted.wait(wait.until.clone(), wait.timeout_ms);
            }
        }
        let rolling = holder && (wanted.restarts_any() || wanted.changes_pods());
        let mut last = draft.add(wanted, if rolling { &chain } else { &[] });
        if before_joining {
            last = agent_pod::until_joined(draft, machine, last, answers);
        }
        if let Some(last) = last.filter(|_| rolling) {
            chain = vec![last];
        }
    }
    notes
}

/// The cluster's CA, by which balancers and waits know API servers. Control planes have it already.
fn authority(wanted: &mut Wanted<'_>, works: bool) {
    let machine = wanted.machine;
    if machine.is_node() && !machine.is_control_plane() {
        wanted.authority(Ca::Cluster, paths::PKI);
    } else if !machine.is_node() && works {
        wanted.file(
            agent::CA,
            "root",
            0o644,
            Content::Authority {
                name: Ca::Cluster.name().into(),
            },
        );
    }
}

fn agent_files(wanted: &mut Wanted<'_>, work: &AgentConfig) {
    if agent::needs_key(work) {
        wanted.secret(agent::VRRP_KEY, "root", quorate_facts::SecretId::VrrpKey);
    }
    if work.stats.as_ref().is_some_and(|stats| stats.login.is_some()) {
        wanted.secret(
            agent::STATISTICS_PASSWORD,
            "root",
            quorate_facts::SecretId::StatisticsPassword,
        );
    }
    wanted.file(agent::CONFIG, "root", 0o600, Content::text(agent::render(work)));
}

fn run_agent(wanted: &mut Wanted<'_>) {
    let program = paths::bin("quorate");
    wanted.unit(
        AGENT,
        &agent::unit(wanted.profile()),
        &[agent::CONFIG, agent::VRRP_KEY, agent::STATISTICS_PASSWORD, &program],
    );
    active(wanted, AGENT);
}

/// What it served is free again: it drains its connections before it ends.
fn pod_is_gone() -> Vec<Wait> {
    vec![soon(Condition::Gone {
        path: agent::SOCKET.into(),
    })]
}

fn run_haproxy(wanted: &mut Wanted<'_>, work: &AgentConfig) {
    let profile = wanted.profile();
    wanted.text(haproxy::CONFIG, haproxy::config(work, profile));
    if let Some(content) = haproxy::statistics(work) {
        wanted.file(haproxy::STATISTICS, "root", 0o600, content);
    }
    let text = haproxy::unit(work, wanted.host, profile);
    wanted.unit(haproxy::UNIT, &text, &[haproxy::CONFIG, haproxy::STATISTICS]);
    active(wanted, haproxy::UNIT);
}

fn run_keepalived(wanted: &mut Wanted<'_>, work: &AgentConfig) {
    wanted.text(keepalived::CONFIG, keepalived::config(work));
    wanted.file(keepalived::SCRIPT, "root", 0o755, Content::text(keepalived::script()));
    if let Some(content) = keepalived::password(work) {
        wanted.file(keepalived::PASSWORD, "root", 0o600, content);
    }
    let text = keepalived::unit(work, wanted.host, wanted.profile());
    wanted.unit(
        keepalived::UNIT,
        &text,
        &[keepalived::CONFIG, keepalived::SCRIPT, keepalived::PASSWORD],
    );
    active(wanted, keepalived::UNIT);
}

fn active(wanted: &mut Wanted<'_>, unit: &str) {
    wanted.wait(Condition::UnitActive { unit: unit.into() }, ENDPOINT_TIMEOUT_MS);
}

/// At the machine's own proxy, and where it may hold the VIP, there.
fn api_answers(wanted: &Wanted<'_>) -> Vec<Wait> {
    let (spec, machine) = (wanted.context.spec, wanted.machine);
    // kubeadm founds the cluster through the endpoint, so its balancers are up before anything answers behind them.
    if spec.kubernetes.bootstrap == Bootstrap::Kubeadm && wanted.context.facts.cluster.ready_api_servers.is_empty() {
        return Vec::new();
    }
    let mut until = Vec::new();
    if let Access::Proxy { listen } = &spec.access
        && machine.is_node()
    {
        until.push(ready(&listen.to_string(), true));
    }
    if let Some(endpoint) = &spec.endpoint
        && spec.vip_holders().iter().any(|holder| holder.name == machine.name)
    {
        let address = host_port(endpoint.vip, endpoint.port);
        until.push(ready(&address, machine.is_node()));
    }
    until.into_iter().map(soon).collect()
}

fn etcd_answers(wanted: &Wanted<'_>) -> Vec<Wait> {
    let vip = wanted.context.spec.etcd.vip.as_ref();
    let port = vip.map(|vip| Condition::Port {
        address: host_port(vip.address, vip.port),
    });
    port.into_iter().map(soon).collect()
}

fn soon(until: Condition) -> Wait {
    Wait {
        until,
        timeout_ms: ENDPOINT_TIMEOUT_MS,
    }
}

fn ready(address: &str, node: bool) -> Condition {
    let ca = if node {
        paths::pki("ca.crt")
    } else {
        agent::CA.to_owned()
    };
    let tls = ClientTls {
        ca,
        certificate: None,
        key: None,
        server_name: Some("kubernetes".into()),
    };
    Condition::Http {
        url: format!("https://{address}/readyz"),
        tls: Some(tls),
        contains: None,
    }
}

/// What the kernel lacks for the chosen access is said before anything is changed; preflight refuses it.
fn lacks(wanted: &Wanted<'_>, notes: &mut Vec<Note>) {
    let (feature, name) = match wanted.context.spec.access {
        Access::Ipvs { .. } => ("ip_vs", "IPVS"),
        Access::Ebpf { .. } => ("bpf", "BPF"),
        _ => return,
    };
    if wanted.machine.is_node() && wanted.host.kernel_features.get(feature) == Some(&Feature::Absent) {
        let mode = if name == "IPVS" { "ipvs" } else { "ebpf" };
        notes.push(Note {
            machine: Some(wanted.machine.name.clone()),
            message: format!(
                "the kernel {} has no {name}, so `access: {mode}` cannot work there",
                wanted.host.kernel,
            ),
            hint: Some("use `access: proxy`, or a kernel that has it".into()),
        });
    }
}
