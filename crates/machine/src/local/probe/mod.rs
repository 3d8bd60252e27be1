//! Trying things out on this machine and from it. Nothing here outlives its request but the listeners, which end by
//! themselves.

mod disk;
mod dont_fragment;
mod echo;
mod ports;
mod vrrp;

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

/// What is done on a link, by its interface's name. Both block; errors are for people.
#[derive(Debug, Clone, Copy)]
pub struct LinkTools {
    /// Who answers for these addresses and which routers are heard, for the duration.
    pub ask: fn(&str, &[IpAddr], Duration) -> Result<LinkSeen, String>,
    /// Sends each (from, to) packets of IP protocol 112 with this payload. `false`: nobody answered for the address.
    pub send_vrrp: VrrpSender,
}

pub type VrrpSender = fn(&str, &[(IpAddr, IpAddr)], &[u8]) -> Result<Vec<bool>, String>;

/// Of whoever knows ARP and VRRP; set by the program, so that this crate need not.
static LINK_TOOLS: OnceLock<LinkTools> = OnceLock::new();

/// The first call counts.
pub fn set_link_tools(tools: LinkTools) {
    let _ = LINK_TOOLS.set(tools);
}

fn link_tools() -> Result<LinkTools, RemoteError> {
    LINK_TOOLS
        .get()
        .copied()
        .ok_or_else(|| RemoteError::failed("this program cannot ask a link"))
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
            let ask = link_tools()?.ask;
            let asked = move || ask(&interface, &addresses, Duration::from_millis(for_ms)).map_err(RemoteError::failed);
            Probed::Link(blocking(asked).await?)
        }
        Probe::VrrpListen { addresses } => {
            listeners.vrrp.listen(&addresses)?;
            Probed::Done
        }
        Probe::VrrpSend { interface, packets } => {
            let send = link_tools()?.send_vrrp;
            let sent = move || send(&interface, &packets, vrrp::PAYLOAD).map_err(RemoteError::failed);
            Probed::Sent(blocking(sent).await?)
        }
        Probe::VrrpHeard { packets, for_ms } => {
            let ears = listeners.vrrp.take();
            let heard = move || vrrp::heard(&ears, &packets, Duration::from_millis(for_ms));
            Probed::Heard(blocking(heard).await?)
        }
    })
}
