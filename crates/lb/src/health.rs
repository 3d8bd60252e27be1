//! Health of the backends of one set.
//!
//! | state of a server | seen as | new connections | its connections |
//! |---|---|---|---|
//! | process dead | refused | none, at once | its kernel resets them; the rest after a minute |
//! | host dead, cut off | no TCP answer, `fall` times | none | reset, once another backend is heard |
//! | hung | TCP accepts, no answer, `fall` times | none | reset, if another backend is ready meanwhile |
//! | shutting down | was ready, says it is not | only if none is up | kept |
//! | starting | was down, says it is not ready | none | - |
//! | etcd away | not ready for etcd's sake only | only if none is up | kept; reset, if another backend answers well meanwhile |
//! | check not allowed, wrong CA | answers, but not as it should, `fall` times | only if none is up | kept |
//! | none ready | the same everywhere | to all that are alive (fail open) | kept |
//! | this machine cut off | no TCP answer but from its own, unready one | to that one; the VIP goes | kept |
//! | this process late | its own clock | as before | kept |
//! | all servers slow | answers take longer than usual | as before: checks wait longer | kept |
//!
//! Nothing is reset on the word of this machine alone: it may be the one that is cut off. Another backend
//! must have answered since the trouble began. When none had by the time of `fall`, the cause is a common
//! one; then a backend must fail `fall` checks more after another came back.
//!
//! A kube-apiserver beside a frozen etcd member answers `/readyz` for seconds as if nothing were: it asks etcd once a
//! second at most, waits two seconds, and repeats its last verdict meanwhile. What shows is that one check in ten does
//! not come back. So another server's word counts against etcd's member only when none of its checks was lost lately.

mod member;
mod pace;

use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;

use member::Member;
use pace::Pace;

use crate::config::{BackendSetRef, Health, HealthKind, SetKind};
use crate::io::{
    Action, AdminState, Availability, BackendView, DialOutcome, Event, Now, ProbeOutcome, ProbeStage, Reason,
};

/// Checks of one backend under way at most.
const MOST_PROBES: usize = 8;
/// A backend that stays away is checked fast for this long, then at the usual interval: many agents
/// must not flood a dead machine's network.
const FAST_FOR: Duration = Duration::from_secs(10);
/// Connections of a backend that refuses new ones may be finishing work (kube-apiserver gives its
/// requests 60 s); after that they are reset.
const REFUSED_GRACE: Duration = Duration::from_secs(60);
/// Resets that are not urgent are spread, so that clients do not come back all at once.
const GENTLE_SPREAD: Duration = Duration::from_secs(3);
/// Clients of a server without etcd wait for answers that will not come, and have waited for seconds.
const ETCD_SPREAD: Duration = Duration::from_millis(500);
/// After a check that was lost the server is asked fast for as long as kube-apiserver waits for etcd
/// (`--etcd-readycheck-timeout`), and a little more.
const STALL: Duration = Duration::from_secs(3);
/// An answer that never came back from the prober is forgotten this long after its time-out.
const LOST_AFTER: Duration = Duration::from_secs(1);

/// Reads a kube-apiserver's answer to `/readyz`: 2xx is ready; otherwise the body lists what failed
/// (`[-]etcd failed: reason withheld`).
pub fn classify_readyz(status: u16, body: &str) -> ProbeOutcome {
    if (200..300).contains(&status) {
        return ProbeOutcome::Ready;
    }
    if matches!(status, 401 | 403) {
        // Says nothing about readiness: kube-apiserver with --anonymous-auth=false.
        return ProbeOutcome::Broken {
            error: format!(
                "the check is not authorised ({status}): give health.clientCert and clientKey, or use kind: tcp"
            ),
        };
    }
    let mut failing = body.lines().filter_map(|l| l.trim().strip_prefix("[-]")).peekable();
    let etcd_only =
        failing.peek().is_some() && failing.all(|l| matches!(l.split(' ').next(), Some("etcd" | "etcd-readiness")));
    ProbeOutcome::Unready { status, etcd_only }
}

/// One backend, for statistics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendStatus {
    pub name: String,
    pub address: SocketAddr,
    pub availability: Availability,
    pub reason: Reason,
    pub admin: AdminState,
    /// Effective weight now.
    pub weight: u16,
    /// Time of the last change of availability.
    pub since: Duration,
    pub checks: u64,
    pub failed_checks: u64,
}

/// One backend set, for statistics.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetStatus {
    pub name: String,
    pub kind: SetKind,
    pub backends: Vec<BackendStatus>,
    /// None is up, connections go to those that are alive.
    pub fail_open: bool,
    pub usable: bool,
}

#[derive(Debug)]
pub(crate) struct BackendSet {
    name: String,
    kind: SetKind,
    health: Health,
    slow_start: Duration,
    members: Vec<Member>,
    next_id: u64,
    /// Time-outs of checks older than this prove nothing: this process was late meanwhile.
    trusted_from: u64,
    /// How fast this set's servers answer these days.
    pace: Pace,
    published: Option<Vec<BackendView>>,
    usable: Option<bool>,
    fail_open: bool,
    seed: u64,
}

impl BackendSet {
    /// `seed` differs between machines, so that they do not check in step.
    pub(crate) fn new(now: Now, set: BackendSetRef<'_>, seed: u64) -> Self {
        let mut new = Self {
            name: set.name.to_string(),
            kind: set.kind,
            health: set.health.clone(),
            slow_start: set.slow_start.get(),
            members: Vec::new(),
            next_id: 1,
            trusted_from: 0,
            pace: Pace::default(),
            published: None,
            usable: None,
            fail_open: false,
            seed,
        };
        new.members = set
            .backends
            .iter()
            .map(|b| Member::new(now, b.clone(), set.health.kind))
            .collect();
        new
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Takes a new configuration; backends with the same name and address keep their health. The set is said again: who
    /// serves it and how may have changed though no backend has.
    pub(crate) fn reconfigure(&mut self, now: Now, set: BackendSetRef<'_>) {
        self.published = None;
        if self.health.kind != set.health.kind {
            self.members.clear();
        }
        self.health = set.health.clone();
        self.slow_start = set.slow_start.get();
        self.kind = set.kind;
        let mut old = std::mem::take(&mut self.members);
        for backend in set.backends {
            let kept = old
                .iter()
                .position(|m| m.config.name == backend.name && m.config.address == backend.address);
            self.members.push(match kept {
                Some(at) => {
                    let mut member = old.swap_remove(at);
                    member.config = backend.clone();
                    member
                }
                None => Member::new(now, backend.clone(), self.health.kind),
            });
        }
    }

    pub(crate) fn usable(&self) -> Option<bool> {
        self.usable
    }

    pub(crate) fn status(&self, now: Now) -> SetStatus {
        let backend = |m: &Member| BackendStatus {
            name: m.config.name.clone(),
            address: m.config.address,
            availability: m.availability,
            reason: m.reason,
            admin: m.admin,
            weight: m.weight(now, self.slow_start),
            since: m.since,
            checks: m.checks,
            failed_checks: m.failed_checks,
        };
        SetStatus {
            name: self.name.clone(),
            kind: self.kind,
            backends: self.members.iter().map(backend).collect(),
            fail_open: self.fail_open,
            usable: self.usable.unwrap_or(false),
        }
    }

    /// This process was woken too late: what ran out meanwhile proves nothing.
    pub(crate) fn distrust(&mut self) {
        self.trusted_from = self.next_id;
    }

    /// How late a wake-up must be for that.
    pub(crate) fn tolerance(&self) -> Duration {
        self.health.fast_interval.get().max(Duration::from_millis(50))
    }

    pub(crate) fn on_time(&mut self, now: Now, out: &mut impl Extend<Action>) {
        for at in 0..self.members.len() {
            self.member_on_time(now, at, out);
        }
    }

    fn member_on_time(&mut self, now: Now, at: usize, out: &mut impl Extend<Action>) {
        let fast = self.health.fast_interval.get();
        let longest = Pace::longest(self.health.timeout.get());
        let m = &mut self.members[at];
        if m.admin == AdminState::Maintenance {
            return;
        }
        if m.reset_at.is_some_and(|t| now >= t) {
            m.reset_at = None;
            out.extend([m.reset(&self.name, GENTLE_SPREAD)]);
        }
        if self.health.kind == HealthKind::None {
            // Nothing to ask: after a while, dials may try again.
            if m.availability == Availability::Down && now >= m.next_probe {
                self.set(now, at, Availability::Up, Reason::Ready, "tried again", out);
            }
            return;
        }
        m.pending.retain(|(_, sent)| now < *sent + longest + LOST_AFTER);
        // A check unanswered for so long, or lost lately, is a doubt of its own.
        if m.oldest_pending().is_some_and(|t| now >= t + fast) || m.stalled.is_some_and(|t| now < t + STALL) {
            let soonest = m.last_probe.map_or(now, |t| t + fast);
            m.next_probe = m.next_probe.min(soonest.max(now));
        }
        if now >= m.next_probe {
            self.probe(now, at, out);
        }
    }

    pub(crate) fn wake_at(&self, now: Now) -> Option<Now> {
        self.members.iter().filter_map(|m| self.member_wakes_at(now, m)).min()
    }

    fn member_wakes_at(&self, now: Now, m: &Member) -> Option<Now> {
        if m.admin == AdminState::Maintenance {
            return None;
        }
        let checked = self.health.kind != HealthKind::None;
        let probe = (checked || m.availability == Availability::Down).then_some(m.next_probe);
        let doubtful = m.oldest_pending().map(|t| t + self.health.fast_interval.get());
        let overdue = doubtful.filter(|t| checked && *t > now);
        let step = m.next_slow_start_step(now, self.slow_start);
        [probe, overdue, step, m.reset_at].into_iter().flatten().min()
    }

    pub(crate) fn on_probed(
        &mut self,
        now: Now,
        backend: &str,
        id: u64,
        outcome: &ProbeOutcome,
        late: Duration,
        out: &mut impl Extend<Action>,
    ) {
        let Some(at) = self.members.iter().position(|m| m.config.name == backend) else {
            return;
        };
        let timeout = self.health.timeout.get();
        let m = &mut self.members[at];
        let Some(position) = m.pending.iter().position(|(i, _)| *i == id) else {
            return;
        };
        let (_, sent) = m.pending.remove(position);
        if m.admin == AdminState::Maintenance {
            return;
        }
        let ran_out = matches!(outcome, ProbeOutcome::Timeout { .. });
        if ran_out && (late > timeout / 2 || id < self.trusted_from) {
            m.next_probe = m.next_probe.min(now);
            return;
        }
        m.checks += 1;
        if *outcome != ProbeOutcome::Ready {
            m.failed_checks += 1;
        }
        if matches!(outcome, ProbeOutcome::Ready | ProbeOutcome::Unready { .. }) {
            self.pace.hear(now, now.saturating_sub(sent));
        }
        match outcome {
            ProbeOutcome::Ready => self.ready(now, at, sent, out),
            ProbeOutcome::Unready { status, etcd_only } => self.unready(now, at, *status, *etcd_only, out),
            ProbeOutcome::Refused => self.refused(now, at, "check refused", out),
            ProbeOutcome::Timeout { .. } | ProbeOutcome::Unreachable | ProbeOutcome::Broken { .. } => {
                if m.alive.last.is_none_or(|alive| sent >= alive) {
                    self.failed(now, at, sent, outcome, out);
                } else if ran_out {
                    // Newer ones were answered, so it is no reason to act; but such a server is no witness.
                    m.stalled = Some(now);
                    m.ready.since = None;
                }
            }
        }
    }

    pub(crate) fn on_dial(&mut self, now: Now, backend: &str, outcome: DialOutcome, out: &mut impl Extend<Action>) {
        let Some(at) = self.members.iter().position(|m| m.config.name == backend) else {
            return;
        };
        let interval = self.health.interval.get();
        let unchecked = self.health.kind == HealthKind::None;
        let slow_start = self.slow_start;
        let serves = |m: &Member| m.availability == Availability::Up && m.weight(now, slow_start) > 0;
        let others_serve = self.members.iter().enumerate().any(|(i, m)| i != at && serves(m));
        let m = &mut self.members[at];
        match outcome {
            DialOutcome::Connected => {}
            DialOutcome::Refused => {
                if m.availability != Availability::Down {
                    self.refused(now, at, "connection refused", out);
                    let m = &mut self.members[at];
                    m.next_probe = if unchecked { now + interval } else { now };
                }
            }
            DialOutcome::Timeout | DialOutcome::Unreachable if unchecked => {
                // The last one stays: that nobody answers is more likely this machine's trouble.
                if m.availability == Availability::Up && others_serve {
                    m.next_probe = now + interval;
                    self.set(now, at, Availability::Down, Reason::Silent, "connections time out", out);
                }
            }
            DialOutcome::Slow | DialOutcome::Timeout | DialOutcome::Unreachable => {
                if !unchecked && m.availability != Availability::Down {
                    let soonest = m.last_probe.map_or(now, |t| t + self.health.fast_interval.get());
                    m.doubt = self.health.fall;
                    m.next_probe = m.next_probe.min(soonest.max(now));
                }
            }
        }
    }

    pub(crate) fn set_admin(
        &mut self,
        now: Now,
        backend: &str,
        state: AdminState,
        out: &mut impl Extend<Action>,
    ) -> Result<(), String> {
        let at = self.find(backend)?;
        let m = &mut self.members[at];
        let before = std::mem::replace(&mut m.admin, state);
        if state == AdminState::Maintenance && before != state {
            m.pending.clear();
            m.reset_at = None;
            out.extend([m.reset(&self.name, GENTLE_SPREAD)]);
            self.set(now, at, Availability::Down, Reason::Admin, "maintenance", out);
        } else if before == AdminState::Maintenance && state != before {
            let fresh = Member::new(now, m.config.clone(), self.health.kind);
            let old = std::mem::replace(m, fresh);
            m.admin = state;
            m.ordered_weight = old.ordered_weight;
        }
        Ok(())
    }

    pub(crate) fn set_weight(&mut self, backend: &str, weight: Option<u16>) -> Result<(), String> {
        let at = self.find(backend)?;
        self.members[at].ordered_weight = weight.map(|w| w.min(256));
        Ok(())
    }

    /// Says what changed since the last call: the set as a whole, fail open, path.
    pub(crate) fn publish(&mut self, now: Now, out: &mut impl Extend<Action>) {
        let slow_start = self.slow_start;
        let serving = |availability| {
            let is = move |m: &&Member| m.availability == availability && m.weight(now, slow_start) > 0;
            self.members.iter().filter(is).count()
        };
        let (up, alive) = (serving(Availability::Up) > 0, serving(Availability::LastResort));
        let fail_open = !up && alive > 0;
        let frontend = &self.name;
        if fail_open != self.fail_open {
            self.fail_open = fail_open;
            out.extend(fail_open.then(|| Action::Report {
                event: Event::FailOpen {
                    frontend: frontend.clone(),
                    usable: alive,
                },
            }));
        }
        let usable = up || alive > 0 && !self.is_cut_off();
        // Before the first answers there is no telling.
        let decided = usable || self.members.iter().all(|m| m.reason != Reason::Unchecked);
        if decided && self.usable != Some(usable) {
            self.usable = Some(usable);
            out.extend([Action::Report {
                event: Event::Path {
                    frontend: frontend.clone(),
                    usable,
                },
            }]);
        }
        // Compared in place: this runs with every input, the set seldom changes.
        let same = self.published.as_ref().is_some_and(|views| {
            let pairs = || views.iter().zip(&self.members);
            views.len() == self.members.len() && pairs().all(|(v, m)| m.looks_like(v, now, slow_start))
        });
        if !same {
            let views: Vec<BackendView> = self.members.iter().map(|m| m.view(now, slow_start)).collect();
            self.published = Some(views.clone());
            out.extend([Action::Backends {
                frontend: frontend.clone(),
                kind: self.kind,
                backends: views,
            }]);
        }
    }

    /// Nothing but this machine's own server is left, it is not ready, and no other machine can be reached: then it is
    /// this machine that is cut off, and the others may well hold a quorum without it.
    fn is_cut_off(&self) -> bool {
        let mut others = self.members.iter().filter(|m| !m.config.local).peekable();
        let unreachable = |m: &Member| matches!(m.reason, Reason::Silent | Reason::Unreachable);
        let own_unready = |m: &Member| m.config.local && m.availability == Availability::LastResort;
        others.peek().is_some() && others.all(unreachable) && self.members.iter().any(own_unready)
    }

    // --- what an answer means ---

    fn ready(&mut self, now: Now, at: usize, sent: Now, out: &mut impl Extend<Action>) {
        let first = self.members[at].reason == Reason::Unchecked;
        let rise = if first { 1 } else { self.health.rise };
        let next = now + self.spread_interval(at);
        let m = &mut self.members[at];
        m.answered(now);
        m.ready.hear(now);
        if m.unready.is_some_and(|u| sent < u.last) {
            // Asked before it said no.
            return;
        }
        m.unready = None;
        m.good = m.good.saturating_add(1);
        if m.availability == Availability::Up {
            m.next_probe = next;
        } else if m.good >= rise {
            m.owes_reset = None;
            m.reset_at = None;
            self.set(now, at, Availability::Up, Reason::Ready, "ready", out);
            self.members[at].next_probe = next;
        } else {
            m.next_probe = m.next_probe.min(now + self.health.fast_interval.get());
        }
    }

    fn unready(&mut self, now: Now, at: usize, status: u16, etcd_only: bool, out: &mut impl Extend<Action>) {
        let m = &mut self.members[at];
        m.answered(now);
        m.ready.since = None;
        m.good = 0;
        m.owes_reset = None;
        let was_in_service = m.availability != Availability::Down;
        let said = m.unready.get_or_insert_default();
        said.last = now;
        if !etcd_only {
            said.etcd = 0;
        } else {
            if said.etcd == 0 {
                said.since = now;
            }
            said.etcd = said.etcd.saturating_add(1);
        }
        // A member that is started again is back within the interval; one that was waited for in vain is frozen.
        let waited = now >= said.since + self.health.interval.get() || m.stalled.is_some_and(|t| now < t + STALL);
        let (lasts, known) = (said.etcd >= self.health.fall && waited, said.reset);
        let detail = format!("answered {status}");
        match (etcd_only, was_in_service) {
            (true, _) => self.set(now, at, Availability::LastResort, Reason::Etcd, &detail, out),
            (false, true) => self.set(now, at, Availability::LastResort, Reason::Unready, &detail, out),
            (false, false) => self.set(now, at, Availability::Down, Reason::Starting, &detail, out),
        }
        if etcd_only && !lasts {
            self.compare(now, at);
        }
        if lasts && !known && self.etcd_is_well_elsewhere(now, at) {
            // Nothing it was asked can be answered, and its watches stand still.
            let m = &mut self.members[at];
            m.unready.get_or_insert_default().reset = true;
            out.extend([m.reset(&self.name, ETCD_SPREAD)]);
        }
    }

    /// Another server is ready and has answered every check of more than an interval, so that etcd was asked meanwhile.
    fn etcd_is_well_elsewhere(&self, now: Now, without: usize) -> bool {
        let long_enough = self.health.interval.get() * 6 / 5;
        let patience = self.health.timeout.get();
        self.members.iter().enumerate().any(|(at, m)| {
            at != without
                && m.availability == Availability::Up
                && m.ready.since.is_some_and(|since| since + long_enough <= now)
                && m.ready.last.is_some_and(|last| now <= last + long_enough)
                && m.oldest_pending().is_none_or(|sent| now <= sent + patience)
        })
    }

    fn refused(&mut self, now: Now, at: usize, detail: &str, out: &mut impl Extend<Action>) {
        let m = &mut self.members[at];
        (m.alive.since, m.ready.since) = (None, None);
        m.good = 0;
        m.bad = 0;
        m.unready = None;
        m.trouble.get_or_insert(now);
        if m.reason != Reason::Refused {
            m.reset_at = Some(now + REFUSED_GRACE);
            m.next_probe = m.next_probe.min(now + self.health.fast_interval.get());
        }
        self.set(now, at, Availability::Down, Reason::Refused, detail, out);
    }

    fn failed(&mut self, now: Now, at: usize, sent: Now, outcome: &ProbeOutcome, out: &mut impl Extend<Action>) {
        let fall = self.health.fall;
        let fast = self.health.fast_interval.get();
        if self.members[at].trouble.is_none() {
            self.compare(now, at);
        }
        let m = &mut self.members[at];
        (m.alive.since, m.ready.since) = (None, None);
        m.good = 0;
        m.bad = m.bad.saturating_add(1);
        let trouble = *m.trouble.get_or_insert(sent);
        m.doubt = m.doubt.max(1);
        m.next_probe = m.next_probe.min(now + fast);
        if m.bad < fall {
            return;
        }
        let (bad, owed) = (m.bad, m.owes_reset);
        let in_service = m.availability != Availability::Down;
        let unchecked = m.reason == Reason::Unchecked;
        let silent = matches!(
            outcome,
            ProbeOutcome::Timeout {
                stage: ProbeStage::Connect
            } | ProbeOutcome::Unreachable
        );
        let hung = !silent && matches!(outcome, ProbeOutcome::Timeout { .. });
        let witnessed = self.members.iter().enumerate().any(|(other, o)| {
            // For the hung, another being alive is not enough: etcd may hold up both.
            let heard = if hung { o.ready } else { o.alive };
            other != at && heard.bears_witness(trouble, sent)
        });
        let owed = match owed {
            // Reaching `fall` just now, on another's word; or alone, so that more proof is needed.
            None if (silent || hung) && (in_service || unchecked) => Some(if witnessed { 0 } else { fall }),
            Some(left) if witnessed => Some(left.saturating_sub(1)),
            other => other,
        };
        let proven = owed == Some(0);
        self.members[at].owes_reset = owed.filter(|_| !proven);
        // One that was never heard may have clients all the same: of a process before, or from before a reload.
        if proven {
            out.extend([self.members[at].reset(&self.name, Duration::ZERO)]);
        }
        // A server that accepts is a last resort, unless others show that it is alone with its trouble, or
        // it was out of service before.
        let alive = if in_service || unchecked {
            Availability::LastResort
        } else {
            Availability::Down
        };
        let (to, reason, detail) = match outcome {
            ProbeOutcome::Unreachable => (Availability::Down, Reason::Unreachable, "unreachable".to_string()),
            // A wrong check must not take every server out of service for good. But kube-apiserver refuses checks also
            // while it starts, before it has read who may do what: then others are up.
            ProbeOutcome::Broken { error } => {
                let up = |m: &Member| m.availability == Availability::Up;
                let to = if self.members.iter().any(up) {
                    alive
                } else {
                    Availability::LastResort
                };
                (to, Reason::Broken, error.clone())
            }
            _ if silent => (Availability::Down, Reason::Silent, format!("{bad} checks unanswered")),
            _ => {
                let to = if proven { Availability::Down } else { alive };
                (to, Reason::Hung, format!("{bad} checks accepted but not answered"))
            }
        };
        self.set(now, at, to, reason, &detail, out);
    }

    /// One backend is in trouble: is it alone? Asks the others now instead of within an interval.
    fn compare(&mut self, now: Now, troubled: usize) {
        for (at, m) in self.members.iter_mut().enumerate() {
            if at != troubled && m.availability == Availability::Up {
                m.next_probe = m.next_probe.min(now);
            }
        }
    }

    fn set(
        &mut self,
        now: Now,
        at: usize,
        to: Availability,
        reason: Reason,
        detail: &str,
        out: &mut impl Extend<Action>,
    ) {
        let m = &mut self.members[at];
        let (from, old_reason) = (m.availability, m.reason);
        m.availability = to;
        m.reason = reason;
        if reason != Reason::Refused {
            m.reset_at = None;
        }
        if from != to {
            m.since = now;
            m.good = 0;
        }
        if (from, old_reason) != (to, reason) {
            out.extend([Action::Report {
                event: Event::Backend {
                    frontend: self.name.clone(),
                    backend: m.config.name.clone(),
                    from,
                    to,
                    reason,
                    detail: detail.to_string(),
                },
            }]);
        }
    }

    fn probe(&mut self, now: Now, at: usize, out: &mut impl Extend<Action>) {
        let fast = self.health.fast_interval.get();
        let interval = self.spread_interval(at);
        let m = &mut self.members[at];
        let troubled = m.availability != Availability::Up && now < m.since + FAST_FOR;
        m.next_probe = now + if troubled || m.doubt > 0 { fast } else { interval };
        m.doubt = m.doubt.saturating_sub(1);
        if m.pending.len() >= MOST_PROBES {
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        m.last_probe = Some(now);
        m.pending.push((id, now));
        out.extend([Action::Probe {
            frontend: self.name.clone(),
            backend: m.config.name.clone(),
            id,
            timeout: self.pace.patience(now, self.health.timeout.get()),
            connect_timeout: self.health.timeout.get() / 2,
        }]);
    }

    /// The interval, 10 % more or less, so that machines drift apart.
    fn spread_interval(&mut self, at: usize) -> Duration {
        self.seed = self
            .seed
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(at as u64 | 1);
        let percent = 90 + (self.seed >> 33) % 21;
        self.health.interval.get() * percent as u32 / 100
    }

    fn find(&self, backend: &str) -> Result<usize, String> {
        self.members
            .iter()
            .position(|m| m.config.name == backend)
            .ok_or_else(|| {
                let names: Vec<_> = self.members.iter().map(|m| m.config.name.as_str()).collect();
                format!("frontend {} has the backends {}", self.name, names.join(", "))
            })
    }
}
