//! DNS: CoreDNS is asked for, and a probe Pod on every node to prove it. Both are awaited when all nodes are there.

use crate::components::{coredns, probe};
use crate::model::*;
use crate::stages::runtime_image_reference as image_reference;
use crate::stages::{Awaited, Planned, kubeadm};
use crate::want::{Context, Draft};

const READY_TIMEOUT_MS: u64 = 120_000;

/// Something that runs in the cluster.
struct Part {
    name: &'static str,
    title: &'static str,
    objects: Vec<ApiObject>,
    ready: Condition,
}

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::with_previous(context, "dns", "CoreDNS is asked for, and a probe on every node");
    let after = kubeadm::founded(context);
    // Without a network no Pod is ever ready.
    let awaitable = !matches!(context.spec.network.cni, quorate_spec::Cni::None);
    let mut awaited = Vec::new();
    for part in parts(context) {
        let changed = draft.objects(part.name, part.title, part.objects, Vec::new(), &after);
        awaited.extend(changed.filter(|_| awaitable).map(|_| Awaited {
            what: part.name,
            wait: Wait {
                until: part.ready,
                timeout_ms: READY_TIMEOUT_MS,
            },
        }));
    }
    let mut notes = Vec::new();
    if context.image("/coredns").is_none() {
        notes.push(Note {
            machine: None,
            message: "the bundle has no CoreDNS image".into(),
            hint: Some("quorate bundle verify".into()),
        });
    }
    Planned {
        stage: draft.stage,
        notes,
        awaited,
    }
}

fn parts(context: &Context<'_>) -> Vec<Part> {
    let mut parts = Vec::new();
    let dns = &context.spec.dns;
    if let Some(item) = context.image("/coredns")
        && dns.replicas > 0
    {
        let upstream = context
            .facts
            .machines
            .keys()
            .filter_map(|name| context.facts.host(name))
            .any(|host| !host.dns_servers.is_empty());
        parts.push(Part {
            name: "coredns",
            title: "run CoreDNS",
            objects: coredns::objects(
                image_reference(&item.name),
                &context.spec.kubernetes.domain,
                dns.replicas,
                &dns.cluster_ips,
                upstream,
            ),
            ready: Condition::Deployment {
                path: coredns::DEPLOYMENT.into(),
                replicas: dns.replicas,
            },
        });
    }
    if let Some(item) = context.image("/probe") {
        let nodes = context.reached(context.spec.nodes());
        parts.push(Part {
            name: "probe",
            title: "run a probe on every node",
            objects: probe::objects(image_reference(&item.name)),
            ready: Condition::DaemonSet {
                path: probe::DAEMON_SET.into(),
                nodes: nodes.iter().map(|machine| machine.name.clone()).collect(),
            },
        });
    }
    parts
}
