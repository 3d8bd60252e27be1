//! A machine in memory: files, units, ports, blobs, users, locks; breaks when told to. Deterministic and cheap, so that
//! a test may have a thousand of them.
//!
//! ```
//! use quorate_machine::{FakeMachine, Machine, fake::Fault};
//! let m1 = FakeMachine::new("m1");
//! m1.state().listens.insert("etcd.service".into(), vec![2379, 2380]);
//! m1.fault(Fault::dies_after_call(7));
//! let machine: &dyn Machine = &*m1;
//! assert_eq!(machine.name(), "m1");
//! ```

mod answer;
mod probe;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use quorate_facts::{DiskLatency, HostFacts, LinkSeen, UserFacts};

use crate::{
    error::{ErrorKind, MachineError, RemoteError},
    lock::LockRecord,
    machine::{BoxFuture, Machine},
    proto::*,
};

type Hook<Q, A> = Arc<dyn Fn(&FakeMachine, &Q) -> A + Send + Sync>;

pub struct FakeMachine {
    name: String,
    state: Mutex<FakeState>,
    hooks: Mutex<Hooks>,
}

/// All there is on the machine. Tests read and write it freely.
#[derive(Clone, Default)]
pub struct FakeState {
    /// What [`Request::Gather`] starts from: host name, OS, kernel, addresses, clock.
    pub host: HostFacts,
    pub files: BTreeMap<String, FakeFile>,
    /// Replaced and removed files, by run and path.
    pub kept: BTreeMap<(String, String), FakeFile>,
    pub units: BTreeMap<String, FakeUnit>,
    /// TCP ports a unit listens on while it is active.
    pub listens: BTreeMap<String, Vec<u16>>,
    /// Units whose start or reload fails, and the exit status.
    pub failing_units: BTreeMap<String, i32>,
    /// SHA-256 of blobs in the store.
    pub blobs: BTreeSet<String>,
    /// SHA-256 of packed forms and the bytes of each that have arrived.
    pub packed: BTreeMap<String, u64>,
    pub sysctls: BTreeMap<String, String>,
    pub modules: BTreeSet<String>,
    pub users: BTreeMap<String, UserFacts>,
    pub mounts: BTreeMap<String, MountSpec>,
    pub swap_on: bool,
    /// `family name` to ruleset.
    pub nft_tables: BTreeMap<String, Vec<u8>>,
    pub locks: BTreeMap<String, LockState>,
    /// Wall clock, seconds since 1970. Nothing advances it but the test.
    pub now_unix: u64,
    /// Switched off or cut from the network.
    pub unreachable: bool,
    /// Writes fail with [`ErrorKind::NoSpace`].
    pub disk_full: bool,
    /// Each call takes this long (use tokio's paused clock).
    pub latency: Duration,
    /// What its disk takes for a write that is forced out.
    pub disk: DiskLatency,
    /// Hosts that answer nothing to this one, and ports of others that do not.
    pub silent: BTreeSet<(IpAddr, Option<u16>)>,
    /// Hosts whose VRRP is dropped on the way to it.
    pub unheard: BTreeSet<IpAddr>,
    /// Largest packet that leaves it; 0: no limit.
    pub path_mtu: u16,
    /// What there is to be seen on its link.
    pub link: LinkSeen,
    /// Calls answered so far.
    pub calls: u64,
    /// Operations carried out, in order ([`Request::operation`]).
    pub journal: Vec<String>,
    faults: Vec<Fault>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeFile {
    pub kind: FakeKind,
    pub owner: String,
    pub group: String,
    pub mode: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FakeKind {
    File {
        content: Vec<u8>,
        /// Of the content; for an installed blob the blob's, whose content a fake does not have.
        sha256: String,
    },
    Directory,
    Symlink(String),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeUnit {
    pub enabled: bool,
    pub active: bool,
    pub failed: bool,
    pub masked: bool,
    pub starts: u32,
    pub reloads: u32,
    pub exit_status: i32,
    /// Hash of the unit file when systemd last read it.
    read: Option<String>,
}

/// State of a lock; opaque but for its emptiness.
#[derive(Clone, Default)]
pub struct LockState(LockRecord);

impl LockState {
    /// Run that holds it.
    pub fn held_by(&self) -> Option<&str> {
        self.0.owner.as_ref().map(|owner| owner.run_id.as_str())
    }
}

/// Something that goes wrong once, at a chosen moment.
#[derive(Clone, Debug)]
pub struct Fault {
    when: When,
    what: What,
}

#[derive(Clone, Debug)]
enum When {
    /// The nth call from now, counted from 1.
    Call(u64),
    /// The nth call from now whose operation starts with this.
    Operation(String, u64),
}

#[derive(Clone, Debug)]
enum What {
    Error(ErrorKind, String),
    DieBefore,
    DieAfter,
}

impl Fault {
    /// The nth call from now (1 is the next one) fails and has no effect.
    pub fn call(nth: u64, kind: ErrorKind, message: &str) -> Self {
        Self {
            when: When::Call(nth),
            what: What::Error(kind, message.into()),
        }
    }

    /// The nth call from now whose [`Request::operation`] starts with `prefix` fails and has no effect.
    pub fn operation(prefix: &str, nth: u64, kind: ErrorKind, message: &str) -> Self {
        Self {
            when: When::Operation(prefix.into(), nth),
            what: What::Error(kind, message.into()),
        }
    }

    /// The connection is lost before the nth call from now takes effect; the machine stays unreachable.
    pub fn dies_before_call(nth: u64) -> Self {
        Self {
            when: When::Call(nth),
            what: What::DieBefore,
        }
    }

    /// The nth call from now takes effect, but its answer is lost; the machine stays unreachable.
    pub fn dies_after_call(nth: u64) -> Self {
        Self {
            when: When::Call(nth),
            what: What::DieAfter,
        }
    }
}

/// Answers that need more than the machine's own state. `None` means: as if nothing were there.
#[derive(Clone, Default)]
struct Hooks {
    http: Option<Hook<HttpRequest, Option<HttpReply>>>,
    exec: Option<Hook<Exec, Option<ExecOutput>>>,
    connect: Option<Hook<SocketAddr, bool>>,
}

impl FakeMachine {
    /// Debian 12 on amd64, two CPUs, systemd, cgroup v2, root.
    pub fn new(name: &str) -> Arc<Self> {
        let state = FakeState {
            host: answer::debian(name),
            sysctls: answer::sysctls(),
            now_unix: 1_800_000_000,
            ..FakeState::default()
        };
        Arc::new(Self {
            name: name.into(),
            state: Mutex::new(state),
            hooks: Mutex::default(),
        })
    }

    /// The machine's state. Not to be held while calling the machine.
    pub fn state(&self) -> MutexGuard<'_, FakeState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn fault(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// Answers HTTP requests the machine makes; may look into any fake machine's state. Without it, or with `None`,
    /// the connection is refused.
    pub fn on_http(&self, hook: impl Fn(&Self, &HttpRequest) -> Option<HttpReply> + Send + Sync + 'static) {
        self.hooks().http = Some(Arc::new(hook));
    }

    /// Runs programs. Without it, or with `None`, a program prints nothing and succeeds.
    pub fn on_exec(&self, hook: impl Fn(&Self, &Exec) -> Option<ExecOutput> + Send + Sync + 'static) {
        self.hooks().exec = Some(Arc::new(hook));
    }

    /// Whether a port of *another* host accepts connections. Without it, all do.
    pub fn on_connect(&self, hook: impl Fn(&Self, &SocketAddr) -> bool + Send + Sync + 'static) {
        self.hooks().connect = Some(Arc::new(hook));
    }

    /// Content of a file, `None` if there is none.
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        match self.state().files.get(path)?.kind {
            FakeKind::File { ref content, .. } => Some(content.clone()),
            _ => None,
        }
    }

    /// Puts a root-owned file there without going through a request.
    pub fn put_file(&self, path: &str, content: impl Into<Vec<u8>>, mode: u32) {
        let file = FakeFile::new(content.into(), &Owner::root(), mode);
        self.state().files.insert(path.into(), file);
    }

    /// Power cut: units die, what does not survive a boot is gone, the machine is unreachable.
    pub fn power_off(&self) {
        let mut state = self.state();
        state.unreachable = true;
        for unit in state.units.values_mut() {
            (unit.active, unit.failed) = (false, false);
        }
        state.mounts.clear();
        state.nft_tables.clear();
        state.sysctls = answer::sysctls();
        state.modules.clear();
    }

    /// Boots: enabled units start.
    pub fn power_on(&self) {
        let mut state = self.state();
        state.unreachable = false;
        state.host.boot_id = format!("{}'", state.host.boot_id);
        let failing: BTreeSet<String> = state.failing_units.keys().cloned().collect();
        for (name, unit) in &mut state.units {
            if unit.enabled && !unit.masked {
                unit.active = !failing.contains(name);
                unit.failed = !unit.active;
                unit.starts += 1;
            }
        }
    }

    /// Ports on which something listens, with the unit that does.
    pub fn listening(&self) -> Vec<(u16, String)> {
        self.state().listening()
    }

    fn hooks(&self) -> MutexGuard<'_, Hooks> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dead(&self, operation: &str, kind: ErrorKind) -> MachineError {
        let message = match kind {
            ErrorKind::ConnectionLost => "the connection was lost; whether it took place is unknown",
            _ => "connect: no route to host",
        };
        MachineError::new(&self.name, operation, kind, message)
    }

    fn answer(&self, request: Request) -> Result<Response, MachineError> {
        let operation = request.operation();
        let fault = {
            let mut state = self.state();
            if state.unreachable {
                return Err(self.dead(&operation, ErrorKind::Unreachable));
            }
            state.calls += 1;
            state.due_fault(&operation)
        };
        match fault {
            Some(What::Error(kind, message)) => return Err(MachineError::new(&self.name, &operation, kind, message)),
            Some(What::DieBefore) => {
                self.state().unreachable = true;
                return Err(self.dead(&operation, ErrorKind::ConnectionLost));
            }
            Some(What::DieAfter) | None => {}
        }
        let answer = self.carry_out(request);
        let mut state = self.state();
        state.journal.push(operation.clone());
        if fault.is_some() {
            state.unreachable = true;
            return Err(self.dead(&operation, ErrorKind::ConnectionLost));
        }
        answer.map_err(|error| MachineError::remote(&self.name, &operation, error))
    }

    fn carry_out(&self, request: Request) -> Answer {
        match request {
            Request::Http(http) => self.http(&http).map(Response::Http),
            Request::WaitHttp {
                http,
                status,
                timeout_ms,
            } => Ok(Response::Wait(match self.http(&http) {
                Ok(reply) if (status.0..=status.1).contains(&reply.status) => waited(true, 0, "answered"),
                Ok(reply) => waited(false, timeout_ms, &format!("HTTP {}", reply.status)),
                Err(error) => waited(false, timeout_ms, &error.message),
            })),
            Request::WaitPort { address, timeout_ms } => {
                let own = address.ip().is_loopback()
                    || self
                        .state()
                        .host
                        .network
                        .addresses
                        .iter()
                        .any(|a| a.address == address.ip());
                let hook = self.hooks().connect.clone();
                let open = match hook {
                    _ if own => self.listening().iter().any(|(port, _)| *port == address.port()),
                    Some(hook) => hook(self, &address),
                    None => true,
                };
                Ok(Response::Wait(if open {
                    waited(true, 0, "connected")
                } else {
                    waited(false, timeout_ms, "connection refused")
                }))
            }
            Request::Exec(exec) => {
                let hook = self.hooks().exec.clone();
                let said = hook.and_then(|hook| hook(self, &exec));
                Ok(Response::Exec(said.unwrap_or(ExecOutput {
                    status: Some(0),
                    ..ExecOutput::default()
                })))
            }
            other => self.state().carry_out(other),
        }
    }

    fn http(&self, request: &HttpRequest) -> Result<HttpReply, RemoteError> {
        for file in [
            &request.ca_file,
            &request.cert_file,
            &request.key_file,
            &request.bearer_file,
        ]
        .into_iter()
        .flatten()
        {
            if !self.state().files.contains_key(file) {
                return Err(RemoteError::new(
                    ErrorKind::NotFound,
                    format!("{file}: No such file or directory"),
                ));
            }
        }
        let hook = self.hooks().http.clone();
        hook.and_then(|hook| hook(self, request))
            .ok_or_else(|| RemoteError::failed(format!("connect to {}: connection refused", request.url)))
    }
}

impl Machine for FakeMachine {
    fn name(&self) -> &str {
        &self.name
    }

    fn call(&self, request: Request) -> BoxFuture<'_, Result<Response, MachineError>> {
        Box::pin(async move {
            let latency = self.state().latency;
            if !latency.is_zero() {
                tokio::time::sleep(latency).await;
            }
            self.answer(request)
        })
    }
}

impl FakeFile {
    pub fn new(content: Vec<u8>, owner: &Owner, mode: u32) -> Self {
        let sha256 = crate::hash::sha256_hex(&content);
        Self::made(FakeKind::File { content, sha256 }, owner, mode)
    }

    fn made(kind: FakeKind, owner: &Owner, mode: u32) -> Self {
        let or_root = |name: &str| {
            if name.is_empty() {
                "root".to_owned()
            } else {
                name.to_owned()
            }
        };
        Self {
            kind,
            owner: or_root(&owner.user),
            group: or_root(&owner.group),
            mode,
        }
    }
}

impl FakeState {
    pub fn listening(&self) -> Vec<(u16, String)> {
        let active = |name: &String| self.units.get(name).is_some_and(|unit| unit.active);
        self.listens
            .iter()
            .filter(|(name, _)| active(name))
            .flat_map(|(name, ports)| ports.iter().map(|port| (*port, name.clone())))
            .collect()
    }

    fn due_fault(&mut self, operation: &str) -> Option<What> {
        let mut due = None;
        self.faults.retain_mut(|fault| {
            let left = match &mut fault.when {
                When::Call(left) => left,
                When::Operation(prefix, left) if operation.starts_with(prefix.as_str()) => left,
                When::Operation(..) => return true,
            };
            *left = left.saturating_sub(1);
            if *left == 0 && due.is_none() {
                due = Some(fault.what.clone());
                return false;
            }
            true
        });
        due
    }
}

fn waited(ok: bool, took_ms: u64, last: &str) -> Waited {
    Waited {
        ok,
        took_ms,
        last: last.into(),
    }
}

#[cfg(test)]
mod tests;
