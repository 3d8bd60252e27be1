//! CPUs, memory and disk for the machine's roles: too little is refused, little is said.

use quorate_facts::{HostFacts, MountFacts};
use quorate_plan::sizing;
use quorate_spec::{Machine, Spec};

use super::{Input, List};

/// Per cent of the images' file system that a kubelet wants free (`imagefs.available`, its default eviction threshold).
const KUBELET_WANTS: u64 = 15;
const ADVICE: &str = "`quorate plan --capacity` lists what each machine should have";

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let name = machine.name.as_str();
    let sizing::Sizing { least, advised } = sizing::of(input.spec, machine);
    let memory = host.memory_bytes / 1_000_000;
    amount(list, "memory", name, memory, least.memory_mb, advised.memory_mb, " MB");
    amount(
        list,
        "cpus",
        name,
        host.cpus.into(),
        least.cpus.into(),
        advised.cpus.into(),
        "",
    );
    if let Some(mount) = holder(host) {
        let (free, total) = (mount.free_bytes / 1_000_000, mount.total_bytes / 1_000_000);
        let found = format!("{free} MB free on {}", mount.target);
        if free < least.disk_mb {
            let hint = format!("free at least {} MB", least.disk_mb);
            list.require("disk", name, false, found, &hint);
        } else if machine.is_node() && !has_limits_of_its_own(input.spec) && free * 100 < total * KUBELET_WANTS {
            let hint = format!(
                "free more than {KUBELET_WANTS} % of it: below that kubelets take no Pods and evict those they have"
            );
            list.require("disk", name, false, format!("{found}, of {total}"), &hint);
        } else if total < advised.disk_mb {
            let found = format!("{total} MB on {}, {} advised", mount.target, advised.disk_mb);
            list.warn("disk", name, found, ADVICE);
        } else {
            list.note("disk", name, Ok(found));
        }
    }
}

/// Whether the cluster file says itself when kubelets begin to evict.
fn has_limits_of_its_own(spec: &Spec) -> bool {
    let flags = &spec.kubernetes.kubelet.extra_args;
    flags.keys().any(|flag| flag.trim_start_matches('-') == "eviction-hard")
}

fn amount(list: &mut List, what: &str, name: &str, found: u64, least: u64, advised: u64, unit: &str) {
    if found < least {
        let hint = format!("its roles need at least {least}{unit}");
        list.require(what, name, false, format!("{found}{unit}"), &hint);
    } else if found < advised {
        list.warn(what, name, format!("{found}{unit}, {advised}{unit} advised"), ADVICE);
    } else {
        list.note(what, name, Ok(format!("{found}{unit}")));
    }
}

/// The file system that holds `/var/lib`.
fn holder(host: &HostFacts) -> Option<&MountFacts> {
    host.mounts
        .iter()
        .filter(|mount| "/var/lib/quorate".starts_with(mount.target.trim_end_matches('/')))
        .max_by_key(|mount| mount.target.len())
        .filter(|mount| mount.total_bytes > 0)
}
