//! One bundle is for one architecture.

use std::collections::BTreeSet;

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let found: BTreeSet<&str> = input.hosts().map(|(_, host)| host.arch.as_str()).collect();
    let text: Vec<&str> = found.iter().copied().collect();
    list.require(
        "architecture",
        "cluster",
        found.len() <= 1,
        text.join(", "),
        "all machines must have one architecture, that of the bundle",
    );
}
