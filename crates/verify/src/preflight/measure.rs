//! Trying out what no machine knows alone: ports, packets, latency, disks, clocks, the VIP's link. All machines at once,
//! each question bounded; a healthy network is through in little more than the second that VRRP has to be listened to.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use quorate_facts::*;
use quorate_machine::MachineRef;
use quorate_machine::proto::{Exec, Probe, Probed};
use quorate_plan::firewall::{self, Protocol};
use quorate_run::Fleet;
use quorate_spec::{Machine, Spec};
use tokio::time::timeout;

use super::{Input, deployed, vrrp};

/// Long enough to dial; ended at once when that is done.
const LISTEN_MS: u64 = 4_000;
/// A SYN that is lost is sent again after a second: a port that is open answers well before.
const DIAL_MS: u64 = 1_100;
const ECHO_MS: u64 = 900;
/// keepalived advertises every second unless told otherwise.
const VRRP_MS: u64 = 1_150;
const DISK_WRITES: u32 = 100;
const DISK_MS: u64 = 400;
const NAMES_MS: u64 = 1_500;
/// A machine too busy to answer holds nobody up.
const EACH: Duration = Duration::from_secs(6);
/// Up to so many machines, everyone tries everyone; beyond, each tries so many others per row of the matrix.
const EVERYONE: usize = 20;
const SAMPLE: usize = 4;
/// Smallest echo, for latency; and what every IPv6 link carries, to tell where packets end.
const SMALL: u16 = 84;
const MIDDLE: u16 = 1_280;

/// There is a machine without Quorate's programs: ports can be tried before anything depends on them.
pub fn worth_measuring(facts: &Facts) -> bool {
    facts
        .machines
        .values()
        .any(|machine| matches!(machine, MachineFacts::Found(host) if !deployed(host)))
}

/// Measures between all machines that were reached. Ports are opened for a moment on machines that run nothing of the
/// cluster; elsewhere only what listens there anyway is dialled.
pub async fn measure(spec: &Spec, fleet: &Fleet, facts: &Facts) -> Measured {
    let started = Instant::now();
    let machines: Vec<(&Machine, &HostFacts, &MachineRef)> = spec
        .machines
        .iter()
        .filter_map(|machine| Some((machine, facts.host(&machine.name)?, fleet.get(&machine.name)?)))
        .collect();
    let ports = ports(spec, &machines);
    let listening = async {
        let open = open(&machines, &ports).await;
        let targets = dials(&machines, &ports, &open);
        join_all(machines.iter().map(|of| dial(of, &targets))).await
    };
    let input = Input {
        spec,
        facts,
        measured: None,
    };
    let (dialled, alone, advertised) = tokio::join!(
        listening,
        join_all(machines.iter().map(|of| on_its_own(spec, of, &machines))),
        vrrp::measure(&input, &machines)
    );
    join_all(
        machines
            .iter()
            .filter(|(_, host, _)| !deployed(host))
            .map(|(_, _, connection)| {
                ask(
                    connection,
                    Probe::Listen {
                        ports: Vec::new(),
                        for_ms: 0,
                    },
                )
            }),
    )
    .await;
    let mut measured = advertised;
    for (found, problems) in dialled {
        measured.dialled.extend(found);
        measured.problems.extend(problems);
    }
    for one in alone {
        measured.echoed.extend(one.echoed);
        measured.clocks.extend(one.clock.map(|clock| (one.name.clone(), clock)));
        measured.disks.extend(one.disk.map(|disk| (one.name.clone(), disk)));
        measured.links.extend(one.link.map(|link| (one.name.clone(), link)));
        measured.names.insert(one.name.clone(), one.names);
        let problems = one.problems.into_iter();
        measured
            .problems
            .extend(problems.map(|problem| (one.name.clone(), problem)));
    }
    measured.took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    measured
}

type Port = (Transport, u16);

/// What is to be reachable: from, to, port, purpose.
struct Wanted<'a> {
    from: &'a str,
    to: &'a str,
    port: Port,
    purpose: &'static str,
}

/// The matrix between machines, once for each pair and port.
fn ports<'a>(spec: &'a Spec, machines: &[(&'a Machine, &HostFacts, &MachineRef)]) -> Vec<Wanted<'a>> {
    let mut seen = BTreeSet::new();
    let mut wanted = Vec::new();
    for flow in firewall::matrix(spec).into_iter().filter(|flow| flow.needed) {
        let transport = match flow.protocol {
            Protocol::Tcp => Transport::Tcp,
            Protocol::Udp => Transport::Udp,
            Protocol::Vrrp | Protocol::Icmp => continue,
        };
        let Some((port, _)) = flow.ports else { continue };
        let side = |side: firewall::Side| -> Vec<&'a str> {
            let of = machines.iter().filter(|(machine, ..)| side.contains(spec, machine));
            of.map(|(machine, ..)| machine.name.as_str()).collect()
        };
        let (from, to) = (side(flow.from), side(flow.to));
        for (index, from) in from.iter().enumerate() {
            for to in peers(&to, index, from, machines.len()) {
                if seen.insert((*from, to, transport, port)) {
                    wanted.push(Wanted {
                        from,
                        to,
                        port: (transport, port),
                        purpose: flow.purpose,
                    });
                }
            }
        }
    }
    wanted
}

/// Whom one machine tries: all others, or a few that differ from machine to machine, so that everyone is tried.
fn peers<'a>(all: &[&'a str], index: usize, own: &str, machines: usize) -> Vec<&'a str> {
    let others = all.iter().copied().filter(|name| *name != own);
    if machines <= EVERYONE {
        return others.collect();
    }
    let others: Vec<&str> = others.collect();
    let count = SAMPLE.min(others.len());
    (0..count)
        .map(|step| others[(index + step * 7) % others.len()])
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// Ports that somebody listens on, by machine: ours for the moment, or whoever did before.
async fn open<'a>(
    machines: &[(&'a Machine, &HostFacts, &MachineRef)],
    wanted: &[Wanted<'a>],
) -> BTreeSet<(&'a str, Port)> {
    let per_machine = machines.iter().map(|(machine, host, connection)| async move {
        let asked: BTreeSet<Port> = wanted
            .iter()
            .filter(|one| one.to == machine.name)
            .map(|one| one.port)
            .collect();
        // Restarting programs must find their ports free, so nothing is opened where the cluster's are.
        if deployed(host) {
            return host
                .listening
                .iter()
                .filter(|listener| listener.transport == Transport::Tcp && !listener.address.is_loopback())
                .map(|listener| (Transport::Tcp, listener.port))
                .filter(|port| asked.contains(port))
                .map(|port| (machine.name.as_str(), port))
                .collect::<Vec<_>>();
        }
        let asked: Vec<Port> = asked.into_iter().collect();
        let ports = asked
            .iter()
            .map(|(transport, port)| (*transport, SocketAddr::new(machine.address, *port)))
            .collect();
        let probe = Probe::Listen {
            ports,
            for_ms: LISTEN_MS,
        };
        match ask(connection, probe).await {
            Ok(Probed::Listening(found)) => asked
                .into_iter()
                .zip(found)
                // One that is taken answers TCP as well; that it is taken is said by `ports`.
                .filter(|((transport, _), found)| match found {
                    Listening::Opened => true,
                    Listening::Taken => *transport == Transport::Tcp,
                    Listening::Failed(_) => false,
                })
                .map(|(port, _)| (machine.name.as_str(), port))
                .collect(),
            _ => Vec::new(),
        }
    });
    join_all(per_machine).await.into_iter().flatten().collect()
}

/// One address to dial, and what for.
struct Target<'a> {
    to: &'a str,
    transport: Transport,
    address: SocketAddr,
    purpose: &'static str,
}

fn dials<'a>(
    machines: &[(&'a Machine, &HostFacts, &MachineRef)],
    wanted: &[Wanted<'a>],
    open: &BTreeSet<(&'a str, Port)>,
) -> BTreeMap<&'a str, Vec<Target<'a>>> {
    let addresses: BTreeMap<&str, IpAddr> = machines
        .iter()
        .map(|(machine, ..)| (machine.name.as_str(), machine.address))
        .collect();
    let mut targets: BTreeMap<&str, Vec<Target<'_>>> = BTreeMap::new();
    for one in wanted.iter().filter(|one| open.contains(&(one.to, one.port))) {
        let Some(address) = addresses.get(one.to) else { continue };
        targets.entry(one.from).or_default().push(Target {
            to: one.to,
            transport: one.port.0,
            address: SocketAddr::new(*address, one.port.1),
            purpose: one.purpose,
        });
    }
    targets
}

async fn dial(
    (machine, _, connection): &(&Machine, &HostFacts, &MachineRef),
    targets: &BTreeMap<&str, Vec<Target<'_>>>,
) -> (Vec<Dialled>, Option<(String, String)>) {
    let Some(targets) = targets.get(machine.name.as_str()) else {
        return (Vec::new(), None);
    };
    let probe = Probe::Dial {
        targets: targets.iter().map(|one| (one.transport, one.address)).collect(),
        timeout_ms: DIAL_MS,
    };
    match ask(connection, probe).await {
        Ok(Probed::Reach(found)) => {
            let dialled = targets.iter().zip(found).map(|(one, reach)| Dialled {
                from: machine.name.clone(),
                to: one.to.to_owned(),
                transport: one.transport,
                address: one.address,
                purpose: one.purpose.to_owned(),
                reach,
            });
            (dialled.collect(), None)
        }
        Ok(_) => (Vec::new(), None),
        Err(reason) => (Vec::new(), Some((machine.name.clone(), reason))),
    }
}

/// What needs no second machine's help.
struct Alone {
    name: String,
    echoed: Vec<Echoed>,
    clock: Option<ClockOffset>,
    disk: Option<DiskLatency>,
    link: Option<LinkSeen>,
    names: BTreeMap<String, Option<Vec<IpAddr>>>,
    problems: Vec<String>,
}

async fn on_its_own(
    spec: &Spec,
    of: &(&Machine, &HostFacts, &MachineRef),
    all: &[(&Machine, &HostFacts, &MachineRef)],
) -> Alone {
    let (machine, host, connection) = of;
    let (echoed, clock, disk, link, names) = tokio::join!(
        echoes(of, all),
        clock(connection),
        disk(spec, machine, connection),
        link(spec, machine, host, connection),
        names(spec, connection)
    );
    let mut problems = Vec::new();
    let mut keep = |found: Result<Option<Probed>, String>| match found {
        Ok(found) => found,
        Err(reason) => {
            problems.push(reason);
            None
        }
    };
    let disk = keep(disk).and_then(|found| {
        if let Probed::Disk(disk) = found {
            Some(disk)
        } else {
            None
        }
    });
    let link = keep(link).and_then(|found| {
        if let Probed::Link(link) = found {
            Some(link)
        } else {
            None
        }
    });
    let echoed = echoed.unwrap_or_else(|reason| {
        problems.push(reason);
        Vec::new()
    });
    Alone {
        name: machine.name.clone(),
        echoed,
        clock,
        disk,
        link,
        names,
        problems,
    }
}

async fn echoes(
    (machine, host, connection): &(&Machine, &HostFacts, &MachineRef),
    all: &[(&Machine, &HostFacts, &MachineRef)],
) -> Result<Vec<Echoed>, String> {
    let mtu = host
        .network
        .interface_of(machine.address)
        .and_then(|name| host.network.links.iter().find(|link| link.name == name))
        .map_or(1_500, |link| u16::try_from(link.mtu).unwrap_or(u16::MAX));
    let index = all
        .iter()
        .position(|(other, ..)| other.name == machine.name)
        .unwrap_or(0);
    let names: Vec<&str> = all.iter().map(|(other, ..)| other.name.as_str()).collect();
    let peers = peers(&names, index, &machine.name, all.len());
    let sizes: BTreeSet<u16> = [SMALL, MIDDLE.min(mtu), mtu].into();
    let mut targets = Vec::new();
    for (other, ..) in all.iter().filter(|(other, ..)| peers.contains(&other.name.as_str())) {
        targets.extend(sizes.iter().map(|size| (other.address, *size)));
    }
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let probe = Probe::Echo {
        targets,
        timeout_ms: ECHO_MS,
    };
    let Probed::Echoes(found) = ask(connection, probe).await? else {
        return Ok(Vec::new());
    };
    let of = |address: IpAddr| found.iter().filter(|echo| echo.address == address).cloned().collect();
    let to = all.iter().filter(|(other, ..)| peers.contains(&other.name.as_str()));
    Ok(to
        .map(|(other, ..)| Echoed {
            from: machine.name.clone(),
            to: other.name.clone(),
            mtu,
            echoes: of(other.address),
        })
        .collect())
}

/// The answer that took the least time tells the most.
async fn clock(connection: &MachineRef) -> Option<ClockOffset> {
    let mut best: Option<ClockOffset> = None;
    for _ in 0..3 {
        let (here, started) = (SystemTime::now(), Instant::now());
        let Ok(Probed::Clock(there)) = ask(connection, Probe::Clock).await else {
            continue;
        };
        let half = i64::try_from(started.elapsed().as_nanos() / 2).unwrap_or(i64::MAX);
        let here = here
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let offset = i128::from(there) - i128::try_from(here).unwrap_or(i128::MAX) - i128::from(half);
        let found = ClockOffset {
            offset_ns: i64::try_from(offset).unwrap_or(i64::MAX),
            error_ns: half,
        };
        if best.is_none_or(|best| half < best.error_ns) {
            best = Some(found);
        }
    }
    best
}

async fn disk(spec: &Spec, machine: &Machine, connection: &MachineRef) -> Result<Option<Probed>, String> {
    if !spec.etcd_members().iter().any(|member| member.name == machine.name) {
        return Ok(None);
    }
    let probe = Probe::Disk {
        path: spec.etcd.data_dir.clone(),
        writes: DISK_WRITES,
        for_ms: DISK_MS,
    };
    ask(connection, probe).await.map(Some)
}

/// Of holders of a VIP.
async fn link(
    spec: &Spec,
    machine: &Machine,
    host: &HostFacts,
    connection: &MachineRef,
) -> Result<Option<Probed>, String> {
    let mut addresses = Vec::new();
    if let Some(endpoint) = &spec.endpoint
        && spec.vip_holders().iter().any(|holder| holder.name == machine.name)
    {
        addresses.push(endpoint.vip);
    }
    if let Some(vip) = &spec.etcd.vip
        && spec.etcd_members().iter().any(|member| member.name == machine.name)
    {
        addresses.push(vip.address);
    }
    let Some(interface) = vip_interface(spec, machine, host).filter(|_| !addresses.is_empty()) else {
        return Ok(None);
    };
    let probe = Probe::Link {
        interface,
        addresses,
        for_ms: VRRP_MS,
    };
    ask(connection, probe).await.map(Some)
}

/// The one that carries VIPs on this holder.
pub(super) fn vip_interface(spec: &Spec, machine: &Machine, host: &HostFacts) -> Option<String> {
    let endpoint = spec.endpoint.as_ref();
    let holder = || spec.vip_holders().iter().any(|holder| holder.name == machine.name);
    let near = || host.network.interface_of(machine.address).map(str::to_owned);
    let named = || endpoint.filter(|_| holder())?.interface.clone();
    machine.interface.clone().or_else(named).or_else(near)
}

/// As the machine's own resolver answers; a name without an address is there with none.
async fn names(spec: &Spec, connection: &MachineRef) -> BTreeMap<String, Option<Vec<IpAddr>>> {
    let endpoint = spec.endpoint.as_ref().and_then(|endpoint| endpoint.name.clone());
    let asked = endpoint.into_iter().chain(["localhost".to_owned()]);
    let answers = asked.map(|name| async move {
        let getent = Exec::new(["getent", "ahosts", &name]).timeout_ms(NAMES_MS);
        let output = timeout(EACH, connection.exec(getent)).await.ok()?.ok()?;
        if output.timed_out {
            return Some((name, None));
        }
        let found: BTreeSet<IpAddr> = output
            .stdout
            .lossy()
            .lines()
            .filter_map(|line| line.split_whitespace().next()?.parse().ok())
            .collect();
        // Nothing found says nothing: the name may come with apply, or there is no getent.
        (!found.is_empty()).then(|| (name, Some(found.into_iter().collect())))
    });
    join_all(answers).await.into_iter().flatten().collect()
}

pub(super) async fn ask(connection: &MachineRef, probe: Probe) -> Result<Probed, String> {
    match timeout(EACH, connection.probe(probe)).await {
        Ok(Ok(probed)) => Ok(probed),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("gave no answer within {} s", EACH.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_twenty_machines_each_tries_a_few_and_everyone_is_tried() {
        let names: Vec<String> = (0..100).map(|n| format!("m{n}")).collect();
        let all: Vec<&str> = names.iter().map(String::as_str).collect();
        assert_eq!(peers(&all[..5], 0, "m0", 5).len(), 4);
        let mut tried = BTreeSet::new();
        for (index, name) in all.iter().enumerate() {
            let peers = peers(&all, index, name, all.len());
            assert!(peers.len() == SAMPLE && !peers.contains(name));
            tried.extend(peers);
        }
        assert_eq!(tried.len(), 100);
    }
}
