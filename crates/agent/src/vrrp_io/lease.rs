//! VIPs are on loan from the kernel.
//!
//! A VIP is added with a lifetime of [`LEASE`], and a small thread renews it for as long as the VRRP thread is seen
//! running. So a VIP ends with its holder even when nobody is left to remove it: agent and supervisor killed together,
//! or both stopped (SIGSTOP, a frozen control group). Renewing is not the VRRP thread's own work because the kernel's
//! lock on addresses can be held for long by others, while network namespaces of Pods come and go.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Error, sys};
use crate::netlink::route::{Link, Routes};

/// Lifetime of a VIP in the kernel, whose timer has a grain of one second.
pub(crate) const LEASE: Duration = Duration::from_secs(2);
const RENEW_EVERY: Duration = Duration::from_millis(500);
/// A VRRP thread that was not seen for so long does not run.
const RUNS_WITHIN: Duration = Duration::from_secs(1);
/// A VRRP thread that holds VIPs waits no longer than this, however long its interval: it is to be seen running.
pub(super) const SEEN_EVERY: Duration = Duration::from_millis(500);

type Held = HashMap<IpAddr, (Link, u8)>;

/// Ends with its thread when dropped.
#[derive(Debug)]
pub(super) struct Lease {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    /// Locked while one VIP is renewed, so that none is renewed that was just removed.
    held: Mutex<Held>,
    /// When the VRRP thread ran last: milliseconds since boot.
    seen: AtomicU64,
    ended: AtomicBool,
}

impl Lease {
    /// Works in the caller's network namespace.
    pub(super) fn start() -> Result<Self, Error> {
        let routes = Routes::open()?;
        let shared = Arc::new(Shared::default());
        let thread = std::thread::Builder::new()
            .name("vip-lease".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || shared.renew(routes)
            })
            .map_err(|source| Error::System {
                operation: "starting the thread that renews VIPs".to_owned(),
                source,
            })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The VRRP thread runs.
    pub(super) fn seen(&self) {
        self.shared.seen.store(now_ms(), Ordering::Relaxed);
    }

    /// A VIP was added, or taken on from an earlier process: renewed at once.
    pub(super) fn hold(&self, link: Link, address: IpAddr, prefix: u8) {
        self.shared.held().insert(address, (link, prefix));
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// To be called before the VIP is removed.
    pub(super) fn let_go(&self, address: IpAddr) {
        self.shared.held().remove(&address);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, mut routes: Routes) {
        // The VRRP thread may wait for this one, so that it must not be the slower of both. Its own start says so if not.
        let _ = sys::realtime();
        while !self.ended.load(Ordering::Relaxed) {
            let silent = now_ms().saturating_sub(self.seen.load(Ordering::Relaxed));
            if u128::from(silent) < RUNS_WITHIN.as_millis() {
                let addresses: Vec<IpAddr> = self.held().keys().copied().collect();
                for address in addresses {
                    if let Some((link, prefix)) = self.held().get(&address) {
                        // A VIP or link that is gone is told to the VRRP thread by the kernel's events.
                        let _ = routes.renew_vip(link, address, *prefix);
                    }
                }
            }
            std::thread::park_timeout(RENEW_EVERY);
        }
    }
}

fn now_ms() -> u64 {
    sys::now().as_millis() as u64
}
