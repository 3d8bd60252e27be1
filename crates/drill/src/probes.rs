//! Probes where they run: on machines that are not broken, and beside the operator.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use quorate_machine::proto::Exec;
use quorate_machine::{MachineError, MachineRef};
use quorate_run::{Identity, Session};
use quorate_spec::{Access, Machine, Spec};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use crate::drill::Clients;
use crate::measure::Vantage;
use crate::probe::{self, Config, monotonic_us};

/// A probe without an end is a leak; no scenario lasts longer.
const AT_MOST: Duration = Duration::from_secs(900);
/// Machines that probe, beside the operator.
const VANTAGES: usize = 2;
/// The machine's own end of the connection runs this very program.
const PROGRAM: &str = "/proc/self/exe";

/// Rates, per second and vantage point.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    pub new: u32,
    pub reused: u32,
    pub writes: u32,
}

impl Default for Rates {
    fn default() -> Self {
        Self {
            new: 20,
            reused: 10,
            writes: 5,
        }
    }
}

/// Where clients are, and where they go.
pub(crate) struct Place<'a> {
    /// A command that runs this program where the operator reaches the API; empty if nowhere.
    pub(crate) operator: &'a [String],
    pub(crate) clients: Clients,
    /// On the machines the fault is on, instead of on others.
    pub(crate) there: bool,
    pub(crate) rates: Rates,
}

pub(crate) struct Probes {
    running: Vec<Running>,
    /// What did not start.
    lost: Vec<String>,
}

struct Running {
    name: String,
    stop: Stop,
    offset_us: i64,
    clock_error_us: i64,
    output: JoinHandle<Result<String, String>>,
}

enum Stop {
    Machine(MachineRef, PathBuf),
    Here(PathBuf),
}

impl Probes {
    /// `run`: unique, in the names of what is written.
    pub(crate) async fn start(
        session: &Session,
        identity: &Identity,
        broken: &[String],
        run: &str,
        place: &Place<'_>,
    ) -> Self {
        let spec = &session.spec;
        let mut candidates: Vec<_> = spec
            .machines
            .iter()
            .filter(|machine| broken.contains(&machine.name) == place.there)
            .filter_map(|machine| {
                let endpoint = endpoint(spec, Some(machine), place.clients)?;
                Some((machine, endpoint, session.fleet.get(&machine.name)?))
            })
            .collect();
        // Workers first: they are clients of the endpoint and of nothing else here.
        candidates.sort_by_key(|(machine, ..)| (machine.is_control_plane(), !machine.is_node()));
        let (mut running, mut lost) = (Vec::new(), Vec::new());
        let mut rates = place.rates;
        for (_, endpoint, machine) in candidates.into_iter().take(VANTAGES) {
            let config = config(endpoint, identity, format!("{run}-{}", machine.name()), rates);
            match on(machine.clone(), config).await {
                Ok(probe) => {
                    running.push(probe);
                    // One writer.
                    rates.writes = 0;
                }
                Err(error) => lost.push(format!("probe {} did not start: {error}", machine.name())),
            }
        }
        if let (Some((program, arguments)), Some(endpoint), false) = (
            place.operator.split_first(),
            endpoint(spec, None, place.clients),
            place.there,
        ) {
            let config = config(endpoint, identity, format!("{run}-operator"), rates);
            running.push(here(program.clone(), arguments.to_vec(), config));
        }
        Self { running, lost }
    }

    /// Ends them all and collects what they saw, on the operator's clock; and whom nothing was heard of.
    pub(crate) async fn stop(self) -> (Vec<Vantage>, Vec<String>) {
        for probe in &self.running {
            match &probe.stop {
                Stop::Machine(machine, file) => {
                    let _ = machine
                        .exec(Exec::new(["touch".to_owned(), file.display().to_string()]))
                        .await;
                }
                Stop::Here(file) => {
                    let _ = std::fs::write(file, b"");
                }
            }
        }
        let (mut vantages, mut lost) = (Vec::new(), self.lost);
        for probe in self.running {
            match probe.output.await.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(output) => {
                    let mut samples = probe::parse(&output);
                    if samples.is_empty() {
                        lost.push(format!("probe {}: no request in its output", probe.name));
                        continue;
                    }
                    for sample in &mut samples {
                        sample.at_us -= probe.offset_us;
                    }
                    vantages.push(Vantage {
                        name: probe.name,
                        samples,
                        clock_error_us: probe.clock_error_us,
                    });
                }
                Err(error) => lost.push(format!("probe {}: {error}", probe.name)),
            }
        }
        (vantages, lost)
    }
}

/// Where clients on `machine` go; on none, the operator's.
fn endpoint(spec: &Spec, machine: Option<&Machine>, clients: Clients) -> Option<SocketAddr> {
    if let (Some(endpoint), Clients::Endpoint) = (&spec.endpoint, clients) {
        return Some((endpoint.vip, endpoint.port).into());
    }
    let node = machine.filter(|machine| machine.is_node());
    match (&spec.access, node) {
        (Access::Proxy { listen }, Some(_)) => Some(*listen),
        // A control plane's own node goes to its own API server.
        (Access::Ipvs { virtual_address, .. } | Access::Ebpf { virtual_address }, Some(node))
            if !node.is_control_plane() =>
        {
            Some(*virtual_address)
        }
        (Access::Endpoint, _) => spec.control_planes().first().map(|machine| spec.api_server_of(machine)),
        _ => None,
    }
}

fn config(endpoint: SocketAddr, identity: &Identity, prefix: String, rates: Rates) -> Config {
    Config {
        endpoint,
        server_name: "kubernetes".into(),
        ca_pem: identity.authority.lossy(),
        identity_pem: identity.client.lossy(),
        stop_file: format!("/run/quorate-drill-{prefix}.stop").into(),
        prefix,
        new_per_s: rates.new,
        reused_per_s: rates.reused,
        writes_per_s: rates.writes,
        timeout_ms: 5_000,
        at_most_s: AT_MOST.as_secs(),
    }
}

async fn on(machine: MachineRef, config: Config) -> Result<Running, MachineError> {
    let (offset_us, clock_error_us) = offset(&machine).await?;
    let stop = Stop::Machine(machine.clone(), config.stop_file.clone());
    let name = machine.name().to_owned();
    let input = serde_json::to_vec(&config).unwrap_or_default();
    let mut exec = Exec::new([PROGRAM, "drill", "probe"])
        .stdin(input)
        .timeout_ms(u64::try_from((AT_MOST * 2).as_millis()).unwrap_or(u64::MAX));
    // Below what one answer may have.
    exec.max_output = 48 << 20;
    let output = tokio::spawn(async move {
        machine
            .exec_ok(exec)
            .await
            .map(|output| output.stdout.lossy())
            .map_err(|error| error.to_string())
    });
    Ok(Running {
        name,
        stop,
        offset_us,
        clock_error_us,
        output,
    })
}

fn here(program: String, arguments: Vec<String>, config: Config) -> Running {
    let stop = Stop::Here(config.stop_file.clone());
    let output = tokio::spawn(async move {
        let mut command = tokio::process::Command::new(&program);
        command
            .args(&arguments)
            .args(["drill", "probe"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
        if let Some(mut stdin) = child.stdin.take() {
            let input = serde_json::to_vec(&config).map_err(|error| error.to_string())?;
            stdin.write_all(&input).await.map_err(|error| error.to_string())?;
        }
        let mut text = String::new();
        if let Some(mut stdout) = child.stdout.take() {
            stdout
                .read_to_string(&mut text)
                .await
                .map_err(|error| error.to_string())?;
        }
        let status = child.wait().await.map_err(|error| error.to_string())?;
        if status.success() {
            Ok(text)
        } else {
            Err(format!("ended with {status}"))
        }
    });
    Running {
        name: "operator".into(),
        stop,
        offset_us: 0,
        clock_error_us: 0,
        output,
    }
}

/// The machine's monotonic clock less this one's, and how wrong that may be: half of the shortest of several exchanges.
async fn offset(machine: &MachineRef) -> Result<(i64, i64), MachineError> {
    let mut best: Option<(i64, i64)> = None;
    for _ in 0..5 {
        let before = monotonic_us();
        let output = machine.exec_ok(Exec::new([PROGRAM, "drill", "clock"])).await?;
        let after = monotonic_us();
        let Ok(there) = output.stdout.lossy().trim().parse::<i64>() else {
            continue;
        };
        let (offset, error) = (there - (before + after) / 2, (after - before) / 2);
        if best.is_none_or(|(_, least)| error < least) {
            best = Some((offset, error));
        }
    }
    best.ok_or_else(|| {
        MachineError::new(
            machine.name(),
            "read the monotonic clock",
            quorate_machine::ErrorKind::Failed,
            "no number in the answer",
        )
    })
}
