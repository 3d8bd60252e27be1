//! Who holds the VIPs: VRRP (RFC 9568; version 2 of RFC 3768 for interoperation).
//!
//! [`Routers`] holds this machine's virtual routers and gives each what concerns it.

mod announce;
mod auth;
mod backup;
mod instance;
mod master;
mod packet;
mod receive;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use instance::Instance;
use receive::Datagram;

pub use auth::{SecretKey, ShortKey, TRAILER, next_boot};
pub use instance::{Counters, InstanceStatus};
pub use packet::{Advert, Discard, GROUP_V4, GROUP_V6, PROTOCOL, is_group};

use crate::config::VrrpInstance;
use crate::frames::{self, Mac};
use crate::io::{Action, Command, Event, Input, Now, VrrpState};

/// Secrets of each instance by its name, in the order of its `auth.keys`.
pub type Keyring = BTreeMap<String, Vec<SecretKey>>;

/// All virtual routers of one machine.
#[derive(Debug)]
pub struct Routers {
    instances: Vec<Instance>,
    /// Grows with every start of this machine's agent; see [`SecretKey`]'s module.
    boot: u64,
    keys: Keyring,
    /// Last known state of interfaces and frontends, for instances that come later.
    links: BTreeMap<String, (bool, Option<Mac>, Vec<IpAddr>)>,
    paths: BTreeMap<String, bool>,
    started: bool,
    stopping: bool,
    unknown_router: u64,
    now: Now,
    actions: VecDeque<Action>,
}

impl Routers {
    pub fn new(configs: &[VrrpInstance], keys: Keyring, boot: u64) -> Self {
        let instance = |c: &VrrpInstance| Instance::new(c.clone(), keys_of(&keys, &c.name), boot);
        Self {
            instances: configs.iter().map(instance).collect(),
            boot,
            keys,
            links: BTreeMap::new(),
            paths: BTreeMap::new(),
            started: false,
            stopping: false,
            unknown_router: 0,
            now: Now::ZERO,
            actions: VecDeque::new(),
        }
    }

    /// New secrets, used from the next [`Input::Config`] on.
    pub fn set_keys(&mut self, keys: Keyring) {
        self.keys = keys;
    }

    /// Packets on our interfaces for virtual routers that are not ours.
    pub fn unknown_router_packets(&self) -> u64 {
        self.unknown_router
    }

    pub fn status(&self) -> Vec<InstanceStatus> {
        self.instances.iter().map(Instance::status).collect()
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Input::Tick`] is due at the latest.
    pub fn poll_timeout(&mut self) -> Option<Now> {
        let now = self.now;
        self.instances.iter_mut().filter_map(|i| i.wake_at(now)).min()
    }

    /// Every virtual router has given up after [`Input::Stop`].
    pub fn is_stopped(&self) -> bool {
        self.stopping && self.instances.iter().all(|i| i.state() == VrrpState::Init)
    }

    pub fn handle(&mut self, now: Now, input: &Input) {
        let now = self.look_at_clock(now);
        let out = &mut self.actions;
        match input {
            Input::Start if !self.started => {
                self.started = true;
                self.instances.iter_mut().for_each(|i| i.start(now, out));
            }
            Input::Stop => {
                self.stopping = true;
                self.instances.iter_mut().for_each(|i| i.stop(now, out));
            }
            Input::Config { config } => self.reconfigure(&config.vrrp),
            Input::Vrrp {
                interface,
                source,
                destination,
                ttl,
                payload,
                authentic,
            } => {
                let datagram = Datagram {
                    source: *source,
                    destination: *destination,
                    ttl: *ttl,
                    payload,
                    authentic: *authentic,
                };
                let concerned = |i: &&mut Instance| i.is_concerned(interface, *source, payload);
                match self.instances.iter_mut().find(concerned) {
                    Some(i) => i.on_packet(now, datagram, out),
                    None => self.unknown_router += 1,
                }
            }
            Input::Frame { interface, frame } => {
                if let Some(claim) = frames::parse_claim(frame) {
                    for i in self.instances.iter_mut().filter(|i| i.config().interface == *interface) {
                        i.on_claim(now, claim, out);
                    }
                }
            }
            Input::Link {
                interface,
                up,
                mac,
                missing,
            } if !self.stopping => {
                self.links.insert(interface.clone(), (*up, *mac, missing.clone()));
                for i in self.instances.iter_mut().filter(|i| i.config().interface == *interface) {
                    i.on_link(now, *up, *mac, missing, out);
                }
            }
            Input::VipDone {
                instance,
                vip,
                change,
                error,
            } => {
                for i in self.instances.iter_mut().filter(|i| i.config().name == *instance) {
                    i.on_vip_done(now, *vip, *change, error.as_deref(), out);
                }
            }
            Input::VipLost { vip } => self.instances.iter_mut().for_each(|i| i.on_vip_lost(now, *vip, out)),
            Input::Command {
                command: Command::Release { instance, hold },
            } => match self.instances.iter_mut().find(|i| i.config().name == *instance) {
                Some(i) => i.release(now, *hold, out),
                None => {
                    let names: Vec<_> = self.instances.iter().map(|i| i.config().name.as_str()).collect();
                    out.push_back(Action::Report {
                        event: Event::Refused {
                            what: format!("no VRRP instance is named {instance:?}"),
                            hint: format!("one of: {}", names.join(", ")),
                        },
                    });
                }
            },
            Input::Start
            | Input::Tick
            | Input::Link { .. }
            | Input::Probed { .. }
            | Input::Dial { .. }
            | Input::Command { .. } => {}
        }
        self.promise();
    }

    /// Whether a received packet was signed by the key it names, for a recording; None where nothing depends on it.
    pub fn judge(&self, input: &Input) -> Option<bool> {
        let Input::Vrrp {
            interface,
            source,
            payload,
            ..
        } = input
        else {
            return None;
        };
        let mut instances = self.instances.iter();
        let instance = instances.find(|i| i.is_concerned(interface, *source, payload))?;
        instance.judge(*source, payload)
    }

    /// Whether `frontend` can pass connections on, as decided by the balancer.
    pub fn set_path(&mut self, now: Now, frontend: &str, usable: bool) {
        if self.stopping {
            return;
        }
        self.paths.insert(frontend.to_string(), usable);
        let now = self.look_at_clock(now);
        let out = &mut self.actions;
        for i in &mut self.instances {
            if i.config().track.frontend.as_deref() == Some(frontend) {
                i.on_path(now, usable, out);
            }
        }
        self.promise();
    }

    fn look_at_clock(&mut self, now: Now) -> Now {
        self.now = self.now.max(now);
        for i in &mut self.instances {
            i.on_time(self.now, &mut self.actions);
        }
        self.now
    }

    /// Every instance remembers when it is to look at the clock again. After each input, not only before waiting: a
    /// process may be stopped between two inputs of one wake-up, and must notice that as well.
    fn promise(&mut self) {
        for i in &mut self.instances {
            i.wake_at(self.now);
        }
    }

    fn reconfigure(&mut self, configs: &[VrrpInstance]) {
        if self.stopping {
            return;
        }
        let now = self.now;
        let mut old = std::mem::take(&mut self.instances);
        for config in configs {
            let keys = keys_of(&self.keys, &config.name);
            let kept = old.iter().position(|i| i.is_same_router(config));
            self.instances.push(match kept {
                Some(at) => {
                    let mut instance = old.swap_remove(at);
                    instance.reconfigure(now, config.clone(), keys, &mut self.actions);
                    instance
                }
                None => {
                    let mut instance = Instance::new(config.clone(), keys, self.boot);
                    if self.started {
                        instance.start(now, &mut self.actions);
                    }
                    if let Some((up, mac, missing)) = self.links.get(&config.interface) {
                        instance.on_link(now, *up, *mac, missing, &mut self.actions);
                    }
                    instance
                }
            });
        }
        for i in &mut self.instances {
            let frontend = i.config().track.frontend.as_ref();
            if let Some(usable) = frontend.and_then(|f| self.paths.get(f)) {
                i.on_path(now, *usable, &mut self.actions);
            }
        }
        // What is no longer configured goes before its successor's first packet can be sent.
        let mut goodbye = VecDeque::new();
        old.iter_mut().for_each(|i| i.quit(now, &mut goodbye));
        goodbye.append(&mut self.actions);
        self.actions = goodbye;
    }
}

/// Advertisements with priority 0 on behalf of a process that died while it held any of `vips`: the next holder takes over
/// after its skew time instead of three silent intervals (RFC 9568 §6.4.2). `boot` must be higher than the dead process's, and
/// lower than its successor's.
pub fn goodbyes(configs: &[VrrpInstance], keys: &Keyring, boot: u64, vips: &[IpAddr]) -> Vec<Action> {
    let mut out = VecDeque::new();
    let held = |config: &&VrrpInstance| config.vips.iter().any(|vip| vips.contains(&vip.address));
    for config in configs.iter().filter(held) {
        Instance::new(config.clone(), keys_of(keys, &config.name), boot).send(0, &mut out);
    }
    out.into()
}

fn keys_of(keys: &Keyring, name: &str) -> Vec<SecretKey> {
    keys.get(name).cloned().unwrap_or_default()
}
