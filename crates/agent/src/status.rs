//! Everything there is to show about a running agent, as one value: the statistics page, `/stats.json`,
//! `/metrics` and `quorate agent ctl show` are renderings of it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, UNIX_EPOCH};

use quorate_lb::config::SetKind;
use quorate_lb::health::BackendStatus;
use quorate_lb::vrrp::InstanceStatus;
use serde::Serialize;

use crate::core::Core;
use crate::proxy::sys;
use crate::vrrp_io;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    pub node: String,
    pub version: &'static str,
    pub pid: u32,
    pub uptime_seconds: f64,
    /// CPU time used since the start, and resident memory.
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub connections: usize,
    /// Worst lateness of the deciding thread.
    pub worst_late_seconds: f64,
    /// Times others could not be judged because this process was late.
    pub late_wakeups: u64,
    pub frontends: Vec<FrontendStatus>,
    pub vrrp: Vec<InstanceStatus>,
    /// Of the virtual routers' thread; all zero without one.
    pub vrrp_thread: VrrpThread,
    /// Newest first.
    pub events: Vec<LoggedEvent>,
}

/// Counted since the virtual routers were started.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VrrpThread {
    /// Advertisements sent, and those the kernel did not take.
    pub sent: u64,
    pub send_errors: u64,
    /// Datagrams of protocol 112 received, and those of them for virtual routers that are not ours.
    pub received: u64,
    pub unknown_router_packets: u64,
    /// Gratuitous ARP, neighbour advertisements and probes sent.
    pub frames: u64,
    /// Claims of our VIPs by others.
    pub claims: u64,
    /// VIPs removed by somebody else.
    pub lost: u64,
    pub wakeups: u64,
    /// Longest time by which a timer was served late.
    pub worst_late_seconds: f64,
}

impl VrrpThread {
    fn new(counted: &vrrp_io::Counters, unknown_router_packets: u64) -> Self {
        Self {
            sent: counted.sent.load(Relaxed),
            send_errors: counted.send_errors.load(Relaxed),
            received: counted.received.load(Relaxed),
            unknown_router_packets,
            frames: counted.frames.load(Relaxed),
            claims: counted.claims.load(Relaxed),
            lost: counted.lost.load(Relaxed),
            wakeups: counted.wakeups.load(Relaxed),
            worst_late_seconds: Duration::from_micros(counted.worst_lateness_us.load(Relaxed)).as_secs_f64(),
        }
    }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FrontendStatus {
    pub name: String,
    pub kind: SetKind,
    pub listen: Vec<String>,
    /// Where it should listen and cannot.
    pub unbound: Vec<String>,
    pub usable: bool,
    pub fail_open: bool,
    pub active: u32,
    pub total: u64,
    pub queued: u32,
    pub refused_no_backend: u64,
    pub refused_queue: u64,
    pub refused_source: u64,
    pub failed: u64,
    pub accept_errors: u64,
    pub backends: Vec<Server>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    #[serde(flatten)]
    pub health: BackendStatus,
    /// Time since the last change of availability.
    pub for_seconds: f64,
    pub active: u32,
    pub total: u64,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub connect_errors: u64,
    pub connect_timeouts: u64,
    pub retries: u64,
    pub hedges: u64,
    pub resets: u64,
    pub connect_microseconds: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoggedEvent {
    /// Seconds since 1970.
    pub at: f64,
    pub text: String,
}

/// Collects it, on the core's thread.
pub fn collect(core: &Core) -> Status {
    let now = vrrp_io::now();
    let (cpu_ms, resident_bytes) = sys::usage();
    // The virtual routers' thread answers within microseconds or has ended.
    let (vrrp, unknown_router_packets) = core
        .vrrp
        .as_ref()
        .and_then(|v| v.query(|r, _| (r.status(), r.unknown_router_packets())))
        .unwrap_or_default();
    let counted = core
        .vrrp
        .as_ref()
        .map(|v| VrrpThread::new(v.counters(), unknown_router_packets));
    let frontends = core
        .balancer
        .status()
        .into_iter()
        .map(|set| {
            let front = core.runtime(&set.name);
            let backends = set
                .backends
                .into_iter()
                .map(|health| {
                    let b = core.proxied(&set.name, &health.name, health.address);
                    let n = |f: fn(&crate::proxy::Backend) -> u64| b.as_deref().map_or(0, f);
                    Server {
                        for_seconds: now.saturating_sub(health.since).as_secs_f64(),
                        active: b.as_ref().map_or(0, |b| b.load.active()),
                        total: n(|b| b.total.load(Relaxed)),
                        bytes_in: n(|b| b.bytes_up.load(Relaxed)),
                        bytes_out: n(|b| b.bytes_down.load(Relaxed)),
                        connect_errors: n(|b| b.connect_errors.load(Relaxed)),
                        connect_timeouts: n(|b| b.connect_timeouts.load(Relaxed)),
                        retries: n(|b| b.retries.load(Relaxed)),
                        hedges: n(|b| b.hedges.load(Relaxed)),
                        resets: n(|b| b.resets.load(Relaxed)),
                        connect_microseconds: n(|b| b.connect_us.load(Relaxed)),
                        health,
                    }
                })
                .collect();
            let c = front.map(|f| &f.counters);
            let n = |f: fn(&crate::proxy::Counters) -> u64| c.map_or(0, f);
            FrontendStatus {
                listen: match set.kind {
                    SetKind::Proxy => core.proxy.bound(&set.name).iter().map(ToString::to_string).collect(),
                    _ => core.virtual_address(&set.name).into_iter().collect(),
                },
                unbound: core.unbound(&set.name),
                kind: set.kind,
                usable: set.usable,
                fail_open: set.fail_open,
                active: c.map_or(0, |c| c.active.load(Relaxed)),
                queued: c.map_or(0, |c| c.queued.load(Relaxed)),
                total: n(|c| c.total.load(Relaxed)),
                refused_no_backend: n(|c| c.refused_no_backend.load(Relaxed)),
                refused_queue: n(|c| c.refused_queue.load(Relaxed)),
                refused_source: n(|c| c.refused_source.load(Relaxed)),
                failed: n(|c| c.failed.load(Relaxed)),
                accept_errors: n(|c| c.accept_errors.load(Relaxed)),
                backends,
                name: set.name,
            }
        })
        .collect();
    Status {
        node: core.config.node.clone(),
        version: env!("CARGO_PKG_VERSION"),
        pid: std::process::id(),
        uptime_seconds: core.uptime().as_secs_f64(),
        cpu_seconds: Duration::from_millis(cpu_ms).as_secs_f64(),
        resident_bytes,
        connections: core.proxy.connections(),
        worst_late_seconds: core.worst_late.as_secs_f64(),
        late_wakeups: core.balancer.late_wakeups(),
        frontends,
        vrrp,
        vrrp_thread: counted.unwrap_or_default(),
        events: core
            .log
            .iter()
            .rev()
            .map(|(at, text)| LoggedEvent {
                at: at.duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64()),
                text: text.clone(),
            })
            .collect(),
    }
}

impl Core {
    fn virtual_address(&self, name: &str) -> Option<String> {
        let ipvs = self
            .config
            .ipvs
            .iter()
            .find(|s| s.name == name)
            .map(|s| s.virtual_address);
        let ebpf = self
            .config
            .ebpf
            .iter()
            .find(|s| s.name == name)
            .map(|s| s.virtual_address);
        ipvs.or(ebpf).map(|a| a.to_string())
    }
}
