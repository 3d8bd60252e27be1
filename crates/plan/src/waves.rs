//! Stages that run together: each machine still goes through them in order.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Stage;

/// In a stage that begins with the one before, a machine's first steps need its last ones of the stages before.
pub(crate) fn keep_order(stages: &mut [Stage]) {
    let mut last: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for stage in stages {
        if !stage.with_previous {
            last.clear();
        }
        let machines: BTreeMap<String, String> = stage
            .steps
            .iter()
            .filter_map(|step| Some((step.id.clone(), step.concerns()?.to_owned())))
            .collect();
        let mut needed = BTreeSet::new();
        for step in &mut stage.steps {
            let Some(machine) = machines.get(&step.id) else {
                continue;
            };
            let own: Vec<&String> = step
                .needs
                .iter()
                .filter(|need| machines.get(*need) == Some(machine))
                .collect();
            if own.is_empty() {
                step.needs.extend(last.get(machine).into_iter().flatten().cloned());
            } else {
                needed.extend(own.into_iter().cloned());
            }
        }
        let mut ends: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (id, machine) in machines {
            if !needed.contains(&id) {
                ends.entry(machine).or_default().push(id);
            }
        }
        last.extend(ends);
    }
}
