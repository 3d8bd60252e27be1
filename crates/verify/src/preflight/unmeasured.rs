//! What could not be tried out is said, never silently left out.

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    for (machine, reason) in input.measured.iter().flat_map(|measured| &measured.problems) {
        list.warn(
            "not-tried",
            machine,
            reason.clone(),
            "run `quorate check` again when the machine is less busy",
        );
    }
}
