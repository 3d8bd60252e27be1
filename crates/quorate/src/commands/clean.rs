//! `quorate clean`: traces of Pods, runtime and proxies off this machine; run by `reset`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct CleanArgs {
    /// Data folders, emptied.
    #[arg(long, value_name = "DIR")]
    data: Vec<PathBuf>,
    /// Folders of the cluster, emptied.
    owned: Vec<PathBuf>,
}

/// What the first apply found on this machine.
const BEFORE: &str = "/var/lib/quorate/before.json";

pub(crate) fn run(args: CleanArgs) -> anyhow::Result<ExitCode> {
    let before = std::fs::read_to_string(BEFORE)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    let cleaned = quorate_machine::clean::clean(&args.data, &args.owned, before.as_ref());
    for line in &cleaned.done {
        crate::out!("{line}");
    }
    for problem in &cleaned.problems {
        crate::err!("{problem}");
    }
    Ok(if cleaned.problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}
