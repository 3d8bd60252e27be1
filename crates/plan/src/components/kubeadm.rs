//! kubeadm's configuration files: <https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/>.
//!
//! What is one cluster's goes into `ClusterConfiguration` and `KubeletConfiguration`, which kubeadm keeps in the cluster;
//! what one machine needs beyond that are kubeadm patches, which lie beside the configuration.

use quorate_pki::inventory::paths::ETCD_CA_CRT;
use quorate_spec::{EtcdTopology, Machine, Spec, Taint};
use serde_json::{Map, Value, json};

use crate::components::kubelet::Kubelet;
use crate::components::unit::Flags;
use crate::components::{apiserver, etcd, kube_proxy};
use crate::names::Member;
use crate::paths;
use crate::profile::Profile;
use crate::stages;
use crate::want::Context;
use crate::yaml;

const API_VERSION: &str = "kubeadm.k8s.io/v1beta4";
const CRI: &str = "unix:///run/containerd/containerd.sock";
/// Group of the bootstrap token, to which kubeadm's own RBAC gives what a joining node needs.
pub(crate) const TOKEN_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

pub(crate) const FOLDER: &str = "/etc/quorate/kubeadm";
/// All documents, without a secret: what phases run with, and what a person may use.
pub(crate) const CONFIG: &str = "/etc/quorate/kubeadm/config.yaml";
/// The same with the bootstrap token; there only until the token is revoked.
pub(crate) const INIT: &str = "/etc/quorate/kubeadm/init.yaml";
pub(crate) const JOIN: &str = "/etc/quorate/kubeadm/join.yaml";
/// A control plane joins in three calls. The first ends when etcd has admitted it; until then an API server there could only
/// fail, and the kubelet would make it wait longer each time. The second starts the servers, the third makes it a node.
pub(crate) const UNTIL_ADMITTED: &str =
    "--skip-phases=control-plane-prepare/control-plane,kubelet-wait-bootstrap,control-plane-join,wait-control-plane";
pub(crate) const SERVERS: &str = "--skip-phases=preflight,control-plane-prepare/download-certs,\
    control-plane-prepare/certs,control-plane-prepare/kubeconfig,check-etcd,kubelet-start,etcd-join,\
    kubelet-wait-bootstrap,control-plane-join,wait-control-plane";
pub(crate) const REGISTERED: &str = "--skip-phases=preflight,control-plane-prepare,check-etcd,kubelet-start,etcd-join";
pub(crate) const RESET: &str = "/etc/quorate/kubeadm/reset.yaml";
pub(crate) const DISCOVERY: &str = "/etc/quorate/kubeadm/discovery.conf";
pub(crate) const PATCHES: &str = "/etc/quorate/kubeadm/patches";
/// What runs as a static Pod on a control plane, etcd only where it is stacked.
pub(crate) const PODS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];
/// There from before `kubeadm init` (or `join`) begins until it is through: whoever finds it finds half a control plane.
pub(crate) const FOUNDING: &str = "/etc/quorate/kubeadm/founding";
pub(crate) const JOINING: &str = "/etc/quorate/kubeadm/joining";
pub(crate) const FLAGS: &str = "/var/lib/kubelet/kubeadm-flags.env";
pub(crate) const KUBELET_DROP_IN: &str = "/etc/systemd/system/kubelet.service.d/10-kubeadm.conf";

/// A static Pod says in this annotation what it was made of, as units do in a comment.
pub(crate) const INPUTS: &str = "quorate.dev/inputs";

/// Flags kubeadm sets itself, to the values ours would have.
const API_SERVER_OWN: [&str; 27] = [
    "advertise-address",
    "allow-privileged",
    "authorization-mode",
    "client-ca-file",
    "enable-admission-plugins",
    "enable-bootstrap-token-auth",
    "etcd-cafile",
    "etcd-certfile",
    "etcd-keyfile",
    "etcd-servers",
    "kubelet-client-certificate",
    "kubelet-client-key",
    "kubelet-preferred-address-types",
    "proxy-client-cert-file",
    "proxy-client-key-file",
    "requestheader-allowed-names",
    "requestheader-client-ca-file",
    "requestheader-extra-headers-prefix",
    "requestheader-group-headers",
    "requestheader-username-headers",
    "secure-port",
    "service-account-issuer",
    "service-account-key-file",
    "service-account-signing-key-file",
    "service-cluster-ip-range",
    "tls-cert-file",
    "tls-private-key-file",
];
const MANAGER_OWN: [&str; 17] = [
    "bind-address",
    "kubeconfig",
    "authentication-kubeconfig",
    "authorization-kubeconfig",
    "client-ca-file",
    "requestheader-client-ca-file",
    "root-ca-file",
    "service-account-private-key-file",
    "cluster-signing-cert-file",
    "cluster-signing-key-file",
    "use-service-account-credentials",
    "controllers",
    "leader-elect",
    "allocate-node-cidrs",
    "cluster-name",
    "cluster-cidr",
    "service-cluster-ip-range",
];
const SCHEDULER_OWN: [&str; 7] = [
    "bind-address",
    "kubeconfig",
    "authentication-kubeconfig",
    "authorization-kubeconfig",
    "client-ca-file",
    "requestheader-client-ca-file",
    "leader-elect",
];
/// Of etcd's flags the ones kubeadm leaves to its user.
const ETCD_OURS: [&str; 5] = [
    "feature-gates",
    "quota-backend-bytes",
    "tls-min-version",
    "heartbeat-interval",
    "election-timeout",
];

/// Checks of kubeadm's that Quorate makes itself before anything is changed, with this machine's facts, or whose finding
/// is what Quorate laid there on purpose.
const IGNORED: [&str; 4] = [
    "NumCPU",
    "Mem",
    // Kernel configuration and cgroup version: preflight's `kernel` and `cgroups`.
    "SystemVerification",
    "Swap",
];
/// A founder that was interrupted has these already, and `kubeadm init` goes on from them.
const IGNORED_FOUNDING: [&str; 4] = [
    "FileAvailable--etc-kubernetes-manifests-etcd.yaml",
    "FileAvailable--etc-kubernetes-manifests-kube-apiserver.yaml",
    "FileAvailable--etc-kubernetes-manifests-kube-controller-manager.yaml",
    "FileAvailable--etc-kubernetes-manifests-kube-scheduler.yaml",
];
/// And its own programs listen. Who listens there before is somebody else.
const IGNORED_BEGUN: [&str; 6] = [
    "Port-10250",
    "Port-10257",
    "Port-10259",
    "Port-2379",
    "Port-2380",
    "Port-6443",
];
/// A worker has the authority's certificate before it joins: its way to the API is checked with it.
const IGNORED_WORKER: &str = "FileAvailable--etc-kubernetes-pki-ca.crt";

/// `CONFIG`: every document, for `kubeadm init phase …`.
pub(crate) fn config(context: &Context<'_>, machine: &Machine) -> String {
    documents(&[
        init_configuration(context, machine, false),
        cluster(context),
        kubelet_base(context.spec),
        proxy(context),
    ])
}

/// `INIT`: as `CONFIG`, and with the token; a template.
pub(crate) fn init(context: &Context<'_>, machine: &Machine) -> String {
    documents(&[
        init_configuration(context, machine, true),
        cluster(context),
        kubelet_base(context.spec),
        proxy(context),
    ])
}

/// `JOIN`, a template.
pub(crate) fn join(context: &Context<'_>, machine: &Machine) -> String {
    let mut body = json!({
        "apiVersion": API_VERSION,
        "kind": "JoinConfiguration",
        "caCertPath": paths::pki("ca.crt"),
        "discovery": {"file": {"kubeConfigPath": DISCOVERY}, "tlsBootstrapToken": token()},
        "nodeRegistration": registration(context, machine, None),
        "patches": {"directory": PATCHES},
        "timeouts": timeouts(),
    });
    if machine.is_control_plane() {
        // The authorities lie on the machine, so nothing is downloaded and no certificate key is needed.
        body["controlPlane"] = json!({"localAPIEndpoint": local_endpoint(machine)});
    }
    yaml::render(&body)
}

/// `DISCOVERY`: where the API is and by which authority it is known. Holds no secret, unlike discovery by token, which
/// needs anonymous access to a ConfigMap.
pub(crate) fn discovery(spec: &Spec) -> String {
    // In the shape of the ConfigMap `cluster-info`: a cluster without a name, no user, no context.
    let server = format!("https://{}", spec.control_plane_endpoint());
    yaml::render(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "", "cluster": {"server": server, "certificate-authority": paths::pki("ca.crt")}}],
    }))
}

/// `RESET`: for a machine whose join did not end. etcd's membership is reconciled by the plan, and the authorities stay.
pub(crate) fn reset() -> String {
    yaml::render(&json!({
        "apiVersion": API_VERSION,
        "kind": "ResetConfiguration",
        "force": true,
        "criSocket": CRI,
        "certificatesDir": "/etc/quorate/kubeadm/none",
        "skipPhases": ["remove-etcd-member"],
        "ignorePreflightErrors": ["all"],
        "timeouts": {"kubernetesAPICall": "5s"},
    }))
}

pub(crate) fn cluster(context: &Context<'_>) -> Value {
    let spec = context.spec;
    let stages::ControlPlane {
        api_server,
        controller_manager,
        scheduler,
    } = stages::control_plane_flags(spec);
    let mut volumes: Vec<Value> = stages::api_server_files(spec)
        .iter()
        .map(|(path, _)| {
            let name = path.rsplit('/').next().unwrap_or_default().replace('.', "-");
            json!({"name": name, "hostPath": path, "mountPath": path, "readOnly": true, "pathType": "File"})
        })
        .collect();
    if spec.security.audit.enabled {
        volumes.push(json!({
            "name": "audit-log", "hostPath": paths::AUDIT_LOGS, "mountPath": paths::AUDIT_LOGS, "pathType": "DirectoryOrCreate",
        }));
    }
    let sans = spec.api_server_sans();
    let sans: Vec<String> = sans
        .dns
        .into_iter()
        .chain(sans.ips.iter().map(ToString::to_string))
        .collect();
    let mut body = json!({
        "apiVersion": API_VERSION,
        "kind": "ClusterConfiguration",
        "clusterName": spec.name,
        "kubernetesVersion": spec.kubernetes.tag(),
        "controlPlaneEndpoint": spec.control_plane_endpoint(),
        "certificatesDir": paths::PKI,
        "imageRepository": image(context, "/kube-apiserver").and_then(|name| Some(name.rsplit_once('/')?.0)).unwrap_or("registry.k8s.io"),
        "networking": {
            "podSubnet": stages::join_nets(&spec.network.pods),
            "serviceSubnet": stages::join_nets(&spec.network.services),
            "dnsDomain": spec.kubernetes.domain,
        },
        "apiServer": {"certSANs": sans, "extraArgs": args(&api_server, &API_SERVER_OWN), "extraVolumes": volumes},
        "controllerManager": {"extraArgs": args(&controller_manager, &MANAGER_OWN)},
        "scheduler": {"extraArgs": args(&scheduler, &SCHEDULER_OWN)},
        "etcd": etcd_of(context),
    });
    if let Some(tag) = tag(context, "/coredns") {
        body["dns"] = json!({"imageTag": tag});
    }
    body
}

fn etcd_of(context: &Context<'_>) -> Value {
    let spec = context.spec;
    if spec.etcd.topology == EtcdTopology::External {
        return json!({"external": {
            "endpoints": stages::etcd_servers(spec),
            "caFile": ETCD_CA_CRT,
            "certFile": paths::pki("apiserver-etcd-client.crt"),
            "keyFile": paths::pki("apiserver-etcd-client.key"),
        }});
    }
    let nobody = Member {
        name: String::new(),
        address: std::net::Ipv4Addr::LOCALHOST.into(),
    };
    let flags = etcd::flags(&nobody, &spec.etcd);
    let ours: Vec<Value> = flags
        .iter()
        .filter(|(name, _)| ETCD_OURS.contains(name))
        .map(|(name, value)| arg(name, value))
        .collect();
    let mut local = json!({"dataDir": spec.etcd.data_dir, "extraArgs": ours});
    if let Some(tag) = tag(context, "/etcd") {
        local["imageTag"] = json!(tag);
    }
    json!({"local": local})
}

fn init_configuration(context: &Context<'_>, machine: &Machine, with_token: bool) -> Value {
    // `CONFIG` runs no checks, and stays what it is when the mark goes.
    let founding = if with_token {
        founding(context, machine)
    } else {
        Founding::Begun
    };
    let mut body = json!({
        "apiVersion": API_VERSION,
        "kind": "InitConfiguration",
        "localAPIEndpoint": local_endpoint(machine),
        "nodeRegistration": registration(context, machine, Some(founding)),
        // kube-proxy and CoreDNS are objects of the plan. The join command would print the token.
        "skipPhases": ["addon", "show-join-command"],
        "patches": {"directory": PATCHES},
        "timeouts": timeouts(),
    });
    if with_token {
        body["bootstrapTokens"] = json!([{
            "token": token(), "ttl": "2h0m0s", "usages": ["signing", "authentication"], "groups": [TOKEN_GROUP],
        }]);
    }
    body
}

/// kubeadm asks an etcd that does not answer for two minutes unless told otherwise; a few such waits outlast the step. It
/// waits as long for a learner to be promoted, which takes a large database on a slow disk some time.
fn timeouts() -> Value {
    json!({"etcdAPICall": "60s"})
}

/// How far `kubeadm init` got before this plan.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Founding {
    Fresh,
    /// What it started may run already.
    Begun,
}

pub(crate) fn founding(context: &Context<'_>, machine: &Machine) -> Founding {
    let host = context.facts.host(&machine.name);
    let mark = host.and_then(|host| host.files.get(FOUNDING));
    if mark.is_some_and(|mark| mark.exists()) {
        Founding::Begun
    } else {
        Founding::Fresh
    }
}

/// `founding`: of the machine that founds; `None` for those that join.
fn registration(context: &Context<'_>, machine: &Machine, founding: Option<Founding>) -> Value {
    let spec = context.spec;
    let mut ignored: Vec<String> = IGNORED.map(str::to_owned).to_vec();
    if founding.is_some() {
        ignored.extend(IGNORED_FOUNDING.map(str::to_owned));
    }
    if founding == Some(Founding::Begun) {
        ignored.extend(IGNORED_BEGUN.map(str::to_owned));
    }
    if machine.is_control_plane() {
        // A file system of its own has `lost+found`. Another etcd's data is found by preflight, and what an earlier life of
        // the machine left is removed by the plan.
        ignored.push(format!("DirAvailable-{}", spec.etcd.data_dir.replace('/', "-")));
    } else {
        ignored.push(IGNORED_WORKER.to_owned());
    }
    json!({
        "name": machine.name,
        "criSocket": CRI,
        "imagePullPolicy": "IfNotPresent",
        "taints": machine.taints.iter().map(taint).collect::<Vec<_>>(),
        "kubeletExtraArgs": kubelet_args(spec, machine).iter().map(|(name, value)| arg(name, value)).collect::<Vec<_>>(),
        "ignorePreflightErrors": ignored,
    })
}

/// What only the command line of the kubelet can say, by name.
pub(crate) fn kubelet_args(spec: &Spec, machine: &Machine) -> Flags {
    let addresses: Vec<String> = spec
        .network
        .pods
        .iter()
        .filter_map(|net| machine.address_like(*net))
        .map(|address| address.to_string())
        .collect();
    let mut flags = Flags::default();
    flags.set("node-ip", addresses.join(","));
    flags.extend(&spec.kubernetes.kubelet.extra_args);
    flags
}

/// What depends on the machine; a patch, so that the cluster's own `kubelet-config` is the same for all.
const OF_THE_MACHINE: [&str; 6] = [
    "cgroupDriver",
    "failCgroupV1",
    "failSwapOn",
    "featureGates",
    "oomScoreAdj",
    "resolvConf",
];

/// The whole configuration of this machine's kubelet.
pub(crate) fn kubelet(spec: &Spec, machine: &Machine, profile: &Profile) -> Value {
    let kubelet = Kubelet {
        name: &machine.name,
        addresses: Vec::new(),
        dns: spec.dns.cluster_ips.iter().map(ToString::to_string).collect(),
        domain: &spec.kubernetes.domain,
        settings: &spec.kubernetes.kubelet,
        keep_swap: spec.host.swap == quorate_spec::Swap::Keep,
        tls_min: apiserver::tls_version(spec.security.tls_min),
        taints: Vec::new(),
    };
    let mut body = kubelet.settings(profile);
    if let Some(fields) = body.as_object_mut() {
        // kubeadm registers taints itself, and leaves a port out that is closed anyway.
        fields.remove("registerWithTaints");
        fields.remove("readOnlyPort");
    }
    body
}

/// What all machines' kubelets have in common.
pub(crate) fn kubelet_base(spec: &Spec) -> Value {
    let Some(first) = spec.machines.iter().find(|machine| machine.is_node()) else {
        return Value::Null;
    };
    let mut body = kubelet(spec, first, &Profile::plain());
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|name, _| !OF_THE_MACHINE.contains(&name.as_str()));
    }
    let gates: Map<String, Value> = spec
        .kubernetes
        .kubelet
        .feature_gates
        .iter()
        .map(|(name, on)| (name.clone(), json!(on)))
        .collect();
    if !gates.is_empty() {
        body["featureGates"] = Value::Object(gates);
    }
    body
}

/// `patches/kubeletconfiguration0+merge.yaml`
pub(crate) fn kubelet_patch(spec: &Spec, machine: &Machine, profile: &Profile) -> String {
    let mut body = kubelet(spec, machine, profile);
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|name, _| OF_THE_MACHINE.contains(&name.as_str()));
    }
    yaml::render(&body)
}

pub(crate) fn patch(target: &str) -> String {
    format!("{PATCHES}/{target}0+merge.yaml")
}

/// `patches/kube-apiserver0+merge.yaml` and its like.
pub(crate) fn pod_patch(inputs: &str) -> String {
    yaml::render(&json!({"metadata": {"annotations": {INPUTS: inputs}}}))
}

/// The unit as kubeadm's packages ship it (<https://github.com/kubernetes/release/tree/master/cmd/krel/templates/latest/kubelet>),
/// the program apart.
pub(crate) fn kubelet_unit() -> String {
    format!(
        "[Unit]\n\
         Description=kubelet: The Kubernetes Node Agent\n\
         Documentation=https://kubernetes.io/docs/\n\
         Wants=network-online.target\n\
         After=network-online.target\n\
         \n\
         [Service]\n\
         ExecStart={}\n\
         Restart=always\n\
         StartLimitInterval=0\n\
         RestartSec=10\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n",
        paths::bin("kubelet")
    )
}

/// The drop-in as kubeadm's packages ship it. `inputs`: what the kubelet's configuration is made of; a change restarts it.
pub(crate) fn kubelet_drop_in(inputs: &str) -> String {
    format!(
        "[Service]\n\
         Environment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf\"\n\
         Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n\
         # Written by `kubeadm init` and `kubeadm join`.\n\
         EnvironmentFile=-{FLAGS}\n\
         EnvironmentFile=-/etc/default/kubelet\n\
         ExecStart=\n\
         ExecStart={} $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n\
         # inputs: {inputs}\n",
        paths::bin("kubelet")
    )
}

/// A command line. kubeadm looks for `kubelet` in the path.
pub(crate) fn command(words: &[&str]) -> Vec<String> {
    let path = format!(
        "PATH={}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        paths::BIN
    );
    let mut argv = vec!["/usr/bin/env".to_owned(), path, paths::bin("kubeadm")];
    argv.extend(words.iter().map(|word| (*word).to_owned()));
    argv
}

fn proxy(context: &Context<'_>) -> Value {
    kube_proxy::settings(context.spec, &kube_proxy::Shared::of(context))
}

/// Reference of the bundle's image whose repository ends with `name`.
pub(crate) fn image<'a>(context: &Context<'a>, name: &str) -> Option<&'a str> {
    context
        .image(name)
        .map(|item| stages::runtime_image_reference(&item.name))
}

fn tag<'a>(context: &Context<'a>, name: &str) -> Option<&'a str> {
    Some(image(context, name)?.rsplit_once(':')?.1)
}

fn local_endpoint(machine: &Machine) -> Value {
    json!({"advertiseAddress": machine.address.to_string(), "bindPort": apiserver::PORT})
}

fn token() -> &'static str {
    "{{secret:bootstrap-token-id}}.{{secret:bootstrap-token-secret}}"
}

fn args(flags: &Flags, own: &[&str]) -> Vec<Value> {
    flags
        .iter()
        .filter(|(name, _)| !own.contains(name))
        .map(|(name, value)| arg(name, value))
        .collect()
}

fn arg(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

fn taint(taint: &Taint) -> Value {
    let mut value = json!({"key": taint.key, "effect": format!("{:?}", taint.effect)});
    if !taint.value.is_empty() {
        value["value"] = json!(taint.value);
    }
    value
}

fn documents(all: &[Value]) -> String {
    all.iter().map(yaml::render).collect::<Vec<_>>().join("---\n")
}
