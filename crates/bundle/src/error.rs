use std::{io, path::PathBuf};

/// Why a bundle could not be built, opened or read. Each names the operation and, where there is one, the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{op} {}: {source}", path.display())]
    Io {
        op: &'static str,
        path: PathBuf,
        source: io::Error,
    },

    #[error("no recipe for Kubernetes {wanted}; there are recipes for {}", known.join(", "))]
    UnknownVersion { wanted: String, known: Vec<String> },

    #[error("recipe {name}: {reason}")]
    Recipe { name: String, reason: String },

    #[error("build {component} from source: {reason}")]
    Source { component: String, reason: String },

    /// Everything a build needs and does not find, at once.
    #[error("cannot build from {from}:\n{}", list(missing))]
    Missing { from: String, missing: Vec<String> },

    #[error("download {url}: {reason}{}", attempts_text(*attempts))]
    Download { url: String, reason: String, attempts: u32 },

    #[error("{what}: SHA-256 is {found}, expected {expected}; nothing of it was used")]
    WrongSum {
        what: String,
        found: String,
        expected: String,
    },

    #[error("image {image}: {reason}")]
    Image { image: String, reason: String },

    #[error("{} is not a bundle: {reason}", path.display())]
    NotABundle { path: PathBuf, reason: String },

    #[error("the bundle has no blob named {name:?}; it has {}", known.join(", "))]
    NoSuchBlob { name: String, known: Vec<String> },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// `map_err` helper: what was being done, to which path.
pub(crate) fn io_error(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { op, path, source }
}

fn list(items: &[String]) -> String {
    items
        .iter()
        .map(|item| format!("  - {item}"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn attempts_text(attempts: u32) -> String {
    if attempts > 1 {
        format!(" (after {attempts} attempts)")
    } else {
        String::new()
    }
}
