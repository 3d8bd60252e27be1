//! `quorate clean`: traces of Pods, runtime and proxies off this machine; run by `reset`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use quorate_agent::ipvs::Ipvs;
use quorate_agent::{bpf, supervise};
use quorate_lb::AgentConfig;
use quorate_machine::clean::Cleaned;

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
/// Where the agent pins its programs (`accessOptions.ebpf`).
const PIN: &str = "/sys/fs/bpf/quorate";
/// There as soon as the kernel's IPVS is.
const IPVS_TABLE: &str = "/proc/net/ip_vs";

pub(crate) fn run(args: CleanArgs) -> anyhow::Result<ExitCode> {
    let before = std::fs::read_to_string(BEFORE)
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok());
    let mut cleaned = quorate_machine::clean::clean(&args.data, &args.owned, before.as_ref());
    balancing(&mut cleaned);
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

/// What the agent leaves in the kernel, mostly on purpose, so that a new agent takes over without a gap.
fn balancing(cleaned: &mut Cleaned) {
    // An agent in a Pod was ended without a word.
    match supervise::purge(&AgentConfig::new("")) {
        Ok(gone) => cleaned
            .done
            .extend(gone.iter().map(|vip| format!("removed the VIP {vip}"))),
        Err(error) => cleaned.problems.push(error.to_string()),
    }
    match bpf::remove(Path::new(PIN)) {
        Ok(true) => cleaned.done.push(format!("detached the programs pinned in {PIN}")),
        Ok(false) => {}
        Err(error) => cleaned.problems.push(error.to_string()),
    }
    // Opening it would load the module.
    if !Path::new(IPVS_TABLE).exists() {
        return;
    }
    match Ipvs::open() {
        Ok(mut ipvs) => {
            let report = ipvs.remove();
            cleaned.done.extend(report.changes);
            cleaned.problems.extend(report.errors);
        }
        Err(error) => cleaned.problems.push(error.to_string()),
    }
}
