//! One run per cluster at a time: who may hold a lock, decided without a clock of its own.

use serde::{Deserialize, Serialize};

use crate::proto::{LockHolder, LockOwner, LockReply, LockRequest};

/// A lock as it is kept on the machine. Survives its holder so that tokens only ever grow.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LockRecord {
    pub(crate) token: u64,
    pub(crate) owner: Option<LockOwner>,
    pub(crate) since_unix: u64,
    pub(crate) renewed_unix: u64,
    pub(crate) ttl_s: u64,
}

impl LockRecord {
    /// Answers the request; `self` is changed if and only if the lock was acquired.
    pub(crate) fn take(&mut self, request: &LockRequest, now_unix: u64) -> LockReply {
        let holder = self.holder(now_unix);
        let mine = self
            .owner
            .as_ref()
            .is_some_and(|owner| owner.run_id == request.owner.run_id);
        let free = holder.as_ref().is_none_or(|holder| holder.expired);
        let granted = match request.renews {
            Some(token) => mine && self.token == token,
            None => mine || free || request.steal,
        };
        if !granted {
            return LockReply {
                acquired: false,
                token: self.token,
                holder,
            };
        }
        if !mine {
            self.token += 1;
            self.since_unix = now_unix;
            self.owner = Some(request.owner.clone());
        }
        self.renewed_unix = now_unix;
        self.ttl_s = request.ttl_s;
        LockReply {
            acquired: true,
            token: self.token,
            holder: if mine { None } else { holder },
        }
    }

    /// Whether it was held with this token and is free now.
    pub(crate) fn release(&mut self, token: u64) -> bool {
        let held = self.token == token && self.owner.is_some();
        if held {
            self.owner = None;
        }
        held
    }

    fn holder(&self, now_unix: u64) -> Option<LockHolder> {
        let owner = self.owner.clone()?;
        let idle_s = now_unix.saturating_sub(self.renewed_unix);
        // A renewal in the future means that the clock was set back: age is then unknown, so it counts as living.
        Some(LockHolder {
            owner,
            age_s: now_unix.saturating_sub(self.since_unix),
            idle_s,
            expired: idle_s > self.ttl_s,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(run_id: &str, steal: bool) -> LockRequest {
        let owner = LockOwner {
            run_id: run_id.into(),
            user: "ada".into(),
            host: "desk".into(),
            pid: 7,
        };
        LockRequest {
            name: "prod".into(),
            owner,
            ttl_s: 60,
            steal,
            renews: None,
        }
    }

    #[test]
    fn one_run_holds_it_until_released_expired_or_stolen() {
        let mut lock = LockRecord::default();
        let first = lock.take(&request("a", false), 1000);
        assert_eq!((first.acquired, first.token, first.holder), (true, 1, None));

        let refused = lock.take(&request("b", false), 1030);
        assert!(!refused.acquired);
        assert_eq!(
            refused.holder.unwrap().to_string(),
            "run a of ada@desk (pid 7), 30 s old, last seen 30 s ago"
        );

        assert_eq!(
            lock.take(&request("a", false), 1050).token,
            1,
            "renewing keeps the token"
        );
        assert!(!lock.take(&request("b", false), 1110).acquired);

        let expired = lock.take(&request("b", false), 1111);
        assert!(expired.acquired && expired.holder.unwrap().expired);
        assert_eq!(expired.token, 2);

        assert!(!lock.release(1), "a former holder cannot release it");
        assert!(lock.take(&request("c", true), 1112).acquired);
        assert!(lock.release(3));
        assert_eq!(lock.take(&request("d", false), 1113).token, 4, "tokens grow for ever");
    }

    #[test]
    fn renewing_takes_nothing_that_is_not_held() {
        let renewal = |run_id: &str, token| LockRequest {
            renews: Some(token),
            ..request(run_id, false)
        };
        let mut lock = LockRecord::default();
        assert!(!lock.take(&renewal("a", 1), 1000).acquired);
        assert_eq!(lock, LockRecord::default());
        lock.take(&request("a", false), 1000);
        // Late, but nobody came in between.
        assert!(lock.take(&renewal("a", 1), 2000).acquired);
        assert_eq!(lock.renewed_unix, 2000);
        lock.take(&request("b", false), 3000);
        // Expired, and another's before.
        let refused = lock.take(&renewal("a", 1), 4000);
        assert_eq!((refused.acquired, refused.token), (false, 2));
        assert!(refused.holder.is_some_and(|holder| holder.owner.run_id == "b"));
    }
}
