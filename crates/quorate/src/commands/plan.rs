//! `quorate plan`: what `apply` would change, and why. Exit code 3 when there is something to do.

use std::process::ExitCode;

use clap::{Args, ValueEnum};

use crate::cluster::{self, ClusterArgs, ConnectArgs, Purpose};
use crate::console::{DRIFT, UserError};
use crate::paper;
use crate::show::{self, Detail};

#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Show every reason, and the content of new files and objects too.
    #[arg(long)]
    full: bool,
    /// Print what fits into the ranges, and how large machines should be; no machine is needed.
    #[arg(long, conflicts_with_all = ["full", "firewall"])]
    capacity: bool,
    /// Print who must reach whom on which port; no machine is needed.
    #[arg(long, conflicts_with = "full")]
    firewall: bool,
    #[arg(short, long, value_enum, default_value_t)]
    output: Form,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Form {
    #[default]
    Text,
    Json,
    /// With `--firewall`: a table per machine.
    Nftables,
}

pub(crate) async fn run(args: PlanArgs) -> anyhow::Result<ExitCode> {
    if args.output == Form::Nftables && !args.firewall {
        return Err(UserError::new("`-o nftables` is a form of the firewall matrix")
            .hint("quorate plan --firewall -o nftables")
            .into());
    }
    let loaded = cluster::load(&args.cluster)?;
    if args.capacity || args.firewall {
        return on_paper(&loaded.spec, args.capacity, args.output);
    }
    let session = cluster::session(&loaded, &args.connect, Purpose::Plan).await?;
    let (_, plan) = cluster::plan(&session).await?;
    let detail = if args.full { Detail::Full } else { Detail::Normal };
    if args.output == Form::Json {
        crate::out!("{}", serde_json::to_string_pretty(&show::json(&plan, detail)?)?);
    } else {
        crate::out!("{}", show::plan(&plan, detail).trim_end());
        crate::err!("{}", show::notes(&plan.notes).trim_end());
    }
    Ok(if plan.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(DRIFT)
    })
}

fn on_paper(spec: &quorate_spec::Spec, capacity: bool, form: Form) -> anyhow::Result<ExitCode> {
    let text = match (capacity, form) {
        (true, Form::Json) => serde_json::to_string_pretty(&paper::capacity_json(spec))?,
        (true, _) => paper::capacity(spec),
        (false, Form::Json) => serde_json::to_string_pretty(&quorate_plan::firewall::matrix(spec))?,
        (false, Form::Nftables) => paper::firewall_nftables(spec),
        (false, Form::Text) => paper::firewall(spec),
    };
    crate::out!("{}", text.trim_end());
    Ok(ExitCode::SUCCESS)
}
