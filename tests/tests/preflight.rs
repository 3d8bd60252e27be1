//! What is wrong between machines is found before anything is changed: on real ones, each fault made on purpose.

#![expect(clippy::print_stderr, reason = "stories say what they skip and what they measured")]

use std::time::Instant;

use quorate_tests::{Lab, cannot_run, failed};
use serde_json::Value;

#[test]
fn faults_between_machines_are_found_and_nothing_is_changed() {
    if let Some(reason) = cannot_run() {
        eprintln!("skipped: {reason}");
        return;
    }
    let lab = Lab::up("preflight", 5);
    let started = Instant::now();
    assert_eq!(check(&lab), (Some(0), Vec::new()), "healthy machines raise something");
    eprintln!(
        "check of five bare machines, the program sent there: {:.2?}",
        started.elapsed()
    );
    let started = Instant::now();
    check(&lab);
    eprintln!("check of five bare machines: {:.2?}", started.elapsed());

    // m5 becomes a stranger that has the VIP and advertises the VRID.
    let file = lab.cluster_file();
    let text = std::fs::read_to_string(&file).expect("cluster file");
    let without: String = text
        .lines()
        .filter(|line| !line.contains("name: m5"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(&file, without).expect("write");
    lab.ssh("m5", &["ip", "addr", "add", "10.77.0.100/24", "dev", "eth0"]);
    lab.ssh(
        "m5",
        &["sh", "-c", "'nohup /var/lib/quorate/bin/*/quorate drill advertise --vrid 51 --vip 10.77.0.100 --to 224.0.0.18 --for 60 >/dev/null 2>&1 &'"],
    );
    lab.ssh(
        "m4",
        &["sh", "-c", "'nft add table inet t; nft add chain inet t c \"{ type filter hook input priority 0; }\"; nft add rule inet t c udp dport 8472 drop; nft add rule inet t c tcp dport 10250 reject with tcp reset; ip link set eth0 mtu 1300'"],
    );
    // The usual filter: answers come in, and VRRP is not named.
    lab.ssh(
        "m2",
        &["sh", "-c", "'nft add table inet t; nft add chain inet t c \"{ type filter hook input priority 0; }\"; nft add rule inet t c ct state established,related accept; nft add rule inet t c meta l4proto 112 drop'"],
    );
    let (code, found) = check(&lab);
    assert_eq!(code, Some(3));
    let has = |what: &str, detail: &str| found.iter().any(|line| line.contains(what) && line.contains(detail));
    assert!(has("vip-in-use", "no machine of this cluster"), "{found:#?}");
    assert!(has("vrid", "advertised already by 10.77.0.15"), "{found:#?}");
    assert!(
        has("reach", "tcp 10250 (kubelet: logs, exec, port-forward): refused"),
        "{found:#?}"
    );
    assert!(has("reach", "udp 8472 (Pod network (vxlan)): no answer"), "{found:#?}");
    assert!(has("path-mtu", "packets of 1500 bytes do not arrive"), "{found:#?}");
    assert!(has("vrrp", "VRRP does not arrive from m1 m3"), "{found:#?}");
    assert_eq!(found.len(), 5, "{found:#?}");

    let apply = lab.cluster("apply", &["--yes"]);
    assert_eq!(
        apply.status.code(),
        Some(3),
        "{}",
        String::from_utf8_lossy(&apply.stderr)
    );
    let there = lab.ssh("m1", &["sh", "-c", "'test -e /opt/quorate && echo there || echo bare'"]);
    assert_eq!(there.trim(), "bare");
}

/// Exit code, and what does not hold.
fn check(lab: &Lab) -> (Option<i32>, Vec<String>) {
    let output = lab.cluster("check", &["-o", "json"]);
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("check printed {}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), failed(&report))
}
