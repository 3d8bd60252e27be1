//! Swap is off, or will be; worth saying beforehand.

use quorate_facts::HostFacts;
use quorate_spec::{Machine, Swap};

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    if !machine.is_node() || input.spec.host.swap != Swap::Off || host.container.is_some() {
        return;
    }
    let paths: Vec<&str> = host.swaps.iter().map(|swap| swap.path.as_str()).collect();
    let found = if paths.is_empty() {
        "off".to_owned()
    } else {
        format!("on: {}; apply turns it off", paths.join(", "))
    };
    list.note("swap", &machine.name, Ok(found));
}
