//! The controllers a kubelet needs.

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};

pub(super) fn check(_: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    if !machine.is_node() {
        return;
    }
    let missing: Vec<&str> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|controller| !host.cgroup.controllers.iter().any(|found| found == controller))
        .collect();
    let found = if missing.is_empty() {
        format!("{:?}", host.cgroup.version).to_lowercase()
    } else {
        format!("without {}", missing.join(", "))
    };
    list.require(
        "cgroups",
        &machine.name,
        missing.is_empty(),
        found,
        "enable the controllers on the kernel's command line (cgroup_enable=memory)",
    );
}
