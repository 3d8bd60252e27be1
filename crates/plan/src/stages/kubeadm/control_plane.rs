//! One machine founds the cluster; the others join it one after the other, each with etcd's membership reconciled before.

use quorate_spec::{Bootstrap, EtcdTopology, Machine};
use serde_json::{Value, json};

use super::state::{self, State};
use super::{forget_node, is_gone, kubelet, renewal, reset, run, with_token};
use crate::components::kubeadm::Founding;
use crate::components::{kube_proxy, kubeadm, objects};
use crate::model::*;
use crate::names::members;
use crate::stages::{
    Awaited, Planned, agent_pod, api_server_files, control_plane, etcd as membership, node_path, token,
};
use crate::want::{Context, Draft, Wanted, sha256};
use crate::{json, yaml};

/// A static Pod that is renewed ends in order first; on a busy machine that took more than a minute.
const READY_TIMEOUT_MS: u64 = 240_000;
const STAGE: &str = "control-plane";
const SUPER_ADMIN: &str = "/etc/kubernetes/super-admin.conf";
const REJOIN: &str = "a control plane leaves with `kubeadm reset`; take its machine out of the cluster file first";

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(
        context,
        STAGE,
        "every control plane has joined and its API server is ready",
    );
    let mut notes = Vec::new();
    let mut machines = machines(context);
    let founder = founder(context, &machines, &mut notes);
    // The founder first; the others keep their order.
    machines.sort_by_key(|(machine, _)| Some(machine.name.as_str()) != founder);
    let joining = machines.iter().filter(|(_, state)| *state != State::Member).count();
    let reachable = founder.is_some() || is_there(context);
    // One change of membership, and one restart, at a time.
    let mut chain: Vec<String> = Vec::new();
    if context.spec.etcd.topology == EtcdTopology::Stacked
        && founder.is_none()
        && let Some(live) = &context.facts.cluster.etcd
    {
        // First: a member whose machine is gone counts for the quorum, and each kubeadm that joins waits for it.
        chain = membership::retire(&mut draft, context, &live.members, &members(context.spec), chain);
    }
    let mut admitted = false;
    let mut awaited = Vec::new();
    for (machine, state) in machines {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        if Some(machine.name.as_str()) == founder {
            files(&mut wanted, State::Founding);
            let ready = draft.add(wanted, &[]);
            chain = found(&mut draft, machine, ready);
            awaited.extend(apply(&mut draft, context, &chain));
            continue;
        }
        files(&mut wanted, state);
        if state == State::Member {
            chain = keep(&mut draft, context, machine, wanted, chain);
            continue;
        }
        let ready = draft.add(wanted, &[]);
        if !reachable {
            notes.push(Note {
                machine: Some(machine.name.clone()),
                message: "no control plane answers; this one joins once there is one".into(),
                hint: Some("run `quorate apply` again when the others are up".into()),
            });
            continue;
        }
        if !std::mem::replace(&mut admitted, true) && founder.is_none() {
            chain.extend(token::admit(&mut draft, joining, kubeadm::TOKEN_GROUP, &[]));
        }
        chain = join(&mut draft, context, machine, state, ready, chain);
    }
    if founder.is_none() && reachable {
        awaited.extend(apply(&mut draft, context, &[]));
    }
    Planned {
        stage: draft.stage,
        notes,
        awaited,
    }
}

/// The step after which there is an API, if this run founds the cluster.
pub(crate) fn founded(context: &Context<'_>) -> Vec<String> {
    if context.spec.kubernetes.bootstrap != Bootstrap::Kubeadm {
        return Vec::new();
    }
    let founder = founder(context, &machines(context), &mut Vec::new());
    founder.map(joined_step).into_iter().collect()
}

fn joined_step(machine: &str) -> String {
    format!("{STAGE}/{machine}/joined")
}

fn machines<'a>(context: &Context<'a>) -> Vec<(&'a Machine, State)> {
    context
        .reached(context.spec.control_planes())
        .into_iter()
        .map(|machine| (machine, state::control_plane(context, machine)))
        .collect()
}

/// Something of a cluster answers, or one stands on a machine, whole.
fn is_there(context: &Context<'_>) -> bool {
    let cluster = &context.facts.cluster;
    !cluster.ready_api_servers.is_empty()
}

/// Who founds: whoever began to, else the first, if nobody is a member of anything yet.
fn founder<'a>(context: &Context<'a>, machines: &[(&'a Machine, State)], notes: &mut Vec<Note>) -> Option<&'a str> {
    if let Some((machine, _)) = machines.iter().find(|(_, state)| *state == State::Founding) {
        return Some(&machine.name);
    }
    let anybody = machines.iter().any(|(_, state)| *state == State::Member);
    let stacked_lives = context.spec.etcd.topology == EtcdTopology::Stacked && context.facts.cluster.etcd.is_some();
    if anybody || is_there(context) || stacked_lives {
        return None;
    }
    // A control plane that is away may hold the cluster; a second one must not be founded beside it.
    let expected = context.spec.control_planes();
    let away: Vec<&str> = expected
        .iter()
        .filter(|machine| !machine.maintenance && !machines.iter().any(|(found, _)| found.name == machine.name))
        .map(|machine| machine.name.as_str())
        .collect();
    if !away.is_empty() {
        notes.push(Note {
            machine: None,
            message: format!(
                "no cluster is found, and {} is away, which may hold one; none is founded",
                away.join(", ")
            ),
            hint: Some("bring it back, or mark it `maintenance: true` if it holds nothing".into()),
        });
        return None;
    }
    machines.first().map(|(machine, _)| machine.name.as_str())
}

fn files(wanted: &mut Wanted<'_>, state: State) {
    let (context, machine) = (wanted.context, wanted.machine);
    kubelet::files(wanted, state);
    wanted.file(
        kubeadm::CONFIG,
        "root",
        0o600,
        Content::text(kubeadm::config(context, machine)),
    );
    for pod in state::pods(context) {
        let inputs = inputs(wanted, pod);
        wanted.text(&kubeadm::patch(pod), kubeadm::pod_patch(&inputs));
    }
    match state {
        State::Founding => {
            wanted.file(
                kubeadm::INIT,
                "root",
                0o600,
                with_token(kubeadm::init(context, machine)),
            );
            wanted.text(kubeadm::FOUNDING, "`kubeadm init` has begun here\n");
        }
        State::Fresh | State::Half => {
            wanted.file(
                kubeadm::JOIN,
                "root",
                0o600,
                with_token(kubeadm::join(context, machine)),
            );
            wanted.text(kubeadm::JOINING, "`kubeadm join` has begun here\n");
        }
        State::Member => {}
    }
}

/// What a static Pod is made of, in one word: its image, its flags and volumes, and the files those flags name. Starts with a
/// letter, so that no YAML takes it for a number. A Pod that must start again for a new client certificate has the old one's
/// fingerprint behind it, and keeps it.
fn inputs(wanted: &Wanted<'_>, pod: &str) -> String {
    let made = made_of(wanted, pod);
    if let Some(ending) = renewal::ending(wanted)
        .into_iter()
        .find(|ending| ending.pod() == Some(pod))
    {
        return format!("{made}-{}", ending.mark);
    }
    let patch = wanted
        .host
        .files
        .get(&kubeadm::patch(pod))
        .and_then(|file| file.text.as_deref());
    let kept = patch.unwrap_or_default().split_whitespace().find(|word| {
        word.strip_prefix(made.as_str())
            .is_some_and(|rest| rest.starts_with('-'))
    });
    kept.unwrap_or(&made).to_owned()
}

fn made_of(wanted: &Wanted<'_>, pod: &str) -> String {
    let context = wanted.context;
    let cluster = kubeadm::cluster(context);
    let image = context
        .image(&format!("/{pod}"))
        .map(|item| item.sha256.as_str())
        .unwrap_or_default();
    let part = match pod {
        "etcd" => json!([cluster["etcd"]]),
        "kube-apiserver" => {
            let files: Vec<Option<String>> = api_server_files(context.spec)
                .iter()
                .map(|(_, content)| wanted.expected_hash(content))
                .collect();
            // Which etcd it asks, and which ranges it serves.
            let etcd = cluster["etcd"].get("external").cloned().unwrap_or_default();
            let mut api = cluster["apiServer"].clone();
            if let Some(fields) = api.as_object_mut() {
                fields.remove("certSANs");
            }
            json!([api, etcd, cluster["networking"], files])
        }
        "kube-controller-manager" => json!([cluster["controllerManager"], cluster["networking"]]),
        _ => json!([cluster["scheduler"]]),
    };
    format!("q{}", &sha256(format!("{image} {part}").as_bytes())[..16])
}

fn found(draft: &mut Draft<'_>, machine: &Machine, ready: Option<String>) -> Vec<String> {
    let name = machine.name.as_str();
    let init = draft.id(name, "init");
    let mut step = run(
        init.clone(),
        name,
        "found the cluster with kubeadm init".into(),
        vec!["there is no cluster yet".into()],
        &["init", "--config", kubeadm::INIT],
        "`quorate reset` takes the cluster off its machines",
    );
    let (needs, pod) = agent_pod::before_kubeadm(draft, name, ready.into_iter().collect());
    step.needs = needs;
    step.done_when = [joined(draft.context, machine), pod].concat();
    // It goes on from what an earlier attempt left, if it is told to: else it would complain of its own ports, and hide why
    // the first attempt failed.
    if kubeadm::founding(draft.context, machine) == Founding::Begun {
        step.attempts = 2;
    }
    draft.push(step);
    let id = draft.id(name, "forget-super-admin");
    draft.push(Step {
        id: id.clone(),
        machine: name.into(),
        title: "remove the super-administrator's kubeconfig".into(),
        why: vec!["only kubeadm init needs it; nobody of system:masters stays on a machine".into()],
        // Not kept, unlike other files a run removes.
        action: Action::Run {
            argv: ["/usr/bin/rm", "-f", SUPER_ADMIN].map(str::to_owned).to_vec(),
            stdin: None,
            timeout_ms: 10_000,
            exit_shows: None,
        },
        needs: vec![init],
        done_when: vec![is_gone(SUPER_ADMIN)],
        undo: Undo::Nothing {
            because: "`kubeadm init phase kubeconfig super-admin` makes it again from the authority".into(),
        },
        attempts: 2,
        essential: true,
    });
    through(draft, machine, kubeadm::FOUNDING, id)
}

fn join(
    draft: &mut Draft<'_>,
    context: &Context<'_>,
    machine: &Machine,
    state: State,
    ready: Option<String>,
    mut chain: Vec<String>,
) -> Vec<String> {
    let stacked = context.spec.etcd.topology == EtcdTopology::Stacked;
    chain.extend(ready);
    // The member goes while it may still run: without it the others could not agree to remove it.
    if let Some(found) = state::member(context, machine).filter(|_| stacked) {
        let live = context.facts.cluster.etcd.as_ref();
        let live = live.map_or(&[][..], |live| &live.members);
        chain = membership::remove_stale(draft, context, live, &machine.name, found, chain);
    }
    if state == State::Half {
        let data = context.spec.etcd.data_dir.as_str();
        chain = reset(draft, &machine.name, Some(data).filter(|_| stacked), chain);
    }
    chain = forget_node(draft, &machine.name, chain);
    let why = vec![format!("{} is no control plane of the cluster", machine.name)];
    let admitted = draft.id(&machine.name, "join");
    let mut step = run(
        admitted.clone(),
        &machine.name,
        format!("join {} as a control plane", machine.name),
        why.clone(),
        &["join", "--config", kubeadm::JOIN, kubeadm::UNTIL_ADMITTED],
        REJOIN,
    );
    let (needs, pod) = agent_pod::before_kubeadm(draft, &machine.name, chain);
    step.needs = needs;
    step.done_when = vec![if stacked {
        member(machine)
    } else {
        // kubeadm starts it, and only warns if it could not.
        kubelet_runs()
    }];
    draft.push(step);
    let started = draft.id(&machine.name, "servers");
    let mut step = run(
        started.clone(),
        &machine.name,
        "start API server, controller manager and scheduler".into(),
        why.clone(),
        &["join", "--config", kubeadm::JOIN, kubeadm::SERVERS],
        REJOIN,
    );
    step.needs = vec![admitted.clone()];
    step.done_when = vec![api_server(machine)];
    draft.push(step);
    let asks = draft.id(&machine.name, "kubelet");
    draft.push(ask_again(asks.clone(), machine, vec![started]));
    let registered = draft.id(&machine.name, "register");
    let mut step = run(
        registered.clone(),
        &machine.name,
        format!("register {} as a control plane", machine.name),
        why,
        &["join", "--config", kubeadm::JOIN, kubeadm::REGISTERED],
        REJOIN,
    );
    step.needs = vec![asks];
    step.done_when = [vec![marked(machine)], pod].concat();
    draft.push(step);
    through(draft, machine, kubeadm::JOINING, registered);
    // The next member may come; this machine's servers start meanwhile.
    vec![admitted]
}

/// A kubelet asks the API server of its own machine for a certificate, and began to when there was none: its next attempt
/// may be half a minute away.
fn ask_again(id: String, machine: &Machine, needs: Vec<String>) -> Step {
    Step {
        id,
        machine: machine.name.clone(),
        title: "restart the kubelet".into(),
        why: vec!["it asks for its certificate again at once".into()],
        action: Action::Units {
            reload: false,
            enable: Vec::new(),
            disable: Vec::new(),
            stop: Vec::new(),
            start: Vec::new(),
            restart: vec!["kubelet.service".into()],
        },
        needs,
        done_when: vec![kubelet_runs()],
        undo: Undo::Nothing {
            because: "it runs as before".into(),
        },
        attempts: 2,
        essential: true,
    }
}

fn kubelet_runs() -> Wait {
    Wait {
        until: Condition::UnitActive {
            unit: "kubelet.service".into(),
        },
        timeout_ms: READY_TIMEOUT_MS,
    }
}

/// kubeadm's phase `mark-control-plane` has labelled the node that the kubelet registered.
fn marked(machine: &Machine) -> Wait {
    Wait {
        until: Condition::Object {
            path: node_path(&machine.name),
            pointer: "/metadata/labels/node-role.kubernetes.io~1control-plane".into(),
            equals: json!(""),
        },
        timeout_ms: READY_TIMEOUT_MS,
    }
}

fn api_server(machine: &Machine) -> Wait {
    Wait {
        until: control_plane::ready(machine),
        timeout_ms: READY_TIMEOUT_MS,
    }
}

fn member(machine: &Machine) -> Wait {
    Wait {
        until: Condition::EtcdMember {
            name: machine.name.clone(),
        },
        timeout_ms: READY_TIMEOUT_MS,
    }
}

fn joined(context: &Context<'_>, machine: &Machine) -> Vec<Wait> {
    let mut waits = vec![api_server(machine)];
    if context.spec.etcd.topology == EtcdTopology::Stacked {
        waits.push(member(machine));
    }
    waits
}

/// Notes on the machine that kubeadm is through.
fn through(draft: &mut Draft<'_>, machine: &Machine, mark: &str, after: String) -> Vec<String> {
    let id = joined_step(&machine.name);
    draft.push(note_joined(id.clone(), machine, mark, vec![after]));
    vec![id]
}

fn note_joined(id: String, machine: &Machine, mark: &str, needs: Vec<String>) -> Step {
    Step {
        id,
        machine: machine.name.clone(),
        title: "note that kubeadm is through".into(),
        why: vec!["the machine is a control plane of the cluster".into()],
        action: Action::Remove {
            paths: vec![mark.into()],
            recursive: false,
        },
        needs,
        done_when: Vec::new(),
        undo: Undo::Nothing {
            because: "it says what is so".into(),
        },
        attempts: 3,
        essential: true,
    }
}

/// A control plane that is one already: its kubelet and its static Pods are as wanted, one machine after the other.
fn keep<'a>(
    draft: &mut Draft<'a>,
    context: &'a Context<'a>,
    machine: &'a Machine,
    wanted: Wanted<'a>,
    mut chain: Vec<String>,
) -> Vec<String> {
    let host = wanted.host;
    let ending = renewal::ending(&wanted);
    if state::exists(host, kubeadm::JOINING) {
        draft.push(note_joined(
            joined_step(&machine.name),
            machine,
            kubeadm::JOINING,
            Vec::new(),
        ));
    }
    let changed: Vec<(&str, String)> = state::pods(context)
        .into_iter()
        .map(|pod| (pod, inputs(&wanted, pod)))
        .filter(|(pod, inputs)| {
            let text = host
                .files
                .get(&state::manifest(pod))
                .and_then(|file| file.text.as_deref());
            !text.is_some_and(|text| text.contains(inputs.as_str()))
        })
        .collect();
    let disturbs = wanted.restarts_any() || !changed.is_empty();
    let last = draft.add(wanted, if disturbs { &chain } else { &[] });
    let mut needs: Vec<String> = last.into_iter().collect();
    if disturbs {
        needs.extend(std::mem::take(&mut chain));
    }
    // The Pods' patches are written before: if this run ends in between, the next one still starts them again.
    needs = renewal::renew(draft, machine, &ending, needs);
    for (pod, inputs) in changed {
        let id = draft.id(&machine.name, pod);
        let phase: &[&str] = match pod {
            "etcd" => &["etcd", "local"],
            "kube-apiserver" => &["control-plane", "apiserver"],
            "kube-controller-manager" => &["control-plane", "controller-manager"],
            _ => &["control-plane", "scheduler"],
        };
        let words: Vec<&str> = ["init", "phase"]
            .into_iter()
            .chain(phase.iter().copied())
            .chain(["--config", kubeadm::CONFIG])
            .collect();
        let mut step = run(
            id.clone(),
            &machine.name,
            format!("renew the static Pod {pod}"),
            vec![format!("{pod} runs with what was there before")],
            &words,
            "put the former value into the cluster file and apply",
        );
        step.needs = needs;
        step.attempts = 2;
        step.done_when = renewed(context, machine, pod, &inputs);
        draft.push(step);
        needs = vec![id];
    }
    if disturbs { needs } else { chain }
}

/// The kubelet shows the new Pod, and it works.
fn renewed(context: &Context<'_>, machine: &Machine, pod: &str, inputs: &str) -> Vec<Wait> {
    let path = format!("/api/v1/namespaces/kube-system/pods/{pod}-{}", machine.name);
    let shown = |pointer: String, equals: Value| Wait {
        until: Condition::Object {
            path: path.clone(),
            pointer,
            equals,
        },
        timeout_ms: READY_TIMEOUT_MS,
    };
    let mut waits = vec![
        shown(
            format!("/metadata/annotations/{}", kubeadm::INPUTS.replace('/', "~1")),
            json!(inputs),
        ),
        shown("/status/containerStatuses/0/ready".into(), json!(true)),
    ];
    if matches!(pod, "etcd" | "kube-apiserver") {
        waits.extend(joined(context, machine));
    }
    waits
}

/// Objects kubeadm leaves to us, and its own record of the cluster kept up to date. Returns what is to be awaited once all
/// nodes are there.
fn apply(draft: &mut Draft<'_>, context: &Context<'_>, after: &[String]) -> Option<Awaited> {
    let mut all = objects::kubeadm_rbac();
    all.extend(record(
        context,
        "kubeadm-config",
        "ClusterConfiguration",
        &kubeadm::cluster(context),
    ));
    all.extend(record(
        context,
        "kubelet-config",
        "kubelet",
        &kubeadm::kubelet_base(context.spec),
    ));
    draft.objects("rbac", "say who may do what", all, Vec::new(), after);
    let nodes = context.reached(context.spec.nodes());
    let image = kubeadm::image(context, "/kube-proxy")?;
    // One configuration for all: not changed by what is known of some.
    if nodes.len() < context.spec.nodes().len() && context.live(kube_proxy::DAEMON_SET).is_some() {
        return None;
    }
    draft.objects(
        kube_proxy::NAME,
        "run kube-proxy on every node",
        kube_proxy::objects(context.spec, image, &kube_proxy::Shared::of(context)),
        Vec::new(),
        after,
    )?;
    Some(Awaited {
        what: kube_proxy::NAME,
        wait: kube_proxy::ready(&nodes),
    })
}

/// A ConfigMap that kubeadm wrote, with what we want in it. Before kubeadm has written it there is nothing to change.
fn record(context: &Context<'_>, name: &str, key: &str, wanted: &Value) -> Option<ApiObject> {
    let path = config_map(name);
    let found = yaml::parse(context.live(&path)?.pointer(&format!("/data/{key}"))?.as_str()?);
    json::difference(wanted, &found)?;
    let text = yaml::render(&json::overlay(found, wanted));
    Some(objects::object(
        path,
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": "kube-system"},
            "data": {key: text},
        }),
    ))
}

pub(crate) fn config_map(name: &str) -> String {
    format!("/api/v1/namespaces/kube-system/configmaps/{name}")
}
