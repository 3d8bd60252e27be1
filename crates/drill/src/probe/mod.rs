//! What clients see, measured by themselves: `quorate drill probe` on a machine, or beside the operator.
//!
//! Open loop: requests start when they should, whatever became of the ones before, and latency counts from the moment a
//! request *should* have started. So a stall costs every request that would have met it (no coordinated omission).
//!
//! | kind | what is done | limit |
//! |---|---|---|
//! | `new` | `GET` of a namespace over a TCP and TLS connection of its own | 5 s |
//! | `reused` | `GET` of a namespace over one HTTP/2 connection | 5 s |
//! | `write` | `POST` of a ConfigMap with a name never used before | 5 s |
//! | `watch` | an acknowledged write arrives on a stream that shares the HTTP/2 connection | 5 s after it was acknowledged |
//!
//! Like client-go, a request whose connection was reset or ended is tried again on another one until its five seconds
//! are over (`k8s.io/client-go/rest`, `IsConnectionReset`, `IsProbableEOF`, `IsHTTP2ConnectionLost`); how often is in
//! the sample. Refused connections and bad answers are failures at once. A write that is tried again and then exists
//! already was written.

mod client;
mod requests;
mod watch;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use client::{Client, Shared};

/// Where probes write.
pub const NAMESPACE: &str = "quorate-drill";

/// What a probe is told, as JSON on its standard input. Holds a private key: never an argument, never logged.
#[derive(Serialize, Deserialize)]
pub struct Config {
    /// Asked in turn by connections; with a VIP there is one.
    pub endpoint: SocketAddr,
    /// Name in the server's certificate.
    pub server_name: String,
    pub ca_pem: String,
    /// Certificate and key.
    pub identity_pem: String,
    /// Begins the names of what is written; unique to this probe and run.
    pub prefix: String,
    /// Starts per second.
    pub new_per_s: u32,
    pub reused_per_s: u32,
    /// With a watch if not 0.
    pub writes_per_s: u32,
    pub timeout_ms: u64,
    /// The probe ends when this file is there, and removes it.
    pub stop_file: PathBuf,
    /// The probe ends then at the latest.
    pub at_most_s: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    New,
    Reused,
    Write,
    Watch,
}

/// One request. Lines of a probe's output and of raw samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    pub kind: Kind,
    /// When it should have started, µs of the machine's monotonic clock; of the operator's once mapped.
    pub at_us: i64,
    /// From then until it was answered or given up.
    pub took_us: i64,
    /// Of that, how late it started: the measuring machine's own fault.
    #[serde(default)]
    pub late_us: i64,
    pub ok: bool,
    /// Connections it took.
    pub tries: u32,
    /// Why not; empty if `ok`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// What was written.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub key: String,
}

#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    #[error("probe: {0}")]
    Config(String),
    #[error("probe: output: {0}")]
    Output(#[from] std::io::Error),
}

/// µs of this machine's monotonic clock.
pub fn monotonic_us() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

/// Probes until told to stop; every sample is a line of JSON on `output` as soon as it is known.
pub async fn run(config: Config, output: &mut (dyn Write + Send)) -> Result<(), ProbeError> {
    let client = Arc::new(Client::new(&config).map_err(ProbeError::Config)?);
    let _ = std::fs::remove_file(&config.stop_file);
    let (samples, mut ready) = mpsc::unbounded_channel::<Sample>();
    let clock = Clock {
        instant: Instant::now(),
        us: monotonic_us(),
    };
    let shared = Arc::new(Shared::new(client.clone()));
    let mut tasks = tokio::task::JoinSet::new();
    if config.new_per_s > 0 {
        let (client, samples) = (client.clone(), samples.clone());
        tasks.spawn(open_loop(config.new_per_s, clock, move |intended, _| {
            requests::new(client.clone(), clock, intended, samples.clone())
        }));
    }
    if config.reused_per_s > 0 {
        let (shared, samples) = (shared.clone(), samples.clone());
        tasks.spawn(open_loop(config.reused_per_s, clock, move |intended, _| {
            requests::reused(shared.clone(), clock, intended, samples.clone())
        }));
    }
    let watched = watch::Watched::default();
    let mut watching = tokio::task::JoinSet::new();
    if config.writes_per_s > 0 {
        watching.spawn(watch::follow(shared.clone(), config.prefix.clone(), watched.clone()));
        // Writes have a connection of their own: they must not profit from what others found out.
        let (writer, samples, prefix, watched) = (
            Arc::new(Shared::new(client.clone())),
            samples.clone(),
            config.prefix.clone(),
            watched.clone(),
        );
        tasks.spawn(open_loop(config.writes_per_s, clock, move |intended, number| {
            requests::write(
                writer.clone(),
                clock,
                intended,
                format!("{prefix}-{number}"),
                watched.clone(),
                samples.clone(),
            )
        }));
    }
    drop(samples);
    let ends = Instant::now() + Duration::from_secs(config.at_most_s);
    let mut looked = Instant::now();
    loop {
        let sample = tokio::select! {
            sample = ready.recv() => sample,
            () = sleep(Duration::from_millis(100)) => None,
        };
        if let Some(sample) = sample {
            emit(output, &sample)?;
        }
        if looked.elapsed() >= Duration::from_millis(100) {
            looked = Instant::now();
            output.flush()?;
            if config.stop_file.exists() || looked >= ends {
                break;
            }
        }
    }
    tasks.abort_all();
    let _ = std::fs::remove_file(&config.stop_file);
    // Requests under way are given the time they have anyway.
    let grace = Instant::now() + Duration::from_millis(config.timeout_ms + 200);
    while let Ok(Some(sample)) = tokio::time::timeout_at(grace, ready.recv()).await {
        emit(output, &sample)?;
    }
    // So is the watch.
    while !watched.is_complete() && Instant::now() < grace {
        sleep(Duration::from_millis(20)).await;
    }
    for sample in watched.samples(clock, Duration::from_millis(config.timeout_ms)) {
        emit(output, &sample)?;
    }
    output.flush()?;
    Ok(())
}

fn emit(output: &mut (dyn Write + Send), sample: &Sample) -> Result<(), ProbeError> {
    let mut line = serde_json::to_vec(sample).map_err(|error| ProbeError::Config(error.to_string()))?;
    line.push(b'\n');
    Ok(output.write_all(&line)?)
}

/// Samples of a probe's output; lines that are none (a cut one at its end) are left out.
pub fn parse(output: &str) -> Vec<Sample> {
    output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect()
}

/// One reading of both clocks, by which instants become microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Clock {
    instant: Instant,
    us: i64,
}

impl Clock {
    fn us(&self, at: Instant) -> i64 {
        let since = at.saturating_duration_since(self.instant);
        self.us + i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
    }
}

/// Starts `work(intended, number)` `per_s` times a second, for ever. A start that is late starts at once, none is left out.
async fn open_loop<F>(per_s: u32, clock: Clock, mut work: impl FnMut(Instant, u64) -> F + Send)
where
    F: Future<Output = ()> + Send + 'static,
{
    let period = Duration::from_secs(1) / per_s;
    for number in 0.. {
        let intended = clock.instant + period * u32::try_from(number).unwrap_or(u32::MAX);
        sleep_until(intended).await;
        tokio::spawn(work(intended, number));
    }
}

/// How the probes of one run found the keys they wrote, by name: acknowledged or not.
pub fn written(samples: &[Sample]) -> BTreeMap<&str, bool> {
    samples
        .iter()
        .filter(|sample| sample.kind == Kind::Write)
        .map(|sample| (sample.key.as_str(), sample.ok))
        .collect()
}
