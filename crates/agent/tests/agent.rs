//! The whole process, as a child of this test: health checks, statistics, orders, reload, hand-over, the end.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use quorate_agent::admin::{Request, request};
use quorate_agent::{replay, run};
use quorate_lb::{Action, AdminState, Command as Order};
use serde_json::Value;

const CHILD: &str = "QUORATE_TEST_AGENT";

/// Not a test: what the child runs.
#[test]
fn child_process() {
    let Ok(config) = std::env::var(CHILD) else { return };
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let take_over = std::env::var("QUORATE_TEST_TAKE_OVER").is_ok();
    run::run(&run::Options {
        config: config.into(),
        take_over,
        workers: Some(2),
    })
    .unwrap();
}

struct Agent(Child);

impl Agent {
    fn start(config: &Path, take_over: bool) -> Self {
        let mut c = Command::new(std::env::current_exe().unwrap());
        c.args(["--exact", "child_process", "--nocapture"])
            .env(CHILD, config)
            .stdout(Stdio::null());
        if take_over {
            c.env("QUORATE_TEST_TAKE_OVER", "1");
        }
        let log = std::fs::File::create(config.with_extension(if take_over { "log2" } else { "log" })).unwrap();
        Self(c.stderr(log).spawn().unwrap())
    }

    fn signal(&self, name: &str) {
        let pid = self.0.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn ended(&mut self, within: Duration) -> bool {
        let end = Instant::now() + within;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                assert!(status.success(), "{status}");
                return true;
            }
            if Instant::now() > end {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// An HTTP server whose readiness can be changed: 200, 500 (shutting down), 501 (etcd away), 0 (hangs).
/// Anything but GET is echoed.
fn api(status: Arc<AtomicU16>) -> SocketAddr {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = l.local_addr().unwrap();
    thread::spawn(move || {
        for s in l.incoming() {
            let status = Arc::clone(&status);
            thread::spawn(move || serve(s.unwrap(), &status));
        }
    });
    addr
}

fn serve(mut s: TcpStream, status: &AtomicU16) {
    let mut b = [0; 2048];
    while let Ok(n @ 1..) = s.read(&mut b) {
        if !b.starts_with(b"GET ") {
            if s.write_all(&b[..n]).is_err() {
                return;
            }
            continue;
        }
        let (code, body) = match status.load(Relaxed) {
            0 => return thread::sleep(Duration::from_secs(60)),
            200 => (200, "ok"),
            501 => (
                500,
                "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz check failed\n",
            ),
            _ => (500, "[-]shutdown failed: reason withheld\n"),
        };
        let _ = write!(s, "HTTP/1.1 {code} X\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        return;
    }
}

fn port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

struct Setup {
    _dir: tempfile::TempDir,
    config: PathBuf,
    socket: PathBuf,
    record: PathBuf,
    front: SocketAddr,
    stats: SocketAddr,
    ready: Vec<Arc<AtomicU16>>,
    backends: Vec<SocketAddr>,
}

impl Setup {
    fn new(n: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ready: Vec<_> = (0..n).map(|_| Arc::new(AtomicU16::new(200))).collect();
        let backends: Vec<_> = ready.iter().map(|r| api(Arc::clone(r))).collect();
        let s = Self {
            config: dir.path().join("agent.yaml"),
            socket: dir.path().join("agent.sock"),
            record: dir.path().join("record.jsonl"),
            front: ([127, 0, 0, 1], port()).into(),
            stats: ([127, 0, 0, 1], port()).into(),
            ready,
            backends,
            _dir: dir,
        };
        let password = s.config.with_extension("password");
        std::fs::write(&password, "s3cret\n").unwrap();
        assert!(
            Command::new("chmod")
                .args(["600"])
                .arg(&password)
                .status()
                .unwrap()
                .success()
        );
        s.write(n);
        s
    }

    /// A configuration with the first `n` backends.
    fn write(&self, n: usize) {
        self.write_frontend("api", self.front, &self.backends[..n]);
    }

    /// A configuration with one frontend; its backends are m0, m1, and so on.
    fn write_frontend(&self, name: &str, listen: SocketAddr, backends: &[SocketAddr]) {
        let mut text = format!(
            "apiVersion: quorate.dev/v1\nkind: Agent\nnode: test\nadmin: {{socket: {}}}\nrecord: {}\nstate: {}\n\
             stats: {{listen: \"{}\", login: {{user: admin, passwordFile: {}}}}}\nfrontends:\n- name: {name}\n  \
             listen: [\"{listen}\"]\n  health: {{kind: http, interval: 200ms, fastInterval: 50ms, timeout: 200ms}}\n  backends:\n",
            self.socket.display(),
            self.record.display(),
            self.config.with_extension("state").display(),
            self.stats,
            self.config.with_extension("password").display(),
        );
        for (i, b) in backends.iter().enumerate() {
            text += &format!("  - {{name: m{i}, address: \"{b}\"}}\n");
        }
        std::fs::write(&self.config, text).unwrap();
    }

    fn show(&self) -> Option<Value> {
        request(&self.socket, &Request::Show).ok()
    }

    /// Waits until every backend is in the state given.
    fn states(&self, wanted: &[&str]) {
        let mut last = Value::Null;
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            if let Some(s) = self.show() {
                let b = s["frontends"][0]["backends"].as_array().unwrap();
                last = b.iter().map(|b| b["availability"].clone()).collect();
                if last
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|v| v.as_str().unwrap())
                    .eq(wanted.iter().copied())
                {
                    return;
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
        let log = std::fs::read_to_string(self.config.with_extension("log")).unwrap_or_default();
        panic!("{last} instead of {wanted:?}\n{log}");
    }

    fn echo(&self) -> io::Result<TcpStream> {
        let mut c = TcpStream::connect(self.front)?;
        c.set_read_timeout(Some(Duration::from_secs(5)))?;
        ping(&mut c)?;
        Ok(c)
    }

    fn http(&self, path: &str, login: bool) -> String {
        let mut c = TcpStream::connect(self.stats).unwrap();
        let header = if login {
            "Authorization: Basic YWRtaW46czNjcmV0\r\n"
        } else {
            ""
        };
        write!(c, "GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n").unwrap();
        let mut all = String::new();
        c.read_to_string(&mut all).unwrap();
        all
    }
}

fn ping(c: &mut TcpStream) -> io::Result<()> {
    c.write_all(b"x")?;
    c.read_exact(&mut [0])
}

/// Clients of all backends.
fn clients(s: &Setup) -> Vec<TcpStream> {
    (0..16).map(|_| s.echo().unwrap()).collect()
}

/// Waits until one of them was reset; the others live.
fn some_are_freed(mut clients: Vec<TcpStream>) {
    let count = clients.len();
    let end = Instant::now() + Duration::from_secs(5);
    while clients.len() == count {
        assert!(Instant::now() < end, "nobody was freed");
        clients.retain_mut(|c| {
            c.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
            !matches!(c.read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::ConnectionReset)
        });
    }
    // The rest of the same backend's.
    thread::sleep(Duration::from_millis(200));
    let alive = clients.iter_mut().filter_map(|c| {
        c.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ping(c).ok()
    });
    assert!(alive.count() > 0, "clients of the other backend, too");
}

fn order(s: &Setup, backend: &str, state: AdminState) -> anyhow::Result<Value> {
    let (frontend, backend) = ("api".to_owned(), backend.to_owned());
    request(
        &s.socket,
        &Request::Order {
            order: Order::SetAdmin {
                frontend,
                backend,
                state,
            },
        },
    )
}

#[test]
fn health_orders_reload_and_the_end() {
    let s = Setup::new(3);
    s.write(2);
    let mut agent = Agent::start(&s.config, false);
    s.states(&["up", "up"]);
    let mut kept = s.echo().unwrap();

    // Unready: no new connections, old ones stay. All unready: fail open.
    s.ready[0].store(500, Relaxed);
    s.states(&["last-resort", "up"]);
    s.ready[1].store(501, Relaxed);
    s.states(&["last-resort", "last-resort"]);
    s.echo().unwrap();
    ping(&mut kept).unwrap();
    assert_eq!(s.show().unwrap()["frontends"][0]["failOpen"], true);
    for r in &s.ready {
        r.store(200, Relaxed);
    }
    s.states(&["up", "up"]);

    // Orders.
    order(&s, "m0", AdminState::Drain).unwrap();
    let shown = s.show().unwrap();
    assert_eq!(shown["frontends"][0]["backends"][0]["admin"], "drain");
    let refused = order(&s, "nobody", AdminState::Drain).unwrap_err().to_string();
    assert!(refused.contains("m0, m1"), "{refused}");
    order(&s, "m0", AdminState::Ready).unwrap();

    // Statistics.
    assert!(s.http("/", false).starts_with("HTTP/1.1 401"));
    assert!(s.http("/healthz", false).starts_with("HTTP/1.1 200"));
    let page = s.http("/", true);
    assert!(page.contains("<!doctype html>") && page.contains("m1") && !page.contains("<script"));
    let metrics = s.http("/metrics", true);
    assert!(
        metrics.contains("quorate_backend_up{frontend=\"api\",backend=\"m0\"} 1"),
        "{metrics}"
    );
    assert!(serde_json::from_str::<Value>(s.http("/stats.json", true).split("\r\n\r\n").nth(1).unwrap()).is_ok());

    // Reload: a backend more; a broken file changes nothing.
    s.write(3);
    agent.signal("HUP");
    s.states(&["up", "up", "up"]);
    ping(&mut kept).unwrap();
    std::fs::write(&s.config, "apiVersion: nonsense\n").unwrap();
    assert!(request(&s.socket, &Request::Reload).is_err());
    ping(&mut kept).unwrap();

    // The end: in order, bounded although a client stays.
    agent.signal("TERM");
    assert!(agent.ended(Duration::from_secs(8)));
    assert!(TcpStream::connect(s.front).is_err());
    assert!(!s.socket.exists());

    // What was recorded can be replayed.
    let mut probes = 0;
    let inputs = replay::replay(&s.record, |r| {
        probes += usize::from(matches!(r.action, Action::Probe { .. }));
        Ok(())
    });
    let inputs = inputs.unwrap();
    assert!(inputs > 10 && probes > 4, "{inputs} inputs, {probes} probes");
}

#[test]
fn clients_of_a_backend_that_dies_after_its_removal_are_freed() {
    let s = Setup::new(2);
    let _agent = Agent::start(&s.config, false);
    s.states(&["up", "up"]);
    let held = clients(&s);
    s.write(1);
    request(&s.socket, &Request::Reload).unwrap();
    s.states(&["up", "up"]);
    let leaving = s.show().unwrap()["frontends"][0]["backends"][1].clone();
    assert_eq!(
        (leaving["name"].as_str(), leaving["weight"].as_u64()),
        (Some("m1"), Some(0))
    );
    assert!(leaving["active"].as_u64() > Some(0), "{leaving}");
    s.ready[1].store(0, Relaxed);
    some_are_freed(held);
    s.states(&["up"]);
}

#[test]
fn clients_of_a_removed_backend_whose_name_was_taken_are_freed() {
    let s = Setup::new(3);
    s.write(2);
    let _agent = Agent::start(&s.config, false);
    s.states(&["up", "up"]);
    let held = clients(&s);
    // It hangs from the moment of the reload on: no check of before has told.
    s.write_frontend("api", s.front, &[s.backends[0], s.backends[2]]);
    s.ready[1].store(0, Relaxed);
    request(&s.socket, &Request::Reload).unwrap();
    some_are_freed(held);
    s.states(&["up", "up"]);
}

#[test]
fn clients_of_a_frontend_that_was_removed_are_freed_when_their_backend_dies() {
    let s = Setup::new(2);
    let _agent = Agent::start(&s.config, false);
    s.states(&["up", "up"]);
    let held = clients(&s);
    let other = ([127, 0, 0, 1], port()).into();
    s.write_frontend("other", other, &s.backends[..1]);
    request(&s.socket, &Request::Reload).unwrap();
    assert!(TcpStream::connect(s.front).is_err(), "it listens no more");
    let frontends = || s.show().unwrap()["frontends"].as_array().unwrap().clone();
    let shown = frontends();
    assert_eq!((shown.len(), shown[1]["name"].as_str()), (2, Some("api")));
    assert_eq!(shown[1]["active"].as_u64(), Some(16));
    // It is taken back: its clients are still its own.
    s.write(2);
    request(&s.socket, &Request::Reload).unwrap();
    drop(s.echo().unwrap());
    assert!(frontends()[0]["active"].as_u64() >= Some(16), "{:?}", frontends());
    s.write_frontend("other", other, &s.backends[..1]);
    request(&s.socket, &Request::Reload).unwrap();
    s.ready[1].store(0, Relaxed);
    some_are_freed(held);
    let end = Instant::now() + Duration::from_secs(5);
    while frontends().len() > 1 {
        assert!(Instant::now() < end, "{:?}", frontends());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn which_configuration_runs_is_said_in_a_file() {
    let s = Setup::new(2);
    s.write(1);
    let running = s.config.with_extension("running");
    let said = || std::fs::read_to_string(&running).unwrap_or_default();
    let sums = || {
        let sum = Command::new("sha256sum").arg(&s.config).output().unwrap();
        String::from_utf8(sum.stdout).unwrap()
    };
    let mut agent = Agent::start(&s.config, false);
    s.states(&["up"]);
    assert_eq!(said(), sums());
    s.write(2);
    assert_ne!(said(), sums());
    request(&s.socket, &Request::Reload).unwrap();
    let good = said();
    assert_eq!(good, sums());

    // Refused, and in force with the next start only.
    let text = std::fs::read_to_string(&s.config).unwrap();
    for wrong in ["kind: Nobody", "kind: Agent\nmetrics: {listen: \"127.0.0.1:1\"}"] {
        std::fs::write(&s.config, text.replace("kind: Agent", wrong)).unwrap();
        request(&s.socket, &Request::Reload).unwrap_err();
        assert_eq!(said(), good);
    }
    agent.signal("TERM");
    assert!(agent.ended(Duration::from_secs(8)));
    assert!(!running.exists());
}

#[test]
fn what_a_reload_cannot_change_is_said() {
    let s = Setup::new(1);
    let _agent = Agent::start(&s.config, false);
    s.states(&["up"]);
    let text = std::fs::read_to_string(&s.config).unwrap();
    let changed = text
        .replace("node: test", "node: other")
        .replace("agent.sock", "other.sock");
    std::fs::write(&s.config, changed.replace("record.jsonl", "other.jsonl")).unwrap();
    for _ in 0..2 {
        let said = request(&s.socket, &Request::Reload).unwrap_err().to_string();
        assert!(
            said.contains("admin.socket, record, node: in force with the next start only"),
            "{said}"
        );
    }
    assert_eq!(s.show().unwrap()["node"], "test");
    std::fs::write(&s.config, text).unwrap();
    request(&s.socket, &Request::Reload).unwrap();
}

/// From another address of this machine.
fn from(source: [u8; 4], to: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((source, 0)).into())?;
    socket.connect(&to.into())?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    Ok(stream)
}

/// Silent clients, slow ones, scanners and garbage, on every port: bounded or counted, and others are served.
#[test]
fn hostile_clients_on_every_port_stop_nothing() {
    const SILENT: u64 = 10_000;
    const ALLOWED: u64 = 300;
    let files = quorate_agent::proxy::raise_open_files();
    let silent = SILENT.min(files.saturating_sub(1_500));
    let s = Setup::new(2);
    let text = std::fs::read_to_string(&s.config).unwrap();
    let text = text.replace("  health:", &format!("  perSource: {ALLOWED}\n  health:"));
    std::fs::write(&s.config, text).unwrap();
    let _agent = Agent::start(&s.config, false);
    s.states(&["up", "up"]);
    let counter = |name: &str| s.show().unwrap()["frontends"][0][name].as_u64().unwrap();
    let served = |what: &str| {
        let mut other = from([127, 0, 0, 2], s.front).unwrap();
        ping(&mut other).unwrap_or_else(|e| panic!("{what}: others are not served: {e}"));
        let start = Instant::now();
        assert!(s.http("/healthz", false).starts_with("HTTP/1.1 200"), "{what}");
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{what}: {:?}",
            start.elapsed()
        );
    };

    // Clients that connect and say nothing; the first byte of a ClientHello and no more.
    let connect = |_| match TcpStream::connect(s.front) {
        // One too many, reset before this thread came to see that it was connected.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
        other => Some(other.unwrap()),
    };
    let mut held: Vec<_> = (0..silent).filter_map(connect).collect();
    held.iter_mut().take(100).for_each(|c| drop(c.write_all(&[0x16])));
    let end = Instant::now() + Duration::from_secs(10);
    while counter("refusedSource") < silent - ALLOWED {
        assert!(Instant::now() < end, "{} refused", counter("refusedSource"));
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(counter("refusedSource"), silent - ALLOWED);
    assert_eq!(counter("active"), ALLOWED);
    served("silent clients");
    drop(held);

    // Requests that never end: more than the statistics page serves at a time.
    let slow: Vec<_> = (0..300)
        .map(|_| {
            let mut c = TcpStream::connect(s.stats).unwrap();
            c.write_all(b"GET /metrics HTTP/1.1\r\nX-a: b\r\n").unwrap();
            c
        })
        .collect();
    served("slow clients");
    drop(slow);

    // A port scan, and whatever bytes.
    for to in [s.front, s.stats] {
        for i in 0..1_000u32 {
            let mut c = from([127, 0, 0, 3], to).unwrap();
            let junk: Vec<u8> = (0..i % 50 * 30).map(|k| (k.wrapping_mul(i | 1) >> 3) as u8).collect();
            let _ = c.write_all(&junk);
            if i % 2 == 0 {
                socket2::SockRef::from(&c).set_linger(Some(Duration::ZERO)).unwrap();
            }
        }
    }
    let mut admin = std::os::unix::net::UnixStream::connect(&s.socket).unwrap();
    admin.write_all(b"\x00\xff{\n").unwrap();
    served("a scan");
    let mut answer = [0; 512];
    let n = admin.read(&mut answer).unwrap_or(0);
    assert!(n == 0 || String::from_utf8_lossy(&answer[..n]).contains("not a request"));
    let end = Instant::now() + Duration::from_secs(10);
    while counter("active") > 0 {
        assert!(Instant::now() < end, "{} still there", counter("active"));
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn clients_of_a_backend_that_dies_after_a_take_over_are_freed() {
    let s = Setup::new(2);
    let mut old = Agent::start(&s.config, false);
    s.states(&["up", "up"]);
    let held = clients(&s);
    let _new = Agent::start(&s.config, true);
    let end = Instant::now() + Duration::from_secs(10);
    while s.show().is_none_or(|v| v["pid"] == old.0.id()) {
        assert!(Instant::now() < end, "no take-over");
        thread::sleep(Duration::from_millis(20));
    }
    // The one that retires has heard of it.
    thread::sleep(Duration::from_millis(300));
    s.ready[0].store(0, Relaxed);
    some_are_freed(held);
    assert!(old.ended(Duration::from_secs(5)), "nobody is left");
}

#[test]
fn another_process_takes_over_without_a_refused_connection() {
    let s = Setup::new(2);
    let mut old = Agent::start(&s.config, false);
    s.states(&["up", "up"]);
    let mut kept = s.echo().unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let front = s.front;
    let hammer = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut n = 0;
            while !stop.load(Relaxed) {
                let mut c = TcpStream::connect(front).expect("refused");
                c.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                ping(&mut c).expect("lost");
                n += 1;
                thread::sleep(Duration::from_millis(1));
            }
            n
        })
    };
    let pid = |s: &Setup| s.show().map(|v| v["pid"].clone());
    let before = pid(&s);
    let mut new = Agent::start(&s.config, true);
    let end = Instant::now() + Duration::from_secs(10);
    while pid(&s) == before || pid(&s).is_none() {
        let log = |x| std::fs::read_to_string(s.config.with_extension(x)).unwrap_or_default();
        assert!(Instant::now() < end, "no take-over\n{}\n{}", log("log"), log("log2"));
        thread::sleep(Duration::from_millis(20));
    }
    thread::sleep(Duration::from_millis(500));
    stop.store(true, Relaxed);
    assert!(hammer.join().unwrap() > 50);
    ping(&mut kept).unwrap();
    assert!(!old.ended(Duration::from_millis(200)));
    drop(kept);
    assert!(old.ended(Duration::from_secs(5)));
    assert!(s.socket.exists(), "the old process took the new one's socket away");
    s.echo().unwrap();
    new.signal("TERM");
    assert!(new.ended(Duration::from_secs(8)));
}
