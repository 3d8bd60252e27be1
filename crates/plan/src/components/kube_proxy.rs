//! kube-proxy with an explicit mode (kubeproxy.config.k8s.io/v1alpha1): as a unit, or as the DaemonSet of kubeadm's addon.

use quorate_spec::{Access, Machine, Spec};
use serde_json::{Value, json};

use crate::components::objects::{cluster_role_binding, group, object, service_account_subject};
use crate::components::unit::{Flags, Unit};
use crate::model::{ApiObject, Condition, Wait};
use crate::paths;
use crate::profile::Profile;
use crate::stages;
use crate::want::{Context, sha256};
use crate::yaml;

/// `exclude`: CIDRs whose IPVS services are somebody else's.
pub(crate) fn config(node: &str, pods: &str, mode: &str, exclude: &[String], profile: &Profile) -> String {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "clusterCIDR": pods,
        "hostnameOverride": node,
        "clientConnection": {"kubeconfig": format!("{}/kube-proxy.conf", paths::KUBERNETES)},
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
    });
    if !exclude.is_empty() {
        config["ipvs"] = json!({"excludeCIDRs": exclude});
    }
    if !profile.oom_adjustable {
        config["oomScoreAdj"] = json!(0);
    }
    if !profile.conntrack_writable {
        // Zero leaves the kernel's values alone.
        config["conntrack"] =
            json!({"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"});
    }
    yaml::render(&config)
}

/// What one configuration for all machines has to heed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) mode: &'static str,
    pub(crate) oom_adjustable: bool,
    pub(crate) conntrack_writable: bool,
}

impl Shared {
    /// nftables only where every node has it; what one machine does not allow is not tried on any.
    pub(crate) fn of(context: &Context<'_>) -> Self {
        let nodes = context.spec.nodes();
        let all = || nodes.iter().filter_map(|node| context.profiles.get(node.name.as_str()));
        let mut modes = all().map(|profile| profile.proxy_mode);
        let first = modes.next().unwrap_or("nftables");
        Self {
            mode: if modes.all(|mode| mode == first) {
                first
            } else {
                "iptables"
            },
            oom_adjustable: all().all(|profile| profile.oom_adjustable),
            conntrack_writable: all().all(|profile| profile.conntrack_writable),
        }
    }
}

/// CIDRs whose IPVS services are the agent's.
pub(crate) fn excluded(spec: &Spec) -> Vec<String> {
    match &spec.access {
        Access::Ipvs { virtual_address, .. } => vec![format!(
            "{}/{}",
            virtual_address.ip(),
            if virtual_address.is_ipv4() { 32 } else { 128 }
        )],
        _ => Vec::new(),
    }
}

/// The DaemonSet's configuration.
pub(crate) fn settings(spec: &Spec, shared: &Shared) -> Value {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": shared.mode,
        "clusterCIDR": stages::join_nets(&spec.network.pods),
        "clientConnection": {"kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf"},
        "metricsBindAddress": "127.0.0.1:10249",
        "healthzBindAddress": "127.0.0.1:10256",
    });
    let excluded = excluded(spec);
    if !excluded.is_empty() {
        config["ipvs"] = json!({"excludeCIDRs": excluded});
    }
    let gates = &spec.kubernetes.kube_proxy.feature_gates;
    if !gates.is_empty() {
        config["featureGates"] = json!(gates);
    }
    if !shared.oom_adjustable {
        config["oomScoreAdj"] = json!(0);
    }
    if !shared.conntrack_writable {
        config["conntrack"] =
            json!({"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"});
    }
    config
}

/// What waiting for the DaemonSet is called.
pub(crate) const NAME: &str = "kube-proxy";
pub(crate) const DAEMON_SET: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets/kube-proxy";
const READY_TIMEOUT_MS: u64 = 120_000;

/// Services work on all of these nodes.
pub(crate) fn ready(nodes: &[&Machine]) -> Wait {
    Wait {
        until: Condition::DaemonSet {
            path: DAEMON_SET.into(),
            nodes: nodes.iter().map(|machine| machine.name.clone()).collect(),
        },
        timeout_ms: READY_TIMEOUT_MS,
    }
}

/// kubeadm's addon, name by name, so that `kubeadm upgrade` takes it for its own.
pub(crate) fn objects(spec: &Spec, image: &str, shared: &Shared) -> Vec<ApiObject> {
    let core = |kind: &str, name: &str| format!("/api/v1/namespaces/kube-system/{kind}/{name}");
    let rbac =
        |kind: &str, name: &str| format!("/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/{kind}/{name}");
    let metadata = json!({"name": "kube-proxy", "namespace": "kube-system"});
    let config = yaml::render(&settings(spec, shared));
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let kubeconfig = yaml::render(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "default", "cluster": {
            "certificate-authority": format!("{account}/ca.crt"), "server": format!("https://{}", spec.control_plane_endpoint()),
        }}],
        "contexts": [{"name": "default", "context": {"cluster": "default", "namespace": "default", "user": "default"}}],
        "current-context": "default",
        "users": [{"name": "default", "user": {"tokenFile": format!("{account}/token")}}],
    }));
    // A new configuration is read by new Pods only.
    let inputs = sha256(format!("{config}{kubeconfig}").as_bytes())[..16].to_owned();
    vec![
        object(
            core("serviceaccounts", "kube-proxy"),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        ),
        cluster_role_binding(
            "kubeadm:node-proxier",
            "system:node-proxier",
            &[service_account_subject("kube-proxy", "kube-system")],
        ),
        // `kubeadm join` reads the configuration of what it will run beside.
        object(
            rbac("roles", "kube-proxy"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": metadata,
                "rules": [{"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["kube-proxy"], "verbs": ["get"]}],
            }),
        ),
        object(
            rbac("rolebindings", "kube-proxy"),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": metadata,
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "kube-proxy"},
                "subjects": [group(crate::components::kubeadm::TOKEN_GROUP)],
            }),
        ),
        object(
            core("configmaps", "kube-proxy"),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": "kube-proxy", "namespace": "kube-system", "labels": {"app": "kube-proxy"}},
                "data": {"config.conf": config, "kubeconfig.conf": kubeconfig},
            }),
        ),
        object(DAEMON_SET.to_owned(), daemon_set(image, &inputs)),
    ]
}

fn daemon_set(image: &str, inputs: &str) -> Value {
    let labels = json!({"k8s-app": "kube-proxy"});
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "kube-proxy", "namespace": "kube-system", "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "updateStrategy": {"type": "RollingUpdate"},
            "template": {
                "metadata": {"labels": labels, "annotations": {crate::components::kubeadm::INPUTS: inputs}},
                "spec": {
                    "priorityClassName": "system-node-critical",
                    "hostNetwork": true,
                    "serviceAccountName": "kube-proxy",
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [{
                        "name": "kube-proxy",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": [
                            "/usr/local/bin/kube-proxy",
                            "--config=/var/lib/kube-proxy/config.conf",
                            "--hostname-override=$(NODE_NAME)",
                        ],
                        "env": [{"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}],
                        "securityContext": {"privileged": true},
                        "volumeMounts": [
                            {"name": "kube-proxy", "mountPath": "/var/lib/kube-proxy"},
                            {"name": "xtables-lock", "mountPath": "/run/xtables.lock"},
                            {"name": "lib-modules", "mountPath": "/lib/modules", "readOnly": true},
                        ],
                    }],
                    "volumes": [
                        {"name": "kube-proxy", "configMap": {"name": "kube-proxy"}},
                        {"name": "xtables-lock", "hostPath": {"path": "/run/xtables.lock", "type": "FileOrCreate"}},
                        {"name": "lib-modules", "hostPath": {"path": "/lib/modules"}},
                    ],
                },
            },
        },
    })
}

pub(crate) fn unit(profile: &Profile) -> String {
    let mut flags = Flags::default();
    flags.set("config", format!("{}/kube-proxy.yaml", paths::KUBERNETES));
    Unit {
        description: "Kubernetes kube-proxy",
        documentation: "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-proxy/",
        after: &["kubelet.service"],
        program: paths::bin("kube-proxy"),
        flags,
        notify: false,
        service: Vec::new(),
        oom_score: -999,
        files: 65_536,
    }
    .render(profile)
}
