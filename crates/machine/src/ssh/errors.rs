//! What ssh, sudo and the shell on the other side said, turned into one of the known failures.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt},
    sync::Notify,
};

use super::{CONNECT_TIMEOUT, SshMachine, bootstrap::Failure};
use crate::{
    error::{ErrorKind, HostKey, MachineError, WrongArch},
    machine::last_lines,
};

/// Enough for the longest of ssh's warnings.
const KEPT: usize = 8 << 10;

/// The end of what a process writes to stderr.
#[derive(Default)]
pub(super) struct Tail {
    text: Mutex<(Vec<u8>, bool)>,
    more: Notify,
}

impl Tail {
    pub(super) fn follow(mut stderr: impl AsyncRead + Unpin + Send + 'static) -> Arc<Self> {
        let tail = Arc::new(Self::default());
        let writer = tail.clone();
        tokio::spawn(async move {
            let mut buffer = vec![0; 4096];
            loop {
                let got = stderr.read(&mut buffer).await.unwrap_or(0);
                {
                    let (text, ended) = &mut *writer.lock();
                    text.extend_from_slice(&buffer[..got]);
                    let excess = text.len().saturating_sub(KEPT);
                    text.drain(..excess);
                    *ended = got == 0;
                }
                writer.more.notify_waiters();
                if got == 0 {
                    return;
                }
            }
        });
        tail
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().0).trim().to_owned()
    }

    /// Until `pattern` was seen `count` times; for ever if that does not happen.
    pub(super) async fn contains(&self, pattern: &str, count: usize) {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            if self.text().matches(pattern).count() >= count {
                return;
            }
            more.await;
        }
    }

    /// Until the process has said all it had to say, but not for long.
    pub(super) async fn settle(&self) {
        let ended = async {
            loop {
                let more = self.more.notified();
                tokio::pin!(more);
                more.as_mut().enable();
                if self.lock().1 {
                    return;
                }
                more.await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), ended).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Vec<u8>, bool)> {
        self.text.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pub(super) async fn explain(machine: &SshMachine, failure: Failure, status: Option<i32>, said: &str) -> MachineError {
    let target = &machine.target;
    let error = |kind, message: String| MachineError::new(&target.name, "connect", kind, message);
    let place = |kind, message: String| MachineError::new(&target.name, "place the program", kind, message);
    let has = |words: &[&str]| words.iter().any(|word| said.contains(word));
    let brief = last_lines(said, 3);

    if has(&["REMOTE HOST IDENTIFICATION HAS CHANGED", "host key for", "Host key for"]) && has(&["has changed"]) {
        return error(ErrorKind::HostKeyChanged, "its host key is not the known one".into()).hint(format!(
            "if the machine was reinstalled, remove the old key with `ssh-keygen -R {}` and connect once by hand; if not, somebody else answers at its address",
            host_with_port(machine)
        ));
    }
    if has(&["Host key verification failed", "host key is known for"]) {
        let fingerprint = fingerprint(machine).await.unwrap_or_else(|| "unknown".into());
        let accept_command = accept_command(machine);
        let message = format!("its host key is not known; it shows {fingerprint}");
        let hint = format!(
            "compare the fingerprint with the machine's own (`ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub`), then run `{accept_command}` or use --accept-new-host-keys"
        );
        return error(
            ErrorKind::HostKeyUnknown(Box::new(HostKey {
                fingerprint,
                accept_command,
            })),
            message,
        )
        .hint(hint);
    }
    if has(&[
        "Permission denied (",
        "Too many authentication failures",
        "No supported authentication methods",
    ]) {
        return error(ErrorKind::AuthFailed, brief).hint("`ssh` to the machine must work without questions: add the key to its authorized_keys, or to the agent (`ssh-add`)");
    }
    match &failure {
        Failure::PasswordWanted { given: true } => {
            return error(ErrorKind::SudoPassword, "sudo does not accept the password".into())
                .hint("run again and type it anew; all machines are given the same one");
        }
        Failure::PasswordWanted { given: false } => {
            return sudo_password(error(ErrorKind::SudoPassword, "sudo wants a password".into()));
        }
        Failure::NoSudo => {
            return error(
                ErrorKind::SudoDenied,
                "the user is not root and sudo is not installed".into(),
            )
            .hint("log in as root, or install sudo");
        }
        Failure::WrongArch { found } => {
            let expected = std::env::consts::ARCH.to_owned();
            let message = format!("the machine is {found}, this program is for {expected}");
            return place(
                ErrorKind::WrongArch(Box::new(WrongArch {
                    expected,
                    found: found.clone(),
                })),
                message,
            )
            .hint(format!("use a quorate built for {found}"));
        }
        Failure::Write(why) => return write_failed(place, why, &brief),
        Failure::Damaged(sum) => {
            return place(ErrorKind::Corrupt, format!("the program arrived damaged (hash {sum})")).hint("run again");
        }
        _ => {}
    }
    if has(&[
        "a password is required",
        "a terminal is required",
        "no password was provided",
    ]) {
        return sudo_password(error(ErrorKind::SudoPassword, "sudo wants a password".into()));
    }
    if has(&["you must have a tty", "must be run from a terminal"]) {
        return error(ErrorKind::SudoDenied, "sudo wants a terminal".into())
            .hint("remove `requiretty` for this user in sudoers");
    }
    if has(&[
        "is not in the sudoers file",
        "may not run sudo",
        "is not allowed to execute",
        "is not allowed to run sudo",
    ]) {
        return error(ErrorKind::SudoDenied, brief)
            .hint("let this user run `sh` as root in sudoers, or log in as root");
    }
    if status == Some(126) || has(&["Permission denied", "Exec format error"]) && matches!(failure, Failure::NoHello(_))
    {
        if has(&["Exec format error"]) {
            return place(ErrorKind::Corrupt, brief).hint("delete /var/lib/quorate/bin on the machine and run again");
        }
        return place(ErrorKind::NoExec, format!("the program cannot be run: {brief}"))
            .hint("the file system of /var/lib is mounted noexec: remount it with exec, or mount another one at /var/lib/quorate");
    }
    // 255 is ssh's own failure, not that of the command.
    if status == Some(255) && !brief.is_empty() {
        let hint = if has(&["timed out"]) {
            format!(
                "no answer within {} s: is the machine up, and does a firewall let SSH through?",
                CONNECT_TIMEOUT.as_secs()
            )
        } else if has(&["Could not resolve"]) {
            "check the address in the cluster file, or the Host in ssh_config".into()
        } else {
            format!("try `{}` by hand", ssh_command(machine, ""))
        };
        return error(ErrorKind::Unreachable, brief).hint(hint);
    }
    let message = match failure {
        Failure::Silent(after) => {
            return error(
                ErrorKind::Timeout,
                format!("no conversation within {} s; {brief}", after.as_secs()),
            );
        }
        Failure::Noise(noise) => format!("something else answered: {}", last_lines(&noise, 3)),
        Failure::NoHello(reason) => format!("the program did not say hello: {reason}; {brief}"),
        _ => format!(
            "the connection ended before the program ran (status {}); {brief}",
            status.map_or("unknown".into(), |status| status.to_string())
        ),
    };
    error(ErrorKind::Protocol, message).hint(format!(
        "try `{}` by hand: it must run commands without printing anything else",
        ssh_command(machine, " true")
    ))
}

fn write_failed(place: impl Fn(ErrorKind, String) -> MachineError, why: &str, said: &str) -> MachineError {
    let message = if why.is_empty() {
        said.to_owned()
    } else {
        why.to_owned()
    };
    if message.contains("No space left") || message.contains("quota exceeded") {
        return place(ErrorKind::NoSpace, message).hint("free some 50 MB in /var/lib/quorate");
    }
    if message.contains("Read-only file system") {
        return place(ErrorKind::ReadOnly, message).hint("/var/lib/quorate must be writable: see `dmesg`, remount it");
    }
    place(ErrorKind::Failed, message)
}

fn sudo_password(error: MachineError) -> MachineError {
    error.hint("use --ask-sudo-password, or allow this user NOPASSWD in sudoers")
}

/// The key's fingerprint as ssh shows it in its debugging output; through the same jump hosts as the connection itself.
async fn fingerprint(machine: &SshMachine) -> Option<String> {
    let mut ssh = tokio::process::Command::new("ssh");
    // The first value given for an option counts.
    ssh.args(["-o", "LogLevel=DEBUG1"])
        .args(machine.options())
        .arg("--")
        .arg(&machine.target.host)
        .arg("true");
    ssh.stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = tokio::time::timeout(CONNECT_TIMEOUT * 2, ssh.output())
        .await
        .ok()?
        .ok()?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    text.lines()
        .rev()
        .find_map(|line| Some(line.split_once("Server host key: ")?.1.trim().to_owned()))
}

fn accept_command(machine: &SshMachine) -> String {
    ssh_command(machine, " true").replacen("ssh ", "ssh -o StrictHostKeyChecking=ask ", 1)
}

/// What a person would type.
fn ssh_command(machine: &SshMachine, command: &str) -> String {
    let target = &machine.target;
    let mut words = vec!["ssh".to_owned()];
    if let Some(file) = &target.config_file {
        words.push(format!("-F {}", file.display()));
    }
    if let Some(file) = &target.identity_file {
        words.push(format!("-i {}", file.display()));
    }
    if let Some(port) = target.port {
        words.push(format!("-p {port}"));
    }
    let user = target.user.as_ref().map(|user| format!("{user}@")).unwrap_or_default();
    words.push(format!("{user}{}", target.host));
    words.join(" ") + command
}

fn host_with_port(machine: &SshMachine) -> String {
    match machine.target.port {
        Some(port) if port != 22 => format!("'[{}]:{port}'", machine.target.host),
        _ => machine.target.host.clone(),
    }
}
