use std::path::PathBuf;

/// What can go wrong while reading or issuing; each says what was attempted and how to go on. Never holds key material.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("reading {what}: {reason}")]
    Parse { what: String, reason: String },
    #[error("reading the private key: {0}")]
    Key(String),
    #[error("using the {ca} CA: {reason}")]
    Authority { ca: String, reason: String },
    #[error("issuing {what}: {reason}")]
    Issue { what: String, reason: String },
    #[error("the system gave no random bytes")]
    Random,
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}: {reason}", path.display())]
    Store { path: PathBuf, reason: String },
}

impl Error {
    pub(crate) fn parse(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Parse {
            what: what.into(),
            reason: reason.to_string(),
        }
    }

    pub(crate) fn issue(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Issue {
            what: what.into(),
            reason: reason.to_string(),
        }
    }
}
