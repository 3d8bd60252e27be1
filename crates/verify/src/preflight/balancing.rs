//! What the chosen access wants of the kernel, and the chosen balancer of the distribution: not half-way into a deployment.

use quorate_facts::{Feature, HostFacts};
use quorate_spec::{Access, Machine};

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let (mode, features): (&str, &[&str]) = match input.spec.access {
        Access::Ipvs { .. } => ("ipvs", &["ip_vs"]),
        Access::Ebpf { .. } => ("ebpf", &["bpf", "cgroup_bpf"]),
        _ => ("", &[]),
    };
    if machine.is_node() && !features.is_empty() {
        let absent = |feature: &&&str| host.kernel_features.get(**feature) == Some(&Feature::Absent);
        let lacking: Vec<&str> = features.iter().filter(absent).copied().collect();
        let found = if lacking.is_empty() {
            format!("the kernel {} can do `access: {mode}`", host.kernel)
        } else {
            format!(
                "the kernel {} lacks {} for `access: {mode}`",
                host.kernel,
                lacking.join(" and ")
            )
        };
        list.require(
            "access-kernel",
            &machine.name,
            lacking.is_empty(),
            found,
            "write `access: proxy`, which needs nothing of the kernel, or install the distribution's full kernel",
        );
    }
    let needed = quorate_plan::programs_needed(input.spec, machine);
    if !needed.is_empty() {
        let there = |program: &&&str| matches!(host.programs.get(**program), Some(Some(_)));
        let missing: Vec<&str> = needed.iter().filter(|program| !there(program)).copied().collect();
        let found = if missing.is_empty() {
            format!("{} installed", needed.join(" and "))
        } else {
            format!("without {}", missing.join(" and "))
        };
        list.require(
            "balancer",
            &machine.name,
            missing.is_empty(),
            found,
            "`balancer: haproxy` runs the distribution's programs: apt install haproxy keepalived / dnf install haproxy keepalived; \
             or write `balancer: quorate`, which needs none",
        );
    }
}
