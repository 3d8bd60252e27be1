//! `spec.endpoint`: the VIP, its holders, VRRP.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::machines::Draft;
use super::{address, milliseconds, names};
use crate::document::{Document, Path, at};
use crate::file::{EndpointFile, EndpointOnFile, StatisticsFile};
use crate::spec::*;

/// The first holder's; the others count down from it. A backup waits (256 - priority) / 256 of an interval longer than
/// three of them, and after a goodbye only that long: high priorities make a clean hand-over of 100 ms intervals a
/// matter of 6 ms instead of 60, and steps between them let one backup be heard before the next one acts.
const FIRST_PRIORITY: u8 = 240;
const PRIORITY_STEP: usize = 10;
/// More holders only make elections noisier; each of them advertises to all others.
const MANY_HOLDERS: usize = 7;

/// `Err`: there is to be an endpoint, but it could not be read; what depends on it cannot be judged.
pub(super) fn endpoint(
    document: &mut Document<'_>,
    file: &EndpointFile,
    drafts: &[Draft<'_>],
) -> Result<Option<Endpoint>, ()> {
    let at = at!["spec", "endpoint"];
    let vip_at = at.join("vip");
    let on = on(document, &at, file, drafts)?;
    load_balancers(document, &at, on, drafts);
    let Some(on) = on else { return Ok(None) };
    let vip = file
        .vip
        .as_deref()
        .and_then(|text| address::host(document, &vip_at, text, "the VIP"));

    let holders: Vec<&Draft<'_>> = holders(on, drafts);
    if let Some(vip) = vip {
        vip_near(document, &vip_at, vip, &holders, "the VIP");
    }
    if let Some(name) = &file.name {
        endpoint_name(document, &at.join("name"), name, drafts);
    }
    if let Some(text) = &file.interface {
        interface(document, &at.join("interface"), text);
    }
    let interval_ms = interval(
        document,
        &at.join("interval"),
        file.interval.as_deref().unwrap_or("100ms"),
    );
    let priorities = priorities(document, &at.join("priorities"), &file.priorities, &holders);
    let statistics = file
        .statistics
        .as_ref()
        .map(|s| statistics(document, &at.join("statistics"), s));
    Ok(Some(Endpoint {
        name: file.name.clone(),
        vip: vip.ok_or(())?,
        port: file.port.unwrap_or(8443),
        on,
        interface: file.interface.clone(),
        vrid: file.vrid.unwrap_or(51),
        priorities,
        interval_ms: interval_ms.ok_or(())?,
        max_connections: file.max_connections,
        statistics,
    }))
}

pub(super) fn interface(document: &mut Document<'_>, at: &Path, name: &str) {
    if !names::is_interface(name) {
        document
            .error("bad-interface", at, format!("`{name}` cannot be an interface"))
            .reason("Linux' interface names have at most 15 characters, without white space, `/` and `:`")
            .fix("write the name that `ip link` shows, e.g. `eth0`");
    }
}

/// Whether a VIP can be on the holders' network at all: its family, and (a guess, for masks are not known here) its
/// neighbourhood.
pub(super) fn vip_near(document: &mut Document<'_>, at: &Path, vip: IpAddr, holders: &[&Draft<'_>], what: &str) {
    let text = document.text;
    let addresses: Vec<(&Draft<'_>, IpAddr)> = holders
        .iter()
        .filter_map(|d| {
            d.all_addresses()
                .into_iter()
                .find(|a| a.is_ipv4() == vip.is_ipv4())
                .map(|a| (*d, a))
        })
        .collect();
    if let Some(draft) = holders
        .iter()
        .find(|d| d.address.is_some() && addresses.iter().all(|(h, _)| h.index != d.index))
    {
        let span = document.span(&draft.at().join("address"));
        let family = address::family(vip);
        document
            .error(
                "vip-family",
                at,
                format!(
                    "{what} {vip} is {family}, but machine `{}`, which is to hold it, has no {family} address",
                    draft.name
                ),
            )
            .reason("a machine can hold an address of a family only where it speaks that family")
            .fix("choose a VIP of the machines' family, or add the other address under the machines' `addresses`")
            .also(text, span, "this machine");
        return;
    }
    // Usual networks: /24 and /64. Holders further apart show that theirs is larger.
    let usual = if vip.is_ipv4() { 24 } else { 64 };
    let Some((_, first)) = addresses.first() else {
        return;
    };
    let apart = addresses
        .iter()
        .map(|(_, a)| common_prefix(*first, *a))
        .min()
        .unwrap_or(128)
        .min(usual);
    let (least, unlikely) = if vip.is_ipv4() { (16, "/16") } else { (48, "/48") };
    if apart < least {
        let (draft, other) = addresses
            .iter()
            .min_by_key(|(_, a)| common_prefix(*first, *a))
            .unwrap_or(&addresses[0]);
        let span = document.span(&draft.at().join("address"));
        document
            .warn(
                "vip-holders-apart",
                at,
                format!("the machines that are to hold {what} seem to be in different networks ({first}, {other})"),
            )
            .reason(format!(
                "a VIP moves within one Ethernet segment, and few of those are larger than {unlikely}"
            ))
            .fix("put the holders into one network, or do without a VIP: `access: proxy`")
            .also(text, span, "far from the others");
    } else if common_prefix(*first, vip) < apart {
        document
            .warn("vip-in-other-network", at, format!("{what} {vip} seems to be outside of the network of {first} (if that is a /{apart})"))
            .reason("the others find the VIP's holder by ARP or neighbour discovery, which does not leave the network")
            .fix("choose an unused address beside the machines'; if their network is larger, `quorate check` will see that");
    }
}

/// Every holder's priority: as given, else counting down in the file's order.
pub(super) fn priorities(
    document: &mut Document<'_>,
    at: &Path,
    given: &BTreeMap<String, u8>,
    holders: &[&Draft<'_>],
) -> BTreeMap<String, u8> {
    for name in given.keys() {
        if holders.iter().all(|h| h.name != *name) {
            let here = at.join(name);
            let span = document.key_span(&here);
            let names: Vec<String> = holders.iter().map(|h| format!("`{}`", h.name)).collect();
            document
                .error_at("unknown-holder", &here, span, format!("`{name}` holds no VIP"))
                .reason("a priority counts only among the machines that may hold it")
                .fix(format!("the holders are {}", names.join(", ")));
        }
    }
    let mut out = BTreeMap::new();
    let mut next = FIRST_PRIORITY;
    let step = (usize::from(FIRST_PRIORITY) / holders.len().max(1)).clamp(1, PRIORITY_STEP) as u8;
    for holder in holders {
        let priority = given.get(&holder.name).copied().unwrap_or_else(|| {
            while next > 1 && given.values().any(|p| *p == next) {
                next -= 1;
            }
            let mine = next;
            next = next.saturating_sub(step).max(1);
            mine
        });
        if let Some((other, _)) = out.iter().find(|(_, p)| **p == priority) {
            let shown = if given.contains_key(&holder.name) {
                at.join(&holder.name)
            } else {
                at.clone()
            };
            document
                .error(
                    "same-priority",
                    &shown,
                    format!("`{other}` and `{}` have the same priority {priority}", holder.name),
                )
                .reason("then the larger address decides, which nobody remembers at night")
                .fix("give each holder its own priority");
        }
        out.insert(holder.name.clone(), priority);
    }
    out
}

fn holders<'d, 'f>(on: EndpointOn, drafts: &'d [Draft<'f>]) -> Vec<&'d Draft<'f>> {
    let role = match on {
        EndpointOn::ControlPlanes => Role::ControlPlane,
        EndpointOn::LoadBalancers => Role::LoadBalancer,
    };
    drafts.iter().filter(|d| d.has(role)).collect()
}

/// Who holds the VIP, as written or by default.
fn on(
    document: &mut Document<'_>,
    at: &Path,
    file: &EndpointFile,
    drafts: &[Draft<'_>],
) -> Result<Option<EndpointOn>, ()> {
    let vip_at = at.join("vip");
    if file.on.is_none() && document.is_written(&at.join("on")) {
        return Err(());
    }
    let vip = file.vip.is_some() || document.is_written(&vip_at);
    match file.on {
        Some(EndpointOnFile::None) => {
            if vip {
                document
                    .error(
                        "vip-without-holder",
                        &vip_at,
                        "there is a VIP, but nobody to hold it (`on: none`)",
                    )
                    .reason("a VIP answers only while one of the machines has it")
                    .fix("write `on: control-planes`, or leave the VIP out");
            }
            Ok(None)
        }
        Some(on) if !vip => {
            let word = if on == EndpointOnFile::ControlPlanes {
                "control-planes"
            } else {
                "load-balancers"
            };
            document
                .error(
                    "endpoint-without-vip",
                    &at.join("on"),
                    format!("`on: {word}` without a VIP"),
                )
                .reason("without an address that moves between the machines there is nothing for them to hold")
                .fix("add `vip:` with an unused address of the machines' network, or write `on: none`");
            Err(())
        }
        Some(on) => Ok(on.into()),
        None if vip => {
            let dedicated = drafts.iter().any(|d| d.has(Role::LoadBalancer));
            Ok(Some(if dedicated {
                EndpointOn::LoadBalancers
            } else {
                EndpointOn::ControlPlanes
            }))
        }
        None => {
            let written = [
                "name",
                "port",
                "interface",
                "vrid",
                "priorities",
                "interval",
                "maxConnections",
                "statistics",
            ];
            if let Some(field) = written.iter().find(|f| document.is_written(&at.join(f))) {
                document
                    .error(
                        "endpoint-without-vip",
                        &at.join(field),
                        format!("`endpoint.{field}` is given, but no `endpoint.vip`"),
                    )
                    .reason("without a VIP there is no endpoint that this could be about")
                    .fix("add `vip:` with an unused address of the machines' network, or leave `endpoint` out");
            }
            Ok(None)
        }
    }
}

fn load_balancers(document: &mut Document<'_>, at: &Path, on: Option<EndpointOn>, drafts: &[Draft<'_>]) {
    let machines: Vec<&Draft<'_>> = drafts.iter().filter(|d| d.has(Role::LoadBalancer)).collect();
    if on != Some(EndpointOn::LoadBalancers) {
        if let Some(first) = machines.first() {
            let why = if on.is_none() {
                "there is no VIP for it to hold"
            } else {
                "the VIP is held by the control planes"
            };
            document
                .warn(
                    "load-balancer-unused",
                    &first.at().join("roles"),
                    format!(
                        "machine `{}` has the role `load-balancer`, which is not used",
                        first.name
                    ),
                )
                .reason(why)
                .fix(if on.is_none() {
                    "give the endpoint a `vip`, or leave the role out"
                } else {
                    "write `on: load-balancers`, or leave the role out"
                });
        }
        return;
    }
    match machines.as_slice() {
        [] => {
            document
                .error(
                    "load-balancers-missing",
                    &at.join("on"),
                    "`on: load-balancers`, but no machine has the role `load-balancer`",
                )
                .reason("nobody would hold the VIP")
                .fix("give two machines `roles: [load-balancer]`, or write `on: control-planes`");
        }
        [only] => {
            document
                .warn(
                    "single-load-balancer",
                    &only.at(),
                    format!("machine `{}` is the only load balancer", only.name),
                )
                .reason("when it is away, so is the API for everyone")
                .fix("add a second one, or write `on: control-planes`");
        }
        many if many.len() > MANY_HOLDERS => {
            document
                .warn(
                    "many-load-balancers",
                    &at.join("on"),
                    format!("{} load balancers are more than any cluster needs", many.len()),
                )
                .reason("one holds the VIP, one takes over; each of the others adds VRRP messages to all the rest")
                .fix("two or three are enough");
        }
        _ => {}
    }
    for machine in machines.iter().filter(|m| m.roles.len() > 1) {
        document
            .warn(
                "load-balancer-shared",
                &machine.at().join("roles"),
                format!("load balancer `{}` has other roles as well", machine.name),
            )
            .reason("what overloads or breaks it in the other role takes the API's address along")
            .fix("use a machine of its own, or `on: control-planes`, where sharing is intended");
    }
}

fn endpoint_name(document: &mut Document<'_>, at: &Path, name: &str, drafts: &[Draft<'_>]) {
    if let Some(why) = names::why_no_hostname(name) {
        document
            .error(
                "bad-endpoint-name",
                at,
                format!("`{name}` cannot be the endpoint's name"),
            )
            .reason(why)
            .fix("write a DNS name such as `api.prod.internal`, without scheme and port");
    } else if let Some(machine) = drafts.iter().find(|d| d.name == name) {
        let (text, span) = (document.text, document.span(&machine.at().join("name")));
        document
            .error(
                "reserved-name",
                at,
                format!("`{name}` is a machine's name as well as the endpoint's"),
            )
            .reason("in the hosts files it would mean the VIP and the machine")
            .fix("choose another name for the endpoint")
            .also(text, span, "this machine");
    }
}

/// Milliseconds; RFC 9568, section 5.2.5: 12 bits of centiseconds.
fn interval(document: &mut Document<'_>, at: &Path, text: &str) -> Option<u32> {
    let millis = milliseconds(text).filter(|ms| (10.0..=40950.0).contains(ms) && (ms / 10.0).fract() == 0.0);
    if millis.is_none() {
        document
            .error("bad-interval", at, format!("`{text}` is no advertisement interval"))
            .reason("VRRP counts in hundredths of a second, from 10ms to 40.95s")
            .fix("write e.g. `100ms` or `1s`");
    }
    millis.map(|ms| ms as u32)
}

fn statistics(document: &mut Document<'_>, at: &Path, file: &StatisticsFile) -> Statistics {
    let user = file.user.clone().unwrap_or_else(|| "admin".to_owned());
    if user.is_empty()
        || !user
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    {
        document
            .error(
                "bad-user",
                &at.join("user"),
                format!("`{user}` cannot be the statistics page's user"),
            )
            .reason("HTTP's login separates user and password by a colon, and haproxy's file by white space")
            .fix("use letters, digits, `-`, `_` and `.`; the password is made by Quorate and not written here");
    }
    Statistics {
        port: file.port.unwrap_or(9000),
        user,
    }
}

/// Leading bits that two addresses of one family share.
fn common_prefix(a: IpAddr, b: IpAddr) -> u8 {
    let bits = match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (u32::from(a) ^ u32::from(b)).leading_zeros(),
        (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a) ^ u128::from(b)).leading_zeros(),
        _ => 0,
    };
    bits as u8
}

/// The VIP as a range of one address.
pub(super) fn single(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
