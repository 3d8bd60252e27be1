//! Taking a cluster's traces off this machine: what Pods, runtimes and proxies leave behind when they are stopped.
//!
//! Runs on the machine itself (`quorate clean`), since it is a loop over what is found there. Everything is named by what
//! Kubernetes, containerd, flannel and Quorate call their own; nothing else is touched.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// What was removed, and what could not be.
#[derive(Debug, Default)]
pub struct Cleaned {
    pub done: Vec<String>,
    pub problems: Vec<String>,
}

const INTERFACES: [&str; 5] = ["cni0", "flannel.1", "flannel-v6.1", "kube-ipvs0", "quorate0"];
const TABLES: [&str; 9] = [
    "ip kube-proxy",
    "ip6 kube-proxy",
    "inet kube-proxy",
    "ip flannel-ipv4",
    "ip6 flannel-ipv6",
    "inet quorate",
    "ip quorate",
    "ip6 quorate",
    "inet cni_hostport",
];
/// Chains of kubelet, kube-proxy, flannel and the CNI plugins in iptables.
const CHAINS: [&str; 4] = ["KUBE-", "FLANNEL-", "FLANNEL", "CNI-"];
/// Tables iptables-nft makes as soon as anybody adds a rule.
const IPTABLES_TABLES: [&str; 8] = [
    "ip filter",
    "ip nat",
    "ip mangle",
    "ip raw",
    "ip6 filter",
    "ip6 nat",
    "ip6 mangle",
    "ip6 raw",
];

/// `data` and `owned` are emptied and, where they are no mount points, removed. `before`: content of the file in which the
/// first apply wrote what it found, if it is still there.
pub fn clean(data: &[PathBuf], owned: &[PathBuf], before: Option<&Value>) -> Cleaned {
    let mut cleaned = Cleaned::default();
    end_pods(&mut cleaned);
    unmount(data, owned, &mut cleaned);
    network(before, &mut cleaned);
    for path in data.iter().chain(owned) {
        empty(path, &mut cleaned);
    }
    cgroups(&mut cleaned);
    cleaned
}

/// Pods live in cgroups named `kubepods`; their shims in that of containerd, which no longer runs.
fn end_pods(cleaned: &mut Cleaned) {
    // A shim that is ended may leave a child behind for a moment; three rounds see the last of them.
    for _ in 0..3 {
        let pids: Vec<String> = pids().into_iter().filter(|pid| belongs_to_a_pod(pid)).collect();
        if pids.is_empty() {
            return;
        }
        cleaned.done.push(format!("ended {} processes of Pods", pids.len()));
        let _ = Command::new("kill")
            .arg("-9")
            .args(&pids)
            .stderr(Stdio::null())
            .status();
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

fn pids() -> Vec<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()))
        .collect()
}

fn belongs_to_a_pod(pid: &str) -> bool {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    read("comm").starts_with("containerd-shim") || read("cgroup").contains("/kubepods")
}

fn unmount(data: &[PathBuf], owned: &[PathBuf], cleaned: &mut Cleaned) {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut targets: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|path| PathBuf::from(path.replace("\\040", " ")))
        .collect();
    targets.retain(|target| {
        let below = data
            .iter()
            .chain(owned)
            .any(|path| target != path && target.starts_with(path));
        below
            || target.starts_with("/run/netns")
                && target
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with("cni-"))
    });
    // Innermost first.
    for target in targets.iter().rev() {
        run(cleaned, "umount", &["-l", &target.to_string_lossy()], true);
    }
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("cni-") {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn network(before: Option<&Value>, cleaned: &mut Cleaned) {
    for interface in INTERFACES {
        // Not from /sys/class/net: a container's /sys may be that of another network namespace.
        if !output("ip", &["-o", "link", "show", "dev", interface]).is_empty() {
            run(cleaned, "ip", &["link", "delete", interface], true);
        }
    }
    for program in ["iptables", "ip6tables"] {
        chains(program, cleaned);
    }
    let had: BTreeSet<&str> = before
        .and_then(|before| before.get("nftTables"))
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for table in output("nft", &["list", "tables"])
        .lines()
        .filter_map(|line| line.strip_prefix("table "))
    {
        let family_name: Vec<&str> = table.split(' ').collect();
        let ours = TABLES.contains(&table);
        let made_for_us =
            before.is_some() && IPTABLES_TABLES.contains(&table) && !had.contains(table) && has_no_rules(&family_name);
        if ours || made_for_us {
            let mut arguments = vec!["delete", "table"];
            arguments.extend(&family_name);
            run(cleaned, "nft", &arguments, true);
        }
    }
}

/// Rules and chains of the cluster taken out of what `iptables-save` prints; everybody else's lines stay.
fn chains(program: &str, cleaned: &mut Cleaned) {
    let saved = output(&format!("{program}-save"), &[]);
    let ours = |line: &str| {
        CHAINS
            .iter()
            .any(|chain| line.contains(&format!(":{chain}")) || line.contains(&format!(" {chain}")))
            && !line.starts_with('#')
    };
    if !saved.lines().any(ours) {
        return;
    }
    let mut kept: String = saved
        .lines()
        .filter(|line| !ours(line))
        .map(|line| format!("{line}\n"))
        .collect();
    kept.push('\n');
    let restore = Command::new(format!("{program}-restore"))
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let fed = restore.and_then(|mut child| {
        if let Some(mut stdin) = child.stdin.take() {
            std::io::Write::write_all(&mut stdin, kept.as_bytes())?;
        }
        child.wait()
    });
    match fed {
        Ok(status) if status.success() => cleaned.done.push(format!("{program}: removed the cluster's chains")),
        Ok(status) => cleaned.problems.push(format!("{program}-restore: {status}")),
        Err(error) => cleaned.problems.push(format!("{program}-restore: {error}")),
    }
}

fn has_no_rules(family_name: &[&str]) -> bool {
    let mut arguments = vec!["list", "table"];
    arguments.extend(family_name);
    let text = output("nft", &arguments);
    !text.is_empty()
        && text.lines().map(str::trim).all(|line| {
            line.is_empty()
                || line == "}"
                || line.starts_with("table ")
                || line.starts_with("chain ")
                || line.starts_with("type ")
        })
}

/// Content first; the directory itself unless it is a mount point, which somebody else made.
fn empty(path: &Path, cleaned: &mut Cleaned) {
    if !path.exists() {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        let child = entry.path();
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let removed = if is_directory {
            fs::remove_dir_all(&child)
        } else {
            fs::remove_file(&child)
        };
        if let Err(error) = removed {
            cleaned.problems.push(format!("remove {}: {error}", child.display()));
        }
    }
    match fs::remove_dir(path) {
        Ok(()) => cleaned.done.push(format!("removed {}", path.display())),
        Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy => {
            cleaned.done.push(format!("emptied {}", path.display()))
        }
        Err(error) => cleaned.problems.push(format!("remove {}: {error}", path.display())),
    }
}

fn cgroups(cleaned: &mut Cleaned) {
    let hierarchies = fs::read_dir("/sys/fs/cgroup")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .chain([PathBuf::from("/sys/fs/cgroup")]);
    for hierarchy in hierarchies {
        for name in ["kubepods", "kubepods.slice"] {
            remove_cgroup(&hierarchy.join(name), cleaned);
        }
    }
}

fn remove_cgroup(path: &Path, cleaned: &mut Cleaned) {
    if !path.is_dir() {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroup(&entry.path(), cleaned);
        }
    }
    if let Err(error) = fs::remove_dir(path) {
        cleaned
            .problems
            .push(format!("remove cgroup {}: {error}", path.display()));
    }
}

fn run(cleaned: &mut Cleaned, program: &str, arguments: &[&str], note: bool) {
    let line = format!("{program} {}", arguments.join(" "));
    match Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
    {
        Ok(output) if output.status.success() => {
            if note {
                cleaned.done.push(line);
            }
        }
        Ok(output) => cleaned
            .problems
            .push(format!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim())),
        Err(error) => cleaned.problems.push(format!("{line}: {error}")),
    }
}

fn output(program: &str, arguments: &[&str]) -> String {
    let run = Command::new(program).args(arguments).stderr(Stdio::null()).output();
    run.map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default()
}
