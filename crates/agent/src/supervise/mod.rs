//! A VIP never outlives the process that answers for it.
//!
//! The kernel keeps an address when its process dies, and the new holder announces the same one: two owners. So the
//! agent runs as the child of a tiny [`supervised`] parent, which removes all VIPs within milliseconds of the child's
//! death (however it dies) or stop (SIGSTOP), and starts it again. If the parent dies, the child gets SIGTERM and hands
//! over in order. If both die, the service manager calls [`purge`] (`ExecStopPost=`), and the next start does.
//!
//! Whoever removes a dead agent's VIPs also says goodbye for it, so that the next holder need not find out by silence.

mod sys;

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use quorate_lb::{AgentConfig, vrrp};

use crate::netlink::route::{Address, Routes};
use crate::{boot, config, vrrp_io};
use sys::{Change, Life, Signals};

/// First wait before the child is started again.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// Longest wait: an agent that always crashes must not load the machine, one that recovers must be back soon.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// A child that ran this long counts as having been well.
const WELL_AFTER: Duration = Duration::from_secs(10);
/// How long a child may take to end after SIGTERM (draining included) before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Exit codes that a restart does not cure: wrong usage (clap) and configuration (sysexits EX_CONFIG).
const HOPELESS: [i32; 2] = [2, 78];

/// What can go wrong in the supervisor.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Addresses could not be listed or removed.
    #[error("removing left-over VIPs: {0}")]
    Purge(#[from] crate::netlink::Error),
    /// Signals could not be watched or the child not be waited for.
    #[error("supervising the agent: {operation}: {source}")]
    System {
        /// What was being done.
        operation: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// How the supervised child ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    /// The exit code a shell would show.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Removes every VIP that a dead agent left on this machine (in the calling thread's network namespace), and says goodbye
/// for its virtual routers; returns the VIPs.
///
/// Ours are addresses with Quorate's mark, on whatever interface, and the configured IPv6 VIPs in the form in which we
/// add them, since IPv6 addresses cannot be marked before kernel 5.18. A host's own address is never touched, even if
/// the configuration names it as a VIP by mistake.
pub fn purge(config: &AgentConfig) -> Result<Vec<IpAddr>, Error> {
    let purged = purge_addresses(config)?;
    say_goodbye(config, &purged);
    Ok(purged)
}

/// Runs `command` (the agent itself, configured by the file `path`) until it ends for good or this process is asked to stop.
/// Blocks.
///
/// To be called from the main thread before any other thread is started; the child gets SIGTERM when that thread ends.
/// SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1 and SIGUSR2 are passed on. VIPs are purged before each start and after
/// each death or stop of the child.
pub fn supervised(path: &Path, config: AgentConfig, mut command: Command) -> Result<Ended, Error> {
    let socket = config.admin.socket.clone();
    let mut configured = Configured {
        path: path.to_owned(),
        last: config,
    };
    let signals = Signals::watch().map_err(|source| Error::System {
        operation: "watching signals",
        source,
    })?;
    // The purge has to happen in time on a loaded machine too; without the right to it, it is merely slower.
    if let Err(error) = vrrp_io::realtime() {
        tracing::warn!(%error, "supervisor runs without real-time priority");
    }
    let mut backoff = BACKOFF_MIN;
    loop {
        // A running agent that is about to be replaced without interruption keeps its VIPs till then.
        let replacing = UnixStream::connect(&socket).is_ok();
        if !replacing {
            purge_logged(configured.now());
        }
        let started = Instant::now();
        let (child, lifeline) = sys::spawn(&mut command).map_err(|source| Error::System {
            operation: "starting the agent",
            source,
        })?;
        let (ended, asked) = watch(&signals, &child, lifeline, &mut configured, replacing)?;
        let hopeless = matches!(ended, Ended::Code(code) if code == 0 || HOPELESS.contains(&code));
        if asked || hopeless {
            return Ok(ended);
        }
        if started.elapsed() >= WELL_AFTER {
            backoff = BACKOFF_MIN;
        }
        tracing::error!(?ended, restart_in = ?backoff, "the agent died; VIPs it had were removed");
        if asked_to_stop_within(&signals, backoff)? {
            return Ok(ended);
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Whether this process is the child of [`supervised`].
pub(crate) fn is_supervised() -> bool {
    sys::is_supervised()
}

/// To be called by the agent proper at its start; done by the VRRP thread.
pub(crate) fn keep_lifeline() {
    sys::keep_lifeline();
}

/// To be called by the agent proper before it adds the first VIP; done by the VRRP thread. Until then VIPs on this machine
/// may be a predecessor's, who keeps them should this agent end.
pub(crate) fn holds() {
    sys::holds();
}

/// To be called by the agent proper when it has given up its VIPs in order; done by the VRRP thread. From then on VIPs
/// on this machine are a successor's, and not to be purged when this agent ends.
pub(crate) fn released() {
    sys::released();
}

/// Passes signals on until the child is gone. Returns how it ended and whether the stop was asked for. `replacing`: VIPs
/// on this machine are a predecessor's until the child says that they are its own.
fn watch(
    signals: &Signals,
    child: &Child,
    lifeline: OwnedFd,
    configured: &mut Configured,
    replacing: bool,
) -> Result<(Ended, bool), Error> {
    let pid = child.id();
    // Absent before Linux 5.3: then SIGCHLD alone has to tell.
    let process = sys::open_process(pid).ok();
    let (mut lifeline, mut released) = (Some(lifeline), replacing);
    let mut stop_by: Option<Instant> = None;
    loop {
        let timeout = stop_by.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let others: Vec<&OwnedFd> = lifeline.iter().chain(&process).collect();
        let came = signals.wait(&others, timeout).map_err(|source| Error::System {
            operation: "waiting for signals",
            source,
        })?;
        while let Some(life) = lifeline.as_ref().map(sys::look) {
            match life {
                Life::Goes => break,
                Life::Holds => released = false,
                Life::Released => released = true,
                Life::Ended => {
                    lifeline = None;
                    if !released {
                        // Dying: how it ended is told in some milliseconds, but its VIPs are urgent.
                        purge_logged(configured.now());
                    }
                }
            }
        }
        if stop_by.is_some_and(|deadline| Instant::now() >= deadline) {
            tracing::error!("the agent did not end within {STOP_TIMEOUT:?} and is killed");
            sys::signal(pid, libc::SIGKILL);
            stop_by = Some(Instant::now() + STOP_TIMEOUT);
        }
        // Look at the child first: its VIPs are what is urgent.
        while let Some(change) = sys::changed(pid).map_err(|source| Error::System {
            operation: "waiting for the agent",
            source,
        })? {
            let ended = match change {
                Change::Exited(code) => Some(Ended::Code(code)),
                Change::Killed(signal) => Some(Ended::Signal(signal)),
                Change::Stopped | Change::Continued => None,
            };
            if let Some(ended) = ended {
                if !released {
                    purge_logged(configured.now());
                }
                return Ok((ended, stop_by.is_some()));
            }
            match change {
                Change::Stopped if released => {}
                Change::Stopped => {
                    // No goodbye: it would need a higher boot id than the agent's, and then nobody hears the agent when it
                    // goes on.
                    let purged = purge_addresses(configured.now());
                    log(purged);
                    tracing::warn!("the agent was stopped by a signal; its VIPs were removed");
                }
                _ => tracing::warn!("the agent goes on"),
            }
        }
        for signal in came.into_iter().filter(|signal| *signal != libc::SIGCHLD) {
            if matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT) && stop_by.is_none() {
                stop_by = Some(Instant::now() + STOP_TIMEOUT);
            }
            sys::signal(pid, signal);
        }
    }
}

fn asked_to_stop_within(signals: &Signals, time: Duration) -> Result<bool, Error> {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let came = signals.wait(&[], Some(left)).map_err(|source| Error::System {
            operation: "waiting for signals",
            source,
        })?;
        if came
            .iter()
            .any(|signal| matches!(*signal, libc::SIGTERM | libc::SIGINT | libc::SIGQUIT))
        {
            return Ok(true);
        }
    }
}

/// What the child was told last: its file may have been read again since the start.
struct Configured {
    path: PathBuf,
    last: AgentConfig,
}

impl Configured {
    fn now(&mut self) -> &AgentConfig {
        // A file that is refused by us was refused by the child as well, which goes on with what it had.
        if let Ok(config) = config::parse(&self.path)
            && config.validate().is_empty()
        {
            self.last = config;
        }
        &self.last
    }
}

fn purge_logged(config: &AgentConfig) {
    log(purge(config));
}

fn log(purged: Result<Vec<IpAddr>, Error>) {
    match purged {
        Ok(purged) if purged.is_empty() => {}
        Ok(purged) => tracing::warn!(?purged, "removed left-over VIPs"),
        Err(error) => tracing::error!(%error, "left-over VIPs may remain"),
    }
}

/// On behalf of the agent that held `vips`. What fails costs time only: its peers notice the silence.
fn say_goodbye(config: &AgentConfig, vips: &[IpAddr]) {
    if vips.is_empty() {
        return;
    }
    let keys = match config::keys(config) {
        Ok(keys) => keys,
        Err(findings) => {
            tracing::warn!(?findings, "no goodbye for the dead agent's VIPs");
            return;
        }
    };
    let goodbyes = vrrp::goodbyes(&config.vrrp, &keys, boot::next(&config.state), vips);
    if let Err(error) = vrrp_io::send(&goodbyes) {
        tracing::warn!(%error, "goodbye for the dead agent's VIPs");
    }
}

fn purge_addresses(config: &AgentConfig) -> Result<Vec<IpAddr>, Error> {
    let vips: Vec<IpAddr> = config
        .vrrp
        .iter()
        .flat_map(|instance| &instance.vips)
        .map(|vip| vip.address)
        .collect();
    let mut routes = Routes::open()?;
    let mut purged = Vec::new();
    for found in routes
        .addresses()?
        .into_iter()
        .filter(|found| is_left_over(found, &vips))
    {
        if routes.delete_address(found.index, found.address, found.prefix)? {
            purged.push(found.address);
        }
    }
    Ok(purged)
}

fn is_left_over(found: &Address, vips: &[IpAddr]) -> bool {
    found.ours || (found.address.is_ipv6() && found.deprecated && vips.contains(&found.address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hosts_own_address_is_never_purged() {
        let address: IpAddr = "10.0.0.1".parse().expect("ip");
        let own = Address {
            index: 2,
            address,
            prefix: 24,
            ours: false,
            virtual_server: false,
            deprecated: false,
        };
        assert!(!is_left_over(&own, &[address]));
        assert!(is_left_over(&Address { ours: true, ..own }, &[]));
    }

    #[test]
    fn unmarked_ipv6_vips_are_known_by_their_form() {
        let address: IpAddr = "fd00::1".parse().expect("ip");
        let vip = Address {
            index: 2,
            address,
            prefix: 128,
            ours: false,
            virtual_server: false,
            deprecated: true,
        };
        assert!(is_left_over(&vip, &[address]));
        assert!(!is_left_over(&vip, &[]), "an old privacy address is deprecated, too");
        assert!(!is_left_over(
            &Address {
                deprecated: false,
                ..vip
            },
            &[address]
        ));
    }
}
