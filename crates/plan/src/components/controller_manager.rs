//! kube-controller-manager, talking to its own machine's API server only (version skew, KEP-5 order of upgrades).

use crate::components::unit::{Flags, Unit};
use crate::paths;
use crate::profile::Profile;

pub(crate) struct ControllerManager<'a> {
    pub(crate) cluster: &'a str,
    pub(crate) pods: String,
    pub(crate) services: String,
    /// `--node-cidr-mask-size…` flags.
    pub(crate) masks: Vec<(String, String)>,
    pub(crate) feature_gates: String,
    pub(crate) tls_min: &'static str,
    pub(crate) extra: Vec<(&'a String, &'a String)>,
}

impl ControllerManager<'_> {
    pub(crate) fn flags(&self) -> Flags {
        let mut flags = Flags::default();
        let kubeconfig = format!("{}/controller-manager.conf", paths::KUBERNETES);
        flags
            .set("bind-address", "127.0.0.1")
            .set("kubeconfig", &kubeconfig)
            .set("authentication-kubeconfig", &kubeconfig)
            .set("authorization-kubeconfig", &kubeconfig)
            .set("client-ca-file", paths::pki("ca.crt"))
            .set("requestheader-client-ca-file", paths::pki("front-proxy-ca.crt"))
            .set("root-ca-file", paths::pki("ca.crt"))
            .set("service-account-private-key-file", paths::pki("sa.key"))
            .set("cluster-signing-cert-file", paths::pki("ca.crt"))
            .set("cluster-signing-key-file", paths::pki("ca.key"))
            .set("use-service-account-credentials", "true")
            .set("controllers", "*,bootstrapsigner,tokencleaner")
            .set("leader-elect", "true")
            .set("allocate-node-cidrs", "true")
            .set("cluster-cidr", &self.pods)
            .set("service-cluster-ip-range", &self.services)
            .set("cluster-name", self.cluster)
            .set("profiling", "false")
            .set("terminated-pod-gc-threshold", "100")
            .set("tls-min-version", self.tls_min);
        for (name, value) in &self.masks {
            flags.set(name, value);
        }
        if !self.feature_gates.is_empty() {
            flags.set("feature-gates", &self.feature_gates);
        }
        flags.extend(self.extra.iter().copied());
        flags
    }

    pub(crate) fn unit(&self, profile: &Profile) -> String {
        Unit {
            description: "Kubernetes controller manager",
            documentation: "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-controller-manager/",
            after: &["kube-apiserver.service"],
            program: paths::bin("kube-controller-manager"),
            flags: self.flags(),
            notify: false,
            service: Vec::new(),
            oom_score: -900,
            files: 65_536,
        }
        .render(profile)
    }
}
