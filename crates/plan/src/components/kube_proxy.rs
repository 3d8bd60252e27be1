//! kube-proxy with an explicit mode (kubeproxy.config.k8s.io/v1alpha1).

use serde_json::json;

use crate::components::unit::{Flags, Unit};
use crate::paths;
use crate::profile::Profile;
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
