//! All backend sets of one machine: who may get connections, who is checked when, whose clients are reset.

use std::collections::VecDeque;

use crate::config::AgentConfig;
use crate::health::{BackendSet, SetStatus};
use crate::io::{Action, Command, Event, Input, Now};

/// The backend sets of frontends, IPVS and eBPF services.
#[derive(Debug)]
pub struct Balancer {
    sets: Vec<BackendSet>,
    seed: u64,
    started: bool,
    stopped: bool,
    now: Now,
    promised: Option<Now>,
    actions: VecDeque<Action>,
    late: u64,
}

impl Balancer {
    /// `seed` should differ between machines: it spreads their checks over time.
    pub fn new(config: &AgentConfig, seed: u64) -> Self {
        let sets = config
            .backend_sets()
            .map(|s| BackendSet::new(Now::ZERO, s, seed))
            .collect();
        Self {
            sets,
            seed,
            started: false,
            stopped: false,
            now: Now::ZERO,
            promised: None,
            actions: VecDeque::new(),
            late: 0,
        }
    }

    pub fn status(&self) -> Vec<SetStatus> {
        self.sets.iter().map(|s| s.status(self.now)).collect()
    }

    /// Times this process was woken too late to judge others by the clock.
    pub fn late_wakeups(&self) -> u64 {
        self.late
    }

    /// Each backend set and whether it can pass connections on, once that is known.
    pub fn paths(&self) -> impl Iterator<Item = (&str, bool)> {
        self.sets.iter().filter_map(|s| s.usable().map(|u| (s.name(), u)))
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Input::Tick`] is due at the latest.
    pub fn poll_timeout(&self) -> Option<Now> {
        self.promised
    }

    pub fn handle(&mut self, now: Now, input: &Input) {
        self.now = self.now.max(now);
        let now = self.now;
        let out = &mut self.actions;
        if let Some(late) = self.promised.take().and_then(|p| now.checked_sub(p)) {
            for set in self.sets.iter_mut().filter(|s| late > s.tolerance()) {
                self.late += 1;
                set.distrust();
            }
        }
        match input {
            Input::Start => self.started = true,
            Input::Stop => self.stopped = true,
            Input::Config { config } => {
                let mut old = std::mem::take(&mut self.sets);
                for set in config.backend_sets() {
                    let kept = old.iter().position(|s| s.name() == set.name);
                    self.sets.push(match kept {
                        Some(at) => {
                            let mut kept = old.swap_remove(at);
                            kept.reconfigure(now, set);
                            kept
                        }
                        None => BackendSet::new(now, set, self.seed),
                    });
                }
            }
            Input::Probed {
                frontend,
                backend,
                id,
                outcome,
                late,
            } => {
                if let Some(set) = self.sets.iter_mut().find(|s| s.name() == frontend) {
                    set.on_probed(now, backend, *id, outcome, *late, out);
                }
            }
            Input::Dial {
                frontend,
                backend,
                outcome,
            } => {
                if let Some(set) = self.sets.iter_mut().find(|s| s.name() == frontend) {
                    set.on_dial(now, backend, *outcome, out);
                }
            }
            Input::Command { command } => self.command(now, command),
            Input::Tick
            | Input::Vrrp { .. }
            | Input::Frame { .. }
            | Input::Link { .. }
            | Input::VipDone { .. }
            | Input::VipLost { .. } => {}
        }
        if self.started && !self.stopped {
            for set in &mut self.sets {
                set.on_time(now, &mut self.actions);
                set.publish(now, &mut self.actions);
            }
            // With each input, however many there are before the process waits: a replay sees the same.
            self.promised = self.sets.iter().filter_map(|s| s.wake_at(now)).min();
        }
    }

    fn command(&mut self, now: Now, command: &Command) {
        let (Command::SetAdmin { frontend, .. } | Command::SetWeight { frontend, .. }) = command else {
            return;
        };
        let names: Vec<_> = self.sets.iter().map(BackendSet::name).collect();
        let hint = format!("one of: {}", names.join(", "));
        let result = match self.sets.iter_mut().find(|s| s.name() == frontend) {
            None => Err((format!("no frontend is named {frontend:?}"), hint)),
            Some(set) => match command {
                Command::SetAdmin { backend, state, .. } => {
                    let done = set.set_admin(now, backend, *state, &mut self.actions);
                    done.map_err(|hint| (format!("no backend is named {backend:?}"), hint))
                }
                Command::SetWeight { backend, weight, .. } => {
                    let done = set.set_weight(backend, *weight);
                    done.map_err(|hint| (format!("no backend is named {backend:?}"), hint))
                }
                Command::Release { .. } => Ok(()),
            },
        };
        if let Err((what, hint)) = result {
            self.actions.push_back(Action::Report {
                event: Event::Refused { what, hint },
            });
        }
    }
}
