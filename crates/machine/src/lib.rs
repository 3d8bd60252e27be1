//! The only way Quorate touches a machine: typed requests, over SSH or on this host, and a fake one for tests.
//!
//! ```text
//! operator ── ssh ──▶ `quorate remote` ──▶ local::LocalMachine      one connection per machine, requests pipelined
//! ```
//! [`Machine::call`] is the whole interface; the methods on `dyn Machine` name the common requests. Nothing here knows
//! what a cluster is.

mod certificates;
pub mod clean;
mod client;
pub mod cni;
pub mod distribute;
mod error;
pub mod fake;
mod frames;
mod hash;
pub mod local;
mod lock;
mod machine;
mod probe;
pub mod proto;
pub mod remote;
pub mod ssh;

pub use error::{ErrorKind, HostKey, MachineError, RemoteError, WrongArch};
pub use fake::FakeMachine;
pub use local::LocalMachine;
pub use machine::{BoxFuture, Machine, MachineRef};
pub use proto::{Request, Response};
pub use ssh::SshMachine;
