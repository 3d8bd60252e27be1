//! What a drill found, in the form it is written.

mod html;
mod markdown;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::Serialize;

pub use table::table;

use crate::measure::{Series, Vantage};
use crate::scenario::Scenario;

#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    pub cluster: String,
    /// Of a random walk, which it repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    pub scenarios: Vec<Outcome>,
}

impl Report {
    /// Something was shown, and all that was done held. What was skipped neither held nor failed.
    pub fn ok(&self) -> bool {
        let mut done = self.scenarios.iter().filter(|one| !one.skipped).peekable();
        done.peek().is_some() && done.all(|one| one.ok)
    }

    /// `6 of 17 scenarios held, 2 skipped`: what could not be done here has not held.
    pub fn held(&self) -> String {
        let (done, skipped): (Vec<_>, Vec<_>) = self.scenarios.iter().partition(|one| !one.skipped);
        let held = done.iter().filter(|one| one.ok).count();
        let text = format!("{held} of {} scenarios held", done.len());
        match skipped.len() {
            0 => text,
            skipped => format!("{text}, {skipped} skipped"),
        }
    }
}

/// One scenario on one target.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// `machine-off-each@m1`
    pub name: String,
    pub row: u8,
    pub ok: bool,
    /// What did not hold, or `skipped: reason`. If `ok`, what was seen and allowed; mostly nothing.
    pub why: String,
    /// Could not be done here: has neither held nor failed.
    pub skipped: bool,
    pub new: Series,
    pub reused: Series,
    pub watch: Series,
    pub writes: Writes,
    pub vip_owner: Vec<Owner>,
    pub leader: Vec<Leader>,
    /// Seconds since 1970.
    pub began_unix: i64,
    /// The operator's computer's load average (1 min), before and after; what a lab's measurements are worth.
    pub load: [f64; 2],
    #[serde(skip)]
    pub details: Details,
}

impl Outcome {
    /// Of a scenario that this cluster cannot have, or that was not permitted.
    pub(crate) fn left_out(scenario: &Scenario, reason: &str) -> Self {
        Self {
            skipped: true,
            why: format!("skipped: {reason}"),
            ..Self::begun(scenario.name, scenario)
        }
    }

    /// For people: `ok`, `skip` or `FAIL`.
    pub(crate) fn word(&self) -> &'static str {
        match (self.skipped, self.ok) {
            (true, _) => "skip",
            (false, true) => "ok",
            (false, false) => "FAIL",
        }
    }

    /// Of a scenario that has not ended.
    pub(crate) fn begun(name: &str, scenario: &Scenario) -> Self {
        Self {
            name: name.into(),
            row: scenario.row,
            why: "the drill ended before this scenario did".into(),
            began_unix: jiff::Timestamp::now().as_second(),
            load: [load(); 2],
            details: Details {
                what: scenario.what.into(),
                ..Details::default()
            },
            ..Self::default()
        }
    }
}

/// Of this computer, over the last minute; 0 if it is not known.
pub(crate) fn load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|first| first.parse().ok())
        .unwrap_or_default()
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Writes {
    pub acknowledged: u64,
    /// Acknowledged and not there afterwards.
    pub lost: u64,
    /// The longest time in which none was acknowledged, beyond the usual interval.
    pub outage_ms: u64,
    #[serde(skip)]
    pub failed: u64,
    #[serde(skip)]
    pub worst_ms: u64,
}

/// From then on. Times are ms since the fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Owner {
    pub at_ms: i64,
    /// `m1`; empty for nobody; `m1+m2` for two at once.
    pub owner: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leader {
    /// `etcd`, `kube-controller-manager` or `kube-scheduler`.
    pub of: String,
    pub at_ms: i64,
    pub leader: String,
}

/// What the other forms show besides.
#[derive(Clone, Debug, Default)]
pub struct Details {
    pub what: String,
    /// Machines the fault was on.
    pub targets: Vec<String>,
    pub vantages: Vec<Vantage>,
    /// When the fault was there, µs of the operator's monotonic clock.
    pub fault_us: i64,
    /// When taking it back was done, ms since the fault.
    pub reverted_ms: i64,
    /// From then until all checks held; `None`: they did not.
    pub recovery_ms: Option<u64>,
}

/// Writes `report.json`, `report.md`, `report.html` and raw samples; each file whole or not at all.
pub fn write(report: &Report, dir: &Path) -> io::Result<()> {
    let samples = dir.join("samples");
    std::fs::create_dir_all(&samples)?;
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for outcome in &report.scenarios {
        // A random walk comes by again.
        let time = times.entry(&outcome.name).or_default();
        *time += 1;
        let path = samples.join(match time {
            1 => format!("{}.jsonl", outcome.name),
            time => format!("{}.{time}.jsonl", outcome.name),
        });
        // Nothing is known yet of one that goes on.
        if path.exists() || outcome.details.vantages.is_empty() {
            continue;
        }
        let mut text = String::new();
        for vantage in &outcome.details.vantages {
            for sample in &vantage.samples {
                let mut value = serde_json::to_value(sample)?;
                value["at_us"] = (sample.at_us - outcome.details.fault_us).into();
                value["from"] = vantage.name.as_str().into();
                text.push_str(&value.to_string());
                text.push('\n');
            }
        }
        put(&path, text.as_bytes())?;
    }
    let mut json = serde_json::to_vec_pretty(report)?;
    json.push(b'\n');
    put(&dir.join("report.json"), &json)?;
    put(&dir.join("report.md"), markdown::render(report).as_bytes())?;
    put(&dir.join("report.html"), html::render(report)?.as_bytes())
}

fn put(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    std::fs::write(&name, content)?;
    std::fs::rename(&name, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::{Kind, Sample};

    #[test]
    fn what_was_skipped_has_not_held() {
        let one = |ok: bool| Outcome {
            ok,
            ..Outcome::default()
        };
        let skipped = Outcome::left_out(
            crate::scenario::find("etcd-disk-failing").unwrap(),
            "strace is not installed on m2",
        );
        let mut report = Report {
            cluster: "demo".into(),
            seed: None,
            scenarios: vec![one(true), one(false), skipped.clone()],
        };
        assert_eq!(report.held(), "1 of 2 scenarios held, 1 skipped");
        assert!(!report.ok());
        report.scenarios.remove(1);
        assert!(report.ok(), "a skip is no failure");
        report.scenarios.remove(0);
        assert!(!report.ok(), "a skip shows nothing");
        assert_eq!(report.held(), "0 of 0 scenarios held, 1 skipped");

        let json = serde_json::to_value(&report).unwrap();
        let outcome = &json["scenarios"][0];
        assert_eq!(outcome["ok"], false);
        assert_eq!(outcome["skipped"], true);
        assert_eq!(outcome["why"], "skipped: strace is not installed on m2");
        assert!(
            table(&report)[1].starts_with("skip  etcd-disk-failing"),
            "{:?}",
            table(&report)
        );
        let page = html::render(&report).unwrap();
        assert!(page.contains(r#""skipped":true"#), "what the page reads is written");
        assert!(markdown::render(&report).contains("| skipped | etcd-disk-failing |"));
    }

    /// Others read it by these names.
    #[test]
    fn the_shape_of_the_report_is_kept() {
        let mut report = Report {
            cluster: "demo".into(),
            seed: None,
            scenarios: vec![Outcome::default()],
        };
        report.scenarios[0].new.interrupted = 1;
        let json = serde_json::to_value(&report).unwrap();
        for field in [
            "name",
            "row",
            "ok",
            "why",
            "new",
            "reused",
            "watch",
            "writes",
            "vip_owner",
            "leader",
        ] {
            assert!(!json["scenarios"][0][field].is_null(), "{field}");
        }
        for series in ["new", "reused", "watch"] {
            for field in ["sent", "failed", "worst_ms", "outage_ms"] {
                assert!(json["scenarios"][0][series][field].is_u64(), "{series} {field}");
            }
        }
        for field in ["acknowledged", "lost"] {
            assert!(json["scenarios"][0]["writes"][field].is_u64(), "{field}");
        }
    }

    #[test]
    fn a_scenario_that_goes_on_is_in_the_report_and_its_samples_follow() {
        let dir = tempfile::tempdir().unwrap();
        let scenario = crate::scenario::find("machine-off-worker").unwrap();
        let mut report = Report {
            cluster: "demo".into(),
            seed: Some(7),
            scenarios: vec![Outcome::begun("machine-off-worker", scenario)],
        };
        write(&report, dir.path()).unwrap();
        let text = std::fs::read_to_string(dir.path().join("report.json")).unwrap();
        assert!(text.contains("the drill ended before this scenario did"), "{text}");
        let sample = Sample {
            kind: Kind::New,
            at_us: 0,
            took_us: 1_000,
            late_us: 0,
            ok: true,
            tries: 1,
            error: String::new(),
            key: String::new(),
        };
        report.scenarios[0].details.vantages.push(Vantage {
            name: "m5".into(),
            samples: vec![sample],
            clock_error_us: 0,
        });
        write(&report, dir.path()).unwrap();
        let samples = std::fs::read_to_string(dir.path().join("samples/machine-off-worker.jsonl")).unwrap();
        assert_eq!(samples.lines().count(), 1);
        // A walk that comes by again keeps what it saw before; what repeats the walk is written, too.
        report.scenarios.push(report.scenarios[0].clone());
        write(&report, dir.path()).unwrap();
        assert!(dir.path().join("samples/machine-off-worker.2.jsonl").exists());
        let text = std::fs::read_to_string(dir.path().join("report.json")).unwrap();
        assert!(text.contains("\"seed\": 7"), "{text}");
    }
}
