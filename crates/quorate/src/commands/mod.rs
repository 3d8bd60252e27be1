//! One file per verb.

pub(crate) mod agent;
pub(crate) mod apply;
pub(crate) mod bundle;
pub(crate) mod check;
pub(crate) mod clean;
pub(crate) mod cni;
pub(crate) mod completions;
pub(crate) mod doctor;
pub(crate) mod drill;
pub(crate) mod init;
pub(crate) mod kubeconfig;
pub(crate) mod lab;
pub(crate) mod pause;
pub(crate) mod plan;
pub(crate) mod probe;
pub(crate) mod recover;
pub(crate) mod remote;
pub(crate) mod reset;
pub(crate) mod schema;
pub(crate) mod status;
