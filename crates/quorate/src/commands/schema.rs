//! `quorate schema`: the JSON schema of the cluster file, for editors.

use std::process::ExitCode;

use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct SchemaArgs {}

pub(crate) fn run(_: SchemaArgs) -> anyhow::Result<ExitCode> {
    crate::out!("{}", serde_json::to_string_pretty(quorate_spec::schema())?);
    Ok(ExitCode::SUCCESS)
}
