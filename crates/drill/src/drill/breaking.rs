//! Breaks the parts of a scenario, and takes them back.

use quorate_machine::ErrorKind;

use super::*;

/// A part of a scenario on one machine.
pub(super) enum Broken {
    Script(Injection),
    Power {
        machine: String,
        _deadman: Deadman,
    },
    Planned {
        machine: String,
        stopped: Injection,
        _deadman: Deadman,
    },
}

impl Drill {
    /// Timers for all parts, before the first is broken. `broken` holds what was armed even if a later one could not be.
    pub(super) async fn arm(
        &self,
        parts: &[(String, Fault)],
        after: Duration,
        broken: &mut Vec<Broken>,
    ) -> Result<(), Error> {
        for (number, (name, fault)) in parts.iter().enumerate() {
            match fault {
                Fault::Script { inject, revert } => {
                    let injection = self.injection(name, number, inject, revert).await?;
                    injection.arm(after).await?;
                    broken.push(Broken::Script(injection));
                }
                Fault::PowerCut => {
                    let deadman = self.power_deadman(name, after)?;
                    broken.push(Broken::Power {
                        machine: name.clone(),
                        _deadman: deadman,
                    });
                }
                Fault::PlannedRestart => {
                    let deadman = self.power_deadman(name, after + Duration::from_millis(DRAIN_TIMEOUT_MS))?;
                    let stopped = self
                        .injection(
                            name,
                            number,
                            PLANNED_STOP,
                            "start etcd; start kube-apiserver; start kubelet",
                        )
                        .await?;
                    broken.push(Broken::Planned {
                        machine: name.clone(),
                        stopped,
                        _deadman: deadman,
                    });
                }
            }
        }
        Ok(())
    }

    async fn injection(&self, name: &str, number: usize, inject: &str, revert: &str) -> Result<Injection, Error> {
        let spec = &self.session.spec;
        let on = spec
            .machine(name)
            .ok_or_else(|| Error::Refused(format!("{name} is not in the cluster file")))?;
        let machine = self.machine(name)?.clone();
        let interface = match machine.call(quorate_machine::Request::Network).await? {
            quorate_machine::Response::Network(network) => {
                network.interface_of(on.address).unwrap_or("eth0").to_owned()
            }
            _ => "eth0".into(),
        };
        // The program that connected, whatever build the cluster runs.
        let program = format!(
            "{}/{}/quorate",
            quorate_plan::paths::PROGRAMS,
            self.session.operator.facts().program_sha256
        );
        Ok(Injection::new(
            spec,
            on,
            machine,
            format!("{}-{number}", unique()),
            inject,
            revert,
            &interface,
            &program,
        ))
    }

    fn power_deadman(&self, machine: &str, after: Duration) -> Result<Deadman, Error> {
        let power = self
            .power
            .as_ref()
            .ok_or_else(|| Error::Refused("nobody can switch the machines off and on".into()))?;
        power.deadman(machine, after).map_err(|message| Error::Power {
            machine: machine.into(),
            message,
        })
    }

    /// All at once.
    pub(super) async fn inject(&self, broken: &[Broken], observer: &Observer) -> Result<(), Error> {
        let results = futures_util::future::join_all(broken.iter().map(|part| async move {
            match part {
                Broken::Script(injection) => injection.inject().await.map_err(Error::from),
                Broken::Power { machine, .. } => self.off(machine, observer).await,
                Broken::Planned { machine, stopped, .. } => {
                    self.kubectl(
                        machine,
                        &[
                            "drain",
                            machine,
                            "--ignore-daemonsets",
                            "--delete-emptydir-data",
                            "--force",
                            "--timeout=50s",
                        ],
                    )
                    .await?;
                    stopped.inject().await?;
                    self.off(machine, observer).await
                }
            }
        }))
        .await;
        results.into_iter().collect()
    }

    async fn off(&self, name: &str, observer: &Observer) -> Result<(), Error> {
        let cut_us = monotonic_us();
        let took = self.switch(name, |power, name| power.off(name)).await?;
        observer.gone(name, cut_us + i64::try_from(took.as_micros()).unwrap_or(0));
        if let Some(machine) = self.session.fleet.get(name) {
            machine.forget().await;
        }
        Ok(())
    }

    /// As often as needed, for as long as it may take; what cannot be taken back is said. The timers on the machines do it
    /// all the same.
    pub(super) async fn take_back(&self, broken: &[Broken], limit: Duration) -> Vec<String> {
        let ends = Instant::now() + limit;
        let results = futures_util::future::join_all(broken.iter().rev().map(|part| async move {
            loop {
                let result = match part {
                    Broken::Script(injection) => injection.revert().await.map_err(Error::from),
                    Broken::Power { machine, .. } => self.on(machine).await,
                    Broken::Planned { machine, .. } => self.on_and_uncordoned(machine).await,
                };
                match result {
                    Ok(()) => return None,
                    // Whoever took the lock over is fenced against this drill; the timers are not.
                    Err(Error::Machine(error)) if error.kind == ErrorKind::LockLost => {
                        return Some(format!("left to the timer on the machine: {error}"));
                    }
                    Err(error) if Instant::now() > ends => return Some(format!("could not be taken back: {error}")),
                    Err(_) => sleep(Duration::from_millis(500)).await,
                }
            }
        }))
        .await;
        results.into_iter().flatten().collect()
    }

    async fn on(&self, name: &str) -> Result<(), Error> {
        self.switch(name, |power, name| power.on(name)).await?;
        if let Some(machine) = self.session.fleet.get(name) {
            machine.forget().await;
        }
        Ok(())
    }

    async fn on_and_uncordoned(&self, name: &str) -> Result<(), Error> {
        self.on(name).await?;
        self.kubectl(name, &["uncordon", name]).await
    }

    async fn switch<T: Send + 'static>(
        &self,
        name: &str,
        turn: impl FnOnce(&dyn Power, &str) -> Result<T, String> + Send + 'static,
    ) -> Result<T, Error> {
        let power = self
            .power
            .clone()
            .ok_or_else(|| Error::Refused("nobody can switch the machines off and on".into()))?;
        let machine = name.to_owned();
        let turned = tokio::task::spawn_blocking(move || turn(power.as_ref(), &machine)).await;
        let failed = |message: String| Error::Power {
            machine: name.into(),
            message,
        };
        turned.map_err(|error| failed(error.to_string()))?.map_err(failed)
    }

    /// On another control plane, as the administrator, who is never written there.
    async fn kubectl(&self, not_on: &str, arguments: &[&str]) -> Result<(), Error> {
        let spec = &self.session.spec;
        let kubeconfig = self.session.operator.memory_kubeconfig(spec)?;
        let via = spec
            .control_planes()
            .iter()
            .filter(|machine| machine.name != not_on)
            .find_map(|machine| self.session.fleet.get(&machine.name))
            .ok_or_else(|| Error::Refused("no other control plane".into()))?
            .clone();
        let argv = [KUBECTL, "--kubeconfig=/dev/stdin"].iter().chain(arguments).copied();
        via.exec_ok(Exec::new(argv).stdin(kubeconfig).timeout_ms(DRAIN_TIMEOUT_MS))
            .await?;
        Ok(())
    }
}
