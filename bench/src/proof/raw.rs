//! What `bench/proof/run` left: a drill's report, journal and samples for each setup and round.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

#[derive(Deserialize)]
pub(super) struct Report {
    pub(super) scenarios: Vec<Outcome>,
}

#[derive(Deserialize)]
pub(super) struct Outcome {
    pub(super) name: String,
    #[serde(default)]
    pub(super) why: String,
    pub(super) new: Series,
    pub(super) reused: Series,
    pub(super) writes: Writes,
    pub(super) load: [f64; 2],
    pub(super) began_unix: i64,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub(super) struct Series {
    pub(super) sent: u64,
    pub(super) failed: u64,
    /// Of the failed ones, those under way when the fault came.
    #[serde(default)]
    pub(super) interrupted: u64,
    pub(super) worst_ms: u64,
    pub(super) outage_ms: u64,
}

#[derive(Deserialize)]
pub(super) struct Writes {
    pub(super) acknowledged: u64,
    pub(super) lost: u64,
}

/// A line of raw samples; `at_us` counts from the fault.
#[derive(Deserialize)]
pub(super) struct Sample {
    kind: String,
    at_us: i64,
    took_us: i64,
    ok: bool,
}

/// A client's patience in a drill.
const LIMIT_US: i64 = 5_000_000;

impl Series {
    /// By the samples: reports have counted what the fault interrupted now as failed, now apart.
    pub(super) fn counted(&self, kind: &str, samples: &[Sample]) -> Self {
        let mut series = Self {
            outage_ms: self.outage_ms,
            ..Self::default()
        };
        for sample in samples.iter().filter(|sample| sample.kind == kind) {
            series.sent += 1;
            series.failed += u64::from(!sample.ok);
            series.interrupted += u64::from(!sample.ok && sample.at_us < 0 && sample.took_us >= LIMIT_US);
            series.worst_ms = series
                .worst_ms
                .max(u64::try_from((sample.took_us + 500) / 1_000).unwrap_or(0));
        }
        series
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.failed += other.failed;
        self.interrupted += other.interrupted;
        self.worst_ms = self.worst_ms.max(other.worst_ms);
        self.outage_ms = self.outage_ms.max(other.outage_ms);
    }

    pub(super) fn text(&self) -> String {
        let interrupted = match self.interrupted {
            0 => String::new(),
            some => format!(" ({some} interrupted)"),
        };
        format!("{} of {}{interrupted}", self.failed, self.sent)
    }
}

/// The runs after which every check held again, by the drill's journal. Without one nobody knows of any.
pub(super) fn recovered(report: &Path) -> Result<HashSet<String>> {
    #[derive(Deserialize)]
    struct Line {
        what: Event,
    }
    #[derive(Deserialize)]
    struct Event {
        event: String,
        #[serde(default)]
        name: String,
    }
    let path = report.join("journal.jsonl");
    if !path.exists() {
        return Ok(HashSet::new());
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    // The last line of a drill that was killed may be half a line.
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Line>(line).ok());
    Ok(lines
        .filter(|line| line.what.event == "green")
        .map(|line| line.what.name)
        .collect())
}

pub(super) fn samples(report: &Path, run: &str) -> Result<Option<Vec<Sample>>> {
    let path = report.join("samples").join(format!("{run}.jsonl"));
    if !path.exists() {
        return Ok(None);
    }
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let samples = text.lines().enumerate().map(|(number, line)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), number + 1))
    });
    samples.collect::<Result<_>>().map(Some)
}

/// Of all rounds, in order.
pub(super) fn reports(setup: &Path) -> Result<Vec<PathBuf>> {
    let Ok(rounds) = std::fs::read_dir(setup) else {
        return Ok(Vec::new());
    };
    let mut reports: Vec<_> = rounds
        .filter_map(|round| Some(round.ok()?.path().join("report.json")))
        .filter(|report| report.exists())
        .collect();
    reports.sort();
    Ok(reports)
}
