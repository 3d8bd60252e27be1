//! The end of a run: what it wrote is on disk.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_machine::{MachineRef, Request};
use quorate_plan::Plan;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::{Failure, Run, StepError};
use crate::event::{Event, ms};
use crate::journal::{Record, now_ms};

/// A gigabyte of programs and images on a disk that writes 10 MB/s.
const TIMEOUT: Duration = Duration::from_secs(120);
/// What it is called beside the plan's stages.
const STAGE: &str = "sync";

impl Run {
    /// Programs and images are not forced to disk one by one. A power cut after the run must find all of them: every
    /// machine something was begun on writes what it has, all at once.
    pub(super) async fn sync(&self, plan: &Plan) -> Option<(String, u64)> {
        let machines: BTreeMap<&str, MachineRef> = {
            let progress = self.progress();
            plan.steps()
                .filter(|step| progress.begun.contains_key(&step.id) && !progress.lost.contains_key(&step.machine))
                .filter_map(|step| Some((step.machine.as_str(), self.fleet.get(&step.machine)?.clone())))
                .collect()
        };
        if machines.is_empty() {
            return None;
        }
        let begun = Instant::now();
        self.tell(Event::StageStarted {
            stage: STAGE.into(),
            title: "everything is on disk".into(),
            steps: 0,
        });
        let mut asked = JoinSet::new();
        for machine in machines.into_values() {
            asked.spawn(async move {
                let synced = match timeout(TIMEOUT, machine.done(Request::Sync)).await {
                    Ok(synced) => synced.map_err(StepError::from),
                    Err(_) => Err(StepError::lasting(format!(
                        "{}: {}: not done within {} s",
                        machine.name(),
                        Request::Sync.operation(),
                        TIMEOUT.as_secs()
                    ))),
                };
                (machine.name().to_owned(), synced)
            });
        }
        let mut failed = 0;
        for (machine, synced) in asked.join_all().await {
            if let Err(error) = synced {
                failed += 1;
                self.unsynced(machine, error, ms(begun.elapsed())).await;
            }
        }
        let took_ms = ms(begun.elapsed());
        // As with the record of the end: there is nothing left that could be stopped.
        let _ = self.stage_done(STAGE, took_ms, failed).await;
        Some((STAGE.into(), took_ms))
    }

    async fn unsynced(&self, machine: String, error: StepError, took_ms: u64) {
        let failure = Failure {
            step: format!("{STAGE}/{machine}"),
            machine: machine.clone(),
            title: "write everything to disk".into(),
            error: error.message.clone(),
            hint: error.hint.or_else(|| {
                Some(format!(
                    "see `dmesg` on {machine}; what a power cut damages before it is on disk is found and mended by another apply"
                ))
            }),
        };
        self.tell(Event::StepFailed {
            step: failure.step.clone(),
            machine: machine.clone(),
            error: failure.error.clone(),
            hint: failure.hint.clone(),
            took_ms,
        });
        let record = Record::Failed {
            at: now_ms(),
            step: failure.step.clone(),
            machine,
            took_ms,
            error: error.message,
        };
        self.progress().unsynced.push(failure);
        let _ = self.note(record).await;
    }
}
