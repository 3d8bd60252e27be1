//! Making neighbours learn where the VIP is: gratuitous ARP and neighbour advertisements.

use std::time::Duration;

use super::instance::{Actions, Instance};
use crate::frames;
use crate::io::{Action, Now};

/// Announcements answering a conflict are at least this far apart.
const DEFEND_EVERY: Duration = Duration::from_millis(200);

impl Instance {
    pub(super) fn defend(&mut self, now: Now, out: &mut Actions) {
        if self.last_defence.is_none_or(|at| now >= at + DEFEND_EVERY) {
            self.last_defence = Some(now);
            self.announce(1, out);
        }
    }

    pub(super) fn announce_fully(&mut self, now: Now, out: &mut Actions) {
        let garp = &self.config.garp;
        self.announce_again = (!garp.delay.is_zero()).then(|| now + garp.delay.get());
        self.announce_refresh = (!garp.refresh.is_zero()).then(|| now + garp.refresh.get());
        self.announce(garp.repeat, out);
    }

    pub(super) fn announce(&mut self, times: u8, out: &mut Actions) {
        let Some(mac) = self.mac else { return };
        for _ in 0..times {
            for vip in &self.config.vips {
                for frame in frames::announcement(mac, vip.address) {
                    self.counters.announcements += 1;
                    out.push_back(Action::SendFrame {
                        interface: self.config.interface.clone(),
                        frame: frame.into(),
                    });
                }
            }
        }
    }

    /// Asks who has the VIPs, to find an owner that knows nothing of VRRP.
    pub(super) fn probe(&self, out: &mut Actions) {
        let Some(mac) = self.mac else { return };
        for vip in &self.config.vips {
            out.push_back(Action::SendFrame {
                interface: self.config.interface.clone(),
                frame: frames::probe(mac, vip.address).into(),
            });
        }
    }
}
