//! Standard output is data, standard error is talk. A reader that goes away is no error.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

/// Exit codes: the interface of every verb.
pub(crate) const FAILED: u8 = 1;
pub(crate) const USER: u8 = 2;
/// There is something to do, or a check does not hold.
pub(crate) const DRIFT: u8 = 3;

/// Ctrl-C, as shells count it.
pub(crate) const INTERRUPTED: u8 = 130;

/// What the user gave us cannot be used; nothing was changed.
#[derive(Debug)]
pub(crate) struct UserError {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl UserError {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
        }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Checks that must hold beforehand do not; nothing was changed.
#[derive(Debug)]
pub(crate) struct Unmet;

impl fmt::Display for Unmet {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("checks do not hold, nothing was changed")
    }
}

impl std::error::Error for Unmet {}

impl fmt::Display for UserError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for UserError {}

/// Prints an error with its causes and hint; returns the exit code that says whose it is.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(Hint(hint)) = error.downcast_ref::<Hint>() {
        let causes: Vec<String> = error.chain().skip(1).map(ToString::to_string).collect();
        err(format_args!("error: {}", causes.join(": ")));
        err(format_args!("hint: {hint}"));
        return ExitCode::from(FAILED);
    }
    err(format_args!("error: {error:#}"));
    if error.is::<Unmet>() {
        err(format_args!(
            "hint: mend what is listed above; --ignore-checks goes on all the same"
        ));
        return ExitCode::from(DRIFT);
    }
    match error.downcast_ref::<UserError>() {
        Some(user) => {
            if let Some(hint) = &user.hint {
                err(format_args!("hint: {hint}"));
            }
            ExitCode::from(USER)
        }
        None => ExitCode::from(FAILED),
    }
}

/// An error of a run, with its hint on a line of its own.
pub(crate) fn hinted(error: quorate_run::Error) -> anyhow::Error {
    let hint = error.hint();
    let error = anyhow::Error::from(error);
    match hint {
        Some(hint) => error.context(Hint(hint)),
        None => error,
    }
}

/// A hint that travels with an error.
#[derive(Debug)]
struct Hint(String);

impl fmt::Display for Hint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Ends the program at once: the user asked twice.
#[expect(clippy::exit, reason = "a second Ctrl-C must not wait for anything")]
pub(crate) fn leave(code: u8) -> ! {
    std::process::exit(i32::from(code))
}

/// A password typed on the terminal, not echoed.
pub(crate) fn password(prompt: &str) -> anyhow::Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let terminal = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(|error| UserError::new(format!("no terminal to ask for a password on: {error}")))?;
    let before = tcgetattr(&terminal)?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&terminal, OptionalActions::Now, &silent)?;
    let _ = write!(&terminal, "{prompt}");
    let mut line = String::new();
    let read = std::io::BufRead::read_line(&mut std::io::BufReader::new(&terminal), &mut line);
    let _ = writeln!(&terminal);
    tcsetattr(&terminal, OptionalActions::Now, &before)?;
    read?;
    Ok(line.trim_end_matches('\n').to_owned())
}

/// The first error of standard output: whatever the verb did is done, but who asked has not read all of it.
static UNWRITTEN: OnceLock<io::Error> = OnceLock::new();

pub(crate) fn out(line: fmt::Arguments<'_>) {
    data(format!("{line}\n").as_bytes());
}

pub(crate) fn data(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush())
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let _ = UNWRITTEN.set(error);
    }
}

/// The verb's exit code, unless its data is lost (a full disk).
pub(crate) fn ended(code: ExitCode) -> ExitCode {
    match UNWRITTEN.get() {
        Some(error) if code == ExitCode::SUCCESS => {
            err(format_args!("error: standard output: {error}"));
            ExitCode::from(FAILED)
        }
        _ => code,
    }
}

pub(crate) fn err(line: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// Colour on standard error: a terminal, and nobody said `NO_COLOR`.
pub(crate) fn colour() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Asks on the terminal; without one the answer is no.
pub(crate) fn confirm(question: &str) -> bool {
    if !std::io::stdin().is_terminal() {
        return false;
    }
    let _ = write!(std::io::stderr().lock(), "{question} [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

#[macro_export]
macro_rules! out {
    ($($argument:tt)*) => { $crate::console::out(format_args!($($argument)*)) };
}

#[macro_export]
macro_rules! err {
    ($($argument:tt)*) => { $crate::console::err(format_args!($($argument)*)) };
}
