//! Health checks against real TLS servers, right and wrong ones.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use quorate_agent::health::{Job, Method, Prober};
use quorate_lb::config::{Health, HealthKind, Span};
use quorate_lb::{ProbeOutcome, ProbeStage};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

struct Authority {
    dir: tempfile::TempDir,
    ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut p = rcgen::CertificateParams::new(Vec::new()).unwrap();
        p.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = rcgen::CertifiedIssuer::self_signed(p, rcgen::KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.crt"), ca.pem()).unwrap();
        Self { dir, ca }
    }

    fn server(&self, name: &str, answer: &'static str) -> SocketAddr {
        let key = rcgen::KeyPair::generate().unwrap();
        let cert = rcgen::CertificateParams::new(vec![name.into()])
            .unwrap()
            .signed_by(&key, &self.ca)
            .unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let l = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = l.local_addr().unwrap();
        thread::spawn(move || {
            for s in l.incoming() {
                let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut s = rustls::StreamOwned::new(tls, s.unwrap());
                if s.read(&mut [0; 1024]).is_ok() {
                    let _ = s.write_all(answer.as_bytes());
                    s.conn.send_close_notify();
                    let _ = s.flush();
                }
            }
        });
        addr
    }

    fn health(&self) -> Health {
        Health {
            kind: HealthKind::Https,
            ca: Some(self.dir.path().join("ca.crt")),
            ..Health::default()
        }
    }
}

fn check(health: &Health, address: SocketAddr) -> (ProbeOutcome, Duration) {
    check_by(Arc::new(Method::new(health).unwrap()), health.timeout.get(), address)
}

fn check_by(how: Arc<Method>, timeout: Duration, address: SocketAddr) -> (ProbeOutcome, Duration) {
    let (tx, rx) = mpsc::channel();
    let prober = Prober::start(move |a| drop(tx.send(a))).unwrap();
    let start = Instant::now();
    prober.check(Job {
        frontend: "f".into(),
        backend: "b".into(),
        id: 7,
        address,
        how,
        timeout,
        connect_timeout: timeout / 2,
        ordered: start,
    });
    let a = rx.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!((a.id, a.backend.as_str()), (7, "b"));
    (a.outcome, start.elapsed())
}

#[test]
fn a_backend_that_expects_the_proxy_protocol_is_told_that_the_check_is_our_own() {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = l.local_addr().unwrap();
    thread::spawn(move || {
        let (mut s, _) = l.accept().unwrap();
        let mut head = [0; 16];
        s.read_exact(&mut head).unwrap();
        let mut request = [0; 4];
        s.read_exact(&mut request).unwrap();
        let right = head == *b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0" && request == *b"GET ";
        let status = if right { 200 } else { 400 };
        let _ = write!(s, "HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
    });
    let text = format!(
        "{{apiVersion: quorate.dev/v1, kind: Agent, node: n, frontends: [{{name: f, listen: ['127.0.0.1:1'], \
         proxyProtocol: v2, health: {{kind: http}}, backends: [{{name: b, address: '{address}'}}]}}]}}"
    );
    let config = serde_saphyr::from_str(&text).unwrap();
    let how = quorate_agent::health::methods(&config).unwrap().remove("f").unwrap();
    assert_eq!(
        check_by(how, Duration::from_millis(500), address).0,
        ProbeOutcome::Ready
    );
}

#[test]
fn https_says_ready_unready_and_wrong() {
    let a = Authority::new();
    let ready = a.server("127.0.0.1", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
    assert_eq!(check(&a.health(), ready).0, ProbeOutcome::Ready);
    let etcd = a.server(
        "127.0.0.1",
        "HTTP/1.1 500 X\r\n\r\n[+]ping ok\n[-]etcd failed: reason withheld\n",
    );
    assert_eq!(
        check(&a.health(), etcd).0,
        ProbeOutcome::Unready {
            status: 500,
            etcd_only: true
        }
    );
    // Another name than the address; the name is given; another authority.
    let named = a.server("kubernetes", "HTTP/1.1 200 OK\r\n\r\n");
    assert!(matches!(check(&a.health(), named).0, ProbeOutcome::Broken { .. }));
    let health = Health {
        server_name: Some("kubernetes".into()),
        ..a.health()
    };
    assert_eq!(check(&health, named).0, ProbeOutcome::Ready);
    assert!(matches!(
        check(&Authority::new().health(), ready).0,
        ProbeOutcome::Broken { .. }
    ));
}

#[test]
fn refused_hung_and_garbage_are_told_apart() {
    let a = Authority::new();
    let health = Health {
        timeout: Span::from_millis(300),
        ..a.health()
    };
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = l.local_addr().unwrap();
    let (outcome, took) = check(&health, addr);
    assert_eq!(outcome, ProbeOutcome::Timeout { stage: ProbeStage::Tls });
    assert!(took < Duration::from_secs(1), "{took:?}");
    let plain = Health {
        kind: HealthKind::Http,
        ..health.clone()
    };
    assert_eq!(
        check(&plain, addr).0,
        ProbeOutcome::Timeout {
            stage: ProbeStage::Http
        }
    );
    let tcp = Health {
        kind: HealthKind::Tcp,
        ..health.clone()
    };
    assert_eq!(check(&tcp, addr).0, ProbeOutcome::Ready);
    drop(l);
    for h in [&health, &plain, &tcp] {
        assert_eq!(check(h, addr).0, ProbeOutcome::Refused);
    }
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = l.local_addr().unwrap();
    thread::spawn(move || {
        for s in l.incoming() {
            let mut s = s.unwrap();
            let _ = s.write_all(b"SSH-2.0-OpenSSH_9.2\r\n");
            let _ = s.read(&mut [0; 64]);
        }
    });
    for h in [&health, &plain] {
        assert!(matches!(check(h, addr).0, ProbeOutcome::Broken { .. }));
    }
}
