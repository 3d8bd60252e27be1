//! When frontends listen: each as soon as it has somewhere to send its clients, and every second again where it could
//! not be bound.
//!
//! The virtual routers that track a frontend hear of its path only while clients of their VIPs are let in: a VIP in front
//! of no listener is worse than one on another machine.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use quorate_lb::AgentConfig;
use quorate_lb::config::Frontend;

use super::{Core, options};
use crate::proxy::Listening;

/// How long the first checks may keep a listener waiting.
const FIRST_CHECKS: Duration = Duration::from_millis(1500);
/// When an address that could not be bound is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Frontends that do not listen, or not everywhere.
pub(super) struct Doors {
    closed: BTreeMap<String, Closed>,
    /// Sockets of a predecessor, and who is told when every frontend was tried: what could not be bound.
    inherited: Vec<Listening>,
    tell: Option<SyncSender<Vec<String>>>,
    /// When the first checks are waited for no longer.
    latest: Instant,
    again: Instant,
}

struct Closed {
    /// Not tried yet.
    awaited: bool,
    failed: Vec<(SocketAddr, String)>,
    /// Clients of a VIP that tracks the frontend are not let in.
    in_vain: bool,
}

impl Doors {
    pub(super) fn new(config: &AgentConfig, inherited: Vec<Listening>, tell: SyncSender<Vec<String>>) -> Self {
        let awaited = |f: &Frontend| {
            let closed = Closed {
                awaited: true,
                failed: Vec::new(),
                in_vain: true,
            };
            (f.name.clone(), closed)
        };
        let now = Instant::now();
        Self {
            closed: config.frontends.iter().map(awaited).collect(),
            inherited,
            tell: Some(tell),
            latest: now + FIRST_CHECKS,
            again: now,
        }
    }

    /// When to look again at the latest.
    pub(super) fn due(&self) -> Option<Instant> {
        let each = self.closed.values();
        each.map(|c| if c.awaited { self.latest } else { self.again }).min()
    }

    /// Nothing is opened any more.
    pub(super) fn lock(&mut self) {
        self.closed.clear();
        self.inherited.clear();
    }
}

impl Core {
    /// Lets clients in where it is time to.
    pub(super) fn open_doors(&mut self) {
        if self.doors.closed.is_empty() && self.doors.tell.is_none() {
            return;
        }
        let now = Instant::now();
        let usable: Vec<String> = self.balancer.paths().filter(|p| p.1).map(|p| p.0.to_owned()).collect();
        let doors = &self.doors;
        let is_due = |f: &&Frontend| {
            doors.closed.get(&f.name).is_some_and(|c| match c.awaited {
                true => now >= doors.latest || usable.contains(&f.name),
                false => now >= doors.again,
            })
        };
        let due: Vec<Frontend> = self.config.frontends.iter().filter(is_due).cloned().collect();
        for f in &due {
            self.listen(f);
        }
        if !due.is_empty() {
            self.doors.again = now + AGAIN;
            self.tell_paths();
        }
        if self.doors.closed.values().all(|c| !c.awaited)
            && let Some(tell) = self.doors.tell.take()
        {
            // Listeners of frontends that are gone close here.
            self.doors.inherited.clear();
            let _ = tell.send(self.not_listening());
        }
    }

    /// Listens as a new configuration says; frontends whose first checks are awaited go on waiting.
    pub(super) fn reopen(&mut self) {
        let config = self.config.clone();
        self.doors
            .closed
            .retain(|name, _| config.frontends.iter().any(|f| f.name == *name));
        for f in &config.frontends {
            if self.doors.closed.get(&f.name).is_none_or(|c| !c.awaited) {
                self.listen(f);
            }
        }
        self.doors.again = Instant::now() + AGAIN;
        self.tell_paths();
    }

    /// Whether clients of the VIPs that track a frontend are let in. True of sets that the kernel serves.
    pub(super) fn lets_in(&self, name: &str) -> bool {
        self.doors.closed.get(name).is_none_or(|c| !c.in_vain)
    }

    /// Addresses of a frontend that could not be bound.
    pub(crate) fn unbound(&self, name: &str) -> Vec<String> {
        let closed = self.doors.closed.get(name);
        let failed = closed.map(|c| c.failed.as_slice()).unwrap_or_default();
        failed.iter().map(|(addr, _)| addr.to_string()).collect()
    }

    /// What could not be bound and why, for people.
    pub(super) fn not_listening(&self) -> Vec<String> {
        let each = self.doors.closed.iter().flat_map(|(name, c)| {
            let line = move |(addr, e): &(SocketAddr, String)| format!("frontend {name}: cannot listen on {addr}: {e}");
            c.failed.iter().map(line)
        });
        each.collect()
    }

    fn listen(&mut self, f: &Frontend) {
        let refused = self
            .proxy
            .apply(&f.name, &f.listen, &options(f), &mut self.doors.inherited);
        let failed: Vec<_> = refused.into_iter().map(|(addr, e)| (addr, e.to_string())).collect();
        let known = self.doors.closed.remove(&f.name).map_or(Vec::new(), |c| c.failed);
        for (addr, error) in failed.iter().filter(|one| !known.contains(one)) {
            tracing::error!(frontend = f.name, %addr, error, "cannot listen; tried again every second");
            self.note(format!("{}: cannot listen on {addr}: {error}", f.name));
        }
        for (addr, _) in known
            .iter()
            .filter(|(addr, _)| f.listen.contains(addr) && failed.iter().all(|(other, _)| other != addr))
        {
            tracing::info!(frontend = f.name, %addr, "listens now");
            self.note(format!("{}: listens on {addr} now", f.name));
        }
        if !failed.is_empty() {
            let needed = needed(&self.config, f);
            let closed = Closed {
                awaited: false,
                in_vain: failed.iter().any(|(addr, _)| needed.contains(addr)),
                failed,
            };
            self.doors.closed.insert(f.name.clone(), closed);
        }
    }
}

/// Where clients of the VIPs that track the frontend arrive; everywhere, if that cannot be told. An address that no VIP
/// needs ([::] where there is no IPv6) must not keep all of them away.
fn needed(config: &AgentConfig, f: &Frontend) -> Vec<SocketAddr> {
    let tracking = config
        .vrrp
        .iter()
        .filter(|v| v.track.frontend.as_ref() == Some(&f.name));
    let vips: Vec<_> = tracking.flat_map(|v| &v.vips).map(|v| v.address).collect();
    let serves = |addr: &&SocketAddr| {
        let same_family = |vip: &std::net::IpAddr| vip.is_ipv4() == addr.is_ipv4();
        vips.contains(&addr.ip()) || addr.ip().is_unspecified() && vips.iter().any(same_family)
    };
    let needed: Vec<_> = f.listen.iter().filter(serves).copied().collect();
    if needed.is_empty() { f.listen.clone() } else { needed }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::super::{CoreSender, Start, start};
    use super::*;

    /// Frontends by name: where each listens and where its backend is.
    fn run(frontends: &[(&str, SocketAddr, SocketAddr)]) -> (CoreSender, std::sync::mpsc::Receiver<Vec<String>>) {
        let mut config = AgentConfig::new("n");
        for (name, listen, backend) in frontends {
            let text = format!("{{name: {name}, listen: ['{listen}'], backends: [{{name: b, address: '{backend}'}}]}}");
            config.frontends.push(serde_saphyr::from_str(&text).unwrap());
        }
        let (core, _, listens) = start(Start {
            config,
            inherited: Vec::new(),
            workers: 1,
            open_files: 1024,
            kernel_sets: Vec::new(),
            seed: 1,
            boot: 1,
        })
        .unwrap();
        (core, listens)
    }

    fn free() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + Duration::from_secs(5);
        while !holds() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn a_frontend_whose_address_is_taken_has_no_path_until_it_is_free() {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let somebody = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = somebody.local_addr().unwrap();
        let (core, listens) = run(&[("api", taken, backend.local_addr().unwrap())]);
        assert!(!core.ask(|c| c.lets_in("api")).unwrap(), "before it is tried");
        assert_eq!(listens.recv().unwrap().len(), 1);
        let state = || core.ask(|c| (c.lets_in("api"), c.unbound("api"), c.trouble())).unwrap();
        let (path, unbound, trouble) = state();
        assert_eq!((path, unbound), (false, vec![taken.to_string()]));
        assert!(trouble.unwrap().contains("cannot listen"));
        drop(somebody);
        until("it is tried again", || state() == (true, Vec::new(), None));
        TcpStream::connect(taken).unwrap();
        core.ask(Core::stop);
    }

    #[test]
    fn a_frontend_does_not_wait_for_the_backends_of_another() {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let (api, other) = (free(), free());
        let begun = Instant::now();
        let (core, listens) = run(&[("api", api, backend.local_addr().unwrap()), ("other", other, free())]);
        until("it listens", || TcpStream::connect(api).is_ok());
        assert!(begun.elapsed() < FIRST_CHECKS, "{:?}", begun.elapsed());
        assert!(core.ask(|c| c.lets_in("api")).unwrap());
        assert!(TcpStream::connect(other).is_err());
        assert_eq!(listens.recv().unwrap(), Vec::<String>::new());
        TcpStream::connect(other).unwrap();
        core.ask(Core::stop);
    }

    #[test]
    fn only_the_addresses_its_vips_need_keep_a_frontend_without_a_path() {
        let text = "{apiVersion: quorate.dev/v1, kind: Agent, node: n, vrrp: [{name: api, vrid: 51, interface: eth0, \
                    source: 10.0.0.1, vips: [10.0.0.100], peers: [10.0.0.2], track: {frontend: api}}], frontends: \
                    [{name: api, listen: ['0.0.0.0:8443', '[::]:8443', '127.0.0.1:6444'], backends: []}, \
                    {name: other, listen: ['127.0.0.1:7443'], backends: []}]}";
        let config: AgentConfig = serde_saphyr::from_str(text).unwrap();
        let addresses = |at: usize| -> Vec<String> {
            let needed = needed(&config, &config.frontends[at]);
            needed.iter().map(ToString::to_string).collect()
        };
        assert_eq!(addresses(0), ["0.0.0.0:8443"]);
        assert_eq!(addresses(1), ["127.0.0.1:7443"]);
    }
}
