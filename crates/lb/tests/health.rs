//! The state table of backends: what becomes of new and old connections, and how soon.

use std::collections::BTreeMap;
use std::time::Duration;

use quorate_lb::config::SetKind;
use quorate_lb::health::classify_readyz;
use quorate_lb::{
    Action, AdminState, Agent, AgentConfig, Availability, BackendView, Command, DialOutcome, Event, Input,
    ProbeOutcome, ProbeStage, Reason,
};

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// What a server does with a check.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Server {
    Ready,
    /// Ready, but says so only after that many milliseconds.
    Slow(u64),
    Refuses,
    Cut,
    Unreachable,
    Hangs,
    /// TLS works, the answer does not come (waiting for etcd).
    Stalls,
    Unready,
    EtcdAway,
    /// As kube-apiserver beside a frozen etcd member: asks it once a second, waits two, repeats its last verdict meanwhile.
    EtcdFrozen,
    Garbage,
}

/// What a kube-apiserver knows of a frozen etcd.
#[derive(Default)]
struct Frozen {
    asks_from: Duration,
    says_no_from: Option<Duration>,
}

/// One agent and its servers on a simulated clock.
struct Farm {
    agent: Agent,
    now: Duration,
    servers: BTreeMap<String, Server>,
    frozen: BTreeMap<String, Frozen>,
    pending: Vec<(Duration, Input)>,
    views: Vec<BackendView>,
    log: Vec<(Duration, Action)>,
}

impl Farm {
    fn new(count: usize) -> Self {
        Self::with(count, "{kind: https, ca: /ca}", "")
    }

    fn with(count: usize, health: &str, extra: &str) -> Self {
        Self::of(count, &config(count, health, extra))
    }

    fn of(count: usize, config: &AgentConfig) -> Self {
        let agent = Agent::new(config, Default::default(), 1, 7);
        let servers = (1..=count).map(|n| (format!("m{n}"), Server::Ready)).collect();
        let mut farm = Self {
            agent,
            now: Duration::ZERO,
            servers,
            frozen: BTreeMap::new(),
            pending: Vec::new(),
            views: Vec::new(),
            log: Vec::new(),
        };
        farm.input(Input::Start);
        farm
    }

    /// Up and running.
    fn settled(count: usize) -> Self {
        let mut farm = Self::new(count);
        farm.run(ms(3000));
        assert!(
            farm.views.iter().all(|v| v.availability == Availability::Up),
            "{:?}",
            farm.views
        );
        farm.log.clear();
        farm
    }

    fn set(&mut self, name: &str, server: Server) {
        self.frozen.remove(name);
        self.servers.insert(name.into(), server);
    }

    fn set_all(&mut self, server: Server) {
        self.frozen.clear();
        self.servers.values_mut().for_each(|s| *s = server);
    }

    fn input(&mut self, input: Input) {
        self.agent.handle(self.now, input);
        while let Some(action) = self.agent.poll_action() {
            match &action {
                Action::Backends { backends, .. } => self.views = backends.clone(),
                Action::Probe {
                    frontend,
                    backend,
                    id,
                    timeout,
                    connect_timeout,
                } => {
                    let server = match self.servers[backend] {
                        Server::EtcdFrozen => self.frozen.entry(backend.clone()).or_default().asked(self.now),
                        other => other,
                    };
                    let (after, outcome) = answer(server, *timeout, *connect_timeout);
                    let input = Input::Probed {
                        frontend: frontend.clone(),
                        backend: backend.clone(),
                        id: *id,
                        outcome,
                        late: Duration::ZERO,
                    };
                    self.pending.push((self.now + after, input));
                }
                _ => {}
            }
            self.log.push((self.now, action));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let answer = self
                .pending
                .iter()
                .enumerate()
                .min_by_key(|(_, (at, _))| *at)
                .map(|(n, (at, _))| (n, *at));
            let timer = self.agent.poll_timeout();
            match (answer, timer) {
                (Some((n, at)), t) if at <= end && t.is_none_or(|t| at <= t) => {
                    self.now = at.max(self.now);
                    let (_, input) = self.pending.remove(n);
                    self.input(input);
                }
                (_, Some(t)) if t <= end => {
                    self.now = t.max(self.now);
                    self.input(Input::Tick);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    fn dial(&mut self, name: &str, outcome: DialOutcome) {
        self.input(Input::Dial {
            frontend: "api".into(),
            backend: name.into(),
            outcome,
        });
    }

    fn order(&mut self, command: Command) {
        self.input(Input::Command { command });
    }

    fn view(&self, name: &str) -> (Availability, Reason) {
        let v = self.views.iter().find(|v| v.name == name).unwrap();
        (v.availability, v.reason)
    }

    fn resets(&self) -> Vec<(&str, Duration)> {
        let reset = |(at, a): &'_ (Duration, Action)| match a {
            Action::ResetConnections { .. } => Some(*at),
            _ => None,
        };
        let name = |a: &'_ Action| match a {
            Action::ResetConnections { backend, .. } => self.servers.keys().find(|k| *k == backend).map(String::as_str),
            _ => None,
        };
        self.log.iter().filter_map(|e| Some((name(&e.1)?, reset(e)?))).collect()
    }

    fn path(&self) -> Option<bool> {
        self.log.iter().rev().find_map(|(_, a)| match a {
            Action::Report {
                event: Event::Path { usable, .. },
            } => Some(*usable),
            _ => None,
        })
    }

    fn probes(&self) -> usize {
        self.log
            .iter()
            .filter(|(_, a)| matches!(a, Action::Probe { .. }))
            .count()
    }
}

fn config(count: usize, health: &str, extra: &str) -> AgentConfig {
    let backends: Vec<String> = (1..=count)
        .map(|n| format!("{{name: m{n}, address: '10.0.0.{n}:6443'}}"))
        .collect();
    let text = format!(
        "{{apiVersion: quorate.dev/v1, kind: Agent, node: n, frontends: [{{name: api, listen: ['0.0.0.0:8443'], \
         backends: [{}], health: {health} {extra}}}]}}",
        backends.join(", ")
    );
    let config: AgentConfig = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(config.validate(), []);
    config
}

const NO_ETCD: ProbeOutcome = ProbeOutcome::Unready {
    status: 500,
    etcd_only: true,
};

impl Frozen {
    fn asked(&mut self, now: Duration) -> Server {
        if now >= self.asks_from {
            self.asks_from = now + ms(1000);
            self.says_no_from.get_or_insert(now + ms(2000));
            Server::EtcdFrozen
        } else if self.says_no_from.is_some_and(|from| now >= from) {
            Server::EtcdAway
        } else {
            Server::Ready
        }
    }
}

fn answer(server: Server, timeout: Duration, connect_timeout: Duration) -> (Duration, ProbeOutcome) {
    let ran_out = |stage| (timeout, ProbeOutcome::Timeout { stage });
    match server {
        Server::Ready => (ms(3), ProbeOutcome::Ready),
        Server::Slow(after) if ms(after) <= timeout => (ms(after), ProbeOutcome::Ready),
        Server::Slow(_) => ran_out(ProbeStage::Http),
        Server::Refuses => (ms(1), ProbeOutcome::Refused),
        Server::Cut => (
            connect_timeout,
            ProbeOutcome::Timeout {
                stage: ProbeStage::Connect,
            },
        ),
        Server::Unreachable => (ms(1), ProbeOutcome::Unreachable),
        Server::Hangs => ran_out(ProbeStage::Tls),
        Server::Stalls => ran_out(ProbeStage::Http),
        Server::Unready => (
            ms(3),
            ProbeOutcome::Unready {
                status: 500,
                etcd_only: false,
            },
        ),
        Server::EtcdAway => (ms(3), NO_ETCD),
        Server::EtcdFrozen if ms(2000) <= timeout => (ms(2000), NO_ETCD),
        Server::EtcdFrozen => ran_out(ProbeStage::Http),
        Server::Garbage => (
            ms(3),
            ProbeOutcome::Broken {
                error: "bad certificate".into(),
            },
        ),
    }
}

#[test]
fn the_first_good_answer_is_enough_at_start() {
    let mut f = Farm::new(3);
    assert_eq!(f.path(), None);
    assert!(
        f.views
            .iter()
            .all(|v| v.availability == Availability::Down && v.reason == Reason::Unchecked)
    );
    f.run(ms(10));
    assert!(f.views.iter().all(|v| v.availability == Availability::Up));
    assert_eq!(f.path(), Some(true));
}

/// The table, one server in trouble, two well: (what, availability, reason, reset within a second).
#[test]
fn one_server_in_trouble() {
    use Availability::{Down, LastResort};
    for (server, availability, reason, reset) in [
        (Server::Refuses, Down, Reason::Refused, false),
        (Server::Cut, Down, Reason::Silent, true),
        (Server::Unreachable, Down, Reason::Unreachable, true),
        (Server::Hangs, Down, Reason::Hung, true),
        (Server::Stalls, Down, Reason::Hung, true),
        (Server::Unready, LastResort, Reason::Unready, false),
        (Server::EtcdAway, LastResort, Reason::Etcd, false),
        (Server::Garbage, LastResort, Reason::Broken, false),
    ] {
        let mut f = Farm::settled(3);
        let began = f.now;
        f.set("m2", server);
        // A new connection meets it, as under load.
        f.run(ms(75));
        f.dial(
            "m2",
            if server == Server::Refuses {
                DialOutcome::Refused
            } else {
                DialOutcome::Slow
            },
        );
        f.run(ms(925));
        assert_eq!(f.view("m2"), (availability, reason), "{server:?}");
        assert_eq!(f.view("m1"), (Availability::Up, Reason::Ready));
        assert_eq!(
            f.resets().iter().map(|(n, _)| *n).collect::<Vec<_>>(),
            vec!["m2"; usize::from(reset)],
            "{server:?}"
        );
        assert!(
            f.resets().iter().all(|(_, at)| *at - began <= ms(1000)),
            "{server:?} {:?}",
            f.resets()
        );
        f.set("m2", Server::Ready);
        f.run(ms(500));
        assert_eq!(f.view("m2").0, Availability::Up, "{server:?} came back");
        assert_eq!(
            f.resets().len(),
            usize::from(reset),
            "{server:?}: its return resets nothing"
        );
    }
}

#[test]
fn without_traffic_silence_is_still_found_in_two_seconds() {
    for server in [Server::Cut, Server::Hangs] {
        let mut f = Farm::settled(3);
        let began = f.now;
        f.set("m2", server);
        f.run(ms(2000));
        let resets = f.resets();
        assert_eq!(resets.len(), 1, "{server:?}");
        assert!(resets[0].1 - began < ms(2000));
    }
}

#[test]
fn a_refused_dial_marks_down_at_once_and_is_confirmed_fast() {
    let mut f = Farm::settled(3);
    f.dial("m2", DialOutcome::Refused);
    assert_eq!(f.view("m2"), (Availability::Down, Reason::Refused));
    assert_eq!(f.probes(), 1, "checked at once");
    f.run(ms(110));
    assert_eq!(
        f.view("m2"),
        (Availability::Up, Reason::Ready),
        "it was a mistake: back after two checks"
    );
}

#[test]
fn connections_of_a_server_that_refuses_new_ones_may_finish() {
    let mut f = Farm::settled(3);
    f.set("m2", Server::Refuses);
    f.run(ms(59_000));
    assert_eq!(f.resets(), []);
    f.run(ms(4_000));
    assert!(
        matches!(&f.log.iter().find(|(_, a)| matches!(a, Action::ResetConnections { .. })).unwrap().1,
        Action::ResetConnections { spread, .. } if *spread > Duration::ZERO)
    );
}

/// The same everywhere: the cause is behind the servers, or this machine itself.
#[test]
fn trouble_everywhere_kills_nothing() {
    for (server, usable) in [
        (Server::Unready, true),
        (Server::EtcdAway, true),
        (Server::Stalls, true),
        (Server::Hangs, true),
        (Server::Garbage, true),
        (Server::Cut, false),
        (Server::Unreachable, false),
        (Server::Refuses, false),
    ] {
        let mut f = Farm::settled(3);
        f.set_all(server);
        for name in ["m1", "m2", "m3"] {
            f.dial(name, DialOutcome::Slow);
        }
        f.run(ms(20_000));
        assert_eq!(f.resets(), [], "{server:?}");
        assert_eq!(
            f.path(),
            if usable { None } else { Some(false) },
            "{server:?}: path unchanged or lost"
        );
        let open = f.log.iter().any(|(_, a)| {
            matches!(
                a,
                Action::Report {
                    event: Event::FailOpen { .. }
                }
            )
        });
        assert_eq!(open, usable, "{server:?}");
        f.set_all(Server::Ready);
        f.run(ms(1500));
        assert!(f.views.iter().all(|v| v.availability == Availability::Up), "{server:?}");
        assert_eq!(f.resets(), [], "{server:?}: nor on return");
    }
}

/// Drill etcd-follower-hung: requests on standing connections got no answer as long as the member was frozen.
#[test]
fn clients_beside_a_frozen_etcd_member_are_freed() {
    for phase in [0, 100, 350, 700, 950] {
        let mut f = Farm::settled(3);
        f.run(ms(phase));
        let began = f.now;
        f.set("m2", Server::EtcdFrozen);
        f.run(ms(10_000));
        assert_eq!(f.view("m2"), (Availability::LastResort, Reason::Etcd));
        let resets = f.resets();
        assert_eq!(resets.iter().map(|(n, _)| *n).collect::<Vec<_>>(), ["m2"]);
        let took = resets[0].1 - began;
        assert!(took <= ms(3600), "{took:?}");
        f.set("m2", Server::Ready);
        f.run(ms(2000));
        assert_eq!(f.view("m2").0, Availability::Up);
        assert_eq!(f.resets().len(), 1, "once");
    }
}

#[test]
fn an_etcd_member_that_is_started_again_costs_nobody_a_connection() {
    let mut f = Farm::settled(3);
    f.set("m2", Server::EtcdAway);
    f.run(ms(900));
    f.set("m2", Server::Ready);
    f.run(ms(3000));
    assert_eq!((f.view("m2").0, f.resets().len()), (Availability::Up, 0));
    f.set("m2", Server::EtcdAway);
    f.run(ms(2500));
    assert_eq!(f.resets().len(), 1, "one that stays away does");
}

/// No quorum, or an election that takes its time: the verdicts of the servers come seconds apart, and mean the same.
#[test]
fn an_etcd_frozen_for_all_kills_nothing() {
    for phase in 0..12 {
        for lasts in [1500, 2500, 4000, 20_000] {
            let mut f = Farm::settled(3);
            f.run(ms(phase * 90));
            f.set_all(Server::EtcdFrozen);
            f.run(ms(lasts));
            f.set_all(Server::Ready);
            f.run(ms(3000));
            assert_eq!(f.resets(), [], "{phase} {lasts}");
            assert!(f.views.iter().all(|v| v.availability == Availability::Up));
        }
    }
}

/// Drill etcd-follower-killed: up again after 100 ms, by answers to older questions.
#[test]
fn what_was_asked_before_it_said_no_does_not_raise_a_server() {
    let mut f = Farm::settled(3);
    f.set("m2", Server::Slow(300));
    f.dial("m2", DialOutcome::Slow);
    f.run(ms(210));
    f.set("m2", Server::EtcdAway);
    f.run(ms(110));
    assert_eq!(f.view("m2"), (Availability::LastResort, Reason::Etcd));
    let probes = |f: &Farm| f.probes();
    let asked = probes(&f);
    f.run(ms(300));
    assert_eq!(f.view("m2"), (Availability::LastResort, Reason::Etcd), "{asked}");
}

#[test]
fn overloaded_servers_are_waited_for() {
    let mut f = Farm::settled(3);
    f.set_all(Server::Slow(400));
    f.run(ms(6000));
    f.set("m1", Server::Slow(1200));
    f.run(ms(10_000));
    assert_eq!(f.resets(), [], "slow like the others, only more so");
    assert_eq!(f.view("m1").0, Availability::Up);
    f.set("m1", Server::Stalls);
    f.run(ms(12_000));
    assert_eq!(f.view("m1"), (Availability::Down, Reason::Hung), "patience has an end");
}

#[test]
fn a_machine_that_is_cut_off_has_no_path() {
    let mut config = config(3, "{kind: https, ca: /ca}", "");
    config.frontends[0].backends[0].local = true;
    for away in [Server::Cut, Server::Unreachable] {
        let mut f = Farm::of(3, &config);
        f.run(ms(3000));
        f.set("m2", away);
        f.set("m3", away);
        f.run(ms(5000));
        assert_eq!(f.path(), Some(true), "its own server is ready: etcd is elsewhere");
        f.set("m1", Server::EtcdAway);
        f.run(ms(2000));
        assert_eq!(f.path(), Some(false), "{away:?}");
        assert_eq!(
            f.view("m1").0,
            Availability::LastResort,
            "who asks here is still answered"
        );
        f.set("m2", Server::EtcdAway);
        f.run(ms(2000));
        assert_eq!(f.path(), Some(true), "it was etcd, not this machine");
    }
    let mut f = Farm::of(3, &config);
    f.run(ms(3000));
    f.set("m2", Server::Refuses);
    f.set("m3", Server::Cut);
    f.set("m1", Server::EtcdAway);
    f.run(ms(5000));
    assert_eq!(f.path(), Some(true), "another machine answers, if only with a refusal");
}

#[test]
fn the_last_live_server_stays_in_service_though_it_hangs() {
    let mut f = Farm::settled(2);
    f.set("m1", Server::Refuses);
    f.run(ms(2000));
    f.set("m2", Server::Hangs);
    f.run(ms(5000));
    assert_eq!(f.view("m2"), (Availability::LastResort, Reason::Hung));
    assert_eq!(f.resets(), []);
    f.set("m1", Server::Ready);
    f.run(ms(2500));
    assert_eq!(f.view("m2"), (Availability::Down, Reason::Hung), "now there is another");
    assert_eq!(f.resets().len(), 1);
}

#[test]
fn after_an_own_outage_only_the_still_missing_are_reset() {
    let mut f = Farm::settled(3);
    f.set_all(Server::Cut);
    f.run(ms(5000));
    assert_eq!(f.resets(), []);
    f.set("m1", Server::Ready);
    f.set("m2", Server::Ready);
    f.run(ms(3000));
    assert_eq!(f.view("m3").0, Availability::Down);
    let mut reset: Vec<_> = f.resets().iter().map(|(n, _)| *n).collect();
    reset.dedup();
    assert!(reset.contains(&"m3"), "{reset:?}");
    assert!(reset.len() <= 2, "the first to answer is spared: {reset:?}");
}

#[test]
fn a_starting_server_gets_no_traffic_even_when_it_is_alone() {
    let mut f = Farm::settled(2);
    f.set_all(Server::Refuses);
    f.run(ms(2000));
    f.set("m1", Server::Unready);
    f.run(ms(2000));
    assert_eq!(f.view("m1"), (Availability::Down, Reason::Starting));
    assert_eq!(f.path(), Some(false));
    f.set("m1", Server::EtcdAway);
    f.run(ms(2000));
    assert_eq!(
        f.view("m1"),
        (Availability::LastResort, Reason::Etcd),
        "complete but for etcd"
    );
    assert_eq!(f.path(), Some(true));
}

/// Real API servers, one killed and started again: it answered checks with 403 before it had loaded its roles, became a last
/// resort, and hedged connections went there.
#[test]
fn a_starting_server_that_refuses_checks_gets_no_traffic() {
    let mut f = Farm::settled(3);
    for (server, expected) in [
        (Server::Refuses, (Availability::Down, Reason::Refused)),
        (Server::Garbage, (Availability::Down, Reason::Broken)),
        (Server::Unready, (Availability::Down, Reason::Starting)),
        (Server::Ready, (Availability::Up, Reason::Ready)),
    ] {
        f.set("m2", server);
        f.run(ms(1500));
        assert_eq!(f.view("m2"), expected);
    }
}

#[test]
fn a_graceful_shutdown_is_followed_step_by_step() {
    let mut f = Farm::settled(3);
    for (server, expected) in [
        (Server::Unready, (Availability::LastResort, Reason::Unready)),
        (Server::Refuses, (Availability::Down, Reason::Refused)),
        (Server::Unready, (Availability::Down, Reason::Starting)),
        (Server::Ready, (Availability::Up, Reason::Ready)),
    ] {
        f.set("m2", server);
        f.run(ms(1500));
        assert_eq!(f.view("m2"), expected);
    }
    assert_eq!(f.resets(), []);
}

#[test]
fn a_starved_prober_proves_nothing() {
    let mut f = Farm::settled(3);
    for _ in 0..20 {
        f.run(ms(1000));
        // The process sleeps for two seconds; when it wakes, all its checks have run out.
        f.agent.poll_timeout();
        f.now += ms(2000);
        f.input(Input::Tick);
        for (_, input) in &mut f.pending {
            if let Input::Probed { outcome, .. } = input {
                *outcome = ProbeOutcome::Timeout {
                    stage: ProbeStage::Connect,
                };
            }
        }
    }
    assert!(f.views.iter().all(|v| v.availability == Availability::Up));
    assert!(f.agent.status().late_wakeups > 0);

    let mut f = Farm::settled(3);
    for _ in 0..10 {
        f.run(ms(1000));
        f.pending.clear();
        for (name, id) in f
            .log
            .iter()
            .filter_map(|(_, a)| match a {
                Action::Probe { backend, id, .. } => Some((backend.clone(), *id)),
                _ => None,
            })
            .collect::<Vec<_>>()
        {
            f.input(Input::Probed {
                frontend: "api".into(),
                backend: name,
                id,
                outcome: ProbeOutcome::Timeout { stage: ProbeStage::Tls },
                late: ms(400),
            });
        }
    }
    assert_eq!(f.resets(), []);
}

#[test]
fn idle_checks_are_one_a_second_and_a_dead_server_is_not_flooded() {
    let mut f = Farm::settled(1);
    f.run(ms(60_000));
    assert!((54..=68).contains(&f.probes()), "{}", f.probes());
    f.set("m1", Server::Refuses);
    f.run(ms(20_000));
    f.log.clear();
    f.run(ms(60_000));
    assert!(f.probes() <= 68, "{}", f.probes());
}

#[test]
fn drain_weight_and_maintenance() {
    let admin = |state| Command::SetAdmin {
        frontend: "api".into(),
        backend: "m2".into(),
        state,
    };
    let mut f = Farm::settled(3);
    f.order(admin(AdminState::Drain));
    assert_eq!(
        (f.views[1].weight, f.view("m2").0, f.resets().len()),
        (0, Availability::Up, 0)
    );
    f.order(admin(AdminState::Ready));
    assert_eq!(f.views[1].weight, 100);
    f.order(admin(AdminState::Maintenance));
    assert_eq!(
        (f.view("m2"), f.resets().len()),
        ((Availability::Down, Reason::Admin), 1)
    );
    f.log.clear();
    f.run(ms(5000));
    let checked = f
        .log
        .iter()
        .any(|(_, a)| matches!(a, Action::Probe { backend, .. } if backend == "m2"));
    assert!(!checked, "not checked in maintenance");
    f.order(admin(AdminState::Ready));
    f.run(ms(100));
    assert_eq!(f.view("m2").0, Availability::Up);
    let weight = |weight| Command::SetWeight {
        frontend: "api".into(),
        backend: "m2".into(),
        weight,
    };
    f.order(weight(Some(7)));
    assert_eq!(f.views[1].weight, 7);
    f.order(weight(None));
    assert_eq!(f.views[1].weight, 100);
    f.order(Command::SetWeight {
        frontend: "api".into(),
        backend: "m9".into(),
        weight: None,
    });
    assert!(matches!(
        f.log.last(),
        Some((
            _,
            Action::Report {
                event: Event::Refused { .. }
            }
        ))
    ));
}

#[test]
fn slow_start_rises_in_steps() {
    let mut f = Farm::with(2, "{kind: https, ca: /ca}", ", slowStart: 10s");
    let mut weights = Vec::new();
    for _ in 0..110 {
        f.run(ms(100));
        let weight = f.views[0].weight;
        if weights.last() != Some(&weight) {
            weights.push(weight);
        }
    }
    assert_eq!(weights, [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]);
}

#[test]
fn without_checks_dials_decide() {
    let mut f = Farm::with(2, "{kind: none}", "");
    f.run(ms(1000));
    assert_eq!((f.probes(), f.path()), (0, Some(true)));
    for outcome in [DialOutcome::Refused, DialOutcome::Timeout] {
        f.dial("m1", outcome);
        assert_eq!(f.view("m1").0, Availability::Down);
        f.run(ms(1001));
        assert_eq!(f.view("m1").0, Availability::Up, "tried again after the interval");
    }
    f.dial("m1", DialOutcome::Slow);
    assert_eq!(f.view("m1").0, Availability::Up);
}

#[test]
fn without_checks_the_last_server_is_not_ejected_by_time_outs() {
    for outcome in [DialOutcome::Timeout, DialOutcome::Unreachable] {
        let mut f = Farm::with(2, "{kind: none}", "");
        f.dial("m1", outcome);
        f.dial("m2", outcome);
        assert_eq!((f.view("m1").0, f.view("m2").0), (Availability::Down, Availability::Up));
        assert_eq!(f.path(), Some(true));
        f.run(ms(1001));
        assert_eq!(f.view("m1").0, Availability::Up, "tried again after the interval");
        f.dial("m2", outcome);
        assert_eq!(f.view("m2").0, Availability::Down, "another serves");
    }
}

#[test]
fn a_reload_of_the_kind_or_the_algorithm_alone_gives_the_set_out_again() {
    let mut f = Farm::settled(2);
    let given_out = |f: &mut Farm, config: AgentConfig| {
        f.log.clear();
        let config = Box::new(config);
        f.input(Input::Config { config });
        let sets = f.log.iter().filter_map(|(_, a)| match a {
            Action::Backends { kind, backends, .. } => Some((*kind, backends.len())),
            _ => None,
        });
        sets.collect::<Vec<_>>()
    };
    let health = "{kind: https, ca: /ca}";
    assert_eq!(
        given_out(&mut f, config(2, health, ", balance: source")),
        [(SetKind::Proxy, 2)]
    );
    let mut kernel = config(2, health, "");
    let frontend = kernel.frontends.remove(0);
    let service = format!(
        "{{name: api, virtual: '10.9.9.9:6443', backends: {}, health: {health}}}",
        serde_json::to_string(&frontend.backends).unwrap()
    );
    kernel.ipvs.push(serde_saphyr::from_str(&service).unwrap());
    assert_eq!(given_out(&mut f, kernel), [(SetKind::Ipvs, 2)]);
    assert!(
        f.views.iter().all(|v| v.availability == Availability::Up),
        "health is kept"
    );
}

#[test]
fn a_reload_keeps_the_health_of_what_stays() {
    let mut f = Farm::settled(3);
    f.set("m2", Server::Refuses);
    f.run(ms(1500));
    f.servers.insert("m4".into(), Server::Ready);
    f.log.clear();
    let config = Box::new(config(4, "{kind: https, ca: /ca, interval: 2s}", ""));
    f.input(Input::Config { config });
    let states: Vec<_> = f.views.iter().map(|v| v.availability).collect();
    assert_eq!(
        states,
        [
            Availability::Up,
            Availability::Down,
            Availability::Up,
            Availability::Down
        ]
    );
    f.run(ms(50));
    assert_eq!(f.view("m4").0, Availability::Up);
    assert_eq!(f.resets(), []);
}

#[test]
fn clients_of_a_server_that_was_never_heard_are_reset_on_the_word_of_another() {
    let mut farm = Farm::settled(1);
    farm.set("m2", Server::Cut);
    farm.input(Input::Config {
        config: Box::new(config(2, "{kind: https, ca: /ca}", "")),
    });
    farm.run(ms(3000));
    assert_eq!(farm.view("m2"), (Availability::Down, Reason::Silent));
    assert_eq!(farm.resets().len(), 1, "{:?}", farm.resets());

    // Alone, or with another that is as silent, it is this machine's own word.
    let mut farm = Farm::settled(1);
    farm.set_all(Server::Cut);
    farm.set("m2", Server::Cut);
    farm.input(Input::Config {
        config: Box::new(config(2, "{kind: https, ca: /ca}", "")),
    });
    farm.run(ms(10_000));
    assert_eq!(farm.resets(), []);
}

#[test]
fn readyz_bodies() {
    let etcd = "[+]ping ok\n[-]etcd failed: reason withheld\n[-]etcd-readiness failed: reason withheld\n";
    let hooks = "[+]ping ok\n[-]poststarthook/rbac failed: reason withheld\n[-]etcd failed: reason withheld\n";
    for (status, body, expected) in [
        (200, "ok", ProbeOutcome::Ready),
        (
            500,
            etcd,
            ProbeOutcome::Unready {
                status: 500,
                etcd_only: true,
            },
        ),
        (
            500,
            hooks,
            ProbeOutcome::Unready {
                status: 500,
                etcd_only: false,
            },
        ),
        (
            503,
            "",
            ProbeOutcome::Unready {
                status: 503,
                etcd_only: false,
            },
        ),
    ] {
        assert_eq!(classify_readyz(status, body), expected);
    }
}

#[test]
fn a_check_that_is_not_allowed_does_not_close_the_door() {
    let refused = classify_readyz(401, "Unauthorized");
    assert!(matches!(&refused, ProbeOutcome::Broken { error } if error.contains("clientCert")));
    let mut f = Farm::new(2);
    f.set_all(Server::Garbage);
    f.run(ms(1000));
    assert_eq!(f.path(), Some(true), "from the start");
    f.set_all(Server::Refuses);
    f.run(ms(2000));
    assert_eq!(f.path(), Some(false));
    f.set_all(Server::Garbage);
    f.run(ms(2000));
    assert_eq!(f.path(), Some(true), "and after a restart");
}

/// Whatever the servers do: while one is ready and stays so, it is up, and connections to it are kept.
#[test]
fn a_ready_server_is_never_harmed() {
    use proptest::prelude::*;
    let kinds = [
        Server::Ready,
        Server::Refuses,
        Server::Cut,
        Server::Unreachable,
        Server::Hangs,
        Server::Stalls,
        Server::Unready,
        Server::EtcdAway,
        Server::EtcdFrozen,
        Server::Garbage,
    ];
    let step = (0..2usize, 0..kinds.len(), 1..1500u64, 0..4u8);
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in prop::collection::vec(step, 1..20))| {
        let mut f = Farm::settled(3);
        for (which, kind, time, dial) in steps {
            let name = ["m1", "m2"][which];
            f.set(name, kinds[kind]);
            match dial {
                0 => f.dial(name, DialOutcome::Slow),
                1 => f.dial("m3", DialOutcome::Slow),
                _ => {}
            }
            f.run(ms(time));
            prop_assert_eq!(f.view("m3"), (Availability::Up, Reason::Ready));
        }
        prop_assert!(f.resets().iter().all(|(name, _)| *name != "m3"));
        f.set_all(Server::Ready);
        f.run(ms(3000));
        prop_assert!(f.views.iter().all(|v| v.availability == Availability::Up));
    });
}
