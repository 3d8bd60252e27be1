//! `quorate recover`: the operator's folder back from a control plane: authorities, service-account and encryption keys.

use std::process::ExitCode;

use clap::Args;

use crate::cluster::{self, ClusterArgs, ConnectArgs};

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
}

pub(crate) async fn run(args: RecoverArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    cluster::recover(&loaded, &args.connect).await?;
    crate::err!("{} holds the cluster's authorities again", loaded.folder.display());
    crate::err!("hint: `quorate plan` shows whether anything has to be made anew");
    Ok(ExitCode::SUCCESS)
}
