//! The proxy against real sockets on loopback: what clients see when backends behave and when they do not.
#![allow(clippy::print_stderr)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use quorate_agent::proxy::{Fault, Frontend, Options, Proxy, Report, Set, Sink, raise_open_files};
use quorate_lb::config::Algorithm;
use quorate_lb::{Availability, BackendView, Reason};

const SHORT: Duration = Duration::from_secs(5);

struct Rig {
    proxy: Proxy,
    addr: SocketAddr,
    reports: Receiver<Report>,
}

impl Rig {
    fn new(backends: &[SocketAddr], options: Options) -> Self {
        Self::with(Algorithm::RoundRobin, &views(backends), options, "127.0.0.1:0")
    }

    fn with(algorithm: Algorithm, views: &[BackendView], options: Options, listen: &str) -> Self {
        let (tx, reports) = channel();
        let tx = Mutex::new(tx);
        let sink: Sink = Arc::new(move |r| drop(tx.lock().unwrap().send(r)));
        let mut proxy = Proxy::start(2, raise_open_files(), &sink).unwrap();
        let failed = proxy.apply("f", &[listen.parse().unwrap()], &options, &mut Vec::new());
        assert!(failed.is_empty(), "{failed:?}");
        let addr = proxy.bound("f")[0];
        let rig = Self { proxy, addr, reports };
        rig.frontend().replace_set(Set::new(algorithm, views, None));
        rig
    }

    fn frontend(&self) -> &Arc<Frontend> {
        self.proxy.frontend("f").unwrap()
    }

    fn set(&self, views: &[BackendView]) {
        let old = self.frontend().set();
        self.frontend()
            .replace_set(Set::new(Algorithm::RoundRobin, views, Some(&old)));
    }

    fn client(&self) -> TcpStream {
        let s = TcpStream::connect(self.addr).unwrap();
        s.set_read_timeout(Some(SHORT)).unwrap();
        s.set_write_timeout(Some(SHORT)).unwrap();
        s.set_nodelay(true).unwrap();
        s
    }

    fn active(&self) -> u32 {
        self.frontend().set().backends().iter().map(|b| b.load.active()).sum()
    }
}

fn view(name: &str, address: SocketAddr) -> BackendView {
    BackendView {
        name: name.into(),
        address,
        weight: 100,
        max_connections: 0,
        backup: false,
        local: false,
        availability: Availability::Up,
        reason: Reason::Ready,
    }
}

fn views(backends: &[SocketAddr]) -> Vec<BackendView> {
    backends
        .iter()
        .enumerate()
        .map(|(i, a)| view(&format!("b{i}"), *a))
        .collect()
}

/// A server running `serve` for each connection, with its number.
fn server(serve: impl Fn(usize, TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = l.local_addr().unwrap();
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for (i, s) in l.incoming().enumerate() {
            let serve = Arc::clone(&serve);
            thread::spawn(move || serve(i, s.unwrap()));
        }
    });
    addr
}

fn echo() -> SocketAddr {
    server(|_, mut s| {
        let mut w = s.try_clone().unwrap();
        let _ = io::copy(&mut s, &mut w);
        let _ = w.shutdown(Shutdown::Write);
    })
}

/// Says its name to whoever sends a byte.
fn named(name: u8) -> SocketAddr {
    server(move |_, mut s| {
        let mut b = [0; 1024];
        while s.read(&mut b).is_ok_and(|n| n > 0) {
            if s.write_all(&[name]).is_err() {
                break;
            }
        }
    })
}

/// An address that refuses.
fn dead() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// An address whose SYNs are dropped: a listener with a full accept queue. Keep the return value.
fn blackhole() -> (SocketAddr, impl Sized) {
    let s = socket2_listen();
    let addr = s.local_addr().unwrap();
    let mut fill = Vec::new();
    for _ in 0..16 {
        match TcpStream::connect_timeout(&addr, Duration::from_millis(60)) {
            Ok(c) => fill.push(c),
            Err(_) => return (addr, (s, fill)),
        }
    }
    panic!("the accept queue does not fill");
}

fn socket2_listen() -> TcpListener {
    let l = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    l.bind(&"127.0.0.1:0".parse::<SocketAddr>().unwrap().into()).unwrap();
    l.listen(0).unwrap();
    l.into()
}

/// A listener that accepts (in the kernel) and never answers. Keep the return value.
fn hung() -> (SocketAddr, TcpListener) {
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    (l.local_addr().unwrap(), l)
}

fn is_reset(r: io::Result<usize>) -> bool {
    matches!(r, Err(e) if e.kind() == ErrorKind::ConnectionReset)
}

fn until(what: &str, mut f: impl FnMut() -> bool) {
    let end = Instant::now() + SHORT;
    while !f() {
        assert!(Instant::now() < end, "{what}: not within {SHORT:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

fn reset_on_close(s: TcpStream) {
    socket2::SockRef::from(&s).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn half_close_passes_in_both_directions() {
    // The server answers only after the client's end of stream.
    let b = server(|_, mut s| {
        let mut all = Vec::new();
        s.read_to_end(&mut all).unwrap();
        s.write_all(&all).unwrap();
    });
    let rig = Rig::new(&[b], Options::default());
    let mut c = rig.client();
    c.write_all(b"question").unwrap();
    c.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    c.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "question");

    // The other way round: the server ends first, the client goes on sending.
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let b = server(move |_, mut s| {
        s.write_all(b"hello").unwrap();
        s.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        s.read_to_end(&mut all).unwrap();
        tx.lock().unwrap().send(all).unwrap();
    });
    let rig = Rig::new(&[b], Options::default());
    let mut c = rig.client();
    let mut hello = String::new();
    c.read_to_string(&mut hello).unwrap();
    c.write_all(b"late").unwrap();
    drop(c);
    assert_eq!(
        (hello.as_str(), rx.recv_timeout(SHORT).unwrap()),
        ("hello", b"late".to_vec())
    );
    until("places given back", || rig.active() == 0);
}

#[test]
fn a_reset_stays_a_reset() {
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let b = server(move |i, mut s| {
        let mut b = [0; 16];
        let n = s.read(&mut b);
        if i == 0 {
            s.write_all(b"last words").unwrap();
            reset_on_close(s);
        } else {
            n.unwrap();
            tx.lock().unwrap().send(is_reset(s.read(&mut b))).unwrap();
        }
    });
    let rig = Rig::new(&[b], Options::default());
    let mut c = rig.client();
    c.write_all(b"x").unwrap();
    let mut all = Vec::new();
    let e = c.read_to_end(&mut all).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::ConnectionReset);
    assert!(all.is_empty() || all == b"last words");

    let mut c = rig.client();
    c.write_all(b"x").unwrap();
    thread::sleep(Duration::from_millis(50));
    reset_on_close(c);
    assert!(rx.recv_timeout(SHORT).unwrap(), "the backend saw an orderly end");
}

#[test]
fn a_slow_reader_slows_the_sender_and_holds_little() {
    const TOTAL: usize = 64 << 20;
    let (tx, sent) = channel();
    let tx = Mutex::new(tx);
    let b = server(move |_, mut s| {
        s.read_exact(&mut [0; 2]).unwrap();
        let block = vec![7; 1 << 16];
        s.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut n = 0;
        while n < TOTAL {
            match s.write(&block) {
                Ok(k) => n += k,
                Err(_) => {
                    tx.lock().unwrap().send(n).unwrap();
                    s.set_write_timeout(None).unwrap();
                }
            }
        }
    });
    let rig = Rig::new(&[b], Options::default());
    let mut c = rig.client();
    c.write_all(b"go").unwrap();
    let before = sent.recv_timeout(SHORT).expect("the sender was never held up");
    assert!(before < TOTAL / 2, "{before} bytes were buffered on the way");
    let mut n = 0;
    let mut buf = vec![0; 1 << 16];
    while n < TOTAL {
        let k = c.read(&mut buf).unwrap();
        assert!(k > 0 && buf[..k].iter().all(|b| *b == 7));
        n += k;
    }
}

#[test]
fn a_dead_backend_costs_no_client_a_request() {
    let (a, b) = (named(b'a'), dead());
    let rig = Rig::new(&[a, b], Options::default());
    for _ in 0..40 {
        let mut c = rig.client();
        let mut answer = [0];
        c.write_all(b"x").unwrap();
        c.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], b'a');
    }
    let report = rig.reports.recv_timeout(SHORT).unwrap();
    assert!(matches!(report, Report { backend, fault: Fault::Refused, .. } if backend == "b1"));
}

#[test]
fn a_cut_off_backend_is_raced() {
    let (hole, _keep) = blackhole();
    let rig = Rig::new(&[hole, named(b'a')], Options::default());
    for _ in 0..6 {
        let start = Instant::now();
        let mut c = rig.client();
        let mut answer = [0];
        c.write_all(b"x").unwrap();
        c.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], b'a');
        assert!(start.elapsed() < Duration::from_millis(400), "{:?}", start.elapsed());
    }
    let report = rig.reports.recv_timeout(SHORT).unwrap();
    assert!(matches!(report, Report { fault: Fault::Slow, .. }), "{report:?}");
}

#[test]
fn only_cut_off_backends_fail_the_client_in_bounded_time() {
    let (hole, _keep) = blackhole();
    let options = Options {
        connect_timeout: Duration::from_millis(300),
        ..Options::default()
    };
    let rig = Rig::new(&[hole], options);
    let start = Instant::now();
    let mut c = rig.client();
    assert!(is_reset(c.read(&mut [0])));
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// The first bytes of a ClientHello: enough for the proxy to know one.
const HELLO: &[u8] = &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0];

#[test]
fn a_hung_backend_costs_a_tls_client_only_time() {
    let (stuck, _keep) = hung();
    let rig = Rig::new(&[stuck, named(b'a')], Options::default());
    for _ in 0..6 {
        let start = Instant::now();
        let mut c = rig.client();
        let mut answer = [0];
        c.write_all(HELLO).unwrap();
        c.read_exact(&mut answer).unwrap();
        assert_eq!(answer[0], b'a');
        assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
    }
    let report = rig.reports.recv_timeout(SHORT).unwrap();
    assert!(
        matches!(
            report,
            Report {
                fault: Fault::Silent,
                ..
            }
        ),
        "{report:?}"
    );
}

/// Real API servers, one frozen: its old clients were freed 15 ms too late, since checks began when new ones were raced.
#[test]
fn a_hung_backend_is_doubted_before_it_is_raced() {
    let (stuck, _keep) = hung();
    let rig = Rig::new(&[stuck], Options::default());
    let start = Instant::now();
    let mut c = rig.client();
    c.write_all(HELLO).unwrap();
    let report = rig.reports.recv_timeout(SHORT).unwrap();
    assert_eq!(report.fault, Fault::Silent);
    let told = report.took.max(Duration::from_millis(100));
    // Workers count whole milliseconds.
    let passed = start.elapsed() + Duration::from_millis(1);
    assert!(
        told < Duration::from_millis(250) && told <= passed,
        "{told:?} of {passed:?}"
    );
}

#[test]
fn a_backend_that_closes_on_a_hello_is_replaced_and_gets_it_whole() {
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let bad = server(|_, mut s| drop(s.read(&mut [0; 4])));
    let good = server(move |_, mut s| {
        let mut b = vec![0; HELLO.len()];
        s.read_exact(&mut b).unwrap();
        tx.lock().unwrap().send(b).unwrap();
        s.write_all(b"k").unwrap();
    });
    let rig = Rig::new(&[bad, good], Options::default());
    for _ in 0..4 {
        let mut c = rig.client();
        c.write_all(&HELLO[..6]).unwrap();
        thread::sleep(Duration::from_millis(20));
        c.write_all(&HELLO[6..]).unwrap();
        c.read_exact(&mut [0]).unwrap();
        assert_eq!(rx.recv_timeout(SHORT).unwrap(), HELLO);
    }
}

#[test]
fn clients_of_a_killed_backend_are_reset_at_once_and_others_live() {
    let (a, b) = (echo(), echo());
    let rig = Rig::new(&[a, b], Options::default());
    let mut clients: Vec<_> = (0..40)
        .map(|_| {
            let mut c = rig.client();
            c.write_all(b"x").unwrap();
            c.read_exact(&mut [0]).unwrap();
            c
        })
        .collect();
    let set = rig.frontend().set();
    let victim = &set.backends()[0];
    let doomed = victim.load.active();
    assert!((10..=30).contains(&doomed), "{doomed}");
    let start = Instant::now();
    rig.set(&views(&[b])[..]);
    rig.proxy.kill(victim, Duration::ZERO);
    until("resets", || victim.load.active() == 0);
    assert!(start.elapsed() < Duration::from_millis(500));
    let mut reset = 0;
    for c in &mut clients {
        // A write to a reset connection fails or the read after it does.
        let ok = c.write_all(b"y").and_then(|()| c.read_exact(&mut [0])).is_ok();
        reset += u32::from(!ok);
    }
    assert_eq!(reset, doomed);
    assert_eq!(
        victim.resets.load(std::sync::atomic::Ordering::Relaxed),
        u64::from(doomed)
    );
}

#[test]
fn a_client_waiting_for_a_killed_backends_hello_goes_to_another() {
    let (stuck, _keep) = hung();
    let mut all = views(&[stuck, named(b'a')]);
    all[1].backup = true;
    let options = Options {
        answer_hedge: Some(Duration::from_secs(30)),
        ..Options::default()
    };
    let rig = Rig::with(Algorithm::RoundRobin, &all, options, "127.0.0.1:0");
    let mut c = rig.client();
    c.write_all(HELLO).unwrap();
    thread::sleep(Duration::from_millis(100));
    rig.proxy.kill(&rig.frontend().set().backends()[0], Duration::ZERO);
    let mut answer = [0];
    c.read_exact(&mut answer).unwrap();
    assert_eq!(answer[0], b'a');
}

#[test]
fn without_a_backend_clients_are_refused_at_once() {
    let rig = Rig::new(&[], Options::default());
    let start = Instant::now();
    let mut c = rig.client();
    assert!(is_reset(c.read(&mut [0])));
    assert!(start.elapsed() < Duration::from_millis(200));

    let rig = Rig::new(&[dead(), dead()], Options::default());
    assert!(is_reset(rig.client().read(&mut [0])));
}

#[test]
fn weights_and_drain_are_obeyed() {
    let (a, b) = (named(b'a'), named(b'b'));
    let mut all = views(&[a, b]);
    all[0].weight = 300;
    let rig = Rig::with(Algorithm::RoundRobin, &all, Options::default(), "127.0.0.1:0");
    let ask = || {
        let mut c = rig.client();
        let mut answer = [0];
        c.write_all(b"x").unwrap();
        c.read_exact(&mut answer).unwrap();
        (answer[0], c)
    };
    let hits = (0..40).filter(|_| ask().0 == b'a').count();
    assert!(
        (26..=34).contains(&hits),
        "{hits} of 40 for three quarters of the weight"
    );

    // Draining: old connections go on, new ones go elsewhere.
    let (_, mut kept) = std::iter::repeat_with(ask).find(|x| x.0 == b'a').unwrap();
    all[0].weight = 0;
    rig.set(&all);
    for _ in 0..10 {
        assert_eq!(ask().0, b'b');
    }
    kept.write_all(b"x").unwrap();
    kept.read_exact(&mut [0]).unwrap();
}

#[test]
fn source_hash_keeps_a_client_on_its_backend() {
    let all = views(&[named(b'a'), named(b'b'), named(b'c')]);
    let rig = Rig::with(Algorithm::Source, &all, Options::default(), "127.0.0.1:0");
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..10 {
        let mut c = rig.client();
        let mut answer = [0];
        c.write_all(b"x").unwrap();
        c.read_exact(&mut answer).unwrap();
        seen.insert(answer[0]);
    }
    assert_eq!(seen.len(), 1);
}

#[test]
fn a_full_backend_queues_and_times_out() {
    let mut all = views(&[echo()]);
    all[0].max_connections = 1;
    let options = Options {
        queue_timeout: Duration::from_millis(400),
        ..Options::default()
    };
    let rig = Rig::with(Algorithm::LeastConnections, &all, options, "127.0.0.1:0");
    let mut first = rig.client();
    first.write_all(b"x").unwrap();
    first.read_exact(&mut [0]).unwrap();
    let mut second = rig.client();
    second.write_all(b"y").unwrap();
    thread::sleep(Duration::from_millis(100));
    drop(first);
    let mut b = [0];
    second.read_exact(&mut b).unwrap();
    assert_eq!(&b, b"y");
    let start = Instant::now();
    let mut third = rig.client();
    assert!(is_reset(third.read(&mut b)));
    let waited = start.elapsed();
    assert!((300..900).contains(&waited.as_millis()), "{waited:?}");
    until("the queue empties", || {
        rig.frontend()
            .counters
            .queued
            .load(std::sync::atomic::Ordering::Relaxed)
            == 0
    });
}

/// Two frontends behind one worker.
fn pair(options: [Options; 2], backends: [&[BackendView]; 2]) -> (Proxy, [SocketAddr; 2]) {
    let sink: Sink = Arc::new(|_| ());
    let mut proxy = Proxy::start(1, raise_open_files(), &sink).unwrap();
    let addresses = ["f", "g"].map(|name| {
        let at = usize::from(name == "g");
        let any = "127.0.0.1:0".parse().unwrap();
        assert!(proxy.apply(name, &[any], &options[at], &mut Vec::new()).is_empty());
        let set = Set::new(Algorithm::RoundRobin, backends[at], None);
        proxy.frontend(name).unwrap().replace_set(set);
        proxy.bound(name)[0]
    });
    (proxy, addresses)
}

fn connect(addr: SocketAddr) -> TcpStream {
    let s = TcpStream::connect(addr).unwrap();
    s.set_read_timeout(Some(SHORT)).unwrap();
    s
}

#[test]
fn clients_waiting_at_one_frontend_do_not_hold_up_another() {
    let one_place = |backend| {
        let mut all = views(&[backend]);
        all[0].max_connections = 1;
        all
    };
    let options = || Options {
        queue_length: 1,
        queue_timeout: Duration::from_secs(20),
        ..Options::default()
    };
    let (proxy, [f, g]) = pair([options(), options()], [&one_place(echo()), &one_place(echo())]);
    let ping = |c: &mut TcpStream| c.write_all(b"x").and_then(|()| c.read_exact(&mut [0]));
    let queued = |name: &str| {
        let counters = &proxy.frontend(name).unwrap().counters;
        counters.queued.load(std::sync::atomic::Ordering::Relaxed)
    };
    let (mut held_f, mut held_g) = (connect(f), connect(g));
    ping(&mut held_f).unwrap();
    ping(&mut held_g).unwrap();
    let _waiting = connect(f);
    until("the first waits", || queued("f") == 1);
    let mut second = connect(g);
    until("a queue of its own has room", || queued("g") == 1);
    drop(held_g);
    ping(&mut second).expect("a place is free, but somebody else's client is first");
}

#[test]
fn each_client_is_hedged_as_its_own_frontend_says() {
    let (stuck, _keep) = hung();
    let never = Options {
        answer_hedge: None,
        ..Options::default()
    };
    let both = views(&[stuck, named(b'a')]);
    let (_proxy, [f, g]) = pair([Options::default(), never], [&both, &both]);
    let mut first = connect(f);
    thread::sleep(Duration::from_millis(50));
    let mut other = connect(g);
    thread::sleep(Duration::from_millis(50));
    first.write_all(HELLO).unwrap();
    let mut answer = [0];
    first.read_exact(&mut answer).expect("not raced");
    assert_eq!(answer[0], b'a');
    other.write_all(HELLO).unwrap();
    other.set_read_timeout(Some(Duration::from_millis(600))).unwrap();
    assert!(other.read_exact(&mut answer).is_err(), "raced although it must not be");
}

#[test]
fn a_worker_that_hangs_is_noticed() {
    let gate = Arc::new(Mutex::new(()));
    let sink: Sink = {
        let gate = Arc::clone(&gate);
        Arc::new(move |_| drop(gate.lock()))
    };
    let mut proxy = Proxy::start(1, raise_open_files(), &sink).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    assert!(
        proxy
            .apply("f", &[any], &Options::default(), &mut Vec::new())
            .is_empty()
    );
    let set = Set::new(Algorithm::RoundRobin, &views(&[dead()]), None);
    proxy.frontend("f").unwrap().replace_set(set);
    assert!(!proxy.broken());
    let held = gate.lock().unwrap();
    let _client = connect(proxy.bound("f")[0]);
    thread::sleep(Duration::from_millis(100));
    until("noticed", || proxy.broken());
    drop(held);
    until("well again", || !proxy.broken());
}

#[test]
fn caps_hold_per_source_and_in_all() {
    let options = Options {
        max_per_source: 3,
        ..Options::default()
    };
    let rig = Rig::new(&[echo()], options);
    let mut held = Vec::new();
    for i in 0..5 {
        let mut c = rig.client();
        let _ = c.write_all(b"x");
        assert_eq!(c.read_exact(&mut [0]).is_ok(), i < 3, "connection {i}");
        held.push(c);
    }
    drop(held);
    until("places given back", || rig.active() == 0);
    let mut c = rig.client();
    c.write_all(b"x").unwrap();
    c.read_exact(&mut [0]).unwrap();

    // In all: the client waits in the listen queue until another ends.
    let rig = Rig::new(
        &[echo()],
        Options {
            max_connections: 1,
            ..Options::default()
        },
    );
    let mut first = rig.client();
    first.write_all(b"x").unwrap();
    first.read_exact(&mut [0]).unwrap();
    let mut second = rig.client();
    second.write_all(b"x").unwrap();
    second.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(second.read_exact(&mut [0]).is_err());
    drop(first);
    second.set_read_timeout(Some(SHORT)).unwrap();
    second.read_exact(&mut [0]).unwrap();
}

#[test]
fn reload_moves_listeners_without_touching_connections() {
    let mut rig = Rig::new(&[echo()], Options::default());
    let mut old = rig.client();
    old.write_all(b"x").unwrap();
    old.read_exact(&mut [0]).unwrap();
    let (first, second) = (rig.addr, dead());
    let options = Options::default();
    assert!(rig.proxy.apply("f", &[second], &options, &mut Vec::new()).is_empty());
    until("the new address answers", || TcpStream::connect(second).is_ok());
    until("the old address is let go", || TcpStream::connect(first).is_err());
    old.write_all(b"y").unwrap();
    old.read_exact(&mut [0]).unwrap();
    rig.proxy.remove("f");
    until("removed", || TcpStream::connect(second).is_err());
    old.write_all(b"z").unwrap();
    old.read_exact(&mut [0]).unwrap();
}

#[test]
fn listeners_pass_to_the_next_proxy_without_refusing_anybody() {
    let backend = named(b'a');
    let mut old = Rig::new(&[backend], Options::default());
    let addr = old.addr;
    let mut kept = old.client();
    kept.write_all(b"x").unwrap();
    kept.read_exact(&mut [0]).unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let hammer = {
        let stop = Arc::clone(&stop);
        thread::spawn(move || {
            let mut n = 0;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let mut c = TcpStream::connect(addr).expect("refused during the hand-over");
                c.set_read_timeout(Some(SHORT)).unwrap();
                c.write_all(b"x").unwrap();
                c.read_exact(&mut [0]).expect("lost during the hand-over");
                n += 1;
            }
            n
        })
    };
    thread::sleep(Duration::from_millis(100));
    let mut inherited = old.proxy.listening();
    assert_eq!(inherited.len(), 2);
    let sink: Sink = Arc::new(|_| ());
    let mut new = Proxy::start(1, raise_open_files(), &sink).unwrap();
    assert!(new.apply("f", &[addr], &Options::default(), &mut inherited).is_empty());
    new.frontend("f")
        .unwrap()
        .replace_set(Set::new(Algorithm::RoundRobin, &views(&[backend]), None));
    old.proxy.drain(Instant::now() + Duration::from_secs(20));
    thread::sleep(Duration::from_millis(300));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(hammer.join().unwrap() > 20);
    assert!(!old.proxy.finished(), "an old connection is still there");
    kept.write_all(b"x").unwrap();
    kept.read_exact(&mut [0]).unwrap();
    drop(kept);
    until("drained", || old.proxy.finished());
}

#[test]
fn an_address_not_on_this_host_yet_can_be_listened_on() {
    let rig = Rig::with(
        Algorithm::RoundRobin,
        &views(&[echo()]),
        Options::default(),
        "192.0.2.1:0",
    );
    assert_eq!(rig.addr.ip().to_string(), "192.0.2.1");
}

#[test]
fn ipv6_to_ipv4_works_with_the_proxy_header() {
    let (tx, rx) = channel();
    let tx = Mutex::new(tx);
    let b = server(move |_, mut s| {
        let mut b = vec![0; 52 + 5];
        s.read_exact(&mut b).unwrap();
        tx.lock().unwrap().send(b).unwrap();
    });
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("skipped: no IPv6 here");
        return;
    }
    let options = Options {
        proxy_protocol: true,
        ..Options::default()
    };
    let rig = Rig::with(Algorithm::RoundRobin, &views(&[b]), options, "[::1]:0");
    let mut c = rig.client();
    c.write_all(b"hello").unwrap();
    let got = rx.recv_timeout(SHORT).unwrap();
    assert_eq!(&got[..12], b"\r\n\r\n\0\r\nQUIT\n");
    assert_eq!(&got[48..50], &c.local_addr().unwrap().port().to_be_bytes());
    assert_eq!(&got[52..], b"hello");
}

#[test]
fn half_open_clients_and_garbage_do_not_stop_service() {
    let rig = Rig::new(&[echo()], Options::default());
    let quiet: Vec<_> = (0..500).map(|_| rig.client()).collect();
    for i in 0..200u32 {
        let mut c = rig.client();
        let junk: Vec<u8> = (0..i * 7)
            .map(|k| (k.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let _ = c.write_all(&junk);
        if i % 2 == 0 {
            reset_on_close(c);
        }
    }
    let mut c = rig.client();
    c.write_all(b"x").unwrap();
    c.read_exact(&mut [0]).unwrap();
    drop((quiet, c));
    until("everything given back", || {
        rig.active() == 0 && rig.proxy.connections() == 0
    });
}

/// A read stops at urgent data: what follows it is not lost though the end has come already.
#[test]
fn urgent_data_does_not_cut_a_stream_short() {
    let b = server(|_, mut s| {
        s.read_exact(&mut [0; 2]).unwrap();
        s.write_all(b"before").unwrap();
        socket2::SockRef::from(&s).send_out_of_band(b"!").unwrap();
        s.write_all(b"after").unwrap();
    });
    for _ in 0..20 {
        let rig = Rig::new(&[b], Options::default());
        let mut c = rig.client();
        c.write_all(b"go").unwrap();
        let mut all = String::new();
        c.read_to_string(&mut all).unwrap();
        assert_eq!(all, "beforeafter");
    }
}

/// Every byte arrives once and in order, whatever the sizes of writes and reads, copied or spliced.
#[test]
fn bytes_are_exact() {
    let rig = Rig::new(&[echo()], Options::default());
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move |bound: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % bound as u64) as usize
    };
    for round in 0..24 {
        let total = if round % 6 == 0 { 24 << 20 } else { 1 + next(3 << 20) };
        let biggest = [3, 100, 5_000, 70_000, 1 << 20][round % 5].max(total / 20_000);
        let writes: Vec<usize> = (0..64).map(|_| 1 + next(biggest)).collect();
        let reads: Vec<usize> = (0..64).map(|_| 1 + next(biggest * 2)).collect();
        let mut w = rig.client();
        let mut r = w.try_clone().unwrap();
        let byte = |i: usize| (i.wrapping_mul(0x9e37_79b1) >> 13) as u8;
        let writer = thread::spawn(move || {
            let mut at = 0;
            let mut k = 0;
            while at < total {
                let n = writes[k % 64].min(total - at);
                let data: Vec<u8> = (at..at + n).map(byte).collect();
                w.write_all(&data).unwrap();
                at += n;
                k += 1;
            }
            w.shutdown(Shutdown::Write).unwrap();
        });
        let mut at = 0;
        let mut k = 0;
        let mut buf = vec![0; biggest * 2 + 1];
        loop {
            let n = r.read(&mut buf[..reads[k % 64]]).unwrap();
            if n == 0 {
                break;
            }
            assert!(
                buf[..n].iter().enumerate().all(|(i, b)| *b == byte(at + i)),
                "round {round}, at {at}"
            );
            at += n;
            k += 1;
        }
        writer.join().unwrap();
        assert_eq!(at, total, "round {round}");
    }
}

#[test]
fn ten_thousand_idle_connections() {
    let files = raise_open_files();
    // Client, proxy (two) and server ends are all in this process, and so are the other tests' sockets.
    let wanted = 10_000usize;
    let n = wanted.min((files as usize).saturating_sub(6_000) / 4);
    if n < 1_000 {
        eprintln!("skipped: {files} open files allow only {n} connections");
        return;
    }
    if n < wanted {
        eprintln!("{files} open files allow {n} of {wanted} connections");
    }
    let l = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = l.local_addr().unwrap();
    let keep = thread::spawn(move || l.incoming().take(n).map(Result::unwrap).collect::<Vec<_>>());
    let rig = Rig::new(&[addr], Options::default());
    let mut clients: Vec<_> = (0..n).map(|_| rig.client()).collect();
    let mut servers = keep.join().unwrap();
    until("all are through", || rig.active() as usize == n);
    servers[n / 2].write_all(b"x").unwrap();
    drop(servers);
    let mut ended = 0;
    for c in &mut clients {
        let mut b = Vec::new();
        ended += usize::from(c.read_to_end(&mut b).is_ok());
    }
    assert_eq!(ended, n);
}
