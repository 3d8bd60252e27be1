//! `quorate recover`: the operator's folder back from a control plane: authorities, service-account and encryption keys; or made
//! with authorities of one's own.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::cluster::{self, ClusterArgs, ConnectArgs};

#[derive(Debug, Args)]
pub(crate) struct RecoverArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Take the authorities from a folder instead, before the first `apply`: ca.crt and ca.key, etcd/ca.*,
    /// front-proxy-ca.*, sa.key as kubeadm names them; what is not there is made.
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
}

pub(crate) async fn run(args: RecoverArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    match &args.from {
        Some(from) => cluster::import(&loaded, from)?,
        None => cluster::recover(&loaded, &args.connect).await?,
    }
    crate::err!("{} holds the cluster's authorities", loaded.folder.display());
    crate::err!("hint: `quorate plan` shows whether anything has to be made anew");
    Ok(ExitCode::SUCCESS)
}
