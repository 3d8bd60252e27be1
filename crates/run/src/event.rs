//! What happens during a run, for progress bars, plain lines and JSON.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

/// One thing that happened. Holds no secret: titles, ids, names, numbers and error messages only.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    RunStarted {
        run: String,
        plan: String,
        stages: usize,
        steps: usize,
    },
    StageStarted {
        stage: String,
        title: String,
        steps: usize,
    },
    StepStarted {
        step: String,
        machine: String,
        title: String,
    },
    /// Bytes (packed) that have arrived on the machine so far, out of how many.
    StepProgress {
        step: String,
        machine: String,
        bytes: u64,
        of: u64,
    },
    /// Acting failed and is tried again after a pause.
    StepRetry {
        step: String,
        machine: String,
        attempt: u32,
        error: String,
    },
    /// Acted; now waiting for this.
    StepWaiting {
        step: String,
        machine: String,
        awaited: String,
    },
    StepDone {
        step: String,
        machine: String,
        took_ms: u64,
    },
    StepFailed {
        step: String,
        machine: String,
        error: String,
        hint: Option<String>,
        took_ms: u64,
    },
    /// Not started: what it needs failed, its machine dropped out, or the run was stopped.
    StepSkipped {
        step: String,
        machine: String,
        because: String,
    },
    StageDone {
        stage: String,
        took_ms: u64,
        failed: usize,
    },
    /// The machine takes no further part in this run.
    MachineLost {
        machine: String,
        because: String,
    },
    RunDone {
        took_ms: u64,
        done: usize,
        failed: usize,
        skipped: usize,
    },
}

/// Told of every event, from several tasks. Must not block.
pub type Listener = Arc<dyn Fn(&Event) + Send + Sync>;

/// A listener for whoever does not want to know.
pub fn silent() -> Listener {
    Arc::new(|_| {})
}

pub(crate) fn ms(took: Duration) -> u64 {
    u64::try_from(took.as_millis()).unwrap_or(u64::MAX)
}
