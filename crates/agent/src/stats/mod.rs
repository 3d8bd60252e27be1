//! The statistics page, Prometheus metrics and JSON over plain HTTP/1.1.

mod html;
mod metrics;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinHandle};

use crate::core::CoreSender;
use crate::status::{Status, collect};

/// Clients served at once.
const CLIENTS: usize = 32;
/// Time for a whole exchange: nobody keeps a place by sending a byte a second.
const EXCHANGE: Duration = Duration::from_secs(5);
const REQUEST_MAX: usize = 8 * 1024;

/// User and password of the page.
#[derive(Clone)]
pub struct Credentials {
    user: String,
    password: Vec<u8>,
}

impl Credentials {
    pub fn new(user: &str, password: Vec<u8>) -> Self {
        Self {
            user: user.to_owned(),
            password,
        }
    }

    /// Takes the same time whatever is wrong, as far as lengths are the same.
    fn accept(&self, header: Option<&str>) -> bool {
        let given = header
            .and_then(|h| h.strip_prefix("Basic "))
            .and_then(base64)
            .unwrap_or_default();
        let mut wanted = self.user.clone().into_bytes();
        wanted.push(b':');
        wanted.extend_from_slice(&self.password);
        // Digests have one length, so that not even the password's shows.
        let digest = |b: &[u8]| ring::digest::digest(&ring::digest::SHA256, b);
        let (a, b) = (digest(&given), digest(&wanted));
        a.as_ref().iter().zip(b.as_ref()).fold(0, |d, (x, y)| d | (x ^ y)) == 0
    }
}

/// What a listener serves.
#[derive(Clone)]
pub struct Site {
    pub core: CoreSender,
    /// The page and JSON too, not only metrics.
    pub page: bool,
    pub login: Option<Credentials>,
}

/// Serves until the task is aborted. To be called inside a runtime.
///
/// # Errors
/// The address cannot be bound.
pub fn serve(listen: SocketAddr, site: Site) -> std::io::Result<JoinHandle<()>> {
    let listener =
        bind(listen).map_err(|e| std::io::Error::new(e.kind(), format!("cannot serve statistics on {listen}: {e}")))?;
    let site = Arc::new(site);
    Ok(tokio::spawn(async move {
        let mut clients: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    clients.retain(|client| !client.is_finished());
                    // Whoever has waited longest to say what he wants gives way: a probe of /healthz must get through.
                    if clients.len() >= CLIENTS
                        && let Some(oldest) = clients.pop_front()
                    {
                        oldest.abort();
                    }
                    let site = Arc::clone(&site);
                    let client = tokio::spawn(async move {
                        let _ = tokio::time::timeout(EXCHANGE, exchange(stream, &site)).await;
                    });
                    clients.push_back(client.abort_handle());
                }
                // No descriptors: do not spin.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }))
}

fn bind(listen: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if listen.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    // Next to a predecessor that has not let go yet.
    socket.set_reuseport(true)?;
    socket.bind(listen)?;
    socket.listen(128)
}

async fn exchange(mut stream: TcpStream, site: &Site) -> std::io::Result<()> {
    let mut request = Vec::new();
    let mut block = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let n = stream.read(&mut block).await?;
        if n == 0 || request.len() + n > REQUEST_MAX {
            return Ok(());
        }
        request.extend_from_slice(&block[..n]);
    }
    let answer = respond(&String::from_utf8_lossy(&request), site).await;
    stream.write_all(&answer).await?;
    stream.shutdown().await
}

async fn respond(request: &str, site: &Site) -> Vec<u8> {
    let mut lines = request.lines();
    let mut first = lines.next().unwrap_or_default().split(' ');
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let authorization = lines
        .filter_map(|l| l.split_once(':'))
        .find(|(k, _)| k.eq_ignore_ascii_case("authorization"))
        .map(|(_, v)| v.trim());
    let (status, kind, body) = if method != "GET" && method != "HEAD" {
        ("405 Method Not Allowed", TEXT, "only GET and HEAD\n".to_owned())
    } else if path == "/healthz" {
        // Never behind the login: probes have none, and it says nothing.
        match ask(&site.core, crate::core::Core::trouble).await {
            Some(None) => ("200 OK", TEXT, "ok\n".to_owned()),
            Some(Some(trouble)) => ("503 Service Unavailable", TEXT, format!("{trouble}\n")),
            None => ("503 Service Unavailable", TEXT, "the agent is ending\n".to_owned()),
        }
    } else if site.login.as_ref().is_some_and(|l| !l.accept(authorization)) {
        (
            "401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"quorate\", charset=\"UTF-8\"",
            TEXT,
            "log in\n".to_owned(),
        )
    } else {
        let page = site.page;
        let render: Option<(&str, Render)> = match path {
            "/metrics" => Some(("text/plain; version=0.0.4; charset=utf-8", metrics::render)),
            "/" if page => Some(("text/html; charset=utf-8", html::render)),
            "/stats.json" if page => Some(("application/json", |s| serde_json::to_string(s).unwrap_or_default())),
            _ => None,
        };
        match render {
            None => ("404 Not Found", TEXT, "/, /stats.json, /metrics, /healthz\n".to_owned()),
            Some((kind, render)) => match ask(&site.core, collect).await {
                Some(status) => ("200 OK", kind, render(&status)),
                None => ("503 Service Unavailable", TEXT, "the agent is ending\n".to_owned()),
            },
        }
    };
    let length = body.len();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nCache-Control: no-store\r\n\
         Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\nX-Content-Type-Options: nosniff\r\n\
         Connection: close\r\n\r\n"
    );
    if method != "HEAD" {
        answer.push_str(&body);
    }
    answer.into_bytes()
}

type Render = fn(&Status) -> String;

const TEXT: &str = "text/plain; charset=utf-8";

async fn ask<T: Send + 'static>(core: &CoreSender, f: fn(&crate::core::Core) -> T) -> Option<T> {
    let core = core.clone();
    tokio::task::spawn_blocking(move || core.ask(move |c| f(c)))
        .await
        .ok()
        .flatten()
}

/// Standard base64 (RFC 4648 §4); None when it is none.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let (mut bits, mut n) = (0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let v = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(v);
        n += 6;
        if n >= 8 {
            n -= 8;
            out.push((bits >> n) as u8);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logins() {
        let c = Credentials::new("admin", b"s3cret".to_vec());
        assert!(c.accept(Some("Basic YWRtaW46czNjcmV0")));
        for bad in [
            None,
            Some(""),
            Some("Basic"),
            Some("Basic YWRtaW46"),
            Some("Basic !!!"),
            Some("Bearer x"),
        ] {
            assert!(!c.accept(bad), "{bad:?}");
        }
    }
}
