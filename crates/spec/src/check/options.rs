//! `metadata`, `spec.security`, `spec.host`, `spec.bundle`.

use super::names;
use crate::document::{Document, at};
use crate::file::{BundleFile, HostFile, Metadata, SecurityFile};
use crate::spec::*;

/// Set by Quorate on every node, and to this value.
const NEEDED_SYSCTLS: &[(&str, &str)] = &[
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    ("net.bridge.bridge-nf-call-iptables", "1"),
    ("net.bridge.bridge-nf-call-ip6tables", "1"),
];

pub(super) fn name(document: &mut Document<'_>, file: &Metadata) -> String {
    let name = file.name.clone().unwrap_or_else(|| "kubernetes".to_owned());
    if !names::is_label(&name) {
        document
            .error(
                "bad-cluster-name",
                &at!["metadata", "name"],
                format!("`{name}` cannot be the cluster's name"),
            )
            .reason(
                "it names a folder, a kubeconfig context and a flag: a-z, 0-9 and `-`, at most 63, no `-` at the ends",
            )
            .fix("write e.g. `prod`");
    }
    name
}

pub(super) fn security(document: &mut Document<'_>, file: &SecurityFile) -> Security {
    let level = |given: Option<crate::file::PodSecurityLevelFile>, default| given.map_or(default, Into::into);
    let at = at!["spec", "security", "podSecurity", "exemptNamespaces"];
    for (i, namespace) in file.pod_security.exempt_namespaces.iter().enumerate() {
        if !names::is_label(namespace) {
            document
                .error(
                    "bad-namespace",
                    &at.join(i),
                    format!("`{namespace}` cannot be a namespace"),
                )
                .reason("a namespace is a DNS label: a-z, 0-9 and `-`, at most 63 (RFC 1123)")
                .fix("write e.g. `kube-system`");
        }
    }
    let encryption = file.encryption.map_or(Encryption::Secretbox, Into::into);
    if encryption == Encryption::None {
        document
            .warn(
                "no-encryption",
                &at!["spec", "security", "encryption"],
                "Secrets are stored in etcd as plain text",
            )
            .reason("whoever reads etcd's files or a backup of them has all the cluster's passwords")
            .fix("leave `encryption` out to get secretbox");
    }
    let mut exempt_namespaces: std::collections::BTreeSet<String> =
        file.pod_security.exempt_namespaces.iter().cloned().collect();
    exempt_namespaces.insert("kube-system".to_owned());
    Security {
        encryption,
        audit: Audit {
            enabled: file.audit.enabled.unwrap_or(true),
            max_age_days: file.audit.max_age_days.unwrap_or(30),
            max_backups: file.audit.max_backups.unwrap_or(10),
            max_size_mib: file.audit.max_size_mib.unwrap_or(100),
        },
        pod_security: PodSecurity {
            enforce: level(file.pod_security.enforce, PodSecurityLevel::Baseline),
            audit: level(file.pod_security.audit, PodSecurityLevel::Restricted),
            warn: level(file.pod_security.warn, PodSecurityLevel::Restricted),
            exempt_namespaces,
        },
        tls_min: file.tls_min.map_or(TlsVersion::V1_2, Into::into),
    }
}

pub(super) fn host(document: &mut Document<'_>, file: &HostFile) -> Host {
    let at = at!["spec", "host", "sysctls"];
    for (key, value) in &file.sysctls {
        let here = at.join(key);
        let span = document.key_span(&here);
        let named = !key.is_empty()
            && key.contains('.')
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/".contains(&b));
        if !named || value.is_empty() || value.contains('\n') || key.contains("..") {
            document
                .error_at(
                    "bad-sysctl",
                    &here,
                    span,
                    format!("`{key}: {value}` is no kernel setting"),
                )
                .reason("a name with dots and a value on one line are wanted")
                .fix("write e.g. `vm.max_map_count: 262144`");
        } else if let Some((_, needed)) = NEEDED_SYSCTLS.iter().find(|(k, v)| k == key && v != value) {
            document
                .error(
                    "needed-sysctl",
                    &here,
                    format!("`{key}` must be {needed} on every node"),
                )
                .reason("Pods and Services cannot be reached from other machines otherwise")
                .fix("leave it out");
        }
    }
    Host {
        swap: file.swap.map_or(Swap::Off, Into::into),
        firewall: file.firewall.map_or(Firewall::Auto, Into::into),
        hosts: file.hosts.unwrap_or(true),
        hostname: file.hostname.unwrap_or(false),
        time_sync: file.time_sync.map_or(TimeSync::Check, Into::into),
        journal_max_mib: file.journal_max_mib,
        sysctls: file.sysctls.clone(),
    }
}

pub(super) fn bundle(document: &mut Document<'_>, file: &BundleFile) -> Option<String> {
    let path = file.path.clone()?;
    if let Some(why) = names::why_no_argument(&path) {
        document
            .error(
                "bad-bundle-path",
                &at!["spec", "bundle", "path"],
                format!("`{path}` cannot be the bundle's path"),
            )
            .reason(why)
            .fix("write the path of a bundle's directory or file, or leave it out");
    }
    Some(path)
}
