//! `quorate completions SHELL`.

use std::process::ExitCode;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    shell: clap_complete::Shell,
}

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    clap_complete::generate(
        args.shell,
        &mut crate::command(),
        "quorate",
        &mut std::io::stdout().lock(),
    );
    Ok(ExitCode::SUCCESS)
}
