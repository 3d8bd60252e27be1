//! That no two ranges overlap, and that no machine and no virtual address lies in one.

use std::net::IpAddr;

use ipnet::IpNet;

use super::address::overlap;
use super::machines::Draft;
use super::network::item;
use crate::document::{Document, Path, at};
use crate::file::{NetworkFile, OneOrMany};
use crate::spec::Network;

/// A range or address with the words for it, to be compared with all others.
pub(super) struct Taken {
    pub(super) at: Path,
    pub(super) what: String,
    /// Where to write another one.
    pub(super) field: &'static str,
    pub(super) net: IpNet,
}

/// The ranges with their places, for [`check`].
pub(super) fn taken(network: &Network, file: &NetworkFile) -> Vec<Taken> {
    let at = at!["spec", "network"];
    let of =
        |(key, field): (&str, &'static str), what: &str, given: Option<&OneOrMany>, nets: &[IpNet]| -> Vec<Taken> {
            let written = if given.is_some() { "" } else { " (the default)" };
            nets.iter()
                .enumerate()
                .map(|(i, net)| Taken {
                    at: item(&at.join(key), given, i),
                    what: format!("the {what} range {net}{written}"),
                    field,
                    net: *net,
                })
                .collect()
        };
    let mut all = of(
        ("pods", "`spec.network.pods`"),
        "Pod",
        file.pods.as_ref(),
        &network.pods,
    );
    all.extend(of(
        ("services", "`spec.network.services`"),
        "Service",
        file.services.as_ref(),
        &network.services,
    ));
    all
}

/// Ranges against each other, and machines' and virtual addresses against the ranges.
pub(super) fn check(document: &mut Document<'_>, ranges: &[Taken], drafts: &[Draft<'_>], virtuals: &[Taken]) {
    let text = document.text;
    for (i, range) in ranges.iter().enumerate() {
        for other in &ranges[..i] {
            if overlap(range.net, other.net) {
                let span = document.span(&other.at);
                document
                    .error(
                        "ranges-overlap",
                        &range.at,
                        format!("{} and {} overlap", other.what, range.what),
                    )
                    .reason("the same address would mean a Pod to some programs and a Service to others")
                    .fix("choose ranges that have no address in common, e.g. 10.244.0.0/16 and 10.96.0.0/16")
                    .also(text, span, "overlaps with this");
            }
        }
        let inside: Vec<(&Draft<'_>, IpAddr)> = drafts
            .iter()
            .flat_map(|d| d.all_addresses().into_iter().map(move |a| (d, a)))
            .filter(|(_, a)| range.net.contains(a))
            .collect();
        if let Some((draft, first)) = inside.first() {
            let others = if inside.len() > 1 {
                format!(" (and {} more)", inside.len() - 1)
            } else {
                String::new()
            };
            let at = if draft.address == Some(*first) {
                draft.at().join("address")
            } else {
                draft.at().join("addresses")
            };
            let written = document.is_written(&range.at).then(|| document.span(&range.at));
            let name = &draft.name;
            let finding = document
                .error(
                    "machine-in-range",
                    &at,
                    format!("machine `{name}`'s address {first}{others} is in {}", range.what),
                )
                .reason(
                    "packets to the machine would be taken for packets to a Pod or Service and never leave the node",
                )
                .fix(format!("write a range that holds no machine in {}", range.field));
            if let Some(span) = written {
                finding.also(text, span, "the range");
            }
        }
    }
    for virtual_address in virtuals {
        for range in ranges.iter().filter(|r| overlap(r.net, virtual_address.net)) {
            let written = document.is_written(&range.at).then(|| document.span(&range.at));
            let finding = document
                .error("vip-in-range", &virtual_address.at, format!("{} is in {}", virtual_address.what, range.what))
                .reason("kube-proxy and the Pod network own those addresses on every node and would answer for it, or drop it")
                .fix(format!("choose an address outside of the Pod and Service ranges, or give another {}", range.field));
            if let Some(span) = written {
                finding.also(text, span, "the range");
            }
        }
        for draft in drafts {
            if draft.all_addresses().iter().any(|a| virtual_address.net.contains(a)) {
                let span = document.span(&draft.at().join("address"));
                document
                    .error(
                        "vip-is-machine",
                        &virtual_address.at,
                        format!("{} is machine `{}`'s own", virtual_address.what, draft.name),
                    )
                    .reason("it has to move between machines, or to be the same on all of them")
                    .fix("choose an address that nobody has")
                    .also(text, span, "that machine");
            }
        }
    }
}
