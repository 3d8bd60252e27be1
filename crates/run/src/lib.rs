//! From a Spec and machines to a running cluster: gather Facts, carry out a Plan, keep a journal, take it back.
//!
//! ```text
//! Session::gather ─▶ Facts ─▶ plan::plan ─▶ Plan ─▶ Session::execute ─▶ Outcome
//!                                                        │ every step: check → act → confirm; told as Events
//! ```
//! Nothing here prints; whoever calls gives a listener for [`Event`]s.

mod action;
mod blobs;
mod catalogue;
mod condition;
mod error;
pub mod etcd;
mod event;
mod execute;
mod failure;
mod fleet;
mod gather;
mod journal;
mod kube;
mod lock;
mod operator;
mod outcome;
mod pods;
mod rollback;
mod session;
mod stop;

pub use catalogue::Catalogue;
pub use error::Error;
pub use event::{Event, Listener, silent};
pub use execute::Options;
pub use fleet::Fleet;
pub use journal::{Journal, Record, RunId, Story, read as read_journal, runs};
pub use kube::{Api, ApiError};
pub use lock::{Holder, Lock};
pub use operator::{Identity, Operator, kubeconfig};
pub use outcome::{Ended, Failure, Outcome};
pub use rollback::Undone;
pub use session::Session;
pub use stop::Stop;
