//! Holding the VIP: advertising, handing over, giving up.

use std::net::IpAddr;
use std::time::Duration;

use super::instance::{Actions, Instance, print_mac};
use super::packet::{Advert, GROUP_V4, GROUP_V6};
use crate::io::{Action, ConflictKind, Event, Now, VrrpState};

/// Advertisements per announced interval.
const PER_INTERVAL: u32 = 2;

/// The VIP is still held, but its new holder is awaited.
#[derive(Clone, Copy, Debug)]
pub(super) struct Handover {
    pub(super) until: Now,
    /// Priority 0 is sent again: one may be lost.
    pub(super) next_goodbye: Now,
    pub(super) to: VrrpState,
}

impl Instance {
    pub(super) fn become_master(&mut self, now: Now, reason: String, out: &mut Actions) {
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
            let detail = || format!("{} answers for {} though nobody advertises it", mac, claim.address);
            self.conflict(now, ConflictKind::ForeignOwner, detail, out);
        }
    }

    pub(super) fn master_on_time(&mut self, now: Now, late: Duration, out: &mut Actions) {
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
            let reason =
                format!("this process slept: nothing advertised for {silent} ms, another machine may hold the VIP");
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

    pub(super) fn master_wakes_at(&self) -> Option<Now> {
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

    pub(super) fn advertise(&mut self, now: Now, out: &mut Actions) {
        self.next_advert = now + self.config.interval.get() / PER_INTERVAL;
        self.last_advert = now;
        self.send(self.config.priority, out);
    }

    pub(super) fn send(&mut self, priority: u8, out: &mut Actions) {
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
        let destinations = if c.multicast { &multicast[..] } else { &c.peers };
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

    pub(super) fn hand_over(&mut self, now: Now, to: VrrpState, out: &mut Actions) {
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

    pub(super) fn finish_handover(&mut self, now: Now, why: &str, out: &mut Actions) {
        if let Some(h) = self.handover.take() {
            self.leave_for(now, h.to, format!("handed over: {why}"), out);
        }
    }

    /// Says goodbye and removes the VIP without waiting for a new holder.
    pub(super) fn leave_at_once(&mut self, now: Now, to: VrrpState, reason: String, out: &mut Actions) {
        if self.link != Some(false) {
            self.send(0, out);
        }
        self.leave_for(now, to, reason, out);
    }

    pub(super) fn leave_for(&mut self, now: Now, to: VrrpState, reason: String, out: &mut Actions) {
        self.remove_vips(out);
        self.counters.left_master += 1;
        self.handover = None;
        (self.announce_again, self.announce_refresh, self.rival) = (None, None, None);
        self.go(to, reason, out);
        self.graces = 0;
        self.takeover = now + self.down_interval();
    }

    pub(super) fn master_hears(
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
        let detail = || format!("{source} advertises with priority {priority}, this machine with {own}");
        if wins {
            self.leave_for(now, VrrpState::Backup, format!("{source} has priority {priority}"), out);
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
}
