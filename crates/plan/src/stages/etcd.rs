//! etcd: membership is reconciled before anything else (decision 5), and never two members are changed at once.

use std::collections::BTreeSet;

use quorate_facts::EtcdMember;
use quorate_pki::inventory::Ca;
use quorate_spec::Machine;

use crate::components::etcd as component;
use crate::model::*;
use crate::names::{Member, host_port, member_of, members};
use crate::paths;
use crate::stages::Planned;
use crate::want::{Context, Draft, Wanted};

/// A member answers within a second or two of starting; a quorum that waits for a slow disk may take longer.
const START_TIMEOUT_MS: u64 = 60_000;
/// Some gigabytes on a slow disk.
const FORGET_TIMEOUT_MS: u64 = 60_000;

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(
        context,
        "etcd",
        "etcd has a quorum and the members the cluster file names",
    );
    if !context.etcd_unit() {
        return draft.stage.into();
    }
    let mut notes = Vec::new();
    let wanted_members = members(context.spec);
    let mut reached = context.reached(context.spec.etcd_members());
    let anyone_has_data = reached.iter().any(|machine| has_data(context, machine));
    let unused = was_never_used(context);
    let live = context.facts.cluster.etcd.as_ref();
    let known = |member: &Member| live.and_then(|live| live.members.iter().find(|found| is(found, member)));
    // etcd has room for one learner: who is one already comes through before another is added. Who is down is started before
    // others restart.
    reached.sort_by_key(|machine| {
        let learner = known(&member_of(machine)).is_some_and(|found| found.learner);
        let healthy = known(&member_of(machine)).is_some_and(|found| found.healthy);
        (!learner, runs(context, machine), healthy)
    });
    // One change of membership, and one restart, at a time: each step needs the one before it.
    let mut chain: Vec<String> = Vec::new();
    let mut started: Vec<String> = Vec::new();
    // Who votes when a member restarts, and who of these may not answer.
    let mut voters: BTreeSet<String> = live.map(|live| voters(&live.members)).unwrap_or_default();
    let mut absent = live.map(|live| absent(context, &live.members)).unwrap_or_default();
    for machine in reached {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        let member = member_of(machine);
        files(&mut wanted);
        let data = has_data(context, machine);
        let mut forgotten = false;
        let joining = match (live, known(&member)) {
            (None, _) if !anyone_has_data || (!data && unused) => {
                bootstrap(&mut wanted, &wanted_members, context, false);
                false
            }
            (None, _) if !data => {
                notes.push(Note {
                    machine: Some(machine.name.clone()),
                    message: "no etcd member answers, and this one has no data to start from; it joins once the others are up".into(),
                    hint: Some("run `quorate apply` again when etcd answers".into()),
                });
                draft.add(wanted, &[]);
                continue;
            }
            // It has started, and the run that added it ended before it was promoted.
            (Some(_), Some(EtcdMember { learner: true, .. })) if data => true,
            (None, _) | (Some(_), Some(EtcdMember { healthy: true, .. })) => false,
            (Some(_), Some(found)) if data && !found.name.is_empty() => false,
            (Some(live), found) => {
                if data {
                    chain = forget(&mut draft, context, &member.name, chain);
                    forgotten = true;
                }
                chain = join(&mut draft, context, &live.members, found, &member, chain);
                let present: Vec<Member> = live
                    .members
                    .iter()
                    .filter(|other| !is(other, &member) && !other.name.is_empty())
                    .filter_map(|other| wanted_members.iter().find(|wanted| wanted.name == other.name).cloned())
                    .chain([member.clone()])
                    .collect();
                bootstrap(&mut wanted, &present, context, true);
                true
            }
        };
        let data_dir = &context.spec.etcd.data_dir;
        let flags = component::flags(&member, &context.spec.etcd);
        let text = component::unit(flags, data_dir, wanted.profile());
        let inputs = [
            paths::bin("etcd"),
            format!("{}/pki/server.crt", paths::ETCD),
            format!("{}/pki/peer.crt", paths::ETCD),
            format!("{}/pki/ca.crt", paths::ETCD),
        ];
        wanted.unit("etcd.service", &text, &inputs.each_ref().map(String::as_str));
        if forgotten {
            wanted.start_stopped("etcd.service");
        }
        let disturbs = wanted.disturbs("etcd.service");
        let rolling = wanted.restarts_any() && live.is_some();
        if rolling && !bears(&voters, &absent, &member.name) {
            notes.push(left_alone(machine, &voters, &absent));
            continue;
        }
        let serial = joining || rolling;
        if !joining {
            wanted.wait(
                Condition::EtcdMember {
                    name: member.name.clone(),
                },
                START_TIMEOUT_MS,
            );
        }
        let after = if rolling {
            chain.iter().chain(&started).cloned().collect()
        } else if joining {
            chain.clone()
        } else {
            Vec::new()
        };
        if let Some(last) = draft.add(wanted, &after).filter(|_| disturbs) {
            if serial {
                chain = vec![last];
            } else if live.is_some() {
                started.push(last);
            }
            absent.remove(&member.name);
            voters.insert(member.name.clone());
        }
        if joining {
            chain = promote(
                &mut draft,
                context,
                live.map_or(&[], |live| &live.members),
                &member,
                chain,
            );
        }
    }
    if let Some(live) = live {
        // Last, so that the quorum is largest while others join.
        retire(&mut draft, context, &live.members, &wanted_members, chain);
    }
    Planned {
        stage: draft.stage,
        notes,
    }
}

fn voters(live: &[EtcdMember]) -> BTreeSet<String> {
    let voters = live.iter().filter(|found| !found.learner);
    voters.map(|found| found.name.clone()).collect()
}

/// Voters that do not answer.
fn absent(context: &Context<'_>, live: &[EtcdMember]) -> BTreeSet<String> {
    let answers = |name: &str| {
        let found = live.iter().find(|found| found.name == name);
        found.is_some_and(|found| found.healthy && context.facts.reachable(name))
    };
    voters(live).into_iter().filter(|name| !answers(name)).collect()
}

/// Whether a member may be away for as long as it restarts. Where all others are there it must be, quorum or not.
fn bears(voters: &BTreeSet<String>, absent: &BTreeSet<String>, member: &str) -> bool {
    let others = voters.iter().filter(|name| *name != member);
    let (missing, present): (Vec<_>, Vec<_>) = others.partition(|name| absent.contains(*name));
    missing.is_empty() || present.len() > voters.len() / 2
}

fn left_alone(machine: &Machine, voters: &BTreeSet<String>, absent: &BTreeSet<String>) -> Note {
    let names: Vec<&str> = absent.iter().map(String::as_str).collect();
    Note {
        machine: Some(machine.name.clone()),
        message: format!(
            "etcd would have to restart here, and of {} members {} does not answer: the quorum would be lost meanwhile, so all of it is left for later",
            voters.len(),
            names.join(", ")
        ),
        hint: Some(
            "bring the silent member back, or take it out of the cluster file; then run `quorate apply` again".into(),
        ),
    }
}

/// What a member that was removed still has: with it, it would only learn that it was.
fn forget(draft: &mut Draft<'_>, context: &Context<'_>, machine: &str, chain: Vec<String>) -> Vec<String> {
    let step = |id: &str, title: &str, why: &str, action: Action, needs: Vec<String>| Step {
        id: id.into(),
        machine: machine.into(),
        title: title.into(),
        why: vec![why.into()],
        action,
        needs,
        done_when: Vec::new(),
        undo: Undo::Nothing {
            because: "what a former member has serves nobody; it gets all of it again from the others".into(),
        },
        attempts: 2,
        essential: true,
    };
    let stop = draft.id(machine, "stop");
    let action = Action::Units {
        reload: false,
        enable: Vec::new(),
        disable: Vec::new(),
        stop: vec!["etcd.service".into()],
        start: Vec::new(),
        restart: Vec::new(),
    };
    let why = format!("{machine} is no member, and its etcd has the data of one");
    draft.push(step(&stop, "stop etcd", &why, action, chain));
    let id = draft.id(machine, "forget-data");
    let data = context.spec.etcd.data_dir.as_str();
    let action = Action::Run {
        argv: ["/usr/bin/find", data, "-mindepth", "1", "-delete"]
            .map(str::to_owned)
            .to_vec(),
        stdin: None,
        timeout_ms: FORGET_TIMEOUT_MS,
    };
    let why = "a member that joins again starts without data";
    draft.push(step(&id, "empty etcd's data directory", why, action, vec![stop]));
    vec![id]
}

fn files(wanted: &mut Wanted<'_>) {
    wanted.authority(Ca::Etcd, paths::ETCD);
    for id in ["etcd-server", "etcd-peer", "etcd-healthcheck-client"] {
        wanted.certificate(id);
    }
}

fn bootstrap(wanted: &mut Wanted<'_>, members: &[Member], context: &Context<'_>, existing: bool) {
    let token = format!("quorate-{}", context.spec.name);
    wanted.file(
        &format!("{}/bootstrap.env", paths::ETCD),
        "root",
        0o600,
        Content::text(component::bootstrap(members, &token, existing)),
    );
}

/// Remove what is left of an earlier life of this member, then add it as a learner.
fn join(
    draft: &mut Draft<'_>,
    context: &Context<'_>,
    live: &[EtcdMember],
    found: Option<&EtcdMember>,
    member: &Member,
    mut chain: Vec<String>,
) -> Vec<String> {
    let Some(via) = healthy_other(context, live, &member.name) else {
        return chain;
    };
    if let Some(found) = found {
        chain = remove_stale(draft, context, live, &member.name, found, chain);
    }
    let id = draft.id(&member.name, "add-learner");
    let peer_url = format!("https://{}", host_port(member.address, component::PEER_PORT));
    let why = vec![format!("{} is not a member", member.name)];
    draft.push(change(
        &id,
        via,
        &format!("add {} as a learner", member.name),
        why,
        Action::EtcdAddLearner {
            name: member.name.clone(),
            peer_url,
        },
        chain,
    ));
    vec![id]
}

/// What is left in the list of an earlier life of the machine's member.
pub(crate) fn remove_stale(
    draft: &mut Draft<'_>,
    context: &Context<'_>,
    live: &[EtcdMember],
    machine: &str,
    found: &EtcdMember,
    chain: Vec<String>,
) -> Vec<String> {
    let Some(via) = healthy_other(context, live, machine) else {
        return chain;
    };
    let id = draft.id(machine, "remove-stale");
    let why = if found.name.is_empty() {
        format!("a member with {machine}'s peer address was added but never started")
    } else {
        format!("member {machine} is in the list, but its machine has no data")
    };
    draft.push(change(
        &id,
        via,
        "remove the stale member",
        vec![why],
        Action::EtcdRemove {
            id: found.id.clone(),
            name: machine.to_owned(),
        },
        chain,
    ));
    vec![id]
}

fn promote(
    draft: &mut Draft<'_>,
    context: &Context<'_>,
    live: &[EtcdMember],
    member: &Member,
    chain: Vec<String>,
) -> Vec<String> {
    let Some(via) = healthy_other(context, live, &member.name) else {
        return chain;
    };
    let id = draft.id(&member.name, "promote");
    let mut step = change(
        &id,
        via,
        &format!("promote {} to a voting member", member.name),
        vec!["a learner does not count for the quorum".into()],
        Action::EtcdPromote {
            name: member.name.clone(),
        },
        chain,
    );
    // Refused until the learner has caught up with the leader.
    step.attempts = 10;
    step.done_when = vec![Wait {
        until: Condition::EtcdMember {
            name: member.name.clone(),
        },
        timeout_ms: START_TIMEOUT_MS,
    }];
    draft.push(step);
    vec![id]
}

/// Removes members the cluster file no longer names.
pub(crate) fn retire(
    draft: &mut Draft<'_>,
    context: &Context<'_>,
    live: &[EtcdMember],
    wanted: &[Member],
    mut chain: Vec<String>,
) -> Vec<String> {
    for found in live
        .iter()
        .filter(|found| !wanted.iter().any(|member| is(found, member)))
    {
        let Some(via) = healthy_other(context, live, &found.name) else {
            continue;
        };
        let label = if found.name.is_empty() {
            found.id.clone()
        } else {
            found.name.clone()
        };
        let id = draft.id(&label, "remove");
        draft.push(change(
            &id,
            via,
            &format!("remove member {label}"),
            vec!["the cluster file does not name it".into()],
            Action::EtcdRemove {
                id: found.id.clone(),
                name: label.clone(),
            },
            chain,
        ));
        chain = vec![id];
    }
    chain
}

fn change(id: &str, via: &str, title: &str, why: Vec<String>, action: Action, needs: Vec<String>) -> Step {
    Step {
        id: id.into(),
        machine: via.into(),
        title: title.into(),
        why,
        action,
        needs,
        done_when: Vec::new(),
        undo: Undo::Manual {
            hint: "membership is not taken back by itself; change the cluster file and apply".into(),
        },
        attempts: 3,
        essential: true,
    }
}

/// A machine whose member is healthy and is not the one being changed.
fn healthy_other<'a>(context: &Context<'a>, live: &[EtcdMember], name: &str) -> Option<&'a str> {
    let healthy: BTreeSet<&str> = live
        .iter()
        .filter(|found| found.healthy && !found.learner)
        .map(|found| found.name.as_str())
        .collect();
    context
        .spec
        .etcd_members()
        .into_iter()
        .map(|machine| machine.name.as_str())
        .find(|machine| *machine != name && healthy.contains(machine) && context.facts.reachable(machine))
}

fn is(found: &EtcdMember, member: &Member) -> bool {
    let peer = format!("https://{}", host_port(member.address, component::PEER_PORT));
    found.name == member.name || found.peer_urls.contains(&peer)
}

/// No API server was ever set up: whatever etcd's members hold, nobody wrote it. Then a member without data may still be
/// started as one of the founders, which a first run that ended early makes necessary. Later that would be a voter
/// without memory: it could let the others forget what was acknowledged.
fn was_never_used(context: &Context<'_>) -> bool {
    let machines = context
        .spec
        .control_planes()
        .into_iter()
        .chain(context.spec.etcd_members());
    let api_server = paths::unit("kube-apiserver.service");
    machines.into_iter().all(|machine| {
        context
            .facts
            .host(&machine.name)
            .is_some_and(|host| !host.files.get(&api_server).is_some_and(|file| file.exists()))
    })
}

fn runs(context: &Context<'_>, machine: &Machine) -> bool {
    let host = context.facts.host(&machine.name);
    host.and_then(|host| host.units.get("etcd.service"))
        .is_some_and(|unit| unit.is_active())
}

/// etcd makes `member/` on its first start and never without.
fn has_data(context: &Context<'_>, machine: &Machine) -> bool {
    // What a member that lost its data makes anew before it finds out that it is known has no log.
    let path = format!("{}/member/wal", context.spec.etcd.data_dir);
    context
        .facts
        .host(&machine.name)
        .and_then(|host| host.files.get(&path))
        .is_some_and(|file| file.exists())
}
