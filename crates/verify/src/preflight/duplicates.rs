//! Clones of one image share identifiers the cluster takes for unique.

use std::collections::BTreeMap;

use quorate_facts::HostFacts;

use super::{Input, List};

type Identifier = (&'static str, fn(&HostFacts) -> Option<String>, &'static str);

const IDENTIFIERS: [Identifier; 3] = [
    (
        "machine-id",
        |host| Some(host.machine_id.clone()),
        "rm /etc/machine-id && systemd-machine-id-setup, then reboot",
    ),
    (
        "product-uuid",
        |host| host.product_uuid.clone().filter(|_| host.container.is_none()),
        "give each virtual machine its own UUID",
    ),
    (
        "hostname",
        |host| Some(host.hostname.clone()),
        "hostnamectl set-hostname NAME",
    ),
];

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    for (what, read, hint) in IDENTIFIERS {
        let mut holders: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (machine, host) in input.hosts() {
            if let Some(value) = read(host).filter(|value| !value.is_empty()) {
                holders.entry(value).or_default().push(&machine.name);
            }
        }
        let shared: Vec<String> = holders
            .into_iter()
            .filter(|(_, names)| names.len() > 1)
            .map(|(value, names)| format!("{} share {value}", names.join(" and ")))
            .collect();
        let mended = what == "hostname" && input.spec.host.hostname;
        let found = match shared.join("; ") {
            none if none.is_empty() => "all different".to_owned(),
            shared if mended => format!("{shared}; apply gives each its name in the file"),
            shared => shared,
        };
        list.require(what, "cluster", shared.is_empty() || mended, found, hint);
    }
}
