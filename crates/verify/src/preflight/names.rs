//! Names, as the machine's own resolver gives them.

use std::net::IpAddr;

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let name = machine.name.as_str();
    let servers = host.dns_servers.join(" ");
    let Some(answers) = input.measured.and_then(|measured| measured.names.get(name)) else {
        return;
    };
    if answers.values().any(Option::is_none) {
        let found = format!("the name servers do not answer in time: {servers}");
        return list.warn(
            "dns",
            name,
            found,
            "mend /etc/resolv.conf; CoreDNS forwards to what it names",
        );
    }
    let of = |asked: &str| answers.get(asked).and_then(Option::as_ref);
    if of("localhost").is_some_and(|found| !found.iter().any(IpAddr::is_loopback)) {
        let found = "localhost is no loopback address here";
        return list.note("dns", name, fail(found, "add `127.0.0.1 localhost` to /etc/hosts"));
    }
    if let Some(endpoint) = &input.spec.endpoint
        && let Some(asked) = &endpoint.name
        && let Some(found) = of(asked)
        && found.iter().any(|address| *address != endpoint.vip)
    {
        let found: Vec<String> = found.iter().map(ToString::to_string).collect();
        let found = format!("{asked} is {} here, not the VIP {}", found.join(" "), endpoint.vip);
        return list.note(
            "dns",
            name,
            fail(found, "correct the name in DNS, or take it out of /etc/hosts"),
        );
    }
    if host.dns_servers.is_empty() {
        let found = "no name server in /etc/resolv.conf: Pods will know the cluster's names only";
        return list.warn("dns", name, found, "name one there if Pods are to reach others by name");
    }
    list.note("dns", name, Ok(servers));
}
