//! Whoever can switch machines off and on.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quorate_lab::Lab;

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
