//! Connect-time balancing with real programs in the kernel, in a cgroup and namespaces of the test's own.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    reason = "a test program with a main of its own"
)]

mod netns;

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use netns::{Lab, Machine, Process, full, must, run, skipped, until};
use quorate_agent::bpf::{self, Balancer};
use quorate_agent::kernel_set;
use quorate_agent::sockdiag::{self, Victims};
use quorate_lb::config::SetKind;
use quorate_lb::{AgentConfig, Availability, BackendView, Reason};

const VIRTUAL4: &str = "10.99.99.99:443";
const VIRTUAL6: &str = "[fd99::99]:443";
const PORT: u16 = 6443;

fn main() {
    match std::env::var("QT_ROLE").as_deref() {
        Ok("backend") => return backend(),
        Ok("client") => return client(),
        Ok("agent") => return agent(),
        _ => {}
    }
    netns::main(&[
        ("connects_are_spread_and_peer_names_show_the_virtual_address", spread),
        ("pins_outlive_the_agent_and_are_taken_over", outlive),
        ("no_backend_refuses_at_once", refuse),
        ("clients_of_a_dead_backend_are_freed", freed),
        ("the_agents_thread_heals_and_frees", heals),
        ("what_is_no_longer_configured_is_taken_away", taken_away),
        ("agents_die_are_replaced_and_leave_nothing", lives),
        ("a_connect_costs_little", cost),
    ]);
}

/// A cgroup below the root of the hierarchy and a bpffs, both this test's own.
struct Place {
    cgroup: PathBuf,
    bpffs: PathBuf,
}

impl Place {
    fn new(lab: &Lab) -> Self {
        let name = format!("qt-agent-{}", std::process::id());
        let cgroup = bpf::cgroup_root().expect("cgroup2").join(&name);
        fs::create_dir_all(&cgroup).expect("own cgroup");
        let bpffs = lab.directory.join("bpf");
        fs::create_dir_all(&bpffs).expect("directory");
        must("mount", &["-t", "bpf", "bpf", bpffs.to_str().expect("path")]);
        Self { cgroup, bpffs }
    }

    fn attach(&self) -> Balancer {
        Balancer::attach(&self.cgroup, &self.bpffs.join("quorate")).expect("attaching")
    }

    fn adopt(&self, process: &Process) {
        fs::write(self.cgroup.join("cgroup.procs"), process.pid().to_string()).expect("moving into the cgroup");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = bpf::remove(&self.bpffs.join("quorate"));
        run("umount", &[self.bpffs.to_str().expect("path")]);
        until(Duration::from_secs(2), || fs::remove_dir(&self.cgroup).is_ok());
    }
}

fn unsupported() -> bool {
    if skipped(&["ip", "mount"]) {
        return true;
    }
    let reason = bpf::supported().err().or_else(|| bpf::cgroup_root().err());
    if let Some(reason) = &reason {
        println!("skipped: {reason}");
    }
    reason.is_some()
}

/// Answers each connection with the machine's name and keeps it open.
fn backend() {
    let name = std::env::var("QT_NAME").expect("name");
    let listen = |address: String| {
        let listener = TcpListener::bind(address).expect("listening");
        let name = name.clone();
        std::thread::spawn(move || {
            let mut kept = Vec::new();
            for mut stream in listener.incoming().flatten() {
                let _ = stream.write_all(name.as_bytes());
                kept.push(stream);
            }
        })
    };
    let threads = [listen(format!("0.0.0.0:{PORT}")), listen(format!("[::]:{}", PORT + 1))];
    threads.into_iter().for_each(|thread| drop(thread.join()));
}

/// Reads orders `connect ADDRESS COUNT` and `hold ADDRESS` from a file that grows, and prints what became of them.
/// A process of its own because the cgroup of a process counts when the socket is made.
fn client() {
    let orders = std::env::var("QT_ORDERS").expect("orders");
    let mut done = 0;
    loop {
        let text = fs::read_to_string(&orders).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        for line in &lines[done..] {
            let words: Vec<&str> = line.split(' ').collect();
            let address: SocketAddr = words[1].parse().expect("address");
            match words[0] {
                "connect" => (0..words[2].parse().expect("count")).for_each(|_| println!("{}", ask(address))),
                "hammer" => println!("{}", hammer(address, words[2].parse().expect("milliseconds"))),
                "time" => println!("time {}", time(address, words[2].parse().expect("count"))),
                _ => hold(address),
            }
            println!("done {line}");
        }
        done = lines.len();
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ask(address: SocketAddr) -> String {
    match TcpStream::connect_timeout(&address, Duration::from_secs(2)) {
        Ok(mut stream) => {
            let mut name = [0; 2];
            stream.read_exact(&mut name).expect("name");
            format!(
                "{} {}",
                String::from_utf8_lossy(&name),
                stream.peer_addr().expect("peer")
            )
        }
        Err(error) => format!("error {error}"),
    }
}

/// The agent's own process.
fn agent() {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let config = std::env::var("QT_CONFIG").expect("configuration");
    quorate_agent::run::run(&quorate_agent::run::Options {
        config: config.into(),
        take_over: std::env::var_os("QT_TAKE_OVER").is_some(),
        workers: Some(1),
    })
    .expect("running");
}

/// Connects over and over in the background; how often it was not answered is printed at the end.
fn hammer(address: SocketAddr, milliseconds: u64) -> &'static str {
    std::thread::spawn(move || {
        let end = Instant::now() + Duration::from_millis(milliseconds);
        let (mut asked, mut failed) = (0, 0);
        while Instant::now() < end {
            asked += 1;
            let begin = Instant::now();
            let answer = ask(address);
            if answer.starts_with("error") {
                failed += 1;
                println!(
                    "{answer} after {:?}, at {:?} before the end",
                    begin.elapsed(),
                    end - begin
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        println!("hammered {} failed {failed}", asked > 50);
    });
    "hammering"
}

/// Nanoseconds of this thread's processor time per connect and close: other load on the machine does not count.
fn time(address: SocketAddr, count: u64) -> u64 {
    let spent = || -> u64 {
        let text = fs::read_to_string("/proc/thread-self/schedstat").expect("schedstat");
        text.split(' ')
            .next()
            .and_then(|field| field.parse().ok())
            .expect("number")
    };
    let start = spent();
    for _ in 0..count {
        drop(TcpStream::connect(address).expect("connect"));
    }
    (spent() - start) / count
}

fn hold(address: SocketAddr) {
    let mut stream = TcpStream::connect(address).expect("connect");
    let mut name = [0; 2];
    stream.read_exact(&mut name).expect("name");
    println!("held {}", String::from_utf8_lossy(&name));
    std::thread::spawn(move || {
        let result = stream.read(&mut [0; 1]);
        println!("freed {} {result:?}", String::from_utf8_lossy(&name));
    });
}

struct Clients<'a> {
    lab: &'a Lab,
    name: String,
    orders: String,
    _process: Process,
}

impl<'a> Clients<'a> {
    fn start(lab: &'a Lab, machine: &Machine, place: &Place) -> Self {
        let name = format!("client{}", machine.number);
        let orders = lab
            .write(&format!("{name}.orders"), "")
            .to_str()
            .expect("path")
            .to_owned();
        let environment = [("QT_ROLE", "client"), ("QT_ORDERS", orders.as_str())];
        let process = machine.start(&environment, &lab.log(&format!("{name}.log")));
        place.adopt(&process);
        // Wait until `ip netns exec` has become the client.
        assert!(until(Duration::from_secs(2), || {
            fs::read_to_string(format!("/proc/{}/comm", process.pid()))
                .unwrap_or_default()
                .starts_with("ebpf")
        }));
        Self {
            lab,
            name,
            orders,
            _process: process,
        }
    }

    fn output(&self) -> String {
        fs::read_to_string(self.lab.log(&format!("{}.log", self.name))).unwrap_or_default()
    }

    /// Gives an order and returns the lines printed for it.
    fn order(&self, order: &str) -> Vec<String> {
        let before = self.output().lines().count();
        let mut file = fs::OpenOptions::new().append(true).open(&self.orders).expect("orders");
        writeln!(file, "{order}").expect("order");
        let end = format!("done {order}");
        let lines = || -> Vec<String> { self.output().lines().skip(before).map(str::to_owned).collect() };
        assert!(
            until(Duration::from_secs(30), || lines().contains(&end)),
            "{order}: {}",
            self.output()
        );
        lines().into_iter().filter(|line| !line.starts_with("done ")).collect()
    }
}

/// Machines 1 and 2 are backends, 3 is the host, 4 a Pod (another namespace) of it.
fn backends(lab: &Lab) -> Vec<Process> {
    let start = |machine: &Machine| {
        let name = format!("m{}", machine.number);
        machine.start(
            &[("QT_ROLE", "backend"), ("QT_NAME", name.as_str())],
            &lab.log(&format!("{name}.log")),
        )
    };
    let processes = lab.machines[..2].iter().map(start).collect();
    for machine in &lab.machines[..2] {
        let address = SocketAddr::new(machine.v4(), PORT + 1);
        let listening =
            || lab.machines[2].enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok());
        assert!(until(Duration::from_secs(3), listening));
    }
    processes
}

fn set(lab: &Lab, numbers: &[usize]) -> Vec<(SocketAddr, u16)> {
    numbers
        .iter()
        .map(|number| (SocketAddr::new(lab.machines[number - 1].v4(), PORT), 100))
        .collect()
}

fn address(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

fn spread() {
    if unsupported() {
        return;
    }
    let lab = Lab::new("spread", 4);
    let _backends = backends(&lab);
    let place = Place::new(&lab);
    let balancer = place.attach();
    balancer.set(address(VIRTUAL4), &set(&lab, &[1, 2])).expect("set");
    let six: Vec<(SocketAddr, u16)> = lab.machines[..2]
        .iter()
        .map(|machine| (SocketAddr::new(machine.v6(), PORT + 1), 100))
        .collect();
    balancer.set(address(VIRTUAL6), &six).expect("set");
    for machine in &lab.machines[2..] {
        let clients = Clients::start(&lab, machine, &place);
        for virtual_address in [VIRTUAL4, VIRTUAL6] {
            let lines = clients.order(&format!("connect {virtual_address} 40"));
            let count = |name: &str| {
                lines
                    .iter()
                    .filter(|line| **line == format!("{name} {virtual_address}"))
                    .count()
            };
            assert_eq!(count("m1") + count("m2"), 40, "{lines:?}");
            assert!(count("m1") >= 8 && count("m2") >= 8, "{} {}", count("m1"), count("m2"));
        }
        // A dual-stack socket connecting to the mapped IPv4 address.
        let mapped = format!("[::ffff:{}]:443", address(VIRTUAL4).ip());
        let lines = clients.order(&format!("connect {mapped} 2"));
        assert!(lines.iter().all(|line| line.ends_with(&mapped)), "{lines:?}");
        // Others are left alone.
        let direct = SocketAddr::new(lab.machines[0].v4(), PORT);
        assert_eq!(clients.order(&format!("connect {direct} 1")), [format!("m1 {direct}")]);
    }
    let misfit = balancer.set(address(VIRTUAL6), &set(&lab, &[1]));
    assert!(misfit.is_err_and(|error| error.to_string().contains("families differ")));
}

fn outlive() {
    if unsupported() {
        return;
    }
    let lab = Lab::new("outlive", 3);
    let _backends = backends(&lab);
    let place = Place::new(&lab);
    let balancer = place.attach();
    balancer.set(address(VIRTUAL4), &set(&lab, &[1])).expect("set");
    let clients = Clients::start(&lab, &lab.machines[2], &place);
    drop(balancer);
    let one = format!("connect {VIRTUAL4} 1");
    assert_eq!(
        clients.order(&one),
        [format!("m1 {VIRTUAL4}")],
        "the last good set outlives the agent"
    );

    let next = place.attach();
    assert!(next.is_pinned());
    let all_to_first = bpf::shares(&set(&lab, &[1]));
    assert_eq!(next.list().expect("list"), [(address(VIRTUAL4), all_to_first)]);
    next.set(address(VIRTUAL4), &set(&lab, &[2])).expect("set");
    assert_eq!(
        clients.order(&format!("{one} ")),
        [format!("m2 {VIRTUAL4}")],
        "the next agent takes over"
    );

    // A pin that somebody removed is noticed, and healed by attaching again.
    fs::remove_file(place.bpffs.join("quorate/v1/connect4")).expect("removing a pin");
    assert!(!next.is_pinned());
    let healed = place.attach();
    assert_eq!(clients.order(&format!("{one}  ")), [format!("m2 {VIRTUAL4}")]);

    healed.retain(&[]).expect("retain");
    assert_eq!(healed.list().expect("list"), []);
    assert!(bpf::remove(&place.bpffs.join("quorate")).expect("remove"));
    assert!(!place.bpffs.join("quorate").exists());
    let direct = format!("{}:{PORT}", lab.machines[0].v4());
    assert_eq!(clients.order(&format!("connect {direct} 1")), [format!("m1 {direct}")]);
    assert!(
        !bpf::remove(&place.bpffs.join("quorate")).expect("remove"),
        "nothing is left"
    );
}

fn refuse() {
    if unsupported() {
        return;
    }
    let lab = Lab::new("refuse", 3);
    let place = Place::new(&lab);
    let balancer = place.attach();
    balancer.set(address(VIRTUAL4), &[]).expect("set");
    let clients = Clients::start(&lab, &lab.machines[2], &place);
    let start = Instant::now();
    let lines = clients.order(&format!("connect {VIRTUAL4} 1"));
    assert!(lines[0].contains("refused"), "{lines:?}");
    assert!(start.elapsed() < Duration::from_millis(500));
}

fn freed() {
    if unsupported() {
        return;
    }
    if let Err(error) = sockdiag::supported() {
        println!("skipped: {error}");
        return;
    }
    let lab = Lab::new("freed", 4);
    let _backends = backends(&lab);
    let place = Place::new(&lab);
    let balancer = place.attach();
    balancer.set(address(VIRTUAL4), &set(&lab, &[1, 2])).expect("set");
    let (host, pod) = (&lab.machines[2], &lab.machines[3]);
    let clients: Vec<Clients<'_>> = [host, pod].map(|machine| Clients::start(&lab, machine, &place)).into();
    for _ in 0..8 {
        clients
            .iter()
            .for_each(|client| drop(client.order(&format!("hold {VIRTUAL4}"))));
    }
    let count = |what: &str| {
        clients
            .iter()
            .map(|client| client.output().matches(what).count())
            .sum::<usize>()
    };
    let (on_first, on_second) = (count("held m1"), count("held m2"));
    assert!(on_first > 0 && on_second > 0);

    // Backend 1 is cut off in silence: nothing but destroying the sockets frees its clients.
    lab.machines[0].connect(false);
    let begin = Instant::now();
    balancer.set(address(VIRTUAL4), &set(&lab, &[2])).expect("set");
    let victims = Victims {
        destination: SocketAddr::new(lab.machines[0].v4(), PORT),
        sources: None,
    };
    let pods = [pod.namespace()];
    let outcome = host.enter(|| sockdiag::destroy_everywhere(&victims, &pods));
    assert!(outcome.errors.is_empty(), "{:?}", outcome.errors);
    assert_eq!(outcome.destroyed, on_first);
    assert!(
        until(Duration::from_secs(1), || count("freed m1") == on_first),
        "not all freed"
    );
    println!("{on_first} clients of a dead backend freed after {:?}", begin.elapsed());
    assert_eq!(count("freed m2"), 0, "clients of the other backend were hit");
    let again = clients[0].order(&format!("connect {VIRTUAL4} 4"));
    assert!(again.iter().all(|line| line.starts_with("m2 ")), "{again:?}");
    assert!(sockdiag::pod_namespaces().iter().any(|path| *path == pod.namespace()));
}

/// An agent with one service.
fn configured(lab: &Lab, place: &Place) -> AgentConfig {
    let mut config = AgentConfig::new("host");
    let service = serde_json::json!({
        "name": "api", "virtual": VIRTUAL4, "backends": [], "cgroup": place.cgroup, "pin": place.bpffs.join("quorate"),
    });
    config.ebpf = vec![serde_json::from_value(service).expect("service")];
    config.state = lab.directory.join("state");
    config
}

fn taken_away() {
    if unsupported() {
        return;
    }
    let lab = Lab::new("away", 3);
    let place = Place::new(&lab);
    let pins = place.bpffs.join("quorate");
    let there = || until(Duration::from_secs(3), || pins.join("v1/connect6").exists());
    let gone = || until(Duration::from_secs(3), || !pins.exists());
    let start = |config: &AgentConfig| lab.machines[2].enter(|| kernel_set::all(config));
    let stop = |mut sets: Vec<(SetKind, Box<dyn quorate_agent::core::KernelSet>)>| {
        sets.iter_mut().for_each(|(_, set)| set.stop());
    };
    let with = configured(&lab, &place);
    let without = AgentConfig {
        ebpf: Vec::new(),
        ..with.clone()
    };

    // By a reload.
    let mut sets = start(&with);
    assert!(there());
    sets.iter_mut().for_each(|(_, set)| set.configure(&without));
    assert!(gone(), "left by a reload");
    sets.iter_mut().for_each(|(_, set)| set.configure(&with));
    assert!(there());
    stop(sets);

    // Another agent does not touch them; the next process of this one takes them away.
    let stranger = AgentConfig {
        state: lab.directory.join("stranger"),
        ..without.clone()
    };
    let sets = start(&stranger);
    std::thread::sleep(Duration::from_secs(1));
    stop(sets);
    assert!(there(), "another agent's were taken away");
    let sets = start(&without);
    assert!(gone(), "left by the process before");
    // One that hands over puts them back until it ends.
    let before = place.attach();
    assert!(before.is_pinned());
    assert!(gone(), "put back by the process before");
    stop(sets);
}

fn heals() {
    if unsupported() {
        return;
    }
    let lab = Lab::new("heals", 3);
    let _backends = backends(&lab);
    let place = Place::new(&lab);
    let host = &lab.machines[2];
    let config = configured(&lab, &place);
    assert_eq!(kernel_set::check(&config), Vec::<String>::new());
    let view = |number: usize, availability| BackendView {
        name: format!("m{number}"),
        address: SocketAddr::new(lab.machines[number - 1].v4(), PORT),
        weight: 100,
        max_connections: 0,
        backup: false,
        local: false,
        availability,
        reason: Reason::Ready,
    };
    let mut sets = host.enter(|| kernel_set::all(&config));
    let (_, ebpf) = sets.iter_mut().find(|(kind, _)| *kind == SetKind::Ebpf).expect("a set");
    ebpf.backends("api", &[view(1, Availability::Up), view(2, Availability::Down)]);
    let clients = Clients::start(&lab, host, &place);
    let mut round = 0;
    let mut answers = |name: &str| {
        until(Duration::from_secs(1), || {
            round += 1;
            clients.order(&format!("connect {VIRTUAL4} 1 {round}")) == [format!("{name} {VIRTUAL4}")]
        })
    };
    assert!(answers("m1"), "not in force within a second");

    clients.order(&format!("hold {VIRTUAL4}"));
    lab.machines[0].connect(false);
    ebpf.backends("api", &[view(1, Availability::Down), view(2, Availability::Up)]);
    ebpf.reset("api", view(1, Availability::Down).address);
    assert!(
        until(Duration::from_secs(1), || clients.output().contains("freed m1")),
        "not freed within a second"
    );
    assert!(answers("m2"));

    // Somebody takes the pins, or the entry, away.
    must("rm", &["-r", place.bpffs.join("quorate/v1").to_str().expect("path")]);
    let begin = Instant::now();
    assert!(
        until(Duration::from_secs(2), || place
            .bpffs
            .join("quorate/v1/connect6")
            .exists())
            && answers("m2")
    );
    println!("removed pins healed after {:?}", begin.elapsed());
    let other = place.attach();
    other.retain(&[]).expect("retain");
    assert!(answers("m2"), "a dropped service is not healed within a second");

    for (_, set) in &mut sets {
        set.stop();
    }
    assert!(answers("m2"), "the last good set outlives the agent");

    // A new one has not asked anybody yet.
    let unchecked = |number| BackendView {
        reason: Reason::Unchecked,
        ..view(number, Availability::Down)
    };
    let mut sets = host.enter(|| kernel_set::all(&config));
    let (_, ebpf) = sets.iter_mut().find(|(kind, _)| *kind == SetKind::Ebpf).expect("a set");
    ebpf.backends("api", &[unchecked(1), unchecked(2)]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(answers("m2"), "servers that nobody has asked count as dead");
    for (_, set) in &mut sets {
        set.stop();
    }
}

/// The process itself, as on a worker: killed, started again, upgraded, ended, its leavings removed; host and Pod connect
/// all the while.
fn lives() {
    if unsupported() {
        return;
    }
    if let Err(error) = sockdiag::supported() {
        println!("skipped: {error}");
        return;
    }
    let lab = Lab::new("lives", 4);
    let _backends = backends(&lab);
    let place = Place::new(&lab);
    let pin = place.bpffs.join("quorate");
    let backend = |at: usize| serde_json::json!({"name": format!("m{}", at + 1), "address": SocketAddr::new(lab.machines[at].v4(), PORT)});
    let config = serde_json::json!({
        "apiVersion": "quorate.dev/v1", "kind": "Agent", "node": "host", "admin": {"socket": lab.directory.join("agent.sock")},
        "state": lab.directory.join("state"), "ebpf": [{"name": "api", "virtual": VIRTUAL4, "backends": [backend(0), backend(1)], "health": {"kind": "tcp"},
            "cgroup": place.cgroup, "pin": pin}],
    });
    let config = lab
        .write("agent.yaml", &config.to_string())
        .to_str()
        .expect("path")
        .to_owned();
    let start = |take_over: bool| {
        let mut environment = vec![("QT_ROLE", "agent"), ("QT_CONFIG", config.as_str())];
        if take_over {
            environment.push(("QT_TAKE_OVER", "1"));
        }
        lab.machines[2].start_with_sys(&environment, &lab.log("agent.log"))
    };
    let mut agent = start(false);
    let clients: Vec<Clients<'_>> = lab.machines[2..]
        .iter()
        .map(|machine| Clients::start(&lab, machine, &place))
        .collect();
    let mut number = 0;
    let mut only = |names: &[&str], within: u64| {
        until(Duration::from_secs(within), || {
            number += 1;
            let order = format!("connect {VIRTUAL4} 8 {number}");
            let all: Vec<String> = clients.iter().flat_map(|client| client.order(&order)).collect();
            let is = |name: &str| all.iter().any(|line| *line == format!("{name} {VIRTUAL4}"));
            names.iter().all(|name| is(name)) && all.iter().all(|line| names.iter().any(|name| line.starts_with(name)))
        })
    };
    assert!(only(&["m1", "m2"], 10), "{}", lab.logs());
    clients
        .iter()
        .for_each(|client| drop(client.order(&format!("hammer {VIRTUAL4} 6000"))));
    agent.signal("KILL");
    agent.wait();
    std::thread::sleep(Duration::from_millis(500));
    agent = start(false);
    std::thread::sleep(Duration::from_millis(1500));
    let mut next = start(true);
    assert!(
        agent.wait_for(Duration::from_secs(10)),
        "the agent before does not end\n{}",
        lab.logs()
    );
    std::thread::sleep(Duration::from_millis(500));
    next.signal("TERM");
    assert!(next.wait_for(Duration::from_secs(10)), "it does not end");
    let all_well = || {
        clients
            .iter()
            .all(|client| client.output().contains("hammered true failed 0"))
    };
    assert!(until(Duration::from_secs(10), all_well), "{}", lab.logs());
    // Nor was it luck: no agent took away what the one before it had left.
    assert!(!lab.logs().contains("goes to []"), "{}", lab.logs());

    // The next one frees the clients of a backend that is cut off, on the host and in the Pod.
    let last = start(false);
    for _ in 0..6 {
        clients
            .iter()
            .for_each(|client| drop(client.order(&format!("hold {VIRTUAL4}"))));
    }
    let count = |what: &str| {
        clients
            .iter()
            .map(|client| client.output().matches(what).count())
            .sum::<usize>()
    };
    let there = count("held m1");
    assert!(there > 0);
    lab.machines[0].connect(false);
    let cut = Instant::now();
    assert!(
        until(Duration::from_secs(4), || count("freed m1") == there),
        "{}",
        lab.logs()
    );
    // Without traffic through the agent there is no earlier sign than its own check, once a second.
    println!(
        "{there} clients of a backend that was cut off freed after {:?}",
        cut.elapsed()
    );
    assert!(only(&["m2"], 2));
    drop(last);
    assert!(bpf::remove(&pin).expect("removing"));
    assert!(!pin.exists());
    let gone = clients[0].order(&format!("connect {VIRTUAL4} 1 gone"));
    assert!(gone[0].starts_with("error"), "{gone:?}");
}

fn cost() {
    if unsupported() {
        return;
    }
    let lab = Lab::new("cost", 3);
    let place = Place::new(&lab);
    let machine = &lab.machines[2];
    let clients = Clients::start(&lab, machine, &place);
    let listener = machine.enter(|| TcpListener::bind("127.0.0.1:7000").expect("listening"));
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let local = SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 7000);
    let (rounds, count) = if full() { (10, 5_000) } else { (5, 1_000) };
    let measure = |address: SocketAddr, tag: &str| -> i64 {
        let line = clients.order(&format!("time {address} {count} {tag}"));
        line[0].trim_start_matches("time ").parse().expect("number")
    };
    // Both with the programs in force; the first address is none of theirs.
    let balancer = place.attach();
    balancer.set(address(VIRTUAL4), &[(local, 100)]).expect("set");
    let (mut hooked, mut through) = (i64::MAX, i64::MAX);
    for round in 0..rounds {
        hooked = hooked.min(measure(local, &format!("a{round}")));
        through = through.min(measure(address(VIRTUAL4), &format!("b{round}")));
    }
    assert!(bpf::remove(&place.bpffs.join("quorate")).expect("remove"));
    let direct = (0..rounds)
        .map(|round| measure(local, &format!("c{round}")))
        .min()
        .expect("some");
    println!(
        "processor time of connect and close: direct {direct} ns, past the hook {hooked} ns, through it {through} ns"
    );
    // The hook itself costs well below 2 µs; the rest of the margin is for noise.
    assert!(through - direct < 10_000, "{through} - {direct}");
}
