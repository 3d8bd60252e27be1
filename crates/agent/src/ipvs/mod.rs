//! Virtual servers in the kernel's IPVS: level-triggered. [`Ipvs::reconcile`] compares the kernel's table, addresses and
//! rules with what is wanted and changes only what differs, so that calling it every second also heals what somebody
//! else deleted. Services of other programs (kube-proxy in ipvs mode) are never touched.

mod address;
mod codec;
mod connections;
mod diff;
mod nft;
mod settings;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, SocketAddr};

use quorate_lb::config::{IpvsService, Scheduler};
use quorate_lb::{Availability, BackendView, Reason};

use address::Addresses;
pub(crate) use address::INTERFACE;
use codec::{Command, Destination, Service};
use diff::{Change, Wanted};
use settings::Before;

use crate::bpf::preferred;
use crate::netlink::{Netlink, Protocol, generic};
use crate::sockdiag::{self, Victims};

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no IPVS.
    #[error("IPVS: {0}; load module ip_vs, or use access mode proxy or ebpf")]
    Unsupported(crate::netlink::Error),
    /// A request was refused.
    #[error("IPVS: {0}")]
    Netlink(#[from] crate::netlink::Error),
    /// A kernel setting could not be written.
    #[error("IPVS: writing {path}: {source}")]
    Setting {
        /// The setting's file.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// Masquerading rules could not be written.
    #[error("IPVS: masquerading rules: {reason}")]
    Rules {
        /// What nft said.
        reason: String,
    },
}

/// What a reconciliation did; empty when everything was as wanted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Report {
    /// Every change, in words.
    pub changes: Vec<String>,
    /// What could not be done; tried again next time.
    pub errors: Vec<String>,
}

impl Report {
    fn take(&mut self, outcome: Result<Vec<String>, Error>) {
        match outcome {
            Ok(changes) => self.changes.extend(changes),
            Err(error) => self.errors.push(error.to_string()),
        }
    }
}

/// The virtual servers of this machine.
#[derive(Debug)]
pub struct Ipvs {
    netlink: Netlink,
    family: u16,
    addresses: Addresses,
    rules: nft::Rules,
    /// Known once there is something to serve.
    before: Option<Before>,
    services: Vec<IpvsService>,
    backends: HashMap<String, Vec<BackendView>>,
    /// By virtual address and backend: whom it had when it was taken out of the table. The kernel forgets their connections
    /// then, but they do not know until they send something.
    abandoned: HashMap<(SocketAddr, SocketAddr), HashSet<SocketAddr>>,
}

/// Whether this kernel has IPVS (asking loads its module where that is possible); `Err` is the reason, to be said
/// beforehand.
pub fn supported() -> Result<(), Error> {
    let mut netlink = Netlink::open(Protocol::Generic)?;
    let family = generic::family_id(&mut netlink, codec::FAMILY).map_err(Error::Unsupported)?;
    netlink.query("asking for the IPVS version", codec::get_info(family), |_| {})?;
    Ok(())
}

/// Whether an agent's virtual servers are in the calling thread's network namespace. The interface is the last to go.
pub fn is_left() -> Result<bool, Error> {
    Ok(Addresses::open()?.are_left()?)
}

impl Ipvs {
    /// Opens the kernel's table in the calling thread's network namespace. Nothing is changed yet.
    pub fn open() -> Result<Self, Error> {
        let mut netlink = Netlink::open(Protocol::Generic)?;
        let family = generic::family_id(&mut netlink, codec::FAMILY).map_err(Error::Unsupported)?;
        Ok(Self {
            netlink,
            family,
            addresses: Addresses::open()?,
            rules: nft::Rules::default(),
            before: None,
            services: Vec::new(),
            backends: HashMap::new(),
            abandoned: HashMap::new(),
        })
    }

    /// Takes over the configured services; in force with the next [`Ipvs::reconcile`].
    pub fn configure(&mut self, services: &[IpvsService]) {
        self.services = services.to_vec();
        self.backends
            .retain(|name, _| services.iter().any(|service| service.name == *name));
    }

    /// Takes over the backend set of a service; in force with the next [`Ipvs::reconcile`]. A service whose set is not
    /// known yet is not touched: after a restart the kernel's table of before goes on serving.
    pub fn set_backends(&mut self, service: &str, backends: &[BackendView]) {
        self.backends.insert(service.to_owned(), backends.to_vec());
    }

    /// Makes the kernel's state as wanted. To be called after each change and at least once a second. Without any service
    /// nothing of ours is left.
    pub fn reconcile(&mut self) -> Report {
        let mut report = Report::default();
        let addresses: Vec<IpAddr> = self
            .services
            .iter()
            .map(|service| service.virtual_address.ip())
            .collect();
        let masqueraded: Vec<IpAddr> = self
            .services
            .iter()
            .filter(|service| service.masquerade)
            .map(|service| service.virtual_address.ip())
            .collect();
        if !self.services.is_empty() {
            self.prepare(&mut report);
        }
        // The table before the address: whoever can reach the address finds the service behind it.
        let stale = self.addresses.ours().unwrap_or_default();
        let known = report.errors.len();
        self.reconcile_table(&stale, &mut report);
        let mut kept = addresses.clone();
        if report.errors.len() > known {
            // What could not be deleted keeps its address, by which it is known as ours.
            kept.extend(stale.iter().filter(|one| !addresses.contains(one)));
        }
        let rules = self.rules.ensure(&masqueraded, &addresses);
        report.take(rules.map(|written| said(written, "wrote masquerading rules")));
        let note = self.before.as_ref().map(Before::note).unwrap_or_default();
        report.take(self.addresses.ensure(&kept, &note).map_err(Error::from));
        if self.services.is_empty() {
            self.leave(&mut report);
        }
        report
    }

    /// Frees local clients of a backend that is dead: their sockets are destroyed. Returns how many.
    /// Whom they are connected to is known from the kernel's table of connections, and from what was there when the backend
    /// was taken out.
    pub fn free_clients(&self, service: &str, backend: SocketAddr) -> Result<usize, Error> {
        let Some(service) = self.services.iter().find(|one| one.name == service) else {
            return Ok(0);
        };
        let table = connection_table();
        let mut sources = connections::clients(&table, service.virtual_address, backend);
        if let Some(abandoned) = self.abandoned.get(&(service.virtual_address, backend)) {
            // A port may have a new connection by now.
            let elsewhere = connections::elsewhere(&table, service.virtual_address, backend);
            sources.extend(abandoned.difference(&elsewhere));
        }
        if sources.is_empty() {
            return Ok(0);
        }
        let victims = Victims {
            destination: service.virtual_address,
            sources: Some(&sources),
        };
        let outcome = sockdiag::destroy_everywhere(&victims, &sockdiag::pod_namespaces());
        match outcome.errors.into_iter().next() {
            Some(error) if outcome.destroyed == 0 => Err(error.into()),
            _ => Ok(outcome.destroyed),
        }
    }

    /// Removes everything of ours, an earlier process's included: services, addresses, the interface, the rules. Kernel
    /// settings become what they were, unless others use IPVS.
    pub fn remove(&mut self) -> Report {
        self.services.clear();
        self.backends.clear();
        self.reconcile()
    }

    fn prepare(&mut self, report: &mut Report) {
        if self.before.is_none() {
            match self.addresses.noted() {
                Ok(noted) => self.before = Some(noted.map_or_else(Before::found, |note| Before::from_note(&note))),
                // Not to be changed before it is known what they were.
                Err(error) => return report.errors.push(error.to_string()),
            }
        }
        settings::ensure(report);
    }

    fn leave(&mut self, report: &mut Report) {
        nft::Rules::remove_leftovers();
        if !report.errors.is_empty() {
            return; // to be tried again, known by its interface
        }
        let before = match self.before.take() {
            Some(before) => Ok(before),
            None => self
                .addresses
                .noted()
                .map(|note| Before::from_note(&note.unwrap_or_default())),
        };
        match before {
            Ok(before) => before.put_back(report),
            Err(error) => return report.errors.push(error.to_string()),
        }
        let removed = self.addresses.remove_interface().map_err(Error::from);
        report.take(removed.map(|removed| said(removed, "removed the interface")));
    }

    fn reconcile_table(&mut self, stale: &[IpAddr], report: &mut Report) {
        let found = match self.table() {
            Ok(found) => found,
            Err(error) => return report.errors.push(error.to_string()),
        };
        let (services, backends) = (&self.services, &self.backends);
        let wanted: Vec<Wanted> = services
            .iter()
            .filter_map(|service| {
                let present = found.iter().find(|(one, _)| one.address == service.virtual_address);
                let present = present.map_or(&[][..], |(_, destinations)| destinations);
                Some(wanted(service, backends.get(&service.name)?, present))
            })
            .collect();
        // A service on an address that carries our mark is ours, unless it is configured and only its set is unknown.
        let ours = |address: SocketAddr| {
            stale.contains(&address.ip()) && services.iter().all(|service| service.virtual_address != address)
        };
        for change in diff::changes(&wanted, &found, ours) {
            match self.apply(&change) {
                Ok(()) => report.changes.push(describe(&change)),
                Err(error) => report.errors.push(error.to_string()),
            }
        }
    }

    /// All TCP services with their destinations, as the kernel has them.
    fn table(&mut self) -> Result<Vec<(Service, Vec<Destination>)>, Error> {
        let family = self.family;
        let services = self
            .netlink
            .dump("listing services", || codec::list_services(family), codec::read_service)?;
        let mut table = Vec::with_capacity(services.len());
        for service in services {
            let address = service.address;
            let destinations = self.netlink.dump(
                "listing destinations",
                || codec::list_destinations(family, address),
                |message| codec::read_destination(message, address),
            );
            match destinations {
                Ok(destinations) => table.push((service, destinations)),
                // Deleted by somebody in between.
                Err(error) if error.errno() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(table)
    }

    fn apply(&mut self, change: &Change) -> Result<(), Error> {
        let family = self.family;
        match change {
            Change::AddDestination(at, one) => drop(self.abandoned.remove(&(*at, one.address))),
            Change::DeleteDestination(at, one) => {
                let clients = connections::clients(&connection_table(), *at, one.address);
                self.abandoned.insert((*at, one.address), clients);
            }
            _ => {}
        }
        let message = match change {
            Change::AddService(service) => codec::service(family, Command::NewService, service),
            Change::EditService(service) => codec::service(family, Command::SetService, service),
            Change::DeleteService(service) => codec::service(family, Command::DeleteService, service),
            Change::AddDestination(at, one) => codec::destination(family, Command::NewDestination, *at, one),
            Change::EditDestination(at, one) => codec::destination(family, Command::SetDestination, *at, one),
            Change::DeleteDestination(at, one) => codec::destination(family, Command::DeleteDestination, *at, one),
        };
        Ok(self.netlink.request(&describe(change), message)?)
    }
}

/// A backend that is down has no entry: its connections are reset at their next packet. One that only takes no new
/// connections (drained, not ready, a backup not needed, one that refuses and may be finishing work) stays with weight 0, and
/// its connections go on. One that was not asked yet stays as it is, since an earlier agent has put it there, or has not.
fn wanted(service: &IpvsService, backends: &[BackendView], present: &[Destination]) -> Wanted {
    let chosen = preferred(backends);
    let weight = |address: SocketAddr| {
        chosen
            .iter()
            .find(|(one, _)| *one == address)
            .map_or(0, |(_, weight)| *weight)
    };
    let fits = |view: &&BackendView| view.address.is_ipv4() == service.virtual_address.is_ipv4();
    Wanted {
        service: Service {
            address: service.virtual_address,
            scheduler: scheduler(service.scheduler).to_owned(),
            flags: 0,
        },
        destinations: backends
            .iter()
            .filter(fits)
            .filter_map(|view| {
                let present = present.iter().find(|one| one.address == view.address);
                match (view.reason, view.availability) {
                    (Reason::Unchecked, _) => present.cloned(),
                    (Reason::Refused, _) => present
                        .filter(|one| one.active > 0)
                        .map(|one| Destination::new(one.address, 0)),
                    (_, Availability::Down) => None,
                    _ => Some(Destination::new(view.address, weight(view.address).into())),
                }
            })
            .collect(),
    }
}

fn scheduler(scheduler: Scheduler) -> &'static str {
    match scheduler {
        Scheduler::Rr => "rr",
        Scheduler::Wrr => "wrr",
        Scheduler::Lc => "lc",
        Scheduler::Wlc => "wlc",
        Scheduler::Sh => "sh",
        Scheduler::Mh => "mh",
    }
}

/// IPVS connections of the calling thread's namespace.
fn connection_table() -> String {
    std::fs::read_to_string("/proc/thread-self/net/ip_vs_conn").unwrap_or_default()
}

fn said(done: bool, what: &str) -> Vec<String> {
    if done { vec![what.to_owned()] } else { Vec::new() }
}

fn describe(change: &Change) -> String {
    match change {
        Change::AddService(service) => format!("adding service {} {}", service.address, service.scheduler),
        Change::EditService(service) => format!("editing service {} {}", service.address, service.scheduler),
        Change::DeleteService(service) => format!("deleting service {}", service.address),
        Change::AddDestination(at, one) => format!("adding {} weight {} to {at}", one.address, one.weight),
        Change::EditDestination(at, one) => format!("setting {} of {at} to weight {}", one.address, one.weight),
        Change::DeleteDestination(at, one) => format!("deleting {} from {at}", one.address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(address: &str, availability: Availability, weight: u16, backup: bool) -> BackendView {
        BackendView {
            name: address.to_owned(),
            address: address.parse().expect("address"),
            weight,
            max_connections: 0,
            backup,
            local: false,
            availability,
            reason: Reason::Ready,
        }
    }

    #[test]
    fn down_backends_have_no_entry_and_idle_ones_weight_zero() {
        let service: IpvsService = serde_json::from_value(serde_json::json!({
            "name": "api", "virtual": "10.9.9.9:6443", "backends": [], "scheduler": "lc",
        }))
        .expect("service");
        let backends = [
            view("10.0.0.1:6443", Availability::Up, 100, false),
            view("10.0.0.2:6443", Availability::Down, 100, false),
            view("10.0.0.3:6443", Availability::LastResort, 100, false),
            view("10.0.0.4:6443", Availability::Up, 0, false),
            view("10.0.0.5:6443", Availability::Up, 100, true),
        ];
        let want = wanted(&service, &backends, &[]);
        let list: Vec<(String, u32)> = want
            .destinations
            .iter()
            .map(|one| (one.address.to_string(), one.weight))
            .collect();
        let expected = [
            ("10.0.0.1:6443", 100),
            ("10.0.0.3:6443", 0),
            ("10.0.0.4:6443", 0),
            ("10.0.0.5:6443", 0),
        ];
        assert_eq!(list, expected.map(|(address, weight)| (address.to_owned(), weight)));
        assert_eq!(want.service.scheduler, "lc");
    }

    #[test]
    fn nothing_up_falls_back_on_the_last_resort() {
        let service: IpvsService =
            serde_json::from_value(serde_json::json!({"name": "api", "virtual": "10.9.9.9:6443", "backends": []}))
                .expect("service");
        let want = wanted(
            &service,
            &[view("10.0.0.3:6443", Availability::LastResort, 100, false)],
            &[],
        );
        assert_eq!(want.destinations[0].weight, 100);
    }

    #[test]
    fn one_that_refuses_stays_while_it_has_connections() {
        let service: IpvsService =
            serde_json::from_value(serde_json::json!({"name": "api", "virtual": "10.9.9.9:6443", "backends": []}))
                .expect("service");
        let backends = [BackendView {
            reason: Reason::Refused,
            ..view("10.0.0.1:6443", Availability::Down, 100, false)
        }];
        let mut present = [Destination::new(backends[0].address, 100)];
        assert_eq!(wanted(&service, &backends, &present).destinations, []);
        present[0].active = 1;
        let kept = wanted(&service, &backends, &present).destinations;
        assert_eq!(kept, [Destination::new(backends[0].address, 0)]);
    }

    #[test]
    fn what_was_not_asked_yet_stays_as_it_is() {
        let service: IpvsService =
            serde_json::from_value(serde_json::json!({"name": "api", "virtual": "10.9.9.9:6443", "backends": []}))
                .expect("service");
        let unchecked = |address| BackendView {
            reason: Reason::Unchecked,
            ..view(address, Availability::Down, 100, false)
        };
        let backends = [
            unchecked("10.0.0.1:6443"),
            unchecked("10.0.0.2:6443"),
            view("10.0.0.3:6443", Availability::Down, 100, false),
        ];
        let present =
            ["10.0.0.1:6443", "10.0.0.3:6443"].map(|text| Destination::new(text.parse().expect("address"), 7));
        assert_eq!(wanted(&service, &backends, &present).destinations, present[..1]);
    }
}
