//! How soon a virtual address answers again: ours and keepalived's in turn, at the same interval, on machines of namespaces.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::netns::{Lab, Machine, Process, signal_pid, skipped, until};
use crate::report::{Goal, Results, Side};

const VIP: &str = "10.231.0.100";
const PORT: u16 = 8443;
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, PartialEq, Debug)]
enum End {
    /// Its machine is cut off in silence.
    Dies,
    /// SIGKILL to all its processes; the machine lives.
    Killed,
    /// SIGTERM.
    Stops,
}

/// Both with version 3, unicast, 100 ms, priorities 240 and 230, as control planes have them.
pub(crate) fn failover(rounds: usize, results: &mut Results) -> anyhow::Result<()> {
    if skipped(&["ip", "keepalived"]) {
        results.note("failover against keepalived: skipped: needs root, namespaces and keepalived".into());
        return Ok(());
    }
    for side in [Side::Ours, Side::Peer] {
        let lab = Lab::new("bench", 3);
        let program = std::env::current_exe()?.display().to_string();
        let respond = |m: &Machine| {
            let name = format!("m{}", m.number);
            m.start_program(&[&program, "respond", &name], &lab.log(&format!("{name}-service.log")))
        };
        let _services: Vec<Process> = lab.machines[..2].iter().map(respond).collect();
        let (one, two) = (&lab.machines[0], &lab.machines[1]);
        let start =
            |machine: &Machine, peer: &Machine, priority: u8| start(&lab, &program, side, machine, peer, priority);
        let _lower = start(one, two, 230);
        for end in [End::Dies, End::Killed, End::Stops] {
            for _ in 0..rounds {
                let mut higher = start(two, one, 240);
                ensure!(
                    until(PATIENCE, || two.has(VIP) && !one.has(VIP)),
                    "{side:?}: no holder\n{}",
                    lab.logs()
                );
                let address = SocketAddr::new(VIP.parse()?, PORT);
                let from = &lab.machines[2];
                ensure!(
                    answered(from, address, "m2", PATIENCE).is_some(),
                    "{side:?}: the VIP does not answer"
                );
                std::thread::sleep(Duration::from_millis(500));
                let ended = Instant::now();
                match end {
                    End::Dies => two.connect(false),
                    End::Killed => {
                        for pid in higher.children().into_iter().chain([higher.pid()]) {
                            signal_pid(pid, "KILL");
                        }
                    }
                    End::Stops => higher.signal("TERM"),
                }
                let took = answered(from, address, "m1", PATIENCE);
                let name = match end {
                    End::Dies => "machine of the VIP's holder dies: answered by the next after",
                    End::Killed => "VIP's holder killed: answered by the next after",
                    End::Stops => "VIP's holder stops: answered by the next after",
                };
                let ms = took.map_or(PATIENCE, |at| at - ended).as_secs_f64() * 1e3;
                results.against(
                    "keepalived",
                    name,
                    "ms",
                    side,
                    ms,
                    if end == End::Stops {
                        Goal::Below(50.0)
                    } else {
                        Goal::AtMost(1.0)
                    },
                );
                for pid in higher.children().into_iter().chain([higher.pid()]) {
                    signal_pid(pid, "KILL");
                }
                higher.wait();
                // What a killed one left behind.
                two.try_run("ip", &["address", "delete", &format!("{VIP}/32"), "dev", "eth0"]);
                two.connect(true);
            }
        }
    }
    Ok(())
}

fn start(lab: &Lab, program: &str, side: Side, machine: &Machine, peer: &Machine, priority: u8) -> Process {
    let name = format!("m{}", machine.number);
    let log = lab.log(&format!("{name}.log"));
    let (own, other) = (machine.v4(), peer.v4());
    if side == Side::Ours {
        let text = format!(
            "apiVersion: quorate.dev/v1\nkind: Agent\nnode: {name}\nadmin: {{socket: {}}}\nvrrp:\n- name: api\n  vrid: 51\n  \
             interface: eth0\n  source: {own}\n  vips: [{VIP}]\n  priority: {priority}\n  interval: 100ms\n  peers: [{other}]\n  \
             auth: {{mode: none}}\n",
            lab.directory.join(format!("{name}.sock")).display(),
        );
        let path = lab.write(&format!("{name}.yaml"), &text);
        return machine.start_program(&[program, "agent", "--config", &path.display().to_string()], &log);
    }
    let text = format!(
        "global_defs {{\n vrrp_version 3\n}}\nvrrp_instance api {{\n state BACKUP\n interface eth0\n virtual_router_id 51\n \
         priority {priority}\n advert_int 0.1\n unicast_src_ip {own}\n unicast_peer {{\n  {other}\n }}\n \
         virtual_ipaddress {{\n  {VIP}/32 dev eth0\n }}\n}}\n",
    );
    let path = lab.write(&format!("{name}.conf"), &text).display().to_string();
    let pid = |what: &str| lab.directory.join(format!("{name}-{what}.pid")).display().to_string();
    let (main, vrrp) = (pid("main"), pid("vrrp"));
    // One that was killed left them behind, and another process may have its number by now.
    for file in [&main, &vrrp] {
        let _ = std::fs::remove_file(file);
    }
    machine.start_program(
        &[
            "keepalived",
            "--dont-fork",
            "--log-console",
            "--vrrp",
            "-f",
            &path,
            "-p",
            &main,
            "-r",
            &vrrp,
        ],
        &log,
    )
}

/// When a request to the VIP was first answered by `name`.
fn answered(from: &Machine, address: SocketAddr, name: &str, within: Duration) -> Option<Instant> {
    from.enter(|| {
        let end = Instant::now() + within;
        while Instant::now() < end {
            if ask(address).is_some_and(|one| one == name) {
                return Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        None
    })
}

fn ask(address: SocketAddr) -> Option<String> {
    let patience = Duration::from_millis(50);
    let mut stream = TcpStream::connect_timeout(&address, patience).ok()?;
    stream.set_read_timeout(Some(patience)).ok()?;
    let mut name = String::new();
    stream.read_to_string(&mut name).ok()?;
    Some(name)
}

/// The service on the VIP: says whose it is.
pub(crate) fn respond(name: &str) -> anyhow::Result<()> {
    for stream in TcpListener::bind(("0.0.0.0", PORT))?.incoming() {
        let _ = stream.and_then(|mut stream| stream.write_all(name.as_bytes()));
    }
    Ok(())
}
