//! `spec.kubernetes`: versions, domain, components.

use std::collections::{BTreeMap, BTreeSet};

use semver::Version;

use super::{flags, names};
use crate::document::{Document, Path, at};
use crate::file::{ComponentFile, KubernetesFile};
use crate::spec::*;

/// What `quorate` of this version deploys.
pub(crate) const DEFAULT_VERSION: &str = "v1.36.3";
const OLDEST_MINOR: u64 = 34;
const NEWEST_MINOR: u64 = 36;
/// 1.37 (August 2026) ended 1.34's support: upstream maintains three minors.
const UNMAINTAINED_MINOR: u64 = 34;

pub(super) fn kubernetes(document: &mut Document<'_>, file: &KubernetesFile) -> Option<Kubernetes> {
    let at = at!["spec", "kubernetes"];
    let version = version(
        document,
        &at.join("version"),
        file.version.as_deref().unwrap_or(DEFAULT_VERSION),
    );
    let bootstrap = file.bootstrap.map_or(Bootstrap::Binary, Into::into);
    let domain = file.domain.clone().unwrap_or_else(|| "cluster.local".to_owned());
    check_domain(document, &at.join("domain"), &domain);
    let proxy_mode = file.proxy_mode.map_or(ProxyMode::Auto, Into::into);
    let minor = version.as_ref().map_or(NEWEST_MINOR, |v| v.minor);
    if proxy_mode == ProxyMode::Ipvs && minor >= 35 {
        document
            .warn(
                "proxy-mode-deprecated",
                &at.join("proxyMode"),
                "kube-proxy's ipvs mode is deprecated since Kubernetes 1.35",
            )
            .reason("it is to refuse to start from 1.40 on (KEP-5495)")
            .fix("write `proxyMode: auto`; `access: ipvs` is independent of it and stays");
    }
    let api_server = ComponentFile {
        extra_args: file.api_server.extra_args.clone(),
        feature_gates: file.api_server.feature_gates.clone(),
    };
    let mut component = |field: &str, program: flags::Program, file: &ComponentFile| {
        flags::check(document, &at.join(field), program, bootstrap, minor, &file.extra_args);
        check_gates(document, &at.join(field).join("featureGates"), &file.feature_gates);
        Component {
            extra_args: file.extra_args.clone(),
            feature_gates: file.feature_gates.clone(),
            sans: BTreeSet::new(),
        }
    };
    let mut api_server = component("apiServer", flags::Program::ApiServer, &api_server);
    let controller_manager = component(
        "controllerManager",
        flags::Program::ControllerManager,
        &file.controller_manager,
    );
    let scheduler = component("scheduler", flags::Program::Scheduler, &file.scheduler);
    let kube_proxy = component("kubeProxy", flags::Program::KubeProxy, &file.kube_proxy);
    let kubelet_file = ComponentFile {
        extra_args: file.kubelet.extra_args.clone(),
        feature_gates: file.kubelet.feature_gates.clone(),
    };
    let kubelet = component("kubelet", flags::Program::Kubelet, &kubelet_file);
    api_server.sans = sans(document, &at.join("apiServer").join("sans"), &file.api_server.sans);

    let (high, low) = (
        file.kubelet.image_gc_high_percent.unwrap_or(85),
        file.kubelet.image_gc_low_percent.unwrap_or(80),
    );
    if low >= high {
        let given = if file.kubelet.image_gc_low_percent.is_some() {
            "imageGcLowPercent"
        } else {
            "imageGcHighPercent"
        };
        document
            .error(
                "image-gc-order",
                &at.join("kubelet").join(given),
                format!("images are deleted from {high} % on down to {low} %, which is not less"),
            )
            .reason("kubelet refuses to start")
            .fix("make imageGcLowPercent smaller than imageGcHighPercent (85 and 80 by default)");
    }
    Some(Kubernetes {
        version: version?,
        bootstrap,
        domain,
        proxy_mode,
        api_server,
        controller_manager,
        scheduler,
        kube_proxy,
        kubelet: Kubelet {
            extra_args: kubelet.extra_args,
            feature_gates: kubelet.feature_gates,
            // Completed by the network's check, which knows a node's share.
            max_pods: file.kubelet.max_pods.unwrap_or(super::network::DEFAULT_MAX_PODS),
            image_gc_high_percent: high,
            image_gc_low_percent: low,
            container_log_max_mib: file.kubelet.container_log_max_mib.unwrap_or(10),
            container_log_max_files: file.kubelet.container_log_max_files.unwrap_or(5),
        },
    })
}

fn version(document: &mut Document<'_>, at: &Path, text: &str) -> Option<Version> {
    let bare = text.strip_prefix('v').unwrap_or(text);
    let Ok(version) = Version::parse(bare) else {
        let parts: Vec<&str> = bare.split('.').collect();
        let finding = document.error("bad-version", at, format!("`{text}` is no exact Kubernetes version"));
        finding.reason("every machine must get the same patch release, today and when a machine is added in a year");
        finding.fix(match parts.as_slice() {
            ["1", "36"] | ["1"] => format!("write `{DEFAULT_VERSION}`"),
            ["1", minor] if minor.parse::<u64>().is_ok() => {
                format!("add the patch, e.g. `v1.{minor}.0`")
            }
            _ => format!("write e.g. `{DEFAULT_VERSION}`"),
        });
        return None;
    };
    let range = format!("1.{OLDEST_MINOR} to 1.{NEWEST_MINOR}");
    if !version.pre.is_empty() || !version.build.is_empty() {
        document
            .error("version-not-released", at, format!("{text} is not an upstream release"))
            .reason("pre-releases and vendors' builds behave in ways that nothing here was tested with")
            .fix(format!("write the release, e.g. `{DEFAULT_VERSION}`"));
        return None;
    }
    if version.major != 1 || version.minor > NEWEST_MINOR {
        document
            .error(
                "version-too-new",
                at,
                format!("this program does not know Kubernetes {text}"),
            )
            .reason("flags and file formats change with each minor version")
            .fix(format!("use {range}, e.g. `{DEFAULT_VERSION}`, or a newer Quorate"));
        return None;
    }
    if version.minor < OLDEST_MINOR {
        document
            .error(
                "version-end-of-life",
                at,
                format!("Kubernetes {text} is past its end of life"),
            )
            .reason("it gets no security fixes, and needs flags that this program no longer writes")
            .fix(format!("use {range}, e.g. `{DEFAULT_VERSION}`"));
        return None;
    }
    if version.minor == UNMAINTAINED_MINOR {
        document
            .warn(
                "version-unmaintained",
                at,
                format!("Kubernetes {text} no longer gets fixes upstream"),
            )
            .reason("1.37 has taken its place among the three maintained minor versions")
            .fix(format!("use `{DEFAULT_VERSION}`; from 1.34, upgrade by way of 1.35"));
    }
    Some(version)
}

fn check_domain(document: &mut Document<'_>, at: &Path, domain: &str) {
    let why = names::why_no_hostname(domain).or_else(|| {
        domain
            .split('.')
            .all(|part| part.bytes().all(|b| b.is_ascii_digit()))
            .then_some("it looks like an address")
    });
    if let Some(why) = why {
        document
            .error(
                "bad-domain",
                at,
                format!("`{domain}` cannot be the cluster's DNS domain"),
            )
            .reason(why)
            .fix("write e.g. `cluster.local`");
    } else if matches!(domain, "local" | "localhost" | "svc" | "com" | "net" | "org") {
        document
            .error(
                "bad-domain",
                at,
                format!("`{domain}` cannot be the cluster's DNS domain"),
            )
            .reason("the cluster's DNS answers for everything below it and would hide all other hosts there")
            .fix("write e.g. `cluster.local`, or a subdomain of your own");
    }
}

fn check_gates(document: &mut Document<'_>, at: &Path, gates: &BTreeMap<String, bool>) {
    for gate in gates.keys() {
        let ok = gate.starts_with(|c: char| c.is_ascii_uppercase()) && gate.bytes().all(|b| b.is_ascii_alphanumeric());
        if !ok {
            let here = at.join(gate);
            let span = document.key_span(&here);
            document
                .error_at("bad-feature-gate", &here, span, format!("`{gate}` is no feature gate"))
                .reason("feature gates are written in CamelCase; a component with an unknown one does not start")
                .fix("write e.g. `NodeLogQuery: true`");
        }
    }
}

fn sans(document: &mut Document<'_>, at: &Path, sans: &[String]) -> BTreeSet<String> {
    for (i, san) in sans.iter().enumerate() {
        let host = san.strip_prefix("*.").unwrap_or(san);
        let is_address = san.parse::<std::net::IpAddr>().is_ok();
        if let Some(why) = names::why_no_hostname(host).filter(|_| !is_address) {
            document
                .error("bad-san", &at.join(i), format!("`{san}` cannot be in a certificate"))
                .reason(why)
                .fix("write an IP address or a DNS name, without scheme and port");
        }
    }
    sans.iter().cloned().collect()
}
