//! A machine's disk, and switching it on and off.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::command::{self, quote};
use crate::description::{Description, Machine, Storage};
use crate::host::{self, Host};
use crate::root::{remove_tree, tail, write};
use crate::{Error, Result, network};

/// On a file system of their own, not on the overlay: containerd's snapshotter cannot stack on one, etcd should not
/// pay for one. They outlive a power cut like the rest of the disk.
pub(crate) const KEPT_DIRECTORIES: [&str; 4] = [
    "/var/lib/containerd",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/quorate",
];

/// Devices handed in where this computer has them.
const DEVICES: [&str; 3] = ["/dev/kmsg", "/dev/net/tun", "/dev/fuse"];

/// Processes that got SIGKILL may still be tearing down namespaces and file systems for this long.
const GONE_WITHIN: Duration = Duration::from_secs(20);

/// One machine of one lab: where it is kept and what it is called on this computer.
pub(crate) struct Power<'a> {
    pub(crate) host: &'a Host,
    pub(crate) lab: &'a Description,
    pub(crate) machine: &'a Machine,
    pub(crate) dir: PathBuf,
}

/// What was started, so that it is ended and not a stranger that got its number later.
#[derive(Serialize, Deserialize)]
struct Process {
    pid: u32,
    /// Clock ticks after boot, field 22 of /proc/PID/stat.
    started: u64,
}

/// Control group, scope and nspawn name. A dot, which no lab's name holds, keeps labs apart.
pub(crate) fn unit_name(lab: &str, machine: &str) -> String {
    format!("quorate-{lab}.{machine}")
}

impl Power<'_> {
    /// Makes the machine's disk unless it is there: identity, keys and the directories that stay.
    pub(crate) fn prepare(&self) -> Result<()> {
        if self.dir.is_dir() {
            return Ok(());
        }
        // Built aside and renamed, so that a disk is whole or not there.
        let building = self.dir.with_extension("new");
        remove_tree(&building)?;
        let disk = building.join(self.disk_name());
        for dir in ["root", "disk", "work", "kept"] {
            make_dir(&building.join(dir), 0o755)?;
        }
        for dir in KEPT_DIRECTORIES {
            make_dir(&building.join(kept_name(dir)), 0o755)?;
        }
        if self.lab.storage == Storage::Copy {
            command::run(
                Command::new("cp")
                    .args(["--archive", "--reflink=auto"])
                    .arg(self.lab.root.join("."))
                    .arg(&disk),
                "",
            )?;
        }
        let name = &self.machine.name;
        make_dir(&disk.join("etc/ssh"), 0o755)?;
        write(&disk.join("etc/hostname"), 0o644, &format!("{name}\n"))?;
        write(
            &disk.join("etc/machine-id"),
            0o444,
            &format!("{}\n", self.machine.machine_id),
        )?;
        let uuid = uuid(&self.machine.machine_id);
        write(&disk.join("etc/quorate-lab/product_uuid"), 0o444, &format!("{uuid}\n"))?;
        write(&disk.join("etc/hosts"), 0o644, &self.hosts())?;
        // Nobody answers there, which is found out at once; without this file the C library would ask localhost.
        let resolver = format!("nameserver {}\n", self.lab.operator());
        write(&disk.join("etc/resolv.conf"), 0o644, &resolver)?;
        keygen(&disk.join("etc/ssh/ssh_host_ed25519_key"), name)?;
        fs::rename(&building, &self.dir).map_err(Error::file("putting in place", &self.dir))
    }

    /// Lets `public_key` in as any user. Only while the machine is off.
    pub(crate) fn authorize(&self, public_key: &str) -> Result<()> {
        let file = self.dir.join(self.disk_name()).join("etc/ssh/lab_authorized_keys");
        write(&file, 0o644, public_key)
    }

    /// The public half of its host key, as `ssh-ed25519 AAAA…`.
    pub(crate) fn host_key(&self) -> Result<String> {
        let file = self.dir.join(self.disk_name()).join("etc/ssh/ssh_host_ed25519_key.pub");
        let text = fs::read_to_string(&file).map_err(Error::file("reading", &file))?;
        Ok(text.split(' ').take(2).collect::<Vec<_>>().join(" "))
    }

    pub(crate) fn is_on(&self) -> bool {
        !self.processes().is_empty()
    }

    /// Plugs in the cable and starts the machine; does not wait until it has booted.
    pub(crate) fn on(&self) -> Result<()> {
        host::forget(self.host, &self.unit());
        network::plug_in(self.lab, self.machine)?;
        self.host.make_groups(&self.unit())?;
        let (script, console) = (self.dir.join("boot"), self.console());
        write(&script, 0o700, &self.boot_script())?;
        let console_file = File::create(&console).map_err(Error::file("making", &console))?;
        let errors = console_file.try_clone().map_err(Error::file("opening", &console))?;

        let words = self.launcher();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .arg(&script)
            .stdin(Stdio::piped())
            .stdout(console_file)
            .stderr(errors)
            .spawn()
            .map_err(Error::file("running", &script))?;
        self.record(child.id())?;
        // It waits for this line and ends without it: nothing runs that is not written down, even if this program is
        // killed right here.
        let go = child.stdin.take().map(|mut stdin| stdin.write_all(b"go\n"));
        if let Some(Err(e)) = go {
            let _ = child.wait();
            return Err(self.failure(&format!("its boot script did not start: {e}")));
        }
        // It outlives this program; should this program outlive it, nothing must be left unreaped.
        std::thread::spawn(move || child.wait());
        Ok(())
    }

    /// Power cut: the cable goes dead, then everything is killed at once, so that no process and no socket
    /// says good-bye. The time that took; when this returns, all of it is gone.
    pub(crate) fn off(&self) -> Result<Duration> {
        let begun = Instant::now();
        // Without a cable there is nothing to pull.
        let _ = network::pull_cable(&self.lab.name, &self.machine.name);
        self.kill()?;
        let took = begun.elapsed();
        wait_gone(&self.machine.name, || self.processes(), || self.kill())?;
        network::unplug(&self.lab.name, &self.machine.name)?;
        host::forget(self.host, &self.unit());
        Ok(took)
    }

    /// Why it does not answer, if that is already certain.
    pub(crate) fn failure(&self, reason: &str) -> Error {
        Error::Boot {
            machine: self.machine.name.clone(),
            reason: reason.into(),
            tail: tail(&self.console(), 12),
            log: self.console(),
        }
    }

    /// Runs the boot script. Each of these replaces itself by the next, so that the process started becomes the
    /// script, and that systemd-nspawn.
    fn launcher(&self) -> Vec<String> {
        let mut words: Vec<String> = Vec::new();
        if self.host.systemd {
            let unit = format!("--unit={}.scope", self.unit());
            words.extend(
                [
                    "systemd-run",
                    "--scope",
                    "--quiet",
                    "--collect",
                    "--property=Delegate=yes",
                ]
                .map(Into::into),
            );
            words.extend([unit, "--".into()]);
        }
        // Mounts made for the machine are its own: they go when it goes, however it goes.
        words.extend(["setsid", "unshare", "--mount", "--propagation", "slave", "sh"].map(Into::into));
        words
    }

    fn unit(&self) -> String {
        unit_name(&self.lab.name, &self.machine.name)
    }

    fn groups(&self) -> Vec<PathBuf> {
        self.host.groups(&self.unit())
    }

    fn console(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    fn disk_name(&self) -> &'static str {
        match self.lab.storage {
            Storage::Overlay => "disk",
            Storage::Copy => "root",
        }
    }

    fn hosts(&self) -> String {
        let mut hosts = format!(
            "127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {}\n",
            self.machine.name
        );
        for machine in self.lab.machines.iter().filter(|m| m.name != self.machine.name) {
            hosts += &format!("{} {}\n", machine.address, machine.name);
        }
        hosts
    }

    /// SIGKILL to all of it, also to what has not reached its group yet.
    pub(crate) fn kill(&self) -> Result<()> {
        let error = || Error::file("killing the processes of", &self.dir);
        host::kill(&self.groups()).map_err(error())?;
        self.recorded().map_or(Ok(()), crate::sys::kill).map_err(error())
    }

    fn processes(&self) -> Vec<u32> {
        let mut processes = host::processes(&self.groups());
        processes.extend(self.recorded());
        processes
    }

    fn record(&self, pid: u32) -> Result<()> {
        let Some(started) = start_time(pid) else {
            return Ok(());
        };
        let text = serde_json::to_string(&Process { pid, started }).unwrap_or_default();
        write(&self.dir.join("process.json"), 0o600, &text)
    }

    /// The process that was started last, if it still is that process and runs.
    fn recorded(&self) -> Option<u32> {
        let text = fs::read(self.dir.join("process.json")).ok()?;
        let process: Process = serde_json::from_slice(&text).ok()?;
        (start_time(process.pid) == Some(process.started)).then_some(process.pid)
    }

    fn boot_script(&self) -> String {
        let mut script = format!(
            "#!/bin/sh\n# Boots {} of lab {}. Written anew each time it is switched on.\nset -eu\n",
            self.machine.name, self.lab.name
        );
        script += "read -r go || exit 1\nexec < /dev/null\n";
        if !self.host.systemd {
            for group in self.groups() {
                script += &format!("echo $$ > {}\n", quoted(&group.join("cgroup.procs")));
            }
        }
        let root = self.dir.join("root");
        if self.lab.storage == Storage::Overlay {
            script += &overlay_mount(&self.lab.root, &self.dir.join("disk"), &self.dir.join("work"), &root);
        }
        // Its locks and sockets would be left behind by a power cut.
        script += "mkdir -p /run/systemd/nspawn\nmount -t tmpfs -o mode=755 tmpfs /run/systemd/nspawn\n";
        script += "export SYSTEMD_NSPAWN_API_VFS_WRITABLE=1 SYSTEMD_SECCOMP=0\n";
        script += &format!(
            "export SYSTEMD_NSPAWN_UNIFIED_HIERARCHY={}\n",
            u8::from(self.host.unified())
        );
        let mut words: Vec<String> = [
            "exec",
            "systemd-nspawn",
            "--quiet",
            "--keep-unit",
            "--register=no",
            "--boot",
            "--capability=all",
            // Without this list nspawn answers system calls newer than itself with an error of its own.
            "--system-call-filter=@known",
            "--link-journal=no",
            "--resolv-conf=off",
            "--timezone=off",
        ]
        .map(Into::into)
        .to_vec();
        let namespace = network::machine_namespace(&self.lab.name, &self.machine.name);
        words.push(format!("--machine={}", self.unit()));
        words.push(format!("--hostname={}", self.machine.name));
        words.push(format!(
            "--network-namespace-path={}",
            quoted(&network::namespace_path(&namespace))
        ));
        words.push(format!("--directory={}", quoted(&root)));
        for device in DEVICES.iter().filter(|d| Path::new(d).exists()) {
            words.push(format!("--bind={device}"));
        }
        if Path::new("/lib/modules").is_dir() {
            words.push("--bind-ro=/lib/modules".into());
        }
        for dir in KEPT_DIRECTORIES {
            words.push(format!("--bind={}:{dir}", quoted(&self.dir.join(kept_name(dir)))));
        }
        if !self.host.unified() {
            // Asked for by systemd 256 and 257; older ones do not know it, newer ones no longer boot here.
            words.push("SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1".into());
        }
        script + &words.join(" \\\n    ") + "\n"
    }
}

/// Kills and clears away whatever is left of a lab's machines, known or not. How many there were.
pub(crate) fn clear(host: &Host, lab: &str) -> Result<usize> {
    let units = host.units(&unit_name(lab, ""));
    let groups: Vec<(String, Vec<PathBuf>)> = units.into_iter().map(|u| (u.clone(), host.groups(&u))).collect();
    for (unit, groups) in &groups {
        host::kill(groups).map_err(Error::file("killing the processes of", unit))?;
    }
    for (unit, groups) in &groups {
        wait_gone(
            unit,
            || host::processes(groups),
            || host::kill(groups).map_err(Error::file("killing the processes of", unit)),
        )?;
        host::forget(host, unit);
    }
    Ok(groups.len())
}

/// Whether overlays can be mounted with their changes kept below `dir`: not on another overlay, for example.
pub(crate) fn overlay_works(tree: &Path, dir: &Path) -> Result<bool> {
    let trial = dir.join("overlay-trial");
    let [disk, work, root] = ["disk", "work", "root"].map(|d| trial.join(d));
    for dir in [&disk, &work, &root] {
        make_dir(dir, 0o755)?;
    }
    let script = overlay_mount(tree, &disk, &work, &root);
    let works = command::run(
        Command::new("unshare").args(["--mount", "--propagation", "slave", "sh", "-eu"]),
        &script,
    )
    .is_ok();
    remove_tree(&trial)?;
    Ok(works)
}

pub(crate) fn keygen(file: &Path, comment: &str) -> Result<()> {
    let mut command = Command::new("ssh-keygen");
    command
        .args(["-q", "-t", "ed25519", "-N", "", "-C", comment, "-f"])
        .arg(file);
    command::run(&mut command, "").map(drop)
}

fn overlay_mount(tree: &Path, disk: &Path, work: &Path, root: &Path) -> String {
    format!(
        "mount -t overlay overlay -o {} {}\n",
        quote(&format!(
            "lowerdir={},upperdir={},workdir={}",
            tree.display(),
            disk.display(),
            work.display()
        )),
        quoted(root)
    )
}

fn wait_gone(machine: &str, processes: impl Fn() -> Vec<u32>, kill: impl Fn() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    loop {
        let pids = processes();
        if pids.is_empty() {
            return Ok(());
        }
        if begun.elapsed() > GONE_WITHIN {
            return Err(Error::StillRunning {
                machine: machine.into(),
                pids,
                waited_ms: begun.elapsed().as_millis(),
            });
        }
        // A process forked while the others were being killed one by one.
        kill()?;
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn kept_name(dir: &str) -> String {
    format!("kept/{}", dir.rsplit('/').next().unwrap_or(dir))
}

fn make_dir(path: &Path, mode: u32) -> Result<()> {
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
        .map_err(Error::file("making", path))
}

fn quoted(path: &Path) -> String {
    quote(&path.to_string_lossy())
}

/// `None` for a process that is gone or waits to be reaped.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; after it come fields 3 and on.
    let fields = stat.rsplit_once(") ")?.1;
    (!fields.starts_with(['Z', 'X'])).then(|| fields.split(' ').nth(19)?.parse().ok())?
}

/// 8-4-4-4-12 as in /sys/class/dmi/id/product_uuid.
fn uuid(id: &str) -> String {
    let mut uuid = id.to_owned();
    for dash in [20, 16, 12, 8] {
        if uuid.is_char_boundary(dash) && uuid.len() > dash {
            uuid.insert(dash, '-');
        }
    }
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_has_its_dashes() {
        assert_eq!(
            uuid("00112233445566778899aabbccddeeff"),
            "00112233-4455-6677-8899-aabbccddeeff"
        );
    }

    #[test]
    fn the_start_time_tells_processes_apart() {
        let mine = start_time(std::process::id()).unwrap();
        assert!(mine > 0);
        assert_eq!(start_time(std::process::id()), Some(mine));
        assert_eq!(start_time(u32::MAX), None);
    }
}
