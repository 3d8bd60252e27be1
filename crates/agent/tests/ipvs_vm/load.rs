//! What clients see: new connections at fixed times, and connections that are held.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use quorate_agent::netlink;

use crate::netns::{Machine, until};
use crate::setting::{VIRTUAL4, connect};

/// New connections a second.
pub(crate) const PER_S: u32 = 100;

/// One new connection.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) due: Instant,
    pub(crate) took: Duration,
    /// Who answered.
    pub(crate) answer: std::io::Result<String>,
}

/// New connections from a namespace through the virtual address while `work` goes on, each when it is due whatever became
/// of the others.
pub(crate) fn under_load<T>(namespace: PathBuf, work: impl FnOnce() -> T) -> (T, Vec<Sample>) {
    let (stop, samples) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let done = std::thread::scope(|scope| {
        let ending = StopOnDrop(&stop);
        let (stop, samples) = (&stop, &samples);
        scope.spawn(move || {
            let clients = netlink::in_namespaces(&[namespace], |_| ask_until(stop, samples));
            clients.expect("helper thread").remove(0).expect("namespace");
        });
        let done = work();
        drop(ending);
        done
    });
    (done, samples.into_inner().expect("samples"))
}

fn ask_until(stop: &AtomicBool, samples: &Mutex<Vec<Sample>>) {
    let start = Instant::now();
    std::thread::scope(|requests| {
        for number in 0.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let due = start + Duration::from_secs(1) / PER_S * number;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            requests.spawn(move || {
                let answer = connect(VIRTUAL4).map(|(name, _)| name);
                let took = due.elapsed();
                samples.lock().expect("samples").push(Sample { due, took, answer });
            });
        }
    });
}

/// Ends a loop in another thread also when the test fails.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How many new connections failed that were due between two moments. Those due at any other time must not.
pub(crate) fn failed_only_between(samples: &[Sample], from: Instant, to: Instant) -> usize {
    let failed: Vec<&Sample> = samples.iter().filter(|sample| sample.answer.is_err()).collect();
    for sample in &failed {
        let after = sample.due.saturating_duration_since(to);
        assert!(
            sample.due >= from && after.is_zero(),
            "failed {after:?} after the fault was dealt with: {sample:?}"
        );
    }
    failed.len()
}

/// What the failures were, for the reader.
pub(crate) fn kinds(samples: &[Sample]) -> String {
    let mut kinds: Vec<String> = Vec::new();
    let errors = samples.iter().filter_map(|sample| sample.answer.as_ref().err());
    for kind in errors.map(|error| format!("{:?}", error.kind())) {
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    kinds.join(", ")
}

/// A connection that is held.
pub(crate) struct Held {
    pub(crate) server: String,
    stream: TcpStream,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    answers: AtomicUsize,
    ended: OnceLock<Instant>,
}

impl Held {
    pub(crate) fn new(machine: &Machine) -> Self {
        let (server, stream) = machine.enter(|| connect(VIRTUAL4)).expect("an answer");
        stream.set_read_timeout(None).expect("no time-out");
        let seen = Arc::new(Seen::default());
        let (mut reader, by_reader) = (stream.try_clone().expect("socket"), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut answer = [0; 64];
            while let Ok(1..) = reader.read(&mut answer) {
                by_reader.answers.fetch_add(1, Ordering::Relaxed);
            }
            let _ = by_reader.ended.set(Instant::now());
        });
        Self { server, stream, seen }
    }

    /// Sends a request, not to be waited for.
    pub(crate) fn ask(&self) {
        let _ = (&self.stream).write_all(b"?");
    }

    /// Whether a request is answered within a second.
    pub(crate) fn goes_on(&self) -> bool {
        let before = self.seen.answers.load(Ordering::Relaxed);
        self.ask();
        let answered = || self.seen.answers.load(Ordering::Relaxed) > before;
        until(Duration::from_secs(1), || answered() || self.ended().is_some()) && answered()
    }

    /// When its client heard that it is over.
    pub(crate) fn ended(&self) -> Option<Instant> {
        self.seen.ended.get().copied()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
