//! HTTP/1.1 requests made by this machine with keys that stay on it; connections are kept for the next one.

use std::{
    collections::HashMap,
    fs,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt, Full};
use hyper::{
    Request, Uri,
    body::Bytes as Body,
    client::conn::http1::{self, SendRequest},
    header::{AUTHORIZATION, HOST, HeaderValue},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::exec::tool;
use crate::{
    error::{ErrorKind, RemoteError},
    proto::{HttpReply, HttpRequest},
};

/// Idle connections kept per destination and identity.
const KEPT: usize = 4;

type Sender = SendRequest<Full<Body>>;

/// Idle connections by destination and identity.
#[derive(Default)]
pub(super) struct Pool(Mutex<HashMap<Key, Vec<Sender>>>);

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    destination: String,
    server_name: String,
    /// Hash of the CA's, certificate's and key's content: rotated files make new connections.
    identity: Option<[u8; 32]>,
}

impl Pool {
    pub(super) async fn send(&self, request: &HttpRequest) -> Result<HttpReply, RemoteError> {
        let timeout = Duration::from_millis(request.timeout_ms);
        match tokio::time::timeout(timeout, self.exchange(request)).await {
            Ok(answer) => answer,
            Err(_) => Err(RemoteError::new(
                ErrorKind::Timeout,
                format!("no answer within {} ms", request.timeout_ms),
            )),
        }
    }

    async fn exchange(&self, request: &HttpRequest) -> Result<HttpReply, RemoteError> {
        let uri: Uri = request
            .url
            .parse()
            .map_err(|error| invalid(format!("{:?} is no URL: {error}", request.url)))?;
        let tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(invalid(format!("{:?}: only http and https are known", request.url))),
        };
        let host = uri
            .host()
            .ok_or_else(|| invalid(format!("{:?} has no host", request.url)))?;
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let server_name = request.server_name.clone().unwrap_or_else(|| bare.to_owned());
        let identity = if tls { Some(Identity::read(request)?) } else { None };
        let key = Key {
            destination: request
                .connect
                .map_or_else(|| format!("{bare} {port}"), |address| address.to_string()),
            server_name,
            identity: identity.as_ref().map(Identity::hash),
        };

        if let Some(mut kept) = self.take(&key) {
            // A kept connection may have been closed by the server in the meantime; then the request never went out.
            match kept.try_send_request(made(request, &uri)?).await {
                Ok(response) => return self.finish(request, key, kept, response).await,
                Err(error) if error.message().is_some() => {}
                Err(error) => {
                    return Err(RemoteError::failed(format!(
                        "{}: {}",
                        request.url,
                        chain(error.error())
                    )));
                }
            }
        }
        let address = match request.connect {
            Some(address) => address,
            None => resolve(bare, port).await?,
        };
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| RemoteError::io(format_args!("connect to {address}"), &error))?;
        let _ = stream.set_nodelay(true);
        let mut sender = match identity {
            None => handshake(stream).await?,
            Some(identity) => {
                let name = ServerName::try_from(key.server_name.clone())
                    .map_err(|_| invalid(format!("{:?} is no server name", key.server_name)))?;
                let connector = TlsConnector::from(Arc::new(identity.config()?));
                let stream = connector
                    .connect(name, stream)
                    .await
                    .map_err(|error| RemoteError::io(format_args!("TLS with {address}"), &error))?;
                handshake(stream).await?
            }
        };
        let response = sender
            .send_request(made(request, &uri)?)
            .await
            .map_err(|error| failed(request, &error))?;
        self.finish(request, key, sender, response).await
    }

    async fn finish(
        &self,
        request: &HttpRequest,
        key: Key,
        sender: Sender,
        response: hyper::Response<hyper::body::Incoming>,
    ) -> Result<HttpReply, RemoteError> {
        let (head, mut incoming) = response.into_parts();
        let mut body = Vec::new();
        while let Some(frame) = incoming.frame().await {
            if let Ok(data) = frame.map_err(|error| failed(request, &error))?.into_data() {
                if (body.len() + data.len()) as u64 > request.max_body {
                    return Err(RemoteError::failed(format!(
                        "{}: the answer is longer than {} bytes",
                        request.url, request.max_body
                    )));
                }
                body.extend_from_slice(&data);
            }
        }
        self.keep(key, sender);
        let headers = head
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.as_str().to_owned(),
                    String::from_utf8_lossy(value.as_bytes()).into_owned(),
                )
            })
            .collect();
        Ok(HttpReply {
            status: head.status.as_u16(),
            headers,
            body: body.into(),
        })
    }

    fn take(&self, key: &Key) -> Option<Sender> {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pool.get_mut(key)?;
        while let Some(sender) = idle.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, key: Key, sender: Sender) {
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let idle = pool.entry(key).or_default();
        idle.retain(|sender| !sender.is_closed());
        if idle.len() < KEPT {
            idle.push(sender);
        }
    }
}

/// PEM texts of a TLS client: certificate and key, which may be one text.
struct Identity {
    ca: Vec<u8>,
    client: Option<(Vec<u8>, Vec<u8>)>,
}

impl Identity {
    fn read(request: &HttpRequest) -> Result<Self, RemoteError> {
        let file = |path: &String| fs::read(path).map_err(|error| RemoteError::io(path, &error));
        let ca = match (&request.ca_pem, &request.ca_file) {
            (Some(pem), _) => pem.0.clone(),
            (None, Some(path)) => file(path)?,
            (None, None) => return Err(invalid(format!("{}: https needs a CA to trust", request.url))),
        };
        let client = match (&request.identity, &request.cert_file, &request.key_file) {
            (Some(pem), ..) => Some((pem.0.clone(), pem.0.clone())),
            (None, Some(cert), Some(key)) => Some((file(cert)?, file(key)?)),
            (None, None, None) => None,
            _ => {
                return Err(invalid(format!(
                    "{}: a client certificate needs both its files",
                    request.url
                )));
            }
        };
        Ok(Self { ca, client })
    }

    fn hash(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let (cert, key) = self
            .client
            .as_ref()
            .map_or((&[][..], &[][..]), |(cert, key)| (cert, key));
        for part in [&self.ca, cert, key] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }

    fn config(&self) -> Result<ClientConfig, RemoteError> {
        let pem =
            |what: &str, error: &dyn std::fmt::Display| RemoteError::failed(format!("{what} cannot be read: {error}"));
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&self.ca) {
            let certificate = certificate.map_err(|error| pem("the CA file", &error))?;
            roots.add(certificate).map_err(|error| pem("the CA file", &error))?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| RemoteError::failed(error.to_string()))?
            .with_root_certificates(roots);
        let Some((cert, key)) = &self.client else {
            return Ok(config.with_no_client_auth());
        };
        let chain = CertificateDer::pem_slice_iter(cert)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| pem("the client certificate", &error))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| pem("the client key", &error))?;
        config
            .with_client_auth_cert(chain, key)
            .map_err(|error| pem("the client certificate", &error))
    }
}

fn made(request: &HttpRequest, uri: &Uri) -> Result<Request<Full<Body>>, RemoteError> {
    let bad = |error: &dyn std::fmt::Display| invalid(format!("{}: {error}", request.url));
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut made = Request::builder().method(request.method.as_str()).uri(path);
    if let Some(authority) = uri.authority() {
        made = made.header(HOST, authority.as_str());
    }
    for (name, value) in &request.headers {
        let mut value = HeaderValue::from_bytes(value).map_err(|error| bad(&error))?;
        value.set_sensitive(true);
        made = made.header(name, value);
    }
    if let Some(path) = &request.bearer_file {
        let token = fs::read_to_string(path).map_err(|error| RemoteError::io(path, &error))?;
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim())).map_err(|error| bad(&error))?;
        value.set_sensitive(true);
        made = made.header(AUTHORIZATION, value);
    }
    made.body(Full::new(Body::from(request.body.0.clone())))
        .map_err(|error| bad(&error))
}

async fn handshake(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
) -> Result<Sender, RemoteError> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| RemoteError::failed(error.to_string()))?;
    tokio::spawn(connection);
    Ok(sender)
}

/// An address itself, a name of `/etc/hosts`, or what `getent` says: a static binary cannot load the C library's name
/// services.
async fn resolve(host: &str, port: u16) -> Result<SocketAddr, RemoteError> {
    if let Ok(ip) = host.parse() {
        return Ok(SocketAddr::new(ip, port));
    }
    if let Some(ip) = super::host::hosts_file().get(host).and_then(|ips| ips.first()) {
        return Ok(SocketAddr::new(*ip, port));
    }
    let said = tool(&["getent", "ahosts", host], b"", 5_000).await.unwrap_or_default();
    let ip = said.split_whitespace().next().and_then(|ip| ip.parse().ok());
    ip.map(|ip| SocketAddr::new(ip, port)).ok_or_else(|| {
        RemoteError::new(ErrorKind::NotFound, format!("the name {host} has no address"))
            .hint("check DNS and /etc/hosts on that machine")
    })
}

fn invalid(message: String) -> RemoteError {
    RemoteError::new(ErrorKind::Invalid, message)
}

fn failed(request: &HttpRequest, error: &hyper::Error) -> RemoteError {
    RemoteError::failed(format!("{}: {}", request.url, chain(error)))
}

/// An error with its causes: hyper says "error" and keeps the reason below.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut said = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        said.push_str(&format!(": {error}"));
        cause = error.source();
    }
    said
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    /// Answers `count` requests on one connection, then closes it.
    fn server(connections: usize, count: usize) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for n in 0..connections {
                let (mut stream, _) = listener.accept().unwrap();
                for _ in 0..count {
                    let mut request = Vec::new();
                    let mut byte = [0];
                    while !request.ends_with(b"\r\n\r\n") {
                        if stream.read(&mut byte).unwrap_or(0) == 0 {
                            break;
                        }
                        request.push(byte[0]);
                    }
                    let body = format!("connection {n}");
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nX-A: b\r\n\r\n{body}",
                        body.len()
                    );
                }
            }
        });
        address
    }

    #[tokio::test]
    async fn connections_are_kept_and_a_closed_one_is_replaced() {
        let address = server(2, 2);
        let pool = Pool::default();
        let mut seen = Vec::new();
        for _ in 0..3 {
            let reply = pool
                .send(&HttpRequest::get(format!("http://{address}/readyz?verbose")))
                .await
                .unwrap();
            assert_eq!(
                (reply.status, reply.headers[1].clone()),
                (200, ("x-a".into(), "b".into()))
            );
            seen.push(reply.body.lossy());
        }
        assert_eq!(seen, ["connection 0", "connection 0", "connection 1"]);
    }

    #[tokio::test]
    async fn errors_say_what_and_where() {
        let pool = Pool::default();
        let error = pool.send(&HttpRequest::get("http://127.0.0.1:1/")).await.unwrap_err();
        assert!(
            error.message.starts_with("connect to 127.0.0.1:1: "),
            "{}",
            error.message
        );
        let error = pool.send(&HttpRequest::get("https://127.0.0.1:1/")).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", silent.local_addr().unwrap());
        let error = pool
            .send(&HttpRequest {
                timeout_ms: 50,
                ..HttpRequest::get(url)
            })
            .await
            .unwrap_err();
        assert_eq!(error.kind, ErrorKind::Timeout);
    }

    /// A CA, and certificates it signed for `name`: PEM of certificate and key.
    struct Authority {
        certificate: rcgen::Certificate,
        issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    }

    impl Authority {
        fn new() -> Self {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            let certificate = params.self_signed(&key).unwrap();
            Self {
                certificate,
                issuer: rcgen::Issuer::new(params, key),
            }
        }

        fn issue(&self, name: &str) -> (String, String) {
            let key = rcgen::KeyPair::generate().unwrap();
            let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
        }
    }

    /// Answers each request with its own head; wants a client certificate of `authority`.
    async fn tls_server(authority: &Authority, name: &str) -> SocketAddr {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate.der().clone()).unwrap();
        let clients = rustls::server::WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .build()
            .unwrap();
        let (certificate, key) = authority.issue(name);
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let mut head = vec![0; 4096];
                    while let Ok(got @ 1..) = stream.read(&mut head).await {
                        let answer = [
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {got}\r\n\r\n").as_bytes(),
                            &head[..got],
                        ]
                        .concat();
                        stream.write_all(&answer).await.unwrap();
                    }
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn tls_with_client_certificates_from_files_and_from_memory() {
        let (ours, foreign) = (Authority::new(), Authority::new());
        let address = tls_server(&ours, "kubernetes").await;
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name).to_str().unwrap().to_owned();
            fs::write(&path, content).unwrap();
            path
        };
        let (certificate, key) = ours.issue("client");
        let from_files = HttpRequest {
            server_name: Some("kubernetes".into()),
            bearer_file: Some(file("token", "secret-token\n")),
            ..HttpRequest::get(format!("https://{address}/api"))
                .ca(file("ca.crt", &ours.certificate.pem()))
                .client_cert(file("client.crt", &certificate), file("client.key", &key))
        };
        let pool = Pool::default();
        let reply = pool.send(&from_files).await.unwrap().body.lossy();
        assert!(
            reply.starts_with("GET /api HTTP/1.1\r\n") && reply.contains("authorization: Bearer secret-token\r\n"),
            "{reply}"
        );

        let from_memory = HttpRequest {
            connect: Some(address),
            ca_pem: Some(ours.certificate.pem().into()),
            identity: Some(format!("{certificate}{key}").into()),
            ..HttpRequest::new("POST", "https://kubernetes:6443/x").json("{}")
        };
        assert!(!format!("{from_memory:?}").contains("PRIVATE"), "keys are not printed");
        let reply = pool.send(&from_memory).await.unwrap().body.lossy();
        assert!(
            reply.starts_with("POST /x HTTP/1.1\r\n") && reply.contains("host: kubernetes:6443\r\n"),
            "{reply}"
        );

        let wrong_name = HttpRequest {
            server_name: Some("other".into()),
            ..from_files.clone()
        };
        let untrusted = HttpRequest {
            ca_pem: Some(foreign.certificate.pem().into()),
            ..from_files.clone()
        };
        let (certificate, key) = foreign.issue("client");
        let stranger = HttpRequest {
            identity: Some(format!("{certificate}{key}").into()),
            ..from_files.clone()
        };
        let no_file = HttpRequest {
            key_file: Some("/no/such/key".into()),
            ..from_files
        };
        for (request, said) in [
            (wrong_name, "not valid for name"),
            (untrusted, "invalid peer certificate"),
            (stranger, ""),
            (no_file, "/no/such/key"),
        ] {
            let error = Pool::default().send(&request).await.unwrap_err();
            assert!(error.message.contains(said), "{}", error.message);
        }
    }
}
