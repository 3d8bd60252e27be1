//! One virtual router: RFC 9568 §6.4 with what keeps it from acting on silence of its own making.
//!
//! Four things go beyond the RFC:
//! - **Loss.** A master advertises twice per interval. With one advertisement in ten lost, three in a row
//!   would be missed about once in two minutes at 100 ms; six or seven in a row practically never.
//! - **Lateness.** A backup looks at the clock at least twice an interval. When it was woken late, the time
//!   it slept is no silence of the master's: the deadline moves on, so that advertisements waiting in the
//!   socket are read first. A master that finds itself silent for longer than others wait gives up its
//!   VIP before anything else: another machine has it by now.
//! - **Handing over.** On stop, priority 0 is sent but the VIP stays until its new holder is heard (or two
//!   intervals have passed), so that connections in between still find someone.
//! - **Tracking.** Without a path to any backend, or without the interface, the VIP is given up.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use serde::Serialize;

use super::auth::{Authenticator, SecretKey};
use super::packet::{Advert, Discard, GROUP_V4, GROUP_V6};
use super::receive::Datagram;
use crate::config::{Vip, VrrpInstance, VrrpVersion};
use crate::frames::{Claim, Mac};
use crate::io::{Action, ConflictKind, Event, Now, VipChange, VrrpState};

/// Advertisements per announced interval.
const PER_INTERVAL: u32 = 2;
/// Times a backup that was late is granted more than the time it slept, per silence.
const GRACES: u8 = 3;
/// First and longest wait after a VIP could not be added.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

pub(super) type Actions = VecDeque<Action>;

/// A virtual router and its timers.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) config: VrrpInstance,
    pub(super) auth: Authenticator,
    state: VrrpState,
    pub(super) mac: Option<Mac>,
    link: Option<bool>,
    path: bool,
    /// Interval of the master last heard (version 3 backups adopt it).
    master_interval: Duration,
    /// Address and priority of the master last heard.
    master: Option<(IpAddr, u8)>,
    /// Backup: when to take over.
    takeover: Now,
    graces: u8,
    /// Lower-priority masters are let be until then (preempt delay, release on order).
    hold: Option<Now>,
    lower_since: Option<Now>,
    /// Master: when to advertise, and when we last did.
    next_advert: Now,
    last_advert: Now,
    handover: Option<Handover>,
    pub(super) announce_again: Option<Now>,
    pub(super) announce_refresh: Option<Now>,
    pub(super) last_defence: Option<Now>,
    /// A lower-priority master was heard at that time; resolved when it stays silent.
    rival: Option<Now>,
    /// Someone answered for a VIP while no master was heard.
    squatter: Option<Claim>,
    /// Adding a VIP failed: tried again then, after waiting that long.
    retry: Option<(Now, Duration)>,
    /// Removing a VIP failed: tried again then.
    remove_again: Option<Now>,
    pub(super) reported: BTreeMap<ConflictKind, Now>,
    promised: Option<Now>,
    pub(super) counters: Counters,
}

/// The VIP is still held, but its new holder is awaited.
#[derive(Clone, Copy, Debug)]
struct Handover {
    until: Now,
    /// Priority 0 is sent again: one may be lost.
    next_goodbye: Now,
    to: VrrpState,
}

/// What one instance counted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counters {
    pub sent: u64,
    pub received: u64,
    pub became_master: u64,
    pub left_master: u64,
    pub discarded: BTreeMap<Discard, u64>,
    pub conflicts: BTreeMap<ConflictKind, u64>,
    /// Wake-ups later than a quarter of an interval.
    pub late: u64,
    /// Version 3 peers advertising at another interval.
    pub interval_differs: u64,
    pub announcements: u64,
}

/// One instance, for statistics.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceStatus {
    pub name: String,
    pub state: VrrpState,
    pub vrid: u8,
    pub interface: String,
    pub priority: u8,
    pub vips: Vec<Vip>,
    /// Who holds the VIP as far as we know, and with what priority.
    pub master: Option<(IpAddr, u8)>,
    /// Priority 0 is sent and the new holder awaited.
    pub handing_over: bool,
    pub counters: Counters,
}

impl Instance {
    pub(super) fn new(config: VrrpInstance, keys: Vec<SecretKey>, boot: u64) -> Self {
        Self {
            auth: Authenticator::new(config.auth.mode, keys, boot),
            state: VrrpState::Init,
            mac: None,
            link: None,
            path: config.track.frontend.is_none(),
            master_interval: config.interval.get(),
            master: None,
            takeover: Now::ZERO,
            graces: 0,
            hold: None,
            lower_since: None,
            next_advert: Now::ZERO,
            last_advert: Now::ZERO,
            handover: None,
            announce_again: None,
            announce_refresh: None,
            last_defence: None,
            rival: None,
            squatter: None,
            retry: None,
            remove_again: None,
            reported: BTreeMap::new(),
            promised: None,
            counters: Counters::default(),
            config,
        }
    }

    pub(super) fn config(&self) -> &VrrpInstance {
        &self.config
    }

    pub(super) fn state(&self) -> VrrpState {
        self.state
    }

    /// The VIPs are on this machine as far as this instance decides.
    pub(super) fn holds_vips(&self) -> bool {
        self.state == VrrpState::Master
    }

    pub(super) fn status(&self) -> InstanceStatus {
        InstanceStatus {
            name: self.config.name.clone(),
            state: self.state,
            vrid: self.config.vrid,
            interface: self.config.interface.clone(),
            priority: self.config.priority,
            vips: self.config.vips.clone(),
            master: match self.state {
                VrrpState::Master => Some((self.config.source, self.config.priority)),
                _ => self.master,
            },
            handing_over: self.handover.is_some(),
            counters: self.counters.clone(),
        }
    }

    /// Removes VIPs an earlier process may have left, then takes part.
    pub(super) fn start(&mut self, now: Now, out: &mut Actions) {
        self.remove_vips(out);
        self.promised = None;
        self.reconsider(now, "start", out);
    }

    /// Looks at the clock first: must be called before anything else is done with `now`.
    pub(super) fn on_time(&mut self, now: Now, out: &mut Actions) {
        let late = self
            .promised
            .take()
            .map_or(Duration::ZERO, |p| now.saturating_sub(p));
        let was_late = late > self.tolerance();
        if was_late {
            self.counters.late += 1;
        }
        if self.remove_again.is_some_and(|at| now >= at) {
            self.remove_again = None;
            if !self.holds_vips() {
                self.remove_vips(out);
            }
        }
        match self.state {
            VrrpState::Master => self.master_on_time(now, late, out),
            VrrpState::Backup => {
                if was_late {
                    self.forgive_own_silence(now, late, out);
                }
                if now >= self.takeover {
                    let reason = match self.master {
                        Some((address, _)) => format!("nothing heard of {address}"),
                        None => "no holder heard".to_string(),
                    };
                    self.become_master(now, reason, out);
                }
            }
            VrrpState::Fault => {
                if self.retry.is_some_and(|(at, _)| now >= at) {
                    self.reconsider(now, "trying to add the VIP again", out);
                }
            }
            VrrpState::Init => {}
        }
    }

    pub(super) fn on_packet(&mut self, now: Now, packet: Datagram<'_>, out: &mut Actions) {
        self.counters.received += 1;
        match self.check(now, packet, out) {
            Ok((priority, interval)) => self.on_advert(now, packet.source, priority, interval, out),
            Err(reason) => self.discard(now, reason, packet.source, out),
        }
    }

    pub(super) fn on_link(&mut self, now: Now, up: bool, mac: Option<Mac>, out: &mut Actions) {
        let learned = mac.is_some() && mac != self.mac;
        self.mac = mac.or(self.mac);
        self.link = Some(up);
        self.reconsider(now, "interface", out);
        if learned && self.holds_vips() && self.handover.is_none() {
            self.announce(self.config.garp.repeat, out);
        }
    }

    pub(super) fn on_path(&mut self, now: Now, usable: bool, out: &mut Actions) {
        if self.path != usable {
            self.path = usable;
            self.reconsider(now, "path", out);
        }
    }

    pub(super) fn on_claim(&mut self, now: Now, claim: Claim, out: &mut Actions) {
        let ours = self.config.vips.iter().any(|v| v.address == claim.address);
        if !ours || self.mac == Some(claim.mac) {
            return;
        }
        if self.holds_vips() && self.handover.is_none() {
            let detail = || format!("{} is claimed by {}", claim.address, print_mac(claim.mac));
            self.conflict(now, ConflictKind::ForeignOwner, detail, out);
            self.defend(now, out);
        } else {
            self.squatter = Some(claim);
        }
    }

    pub(super) fn on_vip_done(
        &mut self,
        now: Now,
        vip: Vip,
        change: VipChange,
        error: Option<&str>,
        out: &mut Actions,
    ) {
        let Some(error) = error else {
            if change == VipChange::Add {
                self.retry = None;
            }
            return;
        };
        let verb = if change == VipChange::Add {
            "add"
        } else {
            "remove"
        };
        let what = format!("{verb} VIP {vip} on {}", self.config.interface);
        out.push_back(Action::Report {
            event: Event::Failed {
                what,
                error: error.to_string(),
            },
        });
        if change == VipChange::Remove {
            self.remove_again = Some(now + RETRY_FIRST);
        } else if self.state == VrrpState::Master && self.config.vips.contains(&vip) {
            let wait = self
                .retry
                .map_or(RETRY_FIRST, |(_, w)| (w * 2).min(RETRY_LONGEST));
            self.retry = Some((now + wait, wait));
            self.leave_at_once(now, VrrpState::Fault, format!("cannot add VIP {vip}"), out);
        }
    }

    pub(super) fn on_vip_lost(&mut self, now: Now, vip: Vip, out: &mut Actions) {
        if self.holds_vips() && self.handover.is_none() && self.config.vips.contains(&vip) {
            out.push_back(self.add(vip));
            self.announce(1, out);
            let interface = self.config.interface.clone();
            let detail = || format!("{vip} was removed from {interface} by someone else");
            self.conflict(now, ConflictKind::ForeignOwner, detail, out);
        }
    }

    /// Hands the VIP over and lets others keep it for `hold`.
    pub(super) fn release(&mut self, now: Now, hold: Duration, out: &mut Actions) {
        self.hold = Some(now + hold);
        self.hand_over(now, VrrpState::Backup, out);
    }

    /// Gives up for good; done when `state()` is `Init`.
    pub(super) fn stop(&mut self, now: Now, out: &mut Actions) {
        match self.state {
            VrrpState::Master => self.hand_over(now, VrrpState::Init, out),
            VrrpState::Init => {}
            VrrpState::Backup | VrrpState::Fault => {
                self.remove_vips(out);
                self.go(VrrpState::Init, "stop".into(), out);
            }
        }
    }

    /// Gives up at once, without waiting for a new holder.
    pub(super) fn quit(&mut self, now: Now, out: &mut Actions) {
        match self.state {
            VrrpState::Master => {
                self.leave_at_once(now, VrrpState::Init, "no longer configured".into(), out)
            }
            _ => self.stop(now, out),
        }
    }

    /// A new configuration of the same virtual router (VRID, interface, source).
    pub(super) fn reconfigure(
        &mut self,
        now: Now,
        config: VrrpInstance,
        keys: Vec<SecretKey>,
        out: &mut Actions,
    ) {
        self.auth.reconfigure(config.auth.mode, keys);
        let old = std::mem::replace(&mut self.config, config);
        if self.config.track.frontend.is_none() {
            self.path = true;
        }
        if self.master.is_none() {
            self.master_interval = self.config.interval.get();
        }
        if self.holds_vips() {
            let new = self.config.vips.clone();
            for vip in old.vips.iter().filter(|v| !new.contains(v)) {
                out.push_back(Action::RemoveVip {
                    instance: self.config.name.clone(),
                    interface: self.config.interface.clone(),
                    vip: *vip,
                });
            }
            let added: Vec<Vip> = new.into_iter().filter(|v| !old.vips.contains(v)).collect();
            for vip in &added {
                out.push_back(self.add(*vip));
            }
            if !added.is_empty() {
                self.announce(self.config.garp.repeat, out);
            }
            if self.handover.is_none() {
                self.next_advert = self.next_advert.min(now + self.config.interval.get());
            }
        }
        self.reconsider(now, "configuration", out);
    }

    /// Same virtual router: can be reconfigured without giving the VIP up.
    pub(super) fn is_same_router(&self, other: &VrrpInstance) -> bool {
        let c = &self.config;
        (&c.name, c.vrid, &c.interface, c.source)
            == (&other.name, other.vrid, &other.interface, other.source)
    }

    /// When `on_time` is due; remembered, to know lateness by.
    pub(super) fn wake_at(&mut self, now: Now) -> Option<Now> {
        let at = match self.state {
            VrrpState::Master => self.master_wakes_at(),
            VrrpState::Backup => Some(self.takeover.min(now + self.config.interval.get() / 2)),
            VrrpState::Fault => self.retry.map(|(at, _)| at),
            VrrpState::Init => None,
        };
        let at = [at, self.remove_again].into_iter().flatten().min();
        // The earliest promise counts: a packet in between does not excuse a late timer.
        self.promised = match (self.promised, at) {
            (Some(p), Some(a)) => Some(p.min(a)),
            (_, a) => a,
        };
        self.promised
    }

    // --- master ---

    fn become_master(&mut self, now: Now, reason: String, out: &mut Actions) {
        let heard_nobody = self.master.is_none();
        self.go(VrrpState::Master, reason, out);
        self.counters.became_master += 1;
        (self.hold, self.lower_since, self.rival) = (None, None, None);
        self.master_interval = self.config.interval.get();
        for vip in self.config.vips.clone() {
            out.push_back(self.add(vip));
        }
        self.advertise(now, out);
        self.announce_fully(now, out);
        if let Some(claim) = self.squatter.take().filter(|_| heard_nobody) {
            let mac = print_mac(claim.mac);
            let detail = || {
                format!(
                    "{} answers for {} though nobody advertises it",
                    mac, claim.address
                )
            };
            self.conflict(now, ConflictKind::ForeignOwner, detail, out);
        }
    }

    fn master_on_time(&mut self, now: Now, late: Duration, out: &mut Actions) {
        if let Some(handover) = self.handover {
            if now >= handover.until {
                self.finish_handover(now, "no other holder was heard", out);
            } else if now >= handover.next_goodbye {
                self.send(0, out);
                if let Some(h) = &mut self.handover {
                    h.next_goodbye = now + self.config.interval.get() / 2;
                }
            }
            return;
        }
        // Others wait three intervals and their skew; the least skew is next to nothing.
        if now.saturating_sub(self.last_advert) > self.config.interval.get() * 3 {
            out.push_back(Action::Report {
                event: Event::Late {
                    what: format!("VRRP instance {}", self.config.name),
                    late,
                },
            });
            let silent = now.saturating_sub(self.last_advert).as_millis();
            let reason = format!(
                "this process slept: nothing advertised for {silent} ms, another machine may hold the VIP"
            );
            self.leave_for(now, VrrpState::Backup, reason, out);
            return;
        }
        if now >= self.next_advert {
            self.advertise(now, out);
        }
        if self.announce_again.is_some_and(|at| now >= at) {
            self.announce_again = None;
            self.announce(self.config.garp.repeat, out);
        }
        if let Some(at) = self.announce_refresh
            && now >= at
        {
            self.announce_refresh = Some(now + self.config.garp.refresh.get());
            self.announce(1, out);
        }
        if let Some(heard) = self.rival
            && now >= heard + self.down_interval()
        {
            // The rival gave up: whoever learned its address last must learn ours again.
            self.rival = None;
            self.announce_fully(now, out);
        }
    }

    fn master_wakes_at(&self) -> Option<Now> {
        if let Some(h) = self.handover {
            return Some(h.until.min(h.next_goodbye));
        }
        let rival = self.rival.map(|heard| heard + self.down_interval());
        [
            Some(self.next_advert),
            self.announce_again,
            self.announce_refresh,
            rival,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn advertise(&mut self, now: Now, out: &mut Actions) {
        self.next_advert = now + self.config.interval.get() / PER_INTERVAL;
        self.last_advert = now;
        self.send(self.config.priority, out);
    }

    fn send(&mut self, priority: u8, out: &mut Actions) {
        let c = &self.config;
        let advert = Advert {
            version: c.version,
            vrid: c.vrid,
            priority,
            interval: c.interval.get(),
            vips: c.vips.iter().map(|v| v.address).collect(),
        };
        let group = if c.source.is_ipv4() {
            IpAddr::V4(GROUP_V4)
        } else {
            IpAddr::V6(GROUP_V6)
        };
        let multicast = [group];
        let destinations = if c.multicast {
            &multicast[..]
        } else {
            &c.peers
        };
        for destination in destinations {
            let mut payload = advert.encode(c.source, *destination, c.checksum);
            self.auth.sign(c.source, &mut payload);
            self.counters.sent += 1;
            out.push_back(Action::SendVrrp {
                instance: c.name.clone(),
                interface: c.interface.clone(),
                source: c.source,
                destination: *destination,
                payload: payload.into(),
            });
        }
    }

    fn hand_over(&mut self, now: Now, to: VrrpState, out: &mut Actions) {
        if self.state != VrrpState::Master {
            return;
        }
        if let Some(h) = &mut self.handover {
            // A stop during a release is a stop.
            h.to = if to == VrrpState::Init { to } else { h.to };
            return;
        }
        self.send(0, out);
        let interval = self.config.interval.get();
        self.handover = Some(Handover {
            until: now + interval * 2,
            next_goodbye: now + interval / 2,
            to,
        });
    }

    fn finish_handover(&mut self, now: Now, why: &str, out: &mut Actions) {
        if let Some(h) = self.handover.take() {
            self.leave_for(now, h.to, format!("handed over: {why}"), out);
        }
    }

    /// Says goodbye and removes the VIP without waiting for a new holder.
    fn leave_at_once(&mut self, now: Now, to: VrrpState, reason: String, out: &mut Actions) {
        if self.link != Some(false) {
            self.send(0, out);
        }
        self.leave_for(now, to, reason, out);
    }

    fn leave_for(&mut self, now: Now, to: VrrpState, reason: String, out: &mut Actions) {
        self.remove_vips(out);
        self.counters.left_master += 1;
        self.handover = None;
        (self.announce_again, self.announce_refresh, self.rival) = (None, None, None);
        self.go(to, reason, out);
        self.graces = 0;
        self.takeover = now + self.down_interval();
    }

    // --- backup ---

    fn on_advert(
        &mut self,
        now: Now,
        source: IpAddr,
        priority: u8,
        interval: Duration,
        out: &mut Actions,
    ) {
        match self.state {
            VrrpState::Init | VrrpState::Fault => {
                self.master = (priority != 0).then_some((source, priority));
            }
            VrrpState::Backup => self.backup_hears(now, source, priority, interval),
            VrrpState::Master => self.master_hears(now, source, priority, interval, out),
        }
    }

    fn backup_hears(&mut self, now: Now, source: IpAddr, priority: u8, interval: Duration) {
        if priority == 0 {
            // The earlier of both: the goodbye is sent more than once.
            self.takeover = self.takeover.min(now + self.skew());
            self.lower_since = None;
            return;
        }
        if priority < self.config.priority && self.may_preempt(now) {
            // Not heeded: our own deadline runs on, and we take over.
            return;
        }
        self.heed(now, source, priority, interval);
    }

    fn heed(&mut self, now: Now, source: IpAddr, priority: u8, interval: Duration) {
        if priority >= self.config.priority {
            self.lower_since = None;
        }
        self.master = Some((source, priority));
        if self.config.version == VrrpVersion::V3 {
            self.master_interval = interval;
        }
        self.graces = 0;
        self.squatter = None;
        self.takeover = now + self.down_interval();
    }

    fn may_preempt(&mut self, now: Now) -> bool {
        if self.hold.is_some_and(|until| now < until) {
            self.lower_since = None;
            return false;
        }
        let since = *self.lower_since.get_or_insert(now);
        self.config.preempt && now >= since + self.config.preempt_delay.get()
    }

    fn master_hears(
        &mut self,
        now: Now,
        source: IpAddr,
        priority: u8,
        interval: Duration,
        out: &mut Actions,
    ) {
        if self.handover.is_some() {
            if priority != 0 {
                self.finish_handover(now, &format!("{source} holds the VIP"), out);
                self.master = Some((source, priority));
            }
            return;
        }
        if priority == 0 {
            self.advertise(now, out);
            return;
        }
        let wins = (priority, source) > (self.config.priority, self.config.source);
        let own = self.config.priority;
        let detail =
            || format!("{source} advertises with priority {priority}, this machine with {own}");
        if wins {
            self.leave_for(
                now,
                VrrpState::Backup,
                format!("{source} has priority {priority}"),
                out,
            );
            self.heed(now, source, priority, interval);
        } else {
            // At once, so that it hears; but never more than ten per interval.
            if now >= self.last_advert + self.config.interval.get() / 10 {
                self.advertise(now, out);
            }
            self.rival = Some(now);
            self.defend(now, out);
        }
        self.conflict(now, ConflictKind::TwoMasters, detail, out);
    }

    fn forgive_own_silence(&mut self, now: Now, late: Duration, out: &mut Actions) {
        self.takeover += late;
        if self.graces < GRACES {
            // At first in full: after a pause of the whole machine nothing waits in the socket, and
            // only a whole period tells a living master from a dead one.
            let grace = if self.graces == 0 {
                self.down_interval()
            } else {
                self.master_interval
            };
            self.takeover = self.takeover.max(now + grace);
            self.graces += 1;
            out.push_back(Action::Report {
                event: Event::Late {
                    what: format!("VRRP instance {}", self.config.name),
                    late,
                },
            });
        }
    }

    // --- common ---

    /// Goes to or leaves Fault as the tracked things are.
    fn reconsider(&mut self, now: Now, why: &str, out: &mut Actions) {
        // The interface's state is not known before the first report of it.
        if self.config.track.interface && self.link.is_none() {
            return;
        }
        let waits = self.retry.is_some_and(|(at, _)| now < at);
        let missing = if self.config.track.interface && self.link == Some(false) {
            Some(format!("interface {} is down", self.config.interface))
        } else if !self.path {
            let frontend = self.config.track.frontend.as_deref().unwrap_or_default();
            Some(format!("frontend {frontend} has no path to any backend"))
        } else if waits {
            Some("a VIP could not be added".to_string())
        } else {
            None
        };
        match (self.state, missing) {
            (VrrpState::Master, Some(missing)) => {
                self.leave_at_once(now, VrrpState::Fault, missing, out)
            }
            (VrrpState::Init | VrrpState::Backup, Some(missing)) => {
                self.go(VrrpState::Fault, missing, out)
            }
            (VrrpState::Init | VrrpState::Fault, None) => {
                self.go(VrrpState::Backup, why.to_string(), out);
                self.graces = 0;
                self.lower_since = None;
                self.promised = None;
                self.takeover = now + self.down_interval();
                self.probe(out);
            }
            _ => {}
        }
    }

    fn add(&self, vip: Vip) -> Action {
        Action::AddVip {
            instance: self.config.name.clone(),
            interface: self.config.interface.clone(),
            vip,
        }
    }

    fn remove_vips(&self, out: &mut Actions) {
        out.extend(self.config.vips.iter().map(|vip| Action::RemoveVip {
            instance: self.config.name.clone(),
            interface: self.config.interface.clone(),
            vip: *vip,
        }));
    }

    fn go(&mut self, to: VrrpState, reason: String, out: &mut Actions) {
        let from = std::mem::replace(&mut self.state, to);
        out.push_back(Action::Report {
            event: Event::VrrpState {
                instance: self.config.name.clone(),
                from,
                to,
                reason,
            },
        });
    }

    /// Skew_Time: ((256 - priority) * Active_Adver_Interval) / 256; version 2 counts in seconds.
    fn skew(&self) -> Duration {
        let base = match self.config.version {
            VrrpVersion::V2 => Duration::from_secs(1),
            VrrpVersion::V3 => self.master_interval,
        };
        base * (256 - u32::from(self.config.priority)) / 256
    }

    /// Active_Down_Interval: 3 * Active_Adver_Interval + Skew_Time.
    fn down_interval(&self) -> Duration {
        self.master_interval * 3 + self.skew()
    }

    fn tolerance(&self) -> Duration {
        (self.config.interval.get() / 4).max(Duration::from_millis(5))
    }
}

fn print_mac(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
