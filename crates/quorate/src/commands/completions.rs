//! `quorate completions SHELL`.

use std::process::ExitCode;

use clap::Args;

use crate::console;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::command(), "quorate", &mut script);
    console::data(&script);
    Ok(ExitCode::SUCCESS)
}
