//! `quorate check`: what would go wrong, found before anything is changed.

use std::process::ExitCode;

use clap::Args;
use quorate_verify::Check;

use crate::cluster::{self, ClusterArgs, ConnectArgs, Purpose};
use crate::console::DRIFT;
use crate::progress::Output;

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    let session = cluster::session(&loaded, &args.connect, Purpose::Look).await?;
    let facts = session.gather().await?;
    let report = quorate_verify::preflight(&session.spec, &facts);
    match args.output {
        Output::Json => crate::out!("{}", serde_json::to_string(&report)?),
        Output::Text => {
            print(&report.failed().collect::<Vec<_>>());
            crate::out!(
                "{} checks hold, {} do not",
                report.passed(),
                report.checks.len() - report.passed()
            );
        }
    }
    Ok(if report.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DRIFT)
    })
}

/// Checks that do not hold, aligned, each with its way out.
pub(crate) fn print(failed: &[&Check]) {
    let name = failed.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let target = failed.iter().map(|check| check.target.len()).max().unwrap_or(0);
    for check in failed {
        crate::out!("FAIL  {:name$}  {:target$}  {}", check.name, check.target, check.detail);
        crate::out!("      hint: {}", check.hint);
    }
}
