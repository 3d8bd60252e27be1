//! A firewall that runs can be opened as the file says. Which ports are closed in fact, `reach` finds.

use quorate_facts::HostFacts;
use quorate_spec::{Firewall, Machine};

use super::{Input, List};
use crate::fail;

const HINT: &str = "let in what `quorate plan --firewall -o nftables` prints for it";

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let name = machine.name.as_str();
    let firewall = &host.firewall;
    let running = [("firewalld", firewall.firewalld_active), ("ufw", firewall.ufw_active)];
    let setting = input.spec.host.firewall;
    if let Some((program, _)) = running.into_iter().find(|(_, active)| *active) {
        match setting {
            Firewall::Explain => list.warn("firewall", name, format!("{program} runs; nothing is opened"), HINT),
            _ => list.note("firewall", name, Ok(format!("{program} runs; apply opens it"))),
        }
        return;
    }
    let Some(chain) = firewall.dropping.first() else {
        return list.note("firewall", name, Ok("none".into()));
    };
    let found = format!("{chain} drops what is not named there, and is not Quorate's to edit");
    match setting {
        Firewall::Open => list.note("firewall", name, fail(found, HINT)),
        _ => list.warn("firewall", name, found, HINT),
    }
}
