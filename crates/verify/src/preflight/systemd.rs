//! Booted by systemd, whose units Quorate's programs are.

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};

pub(super) fn check(_: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let found = host.systemd.as_ref().map_or("not booted by systemd".into(), |systemd| {
        format!("systemd {}", systemd.version)
    });
    list.require(
        "systemd",
        &machine.name,
        host.systemd.is_some(),
        found,
        "Quorate runs programs as systemd units; use a machine that boots with systemd",
    );
}
