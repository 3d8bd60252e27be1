//! How large a machine should be for its roles. One table, which `plan --capacity` prints and preflight compares with.

use quorate_spec::{EtcdTopology, Machine, Role, Spec};
use serde::Serialize;

/// Decimal megabytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Size {
    pub cpus: u32,
    pub memory_mb: u64,
    pub disk_mb: u64,
}

/// Below `least` the machine's roles do not work; below `advised` they do, with little to spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sizing {
    pub least: Size,
    pub advised: Size,
}

/// kubeadm refuses control planes below 2 CPUs and 1700 MB.
const CONTROL_PLANE: Size = Size {
    cpus: 2,
    memory_mb: 1_700,
    disk_mb: 5_000,
};
/// A kubelet and its system Pods alone take about 300 MB; images and blobs need the disk.
const NODE: Size = Size {
    cpus: 1,
    memory_mb: 700,
    disk_mb: 5_000,
};
/// etcd's smallest recommendation but for the memory, which a small database does not need.
const ETCD: Size = Size {
    cpus: 1,
    memory_mb: 700,
    disk_mb: 5_000,
};
/// The agent takes some tens of megabytes.
const LOAD_BALANCER: Size = Size {
    cpus: 1,
    memory_mb: 250,
    disk_mb: 1_000,
};

/// Up to how many nodes, and what a control plane should have then ("Building large clusters", kubernetes.io: sizes that
/// kube-up chose).
const BY_NODES: [(usize, u32, u64); 6] = [
    (5, 2, 3_750),
    (10, 2, 7_500),
    (100, 4, 15_000),
    (250, 8, 30_000),
    (500, 16, 60_000),
    (usize::MAX, 32, 120_000),
];
/// Up to how many nodes, and what a machine of etcd's own should have then (etcd.io, "Hardware recommendations").
const ETCD_BY_NODES: [(usize, u32, u64); 4] = [
    (50, 2, 8_000),
    (250, 4, 16_000),
    (1_000, 8, 32_000),
    (usize::MAX, 16, 64_000),
];

/// The larger demand wins where a machine has several roles.
pub fn of(spec: &Spec, machine: &Machine) -> Sizing {
    let nodes = spec.machines.iter().filter(|machine| machine.is_node()).count();
    let mut least = Size::default();
    let mut advised = Size::default();
    for role in &machine.roles {
        let (small, good) = match role {
            Role::ControlPlane => (
                CONTROL_PLANE,
                by_nodes(&BY_NODES, nodes, etcd_disk(spec, EtcdTopology::Stacked)),
            ),
            Role::Etcd => (
                ETCD,
                by_nodes(&ETCD_BY_NODES, nodes, etcd_disk(spec, EtcdTopology::External)),
            ),
            Role::Worker => (
                NODE,
                Size {
                    cpus: 2,
                    memory_mb: 2_000,
                    disk_mb: 20_000,
                },
            ),
            Role::LoadBalancer => (
                LOAD_BALANCER,
                Size {
                    cpus: 2,
                    memory_mb: 1_000,
                    disk_mb: 2_000,
                },
            ),
        };
        least = least.max(small);
        advised = advised.max(good);
    }
    Sizing { least, advised }
}

fn by_nodes(table: &[(usize, u32, u64)], nodes: usize, disk_mb: u64) -> Size {
    let row = table.iter().find(|(up_to, ..)| nodes <= *up_to);
    row.map_or(Size::default(), |(_, cpus, memory_mb)| Size {
        cpus: *cpus,
        memory_mb: *memory_mb,
        disk_mb,
    })
}

/// A full database beside programs, images and logs.
fn etcd_disk(spec: &Spec, topology: EtcdTopology) -> u64 {
    let database = if spec.etcd.topology == topology {
        u64::from(spec.etcd.quota_gib) * 1_074
    } else {
        0
    };
    10_000 + database
}

impl Size {
    fn max(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.max(other.cpus),
            memory_mb: self.memory_mb.max(other.memory_mb),
            disk_mb: self.disk_mb.max(other.disk_mb),
        }
    }
}
