//! The firewall matrix, tried: every machine reaches every port it needs on every other (a sample of them beyond twenty).

use std::collections::{BTreeMap, BTreeSet};

use quorate_facts::{Dialled, Reach, Transport};
use quorate_spec::Firewall;

use super::{Input, List, deployed};
use crate::fail;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let Some(measured) = input.measured else { return };
    let mut by_target: BTreeMap<&str, Vec<&Dialled>> = BTreeMap::new();
    for dialled in &measured.dialled {
        by_target.entry(&dialled.to).or_default().push(dialled);
    }
    for (target, dialled) in by_target {
        // By port and what happened: who could not reach it.
        let mut closed: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
        for one in &dialled {
            let how = match &one.reach {
                Reach::Open(_) => continue,
                Reach::Refused => "refused",
                Reach::Silent => "no answer",
                Reach::Failed(reason) => reason.as_str(),
            };
            let transport = match one.transport {
                Transport::Tcp => "tcp",
                Transport::Udp => "udp",
            };
            let port = format!("{transport} {} ({}): {how}", one.address.port(), one.purpose);
            closed.entry(port).or_default().insert(&one.from);
        }
        if closed.is_empty() {
            let sources: BTreeSet<&str> = dialled.iter().map(|one| one.from.as_str()).collect();
            let ports: BTreeSet<_> = dialled.iter().map(|one| (one.transport, one.address.port())).collect();
            let found = format!("{} ports open to {} machines", ports.len(), sources.len());
            list.note("reach", target, Ok(found));
            continue;
        }
        let found: Vec<String> = closed
            .iter()
            .map(|(port, sources)| format!("{port} from {}", names(sources)))
            .collect();
        if to_be_opened(input, target) {
            let text = format!("closed by its firewall, which apply opens: {}", found.join("; "));
            list.warn(
                "reach",
                target,
                text,
                "run `quorate doctor` after apply: it tries them again",
            );
            continue;
        }
        let hint =
            format!("open them on {target} and between: `quorate plan --firewall` lists what each machine needs");
        list.note("reach", target, fail(found.join("; "), hint));
    }
}

/// A firewall runs there that apply opens, and has not yet.
pub(super) fn to_be_opened(input: &Input<'_>, target: &str) -> bool {
    input.spec.host.firewall != Firewall::Explain
        && input
            .facts
            .host(target)
            .is_some_and(|host| (host.firewall.firewalld_active || host.firewall.ufw_active) && !deployed(host))
}

/// All of them while they are few.
fn names(sources: &BTreeSet<&str>) -> String {
    let all: Vec<&str> = sources.iter().copied().collect();
    match all.len() {
        0..=5 => all.join(" "),
        many => format!("{} and {} more", all[..3].join(" "), many - 3),
    }
}
