//! `quorate check`: what would go wrong, found before anything is changed.

use std::process::ExitCode;

use clap::Args;
use quorate_verify::{Check, Report};

use crate::cluster::{self, ClusterArgs, ConnectArgs, Purpose};
use crate::console::DRIFT;
use crate::progress::Output;

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Print what holds as well.
    #[arg(short, long)]
    all: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    let session = cluster::session(&loaded, &args.connect, Purpose::Plan).await?;
    let facts = session.gather().await?;
    let measured = quorate_verify::measure(&session.spec, &session.fleet, &facts).await;
    let report = quorate_verify::preflight_measured(&session.spec, &facts, &measured);
    print(&report, args.all, args.output)
}

/// The whole report; the exit code says whether all of it holds.
pub(crate) fn print(report: &Report, all: bool, output: Output) -> anyhow::Result<ExitCode> {
    match output {
        Output::Json => crate::out!("{}", serde_json::to_string(report)?),
        Output::Text => {
            let shown: Vec<&Check> = report
                .checks
                .iter()
                .filter(|check| all || !check.ok || check.is_warning())
                .collect();
            list(&shown);
            let failed = report.checks.len() - report.passed();
            let warnings = report.warnings().count();
            let mut parts = vec![format!("{} checks hold", report.passed())];
            if failed > 0 {
                parts.push(format!("{failed} {} not", if failed == 1 { "does" } else { "do" }));
            }
            if warnings > 0 {
                let plural = if warnings == 1 { "" } else { "s" };
                parts.push(format!("{warnings} warning{plural}"));
            }
            crate::out!("{}", parts.join(", "));
        }
    }
    Ok(if report.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DRIFT)
    })
}

/// Checks in columns, each that asks for something with its way out.
pub(crate) fn list(checks: &[&Check]) {
    let name = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let target = checks.iter().map(|check| check.target.len()).max().unwrap_or(0);
    for (index, check) in checks.iter().enumerate() {
        let mark = match (check.ok, check.is_warning()) {
            (false, _) => "FAIL",
            (true, true) => "warn",
            (true, false) => "ok  ",
        };
        crate::out!(
            "{mark}  {:name$}  {:target$}  {}",
            check.name,
            check.target,
            check.detail
        );
        // Said once where several machines lack the same.
        let repeated = checks.get(index + 1).is_some_and(|next| next.hint == check.hint);
        if !check.hint.is_empty() && !repeated {
            crate::out!("      hint: {}", check.hint);
        }
    }
}
