//! How far kubeadm got on a machine, from what lies there and what the cluster says of it.

use quorate_facts::{EtcdMember, HostFacts};
use quorate_spec::{EtcdTopology, Machine};

use crate::components::{etcd, kubeadm};
use crate::names::host_port;
use crate::paths;
use crate::stages::node_path;
use crate::want::Context;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing of kubeadm's is there.
    Fresh,
    /// `kubeadm init` began here and did not end; it can be run again over what it left.
    Founding,
    /// A join began and did not end, or the cluster no longer knows the member.
    Half,
    /// Part of the cluster.
    Member,
}

/// Static Pods of a control plane, by manifest.
pub(crate) fn pods(context: &Context<'_>) -> Vec<&'static str> {
    let external = context.spec.etcd.topology == EtcdTopology::External;
    kubeadm::PODS[usize::from(external)..].to_vec()
}

pub(crate) fn manifest(pod: &str) -> String {
    format!("{}/{pod}.yaml", paths::STATIC_PODS)
}

pub(crate) fn control_plane(context: &Context<'_>, machine: &Machine) -> State {
    let Some(host) = context.facts.host(&machine.name) else {
        return State::Fresh;
    };
    if exists(host, kubeadm::FOUNDING) {
        return State::Founding;
    }
    let data = format!("{}/member", context.spec.etcd.data_dir);
    let stacked = context.spec.etcd.topology == EtcdTopology::Stacked;
    let all = pods(context).iter().all(|pod| exists(host, &manifest(pod)));
    let any = pods(context).iter().any(|pod| exists(host, &manifest(pod)))
        || has_kubelet(host)
        || (stacked && exists(host, &data));
    if !any {
        return State::Fresh;
    }
    if !all || !exists(host, paths::KUBELET_CLIENT) || expelled(context, machine) {
        return State::Half;
    }
    if exists(host, kubeadm::JOINING) && !is_through(context, machine) {
        return State::Half;
    }
    State::Member
}

/// Joining anew ends every Pod on the machine, so its Node must be known to be missing.
pub(crate) fn worker(context: &Context<'_>, machine: &Machine) -> State {
    let Some(host) = context.facts.host(&machine.name) else {
        return State::Fresh;
    };
    if exists(host, paths::KUBELET_CLIENT)
        && exists(host, &kubelet_conf())
        && !context.is_absent(&node_path(&machine.name))
    {
        State::Member
    } else if has_kubelet(host) {
        State::Half
    } else {
        State::Fresh
    }
}

pub(crate) fn kubelet_conf() -> String {
    format!("{}/kubelet.conf", paths::KUBERNETES)
}

fn has_kubelet(host: &HostFacts) -> bool {
    exists(host, paths::KUBELET_CLIENT)
        || exists(host, &kubelet_conf())
        || exists(host, &format!("{}/bootstrap-kubelet.conf", paths::KUBERNETES))
}

/// Only the end of the join was not noted: the member votes, the API server is ready, the node is there.
fn is_through(context: &Context<'_>, machine: &Machine) -> bool {
    let cluster = &context.facts.cluster;
    let votes = context.spec.etcd.topology == EtcdTopology::External
        || member(context, machine).is_some_and(|member| member.healthy && !member.learner);
    votes && cluster.ready_api_servers.contains(&machine.name) && !context.is_absent(&node_path(&machine.name))
}

/// A quorum of etcd's members answers, and this machine's is none of them.
fn expelled(context: &Context<'_>, machine: &Machine) -> bool {
    let Some(live) = &context.facts.cluster.etcd else {
        return false;
    };
    let voters = live.members.iter().filter(|member| !member.learner);
    let healthy = voters.clone().filter(|member| member.healthy).count();
    context.spec.etcd.topology == EtcdTopology::Stacked
        && healthy > voters.count() / 2
        && member(context, machine).is_none()
}

/// What etcd's list has under the machine's name or peer address.
pub(crate) fn member<'a>(context: &Context<'a>, machine: &Machine) -> Option<&'a EtcdMember> {
    let peer = format!("https://{}", host_port(machine.address, etcd::PEER_PORT));
    let live = context.facts.cluster.etcd.as_ref()?;
    live.members
        .iter()
        .find(|found| found.name == machine.name || found.peer_urls.contains(&peer))
}

pub(crate) fn exists(host: &HostFacts, path: &str) -> bool {
    host.files.get(path).is_some_and(|file| file.exists())
}
