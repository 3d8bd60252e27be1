//! Everything one command needs, together.

use std::sync::Arc;

use quorate_facts::Facts;
use quorate_plan::Plan;
use quorate_spec::Spec;

use crate::catalogue::Catalogue;
use crate::error::Error;
use crate::event::Listener;
use crate::execute::{self, Options};
use crate::fleet::Fleet;
use crate::gather;
use crate::journal::{Journal, RunId};
use crate::kube::Api;
use crate::lock::Lock;
use crate::operator::{Identity, Operator};
use crate::outcome::Outcome;
use crate::rollback::{self, Undone};

/// One cluster file, the machines it names, the operator's folder and a bundle.
#[derive(Clone)]
pub struct Session {
    pub spec: Arc<Spec>,
    pub fleet: Fleet,
    pub operator: Operator,
    pub catalogue: Catalogue,
}

impl Session {
    pub fn new(spec: Spec, fleet: Fleet, operator: Operator, catalogue: Catalogue) -> Self {
        Self {
            spec: Arc::new(spec),
            fleet,
            operator,
            catalogue,
        }
    }

    /// What is found now, on all machines at once. Only the operator's own side can fail: a machine that does not answer
    /// is a fact.
    pub async fn gather(&self) -> Result<Facts, Error> {
        gather::gather(&self.spec, &self.fleet, &self.operator, &self.catalogue).await
    }

    /// Carries the plan out under the cluster's lock, with a journal. Errors are those before the first step; what
    /// happens afterwards is the outcome.
    pub async fn execute(&self, plan: &Plan, options: &Options, events: &Listener) -> Result<Outcome, Error> {
        let run = RunId::new();
        let lock = Lock::take(&self.spec, &self.fleet, &run, options.steal).await?;
        let outcome = self.execute_under(&lock, run, plan, options, events).await;
        lock.give_back().await;
        outcome
    }

    /// The same for whoever holds the lock already.
    pub async fn execute_under(
        &self,
        lock: &Lock,
        run: RunId,
        plan: &Plan,
        options: &Options,
        events: &Listener,
    ) -> Result<Outcome, Error> {
        let identity = self.operator.identity()?;
        let journal = match self.operator.folder() {
            Some(folder) => Some(Journal::create(folder, &run, plan)?),
            None => None,
        };
        Ok(execute::execute(self, plan, &run, identity, journal, lock, options, events).await)
    }

    /// Walks a run's journal backwards and takes its steps back.
    pub async fn rollback(&self, run: &str, options: &Options, events: &Listener) -> Result<Undone, Error> {
        rollback::rollback(self, run, options, events).await
    }

    /// The first ready API server of the control planes, with a super-administrator's identity.
    pub async fn api(&self) -> Result<Option<Api>, Error> {
        let Some(identity) = self.operator.identity()? else {
            return Ok(None);
        };
        for api in apis(self, &identity) {
            if api.ready().await {
                return Ok(Some(api));
            }
        }
        Ok(None)
    }
}

/// Every reached control plane's own API server, in the order of the cluster file.
pub(crate) fn apis(session: &Session, identity: &Identity) -> Vec<Api> {
    let control_planes = session.spec.control_planes();
    let reached = control_planes
        .iter()
        .filter_map(|machine| Some((machine, session.fleet.get(&machine.name)?.clone())));
    reached
        .map(|(machine, connection)| Api::new(connection, session.spec.api_server_of(machine), identity.clone()))
        .collect()
}
