//! Every combination of bootstrap, endpoint, access, balancer, agent and etcd is planned and keeps the linter's rules, or is
//! refused with a reason by the cluster file's checks. Nothing is half of each.

mod fabricated;

use std::fmt::Write as _;

use quorate_plan::{lint::lint, plan, reset};

use crate::fabricated::fresh;

const BOOTSTRAPS: [&str; 2] = ["binary", "kubeadm"];
const ENDPOINTS: [&str; 3] = ["control-planes", "load-balancers", "none"];
const ACCESSES: [&str; 4] = ["endpoint", "proxy", "ipvs", "ebpf"];
const BALANCERS: [&str; 2] = ["quorate", "haproxy"];
const RUN_AS: [&str; 2] = ["unit", "static-pod"];
const ETCDS: [&str; 3] = ["stacked", "external", "external-vip"];

#[test]
fn every_combination_plans_by_the_rules_or_is_refused_with_a_reason() {
    let (mut planned, mut refused) = (0, 0);
    for bootstrap in BOOTSTRAPS {
        for on in ENDPOINTS {
            for access in ACCESSES {
                for balancer in BALANCERS {
                    for run_as in RUN_AS {
                        for etcd in ETCDS {
                            let what = format!("{bootstrap} {on} {access} {balancer} {run_as} {etcd}");
                            if plans(&file(bootstrap, on, access, balancer, run_as, etcd), &what) {
                                planned += 1;
                            } else {
                                refused += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    // Which is which is a snapshot of crates/spec.
    assert_eq!(planned + refused, 288);
    assert!(planned >= 60, "{planned} planned, {refused} refused");
}

fn plans(text: &str, what: &str) -> bool {
    let spec = match quorate_spec::load(text, "grid.yaml") {
        Ok((spec, _)) => spec,
        Err(findings) => {
            let errors: Vec<_> = findings
                .iter()
                .filter(|finding| finding.severity == quorate_spec::Severity::Error)
                .collect();
            assert!(!errors.is_empty(), "{what}: refused without a reason");
            for error in errors {
                assert!(error.reason.is_some() && error.fix.is_some(), "{what}: {error:?}");
            }
            return false;
        }
    };
    let facts = fresh(&spec);
    let made = plan(&spec, &facts);
    assert_eq!(lint(&made), [], "{what}");
    assert!(made.notes.is_empty(), "{what}: {:?}", made.notes);
    assert!(!made.is_empty(), "{what}");
    assert_eq!(lint(&reset(&spec, &facts)), [], "{what}");
    true
}

fn file(bootstrap: &str, on: &str, access: &str, balancer: &str, run_as: &str, etcd: &str) -> String {
    let vip = if on == "none" { "" } else { ", vip: 10.77.0.100" };
    let (topology, etcd_vip) = match etcd {
        "external-vip" => ("external", ", vip: 10.77.0.101, vrid: 52"),
        other => (other, ""),
    };
    let mut text = format!(
        "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  kubernetes: {{bootstrap: {bootstrap}}}\n  \
         endpoint: {{on: {on}{vip}}}\n  access: {access}\n  balancer: {balancer}\n  agent: {{as: {run_as}}}\n  \
         etcd: {{topology: {topology}{etcd_vip}}}\n  machines:\n"
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
    if topology == "external" {
        machines("e", 41, 3, "etcd");
    }
    text
}
