//! Getting blobs to many machines while little more than one copy leaves the operator.
//!
//! Each blob goes from the operator to one machine (different blobs to different machines at once); from there machines
//! fetch it from each other. Where that fails (a firewall between machines, a peer that dies), the operator sends.
//! A machine that fails keeps nobody else waiting.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::Read,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

use futures_util::future::join_all;
use tokio::sync::{Notify, Semaphore};

use crate::{
    error::{ErrorKind, MachineError},
    machine::{Machine, MachineRef},
    proto::{PackedBlob, Request, Response, Token},
};

/// A machine and what should be in its store.
#[derive(Clone)]
pub struct Recipient {
    pub machine: MachineRef,
    /// Where the other machines reach it; without one it neither gives nor takes from peers.
    pub address: Option<IpAddr>,
    /// SHA-256 of each blob.
    pub wants: Vec<String>,
}

/// A blob at the operator.
#[derive(Clone)]
pub struct Source {
    pub blob: PackedBlob,
    /// The packed file.
    pub path: PathBuf,
}

/// What happens, as it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The machine lacks that many packed bytes.
    Missing { machine: String, bytes: u64 },
    /// That many more packed bytes have arrived.
    Arrived { machine: String, bytes: u64, from: Origin },
    /// The blob is unpacked and verified.
    Stored { machine: String, sha256: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    Operator,
    Peer,
}

/// What one machine got.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Received {
    pub blobs: usize,
    pub from_operator: u64,
    pub from_peers: u64,
}

/// Blobs on their way to one machine at once: while one is unpacked, the next travels.
const PER_MACHINE: usize = 2;
/// Machines that fetch from one peer at once.
const PER_PEER: usize = 4;
/// One failed fetch may be the peer's fault; after the second the machine takes everything from the operator.
const FAILED_FETCHES: usize = 2;
/// Uploads from the operator at once; one SSH connection rarely fills the uplink, a few do.
const UPLOADS: usize = 4;

/// Brings every machine what it wants, as far as possible. The result has an entry for each machine: what it received,
/// or the first error that kept something from it.
pub async fn distribute(
    recipients: &[Recipient],
    sources: &[Source],
    progress: &(dyn Fn(Event) + Send + Sync),
) -> BTreeMap<String, Result<Received, MachineError>> {
    let sources: BTreeMap<&str, &Source> = sources
        .iter()
        .map(|source| (source.blob.sha256.as_str(), source))
        .collect();
    let missing = join_all(recipients.iter().map(|recipient| missing(recipient, &sources))).await;
    let mut results: BTreeMap<String, Result<Received, MachineError>> = BTreeMap::new();
    let mut open: Vec<(&Recipient, BTreeSet<String>)> = Vec::new();
    for (recipient, missing) in recipients.iter().zip(missing) {
        let name = recipient.machine.name().to_owned();
        match missing {
            Ok(missing) => {
                let bytes = missing
                    .iter()
                    .map(|sha256| sources[sha256.as_str()].blob.packed_size)
                    .sum();
                progress(Event::Missing {
                    machine: name.clone(),
                    bytes,
                });
                results.insert(name, Ok(Received::default()));
                if !missing.is_empty() {
                    open.push((recipient, missing));
                }
            }
            Err(error) => drop(results.insert(name, Err(error))),
        }
    }
    let token = match token() {
        Ok(token) if open.len() > 1 => Some(token),
        _ => None,
    };
    let doors = join_all(open.iter().map(|(recipient, _)| door(recipient, token.as_ref()))).await;
    let round = Round {
        sources,
        token,
        doors,
        uploads: Semaphore::new(UPLOADS),
        state: Mutex::new(State {
            blobs: BTreeMap::new(),
            missing: open.iter().map(|(_, missing)| missing.clone()).collect(),
            peers: open.iter().map(|_| Peers::default()).collect(),
            received: open.iter().map(|_| Ok(Received::default())).collect(),
        }),
        changed: Notify::new(),
        progress,
    };
    let workers = (0..open.len()).flat_map(|index| (0..PER_MACHINE).map(move |_| index));
    join_all(workers.map(|index| round.serve(index, &*open[index].0.machine))).await;
    // The doors close and the packed forms go; a machine that is gone has nothing to clean.
    join_all(
        open.iter()
            .map(|(recipient, _)| recipient.machine.call(Request::BlobsPrune { keep: None })),
    )
    .await;
    let received = std::mem::take(&mut round.state().received);
    for ((recipient, _), received) in open.iter().zip(received) {
        results.insert(recipient.machine.name().to_owned(), received);
    }
    results
}

async fn missing(recipient: &Recipient, sources: &BTreeMap<&str, &Source>) -> Result<BTreeSet<String>, MachineError> {
    let machine = &*recipient.machine;
    let present = machine.blobs_present(recipient.wants.clone()).await?;
    let missing: BTreeSet<String> = recipient
        .wants
        .iter()
        .filter(|sha256| !present.contains(sha256))
        .cloned()
        .collect();
    match missing.iter().find(|sha256| !sources.contains_key(sha256.as_str())) {
        Some(unknown) => Err(MachineError::new(
            machine.name(),
            "distribute blobs",
            ErrorKind::NotFound,
            format!("blob {unknown} is not in the bundle"),
        )
        .hint("build the bundle again")),
        None => Ok(missing),
    }
}

/// Opens the machine's blob door, if it can have one.
async fn door(recipient: &Recipient, token: Option<&Token>) -> Option<SocketAddr> {
    let (listen, token) = (recipient.address?, token?.clone());
    match recipient.machine.call(Request::BlobServe { listen, token }).await {
        Ok(Response::Port(port)) => Some(SocketAddr::new(listen, port)),
        _ => None,
    }
}

fn token() -> std::io::Result<Token> {
    let mut token = Token([0; 32]);
    File::open("/dev/urandom")?.read_exact(&mut token.0)?;
    Ok(token)
}

struct Round<'a> {
    sources: BTreeMap<&'a str, &'a Source>,
    token: Option<Token>,
    /// By machine.
    doors: Vec<Option<SocketAddr>>,
    uploads: Semaphore,
    state: Mutex<State>,
    changed: Notify,
    progress: &'a (dyn Fn(Event) + Send + Sync),
}

struct State {
    /// Who has, or is about to have, each blob's packed form.
    blobs: BTreeMap<String, Spread>,
    /// By machine: what nobody works on yet.
    missing: Vec<BTreeSet<String>>,
    peers: Vec<Peers>,
    received: Vec<Result<Received, MachineError>>,
}

#[derive(Default)]
struct Spread {
    holders: Vec<usize>,
    uploading: bool,
}

#[derive(Default)]
struct Peers {
    /// Fetches it serves now.
    serving: usize,
    /// Fetches of its own that failed.
    failures: usize,
}

enum Job {
    Upload(String),
    Fetch { sha256: String, peer: usize },
}

impl Round<'_> {
    /// Works on one machine's missing blobs until there are none left, or the machine is lost.
    async fn serve(&self, index: usize, machine: &dyn Machine) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let job = {
                let mut state = self.state();
                if state.received[index].is_err() || state.missing[index].is_empty() {
                    return;
                }
                self.choose(&mut state, index)
            };
            let Some(job) = job else {
                changed.await;
                continue;
            };
            match job {
                Job::Upload(sha256) => {
                    let outcome = self.upload(index, machine, &sha256).await;
                    self.state().blobs.entry(sha256.clone()).or_default().uploading = false;
                    self.settle(index, machine, sha256, outcome);
                }
                Job::Fetch { sha256, peer } => {
                    let outcome = self.fetch(index, machine, &sha256, peer).await;
                    self.state().peers[peer].serving -= 1;
                    match outcome {
                        Err(error) if !error.is_unreachable() => {
                            let mut state = self.state();
                            state.peers[index].failures += 1;
                            if let Some(spread) = state.blobs.get_mut(&sha256) {
                                spread.holders.retain(|holder| *holder != peer);
                            }
                            state.missing[index].insert(sha256);
                        }
                        outcome => self.settle(index, machine, sha256, outcome),
                    }
                }
            }
            self.changed.notify_waiters();
        }
    }

    /// From a peer if one has it; else from the operator, unless it is on its way to a peer already.
    fn choose(&self, state: &mut State, index: usize) -> Option<Job> {
        let may_fetch = state.peers[index].failures < FAILED_FETCHES && self.token.is_some();
        // The largest first, so that the end is not one long transfer.
        let mut missing: Vec<&String> = state.missing[index].iter().collect();
        missing.sort_by_key(|sha256| std::cmp::Reverse(self.sources[sha256.as_str()].blob.packed_size));
        let none = Spread::default();
        let mut chosen = None;
        for sha256 in missing {
            let spread = state.blobs.get(sha256).unwrap_or(&none);
            let peer = spread
                .holders
                .iter()
                .copied()
                .filter(|peer| state.peers[*peer].serving < PER_PEER)
                .min_by_key(|peer| state.peers[*peer].serving);
            match peer {
                Some(peer) if may_fetch => {
                    chosen = Some(Job::Fetch {
                        sha256: sha256.clone(),
                        peer,
                    });
                    break;
                }
                _ if chosen.is_none() && (!may_fetch || spread.holders.is_empty() && !spread.uploading) => {
                    chosen = Some(Job::Upload(sha256.clone()))
                }
                _ => {}
            }
        }
        match chosen.as_ref()? {
            Job::Upload(sha256) => {
                state.missing[index].remove(sha256);
                state.blobs.entry(sha256.clone()).or_default().uploading = true;
            }
            Job::Fetch { sha256, peer } => {
                state.missing[index].remove(sha256);
                state.peers[*peer].serving += 1;
            }
        }
        chosen
    }

    async fn upload(&self, index: usize, machine: &dyn Machine, sha256: &str) -> Result<(), MachineError> {
        let source = self.sources[sha256];
        let _permit = self.uploads.acquire().await;
        let name = machine.name().to_owned();
        let arrived = |bytes| {
            if let Ok(received) = &mut self.state().received[index] {
                received.from_operator += bytes;
            }
            (self.progress)(Event::Arrived {
                machine: name.clone(),
                bytes,
                from: Origin::Operator,
            });
        };
        machine.put_blob(&source.path, &source.blob, &arrived).await
    }

    async fn fetch(&self, index: usize, machine: &dyn Machine, sha256: &str, peer: usize) -> Result<(), MachineError> {
        let (Some(token), Some(address)) = (&self.token, self.doors[peer]) else {
            return Err(MachineError::new(
                machine.name(),
                "fetch blob",
                ErrorKind::Failed,
                "that peer has no door",
            ));
        };
        let blob = self.sources[sha256].blob.clone();
        let bytes = blob.packed_size;
        machine
            .done(Request::BlobFetch {
                blob,
                from: vec![address],
                token: token.clone(),
            })
            .await?;
        if let Ok(received) = &mut self.state().received[index] {
            received.from_peers += bytes;
        }
        (self.progress)(Event::Arrived {
            machine: machine.name().to_owned(),
            bytes,
            from: Origin::Peer,
        });
        Ok(())
    }

    fn settle(&self, index: usize, machine: &dyn Machine, sha256: String, outcome: Result<(), MachineError>) {
        let mut state = self.state();
        match outcome {
            Ok(()) => {
                if self.doors[index].is_some() {
                    state.blobs.entry(sha256.clone()).or_default().holders.push(index);
                }
                if let Ok(received) = &mut state.received[index] {
                    received.blobs += 1;
                }
                drop(state);
                (self.progress)(Event::Stored {
                    machine: machine.name().to_owned(),
                    sha256,
                });
            }
            Err(error) => {
                // Nobody fetches from it any more, and what it was to get first goes to another.
                for spread in state.blobs.values_mut() {
                    spread.holders.retain(|holder| *holder != index);
                }
                state.missing[index].clear();
                if state.received[index].is_ok() {
                    state.received[index] = Err(error);
                }
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
