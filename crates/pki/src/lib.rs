//! The cluster's certificates: which there are (one table), how they are issued, and how they are read back.
//!
//! - [`inventory`] is pure data: inputs in, every certificate wanted on every machine out. No clock, file or randomness.
//! - [`read`] turns PEM into [`read::CertificateFound`] and says why a certificate must be re-issued.
//! - [`issue`] makes authorities, leaves and key pairs; the time is an argument (Unix seconds).
//! - [`csr`] judges the requests of kubelets against the inventory.
//! - [`store`] is the operator's folder: authorities and secrets, 0600, optionally sealed with a passphrase.
//!
//! Paths, names and usages follow kubeadm (<https://kubernetes.io/docs/setup/best-practices/certificates/>), so that
//! whoever knows a kubeadm machine finds everything where it is expected.

pub mod csr;
mod error;
pub mod inventory;
pub mod issue;
mod keys;
pub mod read;
mod seal;
mod secret;
pub mod store;

pub use error::Error;
pub use secret::{SecretText, sha256_hex};

/// Seconds in a day; all times of this crate are Unix seconds.
pub const DAY: i64 = 86_400;
