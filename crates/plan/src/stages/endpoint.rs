//! Endpoint: the agents run, the VIP answers, every node has its way to the API.

use quorate_facts::Feature;
use quorate_pki::inventory::Ca;
use quorate_spec::Access;

use crate::components::agent;
use crate::model::*;
use crate::paths;
use crate::stages::Planned;
use crate::want::{Context, Draft, Wanted};

/// Three missed advertisements and the proxies' first checks are below a second; machines may be busy.
const ENDPOINT_TIMEOUT_MS: u64 = 30_000;

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(
        context,
        "endpoint",
        "the API answers at its stable address, wherever it is asked",
    );
    let mut notes = Vec::new();
    let holders: Vec<&str> = context
        .spec
        .vip_holders()
        .iter()
        .map(|holder| holder.name.as_str())
        .collect();
    // Holders change one at a time, so that the VIP always has somewhere to go.
    let mut chain: Vec<String> = Vec::new();
    for machine in context.reached(context.spec.machines.iter().collect()) {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        lacks(&wanted, &mut notes);
        let Some(config) = agent::config(context.spec, machine, wanted.host) else {
            if machine.is_node() && !machine.is_control_plane() {
                wanted.authority(Ca::Cluster, paths::PKI);
                draft.add(wanted, &[]);
            }
            continue;
        };
        // Control planes have it already.
        if machine.is_node() && !machine.is_control_plane() {
            wanted.authority(Ca::Cluster, paths::PKI);
        } else if !machine.is_node() {
            wanted.file(
                agent::CA,
                "root",
                0o644,
                Content::Authority {
                    name: Ca::Cluster.name().into(),
                },
            );
        }
        if agent::needs_key(&config) {
            wanted.secret(agent::VRRP_KEY, "root", quorate_facts::SecretId::VrrpKey);
        }
        if config.stats.as_ref().is_some_and(|stats| stats.login.is_some()) {
            wanted.secret(
                agent::STATISTICS_PASSWORD,
                "root",
                quorate_facts::SecretId::StatisticsPassword,
            );
        }
        wanted.file(agent::CONFIG, "root", 0o600, Content::text(agent::render(&config)));
        let program = paths::bin("quorate");
        wanted.unit(
            "quorate-agent.service",
            &agent::unit(wanted.profile()),
            &[agent::CONFIG, agent::VRRP_KEY, agent::STATISTICS_PASSWORD, &program],
        );
        wanted.wait(
            Condition::UnitActive {
                unit: "quorate-agent.service".into(),
            },
            ENDPOINT_TIMEOUT_MS,
        );
        if let Access::Proxy { listen } = &context.spec.access
            && machine.is_node()
        {
            wanted.wait(
                reachable(&listen.to_string(), wanted.machine.is_node()),
                ENDPOINT_TIMEOUT_MS,
            );
        }
        let holder = holders.contains(&machine.name.as_str());
        let rolling = holder && wanted.restarts_any();
        if holder && let Some(endpoint) = &context.spec.endpoint {
            wanted.wait(
                reachable(
                    agent::endpoint_url(endpoint).trim_start_matches("https://"),
                    machine.is_node(),
                ),
                ENDPOINT_TIMEOUT_MS,
            );
        }
        let last = draft.add(wanted, if rolling { &chain } else { &[] });
        if let Some(last) = last.filter(|_| rolling) {
            chain = vec![last];
        }
    }
    Planned {
        stage: draft.stage,
        notes,
    }
}

fn reachable(address: &str, node: bool) -> Condition {
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

/// What the kernel lacks for the chosen access is said before anything is changed.
fn lacks(wanted: &Wanted<'_>, notes: &mut Vec<Note>) {
    let (feature, name) = match wanted.context.spec.access {
        Access::Ipvs { .. } => ("ip_vs", "IPVS"),
        Access::Ebpf { .. } => ("bpf", "BPF"),
        _ => return,
    };
    if wanted.machine.is_node() && wanted.host.kernel_features.get(feature) == Some(&Feature::Absent) {
        notes.push(Note {
            machine: Some(wanted.machine.name.clone()),
            message: format!(
                "the kernel {} has no {name}, so `access: {}` cannot work there",
                wanted.host.kernel,
                name.to_lowercase()
            ),
            hint: Some("use `access: proxy`, or a kernel that has it".into()),
        });
    }
}
