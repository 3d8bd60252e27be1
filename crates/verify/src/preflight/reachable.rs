//! The machine answers, and can say what it is like.

use quorate_facts::MachineFacts;
use quorate_spec::Machine;

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, machine: &Machine, list: &mut List) {
    match input.facts.machines.get(&machine.name) {
        Some(MachineFacts::Found(_)) => list.note("reachable", &machine.name, Ok("answers".into())),
        Some(MachineFacts::Unreachable { reason }) => list.note(
            "reachable",
            &machine.name,
            fail(
                reason,
                "check the address, sshd and your ssh_config; `maintenance: true` leaves it out",
            ),
        ),
        // Unlike one that is away it is on, and may run part of the cluster: nothing can be planned for it.
        Some(MachineFacts::Silent { reason }) => list.note(
            "facts",
            &machine.name,
            fail(
                format!("was reached and gave no facts: {reason}"),
                "look at its disk, memory and load over ssh, then run this again; `maintenance: true` leaves it out",
            ),
        ),
        None => {}
    }
}
