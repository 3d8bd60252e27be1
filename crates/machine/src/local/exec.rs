//! Programs: no shell, a process group of their own, killed as a whole at the deadline or when nobody waits any more.

use std::{collections::BTreeMap, os::unix::process::ExitStatusExt, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::Command,
    time::{Instant, timeout, timeout_at},
};

use super::owners::Owners;
use crate::{
    error::{ErrorKind, RemoteError},
    proto::{Exec, ExecOutput},
};

/// Root's usual path, whatever the login shell made of it.
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How long output is awaited after the program ended while a child of it holds the pipes.
const LINGER: Duration = Duration::from_millis(200);

pub(super) async fn run(exec: Exec) -> Result<ExecOutput, RemoteError> {
    let Some(program) = exec.argv.first().cloned() else {
        return Err(RemoteError::new(ErrorKind::Invalid, "no program to run"));
    };
    let deadline = Instant::now() + Duration::from_millis(exec.timeout_ms);
    let mut command = Command::new(&program);
    command.args(&exec.argv[1..]).env_clear();
    command
        .env("PATH", PATH)
        .env("HOME", "/root")
        .env("LANG", "C.UTF-8")
        .env("LC_ALL", "C.UTF-8");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true);
    if let Some(user) = &exec.user {
        let owners = Owners::load();
        let found = owners
            .user(user)
            .ok_or_else(|| RemoteError::new(ErrorKind::NotFound, format!("there is no user {user:?}")))?;
        command.uid(found.uid).gid(found.gid).env("HOME", found.home);
    }
    command.envs(exec.env.iter().map(|(name, value)| (name, value.lossy())));
    command.current_dir(exec.cwd.as_deref().unwrap_or("/"));

    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => RemoteError::new(ErrorKind::NotFound, format!("{program}: no such program"))
            .hint(format!("install the package that brings {program}")),
        _ => RemoteError::io(&program, &error),
    })?;
    let mut group = Group(child.id().and_then(|pid| Pid::from_raw(pid as i32)));
    let mut stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (mut out, mut err) = (Collected::default(), Collected::default());
    let finished = {
        let feed = async {
            if let Some(mut stdin) = stdin.take() {
                // A program that does not read all of its input is its own business.
                let _ = stdin.write_all(&exec.stdin).await;
            }
        };
        let work = async {
            let read = async {
                tokio::join!(
                    out.read(stdout, exec.max_output),
                    err.read(stderr, exec.max_output),
                    feed
                );
            };
            tokio::pin!(read);
            tokio::select! {
                status = child.wait() => {
                    let _ = timeout(LINGER, read).await;
                    status
                }
                () = &mut read => child.wait().await,
            }
        };
        timeout_at(deadline, work).await
    };
    let timed_out = finished.is_err();
    let status = match finished {
        Ok(status) => {
            // Children it left behind on purpose live on.
            group.0 = None;
            status
        }
        Err(_) => {
            group.kill();
            timeout(Duration::from_secs(5), child.wait())
                .await
                .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
        }
    };
    let status = status.map_err(|error| RemoteError::io(&program, &error))?;
    Ok(ExecOutput {
        status: if timed_out { None } else { status.code() },
        signal: status.signal(),
        timed_out,
        truncated: out.truncated || err.truncated,
        stdout: out.bytes.into(),
        stderr: err.bytes.into(),
    })
}

/// Runs one of the system's own tools; anything but exit status 0 is an error with what it said.
pub(super) async fn tool(argv: &[&str], stdin: &[u8], timeout_ms: u64) -> Result<String, RemoteError> {
    let output = tool_output(argv, stdin, timeout_ms).await?;
    if output.ok() {
        return Ok(output.stdout.lossy());
    }
    Err(failure(argv, timeout_ms, &output))
}

pub(super) async fn tool_output(argv: &[&str], stdin: &[u8], timeout_ms: u64) -> Result<ExecOutput, RemoteError> {
    let env = BTreeMap::from([
        ("SYSTEMD_COLORS".to_owned(), "0".into()),
        ("SYSTEMD_PAGER".to_owned(), "".into()),
    ]);
    run(Exec {
        env,
        stdin: stdin.into(),
        ..Exec::new(argv.iter().copied()).timeout_ms(timeout_ms)
    })
    .await
}

pub(super) fn failure(argv: &[&str], timeout_ms: u64, output: &ExecOutput) -> RemoteError {
    let said = if output.stderr.is_empty() {
        output.stdout.lossy()
    } else {
        output.stderr.lossy()
    };
    let said = crate::machine::last_lines(&said, 8);
    if output.timed_out {
        return RemoteError::new(
            ErrorKind::Timeout,
            format!("`{}` was killed after {timeout_ms} ms: {said}", argv.join(" ")),
        );
    }
    let status = output.status.map_or_else(
        || format!("signal {}", output.signal.unwrap_or(0)),
        |status| format!("status {status}"),
    );
    RemoteError::failed(format!("`{}` ended with {status}: {said}", argv.join(" ")))
}

/// Kills the process group when dropped, so that nothing outlives a session that broke.
struct Group(Option<Pid>);

impl Group {
    fn kill(&mut self) {
        if let Some(pid) = self.0.take() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Default)]
struct Collected {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Collected {
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>, max: u64) {
        let Some(mut stream) = stream else { return };
        let mut buffer = vec![0; 16 << 10];
        while let Ok(got @ 1..) = stream.read(&mut buffer).await {
            let room = (max as usize).saturating_sub(self.bytes.len()).min(got);
            self.bytes.extend_from_slice(&buffer[..room]);
            self.truncated |= room < got;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Exec {
        Exec::new(["sh", "-c", script])
    }

    #[tokio::test]
    async fn output_status_and_input() {
        let output = run(sh("cat; echo no >&2; exit 3").stdin("yes")).await.unwrap();
        assert_eq!(
            (output.status, output.stdout.lossy(), output.stderr.lossy()),
            (Some(3), "yes".into(), "no\n".into())
        );
        let missing = run(Exec::new(["no-such-program"])).await.unwrap_err();
        assert_eq!(
            (missing.kind, missing.message.as_str()),
            (ErrorKind::NotFound, "no-such-program: no such program")
        );
    }

    #[tokio::test]
    async fn large_input_and_bounded_output() {
        let exec = Exec {
            max_output: 1000,
            ..sh("cat").stdin(vec![b'x'; 1 << 20])
        };
        let output = run(exec).await.unwrap();
        assert!(output.ok() && output.truncated);
        assert_eq!(output.stdout.len(), 1000);
    }

    #[tokio::test]
    async fn the_whole_group_is_killed_at_the_deadline() {
        let start = Instant::now();
        let output = run(sh("sleep 60 & echo $!; wait").timeout_ms(200)).await.unwrap();
        assert!(output.timed_out && !output.ok() && start.elapsed() < Duration::from_secs(5));
        let child: i32 = output.stdout.lossy().trim().parse().unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let state = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }

    #[tokio::test]
    async fn a_daemon_left_behind_does_not_hold_the_answer() {
        let start = Instant::now();
        let output = run(sh("sleep 2 & echo started")).await.unwrap();
        assert!(output.ok() && start.elapsed() < Duration::from_secs(1));
    }

    #[tokio::test]
    async fn the_environment_is_minimal() {
        let output = run(Exec::new(["env"])).await.unwrap();
        let names: Vec<String> = output
            .stdout
            .lossy()
            .lines()
            .map(|l| l.split('=').next().unwrap().to_owned())
            .collect();
        assert!(
            names
                .iter()
                .all(|name| ["PATH", "HOME", "LANG", "LC_ALL"].contains(&name.as_str())),
            "{names:?}"
        );
    }
}
