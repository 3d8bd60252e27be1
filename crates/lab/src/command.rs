//! Running the system's own programs and saying what they complained about.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::{Error, Result};

/// Runs to the end with `input` on stdin; its stdout, or an error with its stderr.
pub(crate) fn run(command: &mut Command, input: &str) -> Result<String> {
    let failed = |status: String, stderr: String| Error::Command {
        command: shown(command),
        status,
        stderr,
    };
    let mut child = Command::new(command.get_program());
    child
        .args(command.get_args())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = crate::sys::die_with_parent(&mut child)
        .spawn()
        .map_err(|e| failed("not started".into(), e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading its input says why on stderr.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|e| failed("lost".into(), e.to_string()))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(failed(
            output.status.to_string(),
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        ))
    }
}

/// Where a program is, looking also where `PATH` of an unprivileged shell does not.
pub(crate) fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(Into::into))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

/// `'` around what a shell would take apart.
pub(crate) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@%+,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| quote(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_says_is_kept() {
        let error = run(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"]), "")
            .unwrap_err()
            .to_string();
        assert!(error.contains("no such thing") && error.contains("3"), "{error}");
        assert_eq!(run(&mut Command::new("cat"), "x").unwrap(), "x");
    }

    #[test]
    fn quoting() {
        assert_eq!(quote("/a/b-1.c"), "/a/b-1.c");
        assert_eq!(quote("it's $x"), r"'it'\''s $x'");
        assert_eq!(quote(""), "''");
    }
}
