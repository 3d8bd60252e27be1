//! The annotated cluster file that `quorate init` writes.

use std::fmt::Write as _;

use crate::check::DEFAULT_VERSION;

/// What `init` was told. Empty lists and `None` leave the default and say in a comment what it is.
#[derive(Clone, Debug, Default)]
pub struct Template {
    pub name: Option<String>,
    /// `v1.36.3`
    pub kubernetes: Option<String>,
    /// `binary` or `kubeadm`
    pub bootstrap: Option<String>,
    pub endpoint_name: Option<String>,
    pub vip: Option<String>,
    /// `endpoint`, `proxy`, `ipvs` or `ebpf`
    pub access: Option<String>,
    /// `quorate` or `haproxy`
    pub balancer: Option<String>,
    pub pods: Option<String>,
    pub services: Option<String>,
    pub ssh_user: Option<String>,
    /// Addresses, or `name=address`.
    pub control_planes: Vec<String>,
    pub workers: Vec<String>,
    pub etcd: Vec<String>,
    pub load_balancers: Vec<String>,
}

impl Template {
    /// The file's text. It is not checked here: give it to [`crate::load`].
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut line = |text: &str| {
            // Comments after a value begin in one column.
            match text.split_once("  # ").filter(|(value, _)| !value.trim().is_empty()) {
                Some((value, comment)) => {
                    let _ = writeln!(out, "{:<29} # {comment}", value.trim_end());
                }
                None => {
                    let _ = writeln!(out, "{text}");
                }
            }
        };
        let or = |given: &Option<String>, default: &str| quote(given.as_deref().unwrap_or(default));
        line(
            "# A Kubernetes cluster for Quorate. Everything that is not written here has a default; lines with a leading # show",
        );
        line("# it, or what else is possible. `quorate plan` shows what would be done, `quorate apply` does it, and");
        line("# `quorate schema` prints all fields.");
        line("apiVersion: quorate.dev/v1");
        line("kind: Cluster");
        line("metadata:");
        line(&format!(
            "  name: {}  # in kubeconfig contexts and of the operator's folder",
            or(&self.name, "kubernetes")
        ));
        line("spec:");
        line("  kubernetes:");
        line(&format!("    version: {}", or(&self.kubernetes, DEFAULT_VERSION)));
        line(&format!(
            "    bootstrap: {}  # binary: systemd units | kubeadm: static Pods, by upstream kubeadm",
            or(&self.bootstrap, "binary")
        ));
        line("    # apiServer: {sans: [api.example.com], extraArgs: {v: 2}}");
        line("");
        match &self.vip {
            Some(vip) => {
                let holder = if self.load_balancers.is_empty() {
                    "control-planes"
                } else {
                    "load-balancers"
                };
                line(
                    "  # The API's stable address: always held by one of the machines below, and handed on when that one fails.",
                );
                line("  endpoint:");
                if let Some(name) = &self.endpoint_name {
                    line(&format!(
                        "    name: {}  # written to hosts files and certificates",
                        quote(name)
                    ));
                } else {
                    line("    # name: api.prod.internal  # a DNS name for it, written to hosts files and certificates");
                }
                line(&format!(
                    "    vip: {}  # unused, in the holders' own network",
                    quote(vip)
                ));
                line("    port: 8443  # the API servers themselves have 6443");
                line(&format!(
                    "    on: {holder}  # | {}",
                    if holder == "control-planes" {
                        "load-balancers | none"
                    } else {
                        "control-planes | none"
                    }
                ));
                line("    vrid: 51  # VRRP router id, unused in that network");
            }
            None => {
                line(
                    "  # No VIP: nodes have their own way to the API (see access), people use a control plane's address. To give everyone",
                );
                line("  # one stable address, take an unused one of the machines' network:");
                line("  # endpoint: {vip: 10.0.0.100}");
            }
        }
        line("");
        let access = self
            .access
            .as_deref()
            .unwrap_or(if self.vip.is_some() { "endpoint" } else { "proxy" });
        line(
            "  # How a node's kubelet reaches the API: endpoint (the VIP) | proxy (on the node itself) | ipvs | ebpf (in its kernel)",
        );
        line(&format!("  access: {}", quote(access)));
        line(&format!(
            "  balancer: {}  # | {}",
            or(&self.balancer, "quorate"),
            if self.balancer.as_deref() == Some("haproxy") {
                "quorate"
            } else {
                "haproxy (with keepalived)"
            }
        ));
        line("");
        line("  etcd:");
        if self.etcd.is_empty() {
            line("    topology: stacked  # on the control planes | external: on machines with the role etcd");
        } else {
            line("    topology: external  # on machines with the role etcd | stacked: on the control planes");
        }
        line("    # dataDir: /var/lib/etcd  # a fast disk of its own is best");
        line("");
        line(
            "  # Ranges that nothing else uses, and that cannot be changed later. With /16 and /24 there is room for 256 nodes of",
        );
        line("  # 110 Pods. For dual stack write lists: [10.244.0.0/16, \"fd00:10:244::/56\"].");
        line("  network:");
        for (field, given) in [("pods", &self.pods), ("services", &self.services)] {
            match given {
                Some(range) => line(&format!("    {field}: {}", quote(range))),
                None => line(&format!(
                    "    # {field}: {}",
                    if field == "pods" {
                        "10.244.0.0/16"
                    } else {
                        "10.96.0.0/16"
                    }
                )),
            }
        }
        line("    cni: flannel  # | none: bring your own");
        line("");
        line("  # How to log in. Whatever is not given is left to ssh and its configuration.");
        match &self.ssh_user {
            Some(user) => line(&format!(
                "  ssh: {{user: {}}}  # root, or one who may use sudo",
                quote(user)
            )),
            None => line("  # ssh: {user: admin, port: 22, identity: ~/.ssh/id_ed25519, jump: bastion.example.com}"),
        }
        line("");
        line("  # Nothing on the machines is changed beyond what `quorate plan` shows; these say how far it may go.");
        line("  # host: {swap: off, firewall: auto, hosts: true, hostname: false}");
        line("  # drill: {allowed: false}  # whether `quorate drill` may break things here");
        line("");
        line(
            "  # Roles: control-plane, worker, etcd, load-balancer. Three control planes survive the loss of one, five of two.",
        );
        line(
            "  # More per machine: labels: {zone: a}, taints: [\"key=value:NoSchedule\"], ssh: {address: …}, maintenance: true",
        );
        line("  machines:");
        out.push_str(&self.machines());
        out
    }

    fn machines(&self) -> String {
        let mut out = String::new();
        let mut number = 0;
        for (machines, role) in [
            (&self.load_balancers, "load-balancer"),
            (&self.control_planes, "control-plane"),
            (&self.etcd, "etcd"),
            (&self.workers, "worker"),
        ] {
            for machine in machines {
                number += 1;
                let numbered = format!("m{number}");
                let (name, address) = machine.split_once('=').unwrap_or((&numbered, machine));
                let _ = writeln!(
                    out,
                    "    - {{name: {}, address: {}, roles: [{role}]}}",
                    quote(name.trim()),
                    quote(address.trim())
                );
            }
        }
        out
    }
}

/// As it is where YAML cannot take it for anything but this text, else in quotes.
fn quote(text: &str) -> String {
    let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/-".contains(&b))
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && !matches!(
            text.to_lowercase().as_str(),
            "null" | "true" | "false" | "yes" | "no" | "on" | "off"
        );
    // JSON's strings are YAML's.
    if plain {
        text.to_owned()
    } else {
        serde_json::Value::from(text).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Role, load, render};

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|s| (*s).to_owned()).collect()
    }

    #[test]
    fn what_init_writes_is_read_without_a_finding() {
        let three = list(&["10.0.0.11", "10.0.0.12", "10.0.0.13"]);
        let some = |text: &str| Some(text.to_owned());
        let templates = [
            Template {
                control_planes: three.clone(),
                workers: list(&["10.0.0.14", "10.0.0.15"]),
                ..Template::default()
            },
            Template {
                name: some("prod"),
                kubernetes: some("v1.35.4"),
                bootstrap: some("kubeadm"),
                endpoint_name: some("api.prod.internal"),
                vip: some("10.0.0.100"),
                access: some("ipvs"),
                balancer: some("haproxy"),
                pods: some("10.200.0.0/16"),
                services: some("10.201.0.0/16"),
                ssh_user: some("admin"),
                control_planes: list(&["a=10.0.0.11", "b=10.0.0.12", "c=10.0.0.13"]),
                workers: list(&["w=10.0.0.14"]),
                etcd: list(&["10.0.0.21", "10.0.0.22", "10.0.0.23"]),
                load_balancers: list(&["lb1=10.0.0.9", "lb2=10.0.0.10"]),
            },
            Template {
                control_planes: list(&["fd00::11", "fd00::12", "fd00::13"]),
                vip: some("fd00::100"),
                ..Template::default()
            },
            Template {
                name: some("1"),
                control_planes: three,
                vip: some("10.0.0.100"),
                ..Template::default()
            },
        ];
        for template in templates {
            let text = template.render();
            let (spec, findings) =
                load(&text, "cluster.yaml").unwrap_or_else(|f| panic!("{}\n{text}", render(&f, &text, false)));
            assert!(findings.is_empty(), "{}", render(&findings, &text, false));
            let count = |role| spec.machines.iter().filter(|m| m.roles.contains(&role)).count();
            assert_eq!(count(Role::ControlPlane), template.control_planes.len());
            assert_eq!(count(Role::Worker), template.workers.len());
            assert_eq!(spec.endpoint.map(|e| e.vip.to_string()), template.vip);
        }
    }

    #[test]
    fn text_stays_text() {
        for text in [
            "10.0.0.1", "prod", "a: b", "fd00::1", "no", "", "\"", "#", "- x", "null", "${x}", "a\nb: c",
        ] {
            let yaml = format!("x: {}\n", quote(text));
            let root = crate::yaml::parse(&yaml).unwrap();
            let node = root.get("x").unwrap();
            assert!(
                matches!(&node.value, crate::yaml::Value::Text(t) if t == text),
                "{yaml}: {node:?}"
            );
        }
    }
}
