//! `quorate probe`: the server in the probe Pod.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// `:8085` or an address and port.
    #[arg(long, default_value = ":8085")]
    listen: String,
}

pub(crate) async fn run(args: ProbeArgs) -> anyhow::Result<ExitCode> {
    let listen = if args.listen.starts_with(':') {
        format!("[::]{}", args.listen)
    } else {
        args.listen.clone()
    };
    let address = listen.parse().with_context(|| format!("--listen {}", args.listen))?;
    // Without IPv6 on the machine the wildcard is the other one.
    match quorate_verify::probe::serve(address).await {
        Err(_) if address.is_ipv6() => quorate_verify::probe::serve(([0, 0, 0, 0], address.port()).into()).await?,
        other => other?,
    };
    Ok(ExitCode::SUCCESS)
}
