//! Carrying a plan out. No choices are made here: waves of stages in order; in a wave, every step whose needs are done runs; a
//! step is check → act → confirm; what fails is said, and what it means follows from the plan (`essential`, `needs`).

mod sync;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quorate_machine::MachineRef;
use quorate_pki::inventory::Host;
use quorate_plan::{Action, Plan, Stage, Step};
use quorate_spec::Spec;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::action;
use crate::blobs;
use crate::catalogue::Catalogue;
use crate::condition;
use crate::event::{Event, Listener, ms};
use crate::failure::StepError;
use crate::fleet::Fleet;
use crate::journal::{Journal, Record, RunId, now_ms};
use crate::kube::{Api, ApiError, Requests};
use crate::lock::Lock;
use crate::operator::{Identity, Operator, random};
use crate::outcome::{Ended, Failure, Outcome};
use crate::session::{Session, apis};
use crate::stop::Stop;

/// Pause before the second attempt; doubles, up to [`LONGEST_PAUSE`], with up to a quarter more by chance.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// A kubelet asks for its serving certificate within seconds of joining.
const CSR_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug)]
pub struct Options {
    /// Steps that may act at the same time; waiting does not count.
    pub concurrency: usize,
    /// Take the lock from a run that still holds it.
    pub steal: bool,
    /// Ends the run at a safe point.
    pub stop: Stop,
}

impl Default for Options {
    fn default() -> Self {
        // What one uplink and two cores feed without requests timing out.
        Self {
            concurrency: 64,
            steal: false,
            stop: Stop::default(),
        }
    }
}

/// One execution, as its steps see it.
pub(crate) struct Run {
    pub(crate) id: RunId,
    pub(crate) spec: Arc<Spec>,
    pub(crate) fleet: Fleet,
    pub(crate) operator: Operator,
    pub(crate) catalogue: Catalogue,
    pub(crate) stop: Stop,
    pub(crate) events: Listener,
    apis: Vec<Api>,
    requests: Requests,
    journal: Option<Journal>,
    acting: Semaphore,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    done: BTreeSet<String>,
    /// Failed or skipped: nothing that needs them begins.
    broken: BTreeSet<String>,
    failures: Vec<Failure>,
    /// Failures of no step: machines that did not write everything to disk.
    unsynced: Vec<Failure>,
    begun: BTreeMap<String, Instant>,
    lost: BTreeMap<String, String>,
}

/// What may be asked of any API server.
#[derive(Clone, Copy)]
pub(crate) enum Ask<'a> {
    Get { path: &'a str },
    Apply { path: &'a str, body: &'a [u8] },
    Delete { path: &'a str },
    ApproveServing { node: &'a Host },
}

/// One stage under way.
struct Course {
    begun: Option<Instant>,
    /// Steps that have not ended.
    left: usize,
}

impl Course {
    fn of(stage: &Stage) -> Self {
        Self {
            begun: None,
            left: stage.steps.len(),
        }
    }

    fn begin(&mut self, run: &Run, stage: &Stage) {
        if self.begun.is_some() {
            return;
        }
        self.begun = Some(Instant::now());
        run.tell(Event::StageStarted {
            stage: stage.name.clone(),
            title: stage.title.clone(),
            steps: stage.steps.len(),
        });
    }

    /// When the stage began, if this was its last step.
    fn step_ended(&mut self) -> Option<Instant> {
        self.left -= 1;
        self.begun.filter(|_| self.left == 0)
    }
}

fn asked_to_stop() -> Ended {
    Ended::Stopped {
        because: "asked to".into(),
    }
}

/// How one step ended.
enum End {
    Done,
    Failed(StepError),
    Skipped(String),
}

#[allow(clippy::too_many_arguments)] // everything a run consists of, once
pub(crate) async fn execute(
    session: &Session,
    plan: &Plan,
    id: &RunId,
    identity: Option<Identity>,
    journal: Option<Journal>,
    lock: &Lock,
    options: &Options,
    events: &Listener,
) -> Outcome {
    let begun = Instant::now();
    let run = Arc::new(Run {
        id: id.clone(),
        spec: session.spec.clone(),
        fleet: session.fleet.clone(),
        operator: session.operator.clone(),
        catalogue: session.catalogue.clone(),
        stop: options.stop.clone(),
        events: events.clone(),
        apis: identity.map(|identity| apis(session, &identity)).unwrap_or_default(),
        requests: Requests::default(),
        journal,
        acting: Semaphore::new(options.concurrency.max(1)),
        progress: Mutex::new(Progress {
            lost: session.fleet.unreachable().clone(),
            ..Progress::default()
        }),
    });
    run.tell(Event::RunStarted {
        run: id.to_string(),
        plan: plan.hash(),
        stages: plan.stages.len(),
        steps: plan.step_count(),
    });
    let (stages, ended) = tokio::select! {
        ended = async {
            let (mut took, ended) = run.stages(plan).await;
            took.extend(run.sync(plan).await);
            (took, ended)
        } => ended,
        // The machines refuse our changes from now on; there is no safe point to wait for.
        () = lock.lost().stopped() => (Vec::new(), Some(Ended::Stopped { because: "another run took the lock over".into() })),
    };
    run.outcome(plan, ended, stages, begun).await
}

impl Run {
    async fn stages(self: &Arc<Self>, plan: &Plan) -> (Vec<(String, u64)>, Option<Ended>) {
        let mut took = Vec::new();
        for wave in plan.waves() {
            if self.stop.is_stopped() {
                return (took, Some(asked_to_stop()));
            }
            let noted = self.wave(wave, &mut took).await;
            if let Err(error) = noted {
                return (took, Some(Ended::Stopped { because: error.message }));
            }
            if self.stop.is_stopped() {
                return (took, Some(asked_to_stop()));
            }
            let progress = self.progress();
            let failed = |step: &Step| step.essential && !progress.done.contains(&step.id);
            if let Some(stage) = wave.iter().find(|stage| stage.steps.iter().any(failed)) {
                let ended = Ended::Failed {
                    stage: stage.name.clone(),
                };
                return (took, Some(ended));
            }
        }
        (took, None)
    }

    /// Stages that run together. Adds how long each took; an error is the journal's.
    async fn wave(self: &Arc<Self>, wave: &[Stage], took: &mut Vec<(String, u64)>) -> Result<(), StepError> {
        // A step begins when all it needs has ended; so every end is looked at once for each step that waits for it.
        let mut open: BTreeMap<&str, (Arc<Step>, usize)> = BTreeMap::new();
        let mut waiting: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let mut stages: Vec<Course> = wave.iter().map(Course::of).collect();
        let index: BTreeMap<&str, usize> = wave
            .iter()
            .enumerate()
            .flat_map(|(index, stage)| stage.steps.iter().map(move |step| (step.id.as_str(), index)))
            .collect();
        for step in wave.iter().flat_map(|stage| &stage.steps) {
            let within = step.needs.iter().filter(|need| index.contains_key(need.as_str()));
            open.insert(&step.id, (Arc::new(step.clone()), within.clone().count()));
            for need in within {
                waiting.entry(need).or_default().push(&step.id);
            }
        }
        let mut running = JoinSet::new();
        let mut ready: Vec<Arc<Step>> = wave
            .iter()
            .flat_map(|stage| &stage.steps)
            .filter_map(|step| open.get(step.id.as_str()))
            .filter(|(_, count)| *count == 0)
            .map(|(step, _)| step.clone())
            .collect();
        let mut noted = Ok(());
        // The first stage whose gate is shut: nothing of a later one begins any more.
        let mut shut = usize::MAX;
        loop {
            ready.retain(|step| index[step.id.as_str()] <= shut);
            for step in &ready {
                let at = index[step.id.as_str()];
                stages[at].begin(self, &wave[at]);
            }
            // Blobs of a stage travel together, so that each leaves the operator about once.
            let (blobs, others): (Vec<_>, Vec<_>) = ready
                .drain(..)
                .partition(|step| matches!(step.action, Action::Blobs { .. }));
            for step in others {
                let run = self.clone();
                running.spawn(async move {
                    let end = run.step(&step).await;
                    vec![(step, end)]
                });
            }
            if !blobs.is_empty() {
                let run = self.clone();
                running.spawn(async move { run.blobs(blobs).await });
            }
            let Some(ended) = running.join_next().await else { break };
            let Ok(ended) = ended else { continue };
            for (step, end) in ended {
                let at = index[step.id.as_str()];
                if step.essential && !matches!(end, End::Done) {
                    shut = shut.min(at);
                }
                self.settle(&step, end).await;
                if let Some(ended) = stages[at].step_ended() {
                    noted = noted.and(self.stage_ended(&wave[at], ended, took).await);
                }
                for id in waiting.get(step.id.as_str()).into_iter().flatten() {
                    if let Some((step, count)) = open.get_mut(id) {
                        *count -= 1;
                        if *count == 0 {
                            ready.push(step.clone());
                        }
                    }
                }
            }
        }
        // Begun, but cut short by the gate of a stage before.
        for (stage, course) in wave.iter().zip(&stages) {
            if let Some(begun) = course.begun.filter(|_| course.left > 0) {
                noted = noted.and(self.stage_ended(stage, begun, took).await);
            }
        }
        noted
    }

    async fn stage_ended(&self, stage: &Stage, begun: Instant, took: &mut Vec<(String, u64)>) -> Result<(), StepError> {
        let failed = {
            let progress = self.progress();
            let undone = stage.steps.iter().filter(|step| !progress.done.contains(&step.id));
            undone.count()
        };
        let took_ms = ms(begun.elapsed());
        took.push((stage.name.clone(), took_ms));
        self.stage_done(&stage.name, took_ms, failed).await
    }

    async fn stage_done(&self, name: &str, took_ms: u64, failed: usize) -> Result<(), StepError> {
        let record = Record::Stage {
            at: now_ms(),
            stage: name.into(),
            took_ms,
            failed,
        };
        let noted = self.note(record).await;
        self.tell(Event::StageDone {
            stage: name.into(),
            took_ms,
            failed,
        });
        noted
    }

    async fn step(&self, step: &Step) -> End {
        if let Some(because) = self.hindrance(step) {
            return End::Skipped(because);
        }
        let Some(machine) = self.fleet.get(&step.machine).cloned() else {
            return End::Skipped(format!("{} is not reached", step.machine));
        };
        let begun = self.begin(step).await;
        let end = match begun {
            Ok(()) => self.act(step, &machine).await,
            Err(error) => Err(error),
        };
        match end {
            Ok(()) => End::Done,
            Err(error) => End::Failed(error),
        }
    }

    async fn act(&self, step: &Step, machine: &MachineRef) -> Result<(), StepError> {
        let mut attempt = 1;
        let mut pause = FIRST_PAUSE;
        loop {
            let acted = {
                // Closed by nobody.
                let _permit = self.acting.acquire().await;
                action::act(self, machine, step, attempt).await
            };
            match acted {
                Ok(()) => break,
                Err(error) if error.retryable && attempt < step.attempts && !self.stop.is_stopped() => {
                    self.tell(Event::StepRetry {
                        step: step.id.clone(),
                        machine: step.machine.clone(),
                        attempt,
                        error: error.message,
                    });
                    let [chance] = random::<1>();
                    sleep(pause + pause * u32::from(chance) / 1024).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    attempt += 1;
                }
                Err(error) => return Err(action::explain(machine, step, error).await),
            }
        }
        for wait in &step.done_when {
            self.tell(Event::StepWaiting {
                step: step.id.clone(),
                machine: step.machine.clone(),
                awaited: condition::describe(&wait.until),
            });
            if let Err(error) = condition::wait(self, machine, wait).await {
                return Err(if error.stopped {
                    error
                } else {
                    action::explain(machine, step, error).await
                });
            }
        }
        Ok(())
    }

    async fn blobs(self: Arc<Self>, steps: Vec<Arc<Step>>) -> Vec<(Arc<Step>, End)> {
        let mut ends = Vec::new();
        let mut wanted = Vec::new();
        for step in steps {
            match (self.hindrance(&step), self.fleet.get(&step.machine)) {
                (Some(because), _) => ends.push((step, End::Skipped(because))),
                (None, None) => {
                    let because = format!("{} is not reached", step.machine);
                    ends.push((step, End::Skipped(because)));
                }
                (None, Some(machine)) => match self.begin(&step).await {
                    Ok(()) => wanted.push((step, machine.clone())),
                    Err(error) => ends.push((step, End::Failed(error))),
                },
            }
        }
        for (step, result) in blobs::distribute(&self, wanted).await {
            ends.push((step, result.map_or_else(End::Failed, |()| End::Done)));
        }
        ends
    }

    /// Why the step may not begin.
    fn hindrance(&self, step: &Step) -> Option<String> {
        if self.stop.is_stopped() {
            return Some("the run was stopped".into());
        }
        let progress = self.progress();
        let machine = step.concerns().unwrap_or(&step.machine);
        if let Some(reason) = progress.lost.get(machine) {
            return Some(format!("{machine} took no further part: {reason}"));
        }
        let broken = step.needs.iter().find(|need| progress.broken.contains(*need))?;
        Some(format!("it needs {broken}"))
    }

    pub(crate) fn is_lost(&self, machine: &str) -> bool {
        self.progress().lost.contains_key(machine)
    }

    /// On disk before anything changes.
    async fn begin(&self, step: &Step) -> Result<(), StepError> {
        self.progress().begun.insert(step.id.clone(), Instant::now());
        self.tell(Event::StepStarted {
            step: step.id.clone(),
            machine: step.machine.clone(),
            title: step.title.clone(),
        });
        self.note(Record::Started {
            at: now_ms(),
            step: step.id.clone(),
            machine: step.machine.clone(),
        })
        .await
    }

    async fn settle(&self, step: &Step, end: End) {
        let (id, machine) = (step.id.clone(), step.machine.clone());
        let took_ms = self.progress().begun.get(&id).map_or(0, |begun| ms(begun.elapsed()));
        let record = match end {
            End::Done => {
                self.progress().done.insert(id.clone());
                self.tell(Event::StepDone {
                    step: id.clone(),
                    machine: machine.clone(),
                    took_ms,
                });
                Record::Done {
                    at: now_ms(),
                    step: id,
                    machine,
                    took_ms,
                }
            }
            End::Skipped(because) => {
                self.progress().broken.insert(id.clone());
                self.tell(Event::StepSkipped {
                    step: id.clone(),
                    machine: machine.clone(),
                    because: because.clone(),
                });
                Record::Skipped {
                    at: now_ms(),
                    step: id,
                    machine,
                    because,
                }
            }
            End::Failed(error) => {
                self.fail(step, &error);
                self.tell(Event::StepFailed {
                    step: id.clone(),
                    machine: machine.clone(),
                    error: error.message.clone(),
                    hint: error.hint,
                    took_ms,
                });
                Record::Failed {
                    at: now_ms(),
                    step: id,
                    machine,
                    took_ms,
                    error: error.message,
                }
            }
        };
        // What is done is done; a journal that cannot be written stops the run before the next step begins.
        let _ = self.note(record).await;
    }

    fn fail(&self, step: &Step, error: &StepError) {
        let mut progress = self.progress();
        progress.broken.insert(step.id.clone());
        progress.failures.push(Failure {
            step: step.id.clone(),
            machine: step.machine.clone(),
            title: step.title.clone(),
            error: error.message.clone(),
            hint: error.hint.clone(),
        });
        if step.essential || error.stopped {
            return;
        }
        let because = format!("{} failed", step.id);
        let Some(dropped) = step.concerns().map(str::to_owned) else {
            return;
        };
        if progress.lost.insert(dropped.clone(), because.clone()).is_none() {
            drop(progress);
            self.tell(Event::MachineLost {
                machine: dropped,
                because,
            });
        }
    }

    /// Asks the API server of this machine, then the others, until one answers.
    pub(crate) async fn api(&self, first: &str, ask: Ask<'_>) -> Result<Option<Value>, ApiError> {
        let (own, others): (Vec<&Api>, Vec<&Api>) = self.apis.iter().partition(|api| api.machine() == first);
        let mut last = ApiError::Late("there is no API server to ask".into());
        for api in own.into_iter().chain(others) {
            let answer = match ask {
                Ask::Get { path } => api.get(path).await,
                Ask::Apply { path, body } => api.apply(path, body).await.map(Some),
                Ask::Delete { path } => api.delete(path).await.map(|()| None),
                Ask::ApproveServing { node } => api
                    .approve_serving(&self.requests, node, CSR_TIMEOUT)
                    .await
                    .map(|()| None),
            };
            match answer {
                Err(error @ (ApiError::Machine(_) | ApiError::Refused { status: 500.., .. })) => last = error,
                other => return other,
            }
        }
        Err(last)
    }

    async fn outcome(&self, plan: &Plan, ended: Option<Ended>, stages: Vec<(String, u64)>, begun: Instant) -> Outcome {
        let took_ms = ms(begun.elapsed());
        let outcome = {
            let progress = self.progress();
            let whole =
                progress.done.len() == plan.step_count() && progress.lost.is_empty() && progress.unsynced.is_empty();
            Outcome {
                run: self.id.to_string(),
                ended: ended.unwrap_or(if whole { Ended::Complete } else { Ended::Partial }),
                done: progress.done.len(),
                failures: progress.failures.iter().chain(&progress.unsynced).cloned().collect(),
                skipped: plan
                    .step_count()
                    .saturating_sub(progress.done.len() + progress.failures.len()),
                lost: progress.lost.clone(),
                stages,
                took_ms,
            }
        };
        let how = match &outcome.ended {
            Ended::Complete => "complete",
            Ended::Partial => "partial",
            Ended::Failed { .. } => "failed",
            Ended::Stopped { .. } => "stopped",
        };
        let (done, failed, skipped) = (outcome.done, outcome.failures.len(), outcome.skipped);
        // The run is over either way, and the outcome says how.
        let _ = self
            .note(Record::Ended {
                at: now_ms(),
                how: how.into(),
                took_ms,
                done,
                failed,
                skipped,
            })
            .await;
        self.tell(Event::RunDone {
            took_ms,
            done,
            failed,
            skipped,
        });
        outcome
    }

    pub(crate) fn tell(&self, event: Event) {
        (self.events)(&event);
    }

    async fn note(&self, record: Record) -> Result<(), StepError> {
        match &self.journal {
            None => Ok(()),
            Some(journal) => journal
                .write(record)
                .await
                .map_err(|error| StepError::lasting(error.to_string())),
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
