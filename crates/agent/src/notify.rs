//! The service manager's notification protocol (sd_notify(3)): a datagram to $NOTIFY_SOCKET.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// Says `state` (`READY=1`, `WATCHDOG=1`, ...); nothing without a service manager.
pub fn notify(state: &str) {
    let Ok(path) = std::env::var("NOTIFY_SOCKET") else {
        return;
    };
    let Ok(socket) = UnixDatagram::unbound() else { return };
    let _ = match path.strip_prefix('@') {
        Some(name) => {
            use std::os::linux::net::SocketAddrExt;
            std::os::unix::net::SocketAddr::from_abstract_name(name)
                .and_then(|a| socket.send_to_addr(state.as_bytes(), &a))
        }
        None => socket.send_to(state.as_bytes(), path),
    };
}

/// How often the service manager is told `WATCHDOG=1`: a quarter of its limit, so that one time left out because a thread
/// was late is made up for.
pub fn watchdog() -> Option<Duration> {
    let us: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(us / 4))
}
