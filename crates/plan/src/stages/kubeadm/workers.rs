//! Workers join, all at once; then nobody holds a bootstrap token any more.

use quorate_spec::Machine;

use super::state::{self, State};
use super::{forget_node, kubelet, reset, run, with_token};
use crate::components::{kube_proxy, kubeadm};
use crate::model::*;
use crate::paths;
use crate::stages::{Planned, agent_pod, nodes, token};
use crate::want::{Context, Draft};

const JOIN_TIMEOUT_MS: u64 = 120_000;
const PROXY_TIMEOUT_MS: u64 = 120_000;

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "nodes", "every node has joined, kube-proxy runs");
    let control_planes = context.reached(context.spec.control_planes());
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
        token::admit(&mut draft, joining, kubeadm::TOKEN_GROUP)
    };
    let mut approved = Vec::new();
    let mut arrived = Vec::new();
    for machine in &control_planes {
        approved.extend(nodes::approve(&mut draft, context, machine, None));
    }
    for (machine, state) in &workers {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        kubelet::files(&mut wanted, *state);
        if *state != State::Member {
            let join = with_token(kubeadm::join(context, machine));
            wanted.file(kubeadm::JOIN, "root", 0o600, join);
        }
        let mut last: Vec<String> = draft.add(wanted, &[]).into_iter().collect();
        if *state != State::Member {
            last = join(&mut draft, machine, *state, last, token.as_ref());
            arrived.extend(last.iter().cloned());
        }
        approved.extend(nodes::approve(&mut draft, context, machine, last.pop()));
    }
    // A run that ended early may have left the token with machines that have joined.
    let all = control_planes
        .iter()
        .copied()
        .chain(workers.iter().map(|(machine, _)| *machine));
    let holders: Vec<(&Machine, Vec<String>)> = all
        .filter_map(|machine| {
            let left = left(context, machine);
            (!left.is_empty()).then_some((machine, left))
        })
        .collect();
    if !holders.is_empty() {
        token::close(&mut draft, context, holders, "the machine has joined", approved);
        await_proxy(&mut draft, context, arrived);
    }
    draft.stage.into()
}

/// Files with the token that are on the machine, or will be when its join is through.
fn left(context: &Context<'_>, machine: &Machine) -> Vec<String> {
    let Some(host) = context.facts.host(&machine.name) else {
        return Vec::new();
    };
    let joins = if machine.is_control_plane() {
        state::control_plane(context, machine) != State::Member
    } else {
        state::worker(context, machine) != State::Member
    };
    [kubeadm::INIT, kubeadm::JOIN]
        .into_iter()
        .filter(|path| joins || state::exists(host, path))
        .map(str::to_owned)
        .collect()
}

fn join(
    draft: &mut Draft<'_>,
    machine: &Machine,
    state: State,
    mut needs: Vec<String>,
    token: Option<&String>,
) -> Vec<String> {
    needs.extend(token.cloned());
    if state == State::Half {
        needs = reset(draft, &machine.name, None, needs);
    }
    needs = forget_node(draft, &machine.name, needs);
    let id = draft.id(&machine.name, "join");
    let mut step = run(
        id.clone(),
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
    vec![id]
}

/// Services work on the machines that joined.
fn await_proxy(draft: &mut Draft<'_>, context: &Context<'_>, needs: Vec<String>) {
    let Some(via) = context.api_machine().map(str::to_owned) else {
        return;
    };
    let nodes = context
        .reached(context.spec.nodes())
        .iter()
        .map(|machine| machine.name.clone())
        .collect();
    draft.push(Step {
        id: draft.id(&via, "kube-proxy"),
        machine: via,
        title: "wait for kube-proxy".into(),
        why: vec!["machines have joined".into()],
        action: Action::Await,
        needs,
        done_when: vec![Wait {
            until: Condition::DaemonSet {
                path: kube_proxy::DAEMON_SET.into(),
                nodes,
            },
            timeout_ms: PROXY_TIMEOUT_MS,
        }],
        undo: Undo::Nothing {
            because: "it only waits".into(),
        },
        attempts: 1,
        essential: false,
    });
}
