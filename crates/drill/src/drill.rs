//! One scenario after the other: measure, break, take back, wait until all is green, judge.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_machine::MachineRef;
use quorate_machine::proto::Exec;
use quorate_run::{Api, Identity, Session, Stop};
use quorate_spec::Spec;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::Error;
use crate::fault::{DEADMAN_MARGIN, Injection};
use crate::measure::{Series, contested_ms, reigns};
use crate::observe::{LEASES, Observer, Seen};
use crate::power::{Deadman, Power};
use crate::probe::{self, Kind, monotonic_us};
use crate::probes::{Probes, Rates};
use crate::report::{self, Leader, Outcome, Owner, Report, Writes};
use crate::scenario::{Around, Fault, Scenario, Target};
use crate::target;

/// Clients are watched this long before anything is broken.
const CALM: Duration = Duration::from_millis(1_500);
/// Two owners of the VIP are noticed by their advertisements; what is seen is as fine as the looks at it.
const CONTESTED_MS: u64 = 500;
const DRAIN_TIMEOUT_MS: u64 = 60_000;
const KUBECTL: &str = "/opt/quorate/bin/kubectl";
/// In the order in which an administrator stops them: nobody is sent where nothing is any more.
const PLANNED_STOP: &str = "stop quorate-agent; stop kube-scheduler; stop kube-controller-manager; stop kube-apiserver; stop etcd; stop kubelet; sync";

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub rates: Rates,
    /// Reports are written here as the drill goes on.
    pub dir: Option<PathBuf>,
    pub allow_outage: bool,
    /// Command and arguments that run this program where the operator reaches the API.
    pub operator: Vec<String>,
    /// Ends the drill: what is broken is taken back, nothing more is broken.
    pub stop: Stop,
}

/// A scenario, and for those that go through all control planes the one it is on.
#[derive(Clone, Debug)]
pub struct Run {
    pub scenario: &'static Scenario,
    pub on: Option<String>,
    /// Instead of the scenario's own.
    pub hold: Option<Duration>,
}

impl Run {
    pub fn name(&self) -> String {
        match &self.on {
            Some(on) => format!("{}@{on}", self.scenario.name),
            None => self.scenario.name.into(),
        }
    }
}

/// What happens, for whoever watches. Also the lines of `journal.jsonl`.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "kebab-case", tag = "event")]
pub enum Event {
    Started {
        name: String,
        what: String,
        number: usize,
        of: usize,
    },
    Broken {
        name: String,
        machines: Vec<String>,
    },
    TakenBack {
        name: String,
        after_ms: u64,
    },
    Green {
        name: String,
        after_ms: u64,
    },
    NotGreen {
        name: String,
        failed: Vec<String>,
    },
    Trouble {
        name: String,
        message: String,
    },
    Done {
        outcome: Box<Outcome>,
    },
}

pub struct Drill {
    pub session: Session,
    pub power: Option<Arc<dyn Power>>,
    pub options: Options,
    pub events: Box<dyn Fn(&Event) + Send + Sync>,
}

/// Every run of these scenarios on this cluster, in order.
pub fn expand(spec: &Spec, scenarios: &[&'static Scenario]) -> Vec<Run> {
    let mut runs = Vec::new();
    for scenario in scenarios {
        if scenario
            .parts
            .iter()
            .any(|part| part.target == Target::EachControlPlane)
        {
            runs.extend(spec.control_planes().iter().map(|machine| Run {
                scenario,
                on: Some(machine.name.clone()),
                hold: None,
            }));
        } else {
            runs.push(Run {
                scenario,
                on: None,
                hold: None,
            });
        }
    }
    runs
}

/// A part of a scenario on one machine.
enum Broken {
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
    /// Why this cluster must not be broken now.
    pub async fn refuse(&self, runs: &[Run], around: Around) -> Result<(), Error> {
        let spec = &self.session.spec;
        if !spec.drill.allowed {
            return Err(Error::Refused(
                "the cluster file does not allow drills: spec.drill.allowed is false".into(),
            ));
        }
        for run in runs {
            if let Some(reason) = run.scenario.skipped(spec, around) {
                return Err(Error::Refused(format!("{}: {reason}", run.scenario.name)));
            }
            if run.scenario.loses_quorum && !self.options.allow_outage {
                return Err(Error::Refused(format!(
                    "{} takes the whole API away for a while; --allow-outage permits it",
                    run.scenario.name
                )));
            }
        }
        let report = self.verify().await?;
        if !report.ok() {
            let failed: Vec<String> = report
                .failed()
                .map(|check| format!("{} {}: {}", check.name, check.target, check.detail))
                .collect();
            return Err(Error::Refused(format!(
                "the cluster is not well, so a drill would show nothing: {}",
                failed.join("; ")
            )));
        }
        Ok(())
    }

    /// Carries out the runs. What is broken is always taken back, whatever happens; a scenario after which the cluster does
    /// not become green is the last one.
    pub async fn run(&self, runs: &[Run]) -> Result<Report, Error> {
        self.go(runs.iter().cloned(), runs.len()).await
    }

    /// `of`: how many there will be; 0 if nobody knows.
    async fn go(&self, runs: impl Iterator<Item = Run>, of: usize) -> Result<Report, Error> {
        let identity = self
            .session
            .operator
            .identity()?
            .ok_or_else(|| Error::Refused("the operator's folder holds no authorities: apply first".into()))?;
        self.prepare().await?;
        let mut report = Report {
            cluster: self.session.spec.name.clone(),
            scenarios: Vec::new(),
        };
        // A drill that dies has a report all the same, if an empty one.
        self.write(&report)?;
        for (number, run) in runs.enumerate() {
            if self.options.stop.is_stopped() {
                break;
            }
            self.tell(Event::Started {
                name: run.name(),
                what: run.scenario.what.into(),
                number: number + 1,
                of,
            });
            let outcome = self.one(&run, &identity).await;
            let green = outcome.details.recovery_ms.is_some();
            self.tell(Event::Done {
                outcome: Box::new(outcome.clone()),
            });
            report.scenarios.push(outcome);
            self.write(&report)?;
            if !green {
                break;
            }
        }
        self.clean().await;
        Ok(report)
    }

    /// One scenario of the walk after the other until the time is over.
    pub async fn walk(&self, walk: crate::chaos::Walk, length: Duration) -> Result<Report, Error> {
        let begun = Instant::now();
        self.go(walk.take_while(|_| begun.elapsed() < length), 0).await
    }

    async fn one(&self, run: &Run, identity: &Identity) -> Outcome {
        let mut outcome = Outcome {
            name: run.name(),
            row: run.scenario.row,
            ..Outcome::default()
        };
        outcome.details.what = run.scenario.what.into();
        let mut why = Vec::new();
        if let Err(error) = self.measured(run, identity, &mut outcome, &mut why).await {
            why.push(error.to_string());
        }
        outcome.ok = why.is_empty();
        outcome.why = why.join("; ");
        outcome
    }

    async fn measured(
        &self,
        run: &Run,
        identity: &Identity,
        outcome: &mut Outcome,
        why: &mut Vec<String>,
    ) -> Result<(), Error> {
        let session = &self.session;
        let scenario = run.scenario;
        let mut parts = Vec::new();
        let mut targets: Vec<String> = Vec::new();
        for part in scenario.parts {
            for machine in target::resolve(session, part.target, run.on.as_deref()).await? {
                if !targets.contains(&machine) {
                    targets.push(machine.clone());
                }
                parts.push((machine, part.fault));
            }
        }
        outcome.details.targets.clone_from(&targets);
        let probes = Probes::start(
            session,
            identity,
            &targets,
            &self.options.operator,
            &unique(),
            self.options.rates,
        )
        .await;
        let observer = Observer::start(session, self.apis(identity, &targets));
        sleep(CALM).await;

        let hold = run.hold.unwrap_or(scenario.hold);
        let mut broken = Vec::new();
        let begun = Instant::now();
        let mut fault_us = monotonic_us();
        let armed = self.arm(&parts, hold + DEADMAN_MARGIN, &mut broken).await;
        let injected = match armed {
            Ok(()) => {
                fault_us = monotonic_us();
                self.inject(&broken, &observer).await
            }
            Err(error) => Err(error),
        };
        match injected {
            Ok(()) => {
                self.tell(Event::Broken {
                    name: run.name(),
                    machines: targets.clone(),
                });
                tokio::select! {
                    () = sleep(hold) => {}
                    () = self.options.stop.stopped() => why.push("interrupted".into()),
                }
            }
            Err(error) => why.push(format!("could not be broken: {error}")),
        }
        why.extend(
            self.take_back(&broken, Duration::from_secs(scenario.limits.recovery_s))
                .await,
        );
        drop(broken);
        let reverted_us = monotonic_us();
        self.tell(Event::TakenBack {
            name: run.name(),
            after_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(0),
        });
        outcome.details.fault_us = fault_us;
        outcome.details.reverted_ms = (reverted_us - fault_us) / 1_000;
        outcome.details.recovery_ms = self.green(run, why).await?;

        let (vantages, lost) = probes.stop().await;
        for message in lost {
            self.tell(Event::Trouble {
                name: run.name(),
                message,
            });
        }
        outcome.details.vantages = vantages;
        let seen = observer.seen();
        drop(observer);
        self.judge(scenario, outcome, &seen, reverted_us, why);
        if let Some(lost) = self.read_back(outcome).await? {
            why.push(format!(
                "{} acknowledged writes are lost: {}",
                lost.len(),
                lost.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
            ));
            outcome.writes.lost = lost.len() as u64;
        }
        Ok(())
    }

    /// Timers for all parts, before the first is broken. `broken` holds what was armed even if a later one could not be.
    async fn arm(&self, parts: &[(String, Fault)], after: Duration, broken: &mut Vec<Broken>) -> Result<(), Error> {
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
    async fn inject(&self, broken: &[Broken], observer: &Observer) -> Result<(), Error> {
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
    async fn take_back(&self, broken: &[Broken], limit: Duration) -> Vec<String> {
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

    /// Looks until every check holds; ms it took.
    async fn green(&self, run: &Run, why: &mut Vec<String>) -> Result<Option<u64>, Error> {
        let begun = Instant::now();
        let limit = Duration::from_secs(run.scenario.limits.recovery_s);
        loop {
            let report = self.verify().await?;
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            if report.ok() {
                self.tell(Event::Green {
                    name: run.name(),
                    after_ms: took,
                });
                return Ok(Some(took));
            }
            if begun.elapsed() > limit {
                let failed: Vec<String> = report
                    .failed()
                    .map(|check| format!("{} {}: {}", check.name, check.target, check.detail))
                    .collect();
                why.push(format!("not green within {} s: {}", limit.as_secs(), failed.join(", ")));
                self.tell(Event::NotGreen {
                    name: run.name(),
                    failed,
                });
                return Ok(None);
            }
            sleep(Duration::from_millis(300)).await;
        }
    }

    async fn verify(&self) -> Result<quorate_verify::Report, Error> {
        let session = &self.session;
        let kubeconfig = session.operator.memory_kubeconfig(&session.spec)?;
        let now_unix = jiff::Timestamp::now().as_second();
        let cluster = quorate_verify::Cluster {
            spec: &session.spec,
            fleet: &session.fleet,
            api: session.api().await?,
            kubeconfig,
            now_unix,
        };
        Ok(quorate_verify::verify(&cluster).await)
    }

    fn judge(&self, scenario: &Scenario, outcome: &mut Outcome, seen: &Seen, reverted_us: i64, why: &mut Vec<String>) {
        let (vantages, fault_us) = (&outcome.details.vantages, outcome.details.fault_us);
        let since = |at_us: i64| (at_us - fault_us) / 1_000;
        outcome.new = Series::of(Kind::New, vantages, fault_us);
        outcome.reused = Series::of(Kind::Reused, vantages, fault_us);
        outcome.watch = Series::of(Kind::Watch, vantages, fault_us);
        let writes = Series::of(Kind::Write, vantages, fault_us);
        outcome.writes = Writes {
            acknowledged: writes.sent - writes.failed,
            lost: 0,
            failed: writes.failed,
            worst_ms: writes.worst_ms,
        };

        let vip = reigns(seen.vip.clone());
        outcome.vip_owner = vip
            .iter()
            .map(|reign| Owner {
                at_ms: since(reign.at_us),
                owner: reign.holders.join("+"),
            })
            .collect();
        outcome.leader = reigns(seen.etcd.clone())
            .iter()
            .map(|reign| Leader {
                of: "etcd".into(),
                at_ms: since(reign.at_us),
                leader: reign.holders.join("+"),
            })
            .collect();
        for name in LEASES {
            let held = seen.leases.get(name).into_iter().flatten();
            outcome.leader.extend(held.map(|(at_us, holder)| Leader {
                of: name.into(),
                at_ms: since(*at_us),
                leader: holder.clone(),
            }));
        }

        let limits = scenario.limits;
        let mut exceeds = |what: &str, found: u64, limit: Option<u64>, unit: &str| {
            if let Some(limit) = limit.filter(|limit| found > *limit) {
                why.push(format!("{what}: {found}{unit}, the limit is {limit}{unit}"));
            }
        };
        exceeds("new connections failed", outcome.new.failed, limits.new_failed, "");
        exceeds(
            "slowest new connection",
            outcome.new.worst_ms,
            limits.new_worst_ms,
            " ms",
        );
        exceeds(
            "longest time without a new connection",
            outcome.new.outage_ms,
            limits.new_outage_ms,
            " ms",
        );
        exceeds(
            "VIP held by two machines after the fault",
            contested_ms(&vip, reverted_us, monotonic_us()),
            Some(CONTESTED_MS),
            " ms",
        );
        if outcome.new.sent == 0 {
            why.push("nothing was measured: no probe answered".into());
        }
    }

    /// Names that were acknowledged and are not there; `None` if all are. What was written is removed.
    async fn read_back(&self, outcome: &Outcome) -> Result<Option<Vec<String>>, Error> {
        let Some(api) = self.session.api().await? else {
            return Ok(None);
        };
        let collection = format!("/api/v1/namespaces/{}/configmaps", probe::NAMESPACE);
        // Without a resource version: what a quorum has.
        let list = api.get(&collection).await?.unwrap_or_default();
        let found: std::collections::BTreeSet<&str> = list
            .get("items")
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|item| item.pointer("/metadata/name")?.as_str())
            .collect();
        let mut lost = Vec::new();
        for vantage in &outcome.details.vantages {
            for (key, acknowledged) in probe::written(&vantage.samples) {
                if acknowledged && !found.contains(key) {
                    lost.push(key.to_owned());
                }
            }
        }
        api.delete(&collection).await?;
        Ok((!lost.is_empty()).then_some(lost))
    }

    async fn prepare(&self) -> Result<(), Error> {
        let Some(api) = self.session.api().await? else {
            return Err(Error::Refused("no API server answers".into()));
        };
        let name = probe::NAMESPACE;
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        api.apply(&format!("/api/v1/namespaces/{name}"), body.to_string().as_bytes())
            .await?;
        if let Some(dir) = &self.options.dir {
            std::fs::create_dir_all(dir).map_err(|error| Error::Report {
                path: dir.clone(),
                error,
            })?;
        }
        Ok(())
    }

    async fn clean(&self) {
        if let Ok(Some(api)) = self.session.api().await {
            let _ = api.delete(&format!("/api/v1/namespaces/{}", probe::NAMESPACE)).await;
        }
    }

    /// API servers that are not broken, or all of them if every one is.
    fn apis(&self, identity: &Identity, broken: &[String]) -> Vec<Api> {
        let spec = &self.session.spec;
        let mut control_planes = spec.control_planes();
        control_planes.sort_by_key(|machine| broken.contains(&machine.name));
        let reached = control_planes
            .into_iter()
            .filter_map(|machine| Some((machine, self.session.fleet.get(&machine.name)?.clone())));
        reached
            .map(|(machine, connection)| Api::new(connection, spec.api_server_of(machine), identity.clone()))
            .collect()
    }

    fn machine(&self, name: &str) -> Result<&MachineRef, Error> {
        self.session
            .fleet
            .get(name)
            .ok_or_else(|| Error::Refused(format!("{name} is not connected")))
    }

    /// Told, and on disk before it goes on: what a drill that dies leaves behind.
    fn tell(&self, event: Event) {
        (self.events)(&event);
        if let Some(dir) = &self.options.dir
            && let Ok(mut line) = serde_json::to_vec(&json!({"at": jiff::Timestamp::now().to_string(), "what": event}))
        {
            line.push(b'\n');
            let file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(dir.join("journal.jsonl"));
            let _ = file.and_then(|mut file| std::io::Write::write_all(&mut file, &line));
        }
    }

    fn write(&self, report: &Report) -> Result<(), Error> {
        match &self.options.dir {
            Some(dir) => report::write(report, dir).map_err(|error| Error::Report {
                path: dir.clone(),
                error,
            }),
            None => Ok(()),
        }
    }
}

/// Not used before on any machine: the time, in base 36.
fn unique() -> String {
    let mut number = monotonic_us().unsigned_abs();
    let mut text = String::new();
    while number > 0 {
        text.insert(0, char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
    }
    format!("d{text}")
}
