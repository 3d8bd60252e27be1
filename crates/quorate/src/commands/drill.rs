//! `quorate drill`: breaks things on purpose and measures what clients see.

use std::io::{BufWriter, Read};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Subcommand};
use quorate_drill::power::{LabPower, Power, SysrqPower};
use quorate_drill::scenario::{self, Around};
use quorate_drill::{Clients, Drill, Error, Event, Options, Report, Run, Scenario, chaos, coverage, expand, probe};

use quorate_spec::{Balancer, Endpoint, EndpointOn, Spec};

use crate::cluster::{self, ClusterArgs, ConnectArgs, Loaded, Purpose};
use crate::commands::apply::Interrupt;
use crate::console::{self, UserError};
use crate::progress::{Output, seconds};

#[derive(Debug, Args)]
pub(crate) struct DrillArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Break things, take them back, and say what clients saw.
    Run(RunArgs),
    /// Show all scenarios, and where each row of the fault matrix is shown.
    List {
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
    /// Measure as a client; configuration on standard input. Not for people.
    #[command(hide = true)]
    Probe,
    /// Print the monotonic clock, µs. Not for people.
    #[command(hide = true)]
    Clock,
    /// Send a stranger's VRRP advertisements. Not for people.
    #[command(hide = true)]
    Advertise {
        #[arg(long)]
        vrid: u8,
        #[arg(long)]
        vip: std::net::IpAddr,
        #[arg(long, value_delimiter = ',')]
        to: Vec<std::net::IpAddr>,
        #[arg(long = "for")]
        seconds: u64,
    },
    /// Send on late what is routed to an interface. Not for people.
    #[command(hide = true)]
    Late {
        #[arg(long)]
        device: String,
        #[arg(long)]
        ms: u64,
        #[arg(long)]
        jitter_ms: u64,
        #[arg(long = "for")]
        seconds: u64,
    },
    /// Switch a lab's machine on after a while. Not for people.
    #[command(hide = true)]
    PowerOn {
        #[arg(long)]
        after: u64,
        lab: String,
        machine: String,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum PowerBy {
    Sysrq,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    cluster: ClusterArgs,
    #[command(flatten)]
    connect: ConnectArgs,
    /// Scenarios by name; `quorate drill list` shows them.
    #[arg(value_name = "SCENARIO", conflicts_with_all = ["all", "short", "chaos"])]
    scenarios: Vec<String>,
    /// Every scenario the cluster can have.
    #[arg(long, conflicts_with_all = ["short", "chaos"])]
    all: bool,
    /// Each control plane powered off in turn, and the API server on the VIP's holder killed.
    #[arg(long, conflicts_with = "chaos")]
    short: bool,
    /// A random walk through scenarios that leave a quorum.
    #[arg(long)]
    chaos: bool,
    /// Of the random walk: the same seed is the same walk.
    #[arg(long, requires = "chaos", default_value_t = 1)]
    seed: u64,
    /// Length of the random walk, such as 90s or 10m; the scenario under way is finished.
    #[arg(long = "for", requires = "chaos", value_name = "TIME", default_value = "10m", value_parser = duration)]
    length: Duration,
    /// How machines outside a lab lose their power: `sysrq` has their kernels restart at once.
    #[arg(long, value_enum)]
    power: Option<PowerBy>,
    /// Permit scenarios that take the whole API away for a while.
    #[arg(long)]
    allow_outage: bool,
    /// Go on after a scenario from which the cluster did not recover in time.
    #[arg(long)]
    keep_going: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Take the cluster's lock from a run that is certainly dead.
    #[arg(long)]
    steal: bool,
    /// Measure the balancer every node has of its own (`access: proxy`, `ipvs`, `ebpf`) instead of the VIP.
    #[arg(long)]
    node_access: bool,
    /// A VIP that haproxy and keepalived hold in front of this cluster, instead of the cluster file's.
    #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "node_access")]
    foreign_vip: Option<std::net::SocketAddr>,
    /// Write report.json, report.md, report.html and raw samples there.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// `json`: every event is a line.
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

pub(crate) async fn run(args: DrillArgs) -> anyhow::Result<ExitCode> {
    match args.verb {
        Verb::Run(args) => drill(args).await,
        Verb::List { output } => list(output),
        Verb::Probe => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            let config = serde_json::from_str(&text).context("configuration on standard input")?;
            probe::run(config, &mut BufWriter::new(std::io::stdout())).await?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Clock => {
            crate::out!("{}", probe::monotonic_us());
            Ok(ExitCode::SUCCESS)
        }
        Verb::Advertise { vrid, vip, to, seconds } => {
            quorate_drill::advertise::advertise(vrid, vip, &to, Duration::from_secs(seconds))?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::Late {
            device,
            ms,
            jitter_ms,
            seconds,
        } => {
            quorate_drill::late::run(
                &device,
                Duration::from_millis(ms),
                Duration::from_millis(jitter_ms),
                Duration::from_secs(seconds),
            )?;
            Ok(ExitCode::SUCCESS)
        }
        Verb::PowerOn { after, lab, machine } => {
            std::thread::sleep(Duration::from_secs(after));
            quorate_drill::power::power_on(&quorate_lab::Lab::open(&lab)?, &machine).map_err(anyhow::Error::msg)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn drill(args: RunArgs) -> anyhow::Result<ExitCode> {
    let mut loaded = cluster::load(&args.cluster)?;
    if let Some(vip) = args.foreign_vip {
        foreign(&mut loaded.spec, vip);
    }
    if !loaded.spec.drill.allowed {
        return Err(
            UserError::new(format!("{} does not allow drills", loaded.file.display()))
                .hint("drills break things: spec.drill.allowed: true permits them")
                .into(),
        );
    }
    let program = std::env::current_exe().context("find this program's own path")?;
    let lab = lab(&loaded);
    if args.power.is_some() && lab.is_some() {
        return Err(UserError::new("a lab's machines have a switch")
            .hint("their kernel is this computer's: leave --power away")
            .into());
    }
    let around = Around {
        power: lab.is_some() || args.power.is_some(),
        shared_clock: lab.is_some(),
        foreign_vip: args.foreign_vip.is_some(),
        bundle: cluster::has_bundle(&loaded),
    };
    let walk = if args.chaos {
        Some(
            chaos::Walk::new(&loaded.spec, around, args.seed)
                .ok_or_else(|| UserError::new("no scenario suits this cluster"))?,
        )
    } else {
        None
    };
    let (runs, left_out) = if walk.is_some() {
        (Vec::new(), Vec::new())
    } else {
        runs(&args, &loaded, around)?
    };
    announce(&args, &runs, &loaded);

    let session = cluster::session(&loaded, &args.connect, Purpose::Look).await?;
    let operator = operator(&session, lab.as_ref(), &program).await;
    let power = match (lab, args.power) {
        (Some(lab), _) => Some(Arc::new(LabPower::new(lab, program)) as Arc<dyn Power>),
        (None, Some(PowerBy::Sysrq)) => {
            let runtime = tokio::runtime::Handle::current();
            Some(Arc::new(SysrqPower::new(session.fleet.clone(), runtime)) as Arc<dyn Power>)
        }
        (None, None) => None,
    };
    let json = args.output == Output::Json;
    let begun = Instant::now();
    let options = Options {
        dir: args.report.clone(),
        allow_outage: args.allow_outage,
        foreign_vip: args.foreign_vip.is_some(),
        left_out,
        operator,
        clients: if args.node_access {
            Clients::Access
        } else {
            Clients::Endpoint
        },
        steal: args.steal,
        keep_going: args.keep_going,
        ..Options::default()
    };
    let mut drill = Drill {
        session,
        power,
        options,
        events: Box::new(move |event| tell(event, json, begun)),
    };
    drill.refuse(&runs, around).await.map_err(refused)?;
    if !args.yes && !console::confirm("Break these things?") {
        return Err(UserError::new("nothing was broken")
            .hint("--yes drills without asking")
            .into());
    }
    let interrupt = Interrupt::watch();
    drill.options.stop = interrupt.stop.clone();
    let report = match walk {
        Some(walk) => drill.walk(walk, args.length).await,
        None => drill.run(&runs).await,
    }
    .map_err(refused)?;
    conclude(&report, &args, begun)
}

/// What others put in front of the cluster. Only for looking: nothing is planned from it.
fn foreign(spec: &mut Spec, vip: std::net::SocketAddr) {
    spec.balancer = Balancer::Haproxy;
    spec.endpoint = Some(Endpoint {
        name: None,
        vip: vip.ip(),
        port: vip.port(),
        on: EndpointOn::ControlPlanes,
        interface: None,
        vrid: 1,
        priorities: std::collections::BTreeMap::new(),
        interval_ms: 1_000,
        max_connections: None,
        statistics: None,
    });
}

/// Scenarios that this cluster cannot have, or may not without being told, and why.
type LeftOut = Vec<(&'static Scenario, String)>;

fn runs(args: &RunArgs, loaded: &Loaded, around: Around) -> anyhow::Result<(Vec<Run>, LeftOut)> {
    let spec = &loaded.spec;
    let mut left_out = LeftOut::new();
    let chosen: Vec<&'static Scenario> = if args.all || args.short {
        // Where machines cannot be switched off, what is left is still worth showing.
        let mut chosen = Vec::new();
        for scenario in scenario::all().filter(|scenario| args.all || scenario.short) {
            let skipped = scenario
                .skipped(spec, around)
                .or((scenario.takes_api_away(spec) && !args.allow_outage)
                    .then_some("it takes the whole API away; --allow-outage permits it"));
            match skipped {
                Some(reason) => {
                    crate::err!("skipped: {}: {reason}", scenario.name);
                    left_out.push((scenario, reason.to_owned()));
                }
                None => chosen.push(scenario),
            }
        }
        chosen
    } else if args.scenarios.is_empty() {
        return Err(UserError::new("which scenarios?")
            .hint("name some of `quorate drill list`, or say --short, --all or --chaos")
            .into());
    } else {
        let named = args.scenarios.iter().map(|name| {
            scenario::find(name)
                .ok_or_else(|| UserError::new(format!("there is no scenario {name}")).hint("quorate drill list"))
        });
        named.collect::<Result<_, _>>()?
    };
    if chosen.is_empty() {
        return Err(UserError::new("none of these scenarios suits this cluster").into());
    }
    Ok((expand(spec, &chosen), left_out))
}

fn announce(args: &RunArgs, runs: &[Run], loaded: &Loaded) {
    if args.chaos {
        crate::err!(
            "a random walk through failures of {} for {} s (--seed {})",
            loaded.spec.name,
            args.length.as_secs(),
            args.seed
        );
        return;
    }
    crate::err!(
        "{} scenarios on {}; each is taken back, also by a timer on the machine if this program ends:",
        runs.len(),
        loaded.spec.name
    );
    for run in runs {
        crate::err!("  {}: {}", run.name(), run.scenario.what);
    }
}

fn conclude(report: &Report, args: &RunArgs, begun: Instant) -> anyhow::Result<ExitCode> {
    if args.output == Output::Json {
        crate::out!("{}", serde_json::to_string(report)?);
    } else {
        for line in quorate_drill::report::table(report) {
            crate::out!("{line}");
        }
        let lost: u64 = report.scenarios.iter().map(|outcome| outcome.writes.lost).sum();
        crate::out!(
            "{}, {lost} acknowledged writes lost, in {:.0} s",
            report.held(),
            begun.elapsed().as_secs_f64()
        );
    }
    if let Some(dir) = &args.report {
        crate::err!("report: {}", dir.join("report.html").display());
    }
    Ok(if report.ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(console::DRIFT)
    })
}

fn tell(event: &Event, json: bool, begun: Instant) {
    if json {
        if let Ok(line) = serde_json::to_string(event) {
            crate::out!("{line}");
        }
        return;
    }
    let at = format!("{:6.1}s", begun.elapsed().as_secs_f64());
    match event {
        // How many a walk will have is known at its end.
        Event::Started {
            name,
            what,
            number,
            of: 0,
        } => crate::err!("{at}  {name} ({number}) — {what}"),
        Event::Started { name, what, number, of } => crate::err!("{at}  {name} ({number} of {of}) — {what}"),
        Event::Broken { machines, .. } => crate::err!("{at}    broken on {}", machines.join(", ")),
        Event::TakenBack { after_ms, .. } => crate::err!("{at}    taken back after {}", seconds(*after_ms)),
        Event::Green { after_ms, .. } => crate::err!("{at}    all checks hold again, {} later", seconds(*after_ms)),
        Event::NotGreen { failed, .. } => crate::err!("{at}    still not well: {}", failed.join("; ")),
        Event::Trouble { message, .. } => crate::err!("{at}    {message}"),
        Event::Done { outcome } if outcome.ok => {}
        Event::Done { outcome } if outcome.skipped => crate::err!("{at}    {}", outcome.why),
        Event::Done { outcome } => crate::err!("{at}    DID NOT HOLD: {}", outcome.why),
    }
}

fn list(output: Output) -> anyhow::Result<ExitCode> {
    if output == Output::Json {
        crate::out!(
            "{}",
            serde_json::to_string_pretty(&scenario::all().collect::<Vec<_>>())?
        );
        return Ok(ExitCode::SUCCESS);
    }
    let width = scenario::all().map(|scenario| scenario.name.len()).max().unwrap_or(0);
    crate::out!("{:width$}  ROW  WHAT", "SCENARIO");
    for scenario in scenario::all() {
        let outage = if scenario.loses_quorum {
            " (needs --allow-outage)"
        } else {
            ""
        };
        crate::out!(
            "{:width$}  {:>3}  {}{outage}",
            scenario.name,
            scenario.row,
            scenario.what
        );
    }
    crate::out!("");
    crate::out!("ROW  FAULT");
    for row in coverage::rows() {
        crate::out!("{:>3}  {}: {}", row.number, row.fault, row.shown());
    }
    Ok(ExitCode::SUCCESS)
}

/// The lab these machines are of.
fn lab(loaded: &Loaded) -> Option<quorate_lab::Lab> {
    let config = loaded.spec.ssh.config.as_ref()?;
    LabPower::find(&loaded.file.parent().unwrap_or(Path::new("")).join(config))
}

/// A command that runs this program where the operator reaches the API; empty if nowhere.
async fn operator(session: &quorate_run::Session, lab: Option<&quorate_lab::Lab>, program: &Path) -> Vec<String> {
    let program = program.display().to_string();
    if let Some(lab) = lab {
        return vec![
            program.clone(),
            "lab".into(),
            "exec".into(),
            lab.name().into(),
            "--".into(),
            program,
        ];
    }
    let Some(endpoint) = &session.spec.endpoint else {
        return Vec::new();
    };
    let reached = tokio::time::timeout(
        Duration::from_secs(2),
        tokio::net::TcpStream::connect((endpoint.vip, endpoint.port)),
    )
    .await;
    if matches!(reached, Ok(Ok(_))) {
        vec![program]
    } else {
        Vec::new()
    }
}

fn refused(error: Error) -> anyhow::Error {
    match error {
        Error::Refused(message) => UserError::new(message).into(),
        Error::Run(error) => console::hinted(error),
        other => other.into(),
    }
}

/// `90s`, `10m`, `1h`.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} is no time such as 90s or 10m"))?;
    match unit {
        "" | "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number * 60)),
        "h" => Ok(Duration::from_secs(number * 3_600)),
        _ => Err(format!("{text:?} is no time such as 90s or 10m")),
    }
}
