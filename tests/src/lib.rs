//! Whole-program stories: the static program against lab machines. Each story has a lab of its own name, so that one that is
//! up is never touched, and takes it down again however the story ends.

#![expect(clippy::print_stderr, reason = "stories say what they skip and what they measured")]

pub mod story;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program under test, or why there is none.
pub fn quorate() -> Result<PathBuf, String> {
    let path = std::env::var_os("QUORATE")
        .map(PathBuf::from)
        .ok_or("QUORATE does not name the program; `make test-lab` does")?;
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!("{} does not exist", path.display()))
    }
}

/// Why lab stories cannot run here; `None` when they can.
pub fn cannot_run() -> Option<String> {
    let root = Command::new("id")
        .arg("-u")
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"0\n"));
    if !root {
        return Some("labs need root".into());
    }
    quorate().err()
}

/// A lab that ends with the story.
pub struct Lab {
    pub name: String,
    pub folder: PathBuf,
    quorate: PathBuf,
}

impl Lab {
    pub fn up(name: &str, machines: usize) -> Self {
        Self::with(name, &["--machines", &machines.to_string()])
    }

    /// `arguments`: more for `lab up`.
    pub fn with(name: &str, arguments: &[&str]) -> Self {
        let name = format!("qt-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        let lab = Self {
            name,
            folder,
            quorate: quorate().expect("checked before"),
        };
        let folder = lab.folder.display().to_string();
        let mut all = vec!["lab", "up", &lab.name, "--dir", &folder];
        all.extend(arguments);
        lab.must(&all);
        lab
    }

    pub fn cluster_file(&self) -> PathBuf {
        self.folder.join("cluster.yaml")
    }

    /// Runs the program; the output whatever its exit code.
    pub fn run(&self, arguments: &[&str]) -> Output {
        Command::new(&self.quorate)
            .args(arguments)
            .output()
            .expect("start quorate")
    }

    /// A verb on this lab's cluster file.
    pub fn cluster(&self, verb: &str, arguments: &[&str]) -> Output {
        let file = self.cluster_file().display().to_string();
        let mut all = vec![verb, "-f", &file];
        all.extend(arguments);
        self.run(&all)
    }

    pub fn command(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.quorate);
        command.arg(verb).arg("-f").arg(self.cluster_file()).args(arguments);
        command
    }

    pub fn must(&self, arguments: &[&str]) -> String {
        text(&self.run(arguments), arguments)
    }

    /// A command on a machine.
    pub fn ssh(&self, machine: &str, command: &[&str]) -> String {
        let mut arguments = vec!["lab", "ssh", &self.name, machine, "--"];
        arguments.extend(command);
        self.must(&arguments)
    }

    /// kubectl as the administrator, on a control plane, with the kubeconfig on its standard input.
    pub fn kubectl(&self, machine: &str, arguments: &[&str]) -> Output {
        use std::io::Write;
        let kubeconfig = self.cluster("kubeconfig", &[]).stdout;
        let mut child = Command::new(&self.quorate)
            .args([
                "lab",
                "ssh",
                &self.name,
                machine,
                "--",
                "/opt/quorate/bin/kubectl",
                "--kubeconfig=/dev/stdin",
                "--cache-dir=/tmp/kubectl",
            ])
            .args(arguments)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("start ssh");
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(&kubeconfig)
            .expect("feed kubectl");
        child.wait_with_output().expect("kubectl")
    }

    /// Report of `quorate status -o json`.
    pub fn status(&self) -> Value {
        let output = self.cluster("status", &["-o", "json"]);
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("status printed {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits until every check holds; the last failing ones otherwise.
    pub fn await_green(&self, patience: Duration) -> Duration {
        let started = Instant::now();
        loop {
            let failed = failed(&self.status());
            if failed.is_empty() {
                return started.elapsed();
            }
            assert!(
                started.elapsed() < patience,
                "after {patience:?} these checks do not hold: {failed:#?}"
            );
            std::thread::sleep(Duration::from_millis(500));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("QUORATE_KEEP").is_some() {
            eprintln!("kept lab {} in {}", self.name, self.folder.display());
            return;
        }
        let _ = self.run(&["lab", "down", &self.name]);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// `name target: detail` of every check that does not hold.
pub fn failed(report: &Value) -> Vec<String> {
    let checks = report["checks"].as_array().cloned().unwrap_or_default();
    let failing = checks.iter().filter(|check| check["ok"] != true);
    failing
        .map(|check| format!("{} {}: {}", check["name"], check["target"], check["detail"]))
        .collect()
}

/// Standard output of a run that must have worked.
pub fn text(output: &Output, what: &[&str]) -> String {
    assert!(
        output.status.success(),
        "{what:?} ended with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What was found on a machine, but for the program that looks: it is placed there to do so, and `reset` removes it.
pub fn without_program(traces: &str) -> String {
    traces
        .split_inclusive('\n')
        .filter(|line| !line.contains("/var/lib/quorate/bin"))
        .collect()
}

/// A change of the cluster file, by plain replacement.
pub fn edit(file: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(file).expect("read the cluster file");
    assert!(text.contains(from), "{from:?} is not in {}", file.display());
    std::fs::write(file, text.replacen(from, to, 1)).expect("write the cluster file");
}
