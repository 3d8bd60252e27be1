//! Waiting, bounded and with a short fuse: a deployment is mostly a chain of these.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use tokio::net::TcpStream;

use super::http::Pool;
use crate::proto::{HttpRequest, Waited};

/// A refused connection or a missing file costs microseconds to see.
const CHEAP: Duration = Duration::from_millis(20);
/// A request costs a server that is starting up more than that.
const REQUEST: Duration = Duration::from_millis(50);

pub(super) async fn port(address: SocketAddr, timeout_ms: u64) -> Waited {
    let mut wait = Wait::new(timeout_ms, CHEAP);
    loop {
        let seen = match tokio::time::timeout(wait.left(), TcpStream::connect(address)).await {
            Ok(Ok(_)) => Ok("connected".into()),
            Ok(Err(error)) => Err(format!("connect to {address}: {error}")),
            Err(_) => Err(format!("connect to {address}: no answer")),
        };
        if let Some(waited) = wait.over(seen).await {
            return waited;
        }
    }
}

pub(super) async fn file(path: &str, absent: bool, timeout_ms: u64) -> Waited {
    let mut wait = Wait::new(timeout_ms, CHEAP);
    loop {
        let seen = match (Path::new(path).symlink_metadata(), absent) {
            (Ok(_), false) | (Err(_), true) => Ok(String::new()),
            (Ok(_), true) => Err(format!("{path} is still there")),
            (Err(error), false) => Err(format!("{path}: {error}")),
        };
        if let Some(waited) = wait.over(seen).await {
            return waited;
        }
    }
}

pub(super) async fn http(pool: &Pool, mut request: HttpRequest, status: (u16, u16), timeout_ms: u64) -> Waited {
    let each = request.timeout_ms.max(1);
    let mut wait = Wait::new(timeout_ms, REQUEST);
    loop {
        request.timeout_ms = each.min(wait.left().as_millis() as u64).max(1);
        let seen = match pool.send(&request).await {
            Ok(reply) if (status.0..=status.1).contains(&reply.status) => Ok(format!("HTTP {}", reply.status)),
            Ok(reply) => Err(format!("HTTP {}: {}", reply.status, excerpt(&reply.body.lossy()))),
            Err(error) => Err(error.message),
        };
        if let Some(waited) = wait.over(seen).await {
            return waited;
        }
    }
}

/// Tries at least once, then until the time is over.
struct Wait {
    start: Instant,
    timeout: Duration,
    pause: Duration,
}

impl Wait {
    fn new(timeout_ms: u64, pause: Duration) -> Self {
        Self {
            start: Instant::now(),
            timeout: Duration::from_millis(timeout_ms),
            pause,
        }
    }

    /// For one more attempt.
    fn left(&self) -> Duration {
        self.timeout.saturating_sub(self.start.elapsed()).max(self.pause)
    }

    /// The outcome, if this is it; otherwise pauses before the next attempt.
    async fn over(&mut self, seen: Result<String, String>) -> Option<Waited> {
        let took = self.start.elapsed();
        let ok = seen.is_ok();
        if ok || took + self.pause >= self.timeout {
            return Some(Waited {
                ok,
                took_ms: took.as_millis() as u64,
                last: seen.unwrap_or_else(|last| last),
            });
        }
        tokio::time::sleep(self.pause).await;
        None
    }
}

/// What failed among the lines of a `/readyz?verbose`, or else the beginning.
fn excerpt(body: &str) -> String {
    let failed: Vec<&str> = body.lines().filter(|line| line.starts_with("[-]")).collect();
    let text = if failed.is_empty() {
        body.lines().next().unwrap_or_default().to_owned()
    } else {
        failed.join(", ")
    };
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_opens_and_one_that_does_not() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let opened = tokio::spawn(port(address, 5_000));
        tokio::time::sleep(Duration::from_millis(60)).await;
        let _listener = std::net::TcpListener::bind(address).unwrap();
        let waited = opened.await.unwrap();
        assert!(waited.ok && waited.took_ms < 1_000, "{waited:?}");

        let waited = port("127.0.0.1:1".parse().unwrap(), 100).await;
        assert!(
            !waited.ok && waited.took_ms < 1_000 && waited.last.contains("refused"),
            "{waited:?}"
        );
    }

    #[tokio::test]
    async fn a_file_that_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x").to_str().unwrap().to_owned();
        assert!(!file(&path, false, 50).await.ok);
        assert!(file(&path, true, 50).await.ok);
    }

    #[test]
    fn an_excerpt_names_what_failed() {
        assert_eq!(
            excerpt("[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed"),
            "[-]etcd failed: reason withheld"
        );
        assert_eq!(excerpt("not found\nmore"), "not found");
    }
}
