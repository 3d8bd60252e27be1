//! Commands run as root.

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};

pub(super) fn check(_: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    list.require(
        "root",
        &machine.name,
        host.privilege.uid == 0,
        format!("works as user id {}", host.privilege.uid),
        "log in as root, or as a user with sudo (--ask-sudo-password)",
    );
}
