//! What can go wrong, in words that name the machine, the operation and the way out.

use std::{fmt, io};

use serde::{Deserialize, Serialize};

/// Why an operation on a machine did not happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct MachineError {
    pub machine: String,
    /// As [`crate::Request::operation`] or a step of connecting.
    pub operation: String,
    pub kind: ErrorKind,
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// An error as the machine itself reports it; it does not know what it is called.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RemoteError {
    pub kind: ErrorKind,
    pub message: String,
    pub hint: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// No connection could be made.
    Unreachable,
    /// The connection broke: whether the operation took place is unknown until asked.
    ConnectionLost,
    /// Not in known_hosts.
    HostKeyUnknown(Box<HostKey>),
    /// Another key than the known one.
    HostKeyChanged,
    AuthFailed,
    /// sudo wants a password that was not given, or not that one.
    SudoPassword,
    /// sudo is absent or does not let this user become root.
    SudoDenied,
    WrongArch(Box<WrongArch>),
    NoSpace,
    /// The file system forbids running programs.
    NoExec,
    ReadOnly,
    PermissionDenied,
    NotFound,
    /// The other side does not speak our protocol.
    Protocol,
    NoSystemd,
    /// Another run holds the lock now.
    LockLost,
    Timeout,
    /// Content does not have the promised hash.
    Corrupt,
    /// The request itself makes no sense, e.g. a relative path.
    Invalid,
    Failed,
}

/// What a host nobody knows yet shows, and how to come to know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostKey {
    /// Kind and hash, e.g. `ssh-ed25519 SHA256:…`.
    pub fingerprint: String,
    /// For the operator to type.
    pub accept_command: String,
}

/// Architectures as `uname -m` names them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrongArch {
    pub expected: String,
    pub found: String,
}

impl MachineError {
    pub fn new(machine: &str, operation: &str, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            machine: machine.into(),
            operation: operation.into(),
            kind,
            message: message.into(),
            hint: None,
        }
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn remote(machine: &str, operation: &str, error: RemoteError) -> Self {
        let RemoteError { kind, message, hint } = error;
        Self {
            machine: machine.into(),
            operation: operation.into(),
            kind,
            message,
            hint,
        }
    }

    /// The machine cannot be talked to (any more), whatever the operation.
    pub fn is_unreachable(&self) -> bool {
        matches!(
            self.kind,
            ErrorKind::Unreachable
                | ErrorKind::ConnectionLost
                | ErrorKind::HostKeyUnknown(_)
                | ErrorKind::HostKeyChanged
                | ErrorKind::AuthFailed
                | ErrorKind::SudoPassword
                | ErrorKind::SudoDenied
                | ErrorKind::Protocol
        )
    }

    /// The operation may or may not have taken place.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self.kind, ErrorKind::ConnectionLost | ErrorKind::Timeout)
    }
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.machine, self.operation, self.message)
    }
}

impl RemoteError {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
        }
    }

    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Failed, message)
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// An I/O error met while doing something with `what` (a path, a program, an address).
    pub fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        let made = |kind| Self::new(kind, format!("{what}: {error}"));
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => made(ErrorKind::NoSpace)
                .hint("free space on that file system, then run again; nothing was half-replaced"),
            io::ErrorKind::ReadOnlyFilesystem => made(ErrorKind::ReadOnly)
                .hint("the file system is mounted read-only: see `dmesg` for the reason, remount it, run again"),
            io::ErrorKind::PermissionDenied => made(ErrorKind::PermissionDenied),
            io::ErrorKind::NotFound => made(ErrorKind::NotFound),
            io::ErrorKind::TimedOut => made(ErrorKind::Timeout),
            _ => made(ErrorKind::Failed),
        }
    }
}
