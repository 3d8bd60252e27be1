//! Network: flannel runs on every node, the runtime knows its subnet, nodes become Ready.

use quorate_facts::HostFacts;
use quorate_spec::{Cni, Flannel as FlannelSpec, FlannelBackend, Machine};

use crate::components::flannel::Flannel;
use crate::components::{kubeconfig, objects};
use crate::model::*;
use crate::paths;
use crate::stages::{Planned, kubeadm};
use crate::want::{Context, Draft};

const READY_TIMEOUT_MS: u64 = 120_000;

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::with_previous(
        context,
        "network",
        "Pods reach each other across machines, every node is Ready",
    );
    let Cni::Flannel(settings) = &context.spec.network.cni else {
        let note = Note {
            machine: None,
            message: "`cni: none`: nodes stay NotReady until you install a network".into(),
            hint: Some("checks of Pods, Services and DNS fail until then".into()),
        };
        return Planned {
            stage: draft.stage,
            notes: vec![note],
            awaited: Vec::new(),
        };
    };
    let rbac = draft.objects(
        "rbac",
        "let flannel read nodes",
        objects::flannel_rbac(),
        Vec::new(),
        &kubeadm::founded(context),
    );
    for machine in context.reached(context.spec.nodes()) {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        let profile = wanted.profile();
        let flannel = flannel(context, settings, machine, wanted.host, profile.nftables);
        let net_conf = format!("{}/flannel-net.json", paths::KUBERNETES);
        let conf = format!("{}/flannel.conf", paths::KUBERNETES);
        wanted.text(&net_conf, flannel.net_conf());
        // The kubelet's own identity is enough: flannel only annotates the node it runs on.
        let server = context.spec.endpoint_url_for(machine);
        wanted.file(
            &conf,
            "root",
            0o600,
            Content::text(kubeconfig::by_path(
                &context.spec.name,
                &server,
                &paths::pki("ca.crt"),
                "flannel",
                paths::KUBELET_CLIENT,
                paths::KUBELET_CLIENT,
            )),
        );
        let inputs = [net_conf, conf, paths::bin("flanneld"), paths::bin("quorate")];
        wanted.unit(
            "flanneld.service",
            &flannel.unit(&machine.name, profile),
            &inputs[..3].iter().map(String::as_str).collect::<Vec<_>>(),
        );
        wanted.wait(
            Condition::NodeReady {
                node: machine.name.clone(),
            },
            READY_TIMEOUT_MS,
        );
        let after: Vec<String> = rbac.iter().cloned().collect();
        draft.add(wanted, &after);
    }
    draft.stage.into()
}

fn flannel<'a>(
    context: &Context<'_>,
    settings: &'a FlannelSpec,
    machine: &Machine,
    host: &HostFacts,
    nftables: bool,
) -> Flannel<'a> {
    let pods = &context.spec.network.pods;
    Flannel {
        pods_v4: pods.iter().find(|net| net.addr().is_ipv4()).map(ToString::to_string),
        pods_v6: pods.iter().find(|net| net.addr().is_ipv6()).map(ToString::to_string),
        backend: match settings.backend {
            FlannelBackend::Vxlan => "vxlan",
            FlannelBackend::HostGw => "host-gw",
        },
        port: settings.port,
        mtu: settings.mtu.map(u32::from),
        interface: host.network.interface_of(machine.address).map(str::to_owned),
        nftables,
    }
}
