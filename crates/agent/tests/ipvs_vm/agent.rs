//! The whole agent on the node: health checks decide, clients tell what they saw.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_agent::{run, sockdiag};
use serde_json::{Value, json};

use crate::load::{Held, PER_S, StopOnDrop, failed_only_between, kinds, under_load};
use crate::netns::{Process, until};
use crate::setting::{
    PORT, Setting, VIRTUAL4, VIRTUAL6, answers, connect, expected, foreign_services, kernel_settings, saved,
};

/// The interval of health checks, which nobody has changed, and a tenth, by which they drift.
const INTERVAL: Duration = Duration::from_millis(1100);
/// For the check itself, and for seeing what came of it.
const MARGIN: Duration = Duration::from_millis(100);
/// Three checks a tenth of a second apart, each given a quarter.
const SILENCE: Duration = Duration::from_millis(450);
const SECOND: Duration = Duration::from_secs(1);
/// What a closed listener does.
const CLOSE: &str = "table ip closed { chain input { type filter hook input priority 0; tcp dport 6443 tcp flags & (syn | ack) == \
                     syn reject with tcp reset; }; }";

/// What is started on the node if there is no whole program: what `quorate agent run` runs.
pub(crate) fn run() {
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .init();
    run::run(&run::Options {
        config: std::env::var_os("QT_CONFIG").expect("configuration").into(),
        take_over: false,
        workers: Some(1),
    })
    .expect("running");
}

struct Agent(Process);

impl Agent {
    /// Starts it on the node.
    fn start(setting: &Setting, services: &Value) -> Self {
        let config = Self::configure(setting, services);
        let (path, log) = (config.to_str().expect("path"), setting.lab.log("agent.log"));
        let process = match std::env::var("QUORATE") {
            Ok(program) => {
                let arguments = [program.as_str(), "agent", "run", "--config", path];
                setting.node().start_program(&arguments, &log)
            }
            Err(_) => setting.node().start(&[("QT_ROLE", "agent"), ("QT_CONFIG", path)], &log),
        };
        Self(process)
    }

    fn configure(setting: &Setting, services: &Value) -> PathBuf {
        let config = json!({
            "apiVersion": "quorate.dev/v1", "kind": "Agent", "node": "node",
            "admin": {"socket": setting.lab.directory.join("agent.sock")}, "ipvs": services,
        });
        setting.lab.write("agent.json", &config.to_string())
    }

    fn reload(&self) {
        self.0.signal("HUP");
    }

    fn end(&mut self, signal: &str) {
        self.0.signal(signal);
        assert!(self.0.wait_for(Duration::from_secs(8)), "the agent does not end");
    }
}

/// Both virtual addresses with both servers, checked by HTTP.
fn services(setting: &Setting) -> Value {
    let service = |name: &str, address: &str, v6: bool| {
        let backend = |number: u8| {
            let machine = setting.server(number);
            let address = SocketAddr::new(if v6 { machine.v6() } else { machine.v4() }, PORT);
            json!({"name": format!("m{number}"), "address": address})
        };
        json!({
            "name": name, "virtual": address, "health": {"kind": "http"}, "backends": [backend(1), backend(2)],
        })
    };
    json!([service("four", VIRTUAL4, false), service("six", VIRTUAL6, true)])
}

/// A setting with an agent that serves both virtual addresses.
fn serving(what: &str) -> (Setting, Agent) {
    let setting = Setting::new(what);
    let agent = Agent::start(&setting, &services(&setting));
    let mut found = Vec::new();
    let all = until(Duration::from_secs(10), || {
        found = setting.node().enter(saved);
        found == expected()
    });
    assert!(all, "{found:?}");
    (setting, agent)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// `kill -9`: its kernel refuses for it.
    Killed,
    /// Its link: nobody says anything.
    Cut,
    /// No new connections are accepted, and those it has go on: it ends in order.
    Closed,
}

pub(crate) fn real_servers_die_and_return_under_load() {
    println!(
        "the agent: {}",
        std::env::var("QUORATE").map_or("this program", |_| "quorate")
    );
    sockdiag::supported().expect("SOCK_DESTROY");
    let (mut setting, _agent) = serving("dies");
    for fault in [Fault::Killed, Fault::Cut, Fault::Closed] {
        dies_and_returns(&mut setting, fault);
    }
}

fn dies_and_returns(setting: &mut Setting, fault: Fault) {
    let on_node = (0..12).map(|_| Held::new(setting.node()));
    let mut held: Vec<Held> = on_node.collect();
    held.extend((0..4).map(|_| Held::new(setting.pod())));
    let (theirs, others): (Vec<Held>, Vec<Held>) = held.into_iter().partition(|held| held.server == "m1");
    assert_eq!((theirs.len(), others.len()), (8, 8));

    let ((struck, out, mended, back), samples) = under_load(setting.node().namespace(), || {
        std::thread::sleep(SECOND / 2);
        let struck = Instant::now();
        match fault {
            Fault::Killed => setting.kill(1),
            Fault::Cut => setting.server(1).connect(false),
            Fault::Closed => drop(setting.server(1).must("nft", &[CLOSE])),
        }
        assert!(until(SECOND * 5, || setting.served() == [2]), "never taken out");
        let out = Instant::now();
        std::thread::sleep(SECOND);
        let mended = Instant::now();
        match fault {
            Fault::Killed => setting.start(1),
            Fault::Cut => setting.server(1).connect(true),
            Fault::Closed => drop(setting.server(1).must("nft", &["delete table ip closed"])),
        }
        assert!(until(SECOND * 5, || setting.served().contains(&1)), "never put back");
        let back = Instant::now();
        std::thread::sleep(SECOND);
        (struck, out, mended, back)
    });

    let freed: Vec<Instant> = theirs.iter().filter_map(Held::ended).collect();
    let freed_after = freed.iter().max().map(|last| last.saturating_duration_since(struck));
    let window = out - struck;
    let failed = failed_only_between(&samples, struck, out);
    let after: Vec<&str> = samples
        .iter()
        .filter(|sample| sample.due > back)
        .filter_map(|sample| sample.answer.as_deref().ok())
        .collect();
    let returned = after.iter().filter(|name| **name == "m1").count();
    let slowest = samples
        .iter()
        .filter(|sample| sample.answer.is_ok())
        .map(|one| one.took);
    eprintln!(
        "{fault:?}: taken out after {window:.0?}, {} of {} held connections freed after {freed_after:.0?}; of {} new connections {failed} \
         failed ({}), all due until then; the slowest of the others took {:.0?}; put back {:.0?} after it was there again, and \
         then given {returned} of {}",
        freed.len(),
        theirs.len(),
        samples.len(),
        kinds(&samples),
        slowest.max().unwrap_or_default(),
        back - mended,
        after.len(),
    );
    // Servers take turns, so the dead one is given every second.
    let most = PER_S as f64 * window.as_secs_f64() / 2.0 + 2.0;
    assert!(
        failed as f64 <= most,
        "{failed} failed, {most:.0} at most were its turn"
    );
    let (window_most, freed_most) = match fault {
        Fault::Killed => (INTERVAL + MARGIN, Some(SECOND)),
        Fault::Cut => (INTERVAL + SILENCE + MARGIN, Some(INTERVAL + SILENCE + MARGIN * 2)),
        Fault::Closed => (INTERVAL + MARGIN, None),
    };
    assert!(window <= window_most, "taken out after {window:?}");
    if let Some(most) = freed_most {
        assert_eq!(freed.len(), theirs.len(), "not freed");
        assert!(freed_after <= Some(most), "freed after {freed_after:?}");
    } else {
        assert!(theirs.iter().all(Held::goes_on), "what it was finishing was cut off");
    }
    assert!(back - mended <= SECOND, "put back after {:?}", back - mended);
    assert!(
        returned.abs_diff(after.len() - returned) <= 2,
        "it is given its share again"
    );
    assert!(others.iter().all(Held::goes_on), "clients of the other server were hit");
}

/// With `expire_nodest_conn` Linux 5.9 and later forget all connections with the table, also those that say nothing until it is
/// healed. Their clients are reset at their next packet and connect anew.
pub(crate) fn a_foreign_flush_under_load_is_healed() {
    let (setting, _agent) = serving("flush");
    for round in 1..=3u32 {
        let quiet: Vec<Held> = (0..4).map(|_| Held::new(setting.node())).collect();
        let busy: Vec<Held> = (0..2).map(|_| Held::new(setting.node())).collect();
        let stop = AtomicBool::new(false);
        let ((flushed, healed), samples) = std::thread::scope(|scope| {
            let _ending = StopOnDrop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    busy.iter().for_each(Held::ask);
                    std::thread::sleep(Duration::from_millis(20));
                }
            });
            under_load(setting.node().namespace(), || {
                // At another moment of the agent's half second each time.
                std::thread::sleep(SECOND / 2 + SECOND / 7 * round);
                let flushed = Instant::now();
                setting.node().must("ipvsadm", &["-C"]);
                assert!(until(SECOND * 3, || setting.served().len() == 2), "never healed");
                let healed = Instant::now();
                std::thread::sleep(SECOND);
                (flushed, healed)
            })
        });
        let took = healed - flushed;
        let failed = failed_only_between(&samples, flushed, healed);
        let ended = busy.iter().filter_map(Held::ended);
        let reset: Vec<Duration> = ended.map(|ended| ended.saturating_duration_since(flushed)).collect();
        let kept = quiet.iter().filter(|held| held.goes_on()).count();
        eprintln!(
            "flushed: healed after {took:.0?}; of {} new connections {failed} failed ({}), all due until then; of {} busy \
             connections {} were reset, after {reset:.0?}; of {} quiet ones {kept} went on",
            samples.len(),
            kinds(&samples),
            busy.len(),
            reset.len(),
            quiet.len(),
        );
        assert!(took <= SECOND, "healed after {took:?}");
        let most = PER_S as f64 * took.as_secs_f64() + 2.0;
        assert!(failed as f64 <= most, "{failed} failed, {most:.0} were due");
        assert_eq!(setting.node().enter(saved), expected());
        assert!(reset.iter().all(|after| *after <= SECOND), "{reset:?}");
        let mut all = quiet.iter().chain(&busy);
        assert!(
            all.all(|held| held.ended().is_some() || held.goes_on()),
            "a client that sends something hangs"
        );
    }
}

pub(crate) fn an_agent_that_is_replaced_is_not_missed() {
    let (setting, mut agent) = serving("restart");
    let held: Vec<Held> = (0..4).map(|_| Held::new(setting.node())).collect();
    for signal in ["TERM", "KILL"] {
        let stop = AtomicBool::new(false);
        let ((), samples) = std::thread::scope(|scope| {
            let _ending = StopOnDrop(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    held.iter().for_each(Held::ask);
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
            under_load(setting.node().namespace(), || {
                std::thread::sleep(SECOND / 2);
                agent.end(signal);
                std::thread::sleep(SECOND / 2);
                agent = Agent::start(&setting, &services(&setting));
                std::thread::sleep(SECOND * 2);
            })
        });
        let failed = samples.iter().filter(|sample| sample.answer.is_err()).count();
        let lost = held.iter().filter(|held| held.ended().is_some()).count();
        eprintln!(
            "an agent ended by SIG{signal} and started again: of {} new connections {failed} failed ({}), of {} held ones \
             {lost} were lost",
            samples.len(),
            kinds(&samples),
            held.len(),
        );
        assert_eq!((failed, lost), (0, 0));
        assert_eq!(setting.node().enter(saved), expected());
    }
}

/// What an agent may have to do with on the node.
#[derive(Debug, PartialEq)]
struct Traces {
    table: Vec<String>,
    settings: Vec<(String, String)>,
    links: Vec<String>,
    addresses: String,
    rules: String,
}

fn traces(setting: &Setting) -> Traces {
    let links = setting.node().must("ip", &["-o", "link"]);
    Traces {
        table: setting.node().enter(saved),
        settings: setting.node().enter(kernel_settings).into_iter().collect(),
        links: links
            .lines()
            .map(|line| line.split(": ").nth(1).unwrap_or(line).to_owned())
            .collect(),
        addresses: setting.node().must("ip", &["-o", "address"]),
        rules: setting.node().must("nft", &["list", "ruleset"]),
    }
}

fn become_as(setting: &Setting, before: &Traces) -> Duration {
    let begin = Instant::now();
    let mut found = traces(setting);
    until(SECOND * 5, || {
        found = traces(setting);
        found == *before
    });
    assert_eq!(found, *before);
    begin.elapsed()
}

pub(crate) fn an_agent_without_services_leaves_nothing() {
    let setting = Setting::new("leaves");
    let before = traces(&setting);
    let mut agent = Agent::start(&setting, &services(&setting));
    let served = || setting.served().len() == 2;
    assert!(until(SECOND * 10, served), "not served");
    let held = Held::new(setting.node());
    agent.end("TERM");
    assert_ne!(traces(&setting), before);
    assert_eq!(
        setting.node().enter(|| answers(VIRTUAL4, 4)),
        [2, 2],
        "the kernel goes on without it"
    );
    assert!(held.goes_on());

    // Its successor is a stranger to all of that but for the marks.
    let mut next = Agent::start(&setting, &json!([]));
    let took = become_as(&setting, &before);
    eprintln!("an agent without services: nothing left after {took:.0?}");
    assert!(took <= SECOND, "gone after {took:?}");
    assert!(setting.node().enter(|| connect(VIRTUAL4)).is_err());
    next.end("TERM");
    assert_eq!(traces(&setting), before);
}

pub(crate) fn a_reload_without_services_leaves_others_theirs() {
    let setting = Setting::new("others");
    setting.node().enter(foreign_services);
    let mut before = traces(&setting);
    let mut agent = Agent::start(&setting, &services(&setting));
    let with_ours = || setting.served().len() == 2;
    assert!(until(SECOND * 10, with_ours), "not served");
    std::thread::sleep(SECOND);
    let table = setting.node().enter(saved);
    let theirs: Vec<String> = table.into_iter().filter(|line| !expected().contains(line)).collect();
    assert_eq!(theirs, before.table, "beside ours");

    // Whoever else uses IPVS may need them by now.
    let needed = ["conntrack", "expire_nodest_conn"];
    for (name, value) in &mut before.settings {
        if needed.contains(&name.as_str()) {
            *value = "1".to_owned();
        }
    }
    Agent::configure(&setting, &json!([]));
    agent.reload();
    let took = become_as(&setting, &before);
    eprintln!("a reload without services: ours gone after {took:.0?}, others' as before");
    assert!(took <= SECOND, "gone after {took:?}");
    agent.end("TERM");
    assert_eq!(traces(&setting), before);
}
