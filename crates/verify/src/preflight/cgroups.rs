//! The controllers a kubelet needs.

use quorate_facts::{CgroupVersion, HostFacts};
use quorate_spec::Machine;

use super::{Input, List};

/// What kubelet (pkg/kubelet/cm, `validateSystemRequirements`), runc and kubeadm demand of each version.
const V1: [&str; 7] = ["cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"];
const V2: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

pub(super) fn check(_: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    if !machine.is_node() {
        return;
    }
    let name = machine.name.as_str();
    let needed: &[&str] = match host.cgroup.version {
        CgroupVersion::V1 => &V1,
        CgroupVersion::V2 => &V2,
    };
    let missing: Vec<&str> = needed
        .iter()
        .copied()
        .filter(|controller| !host.cgroup.controllers.iter().any(|found| found == controller))
        .collect();
    if !missing.is_empty() {
        let found = format!("without {}", missing.join(", "));
        let hint = "enable the controllers on the kernel's command line (cgroup_enable=memory)";
        return list.require("cgroups", name, false, found, hint);
    }
    match host.cgroup.version {
        // A container's version is its host's business.
        CgroupVersion::V1 if host.container.is_none() => list.warn(
            "cgroups",
            name,
            "v1, which Kubernetes runs on for now only because the kubelet is told to (KEP-5573)",
            "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line",
        ),
        CgroupVersion::V1 => list.note("cgroups", name, Ok("v1".into())),
        CgroupVersion::V2 => list.note("cgroups", name, Ok("v2".into())),
    }
}
