//! The layer 4 proxy: worker threads, each with its own listeners, epoll loop and connections.
//!
//! Nothing here decides who is healthy: the core replaces a frontend's [`Set`] and orders
//! [`Proxy::kill`]; workers report failed dials through the [`Sink`].

mod conn;
mod dial;
mod frontend;
pub(crate) mod sys;
mod wheel;
mod worker;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub use frontend::{Backend, Counters, Frontend, Options, Set};
pub use sys::{Liveness, bound_allocator, raise_open_files};
pub use worker::{Fault, Report, Sink};

use worker::{Command, Handle, Worker};

/// Connections waiting to be accepted; the kernel cuts it to net.core.somaxconn.
const BACKLOG: i32 = 65_535;
/// Pipe capacity for spliced streams.
const PIPE_SIZE: i32 = 256 * 1024;
/// Descriptors left for everything that is not a proxied connection.
const RESERVED_FILES: u64 = 96;

/// A listening socket with what it is for, as handed from one process to the next.
pub struct Listening {
    pub frontend: String,
    pub addr: SocketAddr,
    pub fd: OwnedFd,
}

struct Bound {
    addr: SocketAddr,
    /// Copies of the workers' descriptors, for the hand-over.
    fds: Vec<OwnedFd>,
}

struct Entry {
    frontend: Arc<Frontend>,
    bound: Vec<Bound>,
}

/// All workers and frontends.
pub struct Proxy {
    workers: Vec<(Arc<Handle>, JoinHandle<()>)>,
    frontends: BTreeMap<String, Entry>,
    epoch: Instant,
}

impl Proxy {
    /// Starts `threads` workers without listeners. `open_files` bounds connections.
    ///
    /// # Errors
    /// No descriptors or threads left.
    pub fn start(threads: usize, open_files: u64, sink: &Sink) -> io::Result<Self> {
        let epoch = Instant::now();
        let threads = threads.max(1);
        // Two descriptors per connection. Workers do not get equal numbers of them: a tenth of slack, and
        // running out is survived.
        let share = open_files.saturating_sub(RESERVED_FILES) / 2 * 11 / 10 / threads as u64;
        let max_live = if threads == 1 {
            open_files.saturating_sub(RESERVED_FILES) / 2
        } else {
            share
        };
        let workers = (0..threads)
            .map(|i| {
                let handle = Arc::new(Handle::new()?);
                let worker = Worker::new(
                    Arc::clone(&handle),
                    Arc::clone(sink),
                    usize::try_from(max_live).unwrap_or(usize::MAX),
                    PIPE_SIZE,
                    seed(i),
                    epoch,
                )?;
                let thread = std::thread::Builder::new()
                    .name(format!("proxy-{i}"))
                    .stack_size(512 * 1024)
                    .spawn(move || worker.run())?;
                Ok((handle, thread))
            })
            .collect::<io::Result<_>>()?;
        Ok(Self {
            workers,
            frontends: BTreeMap::new(),
            epoch,
        })
    }

    /// Adds a frontend or updates it: new addresses are bound, others let go, connections are kept.
    ///
    /// Sockets for its addresses are taken from `inherited` first. Returns the addresses that could not be
    /// bound; the others work.
    pub fn apply(
        &mut self,
        name: &str,
        listen: &[SocketAddr],
        options: &Options,
        inherited: &mut Vec<Listening>,
    ) -> Vec<(SocketAddr, io::Error)> {
        let entry = self.frontends.entry(name.to_owned()).or_insert_with(|| Entry {
            frontend: Arc::new(Frontend::new(
                name,
                options.clone(),
                Set::new(Default::default(), &[], None),
            )),
            bound: Vec::new(),
        });
        entry.frontend.set_options(options.clone());
        if entry.bound.iter().any(|b| !listen.contains(&b.addr)) {
            // Rare: let go of all of this frontend's listeners and bind what stays again below, from the
            // copies kept here, so that no waiting client is lost.
            for (h, _) in &self.workers {
                h.tell(Command::Unlisten {
                    frontend: name.to_owned(),
                });
            }
            for b in entry.bound.drain(..).filter(|b| listen.contains(&b.addr)) {
                inherited.extend(b.fds.into_iter().map(|fd| Listening {
                    frontend: name.to_owned(),
                    addr: b.addr,
                    fd,
                }));
            }
        }
        let mut failed = Vec::new();
        for &addr in listen {
            if entry.bound.iter().any(|b| b.addr == addr) {
                continue;
            }
            match bind(addr, self.workers.len(), &options.client, inherited) {
                Ok(fds) => {
                    let mut copies = Vec::new();
                    for (i, fd) in fds.into_iter().enumerate() {
                        if let Ok(copy) = fd.try_clone() {
                            copies.push(copy);
                        }
                        let (h, _) = &self.workers[i % self.workers.len()];
                        h.tell(Command::Listen {
                            frontend: Arc::clone(&entry.frontend),
                            fd,
                        });
                    }
                    entry.bound.push(Bound { addr, fds: copies });
                }
                Err(e) => failed.push((addr, e)),
            }
        }
        failed
    }

    /// Stops listening for a frontend no longer wanted; its connections go on.
    pub fn remove(&mut self, name: &str) {
        if self.frontends.remove(name).is_some() {
            for (h, _) in &self.workers {
                h.tell(Command::Unlisten {
                    frontend: name.to_owned(),
                });
            }
        }
    }

    pub fn frontends(&self) -> impl Iterator<Item = &Arc<Frontend>> {
        self.frontends.values().map(|e| &e.frontend)
    }

    pub fn frontend(&self, name: &str) -> Option<&Arc<Frontend>> {
        self.frontends.get(name).map(|e| &e.frontend)
    }

    /// Addresses a frontend is bound to (port 0 resolved).
    pub fn bound(&self, name: &str) -> Vec<SocketAddr> {
        let Some(e) = self.frontends.get(name) else {
            return Vec::new();
        };
        e.bound
            .iter()
            .filter_map(|b| b.fds.first().and_then(|fd| sys::local_addr(fd).ok()))
            .collect()
    }

    /// Resets every client connection of a backend, in random order over `spread`. Clients not bound to it
    /// yet go to another backend.
    pub fn kill(&self, backend: &Arc<Backend>, spread: Duration) {
        backend.killed.fetch_add(1, Relaxed);
        for (h, _) in &self.workers {
            h.tell(Command::Kill {
                backend: Arc::clone(backend),
                spread,
            });
        }
    }

    /// Copies of all listening sockets, for the next process.
    pub fn listening(&self) -> Vec<Listening> {
        self.frontends
            .iter()
            .flat_map(|(name, e)| e.bound.iter().map(move |b| (name, b)))
            .flat_map(|(name, b)| {
                b.fds.iter().filter_map(|fd| fd.try_clone().ok()).map(|fd| Listening {
                    frontend: name.clone(),
                    // Port 0 resolved.
                    addr: sys::local_addr(&fd).unwrap_or(b.addr),
                    fd,
                })
            })
            .collect()
    }

    /// Accepts no more; connections may go on until `deadline`.
    pub fn drain(&mut self, deadline: Instant) {
        for e in self.frontends.values_mut() {
            e.bound.clear();
        }
        for (h, _) in &self.workers {
            h.tell(Command::Drain { deadline });
        }
    }

    /// Whether every worker has ended (after [`Self::drain`], or by a failure).
    pub fn finished(&self) -> bool {
        self.workers
            .iter()
            .all(|(h, t)| h.finished.load(Relaxed) || t.is_finished())
    }

    /// Whether a worker ended without having been asked to, or has not turned its loop for two seconds after this was
    /// asked before.
    pub fn broken(&self) -> bool {
        let now = self.epoch.elapsed().as_millis() as u64 + 1;
        self.workers.iter().any(|(h, t)| t.is_finished() || h.hangs(now))
    }

    pub fn connections(&self) -> usize {
        self.workers.iter().map(|(h, _)| h.connections.load(Relaxed)).sum()
    }

    pub fn epoch(&self) -> Instant {
        self.epoch
    }
}

fn bind(
    addr: SocketAddr,
    workers: usize,
    liveness: &Liveness,
    inherited: &mut Vec<Listening>,
) -> io::Result<Vec<OwnedFd>> {
    let mut fds: Vec<_> = inherited.extract_if(.., |l| l.addr == addr).map(|l| l.fd).collect();
    if !fds.is_empty() {
        // As many as came: another number would need a new socket, which is harmless, or one closed, which
        // would reset the clients waiting in it.
        while fds.len() < workers {
            fds.push(sys::listen(addr, BACKLOG, liveness)?);
        }
        return Ok(fds);
    }
    let first = sys::listen(addr, BACKLOG, liveness)?;
    // Port 0: the others share what the first was given.
    let addr = sys::local_addr(&first)?;
    fds.push(first);
    for _ in 1..workers {
        fds.push(sys::listen(addr, BACKLOG, liveness)?);
    }
    Ok(fds)
}

fn seed(i: usize) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    let mut h = std::hash::RandomState::new().build_hasher();
    h.write_usize(i);
    h.finish()
}
