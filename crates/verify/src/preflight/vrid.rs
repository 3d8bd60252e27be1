//! Nobody else advertises the VRID on the holders' link: two clusters with one id fight for both of their VIPs. Heard are
//! multicast advertisements, and unicast ones sent to our machines.

use std::collections::BTreeSet;

use quorate_facts::Router;

use super::{Input, List, deployed, machine_at};
use crate::fail;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let Some(measured) = input.measured else { return };
    for vip in input.vips() {
        let links: Vec<_> = vip
            .holders
            .iter()
            .filter_map(|holder| measured.links.get(&holder.name))
            .collect();
        if links.is_empty() {
            continue;
        }
        let heard: BTreeSet<&Router> = links.iter().flat_map(|link| &link.routers).collect();
        let foreign: Vec<&Router> = heard
            .into_iter()
            .filter(|router| !machine_at(input.facts, router.source).is_some_and(|(_, host)| deployed(host)))
            .collect();
        let taken: BTreeSet<u8> = foreign.iter().map(|router| router.vrid).collect();
        let clash: Vec<String> = foreign
            .iter()
            .filter(|router| router.vrid == vip.vrid)
            .map(|router| {
                format!(
                    "{} (VRRPv{}, priority {})",
                    router.source, router.version, router.priority
                )
            })
            .collect();
        let ours: Vec<u8> = input.vips().iter().map(|vip| vip.vrid).collect();
        let free = (vip.vrid..=255)
            .chain(1..vip.vrid)
            .find(|id| !taken.contains(id) && !ours.contains(id));
        let finding = if clash.is_empty() {
            Ok(match taken.len() {
                0 => "nobody advertises".to_owned(),
                _ => format!("free; taken on this link: {taken:?}"),
            })
        } else {
            fail(
                format!("advertised already by {}", clash.join(", ")),
                format!(
                    "set {}.vrid to one that is free here, such as {}",
                    vip.field,
                    free.unwrap_or(1)
                ),
            )
        };
        list.note("vrid", &vip.vrid.to_string(), finding);
    }
}
