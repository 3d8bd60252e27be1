//! The two files a lab hands to whoever works with it.

use std::path::Path;

use crate::command::quote;
use crate::description::{Description, Role};

/// Kubernetes version of the cluster file.
const KUBERNETES: &str = "v1.36.3";
/// Port of the endpoint; 6443 is the API servers' own.
const ENDPOINT_PORT: u16 = 8443;
const EVICTION: &str = "memory.available<100Mi,nodefs.available<1Gi,imagefs.available<1Gi";

/// For `ssh -F`: each machine by name and by address, through the lab's network, with pinned host keys.
pub(crate) fn ssh_config(lab: &Description, key: &Path, known_hosts: &Path) -> String {
    let mut text = format!(
        "# Machines of lab {}. Written by `quorate lab`; changes are overwritten.\n",
        lab.name
    );
    for machine in &lab.machines {
        text += &format!(
            "Host {name} {address}\n  HostName {address}\n  HostKeyAlias {name}\n",
            name = machine.name,
            address = machine.address
        );
    }
    let dial: Vec<String> = lab.dial.iter().map(|word| quote(word).replace('%', "%%")).collect();
    // The cipher is the fastest one on a computer that plays both ends of every connection.
    text += &format!(
        "Host *\n\
         \x20 User root\n\
         \x20 IdentityFile {}\n\
         \x20 IdentitiesOnly yes\n\
         \x20 UserKnownHostsFile {}\n\
         \x20 GlobalKnownHostsFile /dev/null\n\
         \x20 StrictHostKeyChecking yes\n\
         \x20 PasswordAuthentication no\n\
         \x20 ConnectTimeout 10\n\
         \x20 Ciphers ^aes128-gcm@openssh.com\n\
         \x20 LogLevel ERROR\n\
         \x20 ProxyCommand {} {} %h %p\n",
        ssh_path(key),
        ssh_path(known_hosts),
        dial.join(" "),
        lab.name
    );
    text
}

/// One line per machine; `keys` are its host keys, in the machines' order.
pub(crate) fn known_hosts(lab: &Description, keys: &[String]) -> String {
    lab.machines
        .iter()
        .zip(keys)
        .map(|(machine, key)| format!("{},{} {key}\n", machine.name, machine.address))
        .collect()
}

/// A cluster file for `quorate apply`, with every machine of the lab.
pub(crate) fn cluster(lab: &Description, ssh_config: &Path) -> String {
    let on = match lab.with_role(Role::LoadBalancer).next() {
        Some(_) => "load-balancers",
        None => "control-planes",
    };
    let mut text = format!(
        "apiVersion: quorate.dev/v1\n\
         kind: Cluster\n\
         metadata:\n\
         \x20 name: {}\n\
         spec:\n\
         \x20 kubernetes:\n\
         \x20   version: {KUBERNETES}\n\
         \x20   bootstrap: binary\n\
         \x20   # All machines share this computer's disk: shares of it would say nothing about what they use.\n\
         \x20   kubelet: {{imageGcHighPercent: 100, extraArgs: {{eviction-hard: \"{EVICTION}\"}}}}\n\
         \x20 endpoint: {{vip: {}, port: {ENDPOINT_PORT}, on: {on}}}\n",
        lab.name,
        lab.vip()
    );
    if lab.with_role(Role::Etcd).next().is_some() {
        text += "  etcd: {topology: external}\n";
    }
    text += &format!(
        "  ssh: {{user: root, config: {}}}\n  drill: {{allowed: true}}\n  machines:\n",
        yaml(&ssh_config.to_string_lossy())
    );
    for machine in &lab.machines {
        text += &format!(
            "    - {{name: {}, address: {}, roles: [{}]}}\n",
            machine.name,
            machine.address,
            machine.role.as_str()
        );
    }
    text
}

/// Always in quotes: a path may hold spaces and everything else YAML gives a meaning to.
fn yaml(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

fn ssh_path(path: &Path) -> String {
    format!("\"{}\"", path.to_string_lossy().replace('%', "%%"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::description::tests::lab;

    #[test]
    fn the_cluster_file_of_five_machines() {
        assert_eq!(
            cluster(&lab(5, 0, 0), Path::new("/labs/demo/ssh_config")),
            "\
apiVersion: quorate.dev/v1
kind: Cluster
metadata:
  name: demo
spec:
  kubernetes:
    version: v1.36.3
    bootstrap: binary
    # All machines share this computer's disk: shares of it would say nothing about what they use.
    kubelet: {imageGcHighPercent: 100, extraArgs: {eviction-hard: \"memory.available<100Mi,nodefs.available<1Gi,imagefs.available<1Gi\"}}
  endpoint: {vip: 10.77.0.100, port: 8443, on: control-planes}
  ssh: {user: root, config: \"/labs/demo/ssh_config\"}
  drill: {allowed: true}
  machines:
    - {name: m1, address: 10.77.0.11, roles: [control-plane]}
    - {name: m2, address: 10.77.0.12, roles: [control-plane]}
    - {name: m3, address: 10.77.0.13, roles: [control-plane]}
    - {name: m4, address: 10.77.0.14, roles: [worker]}
    - {name: m5, address: 10.77.0.15, roles: [worker]}
"
        );
    }

    #[test]
    fn load_balancers_and_etcd_of_their_own() {
        let text = cluster(&lab(3, 3, 2), Path::new("/x"));
        assert!(text.contains("on: load-balancers}"), "{text}");
        assert!(text.contains("etcd: {topology: external}"), "{text}");
        assert!(
            text.contains("{name: lb2, address: 10.77.0.18, roles: [load-balancer]}"),
            "{text}"
        );
    }

    #[test]
    fn every_machine_is_found_by_name_and_address() {
        let text = ssh_config(&lab(2, 0, 0), Path::new("/a b/key"), Path::new("/k"));
        assert!(text.contains("Host m2 10.77.0.12\n"), "{text}");
        assert!(
            text.contains("ProxyCommand /usr/bin/quorate lab dial demo %h %p\n"),
            "{text}"
        );
        assert!(text.contains("IdentityFile \"/a b/key\"\n"), "{text}");
    }
}
