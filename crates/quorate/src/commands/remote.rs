//! `quorate remote`: the far end of a connection, started over SSH. Not for people.

use std::process::ExitCode;

/// Serves requests on standard input and output until the other side hangs up.
#[derive(Debug, clap::Args)]
pub(crate) struct RemoteArgs {}

pub(crate) async fn run(RemoteArgs {}: RemoteArgs) -> anyhow::Result<ExitCode> {
    quorate_machine::remote::serve_stdio().await?;
    Ok(ExitCode::SUCCESS)
}
