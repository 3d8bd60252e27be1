//! Workers join, all at once, as soon as there is a cluster to join.

use quorate_spec::Machine;

use super::state::{self, State};
use super::{forget_node, founded, kubelet, reset, run, with_token};
use crate::components::kubeadm;
use crate::model::*;
use crate::paths;
use crate::stages::{Planned, agent_pod, token};
use crate::want::{Context, Draft};

const JOIN_TIMEOUT_MS: u64 = 120_000;

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::with_previous(context, "nodes", "every node has joined");
    let workers: Vec<(&Machine, State)> = context
        .reached(context.spec.workers())
        .into_iter()
        .filter(|machine| !machine.is_control_plane())
        .map(|machine| (machine, state::worker(context, machine)))
        .collect();
    let joining = workers.iter().filter(|(_, state)| *state != State::Member).count();
    let token = if joining == 0 {
        None
    } else {
        token::admit(&mut draft, joining, kubeadm::TOKEN_GROUP, &founded(context))
    };
    for (machine, state) in &workers {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        kubelet::files(&mut wanted, *state);
        if *state != State::Member {
            let join = with_token(kubeadm::join(context, machine));
            wanted.file(kubeadm::JOIN, "root", 0o600, join);
        }
        let ready: Vec<String> = draft.add(wanted, &[]).into_iter().collect();
        if *state != State::Member {
            join(&mut draft, machine, *state, ready, token.as_ref());
        }
    }
    draft.stage.into()
}

/// Files with the bootstrap token that are on the machine, or will be when its join is through. A run that ended early may
/// have left one on a machine that has joined.
pub(crate) fn token_left(context: &Context<'_>, machine: &Machine) -> Vec<String> {
    let Some(host) = context.facts.host(&machine.name) else {
        return Vec::new();
    };
    let joins = !super::has_joined(context, machine);
    [kubeadm::INIT, kubeadm::JOIN]
        .into_iter()
        .filter(|path| joins || state::exists(host, path))
        .map(str::to_owned)
        .collect()
}

fn join(draft: &mut Draft<'_>, machine: &Machine, state: State, mut needs: Vec<String>, token: Option<&String>) {
    needs.extend(token.cloned());
    if state == State::Half {
        needs = reset(draft, &machine.name, None, needs);
    }
    needs = forget_node(draft, &machine.name, needs);
    let id = draft.id(&machine.name, "join");
    let mut step = run(
        id,
        &machine.name,
        format!("join {} as a worker", machine.name),
        vec![format!("{} has not joined", machine.name)],
        &["join", "--config", kubeadm::JOIN],
        "a worker leaves with `kubectl drain`, `kubectl delete node` and `kubeadm reset`",
    );
    let (needs, pod) = agent_pod::before_kubeadm(draft, &machine.name, needs);
    step.needs = needs;
    step.essential = false;
    step.done_when = vec![Wait {
        until: Condition::File {
            path: paths::KUBELET_CLIENT.into(),
        },
        timeout_ms: JOIN_TIMEOUT_MS,
    }];
    step.done_when.extend(pod);
    draft.push(step);
}
