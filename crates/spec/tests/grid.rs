//! Every combination of bootstrap, endpoint, access, balancer, agent and etcd is either a `Spec` or is refused with the
//! reason and the fix; and which is which.

use std::fmt::Write as _;

use quorate_spec::{Severity, load};

fn file(bootstrap: &str, on: &str, access: &str, balancer: &str, run_as: &str, etcd: &str) -> String {
    let vip = if on == "none" {
        String::new()
    } else {
        ", vip: 10.77.0.100".to_owned()
    };
    let mut text = format!(
        "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  kubernetes: {{bootstrap: {bootstrap}}}\n  endpoint: {{on: {on}{vip}}}\n  \
         access: {access}\n  balancer: {balancer}\n  agent: {{as: {run_as}}}\n  etcd: {{topology: {etcd}}}\n  machines:\n"
    );
    let mut machines = |names: &str, from: usize, count: usize, role: &str| {
        for i in 0..count {
            let _ = writeln!(
                text,
                "    - {{name: {names}{i}, address: 10.77.0.{}, roles: [{role}]}}",
                from + i
            );
        }
    };
    machines("m", 11, 3, "control-plane");
    machines("w", 21, 2, "worker");
    if on == "load-balancers" {
        machines("lb", 31, 2, "load-balancer");
    }
    if etcd == "external" {
        machines("e", 41, 3, "etcd");
    }
    text
}

#[test]
fn every_combination_works_or_is_refused_with_a_reason() {
    let mut table = String::new();
    let (mut good, mut bad) = (0, 0);
    for bootstrap in ["binary", "kubeadm"] {
        for on in ["control-planes", "load-balancers", "none"] {
            for access in ["endpoint", "proxy", "ipvs", "ebpf"] {
                for balancer in ["quorate", "haproxy"] {
                    for run_as in ["unit", "static-pod"] {
                        for etcd in ["stacked", "external"] {
                            let verdict = match load(&file(bootstrap, on, access, balancer, run_as, etcd), "grid.yaml")
                            {
                                Ok((_, findings)) => {
                                    good += 1;
                                    let warned = findings.iter().map(|finding| finding.code);
                                    ["ok"].into_iter().chain(warned).collect::<Vec<_>>().join(", ")
                                }
                                Err(findings) => {
                                    bad += 1;
                                    let errors: Vec<_> =
                                        findings.iter().filter(|f| f.severity == Severity::Error).collect();
                                    assert!(errors.iter().all(|f| f.reason.is_some() && f.fix.is_some()));
                                    errors.iter().map(|f| f.code).collect::<Vec<_>>().join(" ")
                                }
                            };
                            let _ = writeln!(
                                table,
                                "{bootstrap:8}{on:16}{access:10}{balancer:9}{run_as:12}{etcd:10}{verdict}"
                            );
                        }
                    }
                }
            }
        }
    }
    let _ = writeln!(table, "{good} work, {bad} are refused");
    insta::assert_snapshot!(table);
}
