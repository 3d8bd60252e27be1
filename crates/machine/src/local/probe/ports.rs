//! Ports of this machine opened for a moment, and ports of others dialled.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use quorate_facts::{Listening, Reach, Transport};
use tokio::{
    net::{TcpListener, TcpSocket, UdpSocket},
    sync::Semaphore,
    task::AbortHandle,
    time::timeout,
};

use super::vrrp;

/// What an echo begins with; other datagrams are not answered.
const MARK: &[u8] = b"quorate-probe";
/// A datagram may be lost on a healthy network.
const DATAGRAMS: u32 = 3;
/// Dials at a time: a cluster of a thousand has many ports.
const AT_ONCE: usize = 64;

/// Listeners of this session. At most one set at a time.
#[derive(Default)]
pub(in crate::local) struct Listeners {
    ports: Mutex<Vec<AbortHandle>>,
    pub(super) vrrp: vrrp::Ears,
}

impl Listeners {
    /// Closes those there were and opens these. Ports in use are left alone: there is no bind that would disturb them.
    pub(super) async fn open(&self, ports: Vec<(Transport, SocketAddr)>, for_ms: u64) -> Vec<Listening> {
        self.close();
        let limit = Duration::from_millis(for_ms);
        let mut found = Vec::new();
        for (transport, address) in ports {
            let opened = match transport {
                Transport::Tcp => tcp(address, limit),
                Transport::Udp => udp(address, limit).await,
            };
            found.push(match opened {
                Ok(handle) => {
                    self.ports.lock().unwrap_or_else(PoisonError::into_inner).push(handle);
                    Listening::Opened
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Listening::Taken,
                Err(error) => Listening::Failed(error.to_string()),
            });
        }
        found
    }

    fn close(&self) {
        for handle in self.ports.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            handle.abort();
        }
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        self.close();
    }
}

fn tcp(address: SocketAddr, limit: Duration) -> io::Result<AbortHandle> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Connections that ended a moment ago (TIME_WAIT, after a reset of the cluster) do not make a port one in use.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    let listener: TcpListener = socket.listen(128)?;
    let accept = async move {
        // Accepted and dropped; the caller has gone by then.
        while listener.accept().await.is_ok() {}
    };
    Ok(tokio::spawn(async move { timeout(limit, accept).await }).abort_handle())
}

async fn udp(address: SocketAddr, limit: Duration) -> io::Result<AbortHandle> {
    let socket = UdpSocket::bind(address).await?;
    let echo = async move {
        let mut buffer = [0; 64];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            if buffer[..length].starts_with(MARK) {
                let _ = socket.send_to(&buffer[..length], from).await;
            }
        }
    };
    Ok(tokio::spawn(async move { timeout(limit, echo).await }).abort_handle())
}

pub(super) async fn dial(targets: Vec<(Transport, SocketAddr)>, timeout_ms: u64) -> Vec<Reach> {
    let permits = Arc::new(Semaphore::new(AT_ONCE));
    let limit = Duration::from_millis(timeout_ms);
    join_all(targets.into_iter().map(|(transport, address)| {
        let permits = permits.clone();
        async move {
            let _permit = permits.acquire().await;
            let started = Instant::now();
            let answered = match transport {
                Transport::Tcp => timeout(limit, connect(address)).await,
                Transport::Udp => timeout(limit, echoed(address, limit / DATAGRAMS)).await,
            };
            match answered {
                Ok(Ok(())) => Reach::Open(started.elapsed().as_micros() as u32),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Reach::Refused,
                Ok(Err(error)) => Reach::Failed(error.to_string()),
                Err(_) => Reach::Silent,
            }
        }
    }))
    .await
}

/// Ends with a reset, so that no side keeps the port in TIME_WAIT.
async fn connect(address: SocketAddr) -> io::Result<()> {
    let stream = tokio::net::TcpStream::connect(address).await?;
    stream.set_zero_linger()
}

async fn echoed(address: SocketAddr, each: Duration) -> io::Result<()> {
    let any: SocketAddr = if address.is_ipv4() {
        ([0, 0, 0, 0], 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(address).await?;
    let mut buffer = [0; 64];
    loop {
        socket.send(MARK).await?;
        if let Ok(received) = timeout(each, socket.recv(&mut buffer)).await {
            received?;
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_opened_for_a_moment_is_found_and_a_used_one_is_left_alone() {
        let used = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let (used_at, free_at) = (used.local_addr().unwrap(), free.local_addr().unwrap());
        drop(free);
        let listeners = Listeners::default();
        let ports = vec![
            (Transport::Tcp, used_at),
            (Transport::Tcp, free_at),
            (Transport::Udp, free_at),
        ];
        let found = listeners.open(ports.clone(), 5_000).await;
        assert_eq!(found, [Listening::Taken, Listening::Opened, Listening::Opened]);
        let reached = dial(ports, 1_000).await;
        assert!(
            reached.iter().all(|reach| matches!(reach, Reach::Open(_))),
            "{reached:?}"
        );
        listeners.open(Vec::new(), 0).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let gone = dial(vec![(Transport::Tcp, free_at), (Transport::Udp, free_at)], 300).await;
        assert_eq!(gone[0], Reach::Refused);
        assert!(!matches!(gone[1], Reach::Open(_)));
        // And may be listened on by its real owner at once.
        assert!(std::net::TcpListener::bind(free_at).is_ok());
    }

    #[tokio::test]
    async fn connections_that_ended_do_not_make_a_port_a_used_one() {
        let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let client = std::net::TcpStream::connect(address).unwrap();
        // The side that closes first keeps the port in TIME_WAIT.
        drop(server.accept().unwrap());
        drop(server);
        drop(client);
        let found = Listeners::default().open(vec![(Transport::Tcp, address)], 1_000).await;
        assert_eq!(found, [Listening::Opened]);
    }
}
