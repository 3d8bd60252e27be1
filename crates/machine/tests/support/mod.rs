//! An SSH server of the test's own on a random loopback port, with keys and configuration of its own.

use std::{
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use quorate_machine::{
    SshMachine,
    ssh::{Program, SshTarget},
};

pub(crate) struct Sshd {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    server: Child,
}

/// Says why a test is skipped.
pub(crate) fn skipped(reason: &str) {
    eprintln!("skipped: {reason}");
}

impl Sshd {
    /// `None`, after saying so, where there is no sshd or no root.
    pub(crate) fn start() -> Option<Self> {
        if !Path::new("/usr/sbin/sshd").exists() {
            skipped("there is no /usr/sbin/sshd (Debian: openssh-server)");
            return None;
        }
        if !rustix::process::geteuid().is_root() {
            skipped("needs root");
            return None;
        }
        fs::create_dir_all("/run/sshd").unwrap();
        let dir = tempfile::Builder::new()
            .prefix(&format!("qt-machine-{}-", std::process::id()))
            .tempdir()
            .unwrap();
        for key in ["host", "client", "stranger"] {
            let made = Command::new("ssh-keygen")
                .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                .arg(dir.path().join(key))
                .status()
                .unwrap();
            assert!(made.success());
        }
        fs::copy(dir.path().join("client.pub"), dir.path().join("authorized_keys")).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let base = dir.path().display();
        let config = format!(
            "ListenAddress 127.0.0.1\nPort {port}\nHostKey {base}/host\nPidFile none\nUsePAM no\nStrictModes no\n\
             AuthorizedKeysFile {base}/authorized_keys\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        );
        fs::write(dir.path().join("sshd_config"), config).unwrap();
        let server = Command::new("/usr/sbin/sshd")
            .args(["-D", "-f"])
            .arg(dir.path().join("sshd_config"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let sshd = Self { dir, port, server };
        let start = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(start.elapsed() < Duration::from_secs(5), "sshd did not come up");
            std::thread::sleep(Duration::from_millis(20));
        }
        sshd.trust("host");
        Some(sshd)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes the key of that name the known one of this server.
    pub(crate) fn trust(&self, key: &str) {
        let public = fs::read_to_string(self.path(&format!("{key}.pub"))).unwrap();
        fs::write(self.path("known_hosts"), format!("[127.0.0.1]:{} {public}", self.port)).unwrap();
    }

    pub(crate) fn target(&self) -> SshTarget {
        SshTarget {
            name: "m1".into(),
            host: "127.0.0.1".into(),
            port: Some(self.port),
            user: Some("root".into()),
            identity_file: Some(self.path("client")),
            config_file: Some("/dev/null".into()),
            options: vec![
                format!("UserKnownHostsFile={}", self.path("known_hosts").display()),
                "GlobalKnownHostsFile=/dev/null".into(),
                "IdentitiesOnly=yes".into(),
                "IdentityAgent=none".into(),
            ],
            state_dir: Some(self.path("state").display().to_string()),
            ..SshTarget::default()
        }
    }

    pub(crate) fn machine(&self, target: SshTarget) -> SshMachine {
        SshMachine::new(target, program())
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// The example that serves like `quorate remote`; cargo builds it together with the tests.
pub(crate) fn program() -> Program {
    let tests = std::env::current_exe().unwrap();
    let example = tests.parent().unwrap().parent().unwrap().join("examples/remote");
    Program::from_file(&example).unwrap_or_else(|error| panic!("{}: {error}", example.display()))
}

/// A small file system of its own, gone with the value.
pub(crate) struct Tmpfs(PathBuf);

impl Tmpfs {
    /// `None`, after saying so, where mounting is not allowed.
    pub(crate) fn mount(at: PathBuf, options: &str) -> Option<Self> {
        fs::create_dir_all(&at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "tmpfs"])
            .arg(&at)
            .status();
        if !mounted.is_ok_and(|status| status.success()) {
            skipped("mounting a tmpfs is not allowed here");
            return None;
        }
        Some(Self(at))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
