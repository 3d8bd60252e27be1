//! Nodes: kubelets join by bootstrap token and CSR, kube-proxy runs.

use quorate_spec::Machine;
use serde_json::{Value, json};

use crate::components::kubelet::Kubelet;
use crate::components::{kube_proxy, kubeconfig, objects};
use crate::model::*;
use crate::paths;
use crate::stages::{Planned, agent_pod, control_plane, token};
use crate::want::{Context, Draft, Wanted};

/// CSR, approval by the controller manager, certificate back.
const JOIN_TIMEOUT_MS: u64 = 120_000;

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "nodes", "every node has joined, kube-proxy runs");
    let nodes = context.reached(context.spec.nodes());
    let joining: Vec<&Machine> = nodes
        .iter()
        .copied()
        .filter(|machine| !joined(context, machine))
        .collect();
    let token = if joining.is_empty() {
        None
    } else {
        token::admit(&mut draft, joining.len(), objects::JOINING_GROUP, &[])
    };
    for machine in &nodes {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        let is_joining = joining.iter().any(|other| other.name == machine.name);
        kubelet(&mut wanted, is_joining);
        proxy(&mut wanted);
        if is_joining {
            agent_pod::relieve(&mut wanted);
        }
        let after: Vec<String> = token.iter().cloned().collect();
        draft.add(wanted, &after);
    }
    draft.stage.into()
}

/// Files with the bootstrap token that are on the machine, or will be when it joins. A run that ended early may have left
/// one on a machine that has joined.
pub(crate) fn token_left(context: &Context<'_>, machine: &Machine) -> Vec<String> {
    if !joined(context, machine) || holds_token(context, machine) {
        vec![bootstrap_conf()]
    } else {
        Vec::new()
    }
}

/// The kubelet has a client certificate, and the API does not say that its node object is missing.
pub(crate) fn joined(context: &Context<'_>, machine: &Machine) -> bool {
    let certificate = context
        .facts
        .host(&machine.name)
        .and_then(|host| host.files.get(paths::KUBELET_CLIENT))
        .is_some_and(|file| file.exists());
    certificate && !context.is_absent(&node_path(&machine.name))
}

fn holds_token(context: &Context<'_>, machine: &Machine) -> bool {
    context
        .facts
        .host(&machine.name)
        .and_then(|host| host.files.get(&bootstrap_conf()))
        .is_some_and(|file| file.exists())
}

fn bootstrap_conf() -> String {
    format!("{}/bootstrap-kubelet.conf", paths::KUBERNETES)
}

pub(crate) fn node_path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

fn kubelet(wanted: &mut Wanted<'_>, joining: bool) {
    let context = wanted.context;
    let spec = context.spec;
    let profile = wanted.profile();
    let server = spec.endpoint_url_for(wanted.machine);
    if joining {
        let path = bootstrap_conf();
        let secrets = vec![
            quorate_facts::SecretId::BootstrapTokenId,
            quorate_facts::SecretId::BootstrapTokenSecret,
        ];
        let template = kubeconfig::bootstrap(&spec.name, &server, &paths::pki("ca.crt"));
        wanted.file(&path, "root", 0o600, Content::Template { template, secrets });
    }
    // The kubelet writes this file when it joins; it is ours to change only when the way to the API changes.
    let kubelet_conf = format!("{}/kubelet.conf", paths::KUBERNETES);
    let found = wanted
        .host
        .files
        .get(&kubelet_conf)
        .and_then(|file| file.text.clone())
        .unwrap_or_default();
    if !joining && !found.contains(&format!("server: {server}\n")) {
        let text = kubeconfig::by_path(
            &spec.name,
            &server,
            &paths::pki("ca.crt"),
            "default-auth",
            paths::KUBELET_CLIENT,
            paths::KUBELET_CLIENT,
        );
        wanted.file(&kubelet_conf, "root", 0o600, Content::text(text));
    }
    let machine = wanted.machine;
    let kubelet = Kubelet {
        name: &machine.name,
        addresses: spec
            .network
            .pods
            .iter()
            .filter_map(|net| machine.address_like(*net))
            .collect(),
        dns: spec.dns.cluster_ips.iter().map(ToString::to_string).collect(),
        domain: &spec.kubernetes.domain,
        settings: &spec.kubernetes.kubelet,
        keep_swap: spec.host.swap == quorate_spec::Swap::Keep,
        taints: machine.taints.iter().map(taint).collect(),
        tls_min: crate::components::apiserver::tls_version(spec.security.tls_min),
    };
    let config = format!("{}/config.yaml", paths::KUBELET);
    wanted.text(&config, kubelet.config(profile));
    let inputs = [config, kubelet_conf, paths::pki("ca.crt"), paths::bin("kubelet")];
    wanted.unit(
        "kubelet.service",
        &kubelet.unit(profile),
        &[&inputs[0], &inputs[2], &inputs[3]],
    );
    wanted.wait(
        Condition::File {
            path: paths::KUBELET_CLIENT.into(),
        },
        JOIN_TIMEOUT_MS,
    );
}

fn proxy(wanted: &mut Wanted<'_>) {
    let context = wanted.context;
    let spec = context.spec;
    let profile = wanted.profile();
    wanted.certificate("kube-proxy");
    let conf = format!("{}/kube-proxy.conf", paths::KUBERNETES);
    let server = spec.endpoint_url_for(wanted.machine);
    let text = kubeconfig::by_path(
        &spec.name,
        &server,
        &paths::pki("ca.crt"),
        "kube-proxy",
        &paths::pki("kube-proxy.crt"),
        &paths::pki("kube-proxy.key"),
    );
    wanted.file(&conf, "root", 0o600, Content::text(text));
    let config = format!("{}/kube-proxy.yaml", paths::KUBERNETES);
    wanted.text(
        &config,
        kube_proxy::config(
            &wanted.machine.name,
            &control_plane::join_nets(&spec.network.pods),
            profile.proxy_mode,
            &kube_proxy::excluded(spec),
            profile,
        ),
    );
    let inputs = [conf, config, paths::bin("kube-proxy")];
    wanted.unit(
        "kube-proxy.service",
        &kube_proxy::unit(profile),
        &inputs.each_ref().map(String::as_str),
    );
}

fn taint(taint: &quorate_spec::Taint) -> Value {
    let mut value = json!({"key": taint.key, "effect": format!("{:?}", taint.effect)});
    if !taint.value.is_empty() {
        value["value"] = json!(taint.value);
    }
    value
}
