//! Backend sets that the kernel serves (IPVS, eBPF): a thread each, which does as the core says and looks every second
//! whether the kernel still has what it was given, and whether what it is no longer asked for has gone.

mod memory;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_lb::config::{EbpfService, SetKind};
use quorate_lb::{AgentConfig, BackendView, Reason};

use crate::bpf::{self, Balancer};
use crate::core::KernelSet;
use crate::ipvs::{self, Ipvs};
use crate::sockdiag::{self, Victims};
use memory::Memory;

/// Half of the second within which a foreign deletion is healed.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// A connect that had chosen a backend when it was taken out is on its way for much less than this.
const SECOND_SWEEP: Duration = Duration::from_millis(100);
/// With nothing to serve there is nothing to look after but what an earlier agent left: one that is being relieved may
/// heal what was taken away until it has ended.
const WAIT_IDLE: Duration = Duration::from_secs(60);

/// The sets to give to the core. Without a service of its kind each only takes away what an earlier agent with the same
/// state folder left.
pub fn all(config: &AgentConfig) -> Vec<(SetKind, Box<dyn KernelSet>)> {
    let ipvs = Worker::start("ipvs", Virtual::default(), config);
    let ebpf = Worker::start("ebpf", Connect::default(), config);
    vec![(SetKind::Ipvs, Box::new(ipvs)), (SetKind::Ebpf, Box::new(ebpf))]
}

/// Why the configured services of these kinds would not work on this machine, one reason each; to be said beforehand.
pub fn check(config: &AgentConfig) -> Vec<String> {
    let mut reasons = Vec::new();
    if !config.ipvs.is_empty() {
        reasons.extend(ipvs::supported().err().map(|error| error.to_string()));
    }
    if !config.ebpf.is_empty() {
        reasons.extend(bpf::supported().err().map(|error| error.to_string()));
        if config.ebpf.iter().any(|service| service.cgroup.is_none()) {
            reasons.extend(bpf::cgroup_root().err().map(|error| error.to_string()));
        }
    }
    if !config.ipvs.is_empty() || !config.ebpf.is_empty() {
        let reason = sockdiag::supported().err();
        reasons.extend(reason.map(|error| format!("clients of a dead backend are not freed at once: {error}")));
    }
    reasons
}

/// What a kind of set does on its own thread.
trait Served: Send + 'static {
    fn configure(&mut self, config: &AgentConfig);
    fn backends(&mut self, name: &str, backends: &[BackendView]);
    /// Frees local clients; returns how many.
    fn reset(&mut self, name: &str, backend: SocketAddr) -> Result<usize, String>;
    /// New connections may go to this backend.
    fn takes_connections(&self, name: &str, backend: SocketAddr) -> bool;
    /// Nothing is configured, and nothing left to take away.
    fn is_idle(&self) -> bool;
    /// Makes the kernel's state as wanted: what was done, and what could not be done.
    fn reconcile(&mut self) -> (Vec<String>, Vec<String>);
}

enum Message {
    Configure(Box<AgentConfig>),
    Backends(String, Vec<BackendView>),
    Reset(String, SocketAddr),
}

/// The thread of one kind. What it set up stays in the kernel when it ends, so that a new agent takes over without a gap.
struct Worker {
    messages: Option<Sender<Message>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    fn start(name: &'static str, mut served: impl Served, config: &AgentConfig) -> Self {
        let (messages, inbox) = mpsc::channel();
        served.configure(config);
        let work = move || {
            let mut last_errors = Vec::new();
            let mut again: Vec<(String, SocketAddr)> = Vec::new();
            let mut idle_wait = Duration::ZERO;
            loop {
                let wait = match (again.is_empty(), served.is_idle()) {
                    (false, _) => SECOND_SWEEP,
                    (true, false) => LOOK_AGAIN,
                    (true, true) => std::mem::replace(&mut idle_wait, WAIT_IDLE),
                };
                let mut next = match inbox.recv_timeout(wait) {
                    Ok(message) => Some(message),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let timed_out = next.is_none();
                let mut resets = Vec::new();
                // What is waiting is one change for the kernel.
                while let Some(message) = next.take().or_else(|| inbox.try_recv().ok()) {
                    match message {
                        Message::Configure(config) => served.configure(&config),
                        Message::Backends(set, backends) => served.backends(&set, &backends),
                        Message::Reset(set, backend) => resets.push((set, backend)),
                    }
                }
                let (changes, errors) = served.reconcile();
                for change in changes {
                    tracing::info!(set = name, change, "kernel");
                }
                if errors != last_errors {
                    for error in &errors {
                        tracing::error!(set = name, error, "kernel");
                    }
                    last_errors = errors;
                }
                // Only now, so that nobody connects to the dead backend behind the sweep; and once more soon, for those
                // who had chosen it just before.
                for (set, backend) in resets.iter().chain(again.iter().filter(|_| timed_out)) {
                    reset(name, &mut served, set, *backend);
                }
                if timed_out {
                    again.clear();
                }
                again.extend(resets);
            }
        };
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        if let Err(error) = &thread {
            tracing::error!(set = name, %error, "starting a thread");
        }
        Self {
            messages: Some(messages),
            thread: thread.ok(),
        }
    }

    fn send(&self, message: Message) {
        if let Some(messages) = &self.messages {
            // Fails only if the thread could not be started, which was said.
            let _ = messages.send(message);
        }
    }
}

impl KernelSet for Worker {
    fn backends(&mut self, name: &str, backends: &[BackendView]) {
        self.send(Message::Backends(name.to_owned(), backends.to_vec()));
    }

    fn configure(&mut self, config: &AgentConfig) {
        self.send(Message::Configure(Box::new(config.clone())));
    }

    fn reset(&mut self, name: &str, backend: SocketAddr) {
        self.send(Message::Reset(name.to_owned(), backend));
    }

    fn stop(&mut self) {
        self.messages = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn reset(kind: &str, served: &mut impl Served, set: &str, backend: SocketAddr) {
    if served.takes_connections(set, backend) {
        return; // it is back already
    }
    match served.reset(set, backend) {
        Ok(0) => {}
        Ok(clients) => tracing::warn!(kind, set, %backend, clients, "freed the clients of a dead backend"),
        Err(error) => tracing::error!(kind, set, %backend, error, "freeing the clients of a dead backend"),
    }
}

fn takes_connections(known: &BTreeMap<String, Vec<BackendView>>, set: &str, backend: SocketAddr) -> bool {
    known
        .get(set)
        .is_some_and(|backends| bpf::preferred(backends).iter().any(|(address, _)| *address == backend))
}

/// IPVS virtual servers.
#[derive(Default)]
struct Virtual {
    services: Vec<quorate_lb::config::IpvsService>,
    known: BTreeMap<String, Vec<BackendView>>,
    ipvs: Option<Ipvs>,
    /// The name of the interface, once there was a service.
    memory: Option<Memory>,
}

impl Served for Virtual {
    fn configure(&mut self, config: &AgentConfig) {
        remember(&mut self.memory, config, "ipvs");
        self.services.clone_from(&config.ipvs);
        self.known
            .retain(|name, _| config.ipvs.iter().any(|service| service.name == *name));
        if let Some(ipvs) = &mut self.ipvs {
            ipvs.configure(&self.services);
        }
    }

    fn backends(&mut self, name: &str, backends: &[BackendView]) {
        self.known.insert(name.to_owned(), backends.to_vec());
        if let Some(ipvs) = &mut self.ipvs {
            ipvs.set_backends(name, backends);
        }
    }

    fn reset(&mut self, name: &str, backend: SocketAddr) -> Result<usize, String> {
        self.ipvs.as_ref().map_or(Ok(0), |ipvs| {
            ipvs.free_clients(name, backend).map_err(|error| error.to_string())
        })
    }

    fn takes_connections(&self, name: &str, backend: SocketAddr) -> bool {
        takes_connections(&self.known, name, backend)
    }

    fn is_idle(&self) -> bool {
        self.services.is_empty() && self.memory.as_ref().is_none_or(Memory::is_settled)
    }

    fn reconcile(&mut self) -> (Vec<String>, Vec<String>) {
        let wanted = (!self.services.is_empty()).then(|| ipvs::INTERFACE.to_owned());
        let kept = self
            .memory
            .as_mut()
            .map(|memory| memory.keep(&wanted.into_iter().collect()));
        let outcome = if self.services.is_empty() {
            self.take_away()
        } else {
            self.serve()
        };
        let (changes, mut errors) = outcome.unwrap_or_else(|error| (Vec::new(), vec![error]));
        errors.extend(kept.and_then(Result::err));
        (changes, errors)
    }
}

impl Virtual {
    /// Makes the kernel's table as wanted.
    fn serve(&mut self) -> Result<(Vec<String>, Vec<String>), String> {
        let ipvs = match &mut self.ipvs {
            Some(ipvs) => ipvs,
            none => {
                let mut ipvs = Ipvs::open().map_err(|error| error.to_string())?;
                ipvs.configure(&self.services);
                self.known
                    .iter()
                    .for_each(|(name, backends)| ipvs.set_backends(name, backends));
                none.insert(ipvs)
            }
        };
        let report = ipvs.reconcile();
        Ok((report.changes, report.errors))
    }

    /// Removes services, addresses, rules and the interface, of this process or an earlier one.
    fn take_away(&mut self) -> Result<(Vec<String>, Vec<String>), String> {
        let Some(memory) = &mut self.memory else {
            return Ok(Default::default());
        };
        let ours = memory.left_over(&BTreeSet::new());
        // If never made by an agent with this state folder, it is another one's.
        if ours.is_empty() || !ipvs::is_left().map_err(|error| error.to_string())? {
            self.ipvs = None;
            return memory.settle(&ours).map(|()| Default::default());
        }
        let ipvs = self.ipvs.take().map_or_else(Ipvs::open, Ok);
        let report = ipvs.map_err(|error| error.to_string())?.remove();
        Ok((report.changes, report.errors))
    }
}

/// Services balanced at connect(2).
#[derive(Default)]
struct Connect {
    services: Vec<EbpfService>,
    known: BTreeMap<String, Vec<BackendView>>,
    /// By pin directory.
    attached: BTreeMap<PathBuf, Balancer>,
    /// Pin directories.
    memory: Option<Memory>,
}

impl Served for Connect {
    fn configure(&mut self, config: &AgentConfig) {
        let same = |one: &&EbpfService, other: &EbpfService| (&one.pin, &one.cgroup) == (&other.pin, &other.cgroup);
        let moved = self
            .services
            .iter()
            .filter(|old| config.ebpf.iter().all(|new| !same(old, new)));
        for service in moved {
            self.attached.remove(&service.pin);
        }
        remember(&mut self.memory, config, "ebpf");
        self.services.clone_from(&config.ebpf);
        self.known
            .retain(|name, _| config.ebpf.iter().any(|service| service.name == *name));
    }

    fn backends(&mut self, name: &str, backends: &[BackendView]) {
        // An agent that has just started has not asked everybody yet: what an earlier one left goes on serving.
        let undecided = backends.iter().any(|view| view.reason == Reason::Unchecked);
        if !undecided || !bpf::preferred(backends).is_empty() {
            self.known.insert(name.to_owned(), backends.to_vec());
        }
    }

    fn reset(&mut self, _: &str, backend: SocketAddr) -> Result<usize, String> {
        let victims = Victims {
            destination: backend,
            sources: None,
        };
        let outcome = sockdiag::destroy_everywhere(&victims, &sockdiag::pod_namespaces());
        match outcome.errors.first() {
            Some(error) if outcome.destroyed == 0 => Err(error.to_string()),
            _ => Ok(outcome.destroyed),
        }
    }

    fn takes_connections(&self, name: &str, backend: SocketAddr) -> bool {
        takes_connections(&self.known, name, backend)
    }

    fn is_idle(&self) -> bool {
        self.services.is_empty() && self.memory.as_ref().is_none_or(Memory::is_settled)
    }

    fn reconcile(&mut self) -> (Vec<String>, Vec<String>) {
        let (mut changes, mut errors) = (Vec::new(), Vec::new());
        let pins: BTreeSet<PathBuf> = self.services.iter().map(|service| service.pin.clone()).collect();
        let wanted: BTreeSet<String> = pins.iter().map(|pin| pin.display().to_string()).collect();
        let kept = self.memory.as_mut().map(|memory| memory.keep(&wanted));
        errors.extend(kept.and_then(Result::err));
        for pin in pins {
            if let Err(error) = self.reconcile_pin(&pin, &mut changes) {
                errors.push(error.to_string());
            }
        }
        // Last: what is new is in force before what is old goes.
        if let Some(memory) = &mut self.memory {
            let mut gone = Vec::new();
            for pin in memory.left_over(&wanted) {
                match bpf::remove(Path::new(&pin)) {
                    Ok(true) => changes.push(format!("removed programs pinned in {pin}")),
                    Ok(false) => gone.extend(bpf::is_visible(Path::new(&pin)).then_some(pin)),
                    Err(error) => errors.push(error.to_string()),
                }
            }
            errors.extend(memory.settle(&gone).err());
        }
        (changes, errors)
    }
}

/// A new configuration; what earlier processes left is read with the first one.
fn remember(memory: &mut Option<Memory>, config: &AgentConfig, file: &str) {
    let load = || Memory::load(config.state.join(file));
    memory.get_or_insert_with(load).look_again();
}

impl Connect {
    fn reconcile_pin(&mut self, pin: &Path, changes: &mut Vec<String>) -> Result<(), bpf::Error> {
        let services: Vec<&EbpfService> = self.services.iter().filter(|service| service.pin == pin).collect();
        if !self.attached.get(pin).is_some_and(Balancer::is_pinned) {
            let cgroup = services.iter().find_map(|service| service.cgroup.clone());
            let cgroup = cgroup.map_or_else(bpf::cgroup_root, Ok)?;
            self.attached.insert(pin.to_owned(), Balancer::attach(&cgroup, pin)?);
            changes.push(format!(
                "attached programs to {}, pinned in {}",
                cgroup.display(),
                pin.display()
            ));
        }
        let Some(balancer) = self.attached.get(pin) else {
            return Ok(());
        };
        let present: BTreeMap<SocketAddr, bpf::Shares> = balancer.list()?.into_iter().collect();
        for service in &services {
            // Until the set is known, what an earlier agent left goes on serving.
            let Some(backends) = self.known.get(&service.name) else {
                continue;
            };
            let wanted = bpf::preferred(backends);
            if present.get(&service.virtual_address) != Some(&bpf::shares(&wanted)) {
                balancer.set(service.virtual_address, &wanted)?;
                changes.push(format!("{} goes to {wanted:?}", service.virtual_address));
            }
        }
        let addresses: Vec<SocketAddr> = services.iter().map(|service| service.virtual_address).collect();
        balancer.retain(&addresses)
    }
}
