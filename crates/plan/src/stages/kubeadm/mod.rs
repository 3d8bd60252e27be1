//! `bootstrap: kubeadm`: what differs from a cluster of units. Machines, runtime, endpoint, network and DNS are the same.
//!
//! One machine founds the cluster (`kubeadm init`), the other control planes join it one after the other, meanwhile all
//! workers at once. Every control plane has the cluster's authorities before it begins, so none is special afterwards.

mod control_plane;
mod kubelet;
mod pki;
mod renewal;
mod state;
mod workers;

pub(crate) use control_plane::{config_map, founded, plan as control_plane};
pub(crate) use pki::plan as pki;
pub(crate) use workers::{plan as workers, token_left};

use quorate_spec::Machine;

use crate::components::kubeadm;
use crate::model::*;
use crate::paths;
use crate::want::{Context, Draft};

/// Upstream gives up after four or five minutes by itself, and says why.
const KUBEADM_TIMEOUT_MS: u64 = 330_000;
const RESET_TIMEOUT_MS: u64 = 120_000;
const GONE_TIMEOUT_MS: u64 = 10_000;

/// Whether the machine is part of the cluster, with a kubelet that runs Pods.
pub(crate) fn has_joined(context: &Context<'_>, machine: &Machine) -> bool {
    let state = if machine.is_control_plane() {
        state::control_plane(context, machine)
    } else {
        state::worker(context, machine)
    };
    state == state::State::Member
}

/// One call of kubeadm.
pub(crate) fn run(id: String, machine: &str, title: String, why: Vec<String>, words: &[&str], hint: &str) -> Step {
    Step {
        id,
        machine: machine.into(),
        title,
        why,
        action: Action::Run {
            argv: kubeadm::command(words),
            stdin: None,
            timeout_ms: KUBEADM_TIMEOUT_MS,
            exit_shows: None,
        },
        needs: Vec::new(),
        done_when: Vec::new(),
        undo: Undo::Manual { hint: hint.into() },
        attempts: 1,
        essential: true,
    }
}

/// Takes a machine back to before its first `kubeadm join`: kubelet stopped, Pods ended, what kubeadm wrote removed. The
/// last id returned is what the new join needs.
pub(crate) fn reset(draft: &mut Draft<'_>, machine: &str, data: Option<&str>, mut needs: Vec<String>) -> Vec<String> {
    let essential = data.is_some();
    let step = |id: String, title: &str, why: &str, argv: Vec<String>, gone: &[&str], needs: Vec<String>| Step {
        id,
        machine: machine.into(),
        title: title.into(),
        why: vec![why.into()],
        action: Action::Run {
            argv,
            stdin: None,
            timeout_ms: RESET_TIMEOUT_MS,
            exit_shows: None,
        },
        needs,
        done_when: gone.iter().map(|path| is_gone(path)).collect(),
        undo: Undo::Nothing {
            because: "what a join left half-done serves nobody; the next one makes it anew".into(),
        },
        attempts: 2,
        essential,
    };
    let id = draft.id(machine, "reset");
    draft.push(step(
        id.clone(),
        "take back a join that did not end",
        "an earlier join ended before it was through",
        kubeadm::command(&["reset", "--config", kubeadm::RESET]),
        // It only warns of folders that it could not empty.
        &[paths::KUBELET_CLIENT, &state::kubelet_conf()],
        needs,
    ));
    needs = vec![id];
    if let Some(data) = data {
        let id = draft.id(machine, "forget-data");
        let argv = ["/usr/bin/find", data, "-mindepth", "1", "-delete"].map(str::to_owned);
        draft.push(step(
            id.clone(),
            "empty etcd's data directory",
            "a member that joins again starts without data",
            argv.to_vec(),
            &[&format!("{data}/member")],
            needs,
        ));
        needs = vec![id];
    }
    needs
}

/// What a program removes is gone when it has ended.
pub(crate) fn is_gone(path: &str) -> Wait {
    Wait {
        until: Condition::Gone { path: path.into() },
        timeout_ms: GONE_TIMEOUT_MS,
    }
}

/// A Node object of a machine's former life: kubeadm refuses to join beside one that still looks Ready.
pub(crate) fn forget_node(draft: &mut Draft<'_>, machine: &str, needs: Vec<String>) -> Vec<String> {
    let path = super::node_path(machine);
    let Some(via) = draft.context.api_machine().map(str::to_owned) else {
        return needs;
    };
    if draft.context.live(&path).is_none() {
        return needs;
    }
    let id = draft.id(machine, "forget-node");
    draft.push(Step {
        id: id.clone(),
        machine: via,
        title: format!("delete the former node {machine}"),
        why: vec![format!("{machine} joins anew")],
        action: Action::Delete { paths: vec![path] },
        needs,
        done_when: Vec::new(),
        undo: Undo::Nothing {
            because: "the machine registers again when it joins".into(),
        },
        attempts: 3,
        essential: false,
    });
    vec![id]
}

/// Files whose content names the token; a template.
pub(crate) fn with_token(template: String) -> Content {
    Content::Template {
        template,
        secrets: vec![
            quorate_facts::SecretId::BootstrapTokenId,
            quorate_facts::SecretId::BootstrapTokenSecret,
        ],
    }
}
