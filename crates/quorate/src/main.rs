//! `quorate`: arguments, printing, exit codes. One file per verb below `commands`; no logic here.

mod cluster;
mod commands;
mod console;
mod paper;
mod progress;
mod show;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::*;

/// Highly available Kubernetes on your own machines, over SSH, from one file.
#[derive(Debug, Parser)]
#[command(name = "quorate", version, max_term_width = 100, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write an annotated cluster file.
    Init(init::InitArgs),
    /// Print the JSON schema of the cluster file.
    Schema(schema::SchemaArgs),
    /// Look for what would go wrong, before anything is changed.
    Check(check::CheckArgs),
    /// Show what `apply` would change, and why.
    Plan(plan::PlanArgs),
    /// Make the machines what the cluster file says.
    Apply(apply::ApplyArgs),
    /// Check the running cluster and show what it is made of.
    Status(status::StatusArgs),
    /// Check everything about a running cluster: machines, network between them, cluster.
    Doctor(doctor::DoctorArgs),
    /// Print a kubeconfig of the cluster's administrator.
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Make the operator's folder anew from what a control plane holds, or with authorities of your own.
    Recover(recover::RecoverArgs),
    /// Take the cluster off its machines and leave them as they were.
    Reset(reset::ResetArgs),
    /// Build, verify and list bundles of upstream programs.
    Bundle(bundle::BundleArgs),
    /// Local machines to try everything on.
    Lab(lab::LabArgs),
    /// The load balancer: VIP, proxy, IPVS, eBPF.
    Agent(agent::AgentArgs),
    /// Break things on purpose, and measure what clients see.
    Drill(drill::DrillArgs),
    /// Print shell completions.
    Completions(completions::CompletionsArgs),
    #[command(hide = true)]
    Remote(remote::RemoteArgs),
    #[command(hide = true)]
    Cni(cni::CniArgs),
    #[command(hide = true)]
    Clean(clean::CleanArgs),
    #[command(hide = true)]
    Pause(pause::PauseArgs),
    #[command(hide = true)]
    Probe(probe::ProbeArgs),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.verb {
        Verb::Init(args) => init::run(args),
        Verb::Schema(args) => schema::run(args),
        Verb::Check(args) => wait(check::run(args)),
        Verb::Plan(args) => wait(plan::run(args)),
        Verb::Apply(args) => wait(apply::run(args)),
        Verb::Status(args) => wait(status::run(args)),
        Verb::Doctor(args) => wait(doctor::run(args)),
        Verb::Kubeconfig(args) => kubeconfig::run(args),
        Verb::Recover(args) => wait(recover::run(args)),
        Verb::Reset(args) => wait(reset::run(args)),
        Verb::Bundle(args) => wait(bundle::run(args)),
        Verb::Lab(args) => wait(lab::run(args)),
        Verb::Agent(args) => agent::run(args),
        Verb::Drill(args) => wait(drill::run(args)),
        Verb::Completions(args) => completions::run(&args),
        Verb::Remote(args) => wait(remote::run(args)),
        Verb::Cni(args) => cni::run(args),
        Verb::Clean(args) => clean::run(args),
        Verb::Pause(args) => wait(pause::run(args)),
        Verb::Probe(args) => wait(probe::run(args)),
    };
    console::ended(result.unwrap_or_else(|error| console::report(&error)))
}

fn wait(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(2)
        .build()?
        .block_on(work)
}

pub(crate) fn command() -> clap::Command {
    <Cli as clap::CommandFactory>::command()
}
