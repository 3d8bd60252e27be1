//! Virtual routers in a simulated network: loss, delay, duplication, reordering, one-way cuts, pauses,
//! clock jumps, crashes and restarts, each from a seed.
//!
//! After the network heals: never two owners longer than one interval and the delay, soon always one owner,
//! and no flapping. A failing seed is printed and runs alone with
//!
//! ```text
//! QUORATE_SIM_SEED=1234 cargo test -p quorate-lb --test sim -- --nocapture
//! QUORATE_SIM_RUNS=1000000 cargo test -p quorate-lb --release --test sim
//! ```
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test reads its settings and tells its speed"
)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use quorate_lb::config::{AuthMode, Span, VrrpInstance};
use quorate_lb::vrrp::{Keyring, Routers, SecretKey, next_boot};
use quorate_lb::{Action, Bytes, Command, Input, VrrpState};

/// Runs of an ordinary `cargo test`: a few seconds even without optimisation.
const DEFAULT_RUNS: u64 = 1000;

#[test]
fn owners_after_heal() {
    if let Some(seed) = setting("QUORATE_SIM_SEED") {
        let report = World::new(seed, true).run();
        eprintln!("seed {seed}: {report:?}");
        assert_eq!(report.broken, None, "seed {seed}");
        return;
    }
    let runs = setting("QUORATE_SIM_RUNS").unwrap_or(DEFAULT_RUNS);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (next, events) = (AtomicU64::new(0), AtomicU64::new(0));
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= runs {
                        break;
                    }
                    let report = World::new(seed, false).run();
                    events.fetch_add(report.events, Ordering::Relaxed);
                    assert_eq!(report.broken, None, "QUORATE_SIM_SEED={seed} replays this");
                }
            });
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    let events = events.into_inner();
    eprintln!(
        "{runs} schedules, {events} events in {seconds:.1} s: {:.0} schedules/s",
        runs as f64 / seconds
    );
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for seed in 0..20 {
        assert_eq!(World::new(seed, false).run(), World::new(seed, false).run());
    }
}

/// One advertisement in ten lost, up to 20 ms of jitter: nobody but the first holder ever holds the VIP.
#[test]
fn no_false_failover_under_loss_and_jitter() {
    for seed in 0..60 {
        let mut world = World::new(seed, false);
        world.plan = Plan {
            loss: 100,
            duplicate: 10,
            delay: 100,
            jitter: 20_000,
            faults: Vec::new(),
            chaos: 20_000_000,
            heal: 0,
            ..world.plan
        };
        let report = world.run();
        assert!(report.masters <= world_first_elections(seed), "seed {seed}: {report:?}");
    }
}

/// The holder dies on a quiet network: another has the VIP within the longest master-down interval.
#[test]
fn takeover_is_bounded() {
    let mut worst = 0;
    for seed in 0..400 {
        let mut world = World::new(seed, false);
        world.plan = Plan {
            loss: 0,
            duplicate: 0,
            delay: 100,
            jitter: 2_000,
            faults: vec![(2_000_000, Fault::CrashOwner)],
            chaos: 4_000_000,
            heal: 0,
            ..world.plan
        };
        let bound = world.down_interval() + 2 * LATENCY + 2_100 + SUPERVISOR;
        let report = world.run();
        worst = worst.max(report.longest_gap);
        assert!(
            report.longest_gap <= bound,
            "seed {seed}: no owner for {} us, bound {bound}",
            report.longest_gap
        );
    }
    assert!(worst > 0);
}

/// A clean stop leaves no moment without owner, and nobody waits for a whole master-down interval.
#[test]
fn a_clean_stop_leaves_no_gap() {
    for seed in 0..400 {
        let mut world = World::new(seed, false);
        let interval = world.plan.interval;
        world.plan = Plan {
            loss: 0,
            duplicate: 0,
            delay: interval / 1000,
            jitter: 1 + interval / 100,
            faults: vec![(interval * 20, Fault::StopOwner)],
            chaos: interval * 40,
            heal: 0,
            ..world.plan
        };
        let nodes = world.nodes.len() as u64;
        let report = world.run();
        // First elections, the successor, and at most every other on the way to the best.
        assert!(report.masters <= 2 * nodes, "seed {seed}: {report:?}");
        assert_eq!((report.broken, report.longest_gap), (None, 0), "seed {seed}");
    }
}

/// Backups that sleep, or whose whole machine sleeps, do not take the VIP from a living holder.
#[test]
fn no_takeover_by_a_late_backup() {
    for seed in 0..400 {
        let mut world = World::new(seed, false);
        let interval = world.plan.interval;
        let faults = (0..6).map(|n| {
            let fault = if n % 2 == 0 {
                Fault::PauseBackups {
                    time: interval * (1 + 3 * n),
                }
            } else {
                Fault::SuspendBackups {
                    time: interval * (1 + 3 * n),
                }
            };
            (interval * (20 + 30 * n), fault)
        });
        world.plan = Plan {
            loss: 0,
            duplicate: 0,
            faults: faults.collect(),
            chaos: interval * 220,
            heal: 0,
            ..world.plan
        };
        let report = world.run();
        assert!(report.masters <= world_first_elections(seed), "seed {seed}: {report:?}");
        assert_eq!((report.broken, report.longest_gap), (None, 0), "seed {seed}");
    }
}

/// Machine after machine restarts with its clock set back: its peers go on hearing it.
#[test]
fn restarts_with_an_older_clock_make_no_second_owner() {
    for seed in 0..200 {
        let mut world = World::new(seed, false);
        world.authenticated = true;
        for node in &mut world.nodes {
            node.config.auth.mode = AuthMode::Enforce;
        }
        let interval = world.plan.interval;
        let nodes = world.nodes.len();
        let fault = |node: usize| Fault::OlderClock {
            node,
            down: interval * 4,
        };
        let chaos = interval * (20 + 30 * nodes as u64);
        world.plan = Plan {
            loss: 0,
            duplicate: 0,
            faults: (0..nodes)
                .map(|node| (interval * (20 + 30 * node as u64), fault(node)))
                .collect(),
            chaos,
            heal: chaos,
            ..world.plan
        };
        assert_eq!(world.run().broken, None, "seed {seed}");
    }
}

/// First elections may pass through several machines: at most each once.
fn world_first_elections(seed: u64) -> u64 {
    World::new(seed, false).nodes.len() as u64
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

// --- the world; all times in microseconds ---

/// Longest time between a timer and the process acting on it.
const LATENCY: u64 = 1_000;
/// Longest time from a crash until the supervisor has removed the VIP.
const SUPERVISOR: u64 = 20_000;
/// What machines' clocks show at the start: Unix time.
const EPOCH: u64 = 1_700_000_000_000_000;
/// By how much a clock is set back.
const SET_BACK: u64 = 3_600_000_000;

#[derive(Debug, Default, PartialEq)]
struct Report {
    broken: Option<String>,
    events: u64,
    /// Times anyone became master.
    masters: u64,
    /// Longest time without owner between the first owner and the end of chaos.
    longest_gap: u64,
}

struct Plan {
    interval: u64,
    /// Per mille.
    loss: u64,
    duplicate: u64,
    delay: u64,
    jitter: u64,
    faults: Vec<(u64, Fault)>,
    chaos: u64,
    /// Faults are over and packets are no longer lost from here on (0: never checked).
    heal: u64,
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Crash {
        node: usize,
        down: u64,
    },
    CrashOwner,
    /// A crash; when it is back, the machine's clock is an hour behind.
    OlderClock {
        node: usize,
        down: u64,
    },
    StopOwner,
    Stop {
        node: usize,
        down: u64,
    },
    Pause {
        node: usize,
        time: u64,
    },
    /// The whole machine pauses: packets meanwhile are lost.
    Suspend {
        node: usize,
        time: u64,
    },
    PauseBackups {
        time: u64,
    },
    SuspendBackups {
        time: u64,
    },
    ClockJump {
        node: usize,
        by: u64,
    },
    Cut {
        from: usize,
        to: usize,
        time: u64,
    },
    Isolate {
        node: usize,
        time: u64,
    },
    LinkDown {
        node: usize,
        time: u64,
    },
    PathLost {
        node: usize,
        time: u64,
    },
    Release {
        node: usize,
    },
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Deliver { from: usize, to: usize, payload: Vec<u8> },
    Wake { node: usize, turn: u32 },
    Fault { index: usize },
    Restart { node: usize, life: u32 },
    Purge { node: usize, life: u32 },
    Resume { node: usize },
    Repair { from: usize, to: usize },
    Link { node: usize, up: bool },
    Path { node: usize, usable: bool },
    Heal,
}

struct Node {
    config: VrrpInstance,
    routers: Option<Routers>,
    owns: bool,
    life: u32,
    turn: u32,
    /// The last boot id, and how far behind the machine's clock is.
    boot: Option<u64>,
    behind: u64,
    /// Clock: simulated time since this life's start, plus jumps.
    born: u64,
    jumped: u64,
    paused: bool,
    paused_at: u64,
    suspended: bool,
    waiting: Vec<(usize, Vec<u8>)>,
    link: bool,
    path: bool,
}

struct World {
    random: Random,
    plan: Plan,
    nodes: Vec<Node>,
    cuts: Vec<u32>,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    now: u64,
    healed: bool,
    report: Report,
    both_since: Option<u64>,
    none_since: Option<u64>,
    last_change: u64,
    verbose: bool,
    authenticated: bool,
}

impl World {
    fn new(seed: u64, verbose: bool) -> Self {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5157_4f52_4154_4531);
        let count = 2 + random.below(4) as usize;
        let interval = [10_000, 50_000, 100_000, 100_000, 100_000, 1_000_000][random.below(6) as usize];
        let authenticated = random.below(16) == 0;
        let equal = random.below(4) == 0;
        let preempt = random.below(3) != 0;
        let tracked = random.below(2) == 0;
        let addresses: Vec<IpAddr> = (1..=count).map(|n| IpAddr::from([10, 0, 0, n as u8])).collect();
        let node = |n: usize, random: &mut Random| Node {
            config: config(
                n,
                &addresses,
                interval,
                preempt,
                tracked,
                authenticated,
                if equal { 100 } else { 1 + random.below(254) as u8 },
            ),
            routers: None,
            owns: false,
            life: 0,
            turn: 0,
            boot: None,
            behind: 0,
            born: 0,
            jumped: 0,
            paused: false,
            paused_at: 0,
            suspended: false,
            waiting: Vec::new(),
            link: true,
            path: true,
        };
        let nodes: Vec<Node> = (0..count).map(|n| node(n, &mut random)).collect();
        let plan = Plan::random(&mut random, count, interval);
        Self {
            random,
            plan,
            nodes,
            cuts: vec![0; count * count],
            queue: BinaryHeap::new(),
            sequence: 0,
            now: 0,
            healed: false,
            report: Report::default(),
            both_since: None,
            none_since: None,
            last_change: 0,
            verbose,
            authenticated,
        }
    }

    /// The longest any node waits for a silent master.
    fn down_interval(&self) -> u64 {
        let lowest = self.nodes.iter().map(|n| n.config.priority).min().unwrap_or(0);
        self.plan.interval * 3 + self.plan.interval * (256 - u64::from(lowest)) / 256
    }

    fn run(mut self) -> Report {
        for node in 0..self.nodes.len() {
            // Machines do not boot in the same instant.
            let at = self.random.below(self.plan.interval);
            self.at(at, Event::Restart { node, life: 0 });
        }
        for index in 0..self.plan.faults.len() {
            self.at(self.plan.faults[index].0, Event::Fault { index });
        }
        if self.plan.heal > 0 {
            self.at(self.plan.heal, Event::Heal);
        }
        let max_delay = self.plan.delay + self.plan.jitter;
        let settled = self.plan.heal + 2 * self.down_interval() + 5 * self.plan.interval + max_delay + 4 * LATENCY;
        let end = if self.plan.heal > 0 {
            settled + 4 * self.plan.interval
        } else {
            self.plan.chaos
        };
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            if at > end || self.report.broken.is_some() {
                break;
            }
            self.now = at;
            self.report.events += 1;
            self.handle(event);
            self.check(settled, max_delay);
        }
        if let Some(since) = self.none_since.filter(|_| self.plan.heal == 0) {
            self.report.longest_gap = self.report.longest_gap.max(end - since);
        }
        self.report
    }

    fn check(&mut self, settled: u64, max_delay: u64) {
        let owners = self.nodes.iter().filter(|n| n.owns).count();
        let interval = self.plan.interval;
        if owners > 1 {
            let since = *self.both_since.get_or_insert(self.now);
            // The loser hears of it with the next advertisement, half an interval away.
            let limit = since.max(self.plan.heal) + interval + max_delay + 2 * LATENCY;
            if self.healed && self.now > limit {
                self.fail(format!("two owners since {since}, healed at {}", self.plan.heal));
            }
        } else {
            self.both_since = None;
        }
        if owners == 0 {
            self.none_since.get_or_insert(self.now);
            if self.healed && self.now > settled {
                self.fail(format!("no owner at {}, healed at {}", self.now, self.plan.heal));
            }
        } else if let Some(since) = self.none_since.take()
            && self.report.masters > 1
        {
            self.report.longest_gap = self.report.longest_gap.max(self.now - since);
        }
        if self.healed && self.last_change > settled {
            self.fail(format!(
                "still changing hands at {}, healed at {}",
                self.last_change, self.plan.heal
            ));
        }
    }

    fn fail(&mut self, what: String) {
        self.report.broken.get_or_insert(what);
    }

    fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((at.max(self.now), self.sequence, event)));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Deliver { from, to, payload } => {
                let node = &mut self.nodes[to];
                if node.suspended || !node.link || node.routers.is_none() {
                    return;
                }
                if node.paused {
                    node.waiting.push((from, payload));
                } else {
                    let input = self.vrrp_input(from, to, payload);
                    self.input(to, input);
                }
            }
            Event::Wake { node, turn } => {
                if self.nodes[node].turn == turn && !self.nodes[node].paused {
                    self.input(node, Input::Tick);
                }
            }
            Event::Fault { index } => {
                let fault = self.plan.faults[index].1;
                self.note(&format!("{fault:?}"));
                self.fault(fault);
            }
            Event::Restart { node, life } => {
                if self.nodes[node].life == life && self.nodes[node].routers.is_none() {
                    self.boot(node);
                }
            }
            Event::Purge { node, life } => {
                if self.nodes[node].life == life {
                    self.own(node, false);
                }
            }
            Event::Resume { node } => self.resume(node),
            Event::Repair { from, to } => {
                let at = from * self.nodes.len() + to;
                self.cuts[at] = self.cuts[at].saturating_sub(1);
            }
            Event::Link { node, up } => {
                self.nodes[node].link = up;
                self.link_input(node);
            }
            Event::Path { node, usable } => {
                self.nodes[node].path = usable;
                self.path_input(node);
            }
            Event::Heal => {
                self.healed = true;
                self.plan.loss = 0;
                self.cuts.fill(0);
                self.note("healed");
            }
        }
    }

    fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::Crash { node, down } => self.crash(node, Some(down)),
            Fault::CrashOwner => {
                if let Some(owner) = self.nodes.iter().position(|n| n.owns) {
                    self.crash(owner, None);
                }
            }
            Fault::OlderClock { node, down } => {
                self.nodes[node].behind += SET_BACK;
                self.crash(node, Some(down));
            }
            Fault::StopOwner => {
                if let Some(owner) = self.nodes.iter().position(|n| n.owns) {
                    self.input(owner, Input::Stop);
                }
            }
            Fault::Stop { node, down } => {
                self.input(node, Input::Stop);
                self.at(
                    self.now + down,
                    Event::Fault {
                        index: self.plan.faults.len(),
                    },
                );
                self.plan.faults.push((0, Fault::Crash { node, down: 0 }));
            }
            Fault::Pause { node, time } | Fault::Suspend { node, time } => {
                if self.nodes[node].paused {
                    return;
                }
                self.nodes[node].paused = true;
                self.nodes[node].paused_at = self.now;
                self.nodes[node].suspended = matches!(fault, Fault::Suspend { .. });
                self.at(self.now + time, Event::Resume { node });
            }
            Fault::PauseBackups { time } | Fault::SuspendBackups { time } => {
                for node in (0..self.nodes.len())
                    .filter(|n| !self.nodes[*n].owns)
                    .collect::<Vec<_>>()
                {
                    self.fault(match fault {
                        Fault::PauseBackups { .. } => Fault::Pause { node, time },
                        _ => Fault::Suspend { node, time },
                    });
                }
            }
            Fault::ClockJump { node, by } => {
                self.nodes[node].jumped += by;
                self.input(node, Input::Tick);
            }
            Fault::Cut { from, to, time } => self.cut(from, to, time),
            Fault::Isolate { node, time } => {
                for other in 0..self.nodes.len() {
                    self.cut(node, other, time);
                    self.cut(other, node, time);
                }
            }
            Fault::LinkDown { node, time } => {
                self.at(self.now, Event::Link { node, up: false });
                self.at(self.now + time, Event::Link { node, up: true });
            }
            Fault::PathLost { node, time } => {
                self.at(self.now, Event::Path { node, usable: false });
                self.at(self.now + time, Event::Path { node, usable: true });
            }
            Fault::Release { node } => {
                let command = Command::Release {
                    instance: "api".into(),
                    hold: Duration::from_micros(self.plan.interval * 4),
                };
                self.input(node, Input::Command { command });
            }
        }
    }

    fn boot(&mut self, node: usize) {
        let keys = self.authenticated.then(|| vec![SecretKey::new(1, &[7; 32]).unwrap()]);
        let keys: Keyring = keys
            .map(|k| BTreeMap::from([("api".to_string(), k)]))
            .unwrap_or_default();
        let n = &mut self.nodes[node];
        n.life += 1;
        (n.born, n.jumped, n.paused, n.suspended) = (self.now, 0, false, false);
        n.waiting.clear();
        let boot = next_boot(n.boot, (EPOCH + self.now - n.behind) / 1000);
        n.boot = Some(boot);
        n.routers = Some(Routers::new(std::slice::from_ref(&n.config), keys, boot));
        self.input(node, Input::Start);
        self.link_input(node);
        self.path_input(node);
    }

    fn crash(&mut self, node: usize, down: Option<u64>) {
        let n = &mut self.nodes[node];
        if n.routers.take().is_none() {
            return;
        }
        n.waiting.clear();
        let life = n.life;
        let purge = self.now + self.random.below(SUPERVISOR);
        self.at(purge, Event::Purge { node, life });
        if let Some(down) = down {
            self.at((self.now + down).max(purge), Event::Restart { node, life });
        }
    }

    fn resume(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        if !n.paused || n.routers.is_none() {
            return;
        }
        (n.paused, n.suspended) = (false, false);
        let waiting = std::mem::take(&mut n.waiting);
        let slept = self.now - n.paused_at;
        // Timers and sockets wake the process in no certain order.
        let mut inputs: Vec<Input> = waiting
            .into_iter()
            .map(|(from, p)| self.vrrp_input(from, node, p))
            .collect();
        let tick_at = if self.random.below(2) == 0 { 0 } else { inputs.len() };
        inputs.insert(tick_at, Input::Tick);
        for (n, input) in inputs.into_iter().enumerate() {
            self.input(node, input);
            // Others have the VIP by now: it must go before anything else is done.
            if n == 0 && slept > self.plan.interval * 3 && self.nodes[node].owns {
                self.fail(format!("node {node} keeps the VIP after {slept} us of sleep"));
            }
        }
    }

    fn cut(&mut self, from: usize, to: usize, time: u64) {
        let at = from * self.nodes.len() + to;
        self.cuts[at] += 1;
        self.at(self.now + time, Event::Repair { from, to });
    }

    fn link_input(&mut self, node: usize) {
        let up = self.nodes[node].link;
        let input = Input::Link {
            interface: "eth0".into(),
            up,
            mac: None,
            missing: Vec::new(),
        };
        self.input(node, input);
    }

    fn path_input(&mut self, node: usize) {
        let n = &mut self.nodes[node];
        let now = Duration::from_micros(self.now - n.born + n.jumped);
        if n.paused {
            return;
        }
        let usable = n.path;
        if let Some(routers) = &mut n.routers {
            routers.handle(now, &Input::Tick);
            routers.set_path(now, "api", usable);
        }
        self.carry_out(node);
    }

    fn vrrp_input(&self, from: usize, to: usize, payload: Vec<u8>) -> Input {
        Input::Vrrp {
            interface: "eth0".into(),
            source: self.nodes[from].config.source,
            destination: self.nodes[to].config.source,
            ttl: 255,
            payload: Bytes(payload),
            authentic: None,
        }
    }

    fn input(&mut self, node: usize, input: Input) {
        let n = &mut self.nodes[node];
        if n.paused {
            return;
        }
        let now = Duration::from_micros(self.now - n.born + n.jumped);
        let Some(routers) = &mut n.routers else {
            return;
        };
        routers.handle(now, &input);
        self.carry_out(node);
    }

    fn carry_out(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].routers.as_mut().and_then(Routers::poll_action) {
            match action {
                Action::AddVip { .. } => self.own(node, true),
                Action::RemoveVip { .. } => self.own(node, false),
                Action::SendVrrp {
                    destination, payload, ..
                } => self.send(node, destination, payload.0),
                Action::Report { event } => {
                    if let quorate_lb::Event::VrrpState {
                        to: VrrpState::Master, ..
                    } = event
                    {
                        self.report.masters += 1;
                        self.last_change = self.now;
                    }
                    if self.verbose {
                        self.note(&format!("node {node}: {event:?}"));
                    }
                }
                _ => {}
            }
        }
        let n = &mut self.nodes[node];
        let Some(at) = n.routers.as_mut().and_then(Routers::poll_timeout) else {
            return;
        };
        n.turn = n.turn.wrapping_add(1);
        let turn = n.turn;
        let at = (at.as_micros() as u64 + n.born).saturating_sub(n.jumped);
        let latency = self.random.below(LATENCY);
        self.at(at.max(self.now) + latency, Event::Wake { node, turn });
    }

    fn send(&mut self, from: usize, destination: IpAddr, payload: Vec<u8>) {
        let Some(to) = self.nodes.iter().position(|n| n.config.source == destination) else {
            return;
        };
        let cut = self.cuts[from * self.nodes.len() + to] > 0;
        if cut || !self.nodes[from].link || self.random.below(1000) < self.plan.loss {
            return;
        }
        let copies = if self.random.below(1000) < self.plan.duplicate {
            2
        } else {
            1
        };
        for _ in 1..copies {
            let at = self.now + self.plan.delay + self.random.below(self.plan.jitter);
            let payload = payload.clone();
            self.at(at, Event::Deliver { from, to, payload });
        }
        let at = self.now + self.plan.delay + self.random.below(self.plan.jitter);
        self.at(at, Event::Deliver { from, to, payload });
    }

    fn own(&mut self, node: usize, owns: bool) {
        if self.nodes[node].owns != owns {
            self.nodes[node].owns = owns;
            self.note(&format!(
                "node {node} {} the VIP",
                if owns { "has" } else { "gives up" }
            ));
        }
    }

    fn note(&self, what: &str) {
        if self.verbose {
            eprintln!("{:>10} us  {what}", self.now);
        }
    }
}

impl Plan {
    fn random(r: &mut Random, nodes: usize, interval: u64) -> Self {
        let chaos = interval * (20 + r.below(20));
        let faults = (0..r.below(5))
            .map(|_| {
                let at = r.below(chaos);
                // Every fault is over when the network heals.
                let time = r.below(chaos - at) + 1;
                let node = r.below(nodes as u64) as usize;
                let other = r.below(nodes as u64) as usize;
                let fault = match r.below(10) {
                    0 => Fault::Crash { node, down: time },
                    1 => Fault::Stop { node, down: time },
                    2 | 3 => Fault::Pause { node, time },
                    4 => Fault::Suspend { node, time },
                    5 => Fault::ClockJump { node, by: time },
                    6 => Fault::Cut {
                        from: node,
                        to: other,
                        time,
                    },
                    7 => Fault::Isolate { node, time },
                    8 if r.below(2) == 0 => Fault::LinkDown { node, time },
                    8 => Fault::PathLost { node, time },
                    _ => Fault::Release { node },
                };
                (at, fault)
            })
            .collect();
        Self {
            interval,
            loss: [0, 0, 50, 100, 300][r.below(5) as usize],
            duplicate: [0, 0, 50][r.below(3) as usize],
            delay: interval / 1000 + r.below(interval / 20),
            jitter: 1 + r.below(interval / 5),
            faults,
            chaos,
            heal: chaos + SUPERVISOR + 1,
        }
    }
}

fn config(
    node: usize,
    addresses: &[IpAddr],
    interval: u64,
    preempt: bool,
    tracked: bool,
    authenticated: bool,
    priority: u8,
) -> VrrpInstance {
    let mut config: VrrpInstance = serde_json::from_value(serde_json::json!({
        "name": "api", "vrid": 51, "interface": "eth0", "source": addresses[node], "vips": ["10.0.0.100"],
        "priority": priority, "preempt": preempt,
    }))
    .unwrap();
    config.interval = Span::from_millis(interval / 1000);
    config.peers = addresses.iter().copied().filter(|a| *a != addresses[node]).collect();
    config.track.frontend = tracked.then(|| "api".to_string());
    if authenticated {
        config.auth.mode = AuthMode::Enforce;
    }
    config
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.next() % n }
    }
}
