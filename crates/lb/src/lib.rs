//! Load-balancing decisions: VRRP, health of backends, choice of a backend, wire formats.
//!
//! Nothing here touches a socket, a clock or a file. The process around it calls
//! `handle(now, `[`Input`]`)`, carries out what `poll_action()` returns, and calls again by
//! `poll_timeout()` at the latest. See ARCHITECTURE.md, "Balancing".

mod agent;
pub mod balance;
mod balancer;
mod checksum;
pub mod config;
pub mod frames;
pub mod health;
mod io;
pub mod pod;
pub mod vrrp;

pub use agent::{Agent, AgentStatus};
pub use balancer::Balancer;
pub use config::AgentConfig;
pub use io::{
    Action, AdminState, Availability, BackendView, Bytes, Command, ConflictKind, DialOutcome, Event, Input, Now,
    ProbeOutcome, ProbeStage, Reason, VipChange, VrrpState,
};
