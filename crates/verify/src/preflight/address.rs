//! The machine has the address that the cluster file gives it.

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};

pub(super) fn check(_: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let missing: Vec<String> = machine
        .all_addresses()
        .into_iter()
        .filter(|address| host.network.interface_of(*address).is_none())
        .map(|address| address.to_string())
        .collect();
    let found = if missing.is_empty() {
        format!("has {}", machine.address)
    } else {
        format!("does not have its address {}", missing.join(", "))
    };
    list.require(
        "address",
        &machine.name,
        missing.is_empty(),
        found,
        "`address` must be one of the machine's own; use ssh.address for another way to log in",
    );
}
