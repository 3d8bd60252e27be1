//! Nothing is pulled: programs and images come from the bundle, so no machine needs a registry.

use quorate_facts::ItemKind;
use quorate_plan::balancer_listens;
use quorate_spec::{Bootstrap, EtcdTopology, Machine, RunAs, Spec};

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let bundle = &input.facts.bundle;
    if bundle.items.is_empty() {
        return;
    }
    let images = bundle.items.values().filter(|item| item.kind == ItemKind::Image);
    let names: Vec<&str> = images.map(|item| item.name.as_str()).collect();
    let there = |wanted: &str| {
        names.iter().any(|name| {
            let repository = name.rsplit_once(':').map(|(repository, _)| repository);
            repository.and_then(|repository| repository.rsplit('/').next()) == Some(wanted)
        })
    };
    let missing: Vec<&str> = wanted(input.spec).into_iter().filter(|name| !there(name)).collect();
    let finding = if missing.is_empty() {
        Ok(format!("{} in the bundle; no registry is needed", names.len()))
    } else {
        fail(
            format!("the bundle lacks {}", missing.join(", ")),
            "quorate bundle build, or name another bundle in `bundle.path`",
        )
    };
    list.note("images", "cluster", finding);
}

/// By the last part of their repositories.
fn wanted(spec: &Spec) -> Vec<&'static str> {
    let mut wanted = vec!["pause", "coredns", "probe"];
    if spec.kubernetes.bootstrap == Bootstrap::Kubeadm {
        wanted.extend([
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
        ]);
        wanted.extend((spec.etcd.topology == EtcdTopology::Stacked).then_some("etcd"));
    }
    // An agent always listens somewhere, for its own statistics.
    let runs_agent = |machine: &Machine| {
        let listens = balancer_listens(spec, machine);
        listens.iter().any(|(_, program)| *program == "quorate")
    };
    if spec.balancer_as == RunAs::StaticPod && spec.machines.iter().any(runs_agent) {
        wanted.push("agent");
    }
    wanted
}
