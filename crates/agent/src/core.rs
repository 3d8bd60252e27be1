//! The core's thread: gives every input to `lb`'s balancer and carries out what it decides about backends.
//!
//! Virtual routers decide on a real-time thread of their own ([`crate::vrrp_io`]); what the two have to say
//! to each other (whether a frontend has a path) passes through here.

mod leaving;
mod listeners;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use quorate_lb::config::{Frontend as FrontendConfig, ProxyProtocol, SetKind};
use quorate_lb::vrrp::Routers;
use quorate_lb::{Action, AgentConfig, Availability, BackendView, Balancer, DialOutcome, Event, Input};

use crate::health::{Job, Method, Prober};
use crate::proxy::{Fault, Listening, Options, Proxy, Report, Set, Sink};
use crate::replay::{Line, Recorder, Side};
use crate::vrrp_io::{self, InputSender, Outgoing};
use leaving::{Closing, Leaving};
use listeners::Doors;

/// Serves a backend set in the kernel instead of in the proxy (IPVS, eBPF).
pub trait KernelSet: Send {
    /// The whole wanted set; must not block for long.
    fn backends(&mut self, name: &str, backends: &[BackendView]);
    /// A new configuration.
    fn configure(&mut self, config: &AgentConfig);
    /// Destroys local clients' sockets connected to a dead backend.
    fn reset(&mut self, name: &str, backend: std::net::SocketAddr);
    /// The agent ends.
    fn stop(&mut self);
}

/// Something for the core's thread to do.
type Order = Box<dyn FnOnce(&mut Core) + Send>;

enum Message {
    Input(Input),
    Vrrp(Outgoing),
    Order(Order),
}

/// A way to talk to the core from any thread.
#[derive(Clone)]
pub struct CoreSender(Sender<Message>);

impl CoreSender {
    pub fn input(&self, input: Input) {
        // Fails only while the process ends.
        let _ = self.0.send(Message::Input(input));
    }

    pub fn vrrp(&self, out: Outgoing) {
        let _ = self.0.send(Message::Vrrp(out));
    }

    /// Runs `f` on the core's thread and waits for its answer; None when the core has ended.
    pub fn ask<T: Send + 'static>(&self, f: impl FnOnce(&mut Core) -> T + Send + 'static) -> Option<T> {
        let (tx, rx) = mpsc::sync_channel(1);
        let order: Order = Box::new(move |core| drop(tx.send(f(core))));
        self.0.send(Message::Order(order)).ok()?;
        rx.recv().ok()
    }
}

/// How to start.
pub struct Start {
    pub config: AgentConfig,
    pub inherited: Vec<Listening>,
    pub workers: usize,
    pub open_files: u64,
    pub kernel_sets: Vec<(SetKind, Box<dyn KernelSet>)>,
    /// Differs between machines.
    pub seed: u64,
    pub boot: u64,
}

/// The core with everything it commands. Lives on its thread.
pub struct Core {
    pub(crate) config: AgentConfig,
    pub(crate) balancer: Balancer,
    pub(crate) proxy: Proxy,
    pub(crate) vrrp: Option<InputSender<Routers>>,
    prober: Prober,
    methods: HashMap<String, Arc<Method>>,
    addresses: HashMap<(String, String), std::net::SocketAddr>,
    kernel_sets: Vec<(SetKind, Box<dyn KernelSet>)>,
    paths: BTreeMap<String, bool>,
    recorder: Option<Recorder>,
    started: Instant,
    stopped: bool,
    /// No clients are taken any more.
    draining: bool,
    doors: Doors,
    leaving: Vec<Leaving>,
    closing: Vec<Closing>,
    /// Latest transitions, newest last, for the statistics page.
    pub(crate) log: std::collections::VecDeque<(std::time::SystemTime, String)>,
    /// Worst lateness of this thread since the start, and how often it was noticeable.
    pub(crate) worst_late: Duration,
}

/// Transitions shown on the statistics page.
const LOG_LENGTH: usize = 50;

/// Starts the core's thread: checks begin, and each frontend listens as soon as it has a backend (at the latest after
/// 1.5 s). When all were tried the receiver tells which listeners could not be bound; they are tried again every second.
///
/// # Errors
/// No threads or descriptors left, or TLS files that cannot be used.
pub fn start(start: Start) -> anyhow::Result<(CoreSender, JoinHandle<()>, Receiver<Vec<String>>)> {
    let (tx, rx) = mpsc::channel();
    let sender = CoreSender(tx);
    let sink: Sink = {
        let sender = sender.clone();
        Arc::new(move |report| {
            if let Some(input) = dial_input(report) {
                sender.input(input);
            }
        })
    };
    let prober = {
        let sender = sender.clone();
        Prober::start(move |a| {
            sender.input(Input::Probed {
                frontend: a.frontend,
                backend: a.backend,
                id: a.id,
                outcome: a.outcome,
                late: a.late,
            });
        })?
    };
    let proxy = Proxy::start(start.workers, start.open_files, &sink)?;
    let record = start.config.record.as_ref();
    let recorder = record.map(|path| Recorder::create(path, start.boot)).transpose()?;
    let (listening, listens) = mpsc::sync_channel(1);
    let mut core = Core {
        doors: Doors::new(&start.config, start.inherited, listening),
        leaving: Vec::new(),
        closing: Vec::new(),
        balancer: Balancer::new(&start.config, start.seed),
        proxy,
        vrrp: None,
        prober,
        methods: crate::health::methods(&start.config).map_err(anyhow::Error::msg)?,
        addresses: HashMap::new(),
        kernel_sets: start.kernel_sets,
        paths: BTreeMap::new(),
        recorder,
        started: Instant::now(),
        stopped: false,
        draining: false,
        log: std::collections::VecDeque::new(),
        worst_late: Duration::ZERO,
        config: start.config,
    };
    core.record(|config| Line::Config {
        config: Box::new(config.clone()),
        seed: start.seed,
    });
    // Backend sets first: nobody is refused because of the order of things at start.
    core.index(&core.config.clone());
    for f in core.config.frontends.clone() {
        core.proxy.apply(&f.name, &[], &options(&f), &mut Vec::new());
    }
    core.input(Input::Start);
    let thread = std::thread::Builder::new()
        .name("core".into())
        .spawn(move || core.run(&rx))?;
    Ok((sender, thread, listens))
}

impl Core {
    fn run(mut self, inbox: &Receiver<Message>) {
        while !self.stopped {
            self.open_doors();
            self.let_go();
            let due = self.balancer.poll_timeout();
            let mut wait = due.map_or(Duration::from_secs(3600), |at| at.saturating_sub(vrrp_io::now()));
            if let Some(at) = self.doors.due() {
                wait = wait.min(at.saturating_duration_since(Instant::now()));
            }
            match inbox.recv_timeout(wait) {
                Ok(Message::Input(input)) => self.input(input),
                Ok(Message::Vrrp(out)) => self.vrrp_says(out),
                Ok(Message::Order(f)) => f(&mut self),
                Err(RecvTimeoutError::Timeout) => {
                    if let Some(at) = due {
                        self.worst_late = self.worst_late.max(vrrp_io::now().saturating_sub(at));
                    }
                    self.input(Input::Tick);
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    pub(crate) fn input(&mut self, input: Input) {
        let now = vrrp_io::now();
        self.record(|_| Line::Input {
            now,
            to: Side::Balancer,
            input: input.clone(),
        });
        self.balancer.handle(now, &input);
        while let Some(action) = self.balancer.poll_action() {
            self.apply(action);
        }
        self.tell_paths();
    }

    /// Tells the virtual routers what changed: a frontend has a path when it has a backend and lets its clients in.
    fn tell_paths(&mut self) {
        if let Some(vrrp) = &self.vrrp {
            for (name, usable) in self.balancer.paths() {
                let usable = usable && self.lets_in(name);
                if self.paths.insert(name.to_owned(), usable) != Some(usable) {
                    vrrp.set_path(name, usable);
                }
            }
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Backends {
                frontend,
                kind,
                backends,
            } => self.backends(&frontend, kind, &backends),
            Action::Probe {
                frontend,
                backend,
                id,
                timeout,
                connect_timeout,
            } => self.probe(frontend, backend, id, timeout, connect_timeout),
            Action::ResetConnections {
                frontend,
                backend,
                address,
                spread,
            } => {
                self.reset(&frontend, &backend, address, spread);
            }
            Action::Report { event } => self.report(&event),
            // The virtual routers' own.
            Action::AddVip { .. }
            | Action::RemoveVip { .. }
            | Action::SendVrrp { .. }
            | Action::SendFrame { .. }
            | Action::Stopped => {}
        }
    }

    fn backends(&mut self, name: &str, kind: SetKind, backends: &[BackendView]) {
        if kind != SetKind::Proxy {
            for (k, set) in &mut self.kernel_sets {
                if *k == kind {
                    set.backends(name, backends);
                }
            }
            return;
        }
        let closing = self.closing.iter().map(|c| &c.config);
        let mut known = self.config.frontends.iter().chain(closing);
        let algorithm = known.find(|f| f.name == name).map(|f| f.balance);
        if let (Some(frontend), Some(algorithm)) = (self.runtime(name), algorithm) {
            let old = frontend.set();
            frontend.replace_set(Set::new(algorithm, backends, Some(&old)));
            // A backend that is no longer configured keeps its connections but has no place to be shown.
            for view in backends {
                self.addresses
                    .insert((name.to_owned(), view.name.clone()), view.address);
            }
        }
    }

    fn probe(&self, frontend: String, backend: String, id: u64, timeout: Duration, connect_timeout: Duration) {
        let closing = self.closing.iter().find(|c| c.config.name == frontend).map(|c| &c.how);
        let how = closing.or_else(|| self.methods.get(&frontend));
        let key = (frontend, backend);
        let (Some(&address), Some(how)) = (self.addresses.get(&key), how) else {
            return;
        };
        let (frontend, backend) = key;
        self.prober.check(Job {
            frontend,
            backend,
            id,
            address,
            how: Arc::clone(how),
            timeout,
            connect_timeout,
            ordered: Instant::now(),
        });
    }

    fn reset(&mut self, frontend: &str, backend: &str, address: std::net::SocketAddr, spread: Duration) {
        if let Some(b) = self.proxied(frontend, backend, address) {
            let connections = b.load.active();
            if connections > 0 {
                self.note(format!("{frontend}/{backend}: resetting its clients ({connections})"));
                tracing::warn!(
                    frontend,
                    backend,
                    connections,
                    "resetting the clients of a dead backend"
                );
            }
            self.proxy.kill(&b, spread);
            return;
        }
        let kind = self.config.backend_sets().find(|s| s.name == frontend).map(|s| s.kind);
        for (k, set) in &mut self.kernel_sets {
            if Some(*k) == kind {
                set.reset(frontend, address);
            }
        }
    }

    fn report(&mut self, event: &Event) {
        match event {
            Event::VrrpState {
                instance,
                from,
                to,
                reason,
            } => {
                tracing::warn!(instance, ?from, ?to, reason, "virtual router changes state");
                self.note(format!("{instance}: {from:?} → {to:?}: {reason}"));
            }
            Event::Conflict { instance, kind, detail } => {
                tracing::error!(instance, ?kind, detail, "conflict");
                self.note(format!("{instance}: {kind:?}: {detail}"));
            }
            Event::Late { what, late } => {
                tracing::warn!(what, ?late, "this process ran late");
                self.note(format!("{what}: this process ran late by {late:?}"));
            }
            Event::Backend {
                frontend,
                backend,
                from,
                to,
                reason,
                detail,
            } => {
                if *to == Availability::Up {
                    tracing::info!(frontend, backend, ?from, ?to, ?reason, detail, "backend");
                } else {
                    tracing::warn!(frontend, backend, ?from, ?to, ?reason, detail, "backend");
                }
                self.note(format!("{frontend}/{backend}: {from:?} → {to:?} ({reason:?}) {detail}"));
            }
            Event::FailOpen { frontend, usable } => {
                tracing::error!(
                    frontend,
                    usable,
                    "no backend is ready; connections go to those that are alive"
                );
                self.note(format!(
                    "{frontend}: no backend is ready, {usable} alive are used nevertheless"
                ));
            }
            Event::Path { frontend, usable } => {
                tracing::warn!(frontend, usable, "path to a backend");
                self.note(format!(
                    "{frontend}: {}",
                    if *usable {
                        "has a path"
                    } else {
                        "has no path to any backend"
                    }
                ));
            }
            Event::Failed { what, error } => {
                tracing::error!(what, error, "failed");
                self.note(format!("{what}: {error}"));
            }
            Event::Refused { what, hint } => tracing::warn!(what, hint, "refused"),
        }
    }

    fn note(&mut self, text: String) {
        if self.log.len() == LOG_LENGTH {
            self.log.pop_front();
        }
        self.log.push_back((std::time::SystemTime::now(), text));
    }

    fn vrrp_says(&mut self, out: Outgoing) {
        match out {
            Outgoing::Action(Action::Report { event }) => self.report(&event),
            Outgoing::Action(_) => {}
            Outgoing::Recorded(now, input) => self.record(|_| Line::Input {
                now,
                to: Side::Vrrp,
                input,
            }),
            Outgoing::RecordedPath(now, frontend, usable) => self.record(|_| Line::Path { now, frontend, usable }),
        }
    }

    /// The virtual routers are about to be started, with this boot id.
    pub fn expect_vrrp(&mut self, boot: u64) {
        // They know nothing of what those before were told.
        self.vrrp = None;
        self.paths.clear();
        self.record(|config| Line::Routers {
            vrrp: config.vrrp.clone(),
            boot,
        });
    }

    /// The virtual routers run from now on.
    pub fn attach_vrrp(&mut self, vrrp: InputSender<Routers>) {
        self.vrrp = Some(vrrp);
        self.tell_paths();
    }

    /// Takes over a valid configuration. What did not change is not touched.
    ///
    /// # Errors
    /// What could not be done; the rest was.
    pub fn reconfigure(&mut self, mut config: AgentConfig) -> Vec<String> {
        if self.draining {
            return vec!["nothing was changed: the agent is ending".into()];
        }
        let mut failed = Vec::new();
        let methods = match crate::health::methods(&config) {
            Ok(m) => m,
            Err(e) => return vec![format!("nothing was changed: {e}")],
        };
        failed.extend(self.keep_until_restart(&mut config));
        self.take_leave(&config);
        self.methods = methods;
        for (_, set) in &mut self.kernel_sets {
            set.configure(&config);
        }
        self.config = config.clone();
        let served = self.served();
        self.index(&served);
        for f in &config.frontends {
            if self.proxy.frontend(&f.name).is_none() {
                self.proxy.apply(&f.name, &[], &options(f), &mut Vec::new());
            }
        }
        self.input(Input::Config {
            config: Box::new(served),
        });
        self.reopen();
        failed.extend(self.not_listening());
        if let Some(vrrp) = &self.vrrp {
            match crate::config::keys(&config) {
                Ok(keys) => vrrp.tell(move |routers, _| routers.set_keys(keys)),
                Err(findings) => failed.extend(findings.into_iter().map(|f| f.message)),
            }
            vrrp.send(Input::Config {
                config: Box::new(config),
            });
        }
        failed
    }

    /// Puts back what this process goes on with until it is started again; says so.
    fn keep_until_restart(&self, config: &mut AgentConfig) -> Option<String> {
        let now = &self.config;
        let changes = [
            ("stats", config.stats != now.stats),
            ("metrics", config.metrics != now.metrics),
            ("admin.socket", config.admin != now.admin),
            ("record", config.record != now.record),
            ("node", config.node != now.node),
        ];
        config.stats.clone_from(&now.stats);
        config.metrics.clone_from(&now.metrics);
        config.admin.clone_from(&now.admin);
        config.record.clone_from(&now.record);
        config.node.clone_from(&now.node);
        let changed: Vec<&str> = changes.iter().filter(|c| c.1).map(|c| c.0).collect();
        let text = || format!("{}: in force with the next start only", changed.join(", "));
        (!changed.is_empty()).then(text)
    }

    fn index(&mut self, config: &AgentConfig) {
        self.addresses = config
            .backend_sets()
            .flat_map(|s| {
                s.backends
                    .iter()
                    .map(move |b| ((s.name.to_owned(), b.name.clone()), b.address))
            })
            .collect();
    }

    /// Copies of all listening sockets, for the process that takes over.
    pub fn listening(&self) -> Vec<Listening> {
        self.proxy.listening()
    }

    /// Takes no more clients; those there are may go on until `deadline`. Their backends are judged until then: nobody
    /// else would free the clients of one that dies.
    pub fn drain(&mut self, deadline: Instant) {
        self.draining = true;
        self.doors.lock();
        // A successor goes on with the same file.
        self.record(|_| Line::Input {
            now: vrrp_io::now(),
            to: Side::Balancer,
            input: Input::Stop,
        });
        self.recorder = None;
        for (_, set) in &mut self.kernel_sets {
            set.stop();
        }
        self.proxy.drain(deadline);
    }

    pub fn drained(&self) -> bool {
        self.proxy.finished()
    }

    /// Whether everything this process needs is running.
    pub fn healthy(&self) -> bool {
        !self.proxy.broken()
    }

    /// Why clients are not served as they should be.
    pub fn trouble(&self) -> Option<String> {
        let trouble = if self.healthy() {
            self.not_listening()
        } else {
            vec!["a proxy worker has ended or hangs".into()]
        };
        (!trouble.is_empty()).then(|| trouble.join("\n"))
    }

    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the thread.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    fn record(&mut self, line: impl FnOnce(&AgentConfig) -> Line) {
        if let Some(r) = &mut self.recorder {
            r.write(&line(&self.config));
        }
    }
}

fn dial_input(r: Report) -> Option<Input> {
    let outcome = match r.fault {
        Fault::Refused => DialOutcome::Refused,
        Fault::Timeout => DialOutcome::Timeout,
        Fault::Unreachable => DialOutcome::Unreachable,
        // A close before the first byte may be one client's doing: a doubt, and the check decides.
        Fault::Slow | Fault::Silent | Fault::Closed => DialOutcome::Slow,
        Fault::Local | Fault::Killed => return None,
    };
    Some(Input::Dial {
        frontend: r.frontend,
        backend: r.backend,
        outcome,
    })
}

fn options(f: &FrontendConfig) -> Options {
    let hedge_after = f.hedge_after.get();
    let default = Options::default();
    Options {
        connect_timeout: f.connect_timeout.get(),
        hedge_after,
        answer_hedge: default.answer_hedge.filter(|_| !hedge_after.is_zero()),
        max_connections: f.max_connections,
        max_per_source: f.per_source,
        queue_timeout: f.queue.timeout.get(),
        queue_length: f.queue.length,
        proxy_protocol: f.proxy_protocol == ProxyProtocol::V2,
        ..default
    }
}
