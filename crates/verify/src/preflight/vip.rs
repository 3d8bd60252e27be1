//! The VIP lies in a subnet of its holders, and no machine has it for its own.

use super::{Input, List, deployed};
use crate::fail;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    for vip in input.vips() {
        for (machine, host) in input.hosts() {
            let holder = vip.holders.iter().any(|holder| holder.name == machine.name);
            // On a holder that is deployed it is ours.
            if host.network.interface_of(vip.address).is_some() && !(holder && deployed(host)) {
                let found = format!("has the VIP {} as an address of its own", vip.address);
                list.note(
                    "vip",
                    &machine.name,
                    fail(found, "choose another VIP, or take the address off it"),
                );
            }
        }
        for holder in &vip.holders {
            let Some(host) = input.facts.host(&holder.name) else {
                continue;
            };
            let near = host.network.interface_towards(vip.address);
            let found = near.map_or_else(
                || format!("no interface with a subnet that holds {}", vip.address),
                |interface| format!("{} is reachable on {interface}", vip.address),
            );
            list.require(
                "vip-subnet",
                &holder.name,
                near.is_some(),
                found,
                "the VIP must lie in a subnet its holders share",
            );
        }
    }
}
