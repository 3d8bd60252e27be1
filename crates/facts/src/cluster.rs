//! What the running cluster says of itself, and what the bundle offers.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What etcd and the API servers answered, if any did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ClusterFacts {
    /// Control planes whose local API server answered `/readyz` with 200.
    pub ready_api_servers: BTreeSet<String>,
    /// `None`: no member answered.
    pub etcd: Option<EtcdFacts>,
    /// Live objects the plan may want to change, by API path; absent and unknown objects are missing here.
    pub objects: BTreeMap<String, Value>,
    /// Paths of objects nobody answered for: whether they exist is not known.
    pub unknown: BTreeSet<String>,
    /// Nodes whose kubelet waits for an approval of the serving certificate it asked for last.
    pub serving_requests: BTreeSet<String>,
    /// Images each machine's container runtime holds, by machine; missing when the runtime is not up.
    pub images: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdFacts {
    pub cluster_id: String,
    pub leader: Option<String>,
    pub members: Vec<EtcdMember>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EtcdMember {
    /// Decimal, as the gateway prints it.
    pub id: String,
    /// Empty while the member has never started.
    pub name: String,
    pub peer_urls: Vec<String>,
    pub learner: bool,
    /// It answered a status request of its own, sees a leader and is no learner.
    pub healthy: bool,
}

/// What the bundle in use holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleFacts {
    pub kubernetes: String,
    /// By item name, `kube-apiserver`, `image:registry.k8s.io/pause:3.10.2`, …
    pub items: BTreeMap<String, BundleItem>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BundleItem {
    pub name: String,
    pub kind: ItemKind,
    pub version: String,
    /// SHA-256 (hex) of the unpacked content.
    pub sha256: String,
    /// Bytes, unpacked.
    pub size: u64,
    /// Bytes, as it travels.
    pub packed_size: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ItemKind {
    Binary,
    Image,
    File,
}
