//! Programs of the distribution that the chosen options need are installed.

use std::collections::BTreeSet;

use quorate_facts::HostFacts;
use quorate_plan::needs::{self, Program};
use quorate_spec::Machine;

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let needed = needs::programs(input.spec, machine, host);
    let missing: Vec<&Program> = needed.iter().filter(|program| is_missing(host, program.name)).collect();
    let finding = if missing.is_empty() {
        Ok(format!("{} of the distribution's are there", needed.len()))
    } else {
        let text: Vec<String> = missing
            .iter()
            .map(|program| format!("{} ({})", program.name, program.purpose))
            .collect();
        let install = |family: usize| {
            let packages: BTreeSet<&str> = missing.iter().map(|program| program.packages[family]).collect();
            packages.into_iter().collect::<Vec<_>>().join(" ")
        };
        fail(
            format!("without {}", text.join(", ")),
            format!("apt install {} / dnf install {}", install(0), install(1)),
        )
    };
    list.note("programs", &machine.name, finding);
}

/// What was not looked for is not missing.
fn is_missing(host: &HostFacts, program: &str) -> bool {
    match program {
        "nft" => host.firewall.nft.is_none(),
        "iptables" => host.firewall.iptables.is_none(),
        other => host.programs.get(other) == Some(&None),
    }
}
