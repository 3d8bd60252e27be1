//! What was found: on the machines, at the operator, in the bundle, in the running cluster. Data only, and how a managed
//! block lies in a file ([`block`]), which who plans and who writes must see alike.
//!
//! `run::gather` fills a [`Facts`], `plan::plan` reads it. Nothing here knows how a fact is obtained.

pub mod block;
mod cluster;
mod host;
mod operator;
mod probe;

pub use cluster::{BundleFacts, BundleItem, ClusterFacts, EtcdFacts, EtcdMember, ItemKind};
pub use host::*;
pub use operator::{CaFacts, OperatorFacts, SecretBytes, SecretId};
pub use probe::*;

use std::collections::BTreeMap;

use serde::Serialize;

/// Everything known at one moment, before a plan is made.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Facts {
    /// Seconds since 1970 at the operator when gathering ended.
    pub taken_unix: i64,
    /// One entry per machine of the cluster file, by name.
    pub machines: BTreeMap<String, MachineFacts>,
    pub operator: OperatorFacts,
    pub bundle: BundleFacts,
    pub cluster: ClusterFacts,
}

/// A machine was reached, or it was not and we know why.
#[derive(Clone, Debug, Serialize)]
pub enum MachineFacts {
    Found(Box<HostFacts>),
    Unreachable {
        reason: String,
    },
    /// It was reached, and could not say what it is like.
    Silent {
        reason: String,
    },
}

impl Facts {
    /// The facts of a reachable machine.
    pub fn host(&self, machine: &str) -> Option<&HostFacts> {
        match self.machines.get(machine) {
            Some(MachineFacts::Found(host)) => Some(host),
            _ => None,
        }
    }

    pub fn reachable(&self, machine: &str) -> bool {
        self.host(machine).is_some()
    }
}
