//! How long to wait for an answer, by how long answers took lately.
//!
//! Overloaded servers answer late. Taking the slower ones for hung would reset their clients, whose new TLS handshakes
//! make all of them slower still. So checks wait for several times the slowest answer that came in the last seconds,
//! from any server of the set; in quiet times that is far less than the configured time-out, which then counts.

use std::time::Duration;

use crate::io::Now;

/// An answer counts for one to two of these.
const WINDOW: Duration = Duration::from_secs(5);
const TIMES_SLOWEST: u32 = 4;
/// More patience than this would hide a server that hangs.
const TIMES_TIMEOUT: u32 = 6;

#[derive(Debug, Default)]
pub(super) struct Pace {
    since: Now,
    this_window: Duration,
    last_window: Duration,
}

impl Pace {
    /// An answer, good or bad, came after `took`.
    pub(super) fn hear(&mut self, now: Now, took: Duration) {
        self.turn(now);
        self.this_window = self.this_window.max(took);
    }

    /// Time-out of a check sent now, at least the configured one.
    pub(super) fn patience(&mut self, now: Now, configured: Duration) -> Duration {
        self.turn(now);
        let slowest = self.this_window.max(self.last_window);
        (slowest * TIMES_SLOWEST).clamp(configured, Self::longest(configured))
    }

    pub(super) fn longest(configured: Duration) -> Duration {
        configured * TIMES_TIMEOUT
    }

    fn turn(&mut self, now: Now) {
        let windows = now.saturating_sub(self.since).as_millis() / WINDOW.as_millis();
        if windows > 0 {
            self.last_window = if windows == 1 { self.this_window } else { Duration::ZERO };
            self.this_window = Duration::ZERO;
            self.since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_grows_with_slow_answers_and_forgets_them() {
        let ms = Duration::from_millis;
        let mut pace = Pace::default();
        assert_eq!(pace.patience(ms(0), ms(500)), ms(500));
        pace.hear(ms(1000), ms(20));
        assert_eq!(pace.patience(ms(1000), ms(500)), ms(500), "quiet times");
        pace.hear(ms(2000), ms(400));
        assert_eq!(pace.patience(ms(2000), ms(500)), ms(1600));
        pace.hear(ms(3000), ms(5000));
        assert_eq!(pace.patience(ms(3000), ms(500)), ms(3000), "bounded");
        assert_eq!(
            pace.patience(ms(6000), ms(500)),
            ms(3000),
            "remembered for a window more"
        );
        assert_eq!(pace.patience(ms(11_500), ms(500)), ms(500));
    }
}
