//! kube-scheduler, talking to its own machine's API server only.

use crate::components::unit::{Flags, Unit};
use crate::paths;
use crate::profile::Profile;

pub(crate) fn flags(feature_gates: &str, extra: &[(&String, &String)], tls_min: &str) -> Flags {
    let mut flags = Flags::default();
    let kubeconfig = format!("{}/scheduler.conf", paths::KUBERNETES);
    flags
        .set("bind-address", "127.0.0.1")
        .set("kubeconfig", &kubeconfig)
        .set("authentication-kubeconfig", &kubeconfig)
        .set("authorization-kubeconfig", &kubeconfig)
        .set("client-ca-file", paths::pki("ca.crt"))
        .set("requestheader-client-ca-file", paths::pki("front-proxy-ca.crt"))
        .set("leader-elect", "true")
        .set("profiling", "false")
        .set("tls-min-version", tls_min);
    if !feature_gates.is_empty() {
        flags.set("feature-gates", feature_gates);
    }
    flags.extend(extra.iter().copied());
    flags
}

pub(crate) fn unit(flags: Flags, profile: &Profile) -> String {
    Unit {
        description: "Kubernetes scheduler",
        documentation: "https://kubernetes.io/docs/reference/command-line-tools-reference/kube-scheduler/",
        after: &["kube-apiserver.service"],
        program: paths::bin("kube-scheduler"),
        flags,
        notify: false,
        service: Vec::new(),
        oom_score: -900,
        files: 65_536,
    }
    .render(profile)
}
