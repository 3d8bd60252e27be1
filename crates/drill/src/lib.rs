//! Failure scenarios, and what clients saw while they happened.
//!
//! ```text
//! scenario (data) ─▶ Drill: probes start ─▶ dead man's timer ─▶ fault ─▶ hold ─▶ taken back ─▶ all checks hold
//!                          │ samples, VIP owners, leaders                                     │ writes read back
//!                          └──────────────────────▶ measure ─▶ Outcome ─▶ Report ◀────────────┘
//! ```
//! It works over SSH from outside the cluster: a tool inside would depend on what it breaks. Nothing here prints.

pub mod advertise;
pub mod chaos;
pub mod coverage;
mod drill;
mod fault;
mod holders;
pub mod late;
pub mod measure;
mod observe;
pub mod power;
pub mod probe;
mod probes;
pub mod report;
pub mod scenario;
mod scenarios;
#[cfg(test)]
mod shell;
mod target;
mod tun;

pub use drill::{Clients, Drill, Event, Options, Run, expand};
pub use report::{Outcome, Report};
pub use scenario::Scenario;

/// Why a drill could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nothing was touched.
    #[error("{0}")]
    Refused(String),
    /// A machine that cannot have such a fault, and why.
    #[error("{0}")]
    Cannot(String),
    #[error("acknowledged writes could not be read back: no API server answers")]
    Unread,
    #[error("interrupted before it was broken")]
    Interrupted,
    #[error("what `quorate apply` does did not help: {0}")]
    NotApplied(String),
    #[error(transparent)]
    Run(#[from] quorate_run::Error),
    #[error(transparent)]
    Machine(#[from] quorate_machine::MachineError),
    #[error(transparent)]
    Api(#[from] quorate_run::ApiError),
    #[error("{machine}: power: {message}")]
    Power { machine: String, message: String },
    #[error("{path}: {error}")]
    Report {
        path: std::path::PathBuf,
        error: std::io::Error,
    },
}
