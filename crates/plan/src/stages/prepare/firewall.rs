//! The firewall that runs on a machine, opened for what the matrix names. What accepts in one table does not undo a drop in
//! another, so a firewall can only be opened from within: firewalld by a zone and policies of our own, ufw by a block in
//! its `before.rules`. Rules somebody loaded by hand are explained, never edited.

use std::fmt::Write;

use quorate_facts::HostFacts;
use quorate_spec::{Firewall, Machine, Spec};

use super::settings::Settings;
use crate::firewall::{Protocol, public, trusted};
use crate::model::Note;

/// firewalld ≥ 0.9 for policies and forwarding within a zone.
const ZONE: &str = "/etc/firewalld/zones/quorate.xml";
const IN: &str = "/etc/firewalld/policies/quorate-in.xml";
const OUT: &str = "/etc/firewalld/policies/quorate-out.xml";
const UFW: &str = "/etc/ufw/before.rules";
const UFW6: &str = "/etc/ufw/before6.rules";

/// firewalld's and ufw's, whether they run or not: what is not wanted is absent.
pub(crate) fn settings(spec: &Spec, machine: &Machine, host: &HostFacts) -> [Settings; 2] {
    let opened = spec.host.firewall != Firewall::Explain;
    let firewalld = opened && host.firewall.firewalld_active;
    let ufw = opened && host.firewall.ufw_active;
    let v6 = trusted(spec).iter().any(|source| source.contains(':'));
    [
        Settings {
            name: "firewalld",
            title: "open firewalld",
            files: vec![
                (ZONE, firewalld.then(|| zone(spec))),
                (IN, firewalld.then(|| incoming(spec, machine))),
                (OUT, firewalld.then(outgoing)),
            ],
            blocks: Vec::new(),
            reload: &["firewall-cmd", "--reload"],
        },
        Settings {
            name: "ufw",
            title: "open ufw",
            files: Vec::new(),
            blocks: vec![
                (UFW, ufw.then(|| before_rules(spec, machine, false))),
                (UFW6, (ufw && v6).then(|| before_rules(spec, machine, true))),
            ],
            reload: &["ufw", "reload"],
        },
    ]
}

/// What runs and is not opened.
pub(crate) fn note(spec: &Spec, machine: &Machine, host: &HostFacts) -> Option<Note> {
    let firewall = &host.firewall;
    let running = if firewall.firewalld_active {
        Some("firewalld".to_owned())
    } else if firewall.ufw_active {
        Some("ufw".to_owned())
    } else {
        None
    };
    let message = match running {
        Some(name) if spec.host.firewall == Firewall::Explain => format!("{name} is running; nothing is opened"),
        Some(_) => return None,
        None => format!("{} drops what is not named there", firewall.dropping.first()?),
    };
    Some(Note {
        machine: Some(machine.name.clone()),
        message,
        hint: Some("`quorate plan --firewall -o nftables` prints what each machine must let in".into()),
    })
}

fn zone(spec: &Spec) -> String {
    let mut text = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<zone target=\"ACCEPT\">\n  <short>quorate</short>\n  \
         <description>Machines and Pods of {}; written by Quorate</description>\n",
        spec.name
    );
    for source in trusted(spec) {
        let _ = writeln!(text, "  <source address=\"{source}\"/>");
    }
    text.push_str("  <forward/>\n</zone>\n");
    text
}

/// What anyone may reach.
fn incoming(spec: &Spec, machine: &Machine) -> String {
    let mut text = String::from(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<policy priority=\"-10\" target=\"CONTINUE\">\n  \
         <short>quorate-in</short>\n  <ingress-zone name=\"ANY\"/>\n  <egress-zone name=\"HOST\"/>\n",
    );
    for (protocol, first, last) in public(spec, machine) {
        let ports = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        let _ = writeln!(text, "  <port port=\"{ports}\" protocol=\"{}\"/>", protocol.as_str());
    }
    text.push_str("</policy>\n");
    text
}

/// Pods may reach the world.
fn outgoing() -> String {
    "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<policy priority=\"-10\" target=\"ACCEPT\">\n  \
     <short>quorate-out</short>\n  <ingress-zone name=\"quorate\"/>\n  <egress-zone name=\"ANY\"/>\n</policy>\n"
        .into()
}

/// A section of its own for `iptables-restore --noflush`; ufw's own section ends before it.
fn before_rules(spec: &Spec, machine: &Machine, v6: bool) -> String {
    let ufw = if v6 { "ufw6" } else { "ufw" };
    let mut text = String::from("*filter\n");
    for source in trusted(spec).iter().filter(|source| source.contains(':') == v6) {
        let _ = writeln!(text, "-A {ufw}-before-input -s {source} -j ACCEPT");
    }
    for (protocol, first, last) in public(spec, machine) {
        if matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            let _ = writeln!(
                text,
                "-A {ufw}-before-input -p {} --dport {first}:{last} -j ACCEPT",
                protocol.as_str()
            );
        }
    }
    let pods = spec.network.pods.iter().filter(|net| net.addr().is_ipv6() == v6);
    for net in pods {
        let _ = writeln!(text, "-A {ufw}-before-forward -s {net} -j ACCEPT");
        let _ = writeln!(text, "-A {ufw}-before-forward -d {net} -j ACCEPT");
    }
    text.push_str("COMMIT\n");
    text
}
