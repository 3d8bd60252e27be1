//! A deployment's table of contents. Each stage is one file; the order here is the order on the machines.

mod agent_pod;
mod control_plane;
mod dns;
mod endpoint;
mod etcd;
mod kubeadm;
mod labels;
mod network;
mod nodes;
mod prepare;
mod programs;
mod ready;
mod runtime;
mod token;

pub(crate) use control_plane::{ControlPlane, api_server_files, control_plane_flags, etcd_servers, join_nets, level};
pub(crate) use kubeadm::config_map;
pub(crate) use nodes::node_path;
pub(crate) use prepare::{AT_LEAST, HOSTNAME_SET, HOSTS, SET_BY_PROGRAMS, SET_IN_NAMESPACE, modules, own_settings};
pub(crate) use programs::CNI_PLUGINS;
pub(crate) use runtime::image_reference as runtime_image_reference;
pub use runtime::imported_name;

use quorate_spec::{Bootstrap, Spec};

use crate::model::{Note, Stage, Wait};
use crate::want::Context;

/// What a stage hands back: its steps, what the reader should know, and what `ready` has to await.
pub(crate) struct Planned {
    pub(crate) stage: Stage,
    pub(crate) notes: Vec<Note>,
    pub(crate) awaited: Vec<Awaited>,
}

/// Something that a stage changes in the cluster and that is ready only when all nodes are there.
pub(crate) struct Awaited {
    pub(crate) what: &'static str,
    pub(crate) wait: Wait,
}

type StagePlanner = fn(&Context<'_>) -> Planned;

/// In the order on the machines.
pub(crate) fn of(spec: &Spec) -> &'static [StagePlanner] {
    match spec.kubernetes.bootstrap {
        Bootstrap::Binary => &BINARY,
        Bootstrap::Kubeadm => &KUBEADM,
    }
}

const BINARY: [StagePlanner; 12] = [
    prepare::plan,              // users, folders, kernel modules, sysctls, swap, hosts file, firewall
    programs::plan,             // the bundle's blobs, once per machine
    runtime::plan,              // containerd, images
    etcd::plan,                 // members, one change at a time
    endpoint::in_front_of_etcd, // its VIP, where there is one
    control_plane::plan,        // API servers, controller managers, schedulers, who may do what
    endpoint::plan,             // VIP and proxies
    nodes::plan,                // kubelets join, kube-proxy
    network::plan,              // with them: Pod network; nodes become Ready
    dns::plan,                  // with them: CoreDNS, probe
    ready::plan,                // serving certificates; what runs in the cluster is ready
    labels::plan,               // labels and taints as declared
];

const KUBEADM: [StagePlanner; 13] = [
    prepare::plan,
    programs::plan,
    runtime::plan,
    etcd::plan, // where it is external
    endpoint::in_front_of_etcd,
    kubeadm::pki,           // authorities and certificates of the control planes
    endpoint::plan,         // before there is an API: kubeadm goes by the endpoint
    kubeadm::control_plane, // static Pods; one founds, the others join
    kubeadm::workers,       // with them, as the next two
    network::plan,
    dns::plan,
    ready::plan,
    labels::plan,
];

impl From<Stage> for Planned {
    fn from(stage: Stage) -> Self {
        Self {
            stage,
            notes: Vec::new(),
            awaited: Vec::new(),
        }
    }
}
