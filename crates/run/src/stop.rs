//! Asking a run to end at a safe point.

use std::sync::Arc;

use tokio::sync::watch;

/// Clones share one wish. Once asked for it stays.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Running changes end, no new one begins, waiting is given up.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }

    pub fn is_stopped(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when the wish is there.
    pub async fn stopped(&self) {
        // The sender lives in `self`, so the channel cannot close.
        let _ = self.0.subscribe().wait_for(|stopped| *stopped).await;
    }
}
