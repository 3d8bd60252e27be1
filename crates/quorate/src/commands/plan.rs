//! `quorate plan`: what `apply` would change, and why. Exit code 3 when there is something to do.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::{self, ClusterArgs, ConnectArgs, Purpose};
use crate::console::DRIFT;
use crate::progress::Output;
use crate::show::{self, Detail};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Show the content of new files too.
    #[arg(long)]
    full: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(args: PlanArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    let session = cluster::session(&loaded, &args.connect, Purpose::Look).await?;
    let (_, plan) = cluster::plan(&session).await?;
    match args.output {
        Output::Json => crate::out!("{}", serde_json::to_string_pretty(&plan)?),
        Output::Text => {
            crate::out!(
                "{}",
                show::plan(&plan, if args.full { Detail::Full } else { Detail::Normal }).trim_end()
            );
            crate::err!("{}", show::notes(&plan.notes).trim_end());
        }
    }
    Ok(if plan.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DRIFT)
    })
}
