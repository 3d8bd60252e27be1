//! Where things live on a machine. One place, so that `reset`, facts and the plan agree.

/// Links to the upstream programs, one per bundle item.
pub const BIN: &str = "/opt/quorate/bin";
/// Programs of the container network interface.
pub const CNI_BIN: &str = "/opt/cni/bin";
pub const CNI_CONF: &str = "/etc/cni/net.d";
/// Ours in that folder.
pub const CNI_FILE: &str = "10-flannel.conflist";
pub const KUBERNETES: &str = "/etc/kubernetes";
pub const PKI: &str = "/etc/kubernetes/pki";
pub const STATIC_PODS: &str = "/etc/kubernetes/manifests";
pub const ETCD: &str = "/etc/etcd";
pub const ETCD_DATA: &str = "/var/lib/etcd";
pub const CONTAINERD: &str = "/etc/containerd";
pub const AUDIT_LOGS: &str = "/var/log/kubernetes";
pub const QUORATE: &str = "/etc/quorate";
/// Content-addressed blobs, placed by `machine`.
pub const BLOBS: &str = "/var/lib/quorate/blobs";
/// The program itself by hash, placed by `machine` when it connects.
pub const PROGRAMS: &str = "/var/lib/quorate/bin";
pub const UNITS: &str = "/etc/systemd/system";
pub const KUBELET: &str = "/var/lib/kubelet";
pub const KUBELET_CLIENT: &str = "/var/lib/kubelet/pki/kubelet-client-current.pem";
pub const KUBELET_SERVING: &str = "/var/lib/kubelet/pki/kubelet-server-current.pem";

/// Every unit Quorate may write, in the order in which they may be stopped.
pub const ALL_UNITS: [&str; 11] = [
    "quorate-agent.service",
    "kube-proxy.service",
    "flanneld.service",
    "kubelet.service",
    "kube-scheduler.service",
    "kube-controller-manager.service",
    "kube-apiserver.service",
    "etcd.service",
    "containerd.service",
    "haproxy-quorate.service",
    "keepalived-quorate.service",
];

pub fn bin(program: &str) -> String {
    format!("{BIN}/{program}")
}

pub fn unit(name: &str) -> String {
    format!("{UNITS}/{name}")
}

pub fn pki(file: &str) -> String {
    format!("{PKI}/{file}")
}

pub fn blob(sha256: &str) -> String {
    format!("{BLOBS}/{sha256}")
}
