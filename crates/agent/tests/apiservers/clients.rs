//! What clients see: new requests measured by `quorate drill probe`, watches by this program itself.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::cluster::{Balancer, Cluster, NAMESPACE};
use crate::netns::{Process, until};

/// Requests on connections of their own, each when it is due whatever became of the others.
pub(crate) struct Load {
    process: Process,
    samples: std::path::PathBuf,
    stop: std::path::PathBuf,
}

#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) sent: usize,
    /// Not answered in five seconds, or badly, though tried again like client-go does when a connection is lost.
    pub(crate) failed: usize,
    pub(crate) retried: usize,
    /// Of those that were due while the fault was there: how long they took since then, less what the computer was late to
    /// begin.
    pub(crate) worst: Duration,
    pub(crate) p99: Duration,
    /// Of those before it: what this computer can do.
    pub(crate) usual: Duration,
    pub(crate) errors: Vec<String>,
}

impl Load {
    pub(crate) fn start(cluster: &Cluster, balancer: Balancer, per_second: u32) -> Self {
        let stop = cluster.lab.directory.join("stop");
        let config = json!({
            "endpoint": cluster.endpoint(balancer), "server_name": "kubernetes", "ca_pem": cluster.ca_pem,
            "identity_pem": cluster.identity_pem, "prefix": "load", "new_per_s": per_second, "reused_per_s": 0,
            "writes_per_s": 0, "timeout_ms": 5000, "stop_file": stop, "at_most_s": 90,
        });
        let config = cluster.lab.write("probe.json", &config.to_string());
        let samples = cluster.lab.write("samples.jsonl", "");
        let script = r#"exec "$0" drill probe <"$1""#;
        let program = cluster.quorate.to_str().expect("path");
        let arguments = ["sh", "-c", script, program, config.to_str().expect("path")];
        let process = cluster.client().start_program(&arguments, &samples);
        Self { process, samples, stop }
    }

    /// `fault`: from when to when, of [`monotonic_us`].
    pub(crate) fn stop(mut self, fault: std::ops::Range<i64>) -> Seen {
        std::fs::write(&self.stop, "").expect("stop file");
        assert!(self.process.wait_for(Duration::from_secs(20)), "the probe does not end");
        let text = std::fs::read_to_string(&self.samples).expect("samples");
        let samples: Vec<Value> = text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect();
        let mut seen = Seen {
            sent: samples.len(),
            ..Seen::default()
        };
        assert!(seen.sent > 0, "no samples: {text}");
        let (mut before, mut took) = (vec![0], vec![0]);
        for sample in &samples {
            let at = sample["at_us"].as_i64().unwrap_or(0);
            let list = if at < fault.start { &mut before } else { &mut took };
            if at < fault.end {
                let took = sample["took_us"].as_u64().unwrap_or(0);
                list.push(took.saturating_sub(sample["late_us"].as_u64().unwrap_or(0)));
            }
            seen.retried += usize::from(sample["tries"].as_u64() > Some(1));
            if sample["ok"] != true {
                seen.failed += 1;
                let error = sample["error"].as_str().unwrap_or_default().to_owned();
                if !seen.errors.contains(&error) && seen.errors.len() < 5 {
                    seen.errors.push(error);
                }
            }
        }
        let quantile = |list: &mut Vec<u64>, percent: usize| {
            list.sort_unstable();
            Duration::from_micros(list[(list.len() - 1) * percent / 100])
        };
        seen.usual = quantile(&mut before, 99);
        (seen.p99, seen.worst) = (quantile(&mut took, 99), quantile(&mut took, 100));
        seen
    }
}

/// What samples are stamped with.
pub(crate) fn monotonic_us() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1_000
}

/// Connections with a watch each, made anew whenever they end.
pub(crate) struct Watches {
    shared: Arc<Shared>,
}

struct Shared {
    endpoints: [SocketAddr; 2],
    /// Which of them.
    balancer: AtomicUsize,
    /// Raised when all are to connect anew.
    renewed: AtomicUsize,
    state: Mutex<Vec<Watch>>,
    tls: TlsConnector,
    certificates: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, Default)]
struct Watch {
    /// The server it is connected to.
    server: Option<usize>,
    renewed: usize,
    ended: Option<Instant>,
}

impl Watches {
    pub(crate) fn start(cluster: &Cluster, count: usize) -> Self {
        let shared = Arc::new(Shared {
            endpoints: [Balancer::Agent, Balancer::Haproxy].map(|balancer| cluster.endpoint(balancer)),
            balancer: AtomicUsize::new(0),
            renewed: AtomicUsize::new(0),
            state: Mutex::new(vec![Watch::default(); count]),
            tls: connector(cluster),
            certificates: cluster.certificates.clone(),
        });
        let namespace = cluster.client().namespace();
        let all = Arc::clone(&shared);
        // Ends with this program.
        std::thread::spawn(move || {
            let results = quorate_agent::netlink::in_namespaces(&[namespace], move |_| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("runtime");
                runtime.block_on(async {
                    while let Err(error) = create_namespace(&all).await {
                        eprintln!("namespace {NAMESPACE}: {error}");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                    let watches = (0..count).map(|number| tokio::spawn(follow(Arc::clone(&all), number)));
                    for watch in watches.collect::<Vec<_>>() {
                        let _ = watch.await;
                    }
                });
            });
            drop(results);
        });
        let watches = Self { shared };
        watches.connected(0);
        watches
    }

    pub(crate) fn go_to(&self, balancer: Balancer) {
        self.shared
            .balancer
            .store(usize::from(balancer == Balancer::Haproxy), Ordering::Relaxed);
    }

    /// Connects all anew, so that they are spread over all servers.
    pub(crate) fn renew(&self) {
        let renewed = self.shared.renewed.fetch_add(1, Ordering::Relaxed) + 1;
        self.connected(renewed);
    }

    fn connected(&self, renewed: usize) {
        let all = || {
            let state = self.shared.state();
            state
                .iter()
                .all(|watch| watch.server.is_some() && watch.renewed >= renewed)
        };
        assert!(until(Duration::from_secs(30), all), "watches do not connect");
    }

    /// Which are connected to a server.
    pub(crate) fn on(&self, server: usize) -> Vec<usize> {
        let state = self.shared.state();
        let there = state
            .iter()
            .enumerate()
            .filter(|(_, watch)| watch.server == Some(server));
        there.map(|(number, _)| number).collect()
    }

    /// How long after `since` the last of them ended; None while some have not.
    pub(crate) fn ended(&self, watches: &[usize], since: Instant) -> Option<Duration> {
        let state = self.shared.state();
        let mut last = Duration::ZERO;
        for number in watches {
            let ended = state[*number].ended.filter(|ended| *ended >= since)?;
            last = last.max(ended - since);
        }
        Some(last)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, Vec<Watch>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn endpoint(&self) -> SocketAddr {
        self.endpoints[self.balancer.load(Ordering::Relaxed)]
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Sender<B> = hyper::client::conn::http2::SendRequest<B>;

/// A connection, and the server at its other end.
async fn connect<B>(shared: &Shared) -> Result<(Sender<B>, usize), Failure>
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Failure>,
{
    let stream = TcpStream::connect(shared.endpoint()).await?;
    stream.set_nodelay(true)?;
    let stream = shared.tls.connect(ServerName::try_from("kubernetes")?, stream).await?;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let known = |one: &&Vec<u8>| certificate.is_some_and(|c| c.as_ref() == one.as_slice());
    let server = shared
        .certificates
        .iter()
        .position(|one| known(&one))
        .ok_or("a stranger's certificate")?;
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok((sender, server))
}

async fn create_namespace(shared: &Shared) -> Result<(), Failure> {
    let (mut sender, _) = connect::<Full<Bytes>>(shared).await?;
    let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    let request = Request::post(format!("https://{}/api/v1/namespaces", shared.endpoint()))
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))?;
    let status = sender.send_request(request).await?.status();
    if matches!(status.as_u16(), 201 | 409) {
        Ok(())
    } else {
        Err(status.to_string().into())
    }
}

async fn follow(shared: Arc<Shared>, number: usize) {
    loop {
        let renewed = shared.renewed.load(Ordering::Relaxed);
        // Whatever ended it, the moment counts.
        let _ = watch(&shared, number, renewed).await;
        {
            let mut state = shared.state();
            state[number].server = None;
            state[number].ended = Some(Instant::now());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn watch(shared: &Shared, number: usize, renewed: usize) -> Result<(), Failure> {
    let patience = Duration::from_secs(5);
    let (mut sender, server) = tokio::time::timeout(patience, connect::<Empty<Bytes>>(shared)).await??;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/configmaps?watch=true");
    let request = Request::get(format!("https://{}{path}", shared.endpoint())).body(Empty::new())?;
    let response = tokio::time::timeout(patience, sender.send_request(request)).await??;
    let mut body = response.into_body();
    {
        let mut state = shared.state();
        (state[number].server, state[number].renewed) = (Some(server), renewed);
    }
    loop {
        tokio::select! {
            frame = body.frame() => match frame {
                Some(frame) => drop(frame?),
                None => return Ok(()),
            },
            () = tokio::time::sleep(Duration::from_millis(200)) => {
                if shared.renewed.load(Ordering::Relaxed) != renewed {
                    return Ok(());
                }
            }
        }
    }
}

fn connector(cluster: &Cluster) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(cluster.ca_pem.as_bytes()) {
        roots.add(certificate.expect("authority")).expect("authority");
    }
    let identity = cluster.identity_pem.as_bytes();
    let chain = CertificateDer::pem_slice_iter(identity)
        .collect::<Result<Vec<_>, _>>()
        .expect("identity");
    let key = PrivateKeyDer::from_pem_slice(identity).expect("identity");
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("protocol versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .expect("identity");
    tls.alpn_protocols = vec![b"h2".to_vec()];
    TlsConnector::from(Arc::new(tls))
}
