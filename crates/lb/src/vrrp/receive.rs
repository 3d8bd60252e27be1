//! Whether a received packet is heeded, and what is said about those that are not.

use std::net::IpAddr;
use std::time::Duration;

use super::instance::{Actions, Instance};
use super::packet::{Discard, Message, is_group};
use crate::config::VrrpVersion;
use crate::io::{Action, ConflictKind, Event, Now};

/// Reports of one kind of conflict are at least this far apart; counters count each.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// Senders remembered under multicast, where no peer list bounds them.
const MULTICAST_SENDERS: usize = 32;

/// An IP packet of protocol 112.
#[derive(Clone, Copy, Debug)]
pub(super) struct Datagram<'a> {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) ttl: u8,
    pub(super) payload: &'a [u8],
    pub(super) authentic: Option<bool>,
}

impl Instance {
    /// Whether a packet is for this virtual router.
    pub(super) fn is_concerned(&self, interface: &str, source: IpAddr, payload: &[u8]) -> bool {
        let c = &self.config;
        c.interface == interface && c.source.is_ipv4() == source.is_ipv4() && payload.get(1) == Some(&c.vrid)
    }

    /// Whether a packet was signed by the key it names; None where nothing depends on it.
    pub(super) fn judge(&self, source: IpAddr, payload: &[u8]) -> Option<bool> {
        let m = Message::split(payload, self.config.source.is_ipv4()).ok()?;
        self.auth.judge(source, m.body, m.rest)
    }

    /// Checks in keepalived's order (vrrp.c); returns priority and interval.
    pub(super) fn check(&mut self, now: Now, p: Datagram<'_>, out: &mut Actions) -> Result<(u8, Duration), Discard> {
        let m = Message::split(p.payload, self.config.source.is_ipv4())?;
        if p.ttl < self.config.min_ttl {
            return Err(Discard::Ttl);
        }
        if m.version()? != self.config.version {
            return Err(Discard::Version);
        }
        let listed = self.config.peers.contains(&p.source);
        let remember = listed || self.config.multicast && self.auth.senders() < MULTICAST_SENDERS;
        self.auth.verify(p.source, m.body, m.rest, remember, p.authentic)?;
        if m.has_foreign_auth() {
            return Err(Discard::AuthType);
        }
        let (own, theirs) = (self.config.interval.get(), m.interval());
        if theirs.is_zero() || self.config.version == VrrpVersion::V2 && theirs != own {
            return Err(Discard::Interval);
        }
        if !m.is_advertisement() {
            return Err(Discard::Type);
        }
        if theirs != own {
            self.counters.interval_differs += 1;
        }
        if !m.has_valid_checksum(p.source, p.destination) {
            return Err(Discard::Checksum);
        }
        if is_group(p.destination) != self.config.multicast {
            return Err(Discard::Destination);
        }
        if p.source == self.config.source {
            return Err(Discard::OwnSource);
        }
        if !self.config.multicast && !listed {
            return Err(Discard::UnknownPeer);
        }
        if !self.has_these_vips(&m) {
            // Counted and reported, not dropped (RFC 9568 §7.1): the list may be changing.
            let detail = || format!("{} advertises {:?}", p.source, m.vips().collect::<Vec<_>>());
            self.conflict(now, ConflictKind::OtherVips, detail, out);
        }
        Ok((m.priority(), theirs))
    }

    fn has_these_vips(&self, m: &Message<'_>) -> bool {
        let own = &self.config.vips;
        m.vips().count() == own.len() && m.vips().all(|ip| own.iter().any(|v| v.address == ip))
    }

    pub(super) fn discard(&mut self, now: Now, reason: Discard, source: IpAddr, out: &mut Actions) {
        *self.counters.discarded.entry(reason).or_default() += 1;
        let kind = match reason {
            Discard::Unsigned | Discard::UnknownKey | Discard::Signature | Discard::Replay => {
                ConflictKind::Unauthenticated
            }
            Discard::UnknownPeer | Discard::Destination | Discard::OwnSource | Discard::Version => {
                ConflictKind::ForeignRouter
            }
            _ => return,
        };
        let vrid = self.config.vrid;
        let detail = || format!("{source} advertises VRID {vrid} ({})", reason.name());
        self.conflict(now, kind, detail, out);
    }

    pub(super) fn conflict(
        &mut self,
        now: Now,
        kind: ConflictKind,
        detail: impl FnOnce() -> String,
        out: &mut Actions,
    ) {
        *self.counters.conflicts.entry(kind).or_default() += 1;
        if self.reported.get(&kind).is_some_and(|at| now < *at + REPORT_EVERY) {
            return;
        }
        self.reported.insert(kind, now);
        out.push_back(Action::Report {
            event: Event::Conflict {
                instance: self.config.name.clone(),
                kind,
                detail: detail(),
            },
        });
    }
}
