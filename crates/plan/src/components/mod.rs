//! What each upstream program is told: flags, configuration files, units. One file per program.

pub(crate) mod agent;
pub(crate) mod apiserver;
pub(crate) mod containerd;
pub(crate) mod controller_manager;
pub(crate) mod coredns;
pub(crate) mod etcd;
pub(crate) mod flannel;
pub(crate) mod haproxy;
pub(crate) mod keepalived;
pub(crate) mod kube_proxy;
pub(crate) mod kubeadm;
pub(crate) mod kubeconfig;
pub(crate) mod kubelet;
pub(crate) mod objects;
pub(crate) mod probe;
pub(crate) mod scheduler;
pub(crate) mod unit;
