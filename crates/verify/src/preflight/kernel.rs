//! The kernel has what nodes cannot do without.

use quorate_facts::{Feature, HostFacts};
use quorate_spec::{Cni, FlannelBackend, Machine};

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    if !machine.is_node() {
        return;
    }
    let mut needed = vec!["overlay", "nf_tables"];
    if let Cni::Flannel(flannel) = &input.spec.network.cni
        && flannel.backend == FlannelBackend::Vxlan
    {
        needed.push("vxlan");
    }
    needed.retain(|feature| host.kernel_features.get(*feature) == Some(&Feature::Absent));
    let found = if needed.is_empty() {
        host.kernel.clone()
    } else {
        format!("{} lacks {}", host.kernel, needed.join(", "))
    };
    list.require(
        "kernel",
        &machine.name,
        needed.is_empty(),
        found,
        "install the distribution's full kernel",
    );
}
