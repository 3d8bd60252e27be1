//! What a fake machine finds when it tries things out: all is well, but for what the test set up.

use std::net::IpAddr;

use quorate_facts::{Echo, Listening, Reach};

use super::FakeState;
use crate::proto::{Probe, Probed};

impl FakeState {
    pub(super) fn probe(&self, probe: &Probe) -> Probed {
        match probe {
            Probe::Listen { ports, .. } => {
                let taken: Vec<u16> = self
                    .listening()
                    .into_iter()
                    .map(|(port, _)| port)
                    .chain(self.host.listening.iter().map(|listener| listener.port))
                    .collect();
                let one = |port: u16| {
                    if taken.contains(&port) {
                        Listening::Taken
                    } else {
                        Listening::Opened
                    }
                };
                Probed::Listening(ports.iter().map(|(_, address)| one(address.port())).collect())
            }
            Probe::Dial { targets, .. } => {
                let silent = |ip, port| self.silent.contains(&(ip, None)) || self.silent.contains(&(ip, Some(port)));
                let reach = targets.iter().map(|(_, address)| {
                    if silent(address.ip(), address.port()) {
                        Reach::Silent
                    } else {
                        Reach::Open(200)
                    }
                });
                Probed::Reach(reach.collect())
            }
            Probe::Echo { targets, .. } => {
                let echoes = targets.iter().map(|(address, size)| {
                    let lost = self.silent.contains(&(*address, None)) || (self.path_mtu > 0 && *size > self.path_mtu);
                    Echo {
                        address: *address,
                        size: *size,
                        us: (!lost).then_some(200),
                    }
                });
                Probed::Echoes(echoes.collect())
            }
            Probe::Disk { .. } => Probed::Disk(self.disk),
            Probe::Clock => Probed::Clock(self.now_unix * 1_000_000_000),
            Probe::Link { .. } => Probed::Link(self.link.clone()),
            Probe::VrrpListen { .. } => Probed::Done,
            Probe::VrrpSend { packets, .. } => {
                let there = |(_, to): &(_, IpAddr)| !self.silent.contains(&(*to, None));
                Probed::Sent(packets.iter().map(there).collect())
            }
            Probe::VrrpHeard { packets, .. } => {
                let came = |(from, _): &(IpAddr, _)| !self.unheard.contains(from);
                Probed::Heard(packets.iter().map(came).collect())
            }
        }
    }
}
