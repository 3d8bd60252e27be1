//! `quorate reset`: the cluster off its machines, and the machines as they were.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::{self, ClusterArgs, ConnectArgs, Purpose};
use crate::commands::apply::{carry_out, ended};
use crate::console::{self, UserError};
use crate::progress::{self, Output};
use crate::show::{self, Detail};

#[derive(Debug, Args)]
pub(crate) struct ResetArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Do not ask. The cluster's data is gone afterwards.
    #[arg(short, long)]
    yes: bool,
    #[arg(long)]
    no_progress: bool,
    /// Take the cluster's lock from a run that is certainly dead.
    #[arg(long)]
    steal: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(args: ResetArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    let session = cluster::session(&loaded, &args.connect, Purpose::Change).await?;
    let facts = session.gather().await?;
    let plan = quorate_plan::reset(&session.spec, &facts);
    crate::err!("{}", show::notes(&plan.notes).trim_end());
    if plan.is_empty() {
        crate::err!("nothing of the cluster is on the machines");
        return Ok(ExitCode::SUCCESS);
    }
    if !args.yes {
        crate::err!("{}", show::plan(&plan, Detail::Normal).trim_end());
        let name = &session.spec.name;
        if !console::confirm(&format!(
            "Remove cluster {name} and all of its data from {} machines?",
            facts.machines.len()
        )) {
            return Err(UserError::new("nothing was removed")
                .hint("--yes removes without asking")
                .into());
        }
    }
    let events = progress::listener(args.output, args.no_progress);
    let outcome = carry_out(&session, &plan, args.steal, &events).await?;
    if let Some(code) = ended(&outcome) {
        return Ok(code);
    }
    crate::err!("cluster {} is off its machines", session.spec.name);
    Ok(ExitCode::SUCCESS)
}
