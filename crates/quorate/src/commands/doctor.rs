//! `quorate doctor`: everything that can be checked of a running cluster, from the disks up to the Pods.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::{self, ClusterArgs, ConnectArgs, Purpose};
use crate::commands::check;
use crate::progress::Output;

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
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

pub(crate) async fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    let session = cluster::session(&loaded, &args.connect, Purpose::Look).await?;
    let facts = session.gather().await?;
    // One after the other: what is measured between machines would be disturbed by what the checks ask of them.
    let measured = quorate_verify::measure(&session.spec, &session.fleet, &facts).await;
    let mut report = quorate_verify::preflight_measured(&session.spec, &facts, &measured);
    report.checks.extend(cluster::verify(&session).await?.checks);
    check::print(&report, args.all, args.output)
}
