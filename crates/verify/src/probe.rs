//! The probe Pod: a small HTTP server that answers "what do you reach from where you are?".
//!
//! | path | answer |
//! |---|---|
//! | `/healthz` | `ok` |
//! | `/` | the Pod's host name |
//! | `/connect?to=ADDRESS:PORT` | 200 when a TCP connection is accepted within two seconds |
//! | `/get?to=ADDRESS:PORT` | 200 and the body of `http://ADDRESS:PORT/` |
//! | `/dns?name=NAME` | 200 and the addresses the Pod's own resolver gives |
//!
//! It holds no credentials and runs as nobody.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::dns;

/// Longer than a healthy cluster network ever takes, shorter than the caller's patience.
const PATIENCE: Duration = Duration::from_secs(2);
/// A probe serves a handful of callers; this many at once is a mistake or worse.
const CONNECTIONS: usize = 64;

/// Serves until the process ends. `listen`: for example `[::]:8085`.
pub async fn serve(listen: SocketAddr) -> std::io::Result<Infallible> {
    let listener = TcpListener::bind(listen).await?;
    let places = std::sync::Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    loop {
        let (stream, _) = listener.accept().await?;
        let Ok(place) = places.clone().try_acquire_owned() else {
            continue;
        };
        tokio::spawn(async move {
            let service = hyper::service::service_fn(answer);
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // An idle or broken client costs its place for half a minute at most.
            let _ = tokio::time::timeout(Duration::from_secs(30), connection).await;
            drop(place);
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    let argument = |name: &str| {
        query
            .split('&')
            .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
            .unwrap_or_default()
    };
    let result = match request.uri().path() {
        "/healthz" => Ok("ok".to_owned()),
        "/" => Ok(std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default()),
        "/connect" => bounded(connect(argument("to"))).await,
        "/get" => bounded(get(argument("to"))).await,
        "/dns" => bounded(resolve(argument("name"))).await,
        _ => return Ok(respond(StatusCode::NOT_FOUND, "no such question".into())),
    };
    Ok(match result {
        Ok(text) => respond(StatusCode::OK, text),
        Err(text) => respond(StatusCode::BAD_GATEWAY, text),
    })
}

async fn bounded(work: impl Future<Output = Result<String, String>>) -> Result<String, String> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())))
}

async fn connect(to: &str) -> Result<String, String> {
    let address: SocketAddr = to.parse().map_err(|_| format!("{to:?} is no address and port"))?;
    TcpStream::connect(address)
        .await
        .map(|_| "connected".to_owned())
        .map_err(|error| error.to_string())
}

async fn get(to: &str) -> Result<String, String> {
    let address: SocketAddr = to.parse().map_err(|_| format!("{to:?} is no address and port"))?;
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let request = Request::builder()
        .uri("/")
        .header("host", to)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response
        .into_body()
        .collect()
        .await
        .map_err(|error| error.to_string())?
        .to_bytes();
    let text = String::from_utf8_lossy(&body).into_owned();
    if status.is_success() {
        Ok(text)
    } else {
        Err(format!("{status}: {text}"))
    }
}

/// Asks the first name server of `/etc/resolv.conf` over UDP; the name is taken as complete.
async fn resolve(name: &str) -> Result<String, String> {
    let resolv = std::fs::read_to_string("/etc/resolv.conf").map_err(|error| error.to_string())?;
    let server: IpAddr = resolv
        .lines()
        .find_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
        .ok_or("no nameserver in /etc/resolv.conf")?;
    let any: SocketAddr = if server.is_ipv4() {
        SocketAddr::from(([0, 0, 0, 0], 0))
    } else {
        SocketAddr::from(([0u16; 8], 0))
    };
    let socket = UdpSocket::bind(any).await.map_err(|error| error.to_string())?;
    socket.connect((server, 53)).await.map_err(|error| error.to_string())?;
    let query = dns::query(name, 0x5151)?;
    let mut reply = [0; 1500];
    // One lost datagram is no failure of the cluster.
    for _ in 0..3 {
        socket.send(&query).await.map_err(|error| error.to_string())?;
        if let Ok(received) = tokio::time::timeout(Duration::from_millis(600), socket.recv(&mut reply)).await {
            let length = received.map_err(|error| error.to_string())?;
            let addresses = dns::addresses(&reply[..length], 0x5151)?;
            return Ok(addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        }
    }
    Err(format!("name server {server} does not answer"))
}

fn respond(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}
