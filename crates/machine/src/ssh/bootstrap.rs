//! Getting the program to run on the other side, within the one connection.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::{ChildStdin, ChildStdout},
};

use super::{ProgramFile, SshTarget, errors::Tail};
use crate::local::STATE_DIR;

/// Begins every line our script prints; whatever a login shell prints before it is skipped.
const MARK: &str = "quorate-bootstrap:";
/// sudo's prompt, by which its wish for a password is recognised in any language.
const PROMPT: &str = "quorate-sudo-password:";
/// More than any banner.
const LONGEST_NOISE: usize = 64 << 10;

/// Why no conversation came about.
#[derive(Debug)]
pub(super) enum Failure {
    /// The connection ended before our script said a word.
    Ended,
    /// sudo asks for a password and there is none, or asks again.
    PasswordWanted {
        given: bool,
    },
    NoSudo,
    WrongArch {
        found: String,
    },
    /// The program could not be written; with the machine's words.
    Write(String),
    /// What arrived is not what was sent.
    Damaged(String),
    /// The program was started and did not say hello.
    NoHello(io::Error),
    Noise(String),
    Silent(Duration),
}

/// The command for the login shell, whichever shell that is: one word for `sh`, no single quotes or newlines in it.
pub(super) fn command(target: &SshTarget, program: &ProgramFile) -> String {
    let as_root = as_root(target.state_dir.as_deref().unwrap_or(STATE_DIR), program);
    let sudo = if target.sudo_password.is_some() {
        format!("sudo -S -p {PROMPT}")
    } else {
        "sudo -n".to_owned()
    };
    // The inner script travels as "$1": no second level of quotes.
    format!(
        "exec sh -c 'if [ \"$(id -u)\" = 0 ]; then exec sh -c \"$1\"; fi; \
         command -v sudo >/dev/null 2>&1 || {{ echo \"{MARK} nosudo\"; exit 1; }}; \
         LC_ALL=C; export LC_ALL; exec {sudo} sh -c \"$1\"' sh '{as_root}'"
    )
}

/// Runs as root. `noexec`, a full or read-only disk and another architecture are told apart by what is printed last.
fn as_root(state_dir: &str, program: &ProgramFile) -> String {
    let ProgramFile { size, sha256, .. } = program;
    let arch = std::env::consts::ARCH;
    format!(
        "umask 022; d=\"{state_dir}/bin/{sha256}\"; b=\"$d/quorate\"; t=\"$d/.new.$$\"; m=\"$(uname -m)\"; \
         f() {{ echo \"{MARK} write $1\"; rm -f \"$t\"; exit 1; }}; \
         if [ \"$m\" != {arch} ]; then echo \"{MARK} arch $m\"; exit 1; fi; \
         if [ -x \"$b\" ] && [ \"$(wc -c < \"$b\")\" -eq {size} ]; then echo \"{MARK} have\"; \
         else e=\"$(mkdir -p \"$d\" 2>&1)\" || f \"$e\"; e=\"$( {{ : > \"$t\"; }} 2>&1)\" || f \"$e\"; echo \"{MARK} need\"; \
         e=\"$( {{ head -c {size} > \"$t\"; }} 2>&1)\" || f \"$e\"; \
         s=\"$(sha256sum < \"$t\" 2>/dev/null)\"; \
         case \"$s\" in {sha256}*) ;; \"\") [ \"$(wc -c < \"$t\")\" -eq {size} ] || f \"incomplete\";; *) echo \"{MARK} damaged $s\"; rm -f \"$t\"; exit 1;; esac; \
         e=\"$(chmod 755 \"$t\" 2>&1 && mv -f \"$t\" \"$b\" 2>&1)\" || f \"$e\"; \
         echo \"{MARK} have\"; fi; \
         exec \"$b\" remote"
    )
}

/// Until the program runs. Returns the stream on which its hello follows.
pub(super) async fn place(
    target: &SshTarget,
    program: &ProgramFile,
    stdin: &mut ChildStdin,
    stdout: ChildStdout,
    stderr: &Tail,
) -> Result<BufReader<ChildStdout>, Failure> {
    let mut stdout = BufReader::with_capacity(64 << 10, stdout);
    let first = match &target.sudo_password {
        None => word(&mut stdout).await?,
        Some(password) => {
            let mut asked = 0;
            let answer = word(&mut stdout);
            tokio::pin!(answer);
            loop {
                tokio::select! {
                    answer = &mut answer => break answer?,
                    () = stderr.contains(PROMPT, asked + 1) => {
                        if asked > 0 {
                            return Err(Failure::PasswordWanted { given: true });
                        }
                        asked += 1;
                        let line = format!("{}\n", password.0);
                        stdin.write_all(line.as_bytes()).await.map_err(|_| Failure::Ended)?;
                        stdin.flush().await.map_err(|_| Failure::Ended)?;
                    }
                }
            }
        }
    };
    if first == "need" {
        send(program, stdin).await?;
        let second = word(&mut stdout).await?;
        return understood(&second).map(|()| stdout);
    }
    understood(&first).map(|()| stdout)
}

fn understood(word: &str) -> Result<(), Failure> {
    match word.split_once(' ').unwrap_or((word, "")) {
        ("have", _) => Ok(()),
        ("nosudo", _) => Err(Failure::NoSudo),
        ("arch", found) => Err(Failure::WrongArch {
            found: found.to_owned(),
        }),
        ("write", why) => Err(Failure::Write(why.to_owned())),
        ("damaged", sum) => Err(Failure::Damaged(sum.to_owned())),
        _ => Err(Failure::Noise(word.to_owned())),
    }
}

/// Raw: gzip would save time only below some 300 Mbit/s, and cost it above.
async fn send(program: &ProgramFile, stdin: &mut ChildStdin) -> Result<(), Failure> {
    let mut file = tokio::fs::File::open(&program.path)
        .await
        .map_err(|error| Failure::Write(format!("{}: {error}", program.path.display())))?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let got = file
            .read(&mut buffer)
            .await
            .map_err(|error| Failure::Write(error.to_string()))?;
        if got == 0 {
            // A write that fails is explained by what the script prints, or by how ssh ended.
            let _ = stdin.flush().await;
            return Ok(());
        }
        if stdin.write_all(&buffer[..got]).await.is_err() {
            return Ok(());
        }
    }
}

/// The next line of our script, without its mark. A message may have several lines; the first is enough.
async fn word(stdout: &mut (impl AsyncBufRead + Unpin)) -> Result<String, Failure> {
    let mut noise = Vec::new();
    loop {
        let mut line = Vec::new();
        let got = (&mut *stdout)
            .take(LONGEST_NOISE as u64)
            .read_until(b'\n', &mut line)
            .await
            .map_err(|_| Failure::Ended)?;
        let text = String::from_utf8_lossy(&line);
        if let Some((_, word)) = text.split_once(MARK) {
            return Ok(word.trim().to_owned());
        }
        noise.extend_from_slice(&line);
        if got == 0 || noise.len() > LONGEST_NOISE {
            return Err(if noise.is_empty() {
                Failure::Ended
            } else {
                Failure::Noise(String::from_utf8_lossy(&noise).trim().to_owned())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program() -> ProgramFile {
        ProgramFile {
            path: "/bin/true".into(),
            size: 3,
            sha256: "ab".repeat(32),
        }
    }

    #[test]
    fn the_command_is_one_line_that_any_login_shell_takes() {
        let command = command(&SshTarget::default(), &program());
        assert_eq!(command.matches('\'').count(), 4, "two quoted words: {command}");
        assert!(!command.contains('\n') && !command.contains('!'.to_string().repeat(2).as_str()));
        let status = std::process::Command::new("sh")
            .args(["-n", "-c", &command])
            .status()
            .unwrap();
        assert!(status.success());
        let inner = as_root(STATE_DIR, &program());
        assert!(
            std::process::Command::new("sh")
                .args(["-n", "-c", &inner])
                .status()
                .unwrap()
                .success()
        );
    }

    #[tokio::test]
    async fn banners_are_skipped() {
        let mut stream = &b"Welcome!\nLast login: today\nquorate-bootstrap: need\nrest"[..];
        assert_eq!(word(&mut stream).await.unwrap(), "need");
        assert_eq!(stream, b"rest");
        let mut noise = &b"This account is currently not available.\n"[..];
        assert!(matches!(word(&mut noise).await, Err(Failure::Noise(text)) if text.contains("not available")));
        assert!(matches!(word(&mut &b""[..]).await, Err(Failure::Ended)));
    }
}
