//! The machines of one cluster as this run can reach them.

use std::collections::BTreeMap;

use quorate_machine::MachineRef;

/// Connected machines by name, and for the others why not.
#[derive(Clone, Default)]
pub struct Fleet {
    machines: BTreeMap<String, MachineRef>,
    unreachable: BTreeMap<String, String>,
}

impl Fleet {
    pub fn new(machines: impl IntoIterator<Item = MachineRef>, unreachable: BTreeMap<String, String>) -> Self {
        Self {
            machines: machines
                .into_iter()
                .map(|machine| (machine.name().to_owned(), machine))
                .collect(),
            unreachable,
        }
    }

    pub fn get(&self, name: &str) -> Option<&MachineRef> {
        self.machines.get(name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &MachineRef)> {
        self.machines.iter().map(|(name, machine)| (name.as_str(), machine))
    }

    pub fn unreachable(&self) -> &BTreeMap<String, String> {
        &self.unreachable
    }

    pub fn len(&self) -> usize {
        self.machines.len()
    }

    pub fn is_empty(&self) -> bool {
        self.machines.is_empty()
    }
}
