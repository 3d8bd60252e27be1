//! Freeing local clients of a dead backend: find their sockets and destroy them (sock_diag(7), `SOCK_DESTROY`).
//!
//! Connect-time balancing (eBPF) and IPVS leave the kernel's own TCP connection between client and backend. When the
//! backend dies silently, such a client waits for its time-outs, 15 minutes and more. Destroying the socket gives it
//! ECONNABORTED at once. Needs CAP_NET_ADMIN and a kernel with CONFIG_INET_DIAG_DESTROY: ask [`supported`] first.

mod codec;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

pub use codec::Socket;

use crate::netlink::{Error, Netlink, Protocol, in_namespaces};

/// Where container runtimes keep the network namespaces of Pods.
const NAMESPACE_DIRECTORIES: [&str; 2] = ["/run/netns", "/run/docker/netns"];

/// Which sockets to find.
#[derive(Debug, Clone, Copy)]
pub struct Victims<'a> {
    /// Remote address and port they are connected to.
    pub destination: SocketAddr,
    /// Only these local addresses; `None` for all.
    pub sources: Option<&'a HashSet<SocketAddr>>,
}

/// How many sockets were destroyed, and where it did not work.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Sockets destroyed.
    pub destroyed: usize,
    /// What went wrong; the other namespaces were handled all the same.
    pub errors: Vec<Error>,
}

/// Whether this kernel can destroy sockets: `Err` carries the reason, to be said beforehand.
pub fn supported() -> Result<(), Error> {
    let mut netlink = Netlink::open(Protocol::SockDiag)?;
    match netlink.request(
        "destroying a socket (SOCK_DESTROY, CONFIG_INET_DIAG_DESTROY)",
        codec::destroy_nothing(),
    ) {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

/// Lists matching TCP sockets of the calling thread's network namespace, IPv6 sockets with mapped addresses included.
pub fn find(victims: &Victims<'_>) -> Result<Vec<Socket>, Error> {
    let mut netlink = Netlink::open(Protocol::SockDiag)?;
    let mut found = Vec::new();
    // An IPv4 destination may belong to a dual-stack IPv6 socket (Go's and Java's default), never the other way round.
    let families: &[i32] = if victims.destination.is_ipv4() {
        &[libc::AF_INET, libc::AF_INET6]
    } else {
        &[libc::AF_INET6]
    };
    for family in families {
        let request = || codec::list(*family as u8, victims.destination.port());
        let sockets = netlink.dump("listing TCP sockets", request, codec::read)?;
        found.extend(sockets.into_iter().filter(|socket| {
            socket.destination == victims.destination
                && victims.sources.is_none_or(|sources| sources.contains(&socket.source))
        }));
    }
    Ok(found)
}

/// Destroys matching sockets of the calling thread's network namespace; returns how many.
pub fn destroy(victims: &Victims<'_>) -> Result<usize, Error> {
    destroy_these(&find(victims)?)
}

/// Destroys the connected TCP sockets whose local address is one of `addresses`, in the calling thread's namespace:
/// their peers get a RST at once, as long as the addresses are still there. For VIPs that are about to move: without
/// it an idle client would wait for its keepalive to find out.
pub fn destroy_local(addresses: &[IpAddr]) -> Result<usize, Error> {
    let mut netlink = Netlink::open(Protocol::SockDiag)?;
    let mut found = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let sockets = netlink.dump("listing TCP sockets", || codec::list(family as u8, 0), codec::read)?;
        found.extend(
            sockets
                .into_iter()
                .filter(|socket| addresses.contains(&socket.source.ip())),
        );
    }
    destroy_these(&found)
}

fn destroy_these(found: &[Socket]) -> Result<usize, Error> {
    let mut netlink = Netlink::open(Protocol::SockDiag)?;
    let mut destroyed = 0;
    for socket in found {
        match netlink.request(
            &format!("destroying the socket to {}", socket.destination),
            codec::destroy(socket),
        ) {
            Ok(()) => destroyed += 1,
            // It closed by itself in the meantime.
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(destroyed)
}

/// Destroys matching sockets in this namespace and in those at `namespaces` (see [`pod_namespaces`]).
pub fn destroy_everywhere(victims: &Victims<'_>, namespaces: &[PathBuf]) -> Outcome {
    let mut outcome = Outcome::default();
    let mut take = |result: Result<usize, Error>| match result {
        Ok(count) => outcome.destroyed += count,
        Err(error) => outcome.errors.push(error),
    };
    take(destroy(victims));
    match in_namespaces(namespaces, |_| destroy(victims)) {
        Ok(results) => results.into_iter().for_each(|result| match result {
            // A Pod that went away in the meantime has no clients left.
            Err(error) if error.errno() == Some(libc::ENOENT) || error.errno() == Some(libc::EINVAL) => {}
            other => take(other.and_then(|result| result)),
        }),
        Err(error) => take(Err(error)),
    }
    outcome
}

/// The network namespaces that container runtimes keep on this machine, without duplicates and without our own.
pub fn pod_namespaces() -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| path.metadata().ok().map(|data| (data.dev(), data.ino()));
    let mut seen: HashSet<_> = identity(Path::new("/proc/thread-self/ns/net")).into_iter().collect();
    NAMESPACE_DIRECTORIES
        .iter()
        .filter_map(|directory| std::fs::read_dir(directory).ok())
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| identity(path).is_some_and(|identity| seen.insert(identity)))
        .collect()
}
