//! `quorate agent`: the load balancer of this machine: virtual addresses, proxy, IPVS, eBPF.

use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitCode};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use quorate_agent::admin::{Request, request};
use quorate_agent::{config, manifest, replay, run, supervise};
use quorate_lb::config::AgentConfig;
use quorate_lb::pod::{self, Pod};
use quorate_lb::{AdminState, Command as Order};
use serde_json::Value;

use crate::console::{self, UserError};

const DEFAULT_CONFIG: &str = "/etc/quorate/agent.yaml";
const DEFAULT_SOCKET: &str = "/run/quorate/agent.sock";

#[derive(Debug, Args)]
pub(crate) struct AgentArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run it in the foreground. SIGHUP reads the configuration again, SIGTERM ends in order.
    Run(RunArgs),
    /// Say everything that is wrong with a configuration file.
    Check {
        #[arg(default_value = DEFAULT_CONFIG)]
        file: PathBuf,
        /// How to print the findings.
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Print a systemd unit or a static Pod that runs the agent.
    Manifest {
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
        /// A systemd unit (the default).
        #[arg(long, conflicts_with = "static_pod")]
        unit: bool,
        /// A static Pod for /etc/kubernetes/manifests, running this image.
        #[arg(long, value_name = "IMAGE")]
        static_pod: Option<String>,
    },
    /// Show and steer the running agent.
    Ctl(CtlArgs),
    /// Give a recording (`record:` in the configuration) to the decision core and print its actions.
    Replay { file: PathBuf },
    /// Print the JSON schema of the configuration file.
    Schema,
    /// Remove the virtual addresses that an agent left on this machine.
    Purge {
        #[arg(long, default_value = DEFAULT_CONFIG)]
        config: PathBuf,
    },
}

#[derive(Debug, Args)]
struct RunArgs {
    #[arg(long, default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Replace the agent running behind the same control socket; no connection is refused meanwhile.
    #[arg(long)]
    take_over: bool,
    /// Proxy threads; one per CPU by default.
    #[arg(long)]
    workers: Option<usize>,
    /// Log as JSON lines.
    #[arg(long)]
    log_json: bool,
    /// Without the parent process that removes virtual addresses should the agent die.
    #[arg(long)]
    unsupervised: bool,
}

#[derive(Debug, Args)]
struct CtlArgs {
    /// Control socket of the agent.
    #[arg(long, global = true, default_value = DEFAULT_SOCKET)]
    socket: PathBuf,
    #[arg(short, long, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    verb: Ctl,
}

#[derive(Debug, Subcommand)]
enum Ctl {
    /// Virtual addresses, frontends and backends.
    Show,
    /// No new connections to a backend; those there are go on.
    Drain(Which),
    /// Back to normal.
    Ready(Which),
    /// No connections and no checks; those there are get reset.
    Maint(Which),
    /// Change a backend's weight until the agent restarts.
    Weight {
        #[command(flatten)]
        which: Which,
        /// 0 to 256; `default` for the configuration's.
        weight: String,
    },
    /// Hand the virtual addresses of an instance to another machine.
    Vip {
        instance: String,
        /// Do not take them back for this long.
        #[arg(long, default_value_t = 60)]
        hold_seconds: u64,
    },
    /// Read the configuration again.
    Reload,
}

#[derive(Debug, Args)]
struct Which {
    /// FRONTEND/BACKEND
    backend: String,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Text,
    Json,
}

pub(crate) fn run(args: AgentArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Run(args) => run_agent(args),
        Verb::Check { file, output } => check(&file, output),
        Verb::Manifest {
            config,
            unit: _,
            static_pod: None,
        } => {
            let program = std::env::current_exe().context("finding this program's path")?;
            crate::out!("{}", manifest::unit(&program, &config).trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Manifest {
            config: path,
            static_pod: Some(image),
            ..
        } => {
            let config = parsed(&path)?;
            let pod = Pod {
                image: &image,
                path: &path,
                config: &config,
                annotation: None,
            };
            crate::out!("{}", pod::manifest(&pod).trim_end());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Ctl(args) => ctl(&args),
        Verb::Replay { file } => {
            let inputs = replay::replay(&file, |action| {
                crate::out!("{}", serde_json::to_string(&action)?);
                Ok(())
            })?;
            crate::err!("{inputs} inputs replayed");
            Ok(ExitCode::SUCCESS)
        }
        Verb::Schema => {
            crate::out!("{}", serde_json::to_string_pretty(&config::schema())?);
            Ok(ExitCode::SUCCESS)
        }
        Verb::Purge { config } => {
            for address in supervise::purge(&parsed(&config)?)? {
                crate::out!("removed {address}");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_agent(args: RunArgs) -> anyhow::Result<ExitCode> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    if args.log_json {
        log.json().init();
    } else {
        log.with_ansi(console::colour()).init();
    }
    let config = loaded(&args.config)?;
    // The first process of a container has nobody who would start it again at once.
    let first = std::process::id() == 1;
    if (first || !config.vrrp.is_empty()) && !args.unsupervised {
        let program = std::env::current_exe().context("finding this program's path")?;
        let mut child = Process::new(program);
        child.args(std::env::args_os().skip(1)).arg("--unsupervised");
        let ended = supervise::supervised(&args.config, config, child)?;
        return Ok(ExitCode::from(u8::try_from(ended.code()).unwrap_or(console::FAILED)));
    }
    run::run(&run::Options {
        config: args.config,
        take_over: args.take_over,
        workers: args.workers,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn check(file: &Path, output: Output) -> anyhow::Result<ExitCode> {
    let findings = config::check(&parsed(file)?);
    if output == Output::Json {
        crate::out!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        for f in &findings {
            crate::out!("{}: {}\n  hint: {}", f.path, f.message, f.hint);
        }
        if findings.is_empty() {
            crate::out!("{}: good", file.display());
        }
    }
    Ok(if findings.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(console::USER)
    })
}

fn ctl(args: &CtlArgs) -> anyhow::Result<ExitCode> {
    let admin = |which: &Which, state| {
        let (frontend, backend) = which.split()?;
        anyhow::Ok(Request::Order {
            order: Order::SetAdmin {
                frontend,
                backend,
                state,
            },
        })
    };
    let wanted = match &args.verb {
        Ctl::Show => Request::Show,
        Ctl::Drain(which) => admin(which, AdminState::Drain)?,
        Ctl::Ready(which) => admin(which, AdminState::Ready)?,
        Ctl::Maint(which) => admin(which, AdminState::Maintenance)?,
        Ctl::Weight { which, weight } => {
            let (frontend, backend) = which.split()?;
            let weight = match weight.as_str() {
                "default" => None,
                number => Some(number.parse().ok().filter(|n| *n <= 256).ok_or_else(|| {
                    UserError::new(format!("{number:?} is no weight")).hint("write 0 to 256, or default")
                })?),
            };
            Request::Order {
                order: Order::SetWeight {
                    frontend,
                    backend,
                    weight,
                },
            }
        }
        Ctl::Vip { instance, hold_seconds } => Request::Order {
            order: Order::Release {
                instance: instance.clone(),
                hold: Duration::from_secs(*hold_seconds),
            },
        },
        Ctl::Reload => Request::Reload,
    };
    let answer = request(&args.socket, &wanted)?;
    match (args.output, &args.verb) {
        (Output::Json, _) => crate::out!("{}", serde_json::to_string_pretty(&answer)?),
        (Output::Text, Ctl::Show) => show(&answer),
        (Output::Text, _) => crate::out!("{}", answer.as_str().unwrap_or("done")),
    }
    Ok(ExitCode::SUCCESS)
}

impl Which {
    fn split(&self) -> anyhow::Result<(String, String)> {
        let (frontend, backend) = self.backend.split_once('/').ok_or_else(|| {
            UserError::new(format!("{:?} names no backend", self.backend))
                .hint("write FRONTEND/BACKEND, as `quorate agent ctl show` prints them")
        })?;
        Ok((frontend.to_owned(), backend.to_owned()))
    }
}

fn show(status: &Value) {
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let mut rows = Vec::new();
    for v in status["vrrp"].as_array().into_iter().flatten() {
        let vips: Vec<_> = v["vips"].as_array().into_iter().flatten().map(text).collect();
        rows.push(vec![
            format!("vip {}", text(&v["name"])),
            vips.join(","),
            text(&v["state"]),
            String::new(),
            String::new(),
        ]);
    }
    for f in status["frontends"].as_array().into_iter().flatten() {
        let listen: Vec<_> = f["listen"].as_array().into_iter().flatten().map(text).collect();
        let state = match (f["usable"].as_bool(), f["failOpen"].as_bool()) {
            (Some(true), Some(true)) => "fail-open",
            (Some(true), _) => "usable",
            _ => "no path",
        };
        rows.push(vec![
            text(&f["name"]),
            listen.join(","),
            state.into(),
            text(&f["active"]),
            text(&f["total"]),
        ]);
        for b in f["backends"].as_array().into_iter().flatten() {
            let admin = text(&b["admin"]);
            let state = format!("{} ({})", text(&b["availability"]), text(&b["reason"]));
            rows.push(vec![
                format!("{}/{}", text(&f["name"]), text(&b["name"])),
                text(&b["address"]),
                if admin == "ready" {
                    state
                } else {
                    format!("{state}, {admin}")
                },
                text(&b["active"]),
                text(&b["total"]),
            ]);
        }
    }
    rows.insert(
        0,
        ["NAME", "ADDRESS", "STATE", "NOW", "TOTAL"].map(str::to_owned).to_vec(),
    );
    let widths: Vec<usize> = (0..5)
        .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0))
        .collect();
    for r in rows {
        let line: Vec<_> = r.iter().zip(&widths).map(|(cell, w)| format!("{cell:<w$}")).collect();
        crate::out!("{}", line.join("  ").trim_end());
    }
}

fn parsed(path: &Path) -> anyhow::Result<AgentConfig> {
    config::parse(path).map_err(|e| UserError::new(e.to_string()).into())
}

fn loaded(path: &Path) -> anyhow::Result<AgentConfig> {
    config::load(path).map_err(|e| {
        UserError::new(e.to_string())
            .hint(format!("`quorate agent check {}` shows the same", path.display()))
            .into()
    })
}
