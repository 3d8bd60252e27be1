//! The whole decision core of one machine: VIPs and backends, and what one tells the other.

use std::collections::VecDeque;

use serde::Serialize;

use crate::balancer::Balancer;
use crate::config::AgentConfig;
use crate::health::SetStatus;
use crate::io::{Action, Command, Input, Now};
use crate::vrrp::{InstanceStatus, Keyring, Routers};

/// Decides for one machine. Give it every [`Input`], carry out every [`Action`] in order:
///
/// ```text
/// loop {
///     wait until poll_timeout() or something happens;   // read all sockets before saying Tick
///     agent.handle(now, input);
///     while let Some(action) = agent.poll_action() { apply(action); }
/// }
/// ```
#[derive(Debug)]
pub struct Agent {
    routers: Routers,
    balancer: Balancer,
    stop_reported: bool,
    actions: VecDeque<Action>,
}

/// All that can be shown of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    pub vrrp: Vec<InstanceStatus>,
    pub frontends: Vec<SetStatus>,
    /// VRRP packets for virtual routers that are not ours.
    pub unknown_router_packets: u64,
    /// Times backends could not be judged because this process was late.
    pub late_wakeups: u64,
}

impl Agent {
    /// `config` is valid. `boot` grows with every start of this machine's agent
    /// ([`crate::vrrp::next_boot`]); `seed` differs between machines.
    pub fn new(config: &AgentConfig, keys: Keyring, boot: u64, seed: u64) -> Self {
        Self {
            routers: Routers::new(&config.vrrp, keys, boot),
            balancer: Balancer::new(config, seed),
            stop_reported: false,
            actions: VecDeque::new(),
        }
    }

    /// New secrets, used from the next [`Input::Config`] on.
    pub fn set_keys(&mut self, keys: Keyring) {
        self.routers.set_keys(keys);
    }

    pub fn status(&self) -> AgentStatus {
        AgentStatus {
            vrrp: self.routers.status(),
            frontends: self.balancer.status(),
            unknown_router_packets: self.routers.unknown_router_packets(),
            late_wakeups: self.balancer.late_wakeups(),
        }
    }

    /// `now` never goes back; if it does, the latest is kept.
    pub fn handle(&mut self, now: Now, input: Input) {
        // VIPs first: a process that slept must let go of them before it does anything else.
        self.routers.handle(now, &input);
        if !matches!(
            input,
            Input::Vrrp { .. }
                | Input::Frame { .. }
                | Input::Command {
                    command: Command::Release { .. }
                }
        ) {
            self.balancer.handle(now, &input);
            for (frontend, usable) in self.balancer.paths() {
                self.routers.set_path(now, frontend, usable);
            }
        }
        while let Some(action) = self.routers.poll_action() {
            self.actions.push_back(action);
        }
        while let Some(action) = self.balancer.poll_action() {
            self.actions.push_back(action);
        }
        if self.routers.is_stopped() && !self.stop_reported {
            self.stop_reported = true;
            self.actions.push_back(Action::Stopped);
        }
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Input::Tick`] is due at the latest; None: only when something happens.
    pub fn poll_timeout(&mut self) -> Option<Now> {
        [self.routers.poll_timeout(), self.balancer.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
    }
}
