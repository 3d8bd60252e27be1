//! One scenario after the other: measure, break, take back, wait until all is green, judge.

mod breaking;
mod judge;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quorate_machine::MachineRef;
use quorate_machine::proto::Exec;
use quorate_run::{Api, Identity, Lock, RunId, Session, Stop};
use quorate_spec::Spec;
use serde::Serialize;
use serde_json::json;
use tokio::time::{Instant, sleep};

use judge::Findings;

use crate::Error;
use crate::fault::{AFTER_THE_CLUSTER, BEFORE_THE_CLUSTER, DEADMAN_MARGIN, Injection};
use crate::holders::{self, Times};
use crate::measure::{Series, reigns};
use crate::observe::{LEASES, Observer, Seen};
use crate::power::{Deadman, Power};
use crate::probe::{self, Kind, monotonic_us};
use crate::probes::{Place, Probes, Rates};
use crate::report::{self, Leader, Outcome, Owner, Report, Writes};
use crate::scenario::{Around, Fault, Limits, Scenario, Target};
use crate::target;

/// Clients are watched this long before anything is broken.
const CALM: Duration = Duration::from_millis(1_500);
/// Who led may have died in the scenario before: what happens to its lease is none of the next one's doing.
const LED_WITHIN: Duration = Duration::from_secs(30);
const DRAIN_TIMEOUT_MS: u64 = 60_000;
const NAMESPACE_GONE_WITHIN: Duration = Duration::from_secs(60);
const KUBECTL: &str = "/opt/quorate/bin/kubectl";

/// Where clients go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Clients {
    /// The VIP, or without one what nodes have of their own.
    #[default]
    Endpoint,
    /// The balancer every node has of its own.
    Access,
}

#[derive(Clone, Debug, Default)]
pub struct Options {
    pub rates: Rates,
    pub clients: Clients,
    /// Reports are written here as the drill goes on.
    pub dir: Option<PathBuf>,
    pub allow_outage: bool,
    /// The VIP is others', with units of their own.
    pub foreign_vip: bool,
    /// Not to be run, and why: they are in the report as well.
    pub left_out: Vec<(&'static Scenario, String)>,
    /// Command and arguments that run this program where the operator reaches the API.
    pub operator: Vec<String>,
    /// Ends the drill: what is broken is taken back, nothing more is broken.
    pub stop: Stop,
    /// Take the cluster's lock from a run that still holds it.
    pub steal: bool,
    /// After a scenario from which the cluster did not recover in time.
    pub keep_going: bool,
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

/// What a drill has while it goes on.
struct Held<'a> {
    identity: &'a Identity,
    lock: &'a Lock,
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
            if run.scenario.takes_api_away(spec) && !self.options.allow_outage {
                return Err(Error::Refused(format!(
                    "{} takes the whole API of {} away for a while; --allow-outage permits it",
                    run.scenario.name, spec.name
                )));
            }
        }
        let report = self.verify().await?;
        if !report.ok() {
            let failed: Vec<String> = report
                .failed()
                .map(|check| format!("{} {}: {} ({})", check.name, check.target, check.detail, check.hint))
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
        self.go(runs.iter().cloned(), runs.len(), None).await
    }

    /// `of`: how many there will be; 0 if nobody knows.
    async fn go(&self, runs: impl Iterator<Item = Run>, of: usize, seed: Option<u64>) -> Result<Report, Error> {
        let identity = self
            .session
            .operator
            .identity()?
            .ok_or_else(|| Error::Refused("the operator's folder holds no authorities: apply first".into()))?;
        // An apply would mend what is broken here, or plan for it.
        let lock = Lock::take(
            &self.session.spec,
            &self.session.fleet,
            &RunId::new(),
            self.options.steal,
        )
        .await?;
        let (lost, stop) = (lock.lost().clone(), self.options.stop.clone());
        let watching = tokio::spawn(async move {
            lost.stopped().await;
            stop.stop();
        });
        let held = Held {
            identity: &identity,
            lock: &lock,
        };
        let report = self.locked(runs, of, seed, &held).await;
        watching.abort();
        lock.give_back().await;
        report
    }

    async fn locked(
        &self,
        runs: impl Iterator<Item = Run>,
        of: usize,
        seed: Option<u64>,
        held: &Held<'_>,
    ) -> Result<Report, Error> {
        self.prepare().await?;
        let mut report = Report {
            cluster: self.session.spec.name.clone(),
            seed,
            scenarios: self.options.left_out.iter().map(left_out).collect(),
        };
        self.write(&report)?;
        let mut well = true;
        for (number, run) in runs.enumerate() {
            if self.options.stop.is_stopped() {
                break;
            }
            well = well || self.verify().await.is_ok_and(|report| report.ok());
            if !may_break(run.scenario, &self.session.spec, well, self.options.allow_outage) {
                let reason = "the cluster is not well, and what this takes away as well may be too much; --allow-outage permits it";
                let outcome = Outcome {
                    name: run.name(),
                    ..Outcome::left_out(run.scenario, reason)
                };
                self.tell(Event::Done {
                    outcome: Box::new(outcome.clone()),
                });
                report.scenarios.push(outcome);
                self.write(&report)?;
                continue;
            }
            self.tell(Event::Started {
                name: run.name(),
                what: run.scenario.what.into(),
                number: number + 1,
                of,
            });
            // What a drill that dies now leaves behind.
            report.scenarios.push(Outcome::begun(&run.name(), run.scenario));
            self.write(&report)?;
            let outcome = self.one(&run, held).await;
            let green = outcome.details.recovery_ms.is_some();
            self.tell(Event::Done {
                outcome: Box::new(outcome.clone()),
            });
            report.scenarios.pop();
            report.scenarios.push(outcome);
            self.write(&report)?;
            if !green && !self.options.keep_going {
                break;
            }
            well = green;
        }
        self.clean().await;
        Ok(report)
    }

    /// One scenario of the walk after the other until the time is over.
    pub async fn walk(&self, walk: crate::chaos::Walk, length: Duration) -> Result<Report, Error> {
        let (begun, seed) = (Instant::now(), walk.seed());
        self.go(walk.take_while(|_| begun.elapsed() < length), 0, Some(seed))
            .await
    }

    async fn one(&self, run: &Run, held: &Held<'_>) -> Outcome {
        let mut outcome = Outcome::begun(&run.name(), run.scenario);
        let mut findings = Findings::default();
        if let Err(error) = self.measured(run, held, &mut outcome, &mut findings).await {
            findings.why.push(error.to_string());
        }
        outcome.load[1] = report::load();
        findings.settle(&mut outcome);
        outcome
    }

    async fn measured(
        &self,
        run: &Run,
        held: &Held<'_>,
        outcome: &mut Outcome,
        findings: &mut Findings,
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
            held.identity,
            &targets,
            &unique(),
            &Place {
                operator: &self.options.operator,
                clients: self.options.clients,
                there: scenario.clients_there,
                rates: self.options.rates,
            },
        )
        .await;
        let observer = Observer::start(session, self.apis(held.identity, &targets));
        let calm = async {
            sleep(CALM).await;
            let _ = tokio::time::timeout(LED_WITHIN, observer.led()).await;
        };
        tokio::select! {
            () = calm => {}
            () = self.options.stop.stopped() => {}
        }

        let hold = run.hold.unwrap_or(scenario.hold);
        let mut broken = Vec::new();
        let begun = Instant::now();
        let mut fault_us = monotonic_us();
        let mut cuts_us = Vec::new();
        let armed = self.arm(&parts, hold + DEADMAN_MARGIN, &mut broken).await;
        let injected = match armed {
            Ok(()) => {
                fault_us = monotonic_us();
                self.inject(&broken, &observer).await
            }
            Err(error) => Err(error),
        };
        match injected {
            Ok(cuts) => {
                cuts_us = cuts;
                self.tell(Event::Broken {
                    name: run.name(),
                    machines: targets.clone(),
                });
                tokio::select! {
                    () = sleep(hold) => {}
                    () = self.options.stop.stopped() => findings.why.push("interrupted".into()),
                }
            }
            Err(Error::Cannot(reason)) => findings.skipped = Some(reason),
            Err(error @ Error::Interrupted) => findings.why.push(error.to_string()),
            Err(error) => findings.why.push(format!("could not be broken: {error}")),
        }
        findings.why.extend(
            self.take_back(&broken, held, Duration::from_secs(scenario.limits.recovery_s))
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
        outcome.details.recovery_ms = self.green(run, &mut findings.why).await?;

        let (vantages, lost) = probes.stop().await;
        for message in lost {
            self.tell(Event::Trouble {
                name: run.name(),
                message: message.clone(),
            });
            findings.why.push(message);
        }
        outcome.details.vantages = vantages;
        let seen = observer.seen();
        drop(observer);
        // Nothing happened, so nothing was shown.
        if findings.skipped.is_none() {
            self.judge(scenario, outcome, &seen, &cuts_us, reverted_us, findings);
        }
        let lost = self.read_back(outcome).await?;
        if !lost.is_empty() {
            findings.why.push(format!(
                "{} acknowledged writes are lost: {}",
                lost.len(),
                lost.iter().take(5).cloned().collect::<Vec<_>>().join(", ")
            ));
            outcome.writes.lost = lost.len() as u64;
        }
        Ok(())
    }

    /// Looks until every check holds; ms it took.
    async fn green(&self, run: &Run, why: &mut Vec<String>) -> Result<Option<u64>, Error> {
        let begun = Instant::now();
        let limit = Duration::from_secs(run.scenario.limits.recovery_s);
        loop {
            let report = self.verify().await?;
            let took = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
            let interrupted = self.options.stop.is_stopped();
            if report.ok() {
                self.tell(Event::Green {
                    name: run.name(),
                    after_ms: took,
                });
                return Ok(Some(took));
            }
            if begun.elapsed() > limit || interrupted {
                let failed: Vec<String> = report
                    .failed()
                    .map(|check| format!("{} {}: {}", check.name, check.target, check.detail))
                    .collect();
                why.push(format!(
                    "not green within {} s: {}",
                    begun.elapsed().as_secs(),
                    failed.join(", ")
                ));
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

    async fn prepare(&self) -> Result<(), Error> {
        let Some(api) = self.session.api().await? else {
            return Err(Error::Refused("no API server answers".into()));
        };
        let name = probe::NAMESPACE;
        let path = format!("/api/v1/namespaces/{name}");
        let body = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}).to_string();
        let begun = Instant::now();
        // The last drill's may still be on its way out; it takes nothing new, and what is in it goes with it.
        while api.apply(&path, body.as_bytes()).await?["metadata"]["deletionTimestamp"].is_string() {
            if begun.elapsed() > NAMESPACE_GONE_WITHIN {
                return Err(Error::Refused(format!(
                    "namespace {name} is still being deleted after {} s",
                    NAMESPACE_GONE_WITHIN.as_secs()
                )));
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
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

/// Two faults at once may be more than a cluster bears, although each alone is not.
fn may_break(scenario: &Scenario, spec: &Spec, well: bool, allow_outage: bool) -> bool {
    well || allow_outage || !scenario.is_on_vital(spec)
}

fn left_out((scenario, reason): &(&'static Scenario, String)) -> Outcome {
    Outcome::left_out(scenario, reason)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::find;

    #[test]
    fn nothing_more_is_taken_from_a_cluster_that_did_not_recover() {
        let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  endpoint: {vip: 10.0.0.100}\n  machines:\n    - {name: m1, address: 10.0.0.1, roles: [control-plane]}\n    - {name: m2, address: 10.0.0.2, roles: [control-plane]}\n    - {name: m3, address: 10.0.0.3, roles: [control-plane]}\n";
        let (spec, _) = quorate_spec::load(text, "cluster.yaml").unwrap();
        for (name, afterwards) in [
            ("etcd-follower-killed", false),
            ("machine-off-each", false),
            ("machine-off-and-kubelet-killed", false),
            ("agent-killed", false),
            ("kubelet-killed", true),
        ] {
            let scenario = find(name).unwrap();
            assert!(may_break(scenario, &spec, true, false), "{name}");
            assert_eq!(may_break(scenario, &spec, false, false), afterwards, "{name}");
            assert!(may_break(scenario, &spec, false, true), "{name}");
        }
    }
}
