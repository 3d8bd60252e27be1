//! What is planned on paper: the firewall matrix and the sizes of machines, for every example.

#![expect(clippy::disallowed_methods, reason = "a test reads the examples")]

use quorate_plan::{firewall, sizing};
use quorate_spec::Spec;

#[test]
fn every_example_has_its_firewall_matrix() {
    let mut text = String::new();
    for name in ["minimal", "lb-pair", "binary-proxy", "ipvs", "one-click", "colocated"] {
        text.push_str(&format!("{name}\n"));
        for flow in firewall::matrix(&example(name)) {
            let ports = flow
                .ports
                .map_or(String::new(), |(first, last)| format!(" {first}-{last}"));
            text.push_str(&format!(
                "  {} → {}: {}{ports}: {}\n",
                flow.from.as_str(),
                flow.to.as_str(),
                flow.protocol.as_str(),
                flow.purpose
            ));
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_machine_lets_in_what_its_roles_need_and_no_more() {
    let spec = example("one-click");
    let of = |name: &str| firewall::nftables(&spec, spec.machine(name).unwrap());
    assert!(of("lb1").contains("tcp dport 8443") && !of("lb1").contains("dport 6443"));
    assert!(of("e1").contains("tcp dport 2380") && !of("e1").contains("dport 10250"));
    assert!(of("w1").contains("udp dport 8472") && !of("w1").contains("dport 2379"));
    // Rows of the second family are there only where machines have addresses of it.
    assert!(!of("m1").contains("ip6 saddr"));
    let dual = example("dual-stack");
    assert!(firewall::nftables(&dual, &dual.machines[0]).contains("ip6 saddr"));
}

#[test]
fn pods_that_leave_with_their_node_s_address_reach_kubelets_and_api_servers() {
    let spec = example("lb-pair");
    let of = |name: &str| firewall::nftables(&spec, spec.machine(name).unwrap());
    let worker = spec.machine("w1").unwrap().address.to_string();
    for (machine, port) in [("m1", 6443), ("m1", 10250), ("w2", 10250)] {
        let rule = format!("tcp dport {port} accept");
        let lets = |line: &str| line.contains(&rule) && line.contains(&worker);
        assert!(of(machine).lines().any(lets), "{machine} {port}: {}", of(machine));
    }
}

#[test]
fn machines_with_several_roles_need_the_larger_of_both() {
    let spec = example("minimal");
    let control_plane = sizing::of(&spec, spec.control_planes()[0]);
    assert_eq!((control_plane.least.cpus, control_plane.least.memory_mb), (2, 1_700));
    let mut both = spec.control_planes()[0].clone();
    both.roles.insert(quorate_spec::Role::Worker);
    assert_eq!(sizing::of(&spec, &both).advised.disk_mb, 20_000);
    assert_eq!(sizing::of(&spec, &both).advised.memory_mb, 3_750);
}

fn example(name: &str) -> Spec {
    let path = format!("{}/../../examples/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    quorate_spec::load(&text, name)
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, &text, false)))
        .0
}
