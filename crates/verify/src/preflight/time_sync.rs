//! Some service keeps the clock.

use quorate_facts::HostFacts;
use quorate_spec::{Machine, TimeSync};

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    if input.spec.host.time_sync != TimeSync::Check || host.container.is_some() {
        return;
    }
    let synchronized = host.clock.synchronized.unwrap_or(true) || host.clock.service.is_some();
    list.require(
        "time-sync",
        &machine.name,
        synchronized,
        if synchronized {
            "kept by a time service"
        } else {
            "nothing keeps the clock"
        },
        "install chrony, or enable systemd-timesyncd; `host.timeSync: ignore` if you know better",
    );
}
