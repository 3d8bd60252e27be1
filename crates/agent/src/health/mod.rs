//! Carrying out health checks: a thread of its own, so that neither the data path nor the core waits for it.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quorate_lb::config::{AgentConfig, Health, HealthKind, ProxyProtocol};
use quorate_lb::health::classify_readyz;
use quorate_lb::{ProbeOutcome, ProbeStage};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

/// Most bytes read of an answer.
const ANSWER_MAX: usize = 64 * 1024;
/// PROXY protocol version 2, command LOCAL: the connection is the proxy's own.
const PROXY_LOCAL: &[u8; 16] = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";

/// One check to be made.
#[derive(Debug)]
pub struct Job {
    pub frontend: String,
    pub backend: String,
    pub id: u64,
    pub address: SocketAddr,
    pub how: Arc<Method>,
    pub timeout: Duration,
    /// For TCP's part of it.
    pub connect_timeout: Duration,
    pub ordered: Instant,
}

/// What came of it.
#[derive(Debug)]
pub struct Answer {
    pub frontend: String,
    pub backend: String,
    pub id: u64,
    pub outcome: ProbeOutcome,
    /// How late this thread itself was.
    pub late: Duration,
}

/// How the backends of one set are checked.
#[derive(Debug)]
pub struct Method {
    kind: HealthKind,
    path: String,
    tls: Option<Arc<rustls::ClientConfig>>,
    server_name: Option<ServerName<'static>>,
    /// The backend expects the PROXY protocol.
    proxy_header: bool,
}

impl Method {
    /// # Errors
    /// TLS files that cannot be used.
    pub fn new(health: &Health) -> Result<Self, String> {
        let tls = (health.kind == HealthKind::Https)
            .then(|| tls_config(health))
            .transpose()?;
        let server_name = health
            .server_name
            .as_ref()
            .map(|n| ServerName::try_from(n.clone()).map_err(|e| format!("serverName {n:?}: {e}")))
            .transpose()?;
        Ok(Self {
            kind: health.kind,
            path: health.path.clone(),
            tls: tls.map(Arc::new),
            server_name,
            proxy_header: false,
        })
    }

    /// For backends that expect the PROXY protocol in front of everything.
    #[must_use]
    pub fn with_proxy_header(self, proxy_header: bool) -> Self {
        Self { proxy_header, ..self }
    }
}

/// Methods of all sets of a configuration, by name.
///
/// # Errors
/// The first that cannot be used.
pub fn methods(config: &AgentConfig) -> Result<HashMap<String, Arc<Method>>, String> {
    config
        .backend_sets()
        .map(|s| {
            let announced = config
                .frontends
                .iter()
                .any(|f| f.name == s.name && f.proxy_protocol == ProxyProtocol::V2);
            let method = Method::new(s.health).map_err(|e| format!("{}: {e}", s.name))?;
            Ok((s.name.to_owned(), Arc::new(method.with_proxy_header(announced))))
        })
        .collect()
}

/// The client side of TLS as `health` says. Sessions are resumed, so that a check a second costs neither side a
/// full handshake.
pub(crate) fn tls_config(health: &Health) -> Result<rustls::ClientConfig, String> {
    let ca = health.ca.as_deref().ok_or("https checks need the CA (ca)")?;
    let mut roots = rustls::RootCertStore::empty();
    for cert in certificates(ca)? {
        roots.add(cert).map_err(|e| format!("{}: {e}", ca.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    match (&health.client_cert, &health.client_key) {
        (Some(cert), Some(key)) => {
            let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| format!("{}: {e}", key.display()))?;
            builder
                .with_client_auth_cert(certificates(cert)?, key_der)
                .map_err(|e| format!("{} with {}: {e}", cert.display(), key.display()))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let fail = |e: rustls::pki_types::pem::Error| format!("{}: {e}", path.display());
    let list = CertificateDer::pem_file_iter(path)
        .map_err(fail)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(fail)?;
    if list.is_empty() {
        Err(format!("{} holds no certificate", path.display()))
    } else {
        Ok(list)
    }
}

/// The checking thread. Dropping this ends it.
#[derive(Debug)]
pub struct Prober {
    jobs: mpsc::UnboundedSender<Job>,
}

impl Prober {
    /// Starts the thread; `answer` is called on it.
    ///
    /// # Errors
    /// No threads or descriptors left.
    pub fn start(answer: impl Fn(Answer) + Clone + Send + 'static) -> std::io::Result<Self> {
        let (jobs, mut inbox) = mpsc::unbounded_channel::<Job>();
        let rt = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::Builder::new().name("health".into()).spawn(move || {
            rt.block_on(async {
                while let Some(job) = inbox.recv().await {
                    let answer = answer.clone();
                    tokio::spawn(async move {
                        let found = carry_out(job).await;
                        answer(found);
                    });
                }
            });
        })?;
        Ok(Self { jobs })
    }

    pub fn check(&self, job: Job) {
        // Fails only while the process ends.
        let _ = self.jobs.send(job);
    }
}

async fn carry_out(job: Job) -> Answer {
    let start = Instant::now();
    let waited = start.duration_since(job.ordered);
    let mut stage = ProbeStage::Connect;
    let outcome = match tokio::time::timeout(job.timeout, probe(&job, &mut stage)).await {
        Ok(outcome) => outcome,
        Err(_) => ProbeOutcome::Timeout { stage },
    };
    let limit = match outcome {
        ProbeOutcome::Timeout {
            stage: ProbeStage::Connect,
        } => job.connect_timeout,
        _ => job.timeout,
    };
    let late = waited.max(start.elapsed().saturating_sub(limit));
    Answer {
        frontend: job.frontend,
        backend: job.backend,
        id: job.id,
        outcome,
        late,
    }
}

async fn probe(job: &Job, stage: &mut ProbeStage) -> ProbeOutcome {
    let mut tcp = match tokio::time::timeout(job.connect_timeout, TcpStream::connect(job.address)).await {
        Ok(Ok(s)) => s,
        Ok(Err(e)) => return failed("connecting", &e),
        Err(_) => return ProbeOutcome::Timeout { stage: *stage },
    };
    let _ = tcp.set_nodelay(true);
    let asks = matches!(job.how.kind, HealthKind::Http | HealthKind::Https);
    if asks
        && job.how.proxy_header
        && let Err(e) = tcp.write_all(PROXY_LOCAL).await
    {
        return failed("sending the PROXY header", &e);
    }
    match job.how.kind {
        HealthKind::Tcp | HealthKind::None => {
            // RST, not FIN: leaves no TIME_WAIT here and no half-read connection there.
            let _ = tcp.set_zero_linger();
            ProbeOutcome::Ready
        }
        HealthKind::Http => {
            *stage = ProbeStage::Http;
            ask(tcp, job).await
        }
        HealthKind::Https => {
            *stage = ProbeStage::Tls;
            let Some(config) = &job.how.tls else {
                return ProbeOutcome::Broken {
                    error: "no TLS configuration".into(),
                };
            };
            let name = job
                .how
                .server_name
                .clone()
                .unwrap_or_else(|| ServerName::IpAddress(job.address.ip().into()));
            match tokio_rustls::TlsConnector::from(Arc::clone(config))
                .connect(name, tcp)
                .await
            {
                Ok(tls) => {
                    *stage = ProbeStage::Http;
                    ask(tls, job).await
                }
                Err(e) => failed("TLS handshake", &e),
            }
        }
    }
}

async fn ask(mut s: impl AsyncRead + AsyncWrite + Unpin, job: &Job) -> ProbeOutcome {
    let host = job.address;
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: quorate-agent\r\nAccept: */*\r\nConnection: close\r\n\r\n",
        job.how.path
    );
    if let Err(e) = s.write_all(request.as_bytes()).await {
        return failed("sending the request", &e);
    }
    let mut answer = Vec::new();
    let mut block = [0; 4096];
    loop {
        match s.read(&mut block).await {
            Ok(0) => break,
            Ok(n) => answer.extend_from_slice(&block[..n]),
            // Many servers close TLS without saying so; what came before counts.
            Err(_) if !answer.is_empty() => break,
            Err(e) => return failed("reading the answer", &e),
        }
        if answer.len() >= ANSWER_MAX || complete(&answer) {
            break;
        }
    }
    read_answer(&answer)
}

/// Whether the answer is whole by its Content-Length.
fn complete(answer: &[u8]) -> bool {
    let Some((head, body)) = split(answer) else {
        return false;
    };
    head.lines()
        .filter_map(|l| l.split_once(':'))
        .find(|(k, _)| k.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, v)| v.trim().parse::<usize>().ok())
        .is_some_and(|n| body.len() >= n)
}

fn split(answer: &[u8]) -> Option<(&str, &[u8])> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    Some((std::str::from_utf8(&answer[..end]).ok()?, &answer[end + 4..]))
}

fn read_answer(answer: &[u8]) -> ProbeOutcome {
    let broken = |error: &str| ProbeOutcome::Broken {
        error: error.to_owned(),
    };
    if answer.is_empty() {
        return broken("closed without an answer");
    }
    let Some((head, body)) = split(answer) else {
        return broken("not an HTTP answer");
    };
    let status = head
        .strip_prefix("HTTP/1.")
        .and_then(|l| l.get(2..5))
        .and_then(|s| s.parse().ok());
    match status {
        Some(status) => classify_readyz(status, &String::from_utf8_lossy(body)),
        None => broken("not an HTTP answer"),
    }
}

fn failed(what: &str, e: &std::io::Error) -> ProbeOutcome {
    match e.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => ProbeOutcome::Refused,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            ProbeOutcome::Unreachable
        }
        ErrorKind::TimedOut => ProbeOutcome::Timeout {
            stage: ProbeStage::Connect,
        },
        _ => ProbeOutcome::Broken {
            error: format!("{what}: {e}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let read = |s: &str| read_answer(s.as_bytes());
        assert_eq!(
            read("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"),
            ProbeOutcome::Ready
        );
        assert_eq!(
            read("HTTP/1.0 500 Internal Server Error\r\n\r\n[+]ping ok\n[-]etcd failed: reason withheld\n"),
            ProbeOutcome::Unready {
                status: 500,
                etcd_only: true
            }
        );
        for s in ["", "HTTP/1.1 2", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 abc\r\n\r\n"] {
            assert!(matches!(read(s), ProbeOutcome::Broken { .. }), "{s:?}");
        }
        assert!(complete(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"));
        assert!(!complete(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nok"));
    }
}
