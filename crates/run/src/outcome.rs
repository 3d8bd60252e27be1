//! What came of a run.

use std::collections::BTreeMap;

use serde::Serialize;

#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    pub run: String,
    pub ended: Ended,
    pub done: usize,
    pub failures: Vec<Failure>,
    pub skipped: usize,
    /// Machines that took no part, or not to the end, and why.
    pub lost: BTreeMap<String, String>,
    /// By stage, in order, milliseconds.
    pub stages: Vec<(String, u64)>,
    pub took_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "how", rename_all = "kebab-case")]
pub enum Ended {
    /// Every step is done.
    Complete,
    /// The cluster is as planned but for some machines without a role in the control plane, or for what some machine
    /// could not write to its disk.
    Partial,
    /// A step the rest depends on failed; nothing of a later stage was begun.
    Failed { stage: String },
    /// As asked, or because another run took the lock over.
    Stopped { because: String },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    pub step: String,
    pub machine: String,
    pub title: String,
    pub error: String,
    pub hint: Option<String>,
}

impl Outcome {
    pub fn is_complete(&self) -> bool {
        self.ended == Ended::Complete
    }

    /// What to do next, if something is left.
    pub fn way_on(&self) -> Option<&'static str> {
        match self.ended {
            Ended::Complete => None,
            Ended::Partial => Some("mend the machines named above and apply again; the others are done"),
            Ended::Failed { .. } => {
                Some("mend the cause and apply again: it looks at the machines anew and goes on from what is there")
            }
            Ended::Stopped { .. } => Some("apply again to go on: it looks at the machines anew"),
        }
    }
}
