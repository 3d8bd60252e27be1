//! Taking a run back: its journal is walked backwards, each step undone as the plan said it would be.

use quorate_machine::proto::UnitOp;
use quorate_machine::{ErrorKind, MachineRef, Request};
use quorate_plan::{Action, Before, Step, Undo};
use serde::Serialize;
use serde_json::Value;

use crate::error::Error;
use crate::event::{Event, Listener};
use crate::execute::Options;
use crate::journal::{self, RunId};
use crate::kube::{Api, ApiError};
use crate::lock::Lock;
use crate::session::Session;

/// What was taken back and what was not.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Undone {
    /// Ids of steps, in the order they were taken back.
    pub steps: Vec<String>,
    /// Steps that need a hand, with what to do.
    pub manual: Vec<(String, String)>,
    /// Steps whose undoing failed, with the error. They are tried again by another rollback.
    pub failed: Vec<(String, String)>,
}

const UNITS_TIMEOUT_MS: u64 = 120_000;

pub(crate) async fn rollback(
    session: &Session,
    run: &str,
    options: &Options,
    events: &Listener,
) -> Result<Undone, Error> {
    let Some(folder) = session.operator.folder() else {
        return Err(Error::NoSuchRun {
            id: run.into(),
            folder: ".".into(),
        });
    };
    let story = journal::read(folder, run)?;
    let Some(plan) = &story.plan else {
        return Err(Error::Journal {
            path: folder.join("runs").join(format!("{run}.plan")),
            reason: "the run's plan is missing or unreadable".into(),
        });
    };
    let lock = Lock::take(
        &session.spec,
        &session.fleet,
        &RunId::from(format!("{run}-rollback")),
        options.steal,
    )
    .await?;
    let api = session.api().await?;
    let mut undone = Undone::default();
    for id in story.begun().into_iter().rev() {
        if options.stop.is_stopped() || lock.lost().is_stopped() {
            break;
        }
        let Some(step) = plan.steps().find(|step| step.id == id) else {
            continue;
        };
        events(&Event::StepStarted {
            step: step.id.clone(),
            machine: step.machine.clone(),
            title: format!("take back: {}", step.title),
        });
        match undo(session, run, step, api.as_ref()).await {
            Ok(None) => {
                events(&Event::StepDone {
                    step: step.id.clone(),
                    machine: step.machine.clone(),
                    took_ms: 0,
                });
                undone.steps.push(step.id.clone());
            }
            Ok(Some(hint)) => undone.manual.push((step.id.clone(), hint)),
            Err(error) => {
                events(&Event::StepFailed {
                    step: step.id.clone(),
                    machine: step.machine.clone(),
                    error: error.clone(),
                    hint: None,
                    took_ms: 0,
                });
                undone.failed.push((step.id.clone(), error));
            }
        }
    }
    lock.give_back().await;
    Ok(undone)
}

/// `Some`: what a person has to do.
async fn undo(session: &Session, run: &str, step: &Step, api: Option<&Api>) -> Result<Option<String>, String> {
    let machine = || {
        session
            .fleet
            .get(&step.machine)
            .ok_or_else(|| format!("{} is not reached", step.machine))
    };
    match &step.undo {
        Undo::Nothing { .. } => Ok(None),
        Undo::Manual { hint } => Ok(Some(hint.clone())),
        Undo::Kept => kept(machine()?, run, step).await.map(|()| None),
        Undo::Units => units(machine()?, step).await.map(|()| None),
        Undo::Objects => objects(api, step)
            .await
            .map_err(|error| error.to_string())
            .map(|()| None),
    }
}

async fn kept(machine: &MachineRef, run: &str, step: &Step) -> Result<(), String> {
    match &step.action {
        Action::Files { files } => {
            let (made, replaced): (Vec<_>, Vec<_>) = files.iter().partition(|file| file.before == Before::Absent);
            restore(machine, run, replaced.iter().map(|file| file.path.clone()).collect()).await?;
            remove(machine, run, made.iter().map(|file| file.path.clone()).collect()).await
        }
        Action::Links { links } => {
            for link in links {
                match &link.before {
                    Some(target) if !target.is_empty() => {
                        let request = Request::Link {
                            path: link.path.clone(),
                            target: target.clone(),
                            run_id: run.into(),
                        };
                        machine.items(request).await.map_err(|error| error.to_string())?;
                    }
                    _ => remove(machine, run, vec![link.path.clone()]).await?,
                }
            }
            Ok(())
        }
        Action::Remove { paths, .. } => restore(machine, run, paths.clone()).await,
        Action::Block { path, .. } => restore(machine, run, vec![path.clone()]).await,
        // What a parameter was before is in the file the first apply wrote; `reset` puts it back. Directories that were
        // made stay: they may hold what others put there since.
        _ => Ok(()),
    }
}

/// Paths the run kept nothing for were not changed by it.
async fn restore(machine: &MachineRef, run: &str, paths: Vec<String>) -> Result<(), String> {
    for path in paths {
        let request = Request::Restore {
            paths: vec![path],
            run_id: run.into(),
        };
        match machine.items(request).await {
            Ok(_) => {}
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

async fn remove(machine: &MachineRef, run: &str, paths: Vec<String>) -> Result<(), String> {
    if paths.is_empty() {
        return Ok(());
    }
    // Under another id, so that what the run itself kept is not overwritten.
    let request = Request::Remove {
        paths,
        recursive: false,
        run_id: format!("{run}-rollback"),
    };
    machine
        .items(request)
        .await
        .map(|_| ())
        .map_err(|error| error.to_string())
}

/// Units it started for the first time stop; the files are put back by the steps before it, and those it restarted are
/// restarted when that is done.
async fn units(machine: &MachineRef, step: &Step) -> Result<(), String> {
    let Action::Units { enable, start, .. } = &step.action else {
        return Ok(());
    };
    let mut ops = Vec::new();
    if !start.is_empty() {
        ops.push(UnitOp::Stop(start.clone()));
    }
    if !enable.is_empty() {
        ops.push(UnitOp::Disable(enable.clone()));
    }
    if ops.is_empty() {
        return Ok(());
    }
    machine
        .units(ops, UNITS_TIMEOUT_MS)
        .await
        .map_err(|error| error.to_string())
}

/// What it created goes away; what it changed gets its former content, unless somebody deleted it since.
async fn objects(api: Option<&Api>, step: &Step) -> Result<(), ApiError> {
    let (Action::Apply { objects }, Some(api)) = (&step.action, api) else {
        return Ok(());
    };
    for object in objects.iter().rev() {
        let path = object.path.clone();
        match &object.before {
            None => api.delete(&path).await?,
            Some(before) => {
                let Some(live) = api.get(&path).await? else { continue };
                let mut former = before.clone();
                if let Some(metadata) = former.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("managedFields");
                    metadata.extend(
                        live.pointer("/metadata/resourceVersion")
                            .map(|version| ("resourceVersion".to_owned(), version.clone())),
                    );
                }
                api.replace(&path, &former).await?;
            }
        }
    }
    Ok(())
}
