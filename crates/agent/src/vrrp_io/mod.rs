//! The real-time thread: carries packets, time and kernel events to the decision core, and its decisions to the kernel.
//!
//! One OS thread with SCHED_FIFO and locked memory where that is allowed. It never waits for anything but its poll set:
//! no logging, no files, no allocation-heavy work, no lock shared with slower threads. What it does not carry out
//! itself (backend sets, probes, reports) goes to a sink that must not block.

mod io;
mod lease;
mod sys;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::thread::JoinHandle;
use std::time::Duration;

use quorate_lb::vrrp::Routers;
use quorate_lb::{Action, Agent, AgentConfig, Event, Input, Now};

use io::Kernel;
pub(crate) use lease::LEASE;
pub(crate) use sys::realtime;
use sys::{Pair, Waker};

use crate::netlink::route::Routes;

/// A failure that goes on is reported again after this time.
const REPORT_AGAIN: Duration = Duration::from_secs(10);

/// From here on a wake-up is taken for the end of a pause (SIGSTOP, a suspended machine) rather than for a busy moment.
const LATE: Duration = Duration::from_millis(50);

/// The decision core as this thread drives it.
pub trait Engine: Send + 'static {
    /// Takes one input; `now` never goes back.
    fn handle(&mut self, now: Now, input: Input);
    /// What is to be done next, in order.
    fn poll_action(&mut self) -> Option<Action>;
    /// When `Input::Tick` is due at the latest.
    fn poll_timeout(&mut self) -> Option<Now>;
    /// Whether the local `frontend` has a backend to pass connections to. A core that decides so itself is not told.
    fn set_path(&mut self, _now: Now, _frontend: &str, _usable: bool) {}
    /// For a recording: whether a received packet was signed by the key it names.
    fn judge(&self, _input: &Input) -> Option<bool> {
        None
    }
    /// Everything is given up after `Input::Stop`. A core that says so by `Action::Stopped` need not.
    fn is_stopped(&self) -> bool {
        false
    }
}

impl Engine for Routers {
    fn handle(&mut self, now: Now, input: Input) {
        Self::handle(self, now, &input);
    }

    fn poll_action(&mut self) -> Option<Action> {
        Self::poll_action(self)
    }

    fn poll_timeout(&mut self) -> Option<Now> {
        Self::poll_timeout(self)
    }

    fn set_path(&mut self, now: Now, frontend: &str, usable: bool) {
        Self::set_path(self, now, frontend, usable);
    }

    fn judge(&self, input: &Input) -> Option<bool> {
        Self::judge(self, input)
    }

    fn is_stopped(&self) -> bool {
        Self::is_stopped(self)
    }
}

impl Engine for Agent {
    fn handle(&mut self, now: Now, input: Input) {
        Self::handle(self, now, input);
    }

    fn poll_action(&mut self) -> Option<Action> {
        Self::poll_action(self)
    }

    fn poll_timeout(&mut self) -> Option<Now> {
        Self::poll_timeout(self)
    }
}

/// What the thread hands to the rest of the process.
#[derive(Debug)]
pub enum Outgoing {
    /// An action that is not the thread's own business, or a report.
    Action(Action),
    /// An input it has just given to the core; only when recording.
    Recorded(Now, Input),
    /// The same of the path of a frontend.
    RecordedPath(Now, String, bool),
}

/// How to start the thread.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Ask for SCHED_FIFO and locked memory.
    pub realtime: bool,
    /// Hand every input to the sink as well.
    pub record: bool,
}

/// Numbers of the thread, readable at any time from any thread.
#[derive(Debug, Default)]
pub struct Counters {
    /// Advertisements sent.
    pub sent: AtomicU64,
    /// Advertisements that the kernel did not take.
    pub send_errors: AtomicU64,
    /// Datagrams of protocol 112 received.
    pub received: AtomicU64,
    /// Link-layer frames sent (gratuitous ARP, neighbour advertisements).
    pub frames: AtomicU64,
    /// Claims of our VIPs by others that were seen.
    pub claims: AtomicU64,
    /// VIPs removed by somebody else.
    pub lost: AtomicU64,
    /// Wake-ups.
    pub wakeups: AtomicU64,
    /// Longest time in µs by which a timer was served late.
    pub worst_lateness_us: AtomicU64,
}

/// What could not be had at start; the thread runs nevertheless.
#[derive(Debug, Default)]
pub struct Shortcomings(pub Vec<String>);

/// Why the thread could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A kernel interface could not be used.
    #[error("{operation}: {source}; VRRP needs root, or CAP_NET_RAW and CAP_NET_ADMIN")]
    System {
        /// What was being done.
        operation: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Addresses or links could not be asked for.
    #[error(transparent)]
    Netlink(#[from] crate::netlink::Error),
    /// ARP or neighbour discovery could not be watched.
    #[error(transparent)]
    Arp(#[from] crate::arp::Error),
}

type Query<E> = Box<dyn FnOnce(&mut E, Now) + Send>;

enum Message<E> {
    Input(Input),
    Path(String, bool),
    Query(Query<E>),
}

/// A running thread. Dropping the handle stops it as `Input::Stop` does.
pub struct Handle<E> {
    messages: Sender<Message<E>>,
    waker: Arc<Waker>,
    counters: Arc<Counters>,
    thread: Option<JoinHandle<()>>,
}

impl<E> std::fmt::Debug for Handle<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle")
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

/// A cloneable way to send inputs.
pub struct InputSender<E> {
    messages: Sender<Message<E>>,
    waker: Arc<Waker>,
    counters: Arc<Counters>,
}

impl<E> Clone for InputSender<E> {
    fn clone(&self) -> Self {
        Self {
            messages: self.messages.clone(),
            waker: Arc::clone(&self.waker),
            counters: Arc::clone(&self.counters),
        }
    }
}

impl<E> InputSender<E> {
    /// The thread's numbers.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Hands an input over; never blocks. Silently dropped when the thread has ended.
    pub fn send(&self, input: Input) {
        if self.messages.send(Message::Input(input)).is_ok() {
            self.waker.wake();
        }
    }

    /// Whether the local `frontend` has a backend to pass connections to; the VIPs that track it move when it has not.
    pub fn set_path(&self, frontend: &str, usable: bool) {
        if self.messages.send(Message::Path(frontend.to_owned(), usable)).is_ok() {
            self.waker.wake();
        }
    }

    /// Has something done to the core on its own thread, without waiting for it. Keep it short.
    pub fn tell(&self, order: impl FnOnce(&mut E, Now) + Send + 'static) {
        if self.messages.send(Message::Query(Box::new(order))).is_ok() {
            self.waker.wake();
        }
    }

    /// Asks the core something on its own thread; `None` when that has ended. Keep it short: time stands still there.
    pub fn query<T: Send + 'static>(&self, question: impl FnOnce(&mut E, Now) -> T + Send + 'static) -> Option<T> {
        let (answer, result) = mpsc::sync_channel(1);
        let ask: Query<E> = Box::new(move |engine, now| drop(answer.send(question(engine, now))));
        self.messages.send(Message::Query(ask)).ok()?;
        self.waker.wake();
        result.recv().ok()
    }
}

impl<E> Handle<E> {
    /// A way to send inputs that can be cloned and moved to other threads.
    pub fn sender(&self) -> InputSender<E> {
        InputSender {
            messages: self.messages.clone(),
            waker: Arc::clone(&self.waker),
            counters: Arc::clone(&self.counters),
        }
    }

    /// The thread's numbers.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Gives everything up (priority 0, VIPs removed) and waits for the end of the thread.
    pub fn stop(mut self) {
        self.end();
    }

    /// Waits until the thread ends by itself, after an `Input::Stop`.
    pub fn join(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.sender().send(Input::Stop);
            let _ = thread.join();
        }
    }
}

impl<E> Drop for Handle<E> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Time since boot, suspends included: the clock of every `now` given to the core.
pub fn now() -> Now {
    sys::now()
}

/// Opens all sockets for `config`, then starts the thread: it sends `Input::Start` and the state of every interface
/// first. `sink` is called on the real-time thread and must not block. Uses the caller's network namespace.
pub fn spawn<E: Engine>(
    config: &AgentConfig,
    engine: E,
    options: Options,
    sink: impl FnMut(Outgoing) + Send + 'static,
) -> Result<(Handle<E>, Shortcomings), Error> {
    let system = |operation: &str| {
        let operation = operation.to_owned();
        move |source| Error::System { operation, source }
    };
    crate::supervise::keep_lifeline();
    let counters = Arc::new(Counters::default());
    let kernel = Kernel::open(config, Arc::clone(&counters))?;
    let waker = Arc::new(Waker::new().map_err(system("creating an event descriptor"))?);
    let (messages, inbox) = mpsc::channel();
    let (ready, started) = mpsc::sync_channel(1);
    let mut worker = Worker {
        engine,
        kernel,
        inbox,
        waker: Arc::clone(&waker),
        sink: Box::new(sink),
        record: options.record,
        counters: Arc::clone(&counters),
        known: HashMap::new(),
        reported: HashMap::new(),
        stopped: false,
        late: false,
    };
    crate::supervise::holds();
    let thread = std::thread::Builder::new()
        .name("vrrp".to_owned())
        .spawn(move || {
            let mut shortcomings = Shortcomings::default();
            if options.realtime {
                shortcomings = become_realtime();
            }
            let _ = ready.send(shortcomings);
            worker.run();
            // Dropping the kernel side removes what is still held.
            drop(worker);
            crate::supervise::released();
        })
        .map_err(system("starting the VRRP thread"))?;
    let shortcomings = started.recv().unwrap_or_default();
    Ok((
        Handle {
            messages,
            waker,
            counters,
            thread: Some(thread),
        },
        shortcomings,
    ))
}

/// Sends advertisements without a thread or a core; anything but [`Action::SendVrrp`] is left out. Tries all of them, and
/// returns the first failure.
pub(crate) fn send(actions: &[Action]) -> Result<(), Error> {
    let links = Routes::open()?.links()?;
    let mut outcome = Ok(());
    for action in actions {
        let Action::SendVrrp {
            interface,
            source,
            destination,
            payload,
            ..
        } = action
        else {
            continue;
        };
        let index = links.iter().find(|link| link.name == *interface).map(|link| link.index);
        let sent = index
            .ok_or_else(|| std::io::ErrorKind::NotFound.into())
            .and_then(|index| Pair::open(interface, index, source.is_ipv4()))
            .and_then(|pair| pair.send(*source, *destination, payload))
            .map_err(|source| Error::System {
                operation: format!("sending an advertisement on {interface}"),
                source,
            });
        outcome = outcome.and(sent);
    }
    outcome
}

fn become_realtime() -> Shortcomings {
    let mut list = Vec::new();
    if let Err(error) = sys::realtime() {
        list.push(format!(
            "no real-time priority for VRRP (SCHED_FIFO, needs CAP_SYS_NICE): {error}"
        ));
    }
    if let Err(error) = sys::lock_memory() {
        list.push(format!(
            "memory is not locked (mlockall, needs CAP_IPC_LOCK or a high LimitMEMLOCK): {error}"
        ));
    }
    if let Err(error) = crate::sockdiag::supported() {
        list.push(format!(
            "clients of a moving VIP or a dead backend are not freed at once: {error}"
        ));
    }
    Shortcomings(list)
}

struct Worker<E> {
    engine: E,
    kernel: Kernel,
    inbox: Receiver<Message<E>>,
    waker: Arc<Waker>,
    sink: Box<dyn FnMut(Outgoing) + Send>,
    record: bool,
    counters: Arc<Counters>,
    /// Last state told to the core of each interface.
    known: HashMap<String, io::LinkState>,
    /// When each failure was reported last.
    reported: HashMap<String, Now>,
    stopped: bool,
    /// This wake-up came so late that another machine may hold our VIPs.
    late: bool,
}

/// How long to wait for something to happen; `None`: for ever.
fn patience(deadline: Option<Now>, now: Now, holds: bool) -> Option<Duration> {
    let until = deadline.map(|deadline| deadline.saturating_sub(now));
    let seen = holds.then_some(lease::SEEN_EVERY);
    until.into_iter().chain(seen).min()
}

impl<E: Engine> Worker<E> {
    fn run(&mut self) {
        self.kernel.seen();
        self.input(Input::Start);
        self.tell_links();
        while !self.stopped && !self.engine.is_stopped() {
            let deadline = self.engine.poll_timeout();
            let timeout = patience(deadline, sys::now(), self.kernel.holds());
            if let Err(error) = self.kernel.wait(&self.waker, timeout) {
                // Only a programming error gets here; dropping the kernel side removes the VIPs rather than hold them blindly.
                self.failed("waiting for events", &error.to_string());
                return;
            }
            self.counters.wakeups.fetch_add(1, Ordering::Relaxed);
            self.kernel.seen();
            self.note_lateness(deadline);
            // Packets before time: an advertisement that waited in the socket while we were not running must count
            // before its absence does.
            self.kernel_inputs();
            self.messages();
            let now = sys::now();
            if self.engine.poll_timeout().is_some_and(|deadline| deadline <= now) {
                self.input(Input::Tick);
            }
        }
    }

    fn note_lateness(&mut self, deadline: Option<Duration>) {
        let late = deadline.map_or(Duration::ZERO, |deadline| sys::now().saturating_sub(deadline));
        self.late = late >= LATE;
        self.counters
            .worst_lateness_us
            .fetch_max(late.as_micros() as u64, Ordering::Relaxed);
    }

    fn kernel_inputs(&mut self) {
        let mut inputs = self.kernel.take_inputs();
        for input in inputs.drain(..) {
            match input {
                io::Seen::Input(input) => self.input(input),
                io::Seen::LinksChanged => self.tell_links(),
                io::Seen::Failed { what, error } => self.failed(&what, &error),
            }
        }
        self.kernel.give_back(inputs);
    }

    /// Tells the core about interfaces whose state is new.
    fn tell_links(&mut self) {
        for (interface, state) in self.kernel.links() {
            if self.known.insert(interface.clone(), state.clone()).as_ref() != Some(&state) {
                let io::LinkState { up, mac, missing } = state;
                self.input(Input::Link {
                    interface,
                    up,
                    mac,
                    missing,
                });
            }
        }
    }

    fn messages(&mut self) {
        self.waker.clear();
        loop {
            match self.inbox.try_recv() {
                Ok(Message::Input(input)) => {
                    let config = match &input {
                        Input::Config { config } => Some(config.clone()),
                        _ => None,
                    };
                    // The core first: what is no longer configured says goodbye over sockets that are still open.
                    self.input(input);
                    if let Some(config) = config {
                        if let Err(error) = self.kernel.reconfigure(&config) {
                            self.failed("taking over the new configuration", &error.to_string());
                        }
                        self.tell_links();
                    }
                }
                Ok(Message::Path(frontend, usable)) => {
                    let now = sys::now();
                    if self.record {
                        (self.sink)(Outgoing::RecordedPath(now, frontend.clone(), usable));
                    }
                    self.engine.set_path(now, &frontend, usable);
                    self.carry_out();
                }
                Ok(Message::Query(query)) => {
                    query(&mut self.engine, sys::now());
                    self.carry_out();
                }
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => return self.input(Input::Stop),
            }
        }
    }

    /// Gives one input to the core and carries out everything that follows from it.
    fn input(&mut self, input: Input) {
        self.give(input);
        self.carry_out();
    }

    fn give(&mut self, input: Input) {
        let now = sys::now();
        if self.record {
            let mut recorded = input.clone();
            if let Input::Vrrp { authentic, .. } = &mut recorded {
                *authentic = self.engine.judge(&input);
            }
            (self.sink)(Outgoing::Recorded(now, recorded));
        }
        self.engine.handle(now, input);
    }

    /// Carries out what the core wants, and tells it what became of it.
    fn carry_out(&mut self) {
        while let Some(action) = self.engine.poll_action() {
            if let Some(answer) = self.apply(action) {
                self.give(answer);
            }
        }
    }

    /// Carries out one action; returns its answer where it has one.
    fn apply(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::AddVip {
                instance,
                interface,
                vip,
            } => Some(self.kernel.add_vip(instance, &interface, vip)),
            Action::RemoveVip {
                instance,
                interface,
                vip,
            } => Some(self.kernel.remove_vip(instance, &interface, vip, self.late)),
            Action::SendVrrp {
                interface,
                source,
                destination,
                payload,
                ..
            } => {
                if let Some(error) = self.kernel.send(&interface, source, destination, &payload) {
                    self.failed(&format!("advertising to {destination} on {interface}"), &error);
                }
                None
            }
            Action::SendFrame { interface, frame } => {
                if let Some(error) = self.kernel.announce(&interface, &frame) {
                    self.failed(&format!("announcing VIPs on {interface}"), &error);
                }
                None
            }
            other => {
                self.stopped |= other == Action::Stopped;
                (self.sink)(Outgoing::Action(other));
                None
            }
        }
    }

    /// Reports a failure; the same one again only after a while, since advertisements fail ten times a second.
    fn failed(&mut self, what: &str, error: &str) {
        let now = sys::now();
        let last = self.reported.insert(what.to_owned(), now);
        if last.is_some_and(|last| now.saturating_sub(last) < REPORT_AGAIN) {
            self.reported.extend(last.map(|last| (what.to_owned(), last)));
            return;
        }
        let event = Event::Failed {
            what: what.to_owned(),
            error: error.to_owned(),
        };
        (self.sink)(Outgoing::Action(Action::Report { event }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_holder_is_seen_running_whatever_its_interval() {
        let ms = Duration::from_millis;
        for (deadline, holds, wait) in [
            (None, false, None),
            (None, true, Some(ms(500))),
            (Some(ms(1_050)), true, Some(ms(50))),
            (Some(ms(900)), true, Some(Duration::ZERO)),
            // Half of the longest intervals of version 3 and of version 2.
            (Some(ms(21_475)), true, Some(ms(500))),
            (Some(ms(128_500)), true, Some(ms(500))),
            (Some(ms(128_500)), false, Some(ms(127_500))),
        ] {
            assert_eq!(patience(deadline, ms(1_000), holds), wait, "{deadline:?}, {holds}");
        }
    }
}
