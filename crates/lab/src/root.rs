//! The root tree all machines share: Debian by debootstrap, made once, kept in the cache, never written to again.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::command;
use crate::lock::Lock;
use crate::{Error, Event, Result};

/// What a small server install has, and no more: everything else is brought by whoever deploys.
const PACKAGES: [&str; 15] = [
    "ca-certificates",
    "conntrack",
    "dbus",
    "ethtool",
    "iproute2",
    "ipset",
    "iptables",
    "iputils-ping",
    "kmod",
    "nftables",
    "openssh-server",
    "procps",
    "sudo",
    "systemd",
    "systemd-sysv",
];

/// A tree is about 300 MiB, with as much again while packages are unpacked.
const NEEDED_MIB: u64 = 800;

/// Units that have no work in such a machine or would reach out of it: udev and binfmt act on the whole computer's
/// kernel, timers fetch from the Internet, consoles wait for nobody, logind has no sessions to look after.
const MASKED: [&str; 22] = [
    "apt-daily-upgrade.timer",
    "apt-daily.timer",
    "console-getty.service",
    "dev-hugepages.mount",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
    "getty.target",
    "proc-sys-fs-binfmt_misc.automount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-binfmt.service",
    "systemd-journal-flush.service",
    "systemd-logind.service",
    "systemd-networkd.service",
    "systemd-resolved.service",
    "systemd-timesyncd.service",
    "systemd-udev-trigger.service",
    "systemd-udevd.service",
    "sys-fs-fuse-connections.mount",
];

/// Runs first in a machine. What systemd-nspawn mounts read-only is made writable, as on hardware; cgroup2 is
/// mounted where a hybrid host has it; BPF's file system where every systemd host has it.
const SETUP_SCRIPT: &str = r#"#!/bin/sh
if [ ! -e /sys/fs/cgroup/cgroup.controllers ]; then
    mount -o remount,rw /sys/fs/cgroup
    for hierarchy in /sys/fs/cgroup/*/; do
        mount -o remount,bind,rw "$hierarchy"
    done
    if [ ! -e /sys/fs/cgroup/unified/cgroup.procs ]; then
        mkdir -p /sys/fs/cgroup/unified
        mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
    fi
fi
mkdir -p /sys/fs/bpf
mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf
if [ -e /sys/class/dmi/id/product_uuid ]; then
    mount --bind /etc/quorate-lab/product_uuid /sys/class/dmi/id/product_uuid
fi
exit 0
"#;

const SETUP_UNIT: &str = "\
[Unit]
Description=Make this lab machine look like hardware
DefaultDependencies=no
Before=sysinit.target systemd-sysctl.service systemd-modules-load.service
Conflicts=shutdown.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/lib/quorate-lab/setup

[Install]
WantedBy=sysinit.target
";

/// Files of the tree, each with its mode.
const FILES: [(&str, u32, &str); 7] = [
    ("usr/lib/quorate-lab/setup", 0o755, SETUP_SCRIPT),
    ("etc/systemd/system/quorate-lab-setup.service", 0o644, SETUP_UNIT),
    // The kernel log is the computer's: every machine would copy all of it at each boot.
    (
        "etc/systemd/journald.conf.d/quorate-lab.conf",
        0o644,
        "[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\nReadKMsg=no\nAudit=no\n",
    ),
    (
        "etc/systemd/system.conf.d/quorate-lab.conf",
        0o644,
        "[Manager]\nShowStatus=error\n",
    ),
    // One file of keys for every user, so that a lab's key is in one place.
    (
        "etc/ssh/sshd_config.d/quorate-lab.conf",
        0o644,
        "HostKey /etc/ssh/ssh_host_ed25519_key\n\
         AuthorizedKeysFile .ssh/authorized_keys /etc/ssh/lab_authorized_keys\n\
         PermitRootLogin prohibit-password\n\
         PasswordAuthentication no\n\
         UseDNS no\n\
         MaxStartups 200\n\
         MaxSessions 100\n\
         PrintMotd no\n\
         PrintLastLog no\n",
    ),
    ("etc/sudoers.d/ops", 0o440, "ops ALL=(ALL:ALL) NOPASSWD: ALL\n"),
    ("etc/sudoers.d/opspw", 0o440, "opspw ALL=(ALL:ALL) ALL\n"),
];

/// Users with which privilege escalation is tried: `ops` needs no password for sudo, `opspw` does. The password
/// is public; these machines can be reached from this computer only.
const USERS_SCRIPT: &str = "\
useradd --create-home --shell /bin/bash ops
useradd --create-home --shell /bin/bash opspw
echo opspw:lab-only | chpasswd
";

/// Kernel settings belong to the whole computer unless they are the network's: a machine's boot must not touch them.
const FOREIGN_SYSCTLS: [&str; 4] = [
    "50-pid-max.conf",
    "50-coredump.conf",
    "50-default.conf",
    "99-protect-links.conf",
];

/// Which tree is wanted.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) suite: String,
    pub(crate) extra_packages: Vec<String>,
    pub(crate) mirror: Option<String>,
}

/// The tree's path in the cache, making it if it is not there. Safe to be run by several processes at a time.
pub(crate) fn ensure(cache: &Path, recipe: &Recipe, events: &mut dyn FnMut(Event)) -> Result<PathBuf> {
    let tree = cache.join(format!("{}-{}", recipe.suite, fingerprint(recipe)));
    if tree.is_dir() {
        return Ok(tree);
    }
    fs::create_dir_all(cache).map_err(Error::file("making", cache))?;
    let _lock = Lock::take(&tree.with_extension("lock"))?;
    if tree.is_dir() {
        return Ok(tree);
    }
    if command::find("debootstrap").is_none() {
        return Err(Error::MissingProgram {
            program: "debootstrap",
            package: "debootstrap",
        });
    }
    let free_mib = crate::sys::free_bytes(cache).map_err(Error::file("asking the free space of", cache))? >> 20;
    if free_mib < NEEDED_MIB {
        return Err(Error::NoSpace {
            path: cache.into(),
            needed_mib: NEEDED_MIB,
            free_mib,
            variable: "XDG_CACHE_HOME",
        });
    }
    events(Event::RootBuilding {
        suite: recipe.suite.clone(),
        path: tree.clone(),
    });
    // The lock is held, so a building tree that is there already was left by a run that was killed.
    let building = tree.with_extension("building");
    remove_tree(&building)?;
    debootstrap(recipe, &building, &tree.with_extension("log"), events)?;
    furnish(&building)?;
    fs::rename(&building, &tree).map_err(Error::file("putting in place", &tree))?;
    let _ = fs::remove_file(tree.with_extension("log"));
    events(Event::RootReady { path: tree.clone() });
    Ok(tree)
}

/// Changes whenever anything that goes into the tree does.
fn fingerprint(recipe: &Recipe) -> String {
    let mut hash = Sha256::new();
    for package in packages(recipe) {
        hash.update(package);
        hash.update("\n");
    }
    for (path, mode, content) in FILES {
        hash.update(format!("{path} {mode:o} {content}"));
    }
    for name in MASKED.iter().chain(&FOREIGN_SYSCTLS) {
        hash.update(name);
    }
    hash.update(USERS_SCRIPT);
    hash.finalize()[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn packages(recipe: &Recipe) -> Vec<String> {
    let mut packages: Vec<String> = PACKAGES
        .iter()
        .map(|&p| p.to_owned())
        .chain(recipe.extra_packages.iter().cloned())
        .collect();
    packages.sort();
    packages.dedup();
    packages
}

fn debootstrap(recipe: &Recipe, target: &Path, log: &Path, events: &mut dyn FnMut(Event)) -> Result<()> {
    // It mounts /proc below the target and starts many programs. In namespaces of their own all of that ends with it,
    // however it ends; otherwise clearing away what a killed one left would go through a mounted /proc.
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "--propagation",
            "private",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ])
        .args(["debootstrap", "--variant=minbase"])
        .arg(format!("--include={}", packages(recipe).join(",")))
        .arg(&recipe.suite)
        .arg(target)
        .args(&recipe.mirror)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    let mut log_file = File::create(log).map_err(Error::file("making", log))?;
    let errors = log_file.try_clone().map_err(Error::file("opening", log))?;
    let failed = |status: String| Error::Debootstrap {
        suite: recipe.suite.clone(),
        status,
        tail: tail(log, 12),
        log: log.into(),
    };
    let mut child = crate::sys::die_with_parent(command.stderr(errors))
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let mut stage = String::new();
    for line in child
        .stdout
        .take()
        .map(BufReader::new)
        .into_iter()
        .flat_map(BufRead::lines)
    {
        let Ok(line) = line else { break };
        let _ = writeln!(log_file, "{line}");
        // Of several hundred lines only the change from one kind of work to the next is news.
        let next = line
            .strip_prefix("I: ")
            .and_then(|l| l.split(' ').next())
            .unwrap_or_default();
        if ["Retrieving", "Extracting", "Unpacking", "Configuring"].contains(&next) && next != stage {
            next.clone_into(&mut stage);
            events(Event::RootProgress {
                line: format!("{} packages", next.to_lowercase()),
            });
        }
    }
    let status = child.wait().map_err(|e| failed(e.to_string()))?;
    if status.success() {
        Ok(())
    } else {
        Err(failed(status.to_string()))
    }
}

fn furnish(tree: &Path) -> Result<()> {
    for (path, mode, content) in FILES {
        write(&tree.join(path), mode, content)?;
    }
    let units = tree.join("etc/systemd/system");
    for unit in MASKED {
        link("/dev/null", &units.join(unit))?;
    }
    for file in FOREIGN_SYSCTLS {
        link("/dev/null", &tree.join("etc/sysctl.d").join(file))?;
    }
    link(
        "../quorate-lab-setup.service",
        &units.join("sysinit.target.wants/quorate-lab-setup.service"),
    )?;
    link(
        "/usr/lib/systemd/system/multi-user.target",
        &units.join("default.target"),
    )?;
    command::run(Command::new("chroot").arg(tree).args(["/bin/sh", "-eu"]), USERS_SCRIPT)?;
    for key in ["rsa", "ecdsa", "ed25519"] {
        for end in ["", ".pub"] {
            remove_file(&tree.join(format!("etc/ssh/ssh_host_{key}_key{end}")))?;
        }
    }
    remove_file(&tree.join("etc/machine-id"))?;
    for dir in ["var/cache/apt/archives", "var/lib/apt/lists"] {
        remove_tree(&tree.join(dir))?;
        let partial = tree.join(dir).join("partial");
        fs::create_dir_all(&partial).map_err(Error::file("making", partial))?;
    }
    for dir in crate::power::KEPT_DIRECTORIES {
        let path = tree.join(dir.trim_start_matches('/'));
        fs::create_dir_all(&path).map_err(Error::file("making", path))?;
    }
    // Otherwise each first boot counts as the first after an update and runs what belongs to one.
    for stamp in ["etc/.updated", "var/.updated"] {
        write(&tree.join(stamp), 0o644, "")?;
    }
    Ok(())
}

/// The last lines of a log, for an error.
pub(crate) fn tail(log: &Path, lines: usize) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let all: Vec<&str> = text.lines().filter(|l| !l.trim().is_empty()).collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

pub(crate) fn write(path: &Path, mode: u32, content: &str) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::file("making", parent))?;
    }
    let mut options = File::options();
    options.write(true).create(true).truncate(true);
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let mut file = options.open(path).map_err(Error::file("making", path))?;
    // The mode given at creation passes through the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))
        .and_then(|()| file.write_all(content.as_bytes()))
        .map_err(Error::file("writing", path))
}

pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("removing", path)(e)),
        _ => Ok(()),
    }
}

pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::file("removing", path)(e)),
        _ => Ok(()),
    }
}

fn link(to: &str, path: &Path) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::file("making", parent))?;
    }
    remove_file(path)?;
    symlink(to, path).map_err(Error::file("linking", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(extra: &[&str]) -> Recipe {
        Recipe {
            suite: "bookworm".into(),
            extra_packages: extra.iter().map(|&p| p.to_owned()).collect(),
            mirror: None,
        }
    }

    #[test]
    fn the_fingerprint_follows_the_packages_and_not_their_order() {
        assert_ne!(fingerprint(&recipe(&[])), fingerprint(&recipe(&["haproxy"])));
        assert_eq!(
            fingerprint(&recipe(&["haproxy", "keepalived"])),
            fingerprint(&recipe(&["keepalived", "haproxy", "systemd"]))
        );
    }

    #[test]
    fn the_tail_is_the_end() {
        let dir = std::env::temp_dir().join(format!("qt-lab-tail-{}", std::process::id()));
        write(&dir.join("log"), 0o600, "a\n\nb\nc\n").unwrap();
        assert_eq!(tail(&dir.join("log"), 2), "b\nc");
        assert_eq!(tail(&dir.join("none"), 2), "");
        remove_tree(&dir).unwrap();
    }
}
