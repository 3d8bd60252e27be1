//! What all nodes were begun for: their kubelets serve, nobody holds a bootstrap token, the cluster's own Pods are ready.

use quorate_spec::{Bootstrap, Machine};

use crate::components::kube_proxy;
use crate::model::*;
use crate::paths;
use crate::stages::{Awaited, Planned, kubeadm, nodes, token};
use crate::want::{Context, Draft};

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "ready", "kubelets serve, Services work, names resolve");
    let nodes = context.reached(context.spec.nodes());
    let approved = nodes
        .iter()
        .filter_map(|machine| approve(&mut draft, context, machine))
        .collect();
    let by_kubeadm = context.spec.kubernetes.bootstrap == Bootstrap::Kubeadm;
    let (left, spent): (fn(&Context<'_>, &Machine) -> Vec<String>, _) = if by_kubeadm {
        (kubeadm::token_left, "the machine has joined")
    } else {
        (nodes::token_left, "the kubelet has a certificate of its own")
    };
    let holders: Vec<(&Machine, Vec<String>)> = nodes
        .iter()
        .map(|machine| (*machine, left(context, machine)))
        .filter(|(_, paths)| !paths.is_empty())
        .collect();
    if !holders.is_empty() {
        token::close(&mut draft, context, holders, spent, approved);
        if by_kubeadm && !context.awaited.iter().any(|awaited| awaited.what == kube_proxy::NAME) {
            let why = "machines have joined".to_owned();
            wait(&mut draft, kube_proxy::NAME, why, kube_proxy::ready(&nodes));
        }
    }
    for Awaited { what, wait: until } in &context.awaited {
        wait(&mut draft, what, format!("{what} was changed"), until.clone());
    }
    draft.stage.into()
}

fn wait(draft: &mut Draft<'_>, what: &str, why: String, until: Wait) {
    let Some(via) = draft.context.api_machine().map(str::to_owned) else {
        return;
    };
    draft.push(Step {
        id: draft.id(&via, what),
        machine: via,
        title: format!("wait for {what}"),
        why: vec![why],
        action: Action::Await,
        needs: Vec::new(),
        done_when: vec![until],
        undo: Undo::Nothing {
            because: "it only waits".into(),
        },
        attempts: 1,
        essential: true,
    });
}

/// Serving certificates: only for the names and addresses the cluster file gives this machine. The step's id where it is the
/// first one.
fn approve(draft: &mut Draft<'_>, context: &Context<'_>, machine: &Machine) -> Option<String> {
    let host = context.facts.host(&machine.name)?;
    let serves = host.files.get(paths::KUBELET_SERVING).is_some_and(|file| file.exists());
    // A kubelet asks again before its certificate expires, and when its addresses have changed.
    if serves && !context.facts.cluster.serving_requests.contains(&machine.name) {
        return None;
    }
    let via = context.api_machine()?.to_owned();
    let id = draft.id(&machine.name, "serving-certificate");
    draft.push(Step {
        id: id.clone(),
        machine: via,
        title: format!("approve the serving certificate of {}", machine.name),
        why: vec![if serves {
            "its kubelet asks for another serving certificate".into()
        } else {
            "its kubelet has no serving certificate".into()
        }],
        action: Action::ApproveServing {
            node: machine.name.clone(),
            names: vec![machine.name.clone()],
            addresses: machine.all_addresses().iter().map(ToString::to_string).collect(),
        },
        needs: Vec::new(),
        done_when: Vec::new(),
        undo: Undo::Nothing {
            because: "a certificate for a machine's own names harms nobody; it expires".into(),
        },
        attempts: 3,
        // Until the certificate it has expires, another one is not urgent.
        essential: machine.is_control_plane() && !serves,
    });
    (!serves).then_some(id)
}
