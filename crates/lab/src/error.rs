use std::io;
use std::path::PathBuf;

/// What went wrong, on which machine or path, and the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a lab needs root (namespaces, mounts, cgroups): run the same command with sudo")]
    NotRoot,

    #[error("{program} was not found; on Debian and Ubuntu: apt-get install {package}")]
    MissingProgram {
        program: &'static str,
        package: &'static str,
    },

    #[error("\"{0}\" is not a lab name: 1 to 30 of a-z, 0-9 and -, beginning with a letter")]
    BadName(String),

    #[error(
        "{path} cannot hold a lab: overlay mounts do not take ':', ',' or '\\' in a path; choose another directory with XDG_STATE_HOME or XDG_CACHE_HOME"
    )]
    BadPath { path: PathBuf },

    #[error("there is no lab \"{name}\"{}; `quorate lab up {name}` makes one", known_labs(.known))]
    NoSuchLab { name: String, known: Vec<String> },

    #[error("no lab is up; `quorate lab up` makes one")]
    NoLab,

    #[error("several labs exist ({}): say which one", .0.join(", "))]
    WhichLab(Vec<String>),

    #[error("lab {lab} has no machine \"{machine}\"; it has {}", .known.join(", "))]
    NoSuchMachine {
        lab: String,
        machine: String,
        known: Vec<String>,
    },

    #[error(
        "lab {lab} already has {have} {what}, {wanted} were asked for; machines can be added but not taken away: `quorate lab down {lab}` first"
    )]
    Shrink {
        lab: String,
        what: &'static str,
        have: usize,
        wanted: usize,
    },

    #[error(
        "lab {lab} was made with {what} {have}, now {wanted} is asked for: `quorate lab down {lab}` first, or give the new lab another name"
    )]
    Differs {
        lab: String,
        what: &'static str,
        have: String,
        wanted: String,
    },

    #[error("a lab holds at most {max} machines (addresses .11 to .99, .100 is the VIP)")]
    TooMany { max: usize },

    #[error("a lab needs at least one machine: --machines 1")]
    NoMachines,

    #[error("\"{0}\" is not a subnet for a lab: an IPv4 /24 such as 10.77.0.0/24")]
    BadSubnet(String),

    #[error("{path}: {needed_mib} MiB are needed, {free_mib} MiB are free; make room or point {variable} elsewhere")]
    NoSpace {
        path: PathBuf,
        needed_mib: u64,
        free_mib: u64,
        variable: &'static str,
    },

    #[error(
        "debootstrap of {suite} failed ({status}); its last lines:\n{tail}\n(see {log}; another mirror: --mirror URL)"
    )]
    Debootstrap {
        suite: String,
        status: String,
        tail: String,
        log: PathBuf,
    },

    #[error("machine {machine} did not boot: {reason}; the end of its console ({log}):\n{tail}")]
    Boot {
        machine: String,
        reason: String,
        tail: String,
        log: PathBuf,
    },

    #[error(
        "machine {machine} could not be switched off: processes {pids:?} are still there {waited_ms} ms after SIGKILL"
    )]
    StillRunning {
        machine: String,
        pids: Vec<u32>,
        waited_ms: u128,
    },

    #[error("machine {machine} is off; `quorate lab on {machine}` starts it")]
    Off { machine: String },

    #[error("`{command}` failed ({status}): {stderr}")]
    Command {
        command: String,
        status: String,
        stderr: String,
    },

    #[error("{operation} {path}: {source}")]
    File {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("{path} is not a lab's description: {reason}; `quorate lab down {lab}` clears it away")]
    BadDescription { path: PathBuf, lab: String, reason: String },

    #[error("entering the network of lab {lab}: {source}; `quorate lab up {lab}` repairs it")]
    Enter { lab: String, source: io::Error },

    #[error("connecting to {host} port {port} in lab {lab}: {source}")]
    Connect {
        lab: String,
        host: String,
        port: u16,
        source: io::Error,
    },

    #[error("\"{host}\" is neither an address nor a machine of lab {lab}")]
    UnknownHost { lab: String, host: String },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// For `map_err`: an I/O error with what was being done to which path.
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            operation,
            path,
            source,
        }
    }
}

fn known_labs(known: &[String]) -> String {
    if known.is_empty() {
        String::new()
    } else {
        format!(" (there are: {})", known.join(", "))
    }
}
