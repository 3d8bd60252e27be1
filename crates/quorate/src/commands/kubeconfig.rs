//! `quorate kubeconfig`: the administrator's credentials, out of the operator's folder.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use quorate_run::Operator;

use crate::cluster::{self, ClusterArgs};
use crate::console::{self, UserError};

#[derive(Debug, Args)]
pub(crate) struct KubeconfigArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    /// Write it there (0600) instead of printing it.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub(crate) fn run(args: KubeconfigArgs) -> anyhow::Result<ExitCode> {
    let loaded = cluster::load(&args.cluster)?;
    let operator = Operator::look(&loaded.folder, cluster::passphrase(), "")?;
    let Some(path) = operator.admin_kubeconfig(&loaded.spec)? else {
        return Err(
            UserError::new(format!("{} holds no authorities", loaded.folder.display()))
                .hint("`quorate apply` makes them")
                .into(),
        );
    };
    let text = std::fs::read(&path)?;
    match args.output {
        Some(output) => cluster::write_private(&output, &text)?,
        None => console::data(&text),
    }
    Ok(ExitCode::SUCCESS)
}
