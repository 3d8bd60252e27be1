//! Units are not started with a proxy that would take the cluster's own requests for the world's.

use std::net::IpAddr;

use ipnet::IpNet;
use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let Some(systemd) = host.systemd.as_ref().filter(|systemd| systemd.https_proxy) else {
        return;
    };
    let exceptions = systemd.no_proxy.as_deref().unwrap_or_default();
    let machines = input.spec.machines.iter().flat_map(Machine::all_addresses);
    let vips = input.vips().into_iter().map(|vip| vip.address);
    // Pods' first Service, by which programs that run in Pods ask for the API.
    let service = input.spec.service_ip(1).unwrap_or_default();
    let mut taken: Vec<IpAddr> = machines
        .chain(vips)
        .chain(service)
        .filter(|address| !excepted(exceptions, *address))
        .collect();
    taken.dedup();
    if taken.is_empty() {
        return list.note(
            "http-proxy",
            &machine.name,
            Ok("NO_PROXY names the cluster's addresses".into()),
        );
    }
    let some: Vec<String> = taken.iter().take(3).map(ToString::to_string).collect();
    let more = match taken.len() - some.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    list.warn(
        "http-proxy",
        &machine.name,
        format!("units are started with HTTPS_PROXY, and NO_PROXY lacks {}{more}", some.join(" ")),
        "add the machines', VIPs' and Services' addresses to NO_PROXY in DefaultEnvironment= (/etc/systemd/system.conf), \
         or take the proxy out of it; nothing of the cluster's needs one",
    );
}

/// As Go's programs read `NO_PROXY` (golang.org/x/net/http/httpproxy): addresses, ranges, `*`. Names stand for no address.
fn excepted(no_proxy: &str, address: IpAddr) -> bool {
    address.is_loopback()
        || no_proxy.split(',').map(str::trim).any(|entry| {
            let range = entry.parse::<IpNet>().is_ok_and(|range| range.contains(&address));
            entry == "*" || range || entry.parse() == Ok(address)
        })
}
