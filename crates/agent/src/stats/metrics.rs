//! Prometheus text format, version 0.0.4. Counters end in `_total`, times are seconds, sizes bytes.

use std::fmt::Write;

use quorate_lb::{Availability, VrrpState};

use crate::status::{FrontendStatus, Server, Status};

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

    let routers = |f: fn(&quorate_lb::vrrp::InstanceStatus) -> f64| {
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
    p.0
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
