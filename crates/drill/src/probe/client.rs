//! Connections to the API: one for one request over HTTP/1.1, or a shared one over HTTP/2.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::Config;

/// client-go's HTTP/2 settings (`ReadIdleTimeout`, `PingTimeout` of k8s.io/apimachinery/pkg/util/net).
const PING_AFTER: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) type Sender = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// Why a request got no answer.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) message: String,
    /// The connection went away under it; client-go tries again.
    pub(crate) lost: bool,
}

pub(crate) struct Client {
    endpoint: SocketAddr,
    server_name: ServerName<'static>,
    http1: TlsConnector,
    http2: TlsConnector,
    pub(crate) timeout: Duration,
}

impl Client {
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        let server_name =
            ServerName::try_from(config.server_name.clone()).map_err(|error| format!("server name: {error}"))?;
        let http1 = TlsConnector::from(Arc::new(tls(config, b"http/1.1")?));
        let http2 = TlsConnector::from(Arc::new(tls(config, b"h2")?));
        Ok(Self {
            endpoint: config.endpoint,
            server_name,
            http1,
            http2,
            timeout: Duration::from_millis(config.timeout_ms),
        })
    }

    /// One request on a connection of its own.
    pub(crate) async fn once(&self, path: &str) -> Result<StatusCode, Failed> {
        let stream = self.connect(&self.http1).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        let driver = tokio::spawn(connection);
        let answer = async {
            let request = Request::get(path)
                .header("host", self.endpoint.to_string())
                .body(Full::<Bytes>::default())
                .map_err(bad)?;
            let response = sender.send_request(request).await.map_err(failed)?;
            let status = response.status();
            response.into_body().collect().await.map_err(failed)?;
            Ok(status)
        }
        .await;
        driver.abort();
        answer
    }

    async fn multiplexed(&self) -> Result<Sender, Failed> {
        let stream = self.connect(&self.http2).await?;
        let (sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_AFTER)
            .keep_alive_timeout(PING_TIMEOUT)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(failed)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn connect(&self, tls: &TlsConnector) -> Result<TlsStream<TcpStream>, Failed> {
        let stream = TcpStream::connect(self.endpoint)
            .await
            .map_err(|error| io_failed("connect", &error))?;
        let _ = stream.set_nodelay(true);
        tls.connect(self.server_name.clone(), stream)
            .await
            .map_err(|error| io_failed("TLS", &error))
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.endpoint)
    }
}

/// An HTTP/2 connection many requests share, made anew when it is gone.
pub(crate) struct Shared {
    pub(crate) client: Arc<Client>,
    current: Mutex<Option<Sender>>,
}

impl Shared {
    pub(crate) fn new(client: Arc<Client>) -> Self {
        Self {
            client,
            current: Mutex::default(),
        }
    }

    /// The answer's head arrived; its body is the caller's to read.
    pub(crate) async fn send(&self, method: &str, path: &str, body: Bytes) -> Result<Response<Incoming>, Failed> {
        let mut sender = self.sender().await?;
        let request = Request::builder()
            .method(method)
            .uri(self.client.url(path))
            .header("content-type", "application/json")
            .header("accept", "application/json")
            .body(Full::new(body))
            .map_err(bad)?;
        sender.send_request(request).await.map_err(failed)
    }

    async fn sender(&self) -> Result<Sender, Failed> {
        let mut current = self.current.lock().await;
        if let Some(sender) = current.as_ref().filter(|sender| !sender.is_closed()) {
            return Ok(sender.clone());
        }
        *current = None;
        // Whoever waits here has a deadline; the attempt must not outlive all of them in a network that says nothing.
        let made = tokio::time::timeout(self.client.timeout, self.client.multiplexed()).await;
        let sender = made.map_err(|_| Failed {
            message: "no connection in time".into(),
            lost: true,
        })??;
        Ok(current.insert(sender).clone())
    }
}

/// Tries until it is answered, the answer is final, or the time counted from `intended` is over.
pub(crate) async fn within<T, F>(
    limit: Duration,
    intended: Instant,
    mut attempt: impl FnMut(u32) -> F,
) -> (u32, Result<T, String>)
where
    F: Future<Output = Result<T, Failed>>,
{
    let deadline = intended + limit;
    let mut tries = 0;
    let mut last = String::new();
    loop {
        tries += 1;
        match tokio::time::timeout_at(deadline, attempt(tries)).await {
            Ok(Ok(value)) => return (tries, Ok(value)),
            Ok(Err(failed)) if failed.lost => last = failed.message,
            Ok(Err(failed)) => return (tries, Err(failed.message)),
            Err(_) => {
                let since = if last.is_empty() {
                    String::new()
                } else {
                    format!("; before that: {last}")
                };
                return (tries, Err(format!("no answer within {} ms{since}", limit.as_millis())));
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn tls(config: &Config, protocol: &[u8]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(config.ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|error| format!("authority: {error}"))?;
        roots.add(certificate).map_err(|error| format!("authority: {error}"))?;
    }
    let chain = CertificateDer::pem_slice_iter(config.identity_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| format!("identity: {error}"))?;
    let key =
        PrivateKeyDer::from_pem_slice(config.identity_pem.as_bytes()).map_err(|error| format!("identity: {error}"))?;
    let mut tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(|error| format!("identity: {error}"))?;
    tls.alpn_protocols = vec![protocol.to_vec()];
    // A new connection is one that knows nothing of the ones before.
    tls.resumption = rustls::client::Resumption::disabled();
    Ok(tls)
}

fn io_failed(what: &str, error: &io::Error) -> Failed {
    Failed {
        message: format!("{what}: {error}"),
        lost: is_lost(error),
    }
}

fn is_lost(error: &io::Error) -> bool {
    use io::ErrorKind::*;
    matches!(
        error.kind(),
        ConnectionReset | UnexpectedEof | BrokenPipe | ConnectionAborted
    )
}

/// hyper's errors: the connection ended before the answer did, or something else.
pub(crate) fn failed(error: hyper::Error) -> Failed {
    let mut message = error.to_string();
    let mut lost = error.is_incomplete_message() || error.is_canceled() || error.is_closed();
    let mut cause = std::error::Error::source(&error);
    while let Some(inner) = cause {
        message.push_str(&format!(": {inner}"));
        lost |= inner.downcast_ref::<io::Error>().is_some_and(is_lost);
        cause = inner.source();
    }
    // HTTP/2 wraps the reason in types of its own: GOAWAY, a reset stream, a keep-alive without answer.
    lost |= [
        "GOAWAY",
        "go away",
        // GOAWAY with NO_ERROR: "make this request on another connection", as kube-apiserver says now and then on purpose
        // (--goaway-chance); the streams it still answers do not end like this (RFC 9113, section 6.8).
        "not a result of an error",
        "stream no longer needed",
        "broken pipe",
        "keep-alive timed out",
        "reset by peer",
        "refused stream",
    ]
    .iter()
    .any(|text| message.contains(text));
    Failed { message, lost }
}

fn bad(error: hyper::http::Error) -> Failed {
    Failed {
        message: error.to_string(),
        lost: false,
    }
}
