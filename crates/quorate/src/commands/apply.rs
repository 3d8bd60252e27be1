//! `quorate apply`: load → gather → plan → show and confirm → run → verify. Nothing else.

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use quorate_plan::Plan;
use quorate_run::{Ended, Listener, Options, Outcome, Session, Stop};
use quorate_verify::Check;

use crate::cluster::{self, ClusterArgs, ConnectArgs, Purpose};
use crate::commands::{check, status};
use crate::console::{self, FAILED, Unmet, UserError};
use crate::progress::{self, Output, seconds};
use crate::show::{self, Detail};

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Plain lines instead of bars.
    #[arg(long)]
    no_progress: bool,
    /// Go on although checks beforehand fail.
    #[arg(long)]
    ignore_checks: bool,
    /// Take the cluster's lock from a run that is certainly dead.
    #[arg(long)]
    steal: bool,
    /// Seconds the checks may take to hold at the end.
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    verify_timeout: u64,
    /// `json`: every event is a line.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(args: ApplyArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let loaded = cluster::load(&args.cluster)?;
    let session = cluster::session(&loaded, &args.connect, Purpose::Apply).await?;
    let (facts, plan) = cluster::plan(&session).await?;
    // What is between the machines is tried out before the first program is on one, not at every apply.
    let preflight = if !plan.is_empty() && quorate_verify::worth_measuring(&facts) {
        let measured = quorate_verify::measure(&session.spec, &session.fleet, &facts).await;
        quorate_verify::preflight_measured(&session.spec, &facts, &measured)
    } else {
        quorate_verify::preflight(&session.spec, &facts)
    };
    // A machine that is away is no reason to leave the others as they are.
    let obstacles: Vec<&Check> = preflight.failed().filter(|check| check.name != "reachable").collect();
    if !obstacles.is_empty() && !args.ignore_checks {
        check::list(&obstacles);
        return Err(Unmet.into());
    }
    for check in preflight.warnings() {
        crate::err!("warning: {} {}: {}", check.name, check.target, check.detail);
    }
    crate::err!("{}", show::notes(&plan.notes).trim_end());
    if plan.is_empty() {
        crate::err!("{}", show::summary(&plan).trim_end());
    } else {
        if args.output == Output::Text && !args.yes {
            crate::err!("{}", show::plan(&plan, Detail::Normal).trim_end());
        } else {
            crate::err!("{}", show::summary(&plan).trim_end());
        }
        if !args.yes && !console::confirm("Apply this plan?") {
            return Err(UserError::new("not applied")
                .hint("--yes applies without asking")
                .into());
        }
        let events = progress::listener(args.output, args.no_progress);
        let outcome = carry_out(&session, &plan, args.steal, &events).await?;
        for (stage, took) in &outcome.stages {
            let along = plan
                .stages
                .iter()
                .any(|planned| planned.with_previous && planned.name == *stage);
            let along = if along { "  with the stage before" } else { "" };
            crate::err!("  {stage:14} {:>8}{along}", seconds(*took));
        }
        if let Some(code) = ended(&outcome) {
            return Ok(code);
        }
    }
    let report = status::until_ok(&session, std::time::Duration::from_secs(args.verify_timeout)).await?;
    status::print(&session, &report, args.output)?;
    if !report.ok() {
        return Ok(ExitCode::from(console::DRIFT));
    }
    let spec = &session.spec;
    if args.output == Output::Text {
        crate::out!(
            "cluster {} is highly available: {} control planes, {} workers, {} checks passed in {:.1} s",
            spec.name,
            spec.control_planes().len(),
            spec.workers().len(),
            report.passed(),
            started.elapsed().as_secs_f64()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Executes a plan so that Ctrl-C stops it at a safe point.
pub(crate) async fn carry_out(
    session: &Session,
    plan: &Plan,
    steal: bool,
    events: &Listener,
) -> anyhow::Result<Outcome> {
    let options = Options {
        steal,
        stop: stop_on_signal(),
        ..Options::default()
    };
    session.execute(plan, &options, events).await.map_err(console::hinted)
}

/// The exit code of a run that did not get to its end, after saying why and how to go on.
pub(crate) fn ended(outcome: &Outcome) -> Option<ExitCode> {
    for failure in &outcome.failures {
        crate::err!("{}: {}: {}", failure.machine, failure.step, failure.error);
        if let Some(hint) = &failure.hint {
            crate::err!("hint: {hint}");
        }
    }
    if let Some(way) = outcome.way_on() {
        crate::err!("hint: {way}");
    }
    match &outcome.ended {
        Ended::Complete => None,
        Ended::Stopped { because } => {
            crate::err!("stopped at a safe point: {because}");
            Some(ExitCode::from(console::INTERRUPTED))
        }
        Ended::Partial | Ended::Failed { .. } => Some(ExitCode::from(FAILED)),
    }
}

/// The first Ctrl-C asks the run to stop at a safe point; a second one ends the program as usual.
pub(crate) fn stop_on_signal() -> Stop {
    let stop = Stop::default();
    let asked = stop.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            crate::err!("stopping when the running steps are done; press Ctrl-C again to leave at once");
            asked.stop();
            if tokio::signal::ctrl_c().await.is_ok() {
                console::leave(console::INTERRUPTED);
            }
        }
    });
    stop
}
