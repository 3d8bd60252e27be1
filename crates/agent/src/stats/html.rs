//! The statistics page: one document without scripts or anything from elsewhere.

use std::fmt::Write;
use std::time::Duration;

use quorate_lb::config::SetKind;
use quorate_lb::{AdminState, Availability, VrrpState};

use crate::status::{FrontendStatus, Status};

const STYLE: &str = include_str!("page.css");

pub(super) fn render(s: &Status) -> String {
    let mut h = String::with_capacity(16 * 1024);
    let up = time(s.uptime_seconds);
    let _ = write!(
        h,
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content=\"width=device-width\">\
         <meta http-equiv=refresh content=2><title>{node} – quorate agent</title><style>{STYLE}</style>\
         <h1>{node}</h1><p class=sub>quorate agent {version} · pid {pid} · up {up} · {connections} connections · \
         CPU {cpu:.2} % on average · {memory} resident · worst lateness {late:.1} ms \
         · <a href=stats.json>JSON</a> · <a href=metrics>metrics</a></p>",
        node = escape(&s.node),
        version = s.version,
        pid = s.pid,
        connections = s.connections,
        cpu = 100.0 * s.cpu_seconds / s.uptime_seconds.max(0.001),
        memory = bytes(s.resident_bytes),
        late = s.worst_late_seconds * 1e3,
    );
    if !s.vrrp.is_empty() {
        h.push_str("<h2>Virtual addresses</h2><table><tr><th>Instance<th>State<th>VIPs<th>Interface<th>VRID<th>Priority<th>Held by");
        for v in &s.vrrp {
            let class = match v.state {
                VrrpState::Master => "up",
                VrrpState::Fault => "down",
                _ => "idle",
            };
            let vips: Vec<_> = v.vips.iter().map(ToString::to_string).collect();
            let master = v
                .master
                .map_or_else(|| "–".to_owned(), |(ip, prio)| format!("{ip} ({prio})"));
            let _ = write!(
                h,
                "<tr class={class}><td>{}<td><b>{:?}</b><td>{}<td>{}<td>{}<td>{}<td>{}",
                escape(&v.name),
                v.state,
                escape(&vips.join(", ")),
                escape(&v.interface),
                v.vrid,
                v.priority,
                escape(&master)
            );
        }
        h.push_str("</table>");
    }
    for f in &s.frontends {
        frontend(&mut h, f);
    }
    if !s.events.is_empty() {
        h.push_str("<h2>Events</h2><table class=log>");
        for e in &s.events {
            let _ = write!(h, "<tr><td>{}<td>{}", clock(e.at), escape(&e.text));
        }
        h.push_str("</table>");
    }
    h
}

fn frontend(h: &mut String, f: &FrontendStatus) {
    let unbound = if f.unbound.is_empty() {
        String::new()
    } else {
        let addresses = escape(&f.unbound.join(", "));
        format!(" · <span class=bad>cannot listen on {addresses}</span>")
    };
    let state = match (f.usable, f.fail_open) {
        (true, false) => "<span class=ok>usable</span>",
        (true, true) => "<span class=warn>no backend is ready: those alive are used</span>",
        (false, _) => "<span class=bad>no path to any backend</span>",
    };
    let _ = write!(
        h,
        "<h2>{} <small>{:?} {} · {state}{unbound}</small></h2>",
        escape(&f.name),
        f.kind,
        escape(&f.listen.join(", "))
    );
    if f.kind == SetKind::Proxy {
        let _ = write!(
            h,
            "<p class=sub>{} connections now, {} in all, {} waiting · refused: {} without a backend, {} after waiting, {} \
             over the source's limit · {} failed · {} accept errors</p>",
            f.active,
            f.total,
            f.queued,
            f.refused_no_backend,
            f.refused_queue,
            f.refused_source,
            f.failed,
            f.accept_errors
        );
    }
    h.push_str(
        "<table><tr><th>Backend<th>Address<th>State<th>Since<th>Weight<th>Now<th>Total<th>In<th>Out<th>Connect<th>Errors\
         <th>Slow<th>Retried<th>Hedged<th>Reset<th>Checks<th>Failed",
    );
    for b in &f.backends {
        let class = match (b.health.admin, b.health.availability) {
            (AdminState::Drain | AdminState::Maintenance, _) => "idle",
            (_, Availability::Up) => "up",
            (_, Availability::LastResort) => "warn",
            (_, Availability::Down) => "down",
        };
        let admin = match b.health.admin {
            AdminState::Ready => "",
            AdminState::Drain => " · draining",
            AdminState::Maintenance => " · maintenance",
        };
        let _ = write!(
            h,
            "<tr class={class}><td>{}<td>{}<td><b>{:?}</b> {:?}{admin}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}<td>{}\
             <td>{}<td>{}<td>{}<td>{}",
            escape(&b.health.name),
            b.health.address,
            b.health.availability,
            b.health.reason,
            time(b.for_seconds),
            b.health.weight,
            b.active,
            b.total,
            bytes(b.bytes_in),
            bytes(b.bytes_out),
            if b.connect_microseconds == 0 {
                "–".into()
            } else {
                format!("{} µs", b.connect_microseconds)
            },
            b.connect_errors,
            b.connect_timeouts,
            b.retries,
            b.hedges,
            b.resets,
            b.health.checks,
            b.health.failed_checks,
        );
    }
    h.push_str("</table>");
}

fn time(seconds: f64) -> String {
    let s = Duration::from_secs_f64(seconds.max(0.0)).as_secs();
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{:02}h", s / 86400, s % 86400 / 3600),
    }
}

/// Time of day, UTC.
fn clock(at: f64) -> String {
    let s = at as u64 % 86400;
    format!(
        "{:02}:{:02}:{:02}.{:03}",
        s / 3600,
        s % 3600 / 60,
        s % 60,
        (at.fract() * 1e3) as u64
    )
}

fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut v = n as f64;
    let mut u = 0;
    while v >= 1024.0 && u + 1 < units.len() {
        v /= 1024.0;
        u += 1;
    }
    if u == 0 {
        format!("{n} B")
    } else {
        format!("{v:.1} {}", units[u])
    }
}

fn escape(s: &str) -> String {
    s.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
