//! `quorate pause`: the sandbox container's first process: it waits, and reaps what is orphaned to it.

use std::process::ExitCode;

use clap::Args;
use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Print the version and end, as upstream's does: `kubeadm upgrade` tries an image with it.
    #[arg(short)]
    version: bool,
}

pub(crate) async fn run(args: PauseArgs) -> anyhow::Result<ExitCode> {
    if args.version {
        crate::out!("quorate {}", env!("CARGO_PKG_VERSION"));
        return Ok(ExitCode::SUCCESS);
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut child = signal(SignalKind::child())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(ExitCode::SUCCESS),
            _ = interrupt.recv() => return Ok(ExitCode::SUCCESS),
            _ = child.recv() => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
        }
    }
}
