//! Why a run could not begin. What goes wrong while it runs is part of its [`crate::Outcome`].

use std::path::PathBuf;

use crate::lock::Holder;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{action} {}: {source}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },

    #[error(transparent)]
    Pki(#[from] quorate_pki::Error),

    #[error("another run works on this cluster: {}", holders.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Locked { holders: Vec<Holder> },

    /// `reasons`: of those that did not answer.
    #[error("{given} of {of} control planes gave the cluster's lock, which takes {}: {}", of / 2 + 1, reasons.join("; "))]
    NoLock {
        given: usize,
        of: usize,
        reasons: Vec<String>,
    },

    #[error("there is no run {id} in {}", folder.display())]
    NoSuchRun { id: String, folder: PathBuf },

    #[error("{}: {reason}", path.display())]
    Journal { path: PathBuf, reason: String },

    /// A second authority for a living cluster would lock everybody out of it.
    #[error("{machine} belongs to a cluster whose authorities are not those of {}", folder.display())]
    ForeignCluster { folder: PathBuf, machine: String },
}

impl Error {
    /// The way out, where there is a usual one.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Locked { holders } if holders.iter().all(|holder| holder.expired) => "its time has run out; run again".into(),
            Self::Locked { .. } => "wait for it to end; if it is certainly dead, take the lock with --steal: its changes are refused from then on".into(),
            Self::NoLock { given: 0, .. } => "see why they could not be reached; `quorate status` asks each".into(),
            Self::NoLock { .. } => "mend them and run again; if they are lost for good and it is certain that no other run works on this cluster, --steal goes on with those that answer".into(),
            Self::NoSuchRun { .. } => "the journals are in `runs` of the operator's folder".into(),
            Self::ForeignCluster { .. } => "fetch the authorities back with `quorate recover`, or `quorate reset` the machines first".into(),
            Self::Io { .. } | Self::Pki(_) | Self::Journal { .. } => return None,
        })
    }
}

pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.into();
    move |source| Error::Io { action, path, source }
}
