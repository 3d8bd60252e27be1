//! Blobs of one stage, on all machines at once, so that each leaves the operator about once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use quorate_machine::MachineRef;
use quorate_machine::distribute::{self, Recipient, Source};
use quorate_plan::{Action, BlobRef, Step};

use crate::event::Event;
use crate::execute::Run;
use crate::failure::StepError;

type Ends = Vec<(Arc<Step>, Result<(), StepError>)>;

/// Each machine has one such step in a stage; several are served one after the other.
pub(crate) async fn distribute(run: &Arc<Run>, wanted: Vec<(Arc<Step>, MachineRef)>) -> Ends {
    let (mut ends, mut recipients, mut steps) = (Vec::new(), Vec::new(), Vec::new());
    let mut sources: BTreeMap<String, Source> = BTreeMap::new();
    for (step, machine) in wanted {
        let blobs = blobs(&step);
        if let Some(absent) = blobs
            .iter()
            .find(|blob| !run.catalogue.blobs.contains_key(&blob.sha256))
        {
            let error = StepError::lasting(format!("the bundle has no blob {} ({})", absent.sha256, absent.name))
                .hint("quorate bundle verify");
            ends.push((step, Err(error)));
            continue;
        }
        for blob in blobs {
            if let Some((packed, path)) = run.catalogue.blobs.get(&blob.sha256) {
                sources.entry(blob.sha256.clone()).or_insert_with(|| Source {
                    blob: packed.clone(),
                    path: path.clone(),
                });
            }
        }
        let address = run.spec.machine(machine.name()).map(|machine| machine.address);
        recipients.push(Recipient {
            machine,
            address,
            wants: blobs.iter().map(|blob| blob.sha256.clone()).collect(),
        });
        steps.push(step);
    }
    let sources: Vec<Source> = sources.into_values().collect();
    let meter = Meter::new(run, &steps);
    let mut open: Vec<usize> = (0..steps.len()).collect();
    let mut attempt = 1;
    loop {
        let trying: Vec<Recipient> = open.iter().map(|index| recipients[*index].clone()).collect();
        let mut results = distribute::distribute(&trying, &sources, &|event| meter.told(&event)).await;
        let mut failed = Vec::new();
        for index in open {
            let step = &steps[index];
            match results.remove(&step.machine) {
                Some(Ok(_)) => ends.push((step.clone(), Ok(()))),
                // What has arrived stays; only the rest travels again.
                Some(Err(error)) => failed.push((index, StepError::from(error))),
                None => failed.push((
                    index,
                    StepError::lasting(format!("{} has two such steps in one stage", step.machine)),
                )),
            }
        }
        open = Vec::new();
        for (index, error) in failed {
            let step = &steps[index];
            if error.is_retryable() && attempt < step.attempts && !run.stop.is_stopped() {
                run.tell(Event::StepRetry {
                    step: step.id.clone(),
                    machine: step.machine.clone(),
                    attempt,
                    error: error.message,
                });
                open.push(index);
            } else {
                ends.push((step.clone(), Err(error)));
            }
        }
        if open.is_empty() {
            return ends;
        }
        attempt += 1;
        meter.restart(&open, &steps);
    }
}

fn blobs(step: &Step) -> &[BlobRef] {
    match &step.action {
        Action::Blobs { blobs } => blobs,
        _ => &[],
    }
}

/// Bytes that have arrived, per machine; what a machine had already counts as arrived.
struct Meter<'a> {
    run: &'a Run,
    machines: Mutex<BTreeMap<String, Reading>>,
}

struct Reading {
    step: String,
    bytes: u64,
    of: u64,
}

impl<'a> Meter<'a> {
    fn new(run: &'a Run, steps: &[Arc<Step>]) -> Self {
        let readings = steps.iter().map(|step| {
            // The same content under two names travels once.
            let unique: BTreeMap<&str, u64> = blobs(step)
                .iter()
                .map(|blob| (blob.sha256.as_str(), blob.packed_size))
                .collect();
            (
                step.machine.clone(),
                Reading {
                    step: step.id.clone(),
                    bytes: 0,
                    of: unique.values().sum(),
                },
            )
        });
        Self {
            run,
            machines: Mutex::new(readings.collect()),
        }
    }

    fn told(&self, event: &distribute::Event) {
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        let (distribute::Event::Missing { machine, bytes: packed }
        | distribute::Event::Arrived {
            machine, bytes: packed, ..
        }) = event
        else {
            return;
        };
        let Some(reading) = machines.get_mut(machine) else {
            return;
        };
        reading.bytes = match event {
            distribute::Event::Missing { .. } => reading.of.saturating_sub(*packed),
            _ => (reading.bytes + packed).min(reading.of),
        };
        let Reading { step, bytes, of } = reading;
        self.run.tell(Event::StepProgress {
            step: step.clone(),
            machine: machine.clone(),
            bytes: *bytes,
            of: *of,
        });
    }

    fn restart(&self, open: &[usize], steps: &[Arc<Step>]) {
        let names: BTreeSet<&str> = open.iter().map(|index| steps[*index].machine.as_str()).collect();
        let mut machines = self.machines.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, reading) in machines.iter_mut().filter(|(name, _)| names.contains(name.as_str())) {
            reading.bytes = 0;
        }
    }
}
