//! IPVS on a stock Debian kernel, in a small virtual machine (qemu without hardware help), since few build machines have
//! it in their own kernel. The same program is the test on the host and in the machine.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::exit,
    reason = "a test program with a main of its own"
)]

#[path = "../netns/mod.rs"]
mod netns;

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use netns::{Lab, Machine, Process, until};
use quorate_agent::ipvs::{self, Ipvs, Report};
use quorate_agent::kernel_set;
use quorate_agent::sockdiag;
use quorate_lb::config::{IpvsService, SetKind};
use quorate_lb::{AgentConfig, Availability, BackendView, Reason};

const VIRTUAL4: &str = "10.99.0.1:6443";
const VIRTUAL6: &str = "[fd99::1]:6443";
const PORT: u16 = 6443;
/// Boot and all tests take half a minute on an idle machine without hardware help.
const PATIENCE: Duration = Duration::from_secs(240);

fn main() {
    match std::env::var("QT_ROLE").as_deref() {
        Ok("backend") => backend(),
        Ok("guest") => netns::main(&[
            ("rules_are_ipvsadms", rules_are_ipvsadms as fn()),
            ("a_real_server_dies_and_returns", a_real_server_dies_and_returns as fn()),
            ("foreign_deletions_are_healed", foreign_deletions_are_healed as fn()),
            (
                "removal_leaves_what_is_not_ours",
                removal_leaves_what_is_not_ours as fn(),
            ),
            (
                "what_is_no_longer_configured_is_taken_away",
                what_is_no_longer_configured_is_taken_away as fn(),
            ),
        ]),
        _ => netns::main(&[
            ("a_kernel_without_ipvs_says_so", a_kernel_without_ipvs_says_so as fn()),
            ("in_a_virtual_machine", in_a_virtual_machine as fn()),
        ]),
    }
}

/// On the host: either it works, or the reason names the module and the way out.
fn a_kernel_without_ipvs_says_so() {
    match ipvs::supported() {
        Ok(()) => println!("this kernel has IPVS"),
        Err(error) => {
            println!("{error}");
            assert!(error.to_string().contains("ip_vs") && error.to_string().contains("access mode proxy"));
        }
    }
}

fn in_a_virtual_machine() {
    if !netns::found("qemu-system-x86_64") {
        println!("skipped: qemu-system-x86_64 is not installed");
        return;
    }
    let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from);
    let cache = home.join(".cache/quorate/vm");
    let directory = Directory(std::env::temp_dir().join(format!("qt-agent-vm-{}", std::process::id())));
    let work = &directory.0;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ipvs_vm/make.sh");
    let program = std::env::current_exe().expect("program");
    let made = Command::new("sh")
        .arg(script)
        .args([&cache, &program, work])
        .stdin(Stdio::null())
        .output()
        .expect("sh");
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    if made.status.code() == Some(77) {
        println!("skipped: {}", said.trim());
        return;
    }
    assert!(made.status.success(), "{said}{}", String::from_utf8_lossy(&made.stderr));
    let console = boot(work);
    println!("{console}");
    assert!(console.contains("--- guest exit code 0"), "the guest failed");
}

/// Removed with the value.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Boots and returns everything the console showed.
fn boot(work: &Path) -> String {
    let file = |name: &str| work.join(name).to_str().expect("path").to_owned();
    let mut machine = Command::new("qemu-system-x86_64")
        .args([
            "-accel",
            "tcg",
            "-cpu",
            "max",
            "-smp",
            "1",
            "-m",
            "768",
            "-nographic",
            "-no-reboot",
            "-nic",
            "none",
        ])
        // Its clock counts instructions and jumps over idle time: what it measures does not depend on this machine's load.
        .args(["-icount", "shift=1,sleep=off"])
        .args(["-kernel", &file("vmlinuz"), "-initrd", &file("initramfs.gz")])
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("qemu");
    let mut output = machine.stdout.take().expect("console");
    let (sender, console) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = output.read_to_end(&mut text);
        let _ = sender.send(String::from_utf8_lossy(&text).replace('\r', ""));
    });
    let text = console.recv_timeout(PATIENCE);
    let _ = machine.kill();
    let _ = machine.wait();
    let late = text.is_err();
    let text = text.unwrap_or_else(|_| console.recv().unwrap_or_default());
    let _ = reader.join();
    assert!(!late, "the machine did not end within {PATIENCE:?}: {text}");
    text
}

/// Answers each connection with the machine's name and keeps the last few hundred open.
fn backend() {
    let name = std::env::var("QT_NAME").expect("name");
    let listener = TcpListener::bind(format!("[::]:{PORT}")).expect("listening");
    let mut kept = VecDeque::new();
    for mut stream in listener.incoming().flatten() {
        let _ = stream.write_all(name.as_bytes());
        kept.push_back(stream);
        if kept.len() > 500 {
            kept.pop_front();
        }
    }
}

/// Machines 1 and 2 are real servers, 3 is the node with IPVS, 4 a Pod behind it.
struct Setting {
    lab: Lab,
    backends: Vec<Option<Process>>,
}

impl Setting {
    fn new(what: &str) -> Self {
        let lab = Lab::new(what, 4);
        let mut setting = Self {
            lab,
            backends: Vec::new(),
        };
        setting.backends = (0..2).map(|at| Some(setting.start(at))).collect();
        let node = setting.node().v4().to_string();
        setting
            .node()
            .must("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        setting.lab.machines[3].must("ip", &["route", "add", "10.99.0.1", "via", &node]);
        setting
    }

    fn start(&self, at: usize) -> Process {
        let machine = &self.lab.machines[at];
        let name = format!("m{}", machine.number);
        let process = machine.start(
            &[("QT_ROLE", "backend"), ("QT_NAME", &name)],
            &self.lab.log(&format!("{name}.log")),
        );
        let address = SocketAddr::new(machine.v4(), PORT);
        let listening = || {
            self.node()
                .enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok())
        };
        assert!(until(Duration::from_secs(10), listening), "{name} does not listen");
        process
    }

    fn node(&self) -> &Machine {
        &self.lab.machines[2]
    }

    fn views(&self, v6: bool, first: Availability) -> Vec<BackendView> {
        let view = |machine: &Machine, availability| BackendView {
            name: format!("m{}", machine.number),
            address: SocketAddr::new(if v6 { machine.v6() } else { machine.v4() }, PORT),
            weight: 100,
            max_connections: 0,
            backup: false,
            local: false,
            availability,
            reason: Reason::Ready,
        };
        vec![
            view(&self.lab.machines[0], first),
            view(&self.lab.machines[1], Availability::Up),
        ]
    }

    /// Opens IPVS in the calling thread's namespace with both services, both backends up.
    fn open(&self) -> Ipvs {
        let mut ipvs = Ipvs::open().expect("IPVS");
        ipvs.configure(&[service("four", VIRTUAL4), service("six", VIRTUAL6)]);
        ipvs.set_backends("four", &self.views(false, Availability::Up));
        ipvs.set_backends("six", &self.views(true, Availability::Up));
        ipvs
    }
}

fn service(name: &str, address: &str) -> IpvsService {
    serde_json::from_value(serde_json::json!({"name": name, "virtual": address, "backends": [], "scheduler": "wrr"}))
        .expect("service")
}

fn clean(report: Report) -> Vec<String> {
    assert_eq!(report.errors, Vec::<String>::new());
    report.changes
}

/// Ends a loop in another thread also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// `ipvsadm -Sn` of the calling thread's namespace, sorted.
fn saved() -> Vec<String> {
    let text = netns::must("ipvsadm", &["-S", "-n"]);
    let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

fn expected() -> Vec<String> {
    let mut lines = Vec::new();
    for (at, prefix) in [(VIRTUAL4, "10.231.0."), (VIRTUAL6, "fd31::")] {
        lines.push(format!("-A -t {at} -s wrr"));
        for number in [1, 2] {
            let address = if at == VIRTUAL4 {
                format!("{prefix}{number}")
            } else {
                format!("[{prefix}{number}]")
            };
            lines.push(format!("-a -t {at} -r {address}:{PORT} -m -w 100"));
        }
    }
    lines.sort();
    lines
}

fn connect(address: &str) -> std::io::Result<(String, TcpStream)> {
    connect_within(address, Duration::from_secs(2))
}

fn connect_within(address: &str, patience: Duration) -> std::io::Result<(String, TcpStream)> {
    let mut stream = TcpStream::connect_timeout(&address.parse().expect("address"), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut name = [0; 2];
    stream.read_exact(&mut name)?;
    Ok((String::from_utf8_lossy(&name).into_owned(), stream))
}

fn answers(address: &str, count: usize) -> [usize; 2] {
    let names: Vec<String> = (0..count).map(|_| connect(address).expect("an answer").0).collect();
    ["m1", "m2"].map(|name| names.iter().filter(|one| *one == name).count())
}

fn rules_are_ipvsadms() {
    ipvs::supported().expect("IPVS");
    let setting = Setting::new("rules");
    setting.node().enter(|| {
        let mut ipvs = setting.open();
        let changes = clean(ipvs.reconcile());
        println!("first time: {changes:?}");
        assert_eq!(saved(), expected());
        assert_eq!(
            clean(ipvs.reconcile()),
            Vec::<String>::new(),
            "a second time changes nothing"
        );
        for name in ["expire_nodest_conn", "conntrack"] {
            let value = std::fs::read_to_string(format!("/proc/sys/net/ipv4/vs/{name}")).expect("setting");
            assert_eq!(value.trim(), "1", "{name}");
        }
        assert!(netns::must("ip", &["address", "show", "dev", "quorate-ipvs"]).contains("10.99.0.1/32"));
        // Local clients, which need masquerading, of both families.
        assert_eq!(answers(VIRTUAL4, 10), [5, 5]);
        assert_eq!(answers(VIRTUAL6, 10), [5, 5]);
    });
    let pod = &setting.lab.machines[3];
    assert_eq!(pod.enter(|| answers(VIRTUAL4, 4)), [2, 2], "from a Pod");
    // Nobody on the link hears of the virtual address.
    let asked = pod.enter(|| {
        quorate_agent::arp::vip_in_use(
            "eth0",
            "10.99.0.1".parse().expect("address"),
            Duration::from_millis(500),
        )
    });
    assert_eq!(
        asked.expect("probe"),
        None,
        "the node answers ARP for the virtual address"
    );
}

fn a_real_server_dies_and_returns() {
    let mut setting = Setting::new("dies");
    let freed = AtomicU32::new(0);
    let (stop, failed, done) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    let mut ipvs = setting.node().enter(|| setting.open());
    setting.node().enter(|| clean(ipvs.reconcile()));
    sockdiag::supported().expect("SOCK_DESTROY");

    // The first is cut off in silence while it has long-lived clients.
    let held: Vec<TcpStream> = setting.node().enter(|| {
        let streams = (0..12).map(|_| connect(VIRTUAL4).expect("an answer"));
        streams
            .filter(|(name, _)| name == "m1")
            .map(|(_, stream)| stream)
            .collect()
    });
    let count = held.len();
    assert_eq!(count, 6);
    std::thread::scope(|scope| {
        for mut stream in held {
            let freed = &freed;
            stream.set_read_timeout(None).expect("no time-out");
            scope.spawn(move || {
                let result = stream.read(&mut [0; 1]);
                assert!(result.is_err(), "{result:?}");
                freed.fetch_add(1, Ordering::Relaxed);
            });
        }
        setting.lab.machines[0].connect(false);
        let dead = Instant::now();
        setting.node().enter(|| {
            let address = SocketAddr::new(setting.lab.machines[0].v4(), PORT);
            ipvs.set_backends("four", &setting.views(false, Availability::Down));
            println!("down: {:?}", clean(ipvs.reconcile()));
            assert_eq!(ipvs.free_clients("four", address).expect("freeing"), count);
        });
        assert!(
            until(Duration::from_secs(1), || freed.load(Ordering::Relaxed) as usize
                == count),
            "not all freed"
        );
        println!("{count} clients of a dead real server freed after {:?}", dead.elapsed());
    });
    setting.node().enter(|| {
        assert!(saved().iter().all(|line| !line.contains("-r 10.231.0.1:")));
        assert_eq!(answers(VIRTUAL4, 4), [0, 4]);
    });
    setting.lab.machines[0].connect(true);

    // It returns, dies and returns again under load: no request fails once the table says so.
    std::thread::scope(|scope| {
        let ending = StopOnDrop(&stop);
        let (node, stop, failed, done) = (setting.lab.machines[2].namespace(), &stop, &failed, &done);
        scope.spawn(move || {
            let result = quorate_agent::netlink::in_namespaces(&[node], |_| {
                while !stop.load(Ordering::Relaxed) {
                    // As Kubernetes clients do, a request whose connection was cut is tried again, once and at once.
                    match connect(VIRTUAL4).or_else(|_| connect(VIRTUAL4)) {
                        Ok(_) => done.fetch_add(1, Ordering::Relaxed),
                        Err(_) => failed.fetch_add(1, Ordering::Relaxed),
                    };
                }
            });
            result.expect("client");
        });
        for _ in 0..2 {
            for first in [Availability::Up, Availability::Down] {
                setting.node().enter(|| {
                    ipvs.set_backends("four", &setting.views(false, first));
                    clean(ipvs.reconcile());
                });
                std::thread::sleep(Duration::from_millis(300));
            }
            // Really dead only after the table says so: what happens before is the health checks' business.
            setting.backends[0] = None;
            std::thread::sleep(Duration::from_millis(300));
            setting.backends[0] = Some(setting.start(0));
        }
        drop(ending);
    });
    println!(
        "under load: {} requests, {} failed",
        done.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed)
    );
    assert!(done.load(Ordering::Relaxed) > 20);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
}

fn foreign_deletions_are_healed() {
    let setting = Setting::new("foreign");
    let mut ipvs = setting.node().enter(|| setting.open());
    setting.node().enter(|| clean(ipvs.reconcile()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ending = StopOnDrop(&stop);
        let (node, stop) = (setting.node(), &stop);
        scope.spawn(move || {
            node.enter(|| {
                while !stop.load(Ordering::Relaxed) {
                    clean(ipvs.reconcile());
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
        });
        let deletions: [&[&str]; 5] = [
            &["ipvsadm", "-C"],
            &["ipvsadm", "-d", "-t", VIRTUAL4, "-r", "10.231.0.1:6443"],
            &["ip", "address", "del", "10.99.0.1/32", "dev", "quorate-ipvs"],
            &["ip", "link", "del", "quorate-ipvs"],
            &["nft", "flush", "ruleset"],
        ];
        for deletion in deletions {
            let begin = Instant::now();
            let healed = setting.node().enter(|| {
                netns::must(deletion[0], &deletion[1..]);
                until(Duration::from_secs(3), || {
                    saved() == expected() && connect_within(VIRTUAL4, Duration::from_millis(50)).is_ok()
                })
            });
            assert!(healed, "{deletion:?} was not healed");
            println!("healed {:?} after {deletion:?}", begin.elapsed());
            assert!(begin.elapsed() <= Duration::from_secs(1), "took longer than a second");
        }
        drop(ending);
    });
}

fn removal_leaves_what_is_not_ours() {
    let setting = Setting::new("removal");
    setting.node().enter(|| {
        netns::must("ipvsadm", &["-A", "-t", "10.96.0.1:443", "-s", "rr"]);
        netns::must("ipvsadm", &["-a", "-t", "10.96.0.1:443", "-r", "10.231.0.1:6443", "-m"]);
        let foreign = saved();
        let mut ipvs = setting.open();
        clean(ipvs.reconcile());
        assert_eq!(saved().len(), foreign.len() + expected().len());
        drop(ipvs);

        // Another agent, with one service less: the orphan is recognised by its address.
        let mut next = Ipvs::open().expect("IPVS");
        next.configure(&[service("four", VIRTUAL4)]);
        let changes = clean(next.reconcile());
        assert!(saved().iter().all(|line| !line.contains(VIRTUAL6)), "{changes:?}");
        assert!(
            saved().contains(&format!("-a -t {VIRTUAL4} -r 10.231.0.1:6443 -m -w 100")),
            "the set of before goes on serving"
        );

        clean(next.remove());
        assert_eq!(saved(), foreign);
        assert!(
            !netns::run("ip", &["link", "show", "quorate-ipvs"]).0,
            "the interface is left"
        );
        assert!(
            !netns::must("nft", &["list", "ruleset"]).contains("quorate"),
            "rules are left"
        );
    });
}

fn what_is_no_longer_configured_is_taken_away() {
    let setting = Setting::new("away");
    setting.node().enter(|| {
        netns::must("ipvsadm", &["-A", "-t", "10.96.0.1:443", "-s", "rr"]);
        let foreign = saved();
        let mut config = AgentConfig::new("node");
        config.state = setting.lab.directory.join("state");
        config.ipvs = vec![service("four", VIRTUAL4)];
        let is_served = || saved().iter().any(|line| line.contains(VIRTUAL4));
        let mut sets = kernel_set::all(&config);
        for (_, set) in sets.iter_mut().filter(|(kind, _)| *kind == SetKind::Ipvs) {
            set.backends("four", &setting.views(false, Availability::Up));
        }
        assert!(until(Duration::from_secs(3), is_served));
        sets.iter_mut().for_each(|(_, set)| set.stop());

        // Another agent does not touch it; the next process of this one takes it away.
        config.ipvs.clear();
        let stranger = AgentConfig {
            state: setting.lab.directory.join("stranger"),
            ..config.clone()
        };
        let mut sets = kernel_set::all(&stranger);
        std::thread::sleep(Duration::from_secs(1));
        sets.iter_mut().for_each(|(_, set)| set.stop());
        assert!(is_served());
        let mut sets = kernel_set::all(&config);
        let interface = || netns::run("ip", &["link", "show", "quorate-ipvs"]).0;
        assert!(until(Duration::from_secs(3), || saved() == foreign && !interface()));
        sets.iter_mut().for_each(|(_, set)| set.stop());
    });
}
