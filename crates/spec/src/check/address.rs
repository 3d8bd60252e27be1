//! Addresses and ranges as they are written.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;

use crate::document::{Document, Path};

/// An address a machine or VIP can have. `what` as in "the VIP".
pub(super) fn host(document: &mut Document<'_>, at: &Path, text: &str, what: &str) -> Option<IpAddr> {
    let address = plain(document, at, text, what)?;
    usable(document, at, address, what).then_some(address)
}

fn plain(document: &mut Document<'_>, at: &Path, text: &str, what: &str) -> Option<IpAddr> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let finding = document.error("bad-address", at, format!("{what} `{text}` is no IP address"));
    if let Some((address, _)) = text.split_once('/').filter(|(a, _)| a.parse::<IpAddr>().is_ok()) {
        finding
            .reason("a single address is wanted, not a range")
            .fix(format!("write `{address}`"));
    } else if text.parse::<SocketAddr>().is_ok() {
        finding
            .reason("a single address is wanted, without a port")
            .fix("leave the port out");
    } else if text.contains(|c: char| c.is_ascii_alphabetic() && !c.is_ascii_hexdigit()) {
        finding
            .reason("addresses go into certificates, etcd's members and routes, and must not depend on DNS being up")
            .fix("write the address this name stands for, e.g. 10.0.0.11");
    } else if text.split('.').any(|part| part.len() > 1 && part.starts_with('0')) {
        finding
            .reason("a number with a leading zero is octal to some programs and decimal to others")
            .fix("leave the leading zeros out");
    } else {
        finding
            .reason("an IPv4 address has four numbers up to 255, an IPv6 address groups of hex digits")
            .fix("write e.g. 10.0.0.11 or fd00::11");
    }
    None
}

/// Whether other machines can reach it.
fn usable(document: &mut Document<'_>, at: &Path, address: IpAddr, what: &str) -> bool {
    let (kind, reason) = match address {
        _ if address.is_unspecified() => ("unspecified", "it means \"any address\" and cannot be connected to"),
        _ if address.is_loopback() => (
            "a loopback address",
            "every machine has it for itself, so no other machine can reach it",
        ),
        _ if address.is_multicast() => ("a multicast address", "it stands for a group, not for one machine"),
        IpAddr::V4(a) if a.is_broadcast() => ("the broadcast address", "it stands for all machines, not for one"),
        IpAddr::V4(a) if a.is_link_local() => (
            "a link-local address",
            "it is made up at boot and valid on one link only; it does not stay the same",
        ),
        IpAddr::V4(a) if a.octets()[0] == 0 || a.octets()[0] >= 240 => {
            ("reserved", "no machine can have it (RFC 6890)")
        }
        IpAddr::V6(a) if a.is_unicast_link_local() => (
            "a link-local address",
            "it needs an interface name beside it, which certificates and etcd cannot hold",
        ),
        IpAddr::V6(a) if a.to_ipv4_mapped().is_some() => (
            "an IPv4 address in IPv6 clothes",
            "programs disagree on whether it is one or the other",
        ),
        _ => return true,
    };
    document
        .error("unusable-address", at, format!("{what} {address} is {kind}"))
        .reason(reason)
        .fix("write the address by which the other machines reach it");
    false
}

/// `address:port` with a specific port.
pub(super) fn socket(document: &mut Document<'_>, at: &Path, text: &str, what: &str) -> Option<SocketAddr> {
    match text.parse::<SocketAddr>() {
        Ok(socket) if socket.port() != 0 => Some(socket),
        _ => {
            let finding = document.error("bad-address", at, format!("{what} `{text}` is no address and port"));
            finding.reason("an IP address, a colon and a port from 1 to 65535 are wanted; IPv6 goes in brackets");
            finding.fix(match text.parse::<IpAddr>() {
                Ok(a) if a.is_loopback() => {
                    format!("add the port: `\"{}\"`", SocketAddr::new(a, 7443))
                }
                Ok(a) => format!("add the port: `\"{}\"`", SocketAddr::new(a, 6443)),
                Err(_) => "write e.g. `127.0.0.1:7443` or `\"[::1]:7443\"`".to_owned(),
            });
            None
        }
    }
}

/// A range for Pods or Services.
pub(super) fn range(document: &mut Document<'_>, at: &Path, text: &str, what: &str) -> Option<IpNet> {
    let Ok(net) = text.parse::<IpNet>() else {
        let finding = document.error("bad-cidr", at, format!("{what} `{text}` is no address range"));
        finding.reason("a range is an address and a prefix length (CIDR)");
        finding.fix(match text.parse::<IpAddr>() {
            Ok(address) => format!("add the prefix length, e.g. `{address}/16`"),
            Err(_) => "write e.g. `10.244.0.0/16` or `fd00:10:244::/56`".to_owned(),
        });
        return None;
    };
    if net.trunc() != net {
        document
            .error(
                "cidr-host-bits",
                at,
                format!("{what} {net} does not begin where its prefix length says"),
            )
            .reason(format!(
                "with /{} the range begins at {}; Kubernetes refuses the other spelling",
                net.prefix_len(),
                net.network()
            ))
            .fix(format!("write `{}`, or choose another prefix length", net.trunc()));
        return None;
    }
    let special: &[(&str, &str)] = &[
        ("0.0.0.0/8", "\"this network\""),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local addresses"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "a reserved block"),
        ("::/8", "a reserved block"),
        ("fe80::/10", "link-local addresses"),
        ("ff00::/8", "multicast"),
    ];
    for (block, kind) in special {
        if block.parse::<IpNet>().is_ok_and(|block| overlap(block, net)) {
            document
                .error(
                    "unusable-range",
                    at,
                    format!("{what} {net} reaches into {kind} ({block})"),
                )
                .reason("packets to such addresses are not routed between machines (RFC 6890)")
                .fix("choose a private range, e.g. from 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or fd00::/8");
            return None;
        }
    }
    let private = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "198.18.0.0/15",
    ];
    if net.addr().is_ipv4()
        && !private
            .iter()
            .any(|p| p.parse::<IpNet>().is_ok_and(|p| p.contains(&net)))
    {
        document
            .warn(
                "public-range",
                at,
                format!("{what} {net} belongs to the public Internet"),
            )
            .reason("the real hosts with these addresses cannot be reached from inside the cluster")
            .fix("choose a private range, unless this one is yours");
    }
    Some(net)
}

pub(super) fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// "IPv4" or "IPv6".
pub(super) fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}
