//! `quorate init`: writes an annotated cluster file, from flags or from questions on the terminal.

use std::io::{ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::builder::PossibleValuesParser;
use quorate_spec::Template;

use crate::console::UserError;

/// Machines are given as addresses, or as `NAME=ADDRESS`, separated by commas.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Machines of the control plane: three survive the loss of one. Without this the terminal is asked.
    #[arg(short, long, value_name = "ADDRESS", value_delimiter = ',')]
    control_plane: Vec<String>,
    /// Machines that run Pods.
    #[arg(short, long, value_name = "ADDRESS", value_delimiter = ',')]
    worker: Vec<String>,
    /// Machines for etcd alone; without them it runs on the control planes.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    etcd: Vec<String>,
    /// Machines that hold the VIP; without them the control planes do.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    load_balancer: Vec<String>,
    /// An unused address in the machines' network, under which the API always answers.
    #[arg(long, value_name = "ADDRESS")]
    vip: Option<String>,
    /// A DNS name for the VIP.
    #[arg(long, value_name = "NAME", requires = "vip")]
    endpoint_name: Option<String>,
    /// The cluster's name.
    #[arg(short, long)]
    name: Option<String>,
    /// Kubernetes version.
    #[arg(long, value_name = "VERSION")]
    kubernetes: Option<String>,
    /// systemd units, or upstream kubeadm with static Pods.
    #[arg(long, value_parser = PossibleValuesParser::new(["binary", "kubeadm"]))]
    bootstrap: Option<String>,
    /// How a node reaches the API.
    #[arg(long, value_parser = PossibleValuesParser::new(["endpoint", "proxy", "ipvs", "ebpf"]))]
    access: Option<String>,
    /// What carries the VIP and proxies.
    #[arg(long, value_parser = PossibleValuesParser::new(["quorate", "haproxy"]))]
    balancer: Option<String>,
    /// Pod range.
    #[arg(long, value_name = "CIDR")]
    pods: Option<String>,
    /// Service range.
    #[arg(long, value_name = "CIDR")]
    services: Option<String>,
    /// User to log in as: root, or one who may use sudo.
    #[arg(long, value_name = "USER")]
    ssh_user: Option<String>,
    /// Where to write it; `-` for standard output.
    #[arg(short, long, value_name = "FILE", default_value = "cluster.yaml")]
    output: PathBuf,
    /// Replace the file if it exists.
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(args: InitArgs) -> anyhow::Result<ExitCode> {
    let shown = args.output.display().to_string();
    let to_stdout = args.output == Path::new("-");
    // Before any question is asked; what counts is the refusal at the end.
    if !to_stdout && !args.force && args.output.exists() {
        return Err(exists(&shown).into());
    }
    let mut template = Template {
        name: args.name,
        kubernetes: args.kubernetes,
        bootstrap: args.bootstrap,
        endpoint_name: args.endpoint_name,
        vip: args.vip,
        access: args.access,
        balancer: args.balancer,
        pods: args.pods,
        services: args.services,
        ssh_user: args.ssh_user,
        control_planes: given(args.control_plane),
        workers: given(args.worker),
        etcd: given(args.etcd),
        load_balancers: given(args.load_balancer),
    };
    if template.control_planes.is_empty() {
        if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
            return Err(UserError::new("no machines were given, and there is no terminal to ask on")
                .hint("quorate init --control-plane 10.0.0.11,10.0.0.12,10.0.0.13 --worker 10.0.0.14 --vip 10.0.0.100")
                .into());
        }
        ask_all(&mut template)?;
    }

    let text = template.render();
    let findings = match quorate_spec::load(&text, &shown) {
        Ok((_, warnings)) => warnings,
        Err(findings) => {
            crate::err!(
                "{}",
                quorate_spec::render(&findings, &text, crate::console::colour()).trim_end()
            );
            return Err(UserError::new("these values make no cluster; nothing was written").into());
        }
    };
    if !findings.is_empty() {
        crate::err!(
            "{}",
            quorate_spec::render(&findings, &text, crate::console::colour()).trim_end()
        );
    }
    if to_stdout {
        crate::out!("{}", text.trim_end());
        return Ok(ExitCode::SUCCESS);
    }
    write(&args.output, &shown, &text, args.force)?;
    crate::err!("wrote {shown}; next: `quorate plan -f {shown}` shows what would be done");
    Ok(ExitCode::SUCCESS)
}

/// Without `force` the file comes into being here or not at all, whatever happens beside us.
fn write(path: &Path, shown: &str, text: &str, force: bool) -> anyhow::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true);
    } else {
        options.create_new(true);
    }
    let mut file = match options.open(path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(exists(shown).into()),
        other => other.with_context(|| format!("create {shown}"))?,
    };
    file.write_all(text.as_bytes())
        .with_context(|| format!("write {shown}"))
}

fn exists(shown: &str) -> UserError {
    UserError::new(format!("{shown} exists already; it was left as it is"))
        .hint("-o names another file, --force replaces this one")
}

/// `--worker ""` and a trailing comma are nobody's machine.
fn given(list: Vec<String>) -> Vec<String> {
    list.into_iter()
        .map(|item| item.trim().to_owned())
        .filter(|item| !item.is_empty())
        .collect()
}

fn ask_all(template: &mut Template) -> anyhow::Result<()> {
    crate::err!("A few questions; an empty answer takes what is in brackets.");
    let one = |answer: String| Some(answer).filter(|a| !a.is_empty());
    let list = |answer: String| given(answer.split([',', ' ']).map(str::to_owned).collect());
    if template.name.is_none() {
        template.name = one(ask("The cluster's name [kubernetes]:")?);
    }
    while template.control_planes.is_empty() {
        template.control_planes = list(ask("Addresses of the control planes (three survive the loss of one):")?);
    }
    if template.workers.is_empty() {
        template.workers = list(ask("Addresses of the workers [none]:")?);
    }
    if template.vip.is_none() {
        template.vip = one(ask(
            "An unused address in their network for the API [none: every node gets a proxy]:",
        )?);
    }
    if template.ssh_user.is_none() {
        template.ssh_user = one(ask("User to log in as [what ssh decides]:")?);
    }
    Ok(())
}

fn ask(question: &str) -> anyhow::Result<String> {
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question} ")
        .and_then(|()| stderr.flush())
        .context("ask on the terminal")?;
    drop(stderr);
    let mut answer = String::new();
    if std::io::stdin().read_line(&mut answer).context("read the answer")? == 0 {
        return Err(UserError::new("the answers ended; nothing was written").into());
    }
    Ok(answer.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_only_by_force() {
        let path = std::env::temp_dir().join(format!("qt-quorate-{}-init.yaml", std::process::id()));
        let _ = std::fs::remove_file(&path);
        write(&path, "f", "one, and longer", false).unwrap();
        let error = write(&path, "f", "two", false).unwrap_err();
        assert!(
            error.downcast_ref::<UserError>().is_some_and(|e| e.hint.is_some()),
            "{error}"
        );
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one, and longer");
        write(&path, "f", "two", true).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "two");
        std::fs::remove_file(&path).unwrap();
    }
}
