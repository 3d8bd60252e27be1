//! Fault scripts in a folder of their own, with programs that only pretend.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use quorate_machine::proto::ExecOutput;
use quorate_machine::{FakeMachine, MachineRef};

/// What a script finds on a machine: `bin/` comes first in its PATH.
pub(crate) struct Shell(tempfile::TempDir);

impl Shell {
    pub(crate) fn new() -> Self {
        let shell = Self(tempfile::tempdir().unwrap());
        for folder in ["bin", "run", "lasting", "units", "data"] {
            std::fs::create_dir(shell.path(folder)).unwrap();
        }
        shell.write("mounts", "");
        shell.write("boot", "first\n");
        shell
    }

    /// Programs are run here.
    pub(crate) fn machine(self: &Arc<Self>, name: &str) -> MachineRef {
        let (machine, shell) = (FakeMachine::new(name), self.clone());
        machine.on_exec(move |_, exec| {
            let output = shell.call(&exec.argv, &exec.stdin.lossy());
            Some(ExecOutput {
                status: output.status.code(),
                stdout: output.stdout.into(),
                stderr: output.stderr.into(),
                ..ExecOutput::default()
            })
        });
        machine
    }

    /// The power goes, and with it what only memory held; then the machine boots.
    pub(crate) fn restart(&self) {
        let (data, hidden) = (self.path("data"), self.path("data.hidden"));
        if hidden.exists() {
            std::fs::remove_dir_all(&data).unwrap();
            std::fs::rename(hidden, data).unwrap();
        }
        std::fs::remove_dir_all(self.path("run")).unwrap();
        std::fs::create_dir(self.path("run")).unwrap();
        self.write("mounts", "");
        self.write("boot", "second\n");
        let wants = std::fs::read_dir(self.path("units/multi-user.target.wants"));
        for unit in wants.into_iter().flatten() {
            let text = std::fs::read_to_string(unit.unwrap().path()).unwrap();
            let command = text.lines().find_map(|line| line.strip_prefix("ExecStart="));
            let words: Vec<String> = command.unwrap().split(' ').map(str::to_owned).collect();
            assert!(self.call(&words, "").status.success(), "{words:?}");
        }
    }

    /// Units that would still be there at the next boot.
    pub(crate) fn left_at_boot(&self) -> usize {
        let entries = |folder: &str| std::fs::read_dir(self.path(folder)).map_or(0, Iterator::count);
        // The folder of links itself.
        entries("units").saturating_sub(1) + entries("units/multi-user.target.wants")
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    /// Empty if it is not there.
    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// `DIR` in it is the folder.
    pub(crate) fn program(&self, name: &str, script: &str) {
        let file = format!("bin/{name}");
        self.write(&file, &self.here(&format!("#!/bin/sh\n{script}\n")));
        std::fs::set_permissions(self.path(&file), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    pub(crate) fn here(&self, script: &str) -> String {
        let dir = self.0.path().display().to_string();
        script
            .replace("/run/quorate-drill", &format!("{dir}/run"))
            .replace("/var/lib/quorate/drill", &format!("{dir}/lasting"))
            .replace("/var/lib/etcd", &format!("{dir}/data"))
            .replace("/var/quorate-drill", &format!("{dir}/var"))
            .replace("/etc/systemd/system", &format!("{dir}/units"))
            .replace("/proc/sys/kernel/random/boot_id", &format!("{dir}/boot"))
            .replace("/proc/mounts", &format!("{dir}/mounts"))
            .replace("/proc/uptime", &format!("{dir}/uptime"))
            .replace("PATH=/opt", &format!("PATH={dir}/bin:/opt"))
            .replace("{data}", &format!("{dir}/data"))
            .replace("DIR", &dir)
    }

    pub(crate) fn run(&self, script: &str, arguments: &[&str], input: &str) -> Output {
        self.write("script", &self.here(script));
        let script = self.path("script").display().to_string();
        let words = ["/bin/sh", &script].into_iter().chain(arguments.iter().copied());
        self.call(&words.map(str::to_owned).collect::<Vec<_>>(), input)
    }

    fn call(&self, words: &[String], input: &str) -> Output {
        self.write("input", &self.here(input));
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        Command::new(&words[0])
            .args(words[1..].iter().map(|word| self.here(word)))
            .env("PATH", path)
            .stdin(std::fs::File::open(self.path("input")).unwrap())
            .output()
            .unwrap()
    }
}
