//! Bundles: everything of upstream that a cluster of one Kubernetes version needs, content-addressed, in one directory
//! or one file. [`build`] makes them (from source, from official releases or from a directory of binaries), [`Bundle`]
//! reads them, [`verify`] recomputes every sum.
//!
//! A blob is named by the SHA-256 of its content, and stored zstd-compressed so that it travels as it is.
mod archive;
mod builder;
mod bundle;
mod error;
mod fetch;
mod images;
mod manifest;
mod oci;
mod pack;
mod recipe;
mod source;
mod unit;
mod upstream;
mod userland;

pub use builder::{BuildOptions, DEFAULT_KUBERNETES, Event, Origin, PROBE_IMAGE, build, newest};
pub use bundle::{Bundle, Problem, default_cache, manifest, verify};
pub use error::{Error, Result};
pub use fetch::Limits;
pub use manifest::{Blob, BlobKind, FORMAT, Manifest};
pub use recipe::Recipes;
