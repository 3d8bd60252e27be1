//! The journal of a run: JSON lines in the operator's folder, on disk before the change they announce. No secrets.
//!
//! `runs/RUN.jsonl` is what happened, `runs/RUN.plan` the plan it happened to. Records that arrive together are synced
//! together, so a thousand machines do not cost a thousand syncs.

use std::fmt;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
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
    /// A line was cut off: the program was killed, or the disk failed, while it was written.
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
    written: Arc<tokio::sync::Mutex<Written>>,
}

struct Written {
    file: File,
    /// How many lines of it are on disk.
    lines: u64,
    /// Why writing failed. Nothing is written any more then: nobody knows what of it is on disk.
    broken: Option<String>,
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
            written: Arc::new(tokio::sync::Mutex::new(Written {
                file,
                lines: 0,
                broken: None,
            })),
        })))
    }

    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Returns when the record is on disk. Records of others that came in meanwhile are synced with it. Once a write has
    /// failed, every later one fails as well.
    pub async fn write(&self, record: Record) -> Result<(), Error> {
        let mine = {
            let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.0.extend(line(&record));
            waiting.1 += 1;
            waiting.1
        };
        let failed = |reason: String| Error::Journal {
            path: self.0.path.clone(),
            reason,
        };
        let mut written = self.0.written.clone().lock_owned().await;
        if written.lines < mine && written.broken.is_none() {
            let shared = self.0.clone();
            // The guard goes along: a caller that stops waiting does not let others in before the batch is on disk.
            let writing = tokio::task::spawn_blocking(move || {
                shared.write_waiting(&mut written);
                written
            });
            written = writing.await.map_err(|error| failed(error.to_string()))?;
        }
        match &written.broken {
            Some(reason) if written.lines < mine => Err(failed(reason.clone())),
            _ => Ok(()),
        }
    }
}

impl Shared {
    fn write_waiting(&self, written: &mut Written) {
        let (lines, count) = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            (std::mem::take(&mut waiting.0), waiting.1)
        };
        match written.file.write_all(&lines).and_then(|()| written.file.sync_data()) {
            Ok(()) => written.lines = count,
            Err(error) => written.broken = Some(error.to_string()),
        }
    }
}

/// Begins every line, and within none: quotes in texts are escaped.
const BEGINNING: &[u8] = b"{\"record\":";

/// Reads a journal back; a torn line is left out, but not what was written after it on the same line.
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
            Err(error) => match after_a_torn_one(line) {
                Some(record) => {
                    story.torn = true;
                    story.records.push(record);
                }
                None if index + 1 == lines.len() || error.is_eof() => story.torn = true,
                None => {
                    return Err(Error::Journal {
                        path,
                        reason: format!("line {}: {error}", index + 1),
                    });
                }
            },
        }
    }
    Ok(story)
}

fn after_a_torn_one(line: &[u8]) -> Option<Record> {
    let begins = line.windows(BEGINNING.len()).rposition(|bytes| bytes == BEGINNING)?;
    serde_json::from_slice(&line[begins..]).ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn started(step: &str) -> Record {
        Record::Started {
            at: 1,
            step: step.into(),
            machine: "m1".into(),
        }
    }

    fn journal(folder: &Path) -> Journal {
        let plan = Plan {
            cluster: "prod".into(),
            kubernetes: "v1.36.3".into(),
            stages: Vec::new(),
            notes: Vec::new(),
        };
        Journal::create(folder, &RunId::from("r".to_owned()), &plan).unwrap()
    }

    #[tokio::test]
    async fn after_a_failed_write_no_step_begins_though_the_disk_is_well_again() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path());
        journal.write(started("a")).await.unwrap();
        let well = journal.0.written.lock().await.file.try_clone().unwrap();
        journal.0.written.lock().await.file = File::options().write(true).open("/dev/full").unwrap();
        // One batch: the first writes it, the others wait for it.
        let (b, c, d) = tokio::join!(
            journal.write(started("b")),
            journal.write(started("c")),
            journal.write(started("d"))
        );
        for written in [b, c, d] {
            let error = written.unwrap_err().to_string();
            assert!(error.contains("No space left on device"), "{error}");
        }
        journal.0.written.lock().await.file = well;
        assert!(journal.write(started("e")).await.is_err());
        assert_eq!(read(folder.path(), "r").unwrap().begun(), ["a"]);
    }

    #[tokio::test]
    async fn a_torn_line_costs_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path());
        journal.write(started("a")).await.unwrap();
        let torn = line(&started("torn"));
        fs::OpenOptions::new()
            .append(true)
            .open(journal.path())
            .and_then(|mut file| file.write_all(&torn[..torn.len() - 5]))
            .unwrap();
        assert_eq!(read(folder.path(), "r").unwrap().begun(), ["a"]);
        for step in ["b", "{\"record\":\"c\"}"] {
            journal.write(started(step)).await.unwrap();
        }
        let story = read(folder.path(), "r").unwrap();
        assert_eq!(story.begun(), ["a", "b", "{\"record\":\"c\"}"]);
        assert!(story.torn);
        fs::write(journal.path(), "{\"record\":\"unknown\"}\n{\"record\":\"run\"}\n").unwrap();
        let error = read(folder.path(), "r").unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
    }
}
