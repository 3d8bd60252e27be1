//! Whoever can switch machines off and on.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use quorate_lab::Lab;
use quorate_machine::proto::Exec;
use quorate_run::Fleet;
use tokio::runtime::Handle;

/// Calls block; they are made on threads of their own.
pub trait Power: Send + Sync {
    /// As a cut of the cord: nothing on the machine can say good-bye. The time until it was dead.
    fn off(&self, machine: &str) -> Result<Duration, String>;
    /// Returns when the machine can be logged in to, or is on its way.
    fn on(&self, machine: &str) -> Result<(), String>;
    /// Switches the machine on after this time unless it is dropped before, even when this program is killed.
    fn deadman(&self, machine: &str, after: Duration) -> Result<Deadman, String>;
}

/// Disarms when dropped.
pub struct Deadman(Option<Child>);

impl Deadman {
    /// Somebody outside the machine sees to it; else it comes back by itself.
    pub fn watches(&self) -> bool {
        self.0.is_some()
    }
}

impl Drop for Deadman {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A lab's own switch.
pub struct LabPower {
    lab: Lab,
    /// Program that knows `drill power-on --after SECONDS LAB MACHINE`.
    program: PathBuf,
}

impl LabPower {
    pub fn new(lab: Lab, program: PathBuf) -> Self {
        Self { lab, program }
    }

    /// The lab whose ssh_config the cluster file names, if it is one.
    pub fn find(ssh_config: &std::path::Path) -> Option<Lab> {
        let wanted = std::fs::canonicalize(ssh_config).ok()?;
        quorate_lab::list()
            .into_iter()
            .filter_map(|(_, lab)| lab.ok())
            .find(|lab| std::fs::canonicalize(lab.ssh_config()).is_ok_and(|path| path == wanted))
    }
}

impl Power for LabPower {
    fn off(&self, machine: &str) -> Result<Duration, String> {
        self.lab.off(machine).map_err(|error| error.to_string())
    }

    fn on(&self, machine: &str) -> Result<(), String> {
        self.lab.on(machine).map(drop).map_err(|error| error.to_string())
    }

    fn deadman(&self, machine: &str, after: Duration) -> Result<Deadman, String> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&self.program);
        command
            .args(["drill", "power-on", "--after"])
            .arg(after.as_secs().to_string())
            .args([self.lab.name(), machine]);
        // A process group of its own: Ctrl-C is not for it.
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0);
        command
            .spawn()
            .map(|child| Deadman(Some(child)))
            .map_err(|error| format!("{}: {error}", self.program.display()))
    }
}

/// Machines that cut their own power, as far as a program can: the kernel restarts them at once, without a word to anybody
/// and without writing anything back (`b` of <https://docs.kernel.org/admin-guide/sysrq.html>). How long they are away is
/// their firmware's business; they come back by themselves, so that no timer is needed.
pub struct SysrqPower {
    fleet: Fleet,
    runtime: Handle,
    /// Identifiers of the boots that were ended, by machine.
    ended: Mutex<BTreeMap<String, String>>,
}

/// Answers with the boot's identifier while there is time. A container's would be the whole computer's: refused.
const CUT: &str = r#"PATH=/usr/sbin:/usr/bin:/sbin:/bin
if systemd-detect-virt --quiet --container; then echo "a container has no power of its own" >&2; exit 1; fi
cat /proc/sys/kernel/random/boot_id
systemd-run --quiet --collect /bin/sh -c 'sleep 0.3; echo 1 > /proc/sys/kernel/sysrq; echo b > /proc/sysrq-trigger; reboot -ff'"#;
/// Firmware of large machines takes its time.
const BACK_WITHIN: Duration = Duration::from_secs(600);

impl SysrqPower {
    /// `runtime`: where the machines' connections live.
    pub fn new(fleet: Fleet, runtime: Handle) -> Self {
        Self {
            fleet,
            runtime,
            ended: Mutex::default(),
        }
    }

    fn ask(&self, name: &str, script: &str) -> Result<String, String> {
        let machine = self.fleet.get(name).ok_or_else(|| format!("{name} is not connected"))?;
        let exec = Exec::new(["/bin/sh", "-euc", script]).timeout_ms(5_000);
        let output = self
            .runtime
            .block_on(machine.exec_ok(exec))
            .map_err(|error| error.to_string())?;
        Ok(output.stdout.lossy().trim().to_owned())
    }

    fn ended(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, String>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Power for SysrqPower {
    fn off(&self, machine: &str) -> Result<Duration, String> {
        let begun = Instant::now();
        let boot = self.ask(machine, CUT)?;
        self.ended().insert(machine.into(), boot);
        Ok(begun.elapsed() + Duration::from_millis(300))
    }

    fn on(&self, machine: &str) -> Result<(), String> {
        let Some(ended) = self.ended().get(machine).cloned() else {
            return Ok(());
        };
        let begun = Instant::now();
        loop {
            let said = match self.ask(machine, "cat /proc/sys/kernel/random/boot_id") {
                Ok(boot) if boot != ended => return Ok(()),
                Ok(_) => "it was never restarted".to_owned(),
                Err(error) => error,
            };
            if begun.elapsed() > BACK_WITHIN {
                return Err(format!("not back within {} s: {said}", BACK_WITHIN.as_secs()));
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    fn deadman(&self, _: &str, _: Duration) -> Result<Deadman, String> {
        Ok(Deadman(None))
    }
}

const KUBECTL: &str = "/opt/quorate/bin/kubectl";

/// What a dead man's timer does: the machine is on, and takes Pods again if it was drained.
pub fn power_on(lab: &Lab, machine: &str) -> Result<(), String> {
    lab.on(machine).map_err(|error| error.to_string())?;
    // The node's own identity may uncordon it. Its API server needs a while.
    for _ in 0..60 {
        let mut ssh = lab.ssh(machine).map_err(|error| error.to_string())?;
        // Only control planes have kubectl, and only they are drained.
        ssh.arg(format!(
            "test -x {KUBECTL} || exit 0; {KUBECTL} --kubeconfig=/etc/kubernetes/kubelet.conf --request-timeout=2s uncordon {machine}"
        ));
        ssh.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if ssh.status().is_ok_and(|status| status.success()) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
    Err(format!("{machine} is on, but could not be uncordoned"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Never on the computer this runs on: only what a container says is tried, and the words of the script.
    #[test]
    fn a_containers_kernel_is_left_alone() {
        let refused = CUT.find("exit 1").unwrap();
        let cut = CUT.find("/proc/sysrq-trigger").unwrap();
        assert!(CUT.contains("systemd-detect-virt --quiet --container") && refused < cut);
        let dir = tempfile::tempdir().unwrap();
        // A container, whatever this is; and what would be written goes nowhere else.
        std::fs::write(dir.path().join("systemd-detect-virt"), "#!/bin/sh\nexit 0\n").unwrap();
        std::fs::set_permissions(
            dir.path().join("systemd-detect-virt"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let (check, _) = CUT.split_once("cat /proc").unwrap();
        let check = check.replace("PATH=", &format!("PATH={}:", dir.path().display()));
        let output = Command::new("/bin/sh").args(["-euc", &check]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("no power of its own"));
    }
}
