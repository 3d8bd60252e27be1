//! A hashed timer wheel: adding costs a push, an idle worker has nothing to look at.

/// Milliseconds per slot; how late a timer may be.
const GRAIN: u64 = 4;
const SLOTS: usize = 1024;

/// Timers without cancellation: whoever they are for has to know whether they still matter.
pub(super) struct Wheel<T> {
    slots: Vec<Vec<(u64, u64, T)>>,
    /// Everything due before this was given out (in grains).
    done: u64,
    count: usize,
}

impl<T: Copy> Wheel<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| Vec::new()).collect(),
            done: 0,
            count: 0,
        }
    }

    /// A timer for `id` at `due` milliseconds.
    pub(super) fn add(&mut self, due: u64, id: u64, what: T) {
        let grain = due.div_ceil(GRAIN).max(self.done + 1);
        self.slots[grain as usize % SLOTS].push((grain, id, what));
        self.count += 1;
    }

    /// Moves what is due at `now` to `out`.
    pub(super) fn expire(&mut self, now: u64, out: &mut Vec<(u64, T)>) {
        let now = now / GRAIN;
        if self.count > 0 {
            // After a long sleep every slot is looked at once.
            for g in (self.done + 1..=now).take(SLOTS) {
                let slot = &mut self.slots[g as usize % SLOTS];
                let before = slot.len();
                slot.retain(|&(due, id, what)| {
                    if due <= now {
                        out.push((id, what));
                    }
                    due > now
                });
                self.count -= before - slot.len();
                if slot.is_empty() && slot.capacity() > 64 {
                    // A burst's memory is given back.
                    *slot = Vec::new();
                }
            }
        }
        self.done = self.done.max(now);
    }

    /// When to look again, in milliseconds; None: nothing is waiting. Never later than the next timer.
    pub(super) fn next(&self) -> Option<u64> {
        if self.count == 0 {
            return None;
        }
        let ahead = (1..=SLOTS as u64).find(|a| !self.slots[(self.done + a) as usize % SLOTS].is_empty());
        ahead.map(|a| (self.done + a) * GRAIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timers_come_once_in_time_and_never_early() {
        let mut w = Wheel::new();
        let mut seed = 1u64;
        let mut expected: Vec<u64> = (0..2000u64)
            .map(|i| {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let due = (seed >> 33) % 20_000;
                w.add(due, i, due);
                due
            })
            .collect();
        let mut out = Vec::new();
        let mut now = 0;
        while let Some(next) = w.next() {
            assert!(next > now);
            now = next;
            w.expire(now, &mut out);
            for (_, due) in out.drain(..) {
                assert!(due <= now && now < due + 2 * GRAIN, "due {due} came at {now}");
                let at = expected.iter().position(|&e| e == due).unwrap();
                expected.swap_remove(at);
            }
        }
        assert!(expected.is_empty());
    }

    #[test]
    fn a_long_sleep_loses_nothing() {
        let mut w = Wheel::new();
        for due in [1, 5_000, 50_000] {
            w.add(due, due, ());
        }
        let mut out = Vec::new();
        w.expire(1_000_000, &mut out);
        assert_eq!(out.len(), 3);
        assert_eq!(w.next(), None);
    }
}
