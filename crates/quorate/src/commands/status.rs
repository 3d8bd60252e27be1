//! `quorate status`: every check, and what the cluster is made of.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use quorate_run::Session;
use quorate_verify::Report;

use crate::cluster::{self, ClusterArgs, ConnectArgs, Purpose};
use crate::console::DRIFT;
use crate::progress::Output;

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Check again every two seconds until interrupted.
    #[arg(short, long)]
    watch: bool,
}

const WATCH_EVERY: Duration = Duration::from_secs(2);

pub(crate) async fn run(args: StatusArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    let mut session = cluster::session(&loaded, &args.connect, Purpose::Look).await?;
    loop {
        let report = cluster::verify(&session).await?;
        print(&session, &report, args.output)?;
        if !args.watch {
            return Ok(if report.ok() {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(DRIFT)
            });
        }
        tokio::join!(tokio::time::sleep(WATCH_EVERY), session.fleet.seek());
    }
}

/// Checks until all hold, or the patience ends: Pods and leases need a moment after a change.
pub(crate) async fn until_ok(session: &Session, patience: Duration) -> anyhow::Result<Report> {
    let deadline = Instant::now() + patience;
    loop {
        let report = cluster::verify(session).await?;
        if report.ok() || Instant::now() > deadline {
            return Ok(report);
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

pub(crate) fn print(session: &Session, report: &Report, output: Output) -> anyhow::Result<()> {
    if output == Output::Json {
        crate::out!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    for line in topology(session) {
        crate::out!("{line}");
    }
    let name = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let target = report.checks.iter().map(|check| check.target.len()).max().unwrap_or(0);
    for check in &report.checks {
        let mark = if check.ok { "ok  " } else { "FAIL" };
        crate::out!(
            "{mark}  {:name$}  {:target$}  {}",
            check.name,
            check.target,
            check.detail
        );
        if !check.ok && !check.hint.is_empty() {
            crate::out!("      hint: {}", check.hint);
        }
    }
    let failed = report.checks.len() - report.passed();
    if failed > 0 {
        crate::out!("{} checks hold, {failed} do not", report.passed());
    }
    Ok(())
}

fn topology(session: &Session) -> Vec<String> {
    let spec = &session.spec;
    let names = |machines: Vec<&quorate_spec::Machine>| {
        machines
            .iter()
            .map(|machine| machine.name.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut lines = vec![format!(
        "{}  Kubernetes {}  API {}",
        spec.name,
        spec.kubernetes.tag(),
        spec.admin_url()
    )];
    lines.push(format!("control planes: {}", names(spec.control_planes())));
    if !spec.workers().is_empty() {
        lines.push(format!("workers: {}", names(spec.workers())));
    }
    let quorum = spec.quorum();
    lines.push(format!(
        "etcd: {} ({} members, {} may fail)",
        names(spec.etcd_members()),
        quorum.members,
        quorum.tolerates
    ));
    if !spec.load_balancers().is_empty() {
        lines.push(format!("load balancers: {}", names(spec.load_balancers())));
    }
    lines.push(String::new());
    lines
}
