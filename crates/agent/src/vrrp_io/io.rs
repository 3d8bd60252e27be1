//! Everything the VRRP thread holds of the kernel: sockets per interface, address requests, event subscriptions.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use quorate_lb::config::Vip;
use quorate_lb::{AgentConfig, Input, VipChange};

use super::lease::Lease;
use super::sys::{self, Pair, Waker};
use super::{Counters, Error};
use crate::arp::{Announcer, Watcher};
use crate::netlink::route::{Event, Link, Monitor, Routes};

/// Longest VRRP datagram: 255 IPv6 addresses (4 KiB) with trailer, and the IPv4 header.
const DATAGRAM_MAX: usize = 8192;
/// Datagrams read per wake-up and socket, so that a flood on one interface cannot starve the timers.
const READ_BURST: usize = 64;

/// What the kernel told.
#[derive(Debug)]
pub(super) enum Seen {
    Input(Input),
    LinksChanged,
    Failed { what: String, error: String },
}

/// What virtual routers must know of their interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkState {
    /// With carrier.
    pub(super) up: bool,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) missing: Vec<IpAddr>,
}

/// Sockets of one interface; they are gone while the interface is.
#[derive(Debug)]
struct Interface {
    name: String,
    wants: Wants,
    link: Option<Link>,
    open: Option<Open>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wants {
    v4: bool,
    v6: bool,
    sources: BTreeSet<IpAddr>,
    vips: BTreeSet<IpAddr>,
}

#[derive(Debug)]
struct Open {
    v4: Option<Pair>,
    v6: Option<Pair>,
    watcher: Watcher,
}

#[derive(Debug)]
pub(super) struct Kernel {
    routes: Routes,
    monitor: Monitor,
    announcer: Announcer,
    interfaces: Vec<Interface>,
    /// VIPs we added and have not removed.
    held: HashMap<IpAddr, Vip>,
    lease: Lease,
    counters: Arc<Counters>,
    /// Kept between wake-ups so that no memory is allocated in the common case.
    seen: Vec<Seen>,
    buffer: Vec<u8>,
}

impl Kernel {
    pub(super) fn open(config: &AgentConfig, counters: Arc<Counters>) -> Result<Self, Error> {
        let announcer = Announcer::open().map_err(|source| Error::System {
            operation: "opening a packet socket".to_owned(),
            source,
        })?;
        let mut kernel = Self {
            monitor: Monitor::open()?,
            routes: Routes::open()?,
            announcer,
            interfaces: Vec::new(),
            held: HashMap::new(),
            lease: Lease::start()?,
            counters,
            seen: Vec::new(),
            buffer: vec![0; DATAGRAM_MAX],
        };
        kernel.reconfigure(config)?;
        Ok(kernel)
    }

    /// Opens and closes sockets so that they fit the configuration; unchanged interfaces are not touched.
    pub(super) fn reconfigure(&mut self, config: &AgentConfig) -> Result<(), Error> {
        let mut wanted: BTreeMap<&str, Wants> = BTreeMap::new();
        for instance in &config.vrrp {
            let wants = wanted.entry(&instance.interface).or_default();
            wants.v4 |= instance.source.is_ipv4();
            wants.v6 |= instance.source.is_ipv6();
            wants.sources.insert(instance.source);
            wants.vips.extend(instance.vips.iter().map(|vip| vip.address));
        }
        self.interfaces
            .retain(|interface| wanted.get(interface.name.as_str()) == Some(&interface.wants));
        let links = self.routes.links()?;
        for (name, wants) in wanted {
            if self.interfaces.iter().any(|interface| interface.name == name) {
                continue;
            }
            let mut interface = Interface {
                name: name.to_owned(),
                wants,
                link: None,
                open: None,
            };
            let link = links.iter().find(|link| link.name == name).cloned();
            interface.update(link)?;
            self.interfaces.push(interface);
        }
        Ok(())
    }

    /// The thread runs: VIPs stay.
    pub(super) fn seen(&self) {
        self.lease.seen();
    }

    /// VIPs are held, and on loan.
    pub(super) fn holds(&self) -> bool {
        !self.held.is_empty()
    }

    /// Waits for anything to read, a wake-up, or the end of `timeout`.
    pub(super) fn wait(&self, waker: &Waker, timeout: Option<Duration>) -> io::Result<()> {
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![waker.as_fd(), self.monitor.as_fd()];
        for open in self.interfaces.iter().filter_map(|interface| interface.open.as_ref()) {
            descriptors.extend(open.v4.iter().chain(&open.v6).map(AsFd::as_fd));
            descriptors.extend(open.watcher.descriptors());
        }
        sys::wait(&descriptors, timeout)
    }

    /// Reads everything that is there. Links first: what arrived over an interface that is gone does not count.
    pub(super) fn take_inputs(&mut self) -> Vec<Seen> {
        let mut seen = std::mem::take(&mut self.seen);
        self.read_monitor(&mut seen);
        for interface in &self.interfaces {
            let Some(open) = &interface.open else { continue };
            for pair in open.v4.iter().chain(&open.v6) {
                for _ in 0..READ_BURST {
                    // An error is "nothing there", or an interface going down, which the monitor tells.
                    let Ok(received) = pair.receive(&mut self.buffer) else {
                        break;
                    };
                    let Some(received) = received else { continue };
                    self.counters.received.fetch_add(1, Ordering::Relaxed);
                    seen.push(Seen::Input(Input::Vrrp {
                        interface: interface.name.clone(),
                        source: received.source,
                        destination: received.destination,
                        ttl: received.ttl,
                        payload: received.payload.to_vec().into(),
                        authentic: None,
                    }));
                }
            }
            let own = interface.link.as_ref().and_then(|link| link.mac);
            open.watcher.read(own, |_, frame| {
                self.counters.claims.fetch_add(1, Ordering::Relaxed);
                seen.push(Seen::Input(Input::Frame {
                    interface: interface.name.clone(),
                    frame: frame.to_vec().into(),
                }));
            });
        }
        seen
    }

    /// Gives the emptied list back for the next time.
    pub(super) fn give_back(&mut self, seen: Vec<Seen>) {
        self.seen = seen;
    }

    /// Each configured interface, with those of its routers' own addresses that are not there.
    pub(super) fn links(&mut self) -> Vec<(String, LinkState)> {
        // What cannot be asked for is there: a VIP is not given up for a full netlink queue.
        let present = self.routes.addresses().ok();
        let has = |one: &&IpAddr| {
            present
                .as_ref()
                .is_none_or(|all| all.iter().any(|found| found.address == **one))
        };
        self.interfaces
            .iter()
            .map(|interface| {
                let link = interface.link.as_ref();
                let state = LinkState {
                    up: link.is_some_and(|link| link.up) && interface.open.is_some(),
                    mac: link.and_then(|link| link.mac),
                    missing: interface
                        .wants
                        .sources
                        .iter()
                        .filter(|one| !has(one))
                        .copied()
                        .collect(),
                };
                (interface.name.clone(), state)
            })
            .collect()
    }

    pub(super) fn add_vip(&mut self, instance: String, interface: &str, vip: Vip) -> Input {
        let result = match self.link(interface) {
            None => Err(format!("interface {interface} does not exist")),
            Some(link) => {
                let link = link.clone();
                let added = self.routes.add_vip(&link, vip.address, vip.prefix);
                if added.is_ok() {
                    // Only this machine's own clients of the moment would wait if it failed.
                    let _ = self.routes.forget_neighbour(&link, vip.address);
                    self.lease.hold(link, vip.address, vip.prefix);
                }
                added.map_err(|error| match error.errno() {
                    Some(libc::EEXIST) => format!(
                        "{} is already an address of {interface} that Quorate did not add; remove it from the network \
                         configuration, or choose another VIP",
                        vip.address
                    ),
                    _ => error.to_string(),
                })
            }
        };
        if result.is_ok() {
            self.held.insert(vip.address, vip);
        }
        Input::VipDone {
            instance,
            vip,
            change: VipChange::Add,
            error: result.err(),
        }
    }

    /// Removes a VIP if we hold it or it carries our mark (from an earlier life). An address without our mark is
    /// somebody else's, and removing it could cut the machine off.
    ///
    /// Clients connected to it get a RST first, so that they go to the new holder at once. `urgent`: another machine has
    /// the VIP already, and listing sockets takes milliseconds, so that comes afterwards. Remote clients are reset by the
    /// new holder then; those on this machine would wait for their own time-outs, since the address was theirs too.
    pub(super) fn remove_vip(&mut self, instance: String, interface: &str, vip: Vip, urgent: bool) -> Input {
        let held = self.held.remove(&vip.address).is_some();
        if held && !urgent {
            // A kernel that cannot do it was reported at start.
            let _ = crate::sockdiag::destroy_local(&[vip.address]);
        }
        self.lease.let_go(vip.address);
        let result = self.remove(interface, vip, held).map_err(|error| error.to_string());
        if held && urgent {
            let _ = crate::sockdiag::destroy_local(&[vip.address]);
        }
        if result.is_err() && held {
            self.held.insert(vip.address, vip);
        }
        Input::VipDone {
            instance,
            vip,
            change: VipChange::Remove,
            error: result.err(),
        }
    }

    /// `Some` is the reason why the packet did not go out.
    pub(super) fn send(&self, interface: &str, source: IpAddr, destination: IpAddr, payload: &[u8]) -> Option<String> {
        let open = self
            .interfaces
            .iter()
            .find(|one| one.name == interface)
            .and_then(|one| one.open.as_ref());
        let pair = open.and_then(|open| {
            if source.is_ipv4() {
                open.v4.as_ref()
            } else {
                open.v6.as_ref()
            }
        });
        let Some(pair) = pair else {
            return Some(format!("interface {interface} does not exist"));
        };
        match pair.send(source, destination, payload) {
            Ok(()) => {
                self.counters.sent.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(error) => {
                self.counters.send_errors.fetch_add(1, Ordering::Relaxed);
                Some(error.to_string())
            }
        }
    }

    /// `Some` is the reason why the frame did not go out.
    pub(super) fn announce(&self, interface: &str, frame: &[u8]) -> Option<String> {
        let Some(link) = self.link(interface) else {
            return Some(format!("interface {interface} does not exist"));
        };
        match self.announcer.send(link.index, frame) {
            Ok(()) => {
                self.counters.frames.fetch_add(1, Ordering::Relaxed);
                None
            }
            Err(error) => Some(error.to_string()),
        }
    }

    fn link(&self, interface: &str) -> Option<&Link> {
        self.interfaces.iter().find(|one| one.name == interface)?.link.as_ref()
    }

    fn remove(&mut self, interface: &str, vip: Vip, held: bool) -> Result<(), crate::netlink::Error> {
        if held && let Some(index) = self.link(interface).map(|link| link.index) {
            // The short way: this is what a clean hand-over waits for.
            return self.routes.delete_address(index, vip.address, vip.prefix).map(drop);
        }
        let index = self.link(interface).map(|link| link.index);
        let left: Vec<_> = self
            .routes
            .addresses()?
            .into_iter()
            .filter(|found| {
                found.address == vip.address && found.ours && index.is_none_or(|index| index == found.index)
            })
            .collect();
        for found in left {
            self.routes.delete_address(found.index, found.address, found.prefix)?;
        }
        Ok(())
    }

    fn read_monitor(&mut self, seen: &mut Vec<Seen>) {
        let (mut removed, mut changed, mut lost, mut own) = (Vec::new(), Vec::new(), false, false);
        let interfaces = &self.interfaces;
        let is_own = |address: &IpAddr| interfaces.iter().any(|one| one.wants.sources.contains(address));
        let result = self.monitor.read(|event| match event {
            Event::Link(link) => changed.push((link.index, Some(link))),
            Event::LinkGone { index } => changed.push((index, None)),
            Event::AddressRemoved(address) => {
                own |= is_own(&address.address);
                removed.push(address.address);
            }
            Event::AddressAdded(address) => own |= is_own(&address.address),
            Event::Lost => lost = true,
        });
        if let Err(error) = result {
            seen.push(Seen::Failed {
                what: "watching links and addresses".to_owned(),
                error: error.to_string(),
            });
        }
        if lost {
            removed.extend(self.held.keys().copied());
            let links = self.routes.links().unwrap_or_default();
            changed = self
                .interfaces
                .iter()
                .filter_map(|interface| interface.link.as_ref().map(|link| (link.index, None)))
                .chain(links.into_iter().map(|link| (link.index, Some(link))))
                .collect();
        }
        let mut tell = own || lost;
        for (index, link) in changed {
            match self.link_changed(index, link) {
                Ok(ours) => tell |= ours,
                Err(error) => {
                    tell = true;
                    seen.push(Seen::Failed {
                        what: "opening sockets".to_owned(),
                        error: error.to_string(),
                    });
                }
            }
        }
        // Once, and for our own interfaces alone: each time all addresses are listed, under a lock that Pods coming and
        // going contend for.
        if tell {
            seen.push(Seen::LinksChanged);
        }
        self.report_lost(&removed, seen);
    }

    /// Our own removals are events, too: only a VIP that we should hold and that is not there was lost.
    fn report_lost(&mut self, removed: &[IpAddr], seen: &mut Vec<Seen>) {
        let suspects: BTreeMap<IpAddr, Vip> = removed
            .iter()
            .filter_map(|address| self.held.get_key_value(address))
            .map(|(key, vip)| (*key, *vip))
            .collect();
        if suspects.is_empty() {
            return;
        }
        let Ok(present) = self.routes.addresses() else { return };
        for (address, vip) in suspects {
            if present.iter().all(|found| found.address != address) {
                self.counters.lost.fetch_add(1, Ordering::Relaxed);
                seen.push(Seen::Input(Input::VipLost { vip }));
            }
        }
    }

    /// Whether it is one of our interfaces.
    fn link_changed(&mut self, index: u32, link: Option<Link>) -> Result<bool, Error> {
        let by_name = |interface: &Interface| link.as_ref().is_some_and(|link| link.name == interface.name);
        let by_index = |interface: &Interface| interface.link.as_ref().is_some_and(|link| link.index == index);
        let Some(position) = self.interfaces.iter().position(|one| by_name(one) || by_index(one)) else {
            return Ok(false);
        };
        let interface = &mut self.interfaces[position];
        // A renamed interface is no longer the one that was configured.
        let link = link.filter(|link| link.name == interface.name);
        interface.update(link).map(|()| true)
    }
}

impl Drop for Kernel {
    /// Whatever ends the thread, its VIPs end with it.
    fn drop(&mut self) {
        for address in std::mem::take(&mut self.held).into_keys() {
            self.lease.let_go(address);
            for found in self.routes.addresses().unwrap_or_default() {
                if found.address == address && found.ours {
                    // Nobody is left to tell; the supervisor and the next start try again.
                    let _ = self.routes.delete_address(found.index, found.address, found.prefix);
                }
            }
        }
    }
}

impl Interface {
    fn update(&mut self, link: Option<Link>) -> Result<(), Error> {
        let same = self.link.as_ref().map(|link| link.index) == link.as_ref().map(|link| link.index);
        self.link = link;
        if same && (self.open.is_some() || self.link.is_none()) {
            return Ok(());
        }
        self.open = None;
        if let Some(link) = &self.link {
            let operation = format!("opening VRRP sockets on {}", link.name);
            let pair = |v4: bool| {
                Pair::open(&link.name, link.index, v4).map_err(|source| Error::System {
                    operation: operation.clone(),
                    source,
                })
            };
            let vips: Vec<IpAddr> = self.wants.vips.iter().copied().collect();
            self.open = Some(Open {
                v4: self.wants.v4.then(|| pair(true)).transpose()?,
                v6: self.wants.v6.then(|| pair(false)).transpose()?,
                watcher: Watcher::open(link.index, &vips)?,
            });
        }
        Ok(())
    }
}
