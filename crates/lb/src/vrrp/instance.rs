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
use super::master::Handover;
use super::packet::Discard;
use super::receive::Datagram;
use crate::config::{Vip, VrrpInstance, VrrpVersion};
use crate::frames::{Claim, Mac};
use crate::io::{Action, ConflictKind, Event, Now, VipChange, VrrpState};

/// First and longest wait after a VIP could not be added.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

pub(super) type Actions = VecDeque<Action>;

/// A virtual router and its timers.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) config: VrrpInstance,
    pub(super) auth: Authenticator,
    pub(super) state: VrrpState,
    pub(super) mac: Option<Mac>,
    pub(super) link: Option<bool>,
    /// This machine does not have the address it advertises from.
    mute: bool,
    pub(super) path: bool,
    /// Interval of the master last heard (version 3 backups adopt it).
    pub(super) master_interval: Duration,
    /// Address and priority of the master last heard.
    pub(super) master: Option<(IpAddr, u8)>,
    /// Backup: when to take over.
    pub(super) takeover: Now,
    pub(super) graces: u8,
    /// Lower-priority masters are let be until then (preempt delay, release on order).
    pub(super) hold: Option<Now>,
    pub(super) lower_since: Option<Now>,
    /// Master: when to advertise, and when we last did.
    pub(super) next_advert: Now,
    pub(super) last_advert: Now,
    pub(super) handover: Option<Handover>,
    pub(super) announce_again: Option<Now>,
    pub(super) announce_refresh: Option<Now>,
    pub(super) last_defence: Option<Now>,
    /// A lower-priority master was heard at that time; resolved when it stays silent.
    pub(super) rival: Option<Now>,
    /// Someone answered for a VIP while no master was heard.
    pub(super) squatter: Option<Claim>,
    /// Adding a VIP failed: tried again then, after waiting that long.
    pub(super) retry: Option<(Now, Duration)>,
    /// Removing a VIP failed: tried again then.
    pub(super) remove_again: Option<Now>,
    pub(super) reported: BTreeMap<ConflictKind, Now>,
    pub(super) promised: Option<Now>,
    pub(super) counters: Counters,
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
            mute: false,
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
        let late = self.promised.take().map_or(Duration::ZERO, |p| now.saturating_sub(p));
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

    pub(super) fn on_link(&mut self, now: Now, up: bool, mac: Option<Mac>, missing: &[IpAddr], out: &mut Actions) {
        self.mute = missing.contains(&self.config.source);
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
        let verb = if change == VipChange::Add { "add" } else { "remove" };
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
            let wait = self.retry.map_or(RETRY_FIRST, |(_, w)| (w * 2).min(RETRY_LONGEST));
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
            VrrpState::Master => self.leave_at_once(now, VrrpState::Init, "no longer configured".into(), out),
            _ => self.stop(now, out),
        }
    }

    /// A new configuration of the same virtual router (VRID, interface, source).
    pub(super) fn reconfigure(&mut self, now: Now, config: VrrpInstance, keys: Vec<SecretKey>, out: &mut Actions) {
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
        (&c.name, c.vrid, &c.interface, c.source) == (&other.name, other.vrid, &other.interface, other.source)
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

    /// Goes to or leaves Fault as the tracked things are.
    pub(super) fn reconsider(&mut self, now: Now, why: &str, out: &mut Actions) {
        // The interface's state is not known before the first report of it.
        if self.config.track.interface && self.link.is_none() {
            return;
        }
        let waits = self.retry.is_some_and(|(at, _)| now < at);
        let missing = if self.config.track.interface && self.link == Some(false) {
            Some(format!("interface {} is down", self.config.interface))
        } else if self.mute {
            // It would hold the VIP, and no peer would hear of it.
            Some(format!("{} is no address of this machine", self.config.source))
        } else if !self.path {
            let frontend = self.config.track.frontend.as_deref().unwrap_or_default();
            Some(format!("frontend {frontend} has no path to any backend"))
        } else if waits {
            Some("a VIP could not be added".to_string())
        } else {
            None
        };
        match (self.state, missing) {
            (VrrpState::Master, Some(missing)) => self.leave_at_once(now, VrrpState::Fault, missing, out),
            (VrrpState::Init | VrrpState::Backup, Some(missing)) => self.go(VrrpState::Fault, missing, out),
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

    pub(super) fn add(&self, vip: Vip) -> Action {
        Action::AddVip {
            instance: self.config.name.clone(),
            interface: self.config.interface.clone(),
            vip,
        }
    }

    pub(super) fn remove_vips(&self, out: &mut Actions) {
        out.extend(self.config.vips.iter().map(|vip| Action::RemoveVip {
            instance: self.config.name.clone(),
            interface: self.config.interface.clone(),
            vip: *vip,
        }));
    }

    pub(super) fn go(&mut self, to: VrrpState, reason: String, out: &mut Actions) {
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
    pub(super) fn skew(&self) -> Duration {
        let base = match self.config.version {
            VrrpVersion::V2 => Duration::from_secs(1),
            VrrpVersion::V3 => self.master_interval,
        };
        base * (256 - u32::from(self.config.priority)) / 256
    }

    /// Active_Down_Interval: 3 * Active_Adver_Interval + Skew_Time.
    pub(super) fn down_interval(&self) -> Duration {
        self.master_interval * 3 + self.skew()
    }

    pub(super) fn tolerance(&self) -> Duration {
        (self.config.interval.get() / 4).max(Duration::from_millis(5))
    }
}

pub(super) fn print_mac(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}
