//! What was taken out of the configuration and still has clients, backends and whole frontends: it gets no new ones and is
//! checked until the last has gone, so that they are freed should a backend die.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use quorate_lb::config;
use quorate_lb::{AgentConfig, Input};

use super::{Core, options};
use crate::health::Method;
use crate::proxy;

/// A worker may accept one more client, or have one choose a backend, until it has heard of the change.
const AT_LEAST: Duration = Duration::from_secs(1);

/// A backend.
pub(super) struct Leaving {
    /// The proxy's name of it.
    frontend: String,
    /// As the balancer sees it: without weight, and under a name of its own if another backend has its name now.
    config: config::Backend,
    backend: Arc<proxy::Backend>,
    since: Instant,
}

impl Leaving {
    fn is_in_use(&self) -> bool {
        self.backend.load.active() > 0 || self.since.elapsed() < AT_LEAST
    }
}

/// A frontend. All its backends stay: each is a witness against the others, and clients may still be waiting for one.
pub(super) struct Closing {
    /// As the balancer sees it: without listeners, and under a name of its own if another set has its name now.
    pub(super) config: config::Frontend,
    frontend: Arc<proxy::Frontend>,
    pub(super) how: Arc<Method>,
    since: Instant,
}

impl Closing {
    fn is_in_use(&self) -> bool {
        self.frontend.counters.active.load(Relaxed) > 0 || self.since.elapsed() < AT_LEAST
    }
}

impl Core {
    /// Finds out what of today is not in `new`, and closes its listeners.
    pub(super) fn take_leave(&mut self, new: &AgentConfig) {
        self.close_frontends(new);
        let closing = self.closing.iter().map(|c| (&c.config, &c.frontend));
        let open = new.frontends.iter();
        let open = open.filter_map(|f| Some((f, self.proxy.frontend(&f.name)?)));
        let mut leaving = Vec::new();
        for (f, runtime) in open.chain(closing) {
            let set = runtime.set();
            // Those with a name of their own keep it: the one of that name in the set has no connections.
            let aside = self.leaving.iter().filter(|l| l.frontend == runtime.name);
            let aside: Vec<_> = aside.filter(|l| l.config.name != l.backend.name).collect();
            let gone = |b: &&Arc<proxy::Backend>| {
                f.backends.iter().all(|c| c.name != b.name || c.address != b.addr)
                    && aside.iter().all(|l| l.config.name != b.name)
            };
            let gone = set.backends().iter().filter(gone).map(|b| {
                let is_taken = f.backends.iter().any(|c| c.name == b.name);
                let name = if is_taken {
                    format!("{} ({})", b.name, b.addr)
                } else {
                    b.name.clone()
                };
                (b, name)
            });
            let aside = aside.iter().map(|l| (&l.backend, l.config.name.clone()));
            for (b, name) in aside.chain(gone) {
                leaving.push(Leaving {
                    frontend: runtime.name.clone(),
                    config: config::Backend {
                        weight: 0,
                        ..config::Backend::new(name, b.addr)
                    },
                    backend: Arc::clone(b),
                    since: Instant::now(),
                });
            }
        }
        self.leaving = leaving;
    }

    fn close_frontends(&mut self, new: &AgentConfig) {
        let is_gone = |name: &str| new.frontends.iter().all(|n| n.name != name);
        self.closing.retain(|c| is_gone(&c.frontend.name));
        for f in self.config.frontends.iter().filter(|f| is_gone(&f.name)) {
            self.proxy.apply(&f.name, &[], &options(f), &mut Vec::new());
            if let (Some(frontend), Some(how)) = (self.proxy.frontend(&f.name), self.methods.get(&f.name)) {
                self.closing.push(Closing {
                    config: config::Frontend {
                        listen: Vec::new(),
                        ..f.clone()
                    },
                    frontend: Arc::clone(frontend),
                    how: Arc::clone(how),
                    since: Instant::now(),
                });
            }
        }
        for c in &mut self.closing {
            c.config.name.clone_from(&c.frontend.name);
            while new.backend_sets().any(|s| s.name == c.config.name) {
                c.config.name += " (removed)";
            }
        }
    }

    /// Lets go of those whose last connection has ended.
    pub(super) fn let_go(&mut self) {
        let stay = self.leaving.iter().all(Leaving::is_in_use) && self.closing.iter().all(Closing::is_in_use);
        if self.draining || stay {
            return;
        }
        self.leaving.retain(Leaving::is_in_use);
        for c in self.closing.extract_if(.., |c| !c.is_in_use()) {
            self.proxy.remove(&c.frontend.name);
        }
        let served = self.served();
        self.index(&served);
        self.input(Input::Config {
            config: Box::new(served),
        });
    }

    /// The configuration with what is leaving.
    pub(super) fn served(&self) -> AgentConfig {
        let leaving_of = |name: &str| {
            let of = self.leaving.iter().filter(move |l| l.frontend == name);
            of.map(|l| l.config.clone()).collect::<Vec<_>>()
        };
        let mut config = self.config.clone();
        for f in &mut config.frontends {
            f.backends.extend(leaving_of(&f.name));
        }
        for c in &self.closing {
            let mut closing = c.config.clone();
            closing.backends.extend(leaving_of(&c.frontend.name));
            config.frontends.push(closing);
        }
        config
    }

    /// A frontend of the proxy, as the balancer names it; None for sets that the kernel serves.
    pub(crate) fn runtime(&self, set: &str) -> Option<&Arc<proxy::Frontend>> {
        if let Some(c) = self.closing.iter().find(|c| c.config.name == set) {
            return Some(&c.frontend);
        }
        let is_open = self.config.frontends.iter().any(|f| f.name == set);
        self.proxy.frontend(set).filter(|_| is_open)
    }

    /// A backend of the proxy, as the balancer names it.
    pub(crate) fn proxied(&self, set: &str, name: &str, address: SocketAddr) -> Option<Arc<proxy::Backend>> {
        let runtime = self.runtime(set)?;
        let is =
            |l: &&Leaving| (&l.frontend, l.config.name.as_str(), l.config.address) == (&runtime.name, name, address);
        if let Some(l) = self.leaving.iter().find(is) {
            return Some(Arc::clone(&l.backend));
        }
        let set = runtime.set();
        let found = set.backends().iter().find(|b| b.name == name && b.addr == address);
        found.cloned()
    }
}
