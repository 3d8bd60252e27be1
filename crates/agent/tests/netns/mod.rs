//! Network namespaces for tests: some machines on one bridge, each a namespace of its own, gone with the value.
#![allow(
    dead_code,
    clippy::print_stderr,
    reason = "each test program uses its own part of it"
)]

pub(crate) mod relay;

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use quorate_agent::netlink;

/// Machine `n` of a lab has the addresses 10.231.0.n and fd31::n; VIPs start at 100.
pub(crate) const NETWORK_V4: &str = "10.231.0";
pub(crate) const NETWORK_V6: &str = "fd31";
static NEXT: AtomicU32 = AtomicU32::new(0);

/// Runs tests one after the other on the main thread, which is what a supervisor needs and what keeps them from disturbing
/// each other's timing. Arguments that are no options are parts of names.
#[allow(clippy::print_stdout, clippy::exit, reason = "this is a test program's main")]
pub(crate) fn main(tests: &[(&str, fn())]) {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let mut failed = Vec::new();
    for (name, test) in tests.iter().filter(|(name, _)| wanted(name)) {
        if arguments.iter().any(|argument| argument == "--list") {
            println!("{name}: test");
            continue;
        }
        println!("test {name} ...");
        let start = Instant::now();
        let success = std::panic::catch_unwind(test).is_ok();
        println!(
            "test {name} ... {} ({:.1?})",
            if success { "ok" } else { "FAILED" },
            start.elapsed()
        );
        failed.extend((!success).then_some(*name));
    }
    if !failed.is_empty() {
        println!("failures: {failed:?}");
        std::process::exit(101);
    }
}

/// Runs a test whose limits are times. One that fails while this computer itself had no time to give (a thread that only
/// sleeps was woken late) says nothing about what it measures, and is made again, twice at most.
#[allow(clippy::print_stdout, reason = "the output of a test")]
pub(crate) fn measured(test: impl Fn()) {
    const STARVED: Duration = Duration::from_millis(50);
    const ATTEMPTS: u32 = 3;
    for attempt in 1..=ATTEMPTS {
        let over = AtomicBool::new(false);
        let (result, worst) = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let pause = Duration::from_millis(5);
                let mut worst = Duration::ZERO;
                while !over.load(Ordering::Relaxed) {
                    let start = Instant::now();
                    std::thread::sleep(pause);
                    worst = worst.max(start.elapsed() - pause);
                }
                worst
            });
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&test));
            over.store(true, Ordering::Relaxed);
            (result, watch.join().unwrap_or_default())
        });
        match result {
            Ok(()) => return,
            Err(_) if worst > STARVED && attempt < ATTEMPTS => {
                println!("made again: this computer let a sleeping thread wait for {worst:?} meanwhile");
            }
            Err(failure) => std::panic::resume_unwind(failure),
        }
    }
}

/// Why tests of this kind cannot run here, if so. Prints the reason.
pub(crate) fn skipped(commands: &[&str]) -> bool {
    let reason = if !is_root() {
        Some("needs root".to_owned())
    } else {
        commands
            .iter()
            .find(|command| !found(command))
            .map(|command| format!("{command} is not installed"))
            .or_else(|| (!run("ip", &["netns", "list"]).0).then(|| "network namespaces are not available".to_owned()))
    };
    if let Some(reason) = &reason {
        eprintln!("skipped: {reason}");
    }
    reason.is_some()
}

pub(crate) fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:\t0\t0"))
}

pub(crate) fn found(command: &str) -> bool {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .any(|directory| Path::new(directory).join(command).exists())
}

/// Full runs are long; the bounded slice is for every day.
pub(crate) fn full() -> bool {
    std::env::var_os("QUORATE_FULL").is_some_and(|value| value == "1")
}

/// Runs a command; success, and everything it printed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> (bool, String) {
    match Command::new(program).args(arguments).stdin(Stdio::null()).output() {
        Ok(output) => {
            let text = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&text).into_owned())
        }
        Err(error) => (false, error.to_string()),
    }
}

/// Runs a command that must succeed; returns what it printed.
pub(crate) fn must(program: &str, arguments: &[&str]) -> String {
    let (success, text) = run(program, arguments);
    assert!(success, "{program} {arguments:?}: {text}");
    text
}

/// One machine.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) number: u8,
    port: String,
    bridge: String,
}

impl Machine {
    pub(crate) fn v4(&self) -> IpAddr {
        format!("{NETWORK_V4}.{}", self.number).parse().expect("address")
    }

    pub(crate) fn v6(&self) -> IpAddr {
        format!("{NETWORK_V6}::{}", self.number).parse().expect("address")
    }

    pub(crate) fn namespace(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Runs a command in the machine; it must succeed.
    pub(crate) fn must(&self, program: &str, arguments: &[&str]) -> String {
        must("ip", &[&["netns", "exec", &self.name, program], arguments].concat())
    }

    pub(crate) fn try_run(&self, program: &str, arguments: &[&str]) -> (bool, String) {
        run("ip", &[&["netns", "exec", &self.name, program], arguments].concat())
    }

    /// Whether the address is on the machine's interface.
    pub(crate) fn has(&self, address: &str) -> bool {
        let address: IpAddr = address.parse().expect("address");
        let found = self.enter(|| netlink::route::Routes::open().and_then(|mut routes| routes.addresses()));
        found.expect("addresses").iter().any(|one| one.address == address)
    }

    /// Runs `work` inside the machine's namespace, on a thread of its own.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let mut work = Some(work);
        let result = netlink::in_namespaces(&[self.namespace()], move |_| (work.take().expect("once"))());
        result
            .expect("helper thread")
            .pop()
            .expect("one result")
            .expect("namespace")
    }

    /// Cuts the machine off in silence (its own link stays up, as when a switch fails), or connects it again.
    pub(crate) fn connect(&self, connected: bool) {
        let how: &[&str] = if connected { &["master", "br0"] } else { &["nomaster"] };
        must("ip", &[&["-n", &self.bridge, "link", "set", &self.port], how].concat());
    }

    /// Puts a bad link between the machine and the bridge; it is good again when the value is dropped.
    pub(crate) fn behind_bad_link(&self, badness: relay::Badness) -> relay::Relay {
        let (near, far) = (format!("{}a", self.port), format!("{}b", self.port));
        must("ip", &["-n", &self.bridge, "link", "set", &self.port, "nomaster"]);
        must(
            "ip",
            &[
                "-n",
                &self.bridge,
                "link",
                "add",
                &near,
                "type",
                "veth",
                "peer",
                "name",
                &far,
            ],
        );
        must("ip", &["-n", &self.bridge, "link", "set", &far, "master", "br0", "up"]);
        must("ip", &["-n", &self.bridge, "link", "set", &near, "up"]);
        relay::Relay::start(
            Path::new("/run/netns").join(&self.bridge),
            [self.port.clone(), near],
            badness,
        )
    }

    /// Starts a process in the machine: this test program again, which knows by the environment what it is to be.
    pub(crate) fn start(&self, environment: &[(&str, &str)], log: &Path) -> Process {
        let program = std::env::current_exe().expect("test program");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command.envs(environment.iter().copied());
        Process::start(&mut command, log)
    }

    /// Like `start`, but with this computer's own view of /sys, which `ip netns exec` replaces.
    pub(crate) fn start_with_sys(&self, environment: &[(&str, &str)], log: &Path) -> Process {
        let program = std::env::current_exe().expect("test program");
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.namespace().display()))
            .arg(program);
        command.envs(environment.iter().copied());
        Process::start(&mut command, log)
    }

    /// Starts any other program in the machine.
    pub(crate) fn start_program(&self, arguments: &[&str], log: &Path) -> Process {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(arguments);
        Process::start(&mut command, log)
    }
}

/// A child process, killed with the value.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    fn start(command: &mut Command, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log)
            .expect("log file");
        let errors = file.try_clone().expect("log file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(errors)
            .spawn()
            .expect("starting a process");
        Self(child)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal by number or name.
    pub(crate) fn signal(&self, signal: &str) {
        signal_pid(self.pid(), signal);
    }

    /// The processes this one started.
    pub(crate) fn children(&self) -> Vec<u32> {
        let parent = format!("PPid:\t{}", self.pid());
        let is_child = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.lines().any(|line| line == parent)
        };
        let processes = std::fs::read_dir("/proc").expect("/proc").flatten();
        processes
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(is_child)
            .collect()
    }

    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.0.wait().ok().and_then(|status| status.code())
    }

    pub(crate) fn wait_for(&mut self, time: Duration) -> bool {
        until(time, || matches!(self.0.try_wait(), Ok(Some(_))))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for child in self.children() {
            signal_pid(child, "KILL");
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn signal_pid(pid: u32, signal: &str) {
    run("kill", &["-s", signal, &pid.to_string()]);
}

/// Machines on one bridge, in namespaces named after this process.
#[derive(Debug)]
pub(crate) struct Lab {
    bridge: String,
    pub(crate) machines: Vec<Machine>,
    pub(crate) directory: PathBuf,
}

impl Lab {
    pub(crate) fn new(what: &str, machines: u8) -> Self {
        let unique = NEXT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("qt-agent-{}-{what}{unique}", std::process::id());
        let bridge = format!("{prefix}-br");
        must("ip", &["netns", "add", &bridge]);
        must("ip", &["-n", &bridge, "link", "set", "lo", "up"]);
        must(
            "ip",
            &[
                "-n",
                &bridge,
                "link",
                "add",
                "br0",
                "type",
                "bridge",
                "forward_delay",
                "0",
                "mcast_snooping",
                "0",
            ],
        );
        must("ip", &["-n", &bridge, "link", "set", "br0", "up"]);
        let directory = std::env::temp_dir().join(&prefix);
        std::fs::create_dir_all(&directory).expect("directory");
        let mut lab = Self {
            bridge,
            machines: Vec::new(),
            directory,
        };
        for number in 1..=machines {
            lab.add(&prefix, number);
        }
        lab
    }

    fn add(&mut self, prefix: &str, number: u8) {
        let (name, port) = (format!("{prefix}-m{number}"), format!("p{number}"));
        must("ip", &["netns", "add", &name]);
        let bridge = self.bridge.clone();
        self.machines.push(Machine {
            name: name.clone(),
            number,
            port: port.clone(),
            bridge: bridge.clone(),
        });
        must(
            "ip",
            &[
                "-n", &bridge, "link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &name,
            ],
        );
        must("ip", &["-n", &bridge, "link", "set", &port, "master", "br0", "up"]);
        // Link-local addresses are usable at once, not after duplicate address detection.
        must(
            "ip",
            &[
                "netns",
                "exec",
                &name,
                "sh",
                "-c",
                "echo 0 > /proc/sys/net/ipv6/conf/eth0/accept_dad",
            ],
        );
        must("ip", &["-n", &name, "link", "set", "lo", "up"]);
        must("ip", &["-n", &name, "link", "set", "eth0", "up"]);
        must(
            "ip",
            &[
                "-n",
                &name,
                "address",
                "add",
                &format!("{NETWORK_V4}.{number}/24"),
                "dev",
                "eth0",
            ],
        );
        must(
            "ip",
            &[
                "-n",
                &name,
                "address",
                "add",
                &format!("{NETWORK_V6}::{number}/64"),
                "dev",
                "eth0",
                "nodad",
            ],
        );
    }

    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.directory.join(name);
        let mut file = std::fs::File::create(&path).expect("file");
        file.write_all(text.as_bytes()).expect("write");
        path
    }

    /// Everything the processes of this lab printed, for a failing test.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for entry in std::fs::read_dir(&self.directory).expect("directory").flatten() {
            if entry.path().extension().is_some_and(|extension| extension == "log") {
                let content = std::fs::read_to_string(entry.path()).unwrap_or_default();
                let tail: Vec<&str> = content.lines().rev().take(40).collect();
                text += &format!("--- {}\n", entry.path().display());
                text.extend(tail.into_iter().rev().flat_map(|line| [line, "\n"]));
            }
        }
        text
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        for machine in &self.machines {
            run("ip", &["netns", "delete", &machine.name]);
        }
        run("ip", &["netns", "delete", &self.bridge]);
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Waits until `condition` holds; `false` if it does not within `time`.
pub(crate) fn until(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if condition() {
            return true;
        }
        if start.elapsed() > time {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
