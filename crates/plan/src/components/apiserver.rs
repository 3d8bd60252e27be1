//! kube-apiserver. Flags: <https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/>.

use std::net::IpAddr;

use quorate_spec::{Audit, PodSecurity, TlsVersion};
use serde_json::json;

use crate::components::unit::{Flags, Unit};
use crate::paths;
use crate::profile::Profile;
use crate::stages::level;
use crate::yaml;

pub(crate) const PORT: u16 = 6443;

pub(crate) struct ApiServer<'a> {
    pub(crate) address: IpAddr,
    pub(crate) etcd_servers: Vec<String>,
    pub(crate) services: String,
    pub(crate) domain: &'a str,
    pub(crate) control_planes: usize,
    pub(crate) encryption: bool,
    pub(crate) audit: Audit,
    /// `30000-32767`
    pub(crate) node_ports: String,
    pub(crate) tls_min: &'static str,
    pub(crate) feature_gates: String,
    pub(crate) extra: Vec<(&'a String, &'a String)>,
    pub(crate) local_etcd: bool,
}

impl ApiServer<'_> {
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        let pki = |file: &str| paths::pki(file);
        let etc = |file: &str| format!("{}/{file}", paths::KUBERNETES);
        flags
            .set("advertise-address", self.address.to_string())
            .set("secure-port", PORT.to_string())
            .set("allow-privileged", "true")
            .set("authorization-mode", "Node,RBAC")
            // Anonymous requests reach the three health paths only: the balancer's probes carry no identity.
            .set("authentication-config", etc("authentication.yaml"))
            .set("client-ca-file", pki("ca.crt"))
            .set("enable-admission-plugins", "NodeRestriction")
            .set("admission-control-config-file", etc("admission.yaml"))
            .set("enable-bootstrap-token-auth", "true")
            .set("etcd-cafile", pki("etcd/ca.crt"))
            .set("etcd-certfile", pki("apiserver-etcd-client.crt"))
            .set("etcd-keyfile", pki("apiserver-etcd-client.key"))
            .set("etcd-servers", self.etcd_servers.join(","))
            // Beside a frozen member it says so after this long; an election takes half of it.
            .set("etcd-readycheck-timeout", "1s")
            .set("kubelet-certificate-authority", pki("ca.crt"))
            .set("kubelet-client-certificate", pki("apiserver-kubelet-client.crt"))
            .set("kubelet-client-key", pki("apiserver-kubelet-client.key"))
            .set("kubelet-preferred-address-types", "InternalIP,ExternalIP,Hostname")
            .set("proxy-client-cert-file", pki("front-proxy-client.crt"))
            .set("proxy-client-key-file", pki("front-proxy-client.key"))
            .set("requestheader-allowed-names", "front-proxy-client")
            .set("requestheader-client-ca-file", pki("front-proxy-ca.crt"))
            .set("requestheader-extra-headers-prefix", "X-Remote-Extra-")
            .set("requestheader-group-headers", "X-Remote-Group")
            .set("requestheader-username-headers", "X-Remote-User")
            .set(
                "service-account-issuer",
                format!("https://kubernetes.default.svc.{}", self.domain),
            )
            .set("service-account-key-file", pki("sa.pub"))
            .set("service-account-signing-key-file", pki("sa.key"))
            .set("service-account-extend-token-expiration", "false")
            .set("service-cluster-ip-range", &self.services)
            .set("tls-cert-file", pki("apiserver.crt"))
            .set("tls-private-key-file", pki("apiserver.key"))
            .set("service-node-port-range", &self.node_ports)
            .set("tls-min-version", self.tls_min)
            .set("profiling", "false")
            // `/readyz` fails at once on SIGTERM while requests are still served: the balancer has this long to notice.
            .set("shutdown-delay-duration", "3s");
        if self.control_planes > 1 {
            // One request in a thousand asks its HTTP/2 client to connect anew, so a returned server gets its share.
            flags.set("goaway-chance", "0.001");
        }
        if self.audit.enabled {
            flags
                .set("audit-policy-file", etc("audit-policy.yaml"))
                .set("audit-log-path", format!("{}/audit.log", paths::AUDIT_LOGS))
                .set("audit-log-maxage", self.audit.max_age_days.to_string())
                .set("audit-log-maxbackup", self.audit.max_backups.to_string())
                .set("audit-log-maxsize", self.audit.max_size_mib.to_string());
        }
        if self.encryption {
            flags.set("encryption-provider-config", etc("encryption.yaml"));
        }
        if !self.feature_gates.is_empty() {
            flags.set("feature-gates", &self.feature_gates);
        }
        flags.extend(self.extra.iter().copied());
        flags
    }

    pub(crate) fn unit(&self, profile: &Profile) -> String {
        let after: &[&str] = if self.local_etcd { &["etcd.service"] } else { &[] };
        Unit {
            description: "Kubernetes API server",
            documentation: "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-apiserver/",
            after,
            program: paths::bin("kube-apiserver"),
            flags: self.flags(),
            notify: true,
            service: vec![
                "LogsDirectory=kubernetes".into(),
                "LogsDirectoryMode=0700".into(),
                // After the delay in which balancers look elsewhere it waits a minute for open streams; their clients
                // have connected anew long before.
                "TimeoutStopSec=15".into(),
            ],
            oom_score: -998,
            files: 65_536,
        }
        .render(profile)
    }
}

/// `discovery`: whoever holds a bootstrap token may read what `kubeadm join` verifies with it; RBAC allows that one
/// ConfigMap.
pub(crate) fn authentication(discovery: bool) -> String {
    let mut open = vec!["/livez", "/readyz", "/healthz"];
    if discovery {
        open.push("/api/v1/namespaces/kube-public/configmaps/cluster-info");
    }
    let conditions: Vec<_> = open.into_iter().map(|path| json!({"path": path})).collect();
    yaml::render(&json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AuthenticationConfiguration",
        "anonymous": {
            "enabled": true,
            "conditions": conditions,
        },
    }))
}

/// PodSecurity defaults for namespaces that set nothing themselves.
pub(crate) fn admission(levels: &PodSecurity) -> String {
    let exempt: std::collections::BTreeSet<&str> = levels
        .exempt_namespaces
        .iter()
        .map(String::as_str)
        .chain(["kube-system"])
        .collect();
    yaml::render(&json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "AdmissionConfiguration",
        "plugins": [{
            "name": "PodSecurity",
            "configuration": {
                "apiVersion": "pod-security.admission.config.k8s.io/v1",
                "kind": "PodSecurityConfiguration",
                "defaults": {
                    "enforce": level(levels.enforce), "enforce-version": "latest",
                    "audit": level(levels.audit), "audit-version": "latest",
                    "warn": level(levels.warn), "warn-version": "latest",
                },
                "exemptions": {"namespaces": exempt},
            },
        }],
    }))
}

/// Secrets at rest: secretbox first; `identity` last so that objects written before stay readable.
pub(crate) fn encryption() -> String {
    yaml::render(&json!({
        "apiVersion": "apiserver.config.k8s.io/v1",
        "kind": "EncryptionConfiguration",
        "resources": [{
            "resources": ["secrets"],
            "providers": [
                {"secretbox": {"keys": [{"name": "key1", "secret": "{{secret:encryption-key}}"}]}},
                {"identity": {}},
            ],
        }],
    }))
}

/// Metadata for what holds secrets, requests for changes, nothing for health checks and leases.
pub(crate) fn audit_policy() -> String {
    yaml::render(&json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [
            {"level": "None", "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/version", "/metrics"]},
            {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
            {"level": "None", "resources": [{"group": "", "resources": ["events"]}, {"group": "events.k8s.io", "resources": ["events"]}]},
            {"level": "Metadata", "resources": [
                {"group": "", "resources": ["secrets", "configmaps", "serviceaccounts/token"]},
                {"group": "authentication.k8s.io", "resources": ["tokenreviews"]},
            ]},
            {"level": "Metadata", "verbs": ["get", "list", "watch"]},
            {"level": "Metadata", "resources": [{"group": "", "resources": ["pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "services/proxy"]}]},
            {"level": "Request"},
        ],
    }))
}

/// As the flags of every Kubernetes component spell it.
pub(crate) fn tls_version(version: TlsVersion) -> &'static str {
    match version {
        TlsVersion::V1_2 => "VersionTLS12",
        TlsVersion::V1_3 => "VersionTLS13",
    }
}
