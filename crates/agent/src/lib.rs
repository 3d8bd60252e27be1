//! See the crate table in ARCHITECTURE.md.
pub mod arp;
pub mod bpf;
pub mod netlink;
pub mod proxy;
pub mod sockdiag;
pub mod supervise;
pub mod vrrp_io;
