//! kubelet: flags left are few, the rest is `KubeletConfiguration` (kubelet.config.k8s.io/v1beta1).

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::components::unit::{Flags, Unit};
use crate::paths;
use crate::profile::Profile;
use crate::yaml;

pub(crate) struct Kubelet<'a> {
    pub(crate) name: &'a str,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) dns: Vec<String>,
    pub(crate) domain: &'a str,
    pub(crate) settings: &'a quorate_spec::Kubelet,
    pub(crate) keep_swap: bool,
    pub(crate) tls_min: &'static str,
    /// Set when the node registers.
    pub(crate) taints: Vec<Value>,
}

impl Kubelet<'_> {
    pub(crate) fn config(&self, profile: &Profile) -> String {
        yaml::render(&self.settings(profile))
    }

    /// The same as a value.
    pub(crate) fn settings(&self, profile: &Profile) -> Value {
        let mut gates: Map<String, Value> = self
            .settings
            .feature_gates
            .iter()
            .map(|(name, on)| (name.clone(), json!(on)))
            .collect();
        let mut config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": paths::pki("ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "readOnlyPort": 0,
            "rotateCertificates": true,
            "serverTLSBootstrap": true,
            "tlsMinVersion": self.tls_min,
            "cgroupDriver": if profile.systemd_cgroups { "systemd" } else { "cgroupfs" },
            "clusterDNS": self.dns,
            "clusterDomain": self.domain,
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "staticPodPath": paths::STATIC_PODS,
            "maxPods": self.settings.max_pods,
            "podPidsLimit": 4096,
            "seccompDefault": true,
            "failSwapOn": !self.keep_swap && !profile.swap_immutable,
            "containerLogMaxSize": format!("{}Mi", self.settings.container_log_max_mib),
            "containerLogMaxFiles": self.settings.container_log_max_files,
            "registerWithTaints": self.taints,
            "eventRecordQPS": 50,
            "imageGCHighThresholdPercent": self.settings.image_gc_high_percent,
            "imageGCLowThresholdPercent": self.settings.image_gc_low_percent,
        });
        if !profile.cgroup_v2 {
            config["failCgroupV1"] = json!(false);
        }
        if !profile.oom_adjustable {
            config["oomScoreAdj"] = json!(0);
            gates.insert("KubeletInUserNamespace".into(), json!(true));
        }
        if let Some(resolv) = &profile.resolv_conf {
            config["resolvConf"] = json!(resolv);
        }
        if !gates.is_empty() {
            config["featureGates"] = Value::Object(gates);
        }
        config
    }

    pub(crate) fn unit(&self, profile: &Profile) -> String {
        let mut flags = Flags::default();
        let addresses = self
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(",");
        flags
            .set("config", format!("{}/config.yaml", paths::KUBELET))
            .set("kubeconfig", format!("{}/kubelet.conf", paths::KUBERNETES))
            .set(
                "bootstrap-kubeconfig",
                format!("{}/bootstrap-kubelet.conf", paths::KUBERNETES),
            )
            .set("cert-dir", format!("{}/pki", paths::KUBELET))
            .set("hostname-override", self.name)
            .set("node-ip", addresses);
        flags.extend(&self.settings.extra_args);
        Unit {
            description: "Kubernetes kubelet",
            documentation: "https://kubernetes.io/docs/reference/command-line-tools-reference/kubelet/",
            after: &["containerd.service"],
            program: paths::bin("kubelet"),
            flags,
            notify: false,
            service: vec!["KillMode=process".into()],
            oom_score: -999,
            files: 1_048_576,
        }
        .render(profile)
    }
}
