//! A deployment's table of contents. Each stage is one file; the order here is the order on the machines.

mod control_plane;
mod dns;
mod endpoint;
mod etcd;
mod labels;
mod network;
mod nodes;
mod prepare;
mod programs;
mod runtime;

pub(crate) use control_plane::level;
pub(crate) use nodes::node_path;
pub(crate) use prepare::{AT_LEAST, block_of, own_settings};
pub(crate) use programs::CNI_PLUGINS;
pub(crate) use runtime::image_reference as runtime_image_reference;
pub use runtime::imported_name;

use crate::model::{Note, Stage};
use crate::want::Context;

/// What a stage hands back: its steps, and what the reader should know.
pub(crate) struct Planned {
    pub(crate) stage: Stage,
    pub(crate) notes: Vec<Note>,
}

type StagePlanner = fn(&Context<'_>) -> Planned;

pub(crate) const STAGES: [StagePlanner; 11] = [
    prepare::plan,              // users, folders, kernel modules, sysctls, swap, hosts file, firewall
    programs::plan,             // the bundle's blobs, once per machine
    runtime::plan,              // containerd, images
    etcd::plan,                 // members, one change at a time
    endpoint::in_front_of_etcd, // its VIP, where there is one
    control_plane::plan,        // API servers, controller managers, schedulers, who may do what
    endpoint::plan,             // VIP and proxies
    nodes::plan,                // kubelets join, kube-proxy
    network::plan,              // Pod network; nodes become Ready
    dns::plan,                  // CoreDNS, probe
    labels::plan,               // labels and taints as declared
];

impl From<Stage> for Planned {
    fn from(stage: Stage) -> Self {
        Self {
            stage,
            notes: Vec::new(),
        }
    }
}
