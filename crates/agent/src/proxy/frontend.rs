//! What workers and the rest of the agent share about one frontend: its options, its backend set, its
//! counters.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use quorate_lb::BackendView;
use quorate_lb::balance::{Excluded, Load, Pick, Reservation, Snapshot};
use quorate_lb::config::Algorithm;

use super::sys::Liveness;

/// How a frontend treats its connections. Changing it needs no new listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Longest time all connects for one client may take together.
    pub connect_timeout: Duration,
    /// A connect slower than this is raced by one to another backend.
    pub hedge_after: Duration,
    /// A TLS ClientHello unanswered for this long is also sent to another backend. None: never.
    pub answer_hedge: Option<Duration>,
    /// Most connections at once; 0 = as many as open files allow.
    pub max_connections: u32,
    /// Most connections at once of one source address; 0 = no bound.
    pub max_per_source: u32,
    /// How long a client may wait for a backend below its connection limit.
    pub queue_timeout: Duration,
    /// Most clients waiting so, per worker.
    pub queue_length: u32,
    /// Announce the client's address to backends (PROXY protocol, version 2).
    pub proxy_protocol: bool,
    pub client: Liveness,
    pub server: Liveness,
}

impl Default for Options {
    fn default() -> Self {
        let server = Liveness {
            idle: Duration::from_secs(10),
            interval: Duration::from_secs(5),
            probes: 3,
            user_timeout: Duration::from_secs(20),
        };
        Self {
            connect_timeout: Duration::from_secs(2),
            hedge_after: Duration::from_millis(75),
            answer_hedge: Some(Duration::from_millis(250)),
            max_connections: 0,
            max_per_source: 0,
            queue_timeout: Duration::from_secs(5),
            queue_length: 1024,
            proxy_protocol: false,
            // A client that stops reading (a paused terminal) is not a dead one: longer than the server's.
            client: Liveness {
                user_timeout: Duration::from_secs(120),
                ..server
            },
            server,
        }
    }
}

/// A backend as workers see it. Lives as long as any connection to it.
#[derive(Debug)]
pub struct Backend {
    pub name: String,
    pub addr: SocketAddr,
    /// Connections at once, dials included.
    pub load: Arc<Load>,
    pub total: AtomicU64,
    pub bytes_up: AtomicU64,
    pub bytes_down: AtomicU64,
    pub connect_errors: AtomicU64,
    pub connect_timeouts: AtomicU64,
    /// Connections moved to another backend before their first byte.
    pub retries: AtomicU64,
    /// Second dials started because this backend was slow.
    pub hedges: AtomicU64,
    /// Client connections reset because this backend was declared dead.
    pub resets: AtomicU64,
    /// Smoothed connect time, microseconds.
    pub connect_us: AtomicU64,
    /// Clock of the last failure told to the core, so that a storm of dials is one message a moment.
    pub(super) told_ms: AtomicU64,
    /// Raised for each time this backend's connections were ended; a dial started before is stale.
    pub(super) killed: AtomicU64,
}

impl Backend {
    fn new(name: &str, addr: SocketAddr, load: Arc<Load>) -> Self {
        Self {
            name: name.to_owned(),
            addr,
            load,
            total: AtomicU64::new(0),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            connect_errors: AtomicU64::new(0),
            connect_timeouts: AtomicU64::new(0),
            retries: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            connect_us: AtomicU64::new(0),
            told_ms: AtomicU64::new(0),
            killed: AtomicU64::new(0),
        }
    }

    pub(super) fn count_bytes(&self, up: u64, down: u64) {
        if up > 0 {
            self.bytes_up.fetch_add(up, Relaxed);
        }
        if down > 0 {
            self.bytes_down.fetch_add(down, Relaxed);
        }
    }

    pub(super) fn connected_in(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1);
        let old = self.connect_us.load(Relaxed);
        // A lost update between workers costs one sample of an average.
        self.connect_us
            .store(if old == 0 { us } else { (old * 7 + us) / 8 }, Relaxed);
    }
}

/// One connection's place at a backend, given back when dropped.
pub(super) struct Lease {
    pub(super) backend: Arc<Backend>,
    _place: Reservation,
}

/// What choosing a backend gave.
pub(super) enum Choice {
    Use(Lease),
    /// Every usable backend is at its connection limit.
    Full,
    /// No usable backend.
    Nobody,
}

/// The backends of one moment and how to choose among them. Replaced as a whole.
pub struct Set {
    snapshot: Snapshot,
    /// In the snapshot's order.
    backends: Vec<Arc<Backend>>,
}

impl Set {
    /// `previous` hands on the counters of backends with the same name and address.
    #[must_use]
    pub fn new(algorithm: Algorithm, views: &[BackendView], previous: Option<&Self>) -> Self {
        let snapshot = Snapshot::new(algorithm, views, previous.map(|p| &p.snapshot));
        let backends = snapshot
            .members()
            .iter()
            .map(|m| {
                let same = |b: &&Arc<Backend>| b.name == m.view.name && b.addr == m.view.address;
                previous.and_then(|p| p.backends.iter().find(same)).map_or_else(
                    || Arc::new(Backend::new(&m.view.name, m.view.address, Arc::clone(&m.load))),
                    Arc::clone,
                )
            })
            .collect();
        Self { snapshot, backends }
    }

    #[must_use]
    pub fn backends(&self) -> &[Arc<Backend>] {
        &self.backends
    }

    /// What the core says of each backend, in the same order.
    pub fn views(&self) -> impl Iterator<Item = &BackendView> {
        self.snapshot.members().iter().map(|m| &m.view)
    }

    /// Takes a place at the best backend not among `tried`.
    pub(super) fn choose(&self, source: SocketAddr, tried: &[SocketAddr], random: u64) -> Choice {
        let mut excluded = Excluded::default();
        if !tried.is_empty() {
            for (i, b) in self.backends.iter().enumerate() {
                if tried.contains(&b.addr) {
                    excluded.add(i);
                }
            }
        }
        match self.snapshot.pick(source.ip(), &excluded, random) {
            Pick::Backend { index, reservation } => Choice::Use(Lease {
                backend: Arc::clone(&self.backends[index]),
                _place: reservation,
            }),
            Pick::Full => Choice::Full,
            Pick::None => Choice::Nobody,
        }
    }
}

/// Counters of a frontend.
#[derive(Debug, Default)]
pub struct Counters {
    pub active: AtomicU32,
    pub total: AtomicU64,
    pub queued: AtomicU32,
    /// Refused: no backend, queue full or waited too long, source over its bound, frontend full.
    pub refused_no_backend: AtomicU64,
    pub refused_queue: AtomicU64,
    pub refused_source: AtomicU64,
    /// Clients whose every dial failed.
    pub failed: AtomicU64,
    pub accept_errors: AtomicU64,
}

/// One frontend: listeners are the workers', this is what they share.
pub struct Frontend {
    pub name: String,
    pub counters: Counters,
    options: RwLock<Arc<Options>>,
    set: RwLock<Arc<Set>>,
    sources: Mutex<HashMap<IpAddr, u32>>,
}

impl Frontend {
    #[must_use]
    pub fn new(name: &str, options: Options, set: Set) -> Self {
        Self {
            name: name.to_owned(),
            counters: Counters::default(),
            options: RwLock::new(Arc::new(options)),
            set: RwLock::new(Arc::new(set)),
            sources: Mutex::default(),
        }
    }

    pub fn options(&self) -> Arc<Options> {
        Arc::clone(&self.options.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn set_options(&self, options: Options) {
        *self.options.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(options);
    }

    pub fn set(&self) -> Arc<Set> {
        Arc::clone(&self.set.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// New connections use `set` from now on; established ones are left alone.
    pub fn replace_set(&self, set: Set) {
        *self.set.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(set);
    }

    /// Counts a connection of `source`; false when it has `max` already.
    pub(super) fn admit(&self, source: IpAddr, max: u32) -> bool {
        let mut map = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let n = map.entry(source).or_insert(0);
        if *n >= max {
            return false;
        }
        *n += 1;
        true
    }

    pub(super) fn leave(&self, source: IpAddr) {
        let mut map = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = map.get_mut(&source) {
            *n -= 1;
            if *n == 0 {
                map.remove(&source);
            }
        }
    }
}
