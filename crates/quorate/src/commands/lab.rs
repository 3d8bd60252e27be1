//! `quorate lab`: local machines to try everything on.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use quorate_lab::{Lab, Options, Subnet};
use serde::Serialize;

/// Local machines with systemd and sshd, on a network of their own on this computer.
#[derive(Debug, Args)]
pub(crate) struct LabArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make a lab, or start and complete the one there is.
    Up(UpArgs),
    /// End a lab and remove all of it.
    Down {
        /// Lab [default: the only one].
        name: Option<String>,
    },
    /// Show labs and their machines.
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Log in to a machine, or run a command on it.
    #[command(override_usage = "quorate lab ssh [NAME] <MACHINE> [-- COMMAND…]")]
    Ssh {
        /// Lab [default: the only one] and machine.
        #[arg(value_name = "NAME MACHINE", num_args = 1..=2, required = true)]
        target: Vec<String>,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Run a command of this computer inside the lab's network, as the operator sees it.
    Exec {
        /// Lab [default: the only one].
        name: Option<String>,
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Cut a machine's power: everything in it ends at once, its disk stays.
    #[command(override_usage = "quorate lab off [NAME] <MACHINE>")]
    Off {
        /// Lab [default: the only one] and machine.
        #[arg(value_name = "NAME MACHINE", num_args = 1..=2, required = true)]
        target: Vec<String>,
    },
    /// Switch a machine on and wait until it answers.
    #[command(override_usage = "quorate lab on [NAME] <MACHINE>")]
    On {
        /// Lab [default: the only one] and machine.
        #[arg(value_name = "NAME MACHINE", num_args = 1..=2, required = true)]
        target: Vec<String>,
    },
    /// Let no packet through between two machines ("operator" is this side).
    #[command(override_usage = "quorate lab cut [NAME] <A> <B> [--one-way]")]
    Cut {
        /// Lab [default: the only one] and the two machines.
        #[arg(value_name = "NAME A B", num_args = 2..=3, required = true)]
        target: Vec<String>,
        /// Only from A to B.
        #[arg(long)]
        one_way: bool,
    },
    /// Take back all cuts.
    Heal {
        /// Lab [default: the only one].
        name: Option<String>,
    },
    /// Connect stdin and stdout to a port of a machine: ssh's ProxyCommand.
    #[command(hide = true)]
    Dial { name: String, host: String, port: u16 },
}

#[derive(Debug, Args)]
struct UpArgs {
    #[arg(default_value = "demo")]
    name: String,
    /// Control planes and workers: three of them are control planes, or one if there are fewer than three [default: 5].
    #[arg(long)]
    machines: Option<usize>,
    /// More machines, for load balancers [default: 0].
    #[arg(long)]
    load_balancers: Option<usize>,
    /// More machines, for an external etcd [default: 0].
    #[arg(long)]
    etcd: Option<usize>,
    /// Debian release of the machines [default: bookworm].
    #[arg(long, value_name = "SUITE")]
    root_suite: Option<String>,
    /// One more Debian package on each machine; can be repeated.
    #[arg(long = "package", value_name = "PACKAGE")]
    packages: Vec<String>,
    /// Debian mirror [default: debootstrap's own].
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// IPv4 /24 of the machines; several labs may use the same [default: 10.77.0.0/24].
    #[arg(long)]
    subnet: Option<Subnet>,
    /// Where to write ssh_config and cluster.yaml [default: the lab's own directory].
    #[arg(long)]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

pub(crate) async fn run(args: LabArgs) -> anyhow::Result<ExitCode> {
    // A lab's calls block; nothing else goes on in this process meanwhile.
    match args.verb {
        Verb::Up(args) => up(args)?,
        Verb::Down { name } => down(name)?,
        Verb::List { output } => list(output)?,
        Verb::Ssh { target, command } => return ssh(&target, &command),
        Verb::Exec { name, command } => return exec(name.as_deref(), &command),
        Verb::Off { target } => {
            let (lab, machine) = lab_and_machine(&target)?;
            let took = lab.off(machine)?;
            crate::out!("{machine} is off ({} ms)", took.as_millis());
        }
        Verb::On { target } => {
            let (lab, machine) = lab_and_machine(&target)?;
            let took = lab.on(machine)?;
            crate::out!("{machine} is on ({} ms)", took.as_millis());
        }
        Verb::Cut { target, one_way } => {
            let (lab, ends) = lab_and_rest(&target, 2)?;
            lab.cut(&ends[0], &ends[1], one_way)?;
            let arrow = if one_way { "→" } else { "↔" };
            crate::out!("{} {arrow} {} is cut", ends[0], ends[1]);
        }
        Verb::Heal { name } => {
            let lab = Lab::find(name.as_deref())?;
            lab.heal()?;
            crate::out!("{} has no cuts", lab.name());
        }
        Verb::Dial { name, host, port } => Lab::open(&name)?.splice(&host, port)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(args: UpArgs) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("finding this program's own path")?;
    let Some(program) = program.to_str() else {
        bail!("{} cannot be written into an ssh_config", program.display());
    };
    let options = Options {
        machines: args.machines,
        load_balancers: args.load_balancers,
        etcd: args.etcd,
        suite: args.root_suite,
        packages: args.packages,
        mirror: args.mirror,
        subnet: args.subnet,
        dir: args.dir,
        ..Options::new(args.name, vec![program.into(), "lab".into(), "dial".into()])
    };
    let begun = Instant::now();
    let lab = Lab::up(&options, &mut |event| {
        crate::err!("{:6.2}s  {event}", begun.elapsed().as_secs_f64());
    })?;
    crate::out!(
        "lab {} is up: {} machines; ssh -F {} {}",
        lab.name(),
        lab.machines().len(),
        lab.ssh_config().display(),
        lab.machines()[0].name
    );
    Ok(())
}

fn down(name: Option<String>) -> anyhow::Result<()> {
    let name = match name {
        Some(name) => name,
        None => match quorate_lab::list().as_slice() {
            [] => {
                crate::out!("no lab is up");
                return Ok(());
            }
            [(name, _)] => name.clone(),
            labs => {
                let names = labs.iter().map(|(name, _)| name.clone()).collect();
                return Err(quorate_lab::Error::WhichLab(names).into());
            }
        },
    };
    let begun = Instant::now();
    Lab::down(&name, &mut |event| {
        crate::err!("{:6.2}s  {event}", begun.elapsed().as_secs_f64());
    })?;
    Ok(())
}

#[derive(Serialize)]
struct Listed<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    suite: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subnet: Option<Subnet>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ssh_config: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster_file: Option<PathBuf>,
    machines: Vec<ListedMachine<'a>>,
    cuts: &'a [quorate_lab::Cut],
}

#[derive(Serialize)]
struct ListedMachine<'a> {
    #[serde(flatten)]
    machine: &'a quorate_lab::Machine,
    on: bool,
}

fn list(output: Output) -> anyhow::Result<()> {
    let labs = quorate_lab::list();
    let mut listed = Vec::new();
    for (name, lab) in &labs {
        listed.push(match lab {
            Ok(lab) => Listed {
                name,
                error: None,
                suite: Some(&lab.description().suite),
                subnet: Some(lab.description().subnet),
                ssh_config: Some(lab.ssh_config()),
                cluster_file: Some(lab.cluster_file()),
                machines: lab
                    .machines()
                    .iter()
                    .map(|machine| {
                        let on = lab.is_on(&machine.name)?;
                        Ok(ListedMachine { machine, on })
                    })
                    .collect::<quorate_lab::Result<_>>()?,
                cuts: &lab.description().cuts,
            },
            Err(e) => Listed {
                name,
                error: Some(e.to_string()),
                suite: None,
                subnet: None,
                ssh_config: None,
                cluster_file: None,
                machines: Vec::new(),
                cuts: &[],
            },
        });
    }
    if output == Output::Json {
        crate::out!("{}", serde_json::to_string_pretty(&listed)?);
        return Ok(());
    }
    if listed.is_empty() {
        crate::out!("no lab is up; `quorate lab up` makes one");
        return Ok(());
    }
    crate::out!("{:<12} {:<8} {:<14} {:<15} STATE", "LAB", "MACHINE", "ROLE", "ADDRESS");
    for lab in &listed {
        for listed in &lab.machines {
            let machine = listed.machine;
            crate::out!(
                "{:<12} {:<8} {:<14} {:<15} {}",
                lab.name,
                machine.name,
                machine.role.as_str(),
                machine.address,
                if listed.on { "on" } else { "off" }
            );
        }
        for cut in lab.cuts {
            crate::out!("{:<12} cut: {} → {}", lab.name, cut.from, cut.to);
        }
        if let Some(error) = &lab.error {
            crate::out!("{:<12} broken: {error}", lab.name);
        }
    }
    Ok(())
}

fn ssh(target: &[String], command: &[String]) -> anyhow::Result<ExitCode> {
    let (lab, machine) = lab_and_machine(target)?;
    let mut ssh = lab.ssh(machine)?;
    ssh.args(command);
    // Only returns if it could not be started.
    Err(ssh.exec()).context("running ssh")
}

fn exec(name: Option<&str>, command: &[String]) -> anyhow::Result<ExitCode> {
    Lab::find(name)?.enter()?;
    let error = Command::new(&command[0]).args(&command[1..]).exec();
    Err(error).with_context(|| format!("running {}", command[0]))
}

/// `[NAME] MACHINE`.
fn lab_and_machine(target: &[String]) -> anyhow::Result<(Lab, &str)> {
    let (lab, rest) = lab_and_rest(target, 1)?;
    Ok((lab, &rest[0]))
}

/// An optional lab name before exactly `count` more.
fn lab_and_rest(target: &[String], count: usize) -> anyhow::Result<(Lab, &[String])> {
    let (name, rest) = target.split_at(target.len().saturating_sub(count));
    Ok((Lab::find(name.first().map(String::as_str))?, rest))
}
