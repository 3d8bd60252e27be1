//! The files of examples/ are read without a finding, become the `Spec` of the snapshot, and survive being written.

#![allow(clippy::disallowed_methods, reason = "tests read their files; the library does not")]

use std::path::Path;

use quorate_spec::{Spec, load, render};

const EXAMPLES: &[&str] = &[
    "minimal",
    "lb-pair",
    "binary-proxy",
    "ipvs",
    "one-click",
    "colocated",
    "dual-stack",
];

fn example(name: &str) -> Spec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples")
        .join(name)
        .with_extension("yaml");
    let text = std::fs::read_to_string(path).unwrap();
    let (spec, findings) = load(&text, name).unwrap_or_else(|findings| panic!("{}", render(&findings, &text, false)));
    assert!(findings.is_empty(), "{}", render(&findings, &text, false));
    spec
}

#[test]
fn every_example_is_a_spec() {
    for name in EXAMPLES {
        let spec = example(name);
        let json = serde_json::to_string_pretty(&spec).unwrap();
        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec, "{name}");
        insta::with_settings!({snapshot_path => "examples", prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!(*name, json);
        });
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples");
    let files = std::fs::read_dir(folder)
        .unwrap()
        .filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "yaml"));
    assert_eq!(files.count(), EXAMPLES.len(), "an example is not in this test's list");
}

#[test]
fn what_follows_from_an_example() {
    let spec = example("one-click");
    let names =
        |machines: Vec<&quorate_spec::Machine>| machines.iter().map(|m| m.name.clone()).collect::<Vec<_>>().join(" ");
    assert_eq!(names(spec.control_planes()), "m1 m2 m3");
    assert_eq!(names(spec.etcd_members()), "e1 e2 e3");
    assert_eq!(names(spec.vip_holders()), "lb1 lb2");
    assert_eq!(names(spec.nodes()), "m1 m2 m3 w1 w2");
    assert_eq!(spec.quorum().tolerates, 1);
    let capacity = spec.capacity();
    assert_eq!(
        (
            capacity.nodes,
            capacity.pods_per_node,
            capacity.services,
            capacity.node_ports
        ),
        (1024, 62, 1022, 2768)
    );
    assert_eq!(
        spec.endpoint_url_for(spec.machine("w1").unwrap()),
        "https://10.77.0.100:8443"
    );
    assert_eq!(
        spec.endpoint_url_for(spec.machine("m2").unwrap()),
        "https://10.77.0.12:6443"
    );
    assert_eq!(
        spec.machine("m1").unwrap().taints[0].to_string(),
        "node-role.kubernetes.io/control-plane:NoSchedule"
    );

    let spec = example("ipvs");
    assert_eq!(
        spec.endpoint_url_for(spec.machine("w1").unwrap()),
        "https://apiserver.cluster.local:6443"
    );
    let sans = spec.api_server_sans();
    assert!(sans.dns.contains("apiserver.cluster.local") && sans.dns.contains("kubernetes.default.svc.cluster.local"));
    for ip in ["10.103.97.2", "10.96.0.1", "127.0.0.1", "10.77.0.11", "10.77.0.13"] {
        assert!(sans.ips.contains(&ip.parse().unwrap()), "{ip}");
    }
    assert_eq!(
        spec.dns.cluster_ips,
        ["10.96.0.10".parse::<std::net::IpAddr>().unwrap()]
    );

    let spec = example("minimal");
    assert_eq!(
        spec.endpoint_url_for(spec.machine("m4").unwrap()),
        "https://127.0.0.1:7443"
    );
    assert_eq!(spec.admin_url(), "https://10.77.0.11:6443");

    let spec = example("dual-stack");
    assert_eq!(
        spec.api_service_ips()
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.96.0.1", "fd00:10:96::1"]
    );
    assert_eq!(spec.capacity().nodes, 256);
}
