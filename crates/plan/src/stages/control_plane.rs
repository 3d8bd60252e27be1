//! Control plane: API servers, controller managers and schedulers on machines that are all alike.

use quorate_pki::inventory::Ca;
use quorate_spec::{Bootstrap, Encryption, EtcdTopology, Machine, PodSecurityLevel, Spec};

use crate::components::apiserver::{self, ApiServer};
use crate::components::controller_manager::ControllerManager;
use crate::components::unit::Flags;
use crate::components::{etcd, kubeconfig, objects, scheduler};
use crate::model::*;
use crate::names::{feature_gates, host_port};
use crate::paths;
use crate::stages::Planned;
use crate::want::{Context, Draft, Wanted};

const READY_TIMEOUT_MS: u64 = 120_000;

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(
        context,
        "control-plane",
        "every API server is ready, controllers and schedulers run",
    );
    let mut chain: Vec<String> = Vec::new();
    let mut units = Vec::new();
    for machine in context.reached(context.spec.control_planes()) {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        certificates(&mut wanted);
        configuration(&mut wanted);
        kubeconfigs(&mut wanted);
        control_units(&mut wanted);
        // A running control plane is restarted one machine at a time; a new one starts everywhere at once.
        let rolling = wanted.restarts_any();
        let last = draft.add(wanted, if rolling { &chain } else { &[] });
        if let Some(last) = last {
            if rolling {
                chain = vec![last.clone()];
            }
            units.push(last);
        }
    }
    draft.objects("rbac", "say who may do what", objects::rbac(), Vec::new(), &units);
    draft.stage.into()
}

pub(crate) fn certificates(wanted: &mut Wanted<'_>) {
    wanted.directory(&paths::pki("etcd"), "root", 0o700);
    for ca in Ca::ALL {
        wanted.authority(ca, paths::PKI);
    }
    wanted.secret(
        &paths::pki("sa.key"),
        "root",
        quorate_facts::SecretId::ServiceAccountKey,
    );
    let id = quorate_facts::SecretId::ServiceAccountPublicKey;
    wanted.file(
        &paths::pki("sa.pub"),
        "root",
        0o644,
        Content::Template {
            template: crate::secrets::mark(id),
            secrets: vec![id],
        },
    );
    for id in [
        "apiserver",
        "apiserver-kubelet-client",
        "apiserver-etcd-client",
        "front-proxy-client",
        "controller-manager",
        "scheduler",
    ] {
        wanted.certificate(id);
    }
}

fn configuration(wanted: &mut Wanted<'_>) {
    for (path, content) in api_server_files(wanted.context.spec) {
        wanted.file(&path, "root", 0o600, content);
    }
}

/// Files the API server's flags name, with their content.
pub(crate) fn api_server_files(spec: &Spec) -> Vec<(String, Content)> {
    let etc = |file: &str| format!("{}/{file}", paths::KUBERNETES);
    let kubeadm = spec.kubernetes.bootstrap == Bootstrap::Kubeadm;
    let mut files = vec![
        (
            etc("authentication.yaml"),
            Content::text(apiserver::authentication(kubeadm)),
        ),
        (
            etc("admission.yaml"),
            Content::text(apiserver::admission(&spec.security.pod_security)),
        ),
    ];
    if spec.security.audit.enabled {
        files.push((etc("audit-policy.yaml"), Content::text(apiserver::audit_policy())));
    }
    if spec.security.encryption == Encryption::Secretbox {
        let content = Content::Template {
            template: apiserver::encryption(),
            secrets: vec![quorate_facts::SecretId::EncryptionKey],
        };
        files.push((etc("encryption.yaml"), content));
    }
    files
}

fn kubeconfigs(wanted: &mut Wanted<'_>) {
    let context = wanted.context;
    let server = format!("https://{}", host_port(wanted.machine.address, apiserver::PORT));
    for (file, user, id) in [
        (
            "controller-manager.conf",
            "system:kube-controller-manager",
            "controller-manager",
        ),
        ("scheduler.conf", "system:kube-scheduler", "scheduler"),
    ] {
        let text = kubeconfig::by_path(
            &context.spec.name,
            &server,
            &paths::pki("ca.crt"),
            user,
            &paths::pki(&format!("{id}.crt")),
            &paths::pki(&format!("{id}.key")),
        );
        wanted.file(
            &format!("{}/{file}", paths::KUBERNETES),
            "root",
            0o600,
            Content::text(text),
        );
    }
}

fn control_units(wanted: &mut Wanted<'_>) {
    let context = wanted.context;
    let spec = context.spec;
    let profile = wanted.profile();
    let etc = |file: &str| format!("{}/{file}", paths::KUBERNETES);
    let api = api_server(spec, wanted.machine).unit(profile);
    let mut inputs: Vec<String> = [
        "authentication.yaml",
        "admission.yaml",
        "audit-policy.yaml",
        "encryption.yaml",
    ]
    .map(etc)
    .to_vec();
    // Not `apiserver.crt`: a server reads its own certificate anew when the file changes.
    inputs.extend(
        [
            "ca.crt",
            "etcd/ca.crt",
            "front-proxy-ca.crt",
            "sa.key",
            "apiserver-etcd-client.crt",
            "apiserver-kubelet-client.crt",
            "front-proxy-client.crt",
        ]
        .map(paths::pki),
    );
    inputs.push(paths::bin("kube-apiserver"));
    wanted.unit(
        "kube-apiserver.service",
        &api,
        &inputs.iter().map(String::as_str).collect::<Vec<_>>(),
    );

    let inputs = [
        etc("controller-manager.conf"),
        paths::pki("ca.crt"),
        paths::pki("ca.key"),
        paths::pki("sa.key"),
        paths::bin("kube-controller-manager"),
    ];
    wanted.unit(
        "kube-controller-manager.service",
        &controller_manager(spec).unit(profile),
        &inputs.each_ref().map(String::as_str),
    );

    let text = scheduler::unit(scheduler_flags(spec), profile);
    let inputs = [etc("scheduler.conf"), paths::bin("kube-scheduler")];
    wanted.unit("kube-scheduler.service", &text, &inputs.each_ref().map(String::as_str));
    wanted.wait(ready(wanted.machine), READY_TIMEOUT_MS);
}

/// The machine's own API server says it is ready.
pub(crate) fn ready(machine: &Machine) -> Condition {
    let tls = ClientTls {
        ca: paths::pki("ca.crt"),
        certificate: None,
        key: None,
        server_name: Some("kubernetes".into()),
    };
    Condition::Http {
        url: format!("https://{}/readyz", host_port(machine.address, apiserver::PORT)),
        tls: Some(tls),
        contains: None,
    }
}

fn controller_manager(spec: &Spec) -> ControllerManager<'_> {
    ControllerManager {
        cluster: &spec.name,
        pods: join_nets(&spec.network.pods),
        services: join_nets(&spec.network.services),
        masks: masks(spec),
        feature_gates: feature_gates(&spec.kubernetes.controller_manager.feature_gates),
        extra: spec.kubernetes.controller_manager.extra_args.iter().collect(),
        tls_min: apiserver::tls_version(spec.security.tls_min),
    }
}

/// Flags of the control plane, apart from those that name one machine.
pub(crate) struct ControlPlane {
    pub(crate) api_server: Flags,
    pub(crate) controller_manager: Flags,
    pub(crate) scheduler: Flags,
}

pub(crate) fn control_plane_flags(spec: &Spec) -> ControlPlane {
    ControlPlane {
        api_server: api_server(spec, &spec.machines[0]).flags(),
        controller_manager: controller_manager(spec).flags(),
        scheduler: scheduler_flags(spec),
    }
}

fn scheduler_flags(spec: &Spec) -> Flags {
    scheduler::flags(
        &feature_gates(&spec.kubernetes.scheduler.feature_gates),
        &spec.kubernetes.scheduler.extra_args.iter().collect::<Vec<_>>(),
        apiserver::tls_version(spec.security.tls_min),
    )
}

fn api_server<'a>(spec: &'a Spec, machine: &Machine) -> ApiServer<'a> {
    ApiServer {
        address: machine.address,
        etcd_servers: etcd_servers(spec),
        services: join_nets(&spec.network.services),
        domain: &spec.kubernetes.domain,
        control_planes: spec.control_planes().len(),
        encryption: spec.security.encryption == Encryption::Secretbox,
        audit: spec.security.audit.clone(),
        node_ports: format!("{}-{}", spec.network.node_ports.first, spec.network.node_ports.last),
        tls_min: apiserver::tls_version(spec.security.tls_min),
        feature_gates: feature_gates(&spec.kubernetes.api_server.feature_gates),
        extra: spec.kubernetes.api_server.extra_args.iter().collect(),
        local_etcd: spec.etcd.topology == EtcdTopology::Stacked,
    }
}

/// URLs by which API servers reach etcd.
pub(crate) fn etcd_servers(spec: &Spec) -> Vec<String> {
    if spec.etcd.topology == EtcdTopology::Stacked {
        // The local member only: when it is gone this server is unready and the balancers use another.
        vec![format!("https://127.0.0.1:{}", etcd::CLIENT_PORT)]
    } else if let Some(vip) = &spec.etcd.vip {
        vec![format!("https://{}", host_port(vip.address, vip.port))]
    } else {
        spec.etcd_members()
            .iter()
            .map(|member| format!("https://{}", host_port(member.address, etcd::CLIENT_PORT)))
            .collect()
    }
}

pub(crate) fn join_nets(nets: &[ipnet::IpNet]) -> String {
    nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn masks(spec: &Spec) -> Vec<(String, String)> {
    let network = &spec.network;
    if network.pods.len() == 1 {
        return vec![(
            "node-cidr-mask-size".into(),
            network.node_mask(network.pods[0]).to_string(),
        )];
    }
    vec![
        ("node-cidr-mask-size-ipv4".into(), network.node_mask_v4.to_string()),
        ("node-cidr-mask-size-ipv6".into(), network.node_mask_v6.to_string()),
    ]
}

pub(crate) fn level(level: PodSecurityLevel) -> &'static str {
    match level {
        PodSecurityLevel::Privileged => "privileged",
        PodSecurityLevel::Baseline => "baseline",
        PodSecurityLevel::Restricted => "restricted",
    }
}
