//! VRRP passes between the holders of a VIP. Filters that let TCP through often drop its protocol, and then every holder
//! takes the VIP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use futures_util::future::join_all;
use quorate_facts::{Advertised, HostFacts, Measured};
use quorate_machine::MachineRef;
use quorate_machine::proto::{Probe, Probed};
use quorate_spec::Machine;

use super::measure::{ask, vip_interface};
use super::reach::to_be_opened;
use super::{Input, List, deployed};
use crate::fail;

/// Whatever is on its way arrives long before.
const HEARD_MS: u64 = 300;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let Some(measured) = input.measured else { return };
    let mut by_target: BTreeMap<&str, Vec<&Advertised>> = BTreeMap::new();
    for one in &measured.vrrp {
        by_target.entry(&one.to).or_default().push(one);
    }
    for (target, tried) in by_target {
        let all: BTreeSet<&str> = tried.iter().map(|one| one.from.as_str()).collect();
        let unheard: BTreeSet<&str> = tried
            .iter()
            .filter(|one| !one.heard)
            .map(|one| one.from.as_str())
            .collect();
        let from: Vec<&str> = unheard.into_iter().collect();
        let from = from.join(" ");
        if from.is_empty() {
            let all: Vec<&str> = all.into_iter().collect();
            list.note("vrrp", target, Ok(format!("heard from {}", all.join(" "))));
        } else if to_be_opened(input, target) {
            let found = format!("closed by its firewall, which apply opens: VRRP from {from}");
            list.warn(
                "vrrp",
                target,
                found,
                "run `quorate status` after apply: one machine must hold the VIP",
            );
        } else {
            let found = format!("VRRP does not arrive from {from}: each would take the VIP");
            let hint = format!(
                "let IP protocol 112 in on {target} (that answers may come in is not enough): `quorate plan --firewall` lists \
                 what each machine needs"
            );
            list.note("vrrp", target, fail(found, hint));
        }
    }
}

/// A holder on which no agent runs yet; where one does, the check `vip` tells whether they hear each other.
struct Holder<'a> {
    machine: &'a Machine,
    connection: &'a MachineRef,
    interface: String,
    /// Its own address and another holder's, with that one's name.
    peers: BTreeSet<(IpAddr, IpAddr, &'a str)>,
}

/// All listen, then all send, then all tell: nobody's turn depends on how soon another had its own.
pub(super) async fn measure(input: &Input<'_>, machines: &[(&Machine, &HostFacts, &MachineRef)]) -> Measured {
    let mut measured = Measured::default();
    let holders = holders(input, machines);
    let opened = join_all(holders.iter().map(|holder| {
        let addresses: BTreeSet<IpAddr> = holder.peers.iter().map(|(own, ..)| *own).collect();
        let addresses = addresses.into_iter().collect();
        ask(holder.connection, Probe::VrrpListen { addresses })
    }))
    .await;
    let mut listening = BTreeSet::new();
    for (holder, opened) in holders.iter().zip(opened) {
        match opened {
            Ok(_) => drop(listening.insert(holder.machine.name.as_str())),
            Err(reason) => measured.problems.push((holder.machine.name.clone(), reason)),
        }
    }
    let sent = join_all(holders.iter().map(|holder| {
        let interface = holder.interface.clone();
        let packets = holder.peers.iter().map(|(own, peer, _)| (*own, *peer)).collect();
        ask(holder.connection, Probe::VrrpSend { interface, packets })
    }))
    .await;
    // From and to, that were sent in fact.
    let mut on_the_way = BTreeSet::new();
    for (holder, sent) in holders.iter().zip(sent) {
        let name = &holder.machine.name;
        match sent {
            Ok(Probed::Sent(sent)) => {
                for ((own, peer, _), sent) in holder.peers.iter().zip(sent) {
                    if sent {
                        on_the_way.insert((*own, *peer));
                    } else {
                        let reason = format!(
                            "whether VRRP passes to {peer}: nobody answers for that address on {}",
                            holder.interface
                        );
                        measured.problems.push((name.clone(), reason));
                    }
                }
            }
            Ok(_) => {}
            Err(reason) => measured.problems.push((name.clone(), reason)),
        }
    }
    let listeners = holders
        .iter()
        .filter(|holder| listening.contains(holder.machine.name.as_str()));
    let told = join_all(listeners.map(|holder| {
        let expected: Vec<_> = holder
            .peers
            .iter()
            .filter(|(own, peer, _)| on_the_way.contains(&(*peer, *own)))
            .collect();
        let packets = expected.iter().map(|(own, peer, _)| (*peer, *own)).collect();
        let probe = Probe::VrrpHeard {
            packets,
            for_ms: HEARD_MS,
        };
        async move { (holder, expected, ask(holder.connection, probe).await) }
    }))
    .await;
    for (holder, expected, heard) in told {
        let to = &holder.machine.name;
        match heard {
            Ok(Probed::Heard(heard)) => {
                let heard = expected.iter().zip(heard).map(|((_, _, from), heard)| Advertised {
                    from: (*from).to_owned(),
                    to: to.clone(),
                    heard,
                });
                measured.vrrp.extend(heard);
            }
            Ok(_) => {}
            Err(reason) => measured.problems.push((to.clone(), reason)),
        }
    }
    measured
}

fn holders<'a>(input: &Input<'a>, machines: &[(&'a Machine, &HostFacts, &'a MachineRef)]) -> Vec<Holder<'a>> {
    let bare = |name: &str| {
        machines
            .iter()
            .find(|(machine, host, _)| machine.name == name && !deployed(host))
    };
    let mut found: BTreeMap<&str, Holder<'a>> = BTreeMap::new();
    for vip in input.vips() {
        let of_family = |machine: &Machine| {
            let mut all = machine.all_addresses().into_iter();
            all.find(|address| address.is_ipv4() == vip.address.is_ipv4())
        };
        for holder in &vip.holders {
            let Some((machine, host, connection)) = bare(&holder.name) else {
                continue;
            };
            let (Some(own), Some(interface)) = (of_family(machine), vip_interface(input.spec, machine, host)) else {
                continue;
            };
            let others = vip
                .holders
                .iter()
                .filter(|other| other.name != holder.name && bare(&other.name).is_some());
            let peers = others.filter_map(|other| Some((own, of_family(other)?, other.name.as_str())));
            found
                .entry(&holder.name)
                .or_insert_with(|| Holder {
                    machine,
                    connection,
                    interface,
                    peers: BTreeSet::new(),
                })
                .peers
                .extend(peers);
        }
    }
    found.into_values().filter(|holder| !holder.peers.is_empty()).collect()
}
