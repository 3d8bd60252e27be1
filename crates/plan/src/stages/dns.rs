//! DNS: CoreDNS answers, and a probe Pod on every node is there to prove it.

use serde_json::json;

use crate::components::{coredns, probe};
use crate::model::*;
use crate::stages::Planned;
use crate::stages::runtime_image_reference as image_reference;
use crate::want::{Context, Draft};

const READY_TIMEOUT_MS: u64 = 120_000;

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "dns", "names resolve in the cluster");
    let mut notes = Vec::new();
    let dns = &context.spec.dns;
    let with_network = !matches!(context.spec.network.cni, quorate_spec::Cni::None);
    match context.image("/coredns") {
        Some(item) if dns.replicas > 0 => {
            let upstream = context
                .facts
                .machines
                .keys()
                .filter_map(|name| context.facts.host(name))
                .any(|host| !host.dns_servers.is_empty());
            let objects = coredns::objects(
                image_reference(&item.name),
                &context.spec.kubernetes.domain,
                dns.replicas,
                &dns.cluster_ips,
                upstream,
            );
            let wait = Condition::Object {
                path: coredns::DEPLOYMENT.into(),
                pointer: "/status/readyReplicas".into(),
                equals: json!(dns.replicas),
            };
            let waits = if with_network {
                vec![Wait {
                    until: wait,
                    timeout_ms: READY_TIMEOUT_MS,
                }]
            } else {
                Vec::new()
            };
            draft.objects("coredns", "run CoreDNS", objects, waits, &[]);
        }
        Some(_) => {}
        None => notes.push(Note {
            machine: None,
            message: "the bundle has no CoreDNS image".into(),
            hint: Some("quorate bundle verify".into()),
        }),
    }
    if let Some(item) = context.image("/probe") {
        let nodes = context
            .reached(context.spec.nodes())
            .iter()
            .map(|machine| machine.name.clone())
            .collect();
        let wait = Condition::DaemonSet {
            path: probe::DAEMON_SET.into(),
            nodes,
        };
        let waits = if with_network {
            vec![Wait {
                until: wait,
                timeout_ms: READY_TIMEOUT_MS,
            }]
        } else {
            Vec::new()
        };
        draft.objects(
            "probe",
            "run a probe on every node",
            probe::objects(image_reference(&item.name)),
            waits,
            &[],
        );
    }
    Planned {
        stage: draft.stage,
        notes,
    }
}
