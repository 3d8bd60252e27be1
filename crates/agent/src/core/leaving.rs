//! Backends that were taken out of the configuration and still have connections: they get no new ones and are checked
//! until the last has ended, so that their clients are freed should they die.

use std::net::SocketAddr;
use std::sync::Arc;

use quorate_lb::config;
use quorate_lb::{AgentConfig, Input};

use super::Core;
use crate::proxy;

pub(super) struct Leaving {
    frontend: String,
    /// As the balancer sees it: without weight, and under a name of its own if another backend has its name now.
    config: config::Backend,
    backend: Arc<proxy::Backend>,
}

impl Core {
    /// Finds out which backends of today are not in `new`.
    pub(super) fn take_leave(&mut self, new: &AgentConfig) {
        let mut leaving = Vec::new();
        for f in &new.frontends {
            let Some(runtime) = self.proxy.frontend(&f.name) else {
                continue;
            };
            let set = runtime.set();
            // Those with a name of their own keep it: the one of that name in the set has no connections.
            let aside = self.leaving.iter().filter(|l| l.frontend == f.name);
            let aside = aside.filter(|l| l.config.name != l.backend.name);
            let aside = aside.map(|l| (&l.backend, l.config.name.clone()));
            let gone = |b: &&Arc<proxy::Backend>| f.backends.iter().all(|c| c.name != b.name || c.address != b.addr);
            let gone = set.backends().iter().filter(gone).map(|b| {
                let is_taken = f.backends.iter().any(|c| c.name == b.name);
                let name = if is_taken {
                    format!("{} ({})", b.name, b.addr)
                } else {
                    b.name.clone()
                };
                (b, name)
            });
            for (b, name) in aside.chain(gone).filter(|(b, _)| b.load.active() > 0) {
                leaving.push(Leaving {
                    frontend: f.name.clone(),
                    config: config::Backend {
                        weight: 0,
                        ..config::Backend::new(name, b.addr)
                    },
                    backend: Arc::clone(b),
                });
            }
        }
        self.leaving = leaving;
    }

    /// Lets go of those whose last connection has ended.
    pub(super) fn let_go(&mut self) {
        if self.draining || self.leaving.iter().all(|l| l.backend.load.active() > 0) {
            return;
        }
        self.leaving.retain(|l| l.backend.load.active() > 0);
        let served = self.served();
        self.index(&served);
        self.input(Input::Config {
            config: Box::new(served),
        });
    }

    /// The configuration with those that are leaving.
    pub(super) fn served(&self) -> AgentConfig {
        let mut config = self.config.clone();
        for f in &mut config.frontends {
            let leaving = self.leaving.iter().filter(|l| l.frontend == f.name);
            f.backends.extend(leaving.map(|l| l.config.clone()));
        }
        config
    }

    /// A backend of the proxy, as the balancer names it.
    pub(crate) fn proxied(&self, frontend: &str, name: &str, address: SocketAddr) -> Option<Arc<proxy::Backend>> {
        let is =
            |l: &&Leaving| (l.frontend.as_str(), l.config.name.as_str(), l.config.address) == (frontend, name, address);
        if let Some(l) = self.leaving.iter().find(is) {
            return Some(Arc::clone(&l.backend));
        }
        let set = self.proxy.frontend(frontend)?.set();
        let found = set.backends().iter().find(|b| b.name == name && b.addr == address);
        found.cloned()
    }
}
