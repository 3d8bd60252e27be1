//! The agent as a static Pod. Its kubelet runs it, without any API server; but a kubelet that has not joined yet needs the
//! API, and so the agent, first. Until then it is a unit that the Pod relieves without a refused connection.

use quorate_facts::SecretId;
use quorate_lb::AgentConfig;
use quorate_spec::{Bootstrap, Machine};
use serde_json::json;

use super::{kubeadm, nodes};
use crate::components::agent;
use crate::components::kubeadm::INPUTS;
use crate::model::*;
use crate::stages::runtime_image_reference;
use crate::want::{Context, Draft, Wanted, sha256};

/// A predecessor drains its connections first; on a busy machine kubelets take their time.
const READY_TIMEOUT_MS: u64 = 120_000;
const UNIT_TIMEOUT_MS: u64 = 30_000;

/// Whether the machine's kubelet runs what its manifests say.
pub(crate) fn has_joined(context: &Context<'_>, machine: &Machine) -> bool {
    match context.spec.kubernetes.bootstrap {
        Bootstrap::Binary => nodes::joined(context, machine),
        Bootstrap::Kubeadm => kubeadm::has_joined(context, machine),
    }
}

/// On a machine that has joined. `answers`: what holds when it serves.
pub(crate) fn renew(wanted: &mut Wanted<'_>, work: &AgentConfig, answers: &[Wait]) {
    let Some((manifest, inputs)) = manifest(wanted, work) else {
        return;
    };
    let kubelet = wanted.host.units.get("kubelet.service");
    let waits = if kubelet.is_some_and(|unit| unit.is_active()) {
        [runs(wanted.machine, &inputs), answers.to_vec()].concat()
    } else {
        // Its kubelet is started later in the run.
        Vec::new()
    };
    wanted.pod(agent::MANIFEST, &manifest, false, waits);
}

/// On a machine that has not.
pub(crate) fn until_joined(
    draft: &mut Draft<'_>,
    machine: &Machine,
    after: Option<String>,
    answers: Vec<Wait>,
) -> Option<String> {
    let host = draft.context.facts.host(&machine.name)?;
    let unit = host.units.get(agent::UNTIL_JOINED);
    if unit.is_some_and(|unit| unit.is_active() || unit.active == "activating") {
        return after;
    }
    let id = draft.id(&machine.name, "until-joined");
    draft.push(Step {
        id: id.clone(),
        machine: machine.name.clone(),
        title: "run the agent until the machine has joined".into(),
        why: vec!["its kubelet runs no Pods yet, and joining goes by the agent".into()],
        action: Action::Run {
            argv: agent::until_joined(),
            stdin: None,
            timeout_ms: 10_000,
            exit_shows: None,
        },
        needs: after.into_iter().collect(),
        // Before there is an API there is no answer to await.
        done_when: [vec![runs_until_joined()], answers].concat(),
        undo: Undo::Manual {
            hint: format!("systemctl stop {}", agent::UNTIL_JOINED),
        },
        attempts: 2,
        essential: machine.is_control_plane(),
    });
    Some(id)
}

/// systemd-run does not wait for it to say that it is ready.
fn runs_until_joined() -> Wait {
    Wait {
        until: Condition::UnitActive {
            unit: agent::UNTIL_JOINED.into(),
        },
        timeout_ms: UNIT_TIMEOUT_MS,
    }
}

/// On a machine that is joining: the Pod relieves the unit as soon as its kubelet runs.
pub(crate) fn relieve(wanted: &mut Wanted<'_>) {
    if let Some((manifest, inputs)) = wanted_manifest(wanted) {
        let waits = runs(wanted.machine, &inputs);
        wanted.pod(agent::MANIFEST, &manifest, true, waits);
    }
}

/// The same before kubeadm makes a machine a node. Returns what kubeadm needs, and what to await when it is through.
pub(crate) fn before_kubeadm(draft: &mut Draft<'_>, machine: &str, needs: Vec<String>) -> (Vec<String>, Vec<Wait>) {
    let context = draft.context;
    let machine = context.spec.machine(machine);
    let Some(mut wanted) = machine.and_then(|machine| draft.machine(machine)) else {
        return (needs, Vec::new());
    };
    let Some((manifest, inputs)) = wanted_manifest(&wanted) else {
        return (needs, Vec::new());
    };
    let waits = runs(wanted.machine, &inputs);
    wanted.pod(agent::MANIFEST, &manifest, true, Vec::new());
    let last = draft.add(wanted, &needs);
    (last.into_iter().collect(), waits)
}

fn wanted_manifest(wanted: &Wanted<'_>) -> Option<(String, String)> {
    let spec = wanted.context.spec;
    if !agent::is_pod(spec, wanted.machine) {
        return None;
    }
    let work = agent::work(spec, wanted.machine, wanted.host);
    let (by_agent, _) = agent::divide(work, spec.balancer);
    manifest(wanted, &by_agent?)
}

/// The manifest, and what it was made of in one word. Starts with a letter, so that no YAML takes it for a number.
fn manifest(wanted: &Wanted<'_>, work: &AgentConfig) -> Option<(String, String)> {
    let item = wanted.context.image("/agent")?;
    let password = wanted.expected_hash(&Content::Template {
        template: crate::secrets::mark(SecretId::StatisticsPassword),
        secrets: vec![SecretId::StatisticsPassword],
    });
    let made_of = format!("{} {password:?} {}", item.sha256, agent::render(work));
    let inputs = format!("q{}", &sha256(made_of.as_bytes())[..16]);
    let manifest = agent::pod(work, runtime_image_reference(&item.name), &inputs);
    Some((manifest, inputs))
}

/// The kubelet shows the Pod made of these inputs, and it serves.
fn runs(machine: &Machine, inputs: &str) -> Vec<Wait> {
    let path = format!(
        "/api/v1/namespaces/kube-system/pods/{}-{}",
        quorate_lb::pod::NAME,
        machine.name
    );
    [
        (
            format!("/metadata/annotations/{}", INPUTS.replace('/', "~1")),
            json!(inputs),
        ),
        ("/status/containerStatuses/0/ready".to_owned(), json!(true)),
    ]
    .map(|(pointer, equals)| Wait {
        until: Condition::Object {
            path: path.clone(),
            pointer,
            equals,
        },
        timeout_ms: READY_TIMEOUT_MS,
    })
    .to_vec()
}
