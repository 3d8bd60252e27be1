//! What stories do to a lab, and what they ask of it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde_json::Value;

use crate::{Lab, text};

/// Before this an `apply` has hardly connected; after it a killed one leaves little for the next.
const KILLED_AFTER_MS: std::ops::Range<u64> = 500..15_000;

/// Begins an `apply` that takes the lock of a dead one. What it says is in [`said`], for whoever looks into a failure.
pub fn begin_apply(lab: &Lab) -> Child {
    let file = std::fs::File::create(said(lab)).expect("a file for apply to write");
    lab.command("apply", &["--yes", "--no-progress", "--steal"])
        .stdout(Stdio::null())
        .stderr(file)
        .spawn()
        .expect("start apply")
}

/// What the `apply` begun last writes to its standard error.
pub fn said(lab: &Lab) -> PathBuf {
    lab.folder.join("apply.err")
}

/// Five operators in a row die without a word, each in the `apply` that goes on from where the one before was killed. The
/// moments are random: `QUORATE_SEED` repeats those of the seed that is printed.
pub fn five_operators_die(lab: &Lab) {
    let given = std::env::var("QUORATE_SEED").ok();
    let mut seed = match given {
        Some(text) => text.parse().expect("QUORATE_SEED is a number"),
        None => UNIX_EPOCH.elapsed().map_or(0, |since| u64::from(since.subsec_nanos())),
    };
    eprintln!("QUORATE_SEED={seed}");
    for _ in 0..5 {
        let span = KILLED_AFTER_MS.end - KILLED_AFTER_MS.start;
        let after = Duration::from_millis(KILLED_AFTER_MS.start + random(&mut seed) % span);
        let mut child = begin_apply(lab);
        std::thread::sleep(after);
        let ended = child.try_wait().expect("ask for apply");
        let _ = child.kill();
        let _ = child.wait();
        let said = text_of(&said(lab));
        match ended {
            Some(status) => {
                assert!(
                    status.success(),
                    "an apply after killed ones ended with {status}:\n{said}"
                );
                eprintln!("an apply was through within {after:.1?}");
            }
            None => eprintln!(
                "operator killed after {after:.1?}: {}",
                said.lines().last().unwrap_or("had said nothing").trim()
            ),
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): any seed will do.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A verb's end, and what it wrote.
pub struct Typed {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// A verb that asks for the password of sudo, which is typed on a terminal of its own, as by a person. It is not echoed.
pub fn typed(lab: &Lab, verb: &str, arguments: &[&str], password: &str) -> Typed {
    let command = lab.command(verb, arguments);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_string_lossy())).collect();
    let (stdout, stderr) = (lab.folder.join("typed.out"), lab.folder.join("typed.err"));
    let line = format!("{} >'{}' 2>'{}'", words.join(" "), stdout.display(), stderr.display());
    let mut terminal = Command::new("script")
        .args(["--quiet", "--return", "--command", &line, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("start script (util-linux)");
    // Held open until the end: without a keyboard the terminal hangs up.
    let mut keyboard = terminal.stdin.take().expect("piped");
    let mut screen = terminal.stdout.take().expect("piped");
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"sudo password: ") {
        let read = screen.read(&mut byte).expect("read the terminal");
        let shown = String::from_utf8_lossy(&seen);
        assert!(read > 0, "no password is asked for: {shown}\n{}", text_of(&stderr));
        seen.extend_from_slice(&byte);
    }
    keyboard
        .write_all(format!("{password}\n").as_bytes())
        .expect("type the password");
    screen.read_to_end(&mut seen).expect("read the terminal");
    let status = terminal.wait().expect("wait for script");
    let shown = String::from_utf8_lossy(&seen);
    assert!(!shown.contains(password), "the password is shown: {shown}");
    Typed {
        code: status.code(),
        stdout: text_of(&stdout),
        stderr: text_of(&stderr),
    }
}

fn text_of(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

pub fn no_steps(lab: &Lab) {
    let plan = lab.cluster("plan", &[]);
    assert_eq!(
        plan.status.code(),
        Some(0),
        "a second plan is not empty:\n{}",
        String::from_utf8_lossy(&plan.stdout)
    );
}

pub fn within(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(300));
    }
    eprintln!("{what}: after {:.1?}", started.elapsed());
}

/// Target → (holds, what was found) of one kind of check.
pub fn checks(lab: &Lab, name: &str) -> BTreeMap<String, (bool, String)> {
    checks_of(&lab.status(), name)
}

/// The same out of a report.
pub fn checks_of(report: &Value, name: &str) -> BTreeMap<String, (bool, String)> {
    let all = report["checks"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|check| check["name"] == name)
        .map(|check| {
            let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            (text("target"), (check["ok"] == true, text("detail")))
        })
        .collect()
}

/// Who holds a VIP; empty while nobody does, or several do.
pub fn holder(lab: &Lab, vip: &str) -> String {
    let found = checks(lab, vip).into_values().next();
    let held = found.and_then(|(_, detail)| detail.strip_prefix("held by ").map(str::to_owned));
    held.filter(|name| !name.contains(' ')).unwrap_or_default()
}

/// Who holds a VIP once one machine does.
pub fn one_holder(lab: &Lab, vip: &str) -> String {
    let mut found = String::new();
    within(Duration::from_secs(30), "one machine holds the VIP", || {
        found = holder(lab, vip);
        !found.is_empty()
    });
    found
}

/// Machines whose agent is a Pod that is ready.
pub fn agent_pods(lab: &Lab) -> Vec<String> {
    let wanted = [
        "-n",
        "kube-system",
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=quorate-agent",
        "-o",
        "'jsonpath={range .items[*]}{.spec.nodeName} {.status.containerStatuses[0].ready}{\"\\n\"}{end}'",
    ];
    let pods = text(&lab.kubectl("m1", &wanted), &["get pods"]);
    pods.lines()
        .filter_map(|line| line.strip_suffix(" true").map(str::to_owned))
        .collect()
}

/// HTTP status of a GET from the operator's place in the lab's network; `000` without an answer.
pub fn get(lab: &Lab, url: &str, more: &[&str]) -> String {
    let mut arguments = vec!["lab", "exec", &lab.name, "--", "curl", "-sk", "--max-time", "2"];
    arguments.extend(["-o", "/dev/null", "-w", "%{http_code}"]);
    arguments.extend(more);
    arguments.push(url);
    String::from_utf8_lossy(&lab.run(&arguments).stdout).into_owned()
}

pub fn machines(lab: &Lab) -> Vec<String> {
    let file = std::fs::read_to_string(lab.cluster_file()).expect("cluster file");
    file.lines()
        .filter(|line| line.starts_with("    - {"))
        .map(|line| field(line, "name: "))
        .collect()
}

/// What follows `key` in a line, up to the next separator; empty if the key is not there.
pub fn field(line: &str, key: &str) -> String {
    let rest = line.split_once(key).map_or("", |(_, rest)| rest);
    rest.split([',', ']', '}', '"'])
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// What `reset` must leave as it was: files (also on the file systems a lab machine has for some directories), units,
/// mounts, interfaces and addresses, packet rules, users, pinned programs, and those kernel parameters that are not its
/// host's. What sudo notes of whom it has asked for a password is sudo's own.
pub fn traces(lab: &Lab) -> BTreeMap<String, String> {
    let script = "'find /etc /opt /usr/local /var/lib /root /var/lib/containerd /var/lib/etcd /var/lib/kubelet /var/lib/quorate -xdev -type f -not -path \"/var/lib/systemd/*\" -not -path \"/var/lib/private/*\" -not -path \"/var/lib/sudo/*\" -not -path /etc/machine-id -not -name \"*.cache\" -not -name .bash_history -not -path \"/etc/*-\" -not -path \"/etc/.pwd.lock\" | sort -u | xargs sha256sum; \
        find /etc /opt /var/lib /var/lib/containerd /var/lib/etcd /var/lib/kubelet /var/lib/quorate -xdev -type d -not -path \"/var/lib/sudo/*\" | sort -u; \
        systemctl list-unit-files --no-legend --no-pager | cut -d\" \" -f1 | sort; \
        grep -v -e /run/credentials /proc/mounts | cut -d\" \" -f2 | sort; \
        ip -o address show scope global | tr -s \" \" | cut -d\" \" -f2-4 | sort; ls /sys/class/net; nft list tables; sort /etc/passwd; ls -R /sys/fs/bpf; \
        grep -s . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv[46]/conf/all/* /proc/sys/net/ipv[46]/conf/default/*; true'";
    machines(lab)
        .into_iter()
        .map(|machine| {
            let found = lab.ssh(&machine, &["bash", "-c", script]);
            (machine, found)
        })
        .collect()
}

pub fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    for (machine, was) in before {
        let (was, is): (BTreeSet<&str>, BTreeSet<&str>) = (was.lines().collect(), after[machine].lines().collect());
        let (gone, new): (Vec<_>, Vec<_>) = (was.difference(&is).collect(), is.difference(&was).collect());
        assert!(
            gone.is_empty() && new.is_empty(),
            "{machine} is not what it was\nlost: {gone:#?}\nleft over: {new:#?}"
        );
    }
}
