//! One backend: what is known of it, its weight while it warms up.

use std::time::Duration;

use crate::config::{Backend, HealthKind};
use crate::io::{Action, AdminState, Availability, BackendView, Now, Reason};

const SLOW_START_STEPS: u32 = 10;

#[derive(Debug)]
pub(super) struct Member {
    pub(super) config: Backend,
    pub(super) admin: AdminState,
    pub(super) ordered_weight: Option<u16>,
    pub(super) availability: Availability,
    pub(super) reason: Reason,
    pub(super) since: Now,
    /// Good or bad answers in a row.
    pub(super) good: u8,
    pub(super) bad: u8,
    /// First sign of trouble since the last good answer.
    pub(super) trouble: Option<Now>,
    /// When it last said anything, and that it was ready; and since when it does so without a gap.
    pub(super) alive: Heard,
    pub(super) ready: Heard,
    /// It said that it is not ready, and has not taken it back.
    pub(super) unready: Option<Unready>,
    /// When a check ran out although newer ones were answered.
    pub(super) stalled: Option<Now>,
    pub(super) next_probe: Now,
    pub(super) last_probe: Option<Now>,
    /// Fast checks still to be made because of a doubt.
    pub(super) doubt: u8,
    pub(super) pending: Vec<(u64, Now)>,
    /// To be reset once checks fail that were sent while another backend answered: that many are left.
    pub(super) owes_reset: Option<u8>,
    pub(super) reset_at: Option<Now>,
    pub(super) checks: u64,
    pub(super) failed_checks: u64,
}

/// Answers of one kind.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heard {
    pub(super) since: Option<Now>,
    pub(super) last: Option<Now>,
}

/// Answers that said no.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unready {
    pub(super) last: Now,
    /// In a row, for etcd's sake only, and since when.
    pub(super) etcd: u8,
    pub(super) since: Now,
    /// Its clients were reset for that.
    pub(super) reset: bool,
}

impl Heard {
    pub(super) fn hear(&mut self, now: Now) {
        self.since.get_or_insert(now);
        self.last = Some(now);
    }

    /// Answered after `trouble` and ever since `sent`.
    pub(super) fn bears_witness(self, trouble: Now, sent: Now) -> bool {
        self.last.is_some_and(|t| t >= trouble) && self.since.is_some_and(|t| t <= sent)
    }
}

impl Member {
    pub(super) fn new(now: Now, config: Backend, kind: HealthKind) -> Self {
        let (availability, reason) = match kind {
            HealthKind::None => (Availability::Up, Reason::Ready),
            _ => (Availability::Down, Reason::Unchecked),
        };
        Self {
            config,
            admin: AdminState::Ready,
            ordered_weight: None,
            availability,
            reason,
            since: now,
            good: 0,
            bad: 0,
            trouble: None,
            alive: Heard::default(),
            ready: Heard::default(),
            unready: None,
            stalled: None,
            next_probe: now,
            last_probe: None,
            doubt: 0,
            pending: Vec::new(),
            owes_reset: None,
            reset_at: None,
            checks: 0,
            failed_checks: 0,
        }
    }

    pub(super) fn answered(&mut self, now: Now) {
        self.bad = 0;
        self.doubt = 0;
        self.trouble = None;
        self.alive.hear(now);
    }

    pub(super) fn oldest_pending(&self) -> Option<Now> {
        self.pending.iter().map(|(_, sent)| *sent).min()
    }

    pub(super) fn weight(&self, now: Now, slow_start: Duration) -> u16 {
        if self.admin != AdminState::Ready {
            return 0;
        }
        let full = self.ordered_weight.unwrap_or(self.config.weight);
        let Some(step) = self.slow_start_step(now, slow_start) else {
            return full;
        };
        let scaled = (u32::from(full) * step / SLOW_START_STEPS) as u16;
        scaled.max(full.min(1))
    }

    /// 1 to `SLOW_START_STEPS`, while warming up.
    fn slow_start_step(&self, now: Now, slow_start: Duration) -> Option<u32> {
        let warming = self.availability == Availability::Up && now < self.since + slow_start;
        warming.then(|| {
            let passed = now.saturating_sub(self.since).as_millis();
            1 + (passed * u128::from(SLOW_START_STEPS - 1) / slow_start.as_millis().max(1)) as u32
        })
    }

    pub(super) fn next_slow_start_step(&self, now: Now, slow_start: Duration) -> Option<Now> {
        let step = self.slow_start_step(now, slow_start)?;
        Some(self.since + (slow_start * step).div_ceil(SLOW_START_STEPS - 1))
    }

    pub(super) fn view(&self, now: Now, slow_start: Duration) -> BackendView {
        BackendView {
            name: self.config.name.clone(),
            address: self.config.address,
            weight: self.weight(now, slow_start),
            max_connections: self.config.max_connections,
            backup: self.config.backup,
            local: self.config.local,
            availability: self.availability,
            reason: self.reason,
        }
    }

    /// `view` is what `view()` would give.
    pub(super) fn looks_like(&self, view: &BackendView, now: Now, slow_start: Duration) -> bool {
        let c = &self.config;
        (self.availability, self.reason, self.weight(now, slow_start)) == (view.availability, view.reason, view.weight)
            && (c.max_connections, c.backup, c.local, c.address)
                == (view.max_connections, view.backup, view.local, view.address)
            && c.name == view.name
    }

    pub(super) fn reset(&self, frontend: &str, spread: Duration) -> Action {
        Action::ResetConnections {
            frontend: frontend.to_string(),
            backend: self.config.name.clone(),
            address: self.config.address,
            spread,
        }
    }
}

/// Rounds up to the millisecond, so that a step is over when its timer fires.
trait DivCeil {
    fn div_ceil(self, by: u32) -> Duration;
}

impl DivCeil for Duration {
    fn div_ceil(self, by: u32) -> Duration {
        Self::from_millis((self.as_millis() as u64).div_ceil(u64::from(by)))
    }
}
