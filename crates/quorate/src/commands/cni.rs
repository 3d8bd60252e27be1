//! `quorate cni`: the runtime's network configuration out of flannel's subnet file; run by the flanneld unit.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct CniArgs {
    #[arg(long, value_name = "FILE")]
    subnet_env: PathBuf,
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

/// flannel reports ready when its subnet file is written; this is for a disk that lags.
const PATIENCE: Duration = Duration::from_secs(10);

pub(crate) fn run(args: CniArgs) -> anyhow::Result<ExitCode> {
    let deadline = Instant::now() + PATIENCE;
    let conflist = loop {
        let read = std::fs::read_to_string(&args.subnet_env).map_err(|error| error.to_string());
        match read.and_then(|text| quorate_machine::cni::conflist(&text)) {
            Ok(conflist) => break conflist,
            Err(error) if Instant::now() > deadline => anyhow::bail!("{}: {error}", args.subnet_env.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let temporary = args.output.with_extension("new");
    std::fs::write(&temporary, conflist).with_context(|| format!("write {}", temporary.display()))?;
    std::fs::rename(&temporary, &args.output).with_context(|| format!("rename to {}", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}
