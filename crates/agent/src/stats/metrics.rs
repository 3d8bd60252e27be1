//! Prometheus text format, version 0.0.4. Counters end in `_total`, times are seconds, sizes bytes.

use std::fmt::Write;

use quorate_lb::vrrp::{Discard, InstanceStatus};
use quorate_lb::{Availability, ConflictKind, VrrpState};

use crate::status::{FrontendStatus, Server, Status, VrrpThread};

struct Page(String);

impl Page {
    fn metric(&mut self, name: &str, kind: &str, help: &str, samples: impl IntoIterator<Item = (String, f64)>) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let _ = writeln!(self.0, "# HELP quorate_{name} {help}\n# TYPE quorate_{name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(self.0, "quorate_{name}{labels} {value}");
        }
    }
}

pub(super) fn render(s: &Status) -> String {
    let mut p = Page(String::new());
    let one = |v: f64| [(String::new(), v)];
    let info = format!("{{version=\"{}\",node=\"{}\"}}", escape(s.version), escape(&s.node));
    p.metric("agent_info", "gauge", "The running agent.", [(info, 1.0)]);
    p.metric(
        "agent_uptime_seconds",
        "gauge",
        "Time since the start.",
        one(s.uptime_seconds),
    );
    p.metric(
        "agent_cpu_seconds_total",
        "counter",
        "CPU time used.",
        one(s.cpu_seconds),
    );
    p.metric(
        "agent_resident_bytes",
        "gauge",
        "Resident memory.",
        one(s.resident_bytes as f64),
    );
    p.metric(
        "agent_worst_late_seconds",
        "gauge",
        "Worst lateness of the deciding thread.",
        one(s.worst_late_seconds),
    );
    p.metric(
        "agent_late_wakeups_total",
        "counter",
        "Times others could not be judged because this process was late.",
        one(s.late_wakeups as f64),
    );

    let fronts = |f: fn(&FrontendStatus) -> f64| s.frontends.iter().map(move |x| (front_label(x), f(x)));
    p.metric(
        "frontend_usable",
        "gauge",
        "Whether new connections can be passed on.",
        fronts(|f| flag(f.usable)),
    );
    p.metric(
        "frontend_unbound",
        "gauge",
        "Addresses it should listen on and cannot.",
        fronts(|f| f.unbound.len() as f64),
    );
    p.metric(
        "frontend_fail_open",
        "gauge",
        "No backend is ready, those alive are used.",
        fronts(|f| flag(f.fail_open)),
    );
    p.metric(
        "frontend_connections",
        "gauge",
        "Client connections now.",
        fronts(|f| f.active.into()),
    );
    p.metric(
        "frontend_connections_total",
        "counter",
        "Client connections accepted.",
        fronts(|f| f.total as f64),
    );
    p.metric(
        "frontend_queued",
        "gauge",
        "Clients waiting for a backend.",
        fronts(|f| f.queued.into()),
    );
    p.metric(
        "frontend_failed_total",
        "counter",
        "Clients whose every dial failed.",
        fronts(|f| f.failed as f64),
    );
    p.metric(
        "frontend_accept_errors_total",
        "counter",
        "Failed accepts.",
        fronts(|f| f.accept_errors as f64),
    );
    let refused = s.frontends.iter().flat_map(|f| {
        [
            ("no-backend", f.refused_no_backend),
            ("queue", f.refused_queue),
            ("source", f.refused_source),
        ]
        .map(|(why, n)| {
            (
                format!("{{frontend=\"{}\",reason=\"{why}\"}}", escape(&f.name)),
                n as f64,
            )
        })
    });
    p.metric("frontend_refused_total", "counter", "Clients refused.", refused);

    let servers = |f: fn(&Server) -> f64| {
        s.frontends
            .iter()
            .flat_map(move |x| x.backends.iter().map(move |b| (server_label(x, b), f(b))))
    };
    p.metric(
        "backend_up",
        "gauge",
        "1: takes connections, 0.5: only as a last resort, 0: none.",
        servers(|b| match b.health.availability {
            Availability::Up => 1.0,
            Availability::LastResort => 0.5,
            Availability::Down => 0.0,
        }),
    );
    p.metric(
        "backend_weight",
        "gauge",
        "Effective weight.",
        servers(|b| b.health.weight.into()),
    );
    p.metric(
        "backend_checks_total",
        "counter",
        "Health checks.",
        servers(|b| b.health.checks as f64),
    );
    p.metric(
        "backend_failed_checks_total",
        "counter",
        "Failed checks.",
        servers(|b| b.health.failed_checks as f64),
    );
    p.metric(
        "backend_connections",
        "gauge",
        "Connections now.",
        servers(|b| b.active.into()),
    );
    p.metric(
        "backend_connections_total",
        "counter",
        "Connections made.",
        servers(|b| b.total as f64),
    );
    p.metric(
        "backend_bytes_in_total",
        "counter",
        "Bytes to the backend.",
        servers(|b| b.bytes_in as f64),
    );
    p.metric(
        "backend_bytes_out_total",
        "counter",
        "Bytes from the backend.",
        servers(|b| b.bytes_out as f64),
    );
    p.metric(
        "backend_connect_errors_total",
        "counter",
        "Failed dials.",
        servers(|b| b.connect_errors as f64),
    );
    p.metric(
        "backend_connect_slow_total",
        "counter",
        "Slow dials.",
        servers(|b| b.connect_timeouts as f64),
    );
    p.metric(
        "backend_retries_total",
        "counter",
        "Clients moved elsewhere.",
        servers(|b| b.retries as f64),
    );
    p.metric(
        "backend_hedges_total",
        "counter",
        "Dials raced by another.",
        servers(|b| b.hedges as f64),
    );
    p.metric(
        "backend_resets_total",
        "counter",
        "Clients reset at its death.",
        servers(|b| b.resets as f64),
    );
    p.metric(
        "backend_connect_seconds",
        "gauge",
        "Smoothed connect time.",
        servers(|b| b.connect_microseconds as f64 / 1e6),
    );

    let routers = |f: fn(&InstanceStatus) -> f64| {
        s.vrrp.iter().map(move |v| {
            (
                format!("{{instance=\"{}\",vrid=\"{}\"}}", escape(&v.name), v.vrid),
                f(v),
            )
        })
    };
    p.metric(
        "vrrp_master",
        "gauge",
        "This machine holds the VIPs.",
        routers(|v| flag(v.state == VrrpState::Master)),
    );
    p.metric(
        "vrrp_fault",
        "gauge",
        "A tracked thing is missing.",
        routers(|v| flag(v.state == VrrpState::Fault)),
    );
    let counters = s.vrrp.iter().flat_map(|v| {
        let all = serde_json::to_value(&v.counters).unwrap_or_default();
        let name = escape(&v.name);
        let each = all.as_object().cloned().unwrap_or_default().into_iter();
        each.filter_map(move |(k, n)| Some((format!("{{instance=\"{name}\",counter=\"{k}\"}}"), n.as_f64()?)))
    });
    p.metric(
        "vrrp_packets_total",
        "counter",
        "Packets by what became of them.",
        counters,
    );
    // Every reason and kind from the start: a series that begins with its first count shows no increase.
    let discarded = s.vrrp.iter().flat_map(|v| {
        let of_instances = Discard::ALL.into_iter().filter(|d| *d != Discard::UnknownRouter);
        of_instances.map(move |d| (cause(v, "reason", d.name()), count(v.counters.discarded.get(&d))))
    });
    p.metric("vrrp_discarded_total", "counter", "Packets not heeded.", discarded);
    let conflicts = s.vrrp.iter().flat_map(|v| {
        let kinds = ConflictKind::ALL.into_iter();
        kinds.map(move |k| (cause(v, "kind", k.name()), count(v.counters.conflicts.get(&k))))
    });
    p.metric(
        "vrrp_conflicts_total",
        "counter",
        "Others with our VRID or our VIPs.",
        conflicts,
    );
    if !s.vrrp.is_empty() {
        thread(&mut p, &s.vrrp_thread);
    }
    p.0
}

fn thread(p: &mut Page, t: &VrrpThread) {
    for (name, help, value) in [
        ("vrrp_sent_total", "Advertisements sent.", t.sent),
        (
            "vrrp_send_errors_total",
            "Advertisements that the kernel did not take.",
            t.send_errors,
        ),
        ("vrrp_received_total", "Datagrams of protocol 112 received.", t.received),
        (
            "vrrp_unknown_router_packets_total",
            "Packets for virtual routers that are not ours.",
            t.unknown_router_packets,
        ),
        (
            "vrrp_frames_total",
            "Gratuitous ARP, neighbour advertisements and probes sent.",
            t.frames,
        ),
        ("vrrp_claims_total", "Claims of our VIPs by others.", t.claims),
        ("vrrp_vips_lost_total", "VIPs removed by somebody else.", t.lost),
        ("vrrp_wakeups_total", "Wake-ups of the VRRP thread.", t.wakeups),
    ] {
        p.metric(name, "counter", help, [(String::new(), value as f64)]);
    }
    p.metric(
        "vrrp_worst_late_seconds",
        "gauge",
        "Worst lateness of the VRRP thread.",
        [(String::new(), t.worst_late_seconds)],
    );
}

fn cause(v: &InstanceStatus, label: &str, name: &str) -> String {
    format!("{{instance=\"{}\",{label}=\"{name}\"}}", escape(&v.name))
}

fn count(n: Option<&u64>) -> f64 {
    n.copied().unwrap_or_default() as f64
}

fn flag(b: bool) -> f64 {
    f64::from(u8::from(b))
}

fn front_label(f: &FrontendStatus) -> String {
    format!("{{frontend=\"{}\"}}", escape(&f.name))
}

fn server_label(f: &FrontendStatus, b: &Server) -> String {
    format!(
        "{{frontend=\"{}\",backend=\"{}\"}}",
        escape(&f.name),
        escape(&b.health.name)
    )
}

fn escape(s: &str) -> String {
    s.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use quorate_lb::vrrp::Counters;

    use super::*;

    #[test]
    fn discards_conflicts_and_the_threads_own_numbers_are_there() {
        let counters = Counters {
            discarded: BTreeMap::from([(Discard::Replay, 7)]),
            conflicts: BTreeMap::from([(ConflictKind::TwoMasters, 2)]),
            ..Counters::default()
        };
        let router = InstanceStatus {
            name: "api".into(),
            state: VrrpState::Backup,
            vrid: 51,
            interface: "eth0".into(),
            priority: 100,
            vips: Vec::new(),
            master: None,
            handing_over: false,
            counters,
        };
        let status = Status {
            node: "m1".into(),
            version: "0",
            pid: 1,
            uptime_seconds: 0.0,
            cpu_seconds: 0.0,
            resident_bytes: 0,
            connections: 0,
            worst_late_seconds: 0.0,
            late_wakeups: 0,
            frontends: Vec::new(),
            vrrp: vec![router],
            vrrp_thread: VrrpThread {
                send_errors: 3,
                unknown_router_packets: 4,
                worst_late_seconds: 0.25,
                ..VrrpThread::default()
            },
            events: Vec::new(),
        };
        let page = render(&status);
        for line in [
            "quorate_vrrp_discarded_total{instance=\"api\",reason=\"replay\"} 7",
            "quorate_vrrp_discarded_total{instance=\"api\",reason=\"checksum\"} 0",
            "quorate_vrrp_conflicts_total{instance=\"api\",kind=\"two-masters\"} 2",
            "quorate_vrrp_conflicts_total{instance=\"api\",kind=\"foreign-owner\"} 0",
            "quorate_vrrp_unknown_router_packets_total 4",
            "quorate_vrrp_send_errors_total 3",
            "quorate_vrrp_worst_late_seconds 0.25",
        ] {
            assert!(page.lines().any(|l| l == line), "{line}\n{page}");
        }
        let without = Status {
            vrrp: Vec::new(),
            ..status
        };
        assert!(!render(&without).contains("vrrp"));
    }
}
