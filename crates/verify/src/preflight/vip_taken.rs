//! Nobody answers for the VIP on its link, but for the cluster itself.

use std::collections::BTreeSet;

use quorate_facts::MachineFacts;

use super::{Input, List, deployed};
use crate::fail;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let Some(measured) = input.measured else { return };
    for vip in input.vips() {
        let seen: Vec<_> = vip
            .holders
            .iter()
            .filter_map(|holder| measured.links.get(&holder.name))
            .collect();
        if seen.is_empty() {
            continue;
        }
        let answers: BTreeSet<&str> = seen
            .iter()
            .filter_map(|link| link.owners.get(&vip.address))
            .map(String::as_str)
            .collect();
        let strangers: Vec<String> = answers
            .iter()
            .filter_map(|mac| match owner(input, mac) {
                Some((name, ours)) => {
                    let holder = vip.holders.iter().any(|holder| holder.name == name);
                    (!(holder && ours)).then(|| format!("{mac}, which is {name}"))
                }
                None => Some(format!("{mac}, which is no machine of this cluster")),
            })
            .collect();
        let target = vip.address.to_string();
        let finding = if !strangers.is_empty() {
            fail(
                format!("answers already: {}", strangers.join("; ")),
                format!("choose another {}.vip, or take the address off that host", vip.field),
            )
        } else if answers.is_empty() {
            Ok("nobody answers".into())
        } else {
            Ok("held by this cluster".into())
        };
        list.note("vip-in-use", &target, finding);
    }
}

/// The machine with this hardware address, and whether Quorate's programs are on it.
fn owner<'a>(input: &Input<'a>, mac: &str) -> Option<(&'a str, bool)> {
    input.facts.machines.iter().find_map(|(name, machine)| match machine {
        MachineFacts::Found(host) if host.network.links.iter().any(|link| link.mac == mac) => {
            Some((name.as_str(), deployed(host)))
        }
        _ => None,
    })
}
