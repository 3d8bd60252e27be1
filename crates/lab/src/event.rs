use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// What is going on, for whoever waits. `Display` gives one plain line.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    RootBuilding {
        suite: String,
        path: PathBuf,
    },
    RootProgress {
        line: String,
    },
    RootReady {
        path: PathBuf,
    },
    NetworkReady {
        subnet: String,
        operator: String,
    },
    Storage {
        copied: bool,
    },
    Starting {
        machine: String,
    },
    Kept {
        machine: String,
    },
    /// Its sshd answers; `took` counts from when the first machine was started.
    Ready {
        machine: String,
        took: Duration,
    },
    Wrote {
        path: PathBuf,
    },
    /// Changed by someone since it was written, so it was left alone.
    LeftAlone {
        path: PathBuf,
    },
    Stopped {
        machines: usize,
    },
    /// There was nothing to take down.
    NeverWas {
        lab: String,
    },
    Gone {
        lab: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootBuilding { suite, path } => write!(
                f,
                "making the machines' root tree from Debian {suite}, once, a few minutes ({})",
                path.display()
            ),
            Self::RootProgress { line } => write!(f, "root tree: {line}"),
            Self::RootReady { path } => write!(f, "root tree ready ({})", path.display()),
            Self::NetworkReady { subnet, operator } => {
                write!(f, "network {subnet} ready, you are {operator} in it")
            }
            Self::Storage { copied: true } => {
                f.write_str("the file system here cannot carry overlays: each machine gets a copy of the root tree")
            }
            Self::Storage { copied: false } => f.write_str("disks are overlays over the root tree"),
            Self::Starting { machine } => write!(f, "{machine} switched on"),
            Self::Kept { machine } => write!(f, "{machine} is on already"),
            Self::Ready { machine, took } => {
                write!(f, "{machine} answers over SSH after {:.2} s", took.as_secs_f64())
            }
            Self::Wrote { path } => write!(f, "wrote {}", path.display()),
            Self::LeftAlone { path } => write!(f, "{} was changed by hand: left alone", path.display()),
            Self::Stopped { machines } => write!(f, "{machines} machines switched off"),
            Self::NeverWas { lab } => write!(f, "there was no lab {lab}"),
            Self::Gone { lab } => write!(f, "lab {lab} is gone"),
        }
    }
}
