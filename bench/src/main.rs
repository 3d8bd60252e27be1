//! Side-by-side measurements of Quorate's data plane and the programs it replaces.
//!
//! Everything runs on this machine's loopback, is bounded in count and time, and ends by itself.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod load;
mod proxies;
mod sys;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run the agent (used by the measurements themselves).
    #[command(hide = true)]
    Agent {
        #[arg(long)]
        config: PathBuf,
    },
    /// One measurement, for a profiler.
    One {
        #[arg(long)]
        haproxy: bool,
        what: String,
        #[arg(long, default_value_t = 2)]
        seconds: u64,
    },
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().verb {
        Verb::Agent { config } => {
            tracing_subscriber::fmt().with_writer(std::io::stderr).init();
            quorate_agent::run::run(&quorate_agent::run::Options { config, take_over: false, workers: Some(1) })
        }
        Verb::One { haproxy, what, seconds } => {
            sys::pin(&[1]);
            let dir = tempfile::tempdir()?;
            let (mut world, backends) = load::World::new(4)?;
            let kind = if haproxy { proxies::Kind::Haproxy } else { proxies::Kind::Quorate };
            let proxy = proxies::Proxy::start(kind, dir.path(), &backends, proxies::Checks::Tcp, 0)?;
            world.target(proxy.addr);
            world.turn(Duration::from_millis(1500))?;
            let t = Duration::from_secs(seconds);
            let before = proxy.cpu();
            match what.as_str() {
                "conn" => world.connections(64, t)?,
                "stream1" => world.stream(1, t)?,
                "stream64" => world.stream(64, t)?,
                _ => world.requests(16, t)?,
            }
            let cpu = (proxy.cpu() - before).as_secs_f64();
            let s = &world.seen;
            println!(
                "{kind:?} {what}: cpu {cpu:.2}s conn {} failed {} conn/cpu-s {:.0} bytes {:.2} GiB/s cpu/GiB {:.3} requests {} per cpu-s {:.0} rss {}",
                s.connections, s.failed, s.connections as f64 / cpu,
                s.bytes as f64 / (1u64 << 30) as f64 / t.as_secs_f64(),
                cpu / (s.bytes as f64 / (1u64 << 30) as f64),
                s.latencies.len(), s.latencies.len() as f64 / cpu, proxy.resident()
            );
            Ok(())
        }
    }
}
