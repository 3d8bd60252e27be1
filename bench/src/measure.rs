//! What is measured: rounds of both proxies in turn, so that a disturbance meets both.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::load::World;
use crate::proxies::{Checks, Kind, Proxy};
use crate::report::{Goal, Results};
use crate::sys;

/// CPU of the proxy under test, and of everything else.
pub(crate) const PROXY_CPU: usize = 0;
pub(crate) const LOAD_CPU: usize = 1;
/// Idle connections: a process may be limited to 20,000 files, and a proxy needs two for each, whoever the clients are.
const IDLE: usize = 9_500;
const KINDS: [Kind; 2] = [Kind::Quorate, Kind::Haproxy];
/// Until both have checked their backends.
const SETTLE: Duration = Duration::from_millis(1600);

pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) time: Duration,
}

/// Connections, throughput, latency.
pub(crate) fn data_path(dir: &Path, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    let (mut world, backends) = World::new(4)?;
    let proxies = both(dir, &backends, Checks::Tcp)?;
    world.turn(SETTLE)?;
    for round in 0..plan.rounds {
        // Who begins changes from round to round.
        for i in 0..2 {
            let proxy = &proxies[(i + round) % 2];
            let kind = KINDS[(i + round) % 2];
            world.target(proxy.addr);
            let before = proxy.cpu();
            world.connections(64, plan.time)?;
            let cpu = (proxy.cpu() - before).as_secs_f64();
            let done = world.seen.connections as f64;
            results.sample(
                "connections per CPU-second",
                "1/s",
                kind,
                done / cpu,
                Goal::AtLeast(1.2),
            );
            results.sample("failed connections", "", kind, world.seen.failed as f64, Goal::None);
            world.clear();
            for streams in [1, 64] {
                world.target(proxy.addr);
                let before = proxy.cpu();
                let start = Instant::now();
                world.stream(streams, plan.time)?;
                let (cpu, wall) = ((proxy.cpu() - before).as_secs_f64(), start.elapsed().as_secs_f64());
                // The first 200 ms are not in the bytes.
                let gib = world.seen.bytes as f64 / f64::from(1 << 30);
                let measured = plan.time.as_secs_f64() / wall;
                let name = |what: &str| format!("{what}, {streams} stream{}", if streams > 1 { "s" } else { "" });
                results.sample(
                    &name("throughput"),
                    "GiB/s",
                    kind,
                    gib / plan.time.as_secs_f64(),
                    Goal::AtLeast(1.0),
                );
                results.sample(
                    &name("CPU per GiB"),
                    "s/GiB",
                    kind,
                    cpu * measured / gib,
                    Goal::AtMost(0.9),
                );
                world.clear();
                world.turn(Duration::from_millis(50))?;
            }
        }
    }
    // Half of what HAProxy can do, for both.
    world.target(proxies[1].addr);
    world.requests(16, plan.time)?;
    let requests = world.seen.latencies.len() as f64 / plan.time.as_secs_f64() / 2.0;
    world.clear();
    world.target(proxies[1].addr);
    world.connections(64, plan.time)?;
    let connections = world.seen.connections as f64 / plan.time.as_secs_f64() / 2.0;
    world.clear();
    results.note(format!(
        "half load: {requests:.0} requests/s, {connections:.0} connections/s"
    ));
    for round in 0..plan.rounds {
        for what in ["request", "connection"] {
            let mut run = |addr: SocketAddr| -> anyhow::Result<Vec<u64>> {
                world.target(addr);
                match what {
                    "request" => world.requests_at(64, requests, plan.time)?,
                    _ => world.connections_at(connections, plan.time)?,
                }
                world.clear();
                let mut all = std::mem::take(&mut world.seen.latencies);
                all.sort_unstable();
                ensure!(!all.is_empty(), "no answers");
                Ok(all)
            };
            let direct = run(backends[0])?;
            for i in 0..2 {
                let k = (i + round) % 2;
                let via = run(proxies[k].addr)?;
                for (p, goal) in [(50.0, Goal::AtMost(1.0)), (99.0, Goal::AtMost(1.0)), (99.9, Goal::None)] {
                    let added = (quantile(&via, p) as f64 - quantile(&direct, p) as f64) / 1e3;
                    results.sample(&format!("added latency of a {what}, p{p}"), "µs", KINDS[k], added, goal);
                }
            }
        }
    }
    Ok(())
}

/// Memory with idle connections; CPU and memory with nothing to do.
pub(crate) fn idle(dir: &Path, results: &mut Results) -> anyhow::Result<()> {
    let (mut world, backends) = World::new(4)?;
    for kind in KINDS {
        let proxy = Proxy::start(kind, &sub(dir, kind)?, &backends, Checks::Http, PROXY_CPU)?;
        world.target(proxy.addr);
        world.turn(SETTLE)?;
        let before = proxy.cpu();
        let time = Duration::from_secs(5);
        world.turn(time)?;
        let share = (proxy.cpu() - before).as_secs_f64() / time.as_secs_f64() * 100.0;
        results.sample("idle CPU", "% of a core", kind, share, Goal::Below(0.5));
        results.sample(
            "idle resident memory",
            "MB",
            kind,
            proxy.resident() as f64 / 1e6,
            Goal::Below(20.0),
        );
        let held = world.idle(IDLE)?;
        world.turn(Duration::from_millis(1500))?;
        let name = format!("resident memory with {IDLE} idle connections");
        results.sample(&name, "MB", kind, proxy.resident() as f64 / 1e6, Goal::AtMost(0.5));
        drop(held);
        world.clear();
    }
    Ok(())
}

/// A backend dies or hangs under load: what new and old clients see.
pub(crate) fn failures(dir: &Path, results: &mut Results) -> anyhow::Result<()> {
    for (what, signal, worst_ms) in [("killed", libc::SIGKILL, 500.0), ("hung", libc::SIGSTOP, 1000.0)] {
        for kind in KINDS {
            let servers: Vec<Server> = (0..3).map(|_| Server::start()).collect::<anyhow::Result<_>>()?;
            let backends: Vec<SocketAddr> = servers.iter().map(|s| s.addr).collect();
            let proxy = Proxy::start(kind, &sub(dir, kind)?, &backends, Checks::Http, PROXY_CPU)?;
            std::thread::sleep(SETTLE);
            let seen = under_load(proxy.addr, || sys::signal(servers[0].child.id(), signal))?;
            let name = |s: &str| format!("backend {what}: {s}");
            results.sample(
                &name("failed new requests"),
                "of 800",
                kind,
                seen.failed as f64,
                Goal::Below(0.0),
            );
            results.sample(
                &name("worst new request"),
                "ms",
                kind,
                seen.worst.as_secs_f64() * 1e3,
                Goal::Below(worst_ms),
            );
            results.sample(
                &name("its old clients freed after"),
                "ms",
                kind,
                seen.freed,
                Goal::Below(1000.0),
            );
        }
    }
    Ok(())
}

struct Outcome {
    failed: usize,
    worst: Duration,
    /// Milliseconds; the whole observation when they were not freed.
    freed: f64,
}

/// 200 new requests a second for 4 s and 30 standing connections; `strike` after one second.
fn under_load(addr: SocketAddr, strike: impl FnOnce()) -> anyhow::Result<Outcome> {
    const THREADS: u32 = 40;
    const EACH: u32 = 20;
    let period = Duration::from_millis(200);
    let start = Instant::now() + Duration::from_millis(300);
    let failed = Arc::new(AtomicUsize::new(0));
    let worst = Arc::new(Mutex::new(Duration::ZERO));
    let mut standing: Vec<TcpStream> = (0..30).filter_map(|_| hello(addr).ok()).collect();
    ensure!(
        standing.len() == 30,
        "standing connections fail before anything happened"
    );
    let threads: Vec<_> = (0..THREADS)
        .map(|t| {
            let (failed, worst) = (Arc::clone(&failed), Arc::clone(&worst));
            std::thread::spawn(move || {
                for i in 0..EACH {
                    let due = start + period * i + period * t / THREADS;
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    let begun = Instant::now();
                    if hello(addr).is_err() {
                        failed.fetch_add(1, Relaxed);
                    }
                    if let Ok(mut w) = worst.lock() {
                        *w = (*w).max(begun.elapsed());
                    }
                }
            })
        })
        .collect();
    std::thread::sleep((start + Duration::from_secs(1)).saturating_duration_since(Instant::now()));
    let struck = Instant::now();
    strike();
    let mut last = None;
    for s in &standing {
        s.set_nonblocking(true)?;
    }
    while struck.elapsed() < Duration::from_secs(3) {
        standing.retain_mut(|s| {
            let alive = matches!(s.read(&mut [0]), Err(e) if e.kind() == std::io::ErrorKind::WouldBlock);
            if !alive {
                last = Some(struck.elapsed());
            }
            alive
        });
        std::thread::sleep(Duration::from_millis(5));
    }
    for t in threads {
        let _ = t.join();
    }
    let worst = worst.lock().map(|w| *w).unwrap_or_default();
    let freed = last.map_or(f64::INFINITY, |d| d.as_secs_f64() * 1e3).min(3000.0);
    Ok(Outcome {
        failed: failed.load(Relaxed),
        worst,
        freed,
    })
}

/// A client that speaks as TLS clients do: a ClientHello, then it waits.
fn hello(addr: SocketAddr) -> std::io::Result<TcpStream> {
    let mut s = TcpStream::connect(addr)?;
    s.set_read_timeout(Some(Duration::from_secs(10)))?;
    s.write_all(&[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0])?;
    s.read_exact(&mut [0])?;
    Ok(s)
}

/// A server in a process of its own.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("serve")
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line)?;
        }
        Ok(Self {
            addr: line.trim().parse()?,
            child,
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn both(dir: &Path, backends: &[SocketAddr], checks: Checks) -> anyhow::Result<[Proxy; 2]> {
    let start = |kind| Proxy::start(kind, &sub(dir, kind)?, backends, checks, PROXY_CPU);
    Ok([start(Kind::Quorate)?, start(Kind::Haproxy)?])
}

fn sub(dir: &Path, kind: Kind) -> anyhow::Result<std::path::PathBuf> {
    let path = dir.join(format!("{kind:?}"));
    std::fs::create_dir_all(&path)?;
    Ok(path)
}

fn quantile(sorted: &[u64], p: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * p / 100.0).round() as usize]
}
