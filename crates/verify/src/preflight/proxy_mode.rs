//! kube-proxy can run in the mode it is to run in.

use quorate_facts::HostFacts;
use quorate_plan::needs;
use quorate_spec::Machine;

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    if !machine.is_node() {
        return;
    }
    let mode = needs::proxy_mode(input.spec, host);
    let finding = match needs::proxy_mode_obstacle(input.spec, host) {
        None => Ok(mode.to_owned()),
        Some(obstacle) => fail(
            format!("`{mode}` cannot work: {obstacle}"),
            "write `kubernetes.proxyMode: auto`, which takes what each machine can do, or upgrade the distribution",
        ),
    };
    list.note("proxy-mode", &machine.name, finding);
}
