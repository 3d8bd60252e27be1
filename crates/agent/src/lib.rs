//! See the crate table in ARCHITECTURE.md.
pub mod arp;
pub mod netlink;
