//! Trying things out on this machine and from it. Nothing here outlives its request but the listeners, which end by
//! themselves.

mod disk;
mod dont_fragment;
mod echo;
mod ports;

use std::{
    net::IpAddr,
    sync::OnceLock,
    time::{Duration, SystemTime},
};

use quorate_facts::LinkSeen;

use super::blocking;
use crate::{
    error::RemoteError,
    proto::{Probe, Probed},
};

pub(super) use ports::Listeners;

/// Asks a link; blocks for the duration. Errors are for people.
pub type LinkProber = fn(&str, &[IpAddr], Duration) -> Result<LinkSeen, String>;

/// Whoever knows ARP and VRRP; set by the program, so that this crate need not.
static LINK_PROBER: OnceLock<LinkProber> = OnceLock::new();

/// Says how links are asked. The first call counts.
pub fn set_link_prober(prober: LinkProber) {
    let _ = LINK_PROBER.set(prober);
}

pub(super) async fn carry_out(listeners: &Listeners, probe: Probe) -> Result<Probed, RemoteError> {
    Ok(match probe {
        Probe::Listen { ports, for_ms } => Probed::Listening(listeners.open(ports, for_ms).await),
        Probe::Dial { targets, timeout_ms } => Probed::Reach(ports::dial(targets, timeout_ms).await),
        Probe::Echo { targets, timeout_ms } => {
            Probed::Echoes(blocking(move || echo::echoes(&targets, Duration::from_millis(timeout_ms))).await?)
        }
        Probe::Disk { path, writes, for_ms } => {
            Probed::Disk(blocking(move || disk::measure(&path, writes, Duration::from_millis(for_ms))).await?)
        }
        Probe::Clock => Probed::Clock(
            SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos() as u64),
        ),
        Probe::Link {
            interface,
            addresses,
            for_ms,
        } => {
            let prober = LINK_PROBER
                .get()
                .copied()
                .ok_or_else(|| RemoteError::failed("this program cannot ask a link"))?;
            let asked =
                move || prober(&interface, &addresses, Duration::from_millis(for_ms)).map_err(RemoteError::failed);
            Probed::Link(blocking(asked).await?)
        }
    })
}
