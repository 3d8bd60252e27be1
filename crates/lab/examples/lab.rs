//! The lab by itself: `cargo run -p quorate-lab --example lab -- up demo`. It is the program's own `lab` verb.

#[path = "../../quorate/src/commands/lab.rs"]
mod lab;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Lab(lab::LabArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<std::process::ExitCode> {
    let Verb::Lab(args) = Cli::parse().verb;
    lab::run(args).await
}
