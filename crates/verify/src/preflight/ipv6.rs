//! A machine of a cluster with IPv6 addresses has IPv6.

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let pods = input.spec.network.pods.iter().any(|range| range.addr().is_ipv6());
    let own = machine.all_addresses().iter().any(|address| address.is_ipv6());
    let wanted = own || pods && machine.is_node();
    if !wanted {
        return;
    }
    let value = |key: &str| host.sysctls.get(key).map(Option::as_deref);
    let finding = if value("net.ipv6.conf.all.forwarding") == Some(None) {
        fail(
            "the kernel has none",
            "boot without ipv6.disable=1 on the kernel's command line",
        )
    } else if value("net.ipv6.conf.all.disable_ipv6") == Some(Some("1")) {
        fail(
            "turned off by net.ipv6.conf.all.disable_ipv6",
            "set it to 0, now and in /etc/sysctl.d",
        )
    } else {
        Ok("on".into())
    };
    list.note("ipv6", &machine.name, finding);
}
