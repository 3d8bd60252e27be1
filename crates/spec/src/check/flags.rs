//! `extraArgs`: which flags may be given, which Quorate sets itself, and which a component no longer knows.

use std::collections::BTreeMap;

use crate::document::{Document, Path};
use crate::spec::Bootstrap;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Program {
    ApiServer,
    ControllerManager,
    Scheduler,
    Kubelet,
    KubeProxy,
}

impl Program {
    fn name(self) -> &'static str {
        match self {
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
        }
    }

    fn managed(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::ApiServer => API_SERVER,
            Self::ControllerManager => CONTROLLER_MANAGER,
            Self::Scheduler => SCHEDULER,
            Self::Kubelet => KUBELET,
            Self::KubeProxy => KUBE_PROXY,
        }
    }

    fn removed(self) -> &'static [(&'static str, u64, &'static str)] {
        match self {
            Self::ApiServer => API_SERVER_REMOVED,
            Self::ControllerManager => CONTROLLER_MANAGER_REMOVED,
            Self::Scheduler => SCHEDULER_REMOVED,
            Self::Kubelet => KUBELET_REMOVED,
            Self::KubeProxy => &[],
        }
    }
}

/// Flag (a final `*` stands for any ending) → the field to use in its place, or empty if there is none.
const API_SERVER: &[(&str, &str)] = &[
    ("advertise-address", "machines[].address"),
    ("admission-control-config-file", "security.podSecurity"),
    ("allow-privileged", ""),
    ("anonymous-auth", ""),
    ("audit-log-*", "security.audit"),
    ("audit-policy-file", "security.audit"),
    ("authentication-config", ""),
    ("authorization-*", ""),
    ("bind-address", ""),
    ("client-ca-file", ""),
    ("enable-admission-plugins", ""),
    ("enable-bootstrap-token-auth", ""),
    ("encryption-provider-config*", "security.encryption"),
    ("etcd-cafile", ""),
    ("etcd-certfile", ""),
    ("etcd-keyfile", ""),
    ("etcd-servers", "etcd"),
    ("feature-gates", "kubernetes.apiServer.featureGates"),
    ("kubelet-certificate-authority", ""),
    ("kubelet-client-*", ""),
    ("kubelet-preferred-address-types", ""),
    ("proxy-client-*", ""),
    ("requestheader-*", ""),
    ("secure-port", "endpoint.port"),
    ("service-account-*", ""),
    ("service-cluster-ip-range", "network.services"),
    ("service-node-port-range", "network.nodePorts"),
    ("tls-cert-file", "kubernetes.apiServer.sans"),
    ("tls-min-version", "security.tlsMin"),
    ("tls-private-key-file", ""),
];

const CONTROLLER_MANAGER: &[(&str, &str)] = &[
    ("allocate-node-cidrs", ""),
    ("authentication-kubeconfig", ""),
    ("authorization-kubeconfig", ""),
    ("bind-address", ""),
    ("client-ca-file", ""),
    ("cluster-cidr", "network.pods"),
    ("cluster-name", "metadata.name"),
    ("cluster-signing-*", ""),
    ("controllers", ""),
    ("feature-gates", "kubernetes.controllerManager.featureGates"),
    ("kubeconfig", ""),
    ("leader-elect", ""),
    ("node-cidr-mask-size*", "network.podsPerNodeMask"),
    ("requestheader-*", ""),
    ("root-ca-file", ""),
    ("service-account-private-key-file", ""),
    ("service-cluster-ip-range", "network.services"),
    ("tls-min-version", "security.tlsMin"),
    ("use-service-account-credentials", ""),
];

const SCHEDULER: &[(&str, &str)] = &[
    ("authentication-kubeconfig", ""),
    ("authorization-kubeconfig", ""),
    ("bind-address", ""),
    ("client-ca-file", ""),
    ("feature-gates", "kubernetes.scheduler.featureGates"),
    ("kubeconfig", ""),
    ("leader-elect", ""),
    ("requestheader-*", ""),
    ("tls-min-version", "security.tlsMin"),
];

const KUBELET: &[(&str, &str)] = &[
    ("anonymous-auth", ""),
    ("authentication-token-webhook*", ""),
    ("authorization-*", ""),
    ("bootstrap-kubeconfig", ""),
    ("cgroup-driver", ""),
    ("client-ca-file", ""),
    ("cluster-dns", "dns.clusterIp"),
    ("cluster-domain", "kubernetes.domain"),
    ("config", ""),
    ("container-log-max-files", "kubernetes.kubelet.containerLogMaxFiles"),
    ("container-log-max-size", "kubernetes.kubelet.containerLogMaxMiB"),
    ("container-runtime-endpoint", ""),
    ("fail-swap-on", "host.swap"),
    ("feature-gates", "kubernetes.kubelet.featureGates"),
    ("hostname-override", "machines[].name"),
    ("image-gc-high-threshold", "kubernetes.kubelet.imageGcHighPercent"),
    ("image-gc-low-threshold", "kubernetes.kubelet.imageGcLowPercent"),
    ("kubeconfig", ""),
    ("max-pods", "kubernetes.kubelet.maxPods"),
    ("node-ip", "machines[].address"),
    ("node-labels", "machines[].labels"),
    ("pod-manifest-path", ""),
    ("read-only-port", ""),
    ("register-with-taints", "machines[].taints"),
    ("rotate-*", ""),
    ("tls-cert-file", ""),
    ("tls-min-version", "security.tlsMin"),
    ("tls-private-key-file", ""),
];

const KUBE_PROXY: &[(&str, &str)] = &[
    ("cluster-cidr", "network.pods"),
    ("config", ""),
    ("feature-gates", "kubernetes.kubeProxy.featureGates"),
    ("hostname-override", "machines[].name"),
    ("kubeconfig", ""),
    ("proxy-mode", "kubernetes.proxyMode"),
];

/// Flag, the minor version of Kubernetes that no longer has it, what to do.
const API_SERVER_REMOVED: &[(&str, u64, &str)] = &[
    (
        "cloud-provider",
        33,
        "cloud integration is a program of its own now: deploy your provider's cloud-controller-manager",
    ),
    (
        "cloud-config",
        33,
        "cloud integration is a program of its own now: deploy your provider's cloud-controller-manager",
    ),
    ("insecure-port", 24, "the API is served with TLS on 6443 only"),
    ("insecure-bind-address", 24, "the API is served with TLS on 6443 only"),
    ("address", 24, "the API is served with TLS on 6443 only"),
    (
        "basic-auth-file",
        19,
        "use client certificates or service account tokens",
    ),
    ("kubelet-https", 22, "kubelets are always reached over TLS"),
    ("service-account-api-audiences", 25, "its name is api-audiences"),
];

const CONTROLLER_MANAGER_REMOVED: &[(&str, u64, &str)] = &[
    (
        "cloud-provider",
        32,
        "only cloud-controller-managers of the providers are left: deploy yours",
    ),
    (
        "pod-eviction-timeout",
        27,
        "use the Pods' tolerationSeconds, or default-not-ready-toleration-seconds of kube-apiserver",
    ),
    ("port", 24, "metrics are served with TLS on 10257"),
    ("address", 24, "use nothing: it listens on loopback"),
];

const SCHEDULER_REMOVED: &[(&str, u64, &str)] = &[
    (
        "policy-config-file",
        23,
        "scheduling policies became KubeSchedulerConfiguration",
    ),
    (
        "policy-configmap",
        23,
        "scheduling policies became KubeSchedulerConfiguration",
    ),
    (
        "use-legacy-policy-config",
        23,
        "scheduling policies became KubeSchedulerConfiguration",
    ),
    (
        "algorithm-provider",
        23,
        "scheduling policies became KubeSchedulerConfiguration",
    ),
    ("port", 24, "metrics are served with TLS on 10259"),
    ("address", 24, "use nothing: it listens on loopback"),
];

const KUBELET_REMOVED: &[(&str, u64, &str)] = &[
    (
        "pod-infra-container-image",
        35,
        "the pause image is containerd's setting, and Quorate writes it",
    ),
    ("cloud-config", 34, "cloud integration is a program of its own now"),
    ("register-schedulable", 34, "use machines[].taints"),
    ("container-runtime", 27, "there is only one kind of runtime left"),
    ("network-plugin", 24, "the container runtime has the network plugins"),
    ("cni-bin-dir", 24, "the container runtime has the network plugins"),
    ("cni-conf-dir", 24, "the container runtime has the network plugins"),
    ("docker-endpoint", 24, "there is no dockershim any more"),
    ("dynamic-config-dir", 24, "change the cluster file and apply it"),
];

/// klog's flags, removed from every component in 1.26 (KEP-2845).
const LOGGING_REMOVED: &[&str] = &[
    "add-dir-header",
    "alsologtostderr",
    "log-backtrace-at",
    "log-dir",
    "log-file",
    "log-file-max-size",
    "logtostderr",
    "one-output",
    "skip-headers",
    "skip-log-headers",
    "stderrthreshold",
];

/// The only flags that kube-proxy heeds beside `--config`.
const KUBE_PROXY_ALLOWED: &[&str] = &["v", "vmodule"];

/// Mutually exclusive with `--authentication-config`, by which anonymous access is limited to health checks.
const OIDC: &str = "oidc-";

pub(super) fn check(
    document: &mut Document<'_>,
    component: &Path,
    program: Program,
    bootstrap: Bootstrap,
    minor: u64,
    args: &BTreeMap<String, String>,
) {
    for (flag, value) in args {
        let at = component.join("extraArgs").join(flag);
        let span = document.key_span(&at);
        let name = program.name();
        let mut error = |code, message: String, reason: String, fix: String| {
            document
                .error_at(code, &at, span.clone(), message)
                .reason(reason)
                .fix(fix);
        };
        let bare = flag.trim_start_matches('-');
        if bare != flag || flag.is_empty() || !flag.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            let fix = if bare != flag && !bare.contains(['=', ' ']) {
                format!("write `{bare}: {value}`")
            } else {
                "write `name: value`, e.g. `v: 4`".to_owned()
            };
            error(
                "bad-flag",
                format!("`{flag}` is no flag's name"),
                "flags are written without dashes, the value after the colon".to_owned(),
                fix,
            );
        } else if let Some((_, since, instead)) = program
            .removed()
            .iter()
            .find(|(f, since, _)| f == flag && *since <= minor)
        {
            error(
                "removed-flag",
                format!("{name} has no flag `--{flag}` since Kubernetes 1.{since}"),
                "a component with an unknown flag does not start".to_owned(),
                format!("leave it out: {instead}"),
            );
        } else if LOGGING_REMOVED.contains(&flag.as_str()) {
            error(
                "removed-flag",
                format!("{name} has no flag `--{flag}` since Kubernetes 1.26"),
                "a component with an unknown flag does not start; logs go to the journal or to the Pod's log (KEP-2845)".to_owned(),
                "leave it out".to_owned(),
            );
        } else if let Some((_, field)) = program.managed().iter().find(|(f, _)| matches(f, flag)) {
            let fix = if field.is_empty() {
                "leave it out".to_owned()
            } else {
                format!("use `spec.{field}` in its place").replace("spec.metadata", "metadata")
            };
            error(
                "managed-flag",
                format!("`--{flag}` of {name} is set by Quorate"),
                "other parts of the cluster are built to match its value".to_owned(),
                fix,
            );
        } else if program == Program::ApiServer && flag.starts_with(OIDC) {
            error(
                "managed-flag",
                format!("`--{flag}` cannot be combined with the way Quorate limits anonymous access"),
                "kube-apiserver refuses oidc flags beside an authentication configuration file".to_owned(),
                "leave it out; OpenID Connect is not offered by this version".to_owned(),
            );
        } else if program == Program::KubeProxy && bootstrap == Bootstrap::Kubeadm {
            error(
                "kube-proxy-flags",
                format!("kubeadm has no way to give kube-proxy `--{flag}`"),
                "it runs kube-proxy as a DaemonSet with a configuration file only".to_owned(),
                "leave it out, use `featureGates` or `proxyMode`, or `bootstrap: binary`".to_owned(),
            );
        } else if program == Program::KubeProxy && !KUBE_PROXY_ALLOWED.contains(&flag.as_str()) {
            error(
                "kube-proxy-flags",
                format!("kube-proxy would ignore `--{flag}`"),
                "beside a configuration file it heeds only `v` and `vmodule`".to_owned(),
                "leave it out".to_owned(),
            );
        } else if value.contains('\n') {
            error(
                "bad-flag",
                format!("the value of `{flag}` has a line break"),
                "a unit file's line ends there".to_owned(),
                "write it on one line".to_owned(),
            );
        }
    }
}

fn matches(pattern: &str, flag: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => flag.starts_with(start),
        None => pattern == flag,
    }
}
