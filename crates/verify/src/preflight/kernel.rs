//! The kernel has what nodes cannot do without: features, and options of its configuration where that can be read.

use quorate_facts::{CgroupVersion, Feature, HostFacts};
use quorate_plan::needs;
use quorate_spec::{Cni, FlannelBackend, Machine};

use super::{Input, List};

const HINT: &str = "install the distribution's full kernel";
/// The oldest that Kubernetes is tested on (k8s.io/system-validators 1.12, `DefaultSysSpec`): nobody finds out what breaks
/// on older ones.
const TESTED: (u32, u32) = (5, 4);
/// From here on cgroup v2 does for containers (kubernetes.io, "About cgroup v2").
const TESTED_V2: (u32, u32) = (5, 8);

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    if !machine.is_node() {
        return;
    }
    let (name, kernel) = (machine.name.as_str(), &host.kernel);
    let absent = |feature: &str| host.kernel_features.get(feature) == Some(&Feature::Absent);
    let mut lacking: Vec<&str> = features(input).into_iter().filter(|name| absent(name)).collect();
    let options = needs::kernel_options(input.spec, host);
    let options = options.iter().filter(|any| any.iter().all(|option| absent(option)));
    lacking.extend(options.filter_map(|any| any.first()));
    if !lacking.is_empty() {
        let found = format!("{kernel} lacks {}", lacking.join(", "));
        return list.require("kernel", name, false, found, HINT);
    }
    let ((major, minor), why) = match host.cgroup.version {
        CgroupVersion::V1 => (TESTED, "the oldest that Kubernetes is tested on"),
        CgroupVersion::V2 => (TESTED_V2, "the oldest whose cgroup v2 Kubernetes counts on"),
    };
    if !needs::kernel_at_least(kernel, major, minor) {
        let found = format!("{kernel} is older than {major}.{minor}, {why}");
        return list.warn("kernel", name, found, "upgrade the distribution");
    }
    let wished = needs::kernel_options_wished()
        .iter()
        .filter(|(option, _)| absent(option));
    let mut without: Vec<&str> = wished.map(|(_, purpose)| *purpose).collect();
    without.dedup();
    if !without.is_empty() {
        let found = format!("{kernel} cannot do {}", without.join(", "));
        return list.warn("kernel", name, found, HINT);
    }
    list.note("kernel", name, Ok(kernel.clone()));
}

fn features(input: &Input<'_>) -> Vec<&'static str> {
    let mut needed = vec!["overlay", "nf_tables"];
    if let Cni::Flannel(flannel) = &input.spec.network.cni {
        // Without it packets between Pods of one bridge never see the rules of Services.
        needed.push("br_netfilter");
        if flannel.backend == FlannelBackend::Vxlan {
            needed.push("vxlan");
        }
    }
    needed
}
