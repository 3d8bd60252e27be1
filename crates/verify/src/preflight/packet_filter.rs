//! A program that loads packet rules is there.

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};

pub(super) fn check(_: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    if machine.is_node() {
        let tools = host.firewall.nft.is_some() || host.firewall.iptables.is_some();
        list.require(
            "packet-filter",
            &machine.name,
            tools,
            if tools {
                "nft or iptables is there"
            } else {
                "neither nft nor iptables is installed"
            },
            "apt install nftables / dnf install nftables",
        );
    }
}
