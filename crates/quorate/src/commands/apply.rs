//! `quorate apply`: load → gather → plan → show and confirm → run → verify. Nothing else.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use quorate_plan::Plan;
use quorate_run::{Ended, Listener, Options, Outcome, Session, Stop};
use quorate_spec::{Machine, Spec};
use quorate_verify::Check;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

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
    let checked = status::until_ok(&session, Duration::from_secs(args.verify_timeout));
    let Some(report) = unless_interrupted(checked).await else {
        crate::err!("the deployment is done; `quorate status` goes on checking");
        return Ok(ExitCode::from(console::INTERRUPTED));
    };
    let report = report?;
    status::print(&session, &report, args.output)?;
    if !report.ok() {
        return Ok(ExitCode::from(console::DRIFT));
    }
    if args.output == Output::Text {
        let seconds = started.elapsed().as_secs_f64();
        crate::out!("{}", verdict(&session.spec, report.passed(), seconds));
    }
    Ok(ExitCode::SUCCESS)
}

/// The last line: what there is now, and whether any machine of it may be lost.
fn verdict(spec: &Spec, passed: usize, seconds: f64) -> String {
    let in_service = |machines: Vec<&Machine>| machines.iter().filter(|machine| !machine.maintenance).count();
    let control_planes = in_service(spec.control_planes());
    let (quorum, members) = (spec.quorum(), in_service(spec.etcd_members()));
    let lacks = if control_planes < 3 {
        Some(format!("{control_planes} of the 3 control planes it takes"))
    } else if members <= quorum.needed {
        Some(format!(
            "etcd can lose no member, {members} of {} in service",
            quorum.members
        ))
    } else if spec.endpoint.is_some() && in_service(spec.vip_holders()) < 2 {
        Some("the VIP has nobody to go to".to_owned())
    } else {
        None
    };
    let what = format!(
        "{}, {}, {passed} checks passed in {seconds:.1} s",
        count(spec.control_planes().len(), "control plane"),
        count(spec.workers().len(), "worker"),
    );
    match lacks {
        None => format!("cluster {} is highly available: {what}", spec.name),
        Some(reason) => format!("cluster {} is up: {what}; not highly available: {reason}", spec.name),
    }
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// Executes a plan so that Ctrl-C stops it at a safe point.
pub(crate) async fn carry_out(
    session: &Session,
    plan: &Plan,
    steal: bool,
    events: &Listener,
) -> anyhow::Result<Outcome> {
    let interrupt = Interrupt::watch();
    let options = Options {
        steal,
        stop: interrupt.stop.clone(),
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

/// While it lives, the first Ctrl-C (or SIGTERM) asks the run to stop at a safe point, and a second one ends the program.
pub(crate) struct Interrupt {
    pub(crate) stop: Stop,
    watching: JoinHandle<()>,
}

impl Interrupt {
    pub(crate) fn watch() -> Self {
        let stop = Stop::default();
        let asked = stop.clone();
        let mut signals = Signals::listen();
        let watching = tokio::spawn(async move {
            signals.next().await;
            crate::err!("stopping when the running steps are done; press Ctrl-C again to leave at once");
            asked.stop();
            signals.next().await;
            console::leave(console::INTERRUPTED);
        });
        Self { stop, watching }
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

/// The work's result; `None` as soon as the user no longer wants it.
async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    let mut signals = Signals::listen();
    tokio::select! {
        done = work => Some(done),
        () = signals.next() => None,
    }
}

/// Ctrl-C and SIGTERM. One that cannot be listened for ends the program as usual.
struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
}

impl Signals {
    fn listen() -> Self {
        Self {
            interrupt: signal(SignalKind::interrupt()).ok(),
            terminate: signal(SignalKind::terminate()).ok(),
        }
    }

    async fn next(&mut self) {
        async fn received(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => {
                    signal.recv().await;
                }
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = received(&mut self.interrupt) => {}
            () = received(&mut self.terminate) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal as Kind, getpid, kill_process};

    #[test]
    fn only_what_survives_a_loss_is_called_highly_available() {
        let line = |machines: &[(&str, &str)], etcd: &str| {
            let mut text = format!(
                "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  endpoint: {{on: none}}\n  access: proxy\n  etcd: {{topology: {etcd}}}\n  machines:\n"
            );
            for (index, (roles, more)) in machines.iter().enumerate() {
                let n = index + 1;
                text.push_str(&format!(
                    "    - {{name: m{n}, address: 10.0.0.{n}, roles: [{roles}]{more}}}\n"
                ));
            }
            let (spec, _) = quorate_spec::load(&text, "cluster.yaml")
                .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, &text, false)));
            verdict(&spec, 61, 43.31)
        };
        let (plane, worker, etcd) = (("control-plane", ""), ("worker", ""), ("etcd", ""));
        assert_eq!(
            line(&[plane, plane, plane, worker, worker], "stacked"),
            "cluster demo is highly available: 3 control planes, 2 workers, 61 checks passed in 43.3 s"
        );
        assert_eq!(
            line(&[plane, worker], "stacked"),
            "cluster demo is up: 1 control plane, 1 worker, 61 checks passed in 43.3 s; not highly available: 1 of the 3 control planes it takes"
        );
        for (machines, topology, reason) in [
            (
                vec![plane, plane, plane, etcd, worker],
                "external",
                "etcd can lose no member, 1 of 1 in service",
            ),
            (
                vec![plane, plane, ("control-plane", ", maintenance: true"), worker],
                "stacked",
                "2 of the 3 control planes it takes",
            ),
        ] {
            let said = line(&machines, topology);
            assert!(said.starts_with("cluster demo is up: 3 control planes"), "{said}");
            assert!(said.ends_with(&format!("; not highly available: {reason}")), "{said}");
        }
    }

    /// One test, because signals are the whole process's.
    #[tokio::test]
    async fn a_signal_stops_the_run_and_afterwards_the_verification_at_once() {
        let raise = |signal| kill_process(getpid(), signal).unwrap();
        for signal in [Kind::TERM, Kind::INT] {
            let interrupt = Interrupt::watch();
            assert!(!interrupt.stop.is_stopped());
            raise(signal);
            interrupt.stop.stopped().await;
        }
        // The runs are over: nobody counts these as second ones.
        for signal in [Kind::INT, Kind::TERM] {
            let verification = async {
                raise(signal);
                std::future::pending::<()>().await;
            };
            assert_eq!(unless_interrupted(verification).await, None);
        }
        assert_eq!(unless_interrupted(async { 7 }).await, Some(7));
    }
}
