//! The journal of a run: JSON lines in the operator's folder, on disk before the change they announce. No secrets.
//!
//! `runs/RUN.jsonl` is what happened, `runs/RUN.plan` the plan it happened to. Records that arrive together are synced
//! together, so a thousand machines do not cost a thousand syncs.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use quorate_plan::Plan;
use serde::{Deserialize, Serialize};

use crate::error::{Error, io};
use crate::operator::{hex, make_dir, random, write_private_with};

/// `20261121-081843-9f3a`: sorts by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RunId(String);

impl RunId {
    pub fn new() -> Self {
        Self(format!(
            "{}-{}",
            jiff::Timestamp::now().strftime("%Y%m%d-%H%M%S"),
            hex(&random::<2>())
        ))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for RunId {
    fn default() -> Self {
        Self::new()
    }
}

impl From<String> for RunId {
    fn from(id: String) -> Self {
        Self(id)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One line. `at`: milliseconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "kebab-case")]
pub enum Record {
    /// The first line.
    Run {
        at: u64,
        run: String,
        cluster: String,
        plan: String,
        kubernetes: String,
        quorate: String,
        steps: usize,
    },
    Started {
        at: u64,
        step: String,
        machine: String,
    },
    Done {
        at: u64,
        step: String,
        machine: String,
        took_ms: u64,
    },
    Failed {
        at: u64,
        step: String,
        machine: String,
        took_ms: u64,
        error: String,
    },
    Skipped {
        at: u64,
        step: String,
        machine: String,
        because: String,
    },
    Stage {
        at: u64,
        stage: String,
        took_ms: u64,
        failed: usize,
    },
    /// The last line; without it the run was killed.
    Ended {
        at: u64,
        how: String,
        took_ms: u64,
        done: usize,
        failed: usize,
        skipped: usize,
    },
}

/// A journal read back.
#[derive(Clone, Debug, Default)]
pub struct Story {
    pub plan: Option<Plan>,
    pub records: Vec<Record>,
    /// The last line was cut off: the program was killed while writing it.
    pub torn: bool,
}

impl Story {
    /// Ids of steps that were begun, in that order: what may have changed something.
    pub fn begun(&self) -> Vec<&str> {
        let begun = self.records.iter().filter_map(|record| match record {
            Record::Started { step, .. } => Some(step.as_str()),
            _ => None,
        });
        let mut seen = std::collections::BTreeSet::new();
        begun.filter(|step| seen.insert(*step)).collect()
    }

    /// `None`: it was killed, or still runs.
    pub fn ended(&self) -> Option<&str> {
        self.records.iter().rev().find_map(|record| match record {
            Record::Ended { how, .. } => Some(how.as_str()),
            _ => None,
        })
    }
}

/// Where records go. Cloning shares the file.
#[derive(Clone)]
pub struct Journal(Arc<Shared>);

struct Shared {
    path: PathBuf,
    /// Lines that are not written yet, and how many there were ever.
    waiting: Mutex<(Vec<u8>, u64)>,
    /// The file, and how many lines of it are on disk.
    file: tokio::sync::Mutex<(File, u64)>,
}

impl Journal {
    /// Starts `runs/RUN.jsonl` in the operator's folder.
    pub fn create(folder: &Path, run: &RunId, plan: &Plan) -> Result<Self, Error> {
        let runs = folder.join("runs");
        make_dir(&runs)?;
        write_private_with(&runs.join(format!("{run}.plan")), |file| {
            Ok(serde_json::to_writer(file, plan)?)
        })?;
        let path = runs.join(format!("{run}.jsonl"));
        let mut file = fs::OpenOptions::new()
            .append(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(io("making the journal", &path))?;
        let first = Record::Run {
            at: now_ms(),
            run: run.to_string(),
            cluster: plan.cluster.clone(),
            plan: plan.hash(),
            kubernetes: plan.kubernetes.clone(),
            quorate: env!("CARGO_PKG_VERSION").into(),
            steps: plan.step_count(),
        };
        file.write_all(&line(&first))
            .and_then(|()| file.sync_all())
            .map_err(io("writing the journal", &path))?;
        // The file's name must survive a power cut too.
        File::open(&runs)
            .and_then(|folder| folder.sync_all())
            .map_err(io("syncing", &runs))?;
        Ok(Self(Arc::new(Shared {
            path,
            waiting: Mutex::default(),
            file: tokio::sync::Mutex::new((file, 0)),
        })))
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns when the record is on disk. Records of others that came in meanwhile are synced with it.
    pub async fn write(&self, record: Record) -> Result<(), Error> {
        let mine = {
            let mut waiting = self.waiting();
            waiting.0.extend(line(&record));
            waiting.1 += 1;
            waiting.1
        };
        let mut file = self.0.file.lock().await;
        if file.1 >= mine {
            return Ok(());
        }
        let (lines, count) = {
            let mut waiting = self.waiting();
            (std::mem::take(&mut waiting.0), waiting.1)
        };
        let failed = |reason: String| Error::Journal {
            path: self.0.path.clone(),
            reason,
        };
        let mut writer = file.0.try_clone().map_err(|error| failed(error.to_string()))?;
        let written =
            tokio::task::spawn_blocking(move || writer.write_all(&lines).and_then(|()| writer.sync_data())).await;
        written
            .map_err(|error| failed(error.to_string()))?
            .map_err(|error| failed(error.to_string()))?;
        file.1 = count;
        Ok(())
    }

    fn waiting(&self) -> MutexGuard<'_, (Vec<u8>, u64)> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a journal back; a torn last line is left out.
pub fn read(folder: &Path, run: &str) -> Result<Story, Error> {
    let path = folder.join("runs").join(format!("{run}.jsonl"));
    let text = fs::read(&path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Error::NoSuchRun {
            id: run.into(),
            folder: folder.into(),
        },
        _ => io("reading", &path)(error),
    })?;
    let plan = fs::read(path.with_extension("plan"))
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok());
    let mut story = Story {
        plan,
        ..Story::default()
    };
    let lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
        match serde_json::from_slice(line) {
            Ok(record) => story.records.push(record),
            Err(_) if index + 1 == lines.len() => story.torn = true,
            Err(error) => {
                return Err(Error::Journal {
                    path,
                    reason: format!("line {}: {error}", index + 1),
                });
            }
        }
    }
    Ok(story)
}

/// Ids of all runs, oldest first.
pub fn runs(folder: &Path) -> Vec<RunId> {
    let entries = fs::read_dir(folder.join("runs")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut ids: Vec<RunId> = names
        .filter_map(|name| Some(RunId(name.strip_suffix(".jsonl")?.to_owned())))
        .collect();
    ids.sort();
    ids
}

pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, crate::event::ms)
}

fn line(record: &Record) -> Vec<u8> {
    let mut line = serde_json::to_vec(record).unwrap_or_default();
    line.push(b'\n');
    line
}
