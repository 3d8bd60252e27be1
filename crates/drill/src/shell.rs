//! Fault scripts in a folder of their own, with programs that only pretend.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output};

/// What a script finds on a machine: `bin/` comes first in its PATH.
pub(crate) struct Shell(tempfile::TempDir);

impl Shell {
    pub(crate) fn new() -> Self {
        let shell = Self(tempfile::tempdir().unwrap());
        for folder in ["bin", "run", "data"] {
            std::fs::create_dir(shell.path(folder)).unwrap();
        }
        shell.write("mounts", "");
        shell
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

    fn here(&self, script: &str) -> String {
        let dir = self.0.path().display().to_string();
        script
            .replace("/run/quorate-drill", &format!("{dir}/run"))
            .replace("/proc/mounts", &format!("{dir}/mounts"))
            .replace("/proc/uptime", &format!("{dir}/uptime"))
            .replace("PATH=/opt", &format!("PATH={dir}/bin:/opt"))
            .replace("{data}", &format!("{dir}/data"))
            .replace("DIR", &dir)
    }

    pub(crate) fn run(&self, script: &str, arguments: &[&str], input: &str) -> Output {
        self.write("input", input);
        self.write("script", &self.here(script));
        let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", self.path("bin").display());
        Command::new("/bin/sh")
            .arg(self.path("script"))
            .args(arguments)
            .env("PATH", path)
            .stdin(std::fs::File::open(self.path("input")).unwrap())
            .output()
            .unwrap()
    }
}
