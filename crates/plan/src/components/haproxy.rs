//! haproxy ≥ 2.4 in the place of the agent's proxy (`balancer: haproxy`), from the same values.
//!
//! The program is the distribution's, as are its updates; configuration and unit are Quorate's own, beside whatever the
//! distribution's `haproxy.service` does. Keywords: <https://docs.haproxy.org/2.6/configuration.html>.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use quorate_facts::{HostFacts, SecretId};
use quorate_lb::config::{AgentConfig, Algorithm, Backend, Frontend, Health, HealthKind, Span};

use crate::components::unit::{Flags, Unit};
use crate::model::Content;
use crate::profile::Profile;
use crate::secrets;

pub(crate) const UNIT: &str = "haproxy-quorate.service";
pub(crate) const CONFIG: &str = "/etc/quorate/haproxy.cfg";
/// Apart from the rest, which may be read and shown: it holds the password.
pub(crate) const STATISTICS: &str = "/etc/quorate/haproxy-statistics.cfg";
/// The distributions' packages make it.
pub(crate) const USER: &str = "haproxy";
/// State of this machine's haproxy, for this machine only: `/usable/FRONTEND` is asked by keepalived, `/metrics` by
/// Prometheus. The agent, which may run beside it, has 9445.
pub(crate) const LOCAL_STATE: &str = "127.0.0.1:9446";

/// What haproxy needs beside the connections it carries: listeners, checks, logs.
const SPARE_FILES: u64 = 400;

/// Where the distribution put a program of the balancer; preflight has refused machines without it.
pub(crate) fn program(host: &HostFacts, name: &str) -> String {
    let found = host.programs.get(name).cloned().flatten();
    found.unwrap_or_else(|| format!("/usr/sbin/{name}"))
}

pub(crate) fn config(work: &AgentConfig, profile: &Profile) -> String {
    let mut text = global(work, profile);
    for frontend in &work.frontends {
        proxy(&mut text, frontend);
    }
    state(&mut text, &work.frontends);
    text
}

/// `None`: no page for people is wanted.
pub(crate) fn statistics(work: &AgentConfig) -> Option<Content> {
    let stats = work.stats.as_ref()?;
    let login = stats.login.as_ref()?;
    let password = secrets::mark(SecretId::StatisticsPassword);
    let template = format!(
        "# Written by quorate. Holds a password: mode 0600.\n\
         listen statistics\n    \
         bind {}\n    \
         mode http\n    \
         # A page that is read by people: its own limit, so that it never takes connections from the API.\n    \
         maxconn 50\n    \
         timeout client 30s\n    \
         timeout server 30s\n    \
         stats enable\n    \
         stats uri /\n    \
         stats refresh 5s\n    \
         stats show-legends\n    \
         stats auth {}:{password}\n",
        bind(stats.listen),
        login.user,
    );
    Some(Content::Template {
        template,
        secrets: vec![SecretId::StatisticsPassword],
    })
}

pub(crate) fn unit(work: &AgentConfig, host: &HostFacts, profile: &Profile) -> String {
    let haproxy = program(host, "haproxy");
    let mut files = format!("-f {CONFIG}");
    if statistics(work).is_some() {
        let _ = write!(files, " -f {STATISTICS}");
    }
    Unit {
        description: "haproxy: balancing of the Kubernetes API",
        documentation: "https://docs.haproxy.org/",
        after: &[],
        program: format!("{haproxy} -Ws {files} -p /run/quorate/haproxy.pid"),
        flags: Flags::default(),
        notify: true,
        service: vec![
            format!("ExecStartPre={haproxy} -c -q {files}"),
            format!("ExecReload={haproxy} -c -q {files}"),
            "ExecReload=/bin/kill -USR2 $MAINPID".into(),
            "RuntimeDirectory=quorate".into(),
            "RuntimeDirectoryPreserve=yes".into(),
            "KillMode=mixed".into(),
            "SuccessExitStatus=143".into(),
            "TimeoutStopSec=10".into(),
        ],
        oom_score: -999,
        files: files_for(connections(work)),
    }
    .render(profile)
}

fn global(work: &AgentConfig, profile: &Profile) -> String {
    // Two descriptors per connection: client and server.
    let most = profile
        .file_limit
        .map_or(u64::MAX, |limit| limit.saturating_sub(SPARE_FILES) / 2);
    let maxconn = connections(work).min(most);
    format!(
        "# Written by quorate; changed by `quorate apply`.\n\
         global\n    \
         log stderr format short local0 notice\n    \
         # Ports are bound as root; nothing after that needs to be.\n    \
         user {USER}\n    \
         group {USER}\n    \
         # All proxies below together, within the open files this machine allows.\n    \
         maxconn {maxconn}\n    \
         # After a reload the old process may still carry watches, which never end by themselves.\n    \
         hard-stop-after 10m\n    \
         # Checks of several servers at the same instant would be answered late at the same instant.\n    \
         spread-checks 5\n\
         \n\
         defaults\n    \
         mode tcp\n    \
         log global\n    \
         # Health checks of others and port scans are no news.\n    \
         option dontlognull\n    \
         # Nodes and clients that lost power never say goodbye: 30 s idle, 3 probes 10 s apart, then gone.\n    \
         option clitcpka\n    \
         clitcpka-idle 30s\n    \
         clitcpka-intvl 10s\n    \
         clitcpka-cnt 3\n    \
         option srvtcpka\n    \
         srvtcpka-idle 30s\n    \
         srvtcpka-intvl 10s\n    \
         srvtcpka-cnt 3\n    \
         # A server that refuses is not asked again; the next one is, before the client notices.\n    \
         retries 3\n    \
         option redispatch 1\n    \
         # Above the kernel's first retransmission (1 s), below the patience of clients (5 s).\n    \
         timeout connect 1500ms\n    \
         # Waiting for a free slot of a server.\n    \
         timeout queue 5s\n    \
         # `kubectl exec` and `logs -f` may say nothing for hours; kubelet's own limit for them is 4 h.\n    \
         timeout client 4h\n    \
         timeout server 4h\n    \
         # One half of a connection closed: the other side has had its answer.\n    \
         timeout client-fin 30s\n    \
         timeout server-fin 30s\n"
    )
}

fn proxy(text: &mut String, frontend: &Frontend) {
    let name = &frontend.name;
    let _ = writeln!(text, "\nfrontend {name}");
    for listen in &frontend.listen {
        let _ = writeln!(text, "    bind {}", bind(*listen));
    }
    let _ = writeln!(text, "    maxconn {}", frontend.max_connections);
    let _ = writeln!(text, "    default_backend {name}\n\nbackend {name}");
    let balance = match frontend.balance {
        // Watches live for minutes: counting connections keeps servers even, taking turns does not.
        Algorithm::LeastConnections => "leastconn",
        Algorithm::RoundRobin => "roundrobin",
        Algorithm::Source => "source",
    };
    let _ = writeln!(text, "    balance {balance}");
    check(text, &frontend.health);
    server_defaults(text, frontend);
    for backend in &frontend.backends {
        server(text, backend, &frontend.health);
    }
}

fn check(text: &mut String, health: &Health) {
    match health.kind {
        HealthKind::Https | HealthKind::Http => {
            let host = health.server_name.as_deref().unwrap_or("kubernetes");
            let _ = writeln!(
                text,
                "    # An open port says nothing: only a server that is ready for requests gets any.\n    \
                 option httpchk\n    \
                 http-check send meth GET uri {} ver HTTP/1.1 hdr Host {host}\n    \
                 http-check expect status 200",
                health.path
            );
        }
        HealthKind::Tcp | HealthKind::None => {}
    }
    let _ = writeln!(text, "    timeout check {}", ms(health.timeout));
}

fn server_defaults(text: &mut String, frontend: &Frontend) {
    let health = &frontend.health;
    let mut line = format!(
        "    default-server inter {} fastinter {} downinter {} rise {} fall {}",
        ms(health.interval),
        ms(health.fast_interval),
        ms(health.interval),
        health.rise,
        health.fall
    );
    if frontend.slow_start != Span::ZERO {
        // It comes back with empty caches.
        let _ = write!(line, " slowstart {}", ms(frontend.slow_start));
    }
    let _ = writeln!(
        text,
        "    # Clients of a dead server are told at once instead of waiting for their own time-outs. A connection that\n    \
         # fails puts a server in doubt, which is checked every {} then.\n\
         {line} on-marked-down shutdown-sessions observe layer4 error-limit 1 on-error fastinter",
        ms(health.fast_interval)
    );
}

fn server(text: &mut String, backend: &Backend, health: &Health) {
    let mut line = format!("    server {} {}", backend.name, backend.address);
    if health.kind != HealthKind::None {
        line.push_str(" check");
    }
    if health.kind == HealthKind::Https {
        line.push_str(" check-ssl check-alpn http/1.1");
        match (&health.ca, &health.server_name) {
            (Some(ca), name) => {
                let _ = write!(line, " verify required ca-file {}", ca.display());
                if let Some(name) = name {
                    let _ = write!(line, " check-sni {name} verifyhost {name}");
                }
            }
            (None, _) => line.push_str(" verify none"),
        }
    }
    let _ = write!(line, " weight {}", backend.weight);
    if backend.max_connections > 0 {
        let _ = write!(line, " maxconn {}", backend.max_connections);
    }
    if backend.backup {
        line.push_str(" backup");
    }
    let _ = writeln!(text, "{line}");
}

fn state(text: &mut String, frontends: &[Frontend]) {
    let _ = write!(
        text,
        "\n# For this machine only: keepalived asks whether there is a path, Prometheus for numbers.\n\
         frontend state\n    \
         bind {LOCAL_STATE}\n    \
         mode http\n    \
         maxconn 50\n    \
         timeout client 5s\n    \
         http-request use-service prometheus-exporter if {{ path /metrics }}\n"
    );
    for Frontend { name, .. } in frontends {
        let _ = writeln!(
            text,
            "    http-request return status 200 content-type text/plain string ok if {{ path /usable/{name} }} {{ nbsrv({name}) ge 1 }}"
        );
    }
    text.push_str("    http-request return status 503 content-type text/plain string down\n");
}

/// `transparent`: an address of a VIP can be bound before this machine holds it.
fn bind(listen: SocketAddr) -> String {
    let own = listen.ip().is_unspecified() || listen.ip().is_loopback();
    match listen.ip() {
        // An IPv6 wildcard would take the IPv4 one along, which may be somebody else's.
        IpAddr::V6(ip) if ip.is_unspecified() => format!("{listen} v6only"),
        _ if own => listen.to_string(),
        _ => format!("{listen} transparent"),
    }
}

fn connections(work: &AgentConfig) -> u64 {
    let proxied: u64 = work
        .frontends
        .iter()
        .map(|frontend| u64::from(frontend.max_connections))
        .sum();
    // The pages of statistics and state.
    proxied + 100
}

fn files_for(connections: u64) -> u64 {
    2 * connections + SPARE_FILES
}

fn ms(span: Span) -> String {
    format!("{}ms", std::time::Duration::from(span).as_millis())
}
