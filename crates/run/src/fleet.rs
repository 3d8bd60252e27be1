//! The machines of one cluster as this run can reach them.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_machine::{MachineRef, Request};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// A dead link shows within 15 s; a machine that is reached and says nothing for longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Connected machines by name, and for the others why not.
#[derive(Clone, Default)]
pub struct Fleet {
    machines: BTreeMap<String, MachineRef>,
    unreachable: BTreeMap<String, String>,
    /// Those of `unreachable` that can be asked again.
    away: BTreeMap<String, MachineRef>,
}

impl Fleet {
    pub fn new(machines: impl IntoIterator<Item = MachineRef>, unreachable: BTreeMap<String, String>) -> Self {
        Self {
            machines: machines
                .into_iter()
                .map(|machine| (machine.name().to_owned(), machine))
                .collect(),
            unreachable,
            away: BTreeMap::new(),
        }
    }

    /// With machines that do not answer now, each with the reason; [`Fleet::seek`] asks them again.
    pub fn with_away(mut self, away: impl IntoIterator<Item = (MachineRef, String)>) -> Self {
        for (machine, reason) in away {
            self.lose(machine, reason);
        }
        self
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

    /// Whether the machine answers now, or why not.
    pub async fn ask(&self, name: &str) -> Result<(), String> {
        match self.machines.get(name) {
            Some(machine) => ask(machine).await,
            None => Err(self
                .unreachable
                .get(name)
                .cloned()
                .unwrap_or_else(|| "does not answer".into())),
        }
    }

    /// Asks every machine anew, all at once: who came back is part of the fleet again, who went is not.
    pub async fn seek(&mut self) {
        let mut asked = JoinSet::new();
        for machine in self.machines.values().chain(self.away.values()).cloned() {
            asked.spawn(async move {
                let answer = ask(&machine).await;
                (machine, answer)
            });
        }
        for (machine, answer) in asked.join_all().await {
            match answer {
                Ok(()) => {
                    self.away.remove(machine.name());
                    self.unreachable.remove(machine.name());
                    self.machines.insert(machine.name().to_owned(), machine);
                }
                Err(reason) => self.lose(machine, reason),
            }
        }
    }

    fn lose(&mut self, machine: MachineRef, reason: String) {
        let name = machine.name().to_owned();
        self.machines.remove(&name);
        self.unreachable.insert(name.clone(), reason);
        self.away.insert(name, machine);
    }
}

async fn ask(machine: &MachineRef) -> Result<(), String> {
    match timeout(PATIENCE, machine.done(Request::Ping)).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("says nothing within {} s", PATIENCE.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_machine::FakeMachine;

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_comes_back_is_found_and_one_that_goes_is_missed() {
        let (m1, m2) = (FakeMachine::new("m1"), FakeMachine::new("m2"));
        m2.power_off();
        let mut fleet = Fleet::new([m1.clone() as MachineRef], BTreeMap::new())
            .with_away([(m2.clone() as MachineRef, "no route to host".to_owned())]);
        assert!(fleet.get("m2").is_none() && fleet.unreachable().contains_key("m2"));
        m1.power_off();
        assert!(fleet.ask("m1").await.is_err(), "it is asked, not looked up");
        m2.power_on();
        fleet.seek().await;
        assert!(fleet.get("m1").is_none() && fleet.get("m2").is_some());
        assert!(fleet.unreachable().contains_key("m1") && !fleet.unreachable().contains_key("m2"));
        m1.power_on();
        m2.state().latency = PATIENCE * 2;
        fleet.seek().await;
        assert!(fleet.get("m1").is_some());
        assert_eq!(fleet.unreachable()["m2"], "says nothing within 20 s");
    }
}
