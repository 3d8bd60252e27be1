//! Waiting for the holder to fall silent, and not mistaking own sleep for its silence.

use std::net::IpAddr;
use std::time::Duration;

use super::instance::{Actions, Instance};
use crate::config::VrrpVersion;
use crate::io::{Action, Event, Now, VrrpState};

/// Times a backup that was late is granted more than the time it slept, per silence.
const GRACES: u8 = 3;

impl Instance {
    pub(super) fn on_advert(&mut self, now: Now, source: IpAddr, priority: u8, interval: Duration, out: &mut Actions) {
        match self.state {
            VrrpState::Init | VrrpState::Fault => {
                self.master = (priority != 0).then_some((source, priority));
            }
            VrrpState::Backup => self.backup_hears(now, source, priority, interval),
            VrrpState::Master => self.master_hears(now, source, priority, interval, out),
        }
    }

    pub(super) fn backup_hears(&mut self, now: Now, source: IpAddr, priority: u8, interval: Duration) {
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

    pub(super) fn heed(&mut self, now: Now, source: IpAddr, priority: u8, interval: Duration) {
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

    pub(super) fn may_preempt(&mut self, now: Now) -> bool {
        if self.hold.is_some_and(|until| now < until) {
            self.lower_since = None;
            return false;
        }
        let since = *self.lower_since.get_or_insert(now);
        self.config.preempt && now >= since + self.config.preempt_delay.get()
    }

    pub(super) fn forgive_own_silence(&mut self, now: Now, late: Duration, out: &mut Actions) {
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
}
