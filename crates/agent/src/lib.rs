//! See the crate table in ARCHITECTURE.md.

pub mod admin;
pub mod arp;
mod boot;
pub mod bpf;
pub mod config;
pub mod core;
pub mod health;
pub mod ipvs;
pub mod kernel_set;
pub mod manifest;
pub mod netlink;
pub mod notify;
pub mod proxy;
pub mod replay;
pub mod run;
pub mod sockdiag;
pub mod stats;
pub mod status;
pub mod supervise;
pub mod vrrp_io;
