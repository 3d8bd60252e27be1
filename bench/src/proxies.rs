//! The two contestants: started alike, pinned alike, measured alike.

use std::fmt::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

/// Connections a proxy is configured for.
pub(crate) const MAX_CONNECTIONS: usize = 9_900;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Quorate,
    Haproxy,
}

/// How backends are checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Checks {
    Tcp,
    /// GET /readyz every second, every 100 ms when in doubt.
    Http,
}

/// A running proxy. Ends with its owner.
pub(crate) struct Proxy {
    child: Child,
    pub(crate) addr: SocketAddr,
}

impl Proxy {
    /// Starts a proxy in front of `backends`, pinned to CPU `cpu`.
    pub(crate) fn start(
        kind: Kind,
        dir: &Path,
        backends: &[SocketAddr],
        checks: Checks,
        cpu: usize,
    ) -> anyhow::Result<Self> {
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new("taskset");
        command.args(["-c", &cpu.to_string()]);
        match kind {
            Kind::Quorate => {
                let path = dir.join("agent.yaml");
                std::fs::write(&path, agent_config(dir, addr, backends, checks))?;
                command
                    .arg(std::env::current_exe()?)
                    .args(["agent", "--config"])
                    .arg(path);
            }
            Kind::Haproxy => {
                let path = dir.join("haproxy.cfg");
                std::fs::write(&path, haproxy_config(addr, backends, checks))?;
                command.arg(haproxy()).args(["-db", "-q", "-f"]).arg(path);
            }
        }
        let log = std::fs::File::create(dir.join(format!("{kind:?}.log")))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {kind:?}"))?;
        let mut proxy = Self { child, addr };
        let end = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(addr).is_err() {
            ensure!(
                proxy.child.try_wait()?.is_none(),
                "{kind:?} ended; see {}",
                dir.display()
            );
            ensure!(Instant::now() < end, "{kind:?} does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(proxy)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// CPU time used by all its threads.
    pub(crate) fn cpu(&self) -> Duration {
        let dir = format!("/proc/{}/task", self.pid());
        let ns: u64 = std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|t| std::fs::read_to_string(t.path().join("schedstat")).ok())
            .filter_map(|s| s.split(' ').next()?.parse::<u64>().ok())
            .sum();
        Duration::from_nanos(ns)
    }

    /// Resident memory, bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        status
            .lines()
            .find_map(|l| l.strip_prefix("VmRSS:"))
            .and_then(|l| l.trim().split(' ').next()?.parse::<u64>().ok())
            .unwrap_or(0)
            * 1024
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The distribution's, or the one that HAPROXY names.
fn haproxy() -> std::ffi::OsString {
    std::env::var_os("HAPROXY").unwrap_or_else(|| "haproxy".into())
}

/// Version line of haproxy.
pub(crate) fn haproxy_version() -> anyhow::Result<String> {
    let out = Command::new(haproxy())
        .arg("-v")
        .output()
        .context("haproxy is not installed (apt-get install haproxy)")?;
    Ok(String::from_utf8_lossy(&out.stdout)
        .lines()
        .next()
        .unwrap_or_default()
        .to_owned())
}

fn agent_config(dir: &Path, addr: SocketAddr, backends: &[SocketAddr], checks: Checks) -> String {
    let mut text = format!(
        "apiVersion: quorate.dev/v1\nkind: Agent\nnode: bench\nadmin: {{socket: {}/agent.sock}}\n\
         frontends:\n- name: api\n  listen: [\"{addr}\"]\n  health: {{kind: {}, path: /readyz}}\n  backends:\n",
        dir.display(),
        if checks == Checks::Http { "http" } else { "tcp" },
    );
    for (i, b) in backends.iter().enumerate() {
        let _ = writeln!(text, "  - {{name: b{i}, address: \"{b}\"}}");
    }
    text
}

fn haproxy_config(addr: SocketAddr, backends: &[SocketAddr], checks: Checks) -> String {
    let mut text = format!(
        "global\n  nbthread 1\n  maxconn {MAX_CONNECTIONS}\n  maxpipes 64\ndefaults\n  mode tcp\n  option splice-auto\n  option clitcpka\n  \
         option srvtcpka\n  option redispatch\n  retries 3\n  timeout connect 1s\n  timeout client 1h\n  timeout server 1h\n  \
         timeout queue 5s\n  timeout check 500ms\n\
         listen api\n  bind {addr}\n  balance leastconn\n{}  default-server inter 1s fastinter 100ms fall 3 rise 2 \
         on-marked-down shutdown-sessions observe layer4 error-limit 1 on-error fastinter\n",
        if checks == Checks::Http {
            "  option httpchk GET /readyz\n"
        } else {
            ""
        },
    );
    for (i, b) in backends.iter().enumerate() {
        let _ = writeln!(text, "  server b{i} {b} check");
    }
    text
}
