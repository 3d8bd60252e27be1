//! Nothing is pulled: programs and images come from the bundle, so no machine needs a registry.

use quorate_facts::ItemKind;

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let bundle = &input.facts.bundle;
    if bundle.items.is_empty() {
        return;
    }
    let images = bundle.items.values().filter(|item| item.kind == ItemKind::Image);
    let names: Vec<&str> = images.map(|item| item.name.as_str()).collect();
    let missing: Vec<&str> = ["pause", "coredns", "probe"]
        .into_iter()
        .filter(|wanted| {
            !names.iter().any(|name| {
                name.rsplit_once(':')
                    .is_some_and(|(repository, _)| repository.ends_with(wanted))
            })
        })
        .collect();
    let finding = if missing.is_empty() {
        Ok(format!("{} in the bundle; no registry is needed", names.len()))
    } else {
        fail(
            format!("the bundle lacks {}", missing.join(", ")),
            "quorate bundle build, or name another bundle in `bundle.path`",
        )
    };
    list.note("images", "cluster", finding);
}
