//! Facts of everything at once: machines, etcd, API servers, images. One silent machine holds nobody up.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_facts::{ClusterFacts, EtcdFacts, Facts, HostFacts, MachineFacts};
use quorate_machine::MachineRef;
use quorate_machine::proto::{Exec, GatherQuery, HttpRequest};
use quorate_plan::queries::MachineQuery;
use quorate_plan::{paths, queries};
use quorate_spec::{Machine, Spec};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::catalogue::Catalogue;
use crate::error::Error;
use crate::etcd;
use crate::fleet::Fleet;
use crate::kube::Api;
use crate::operator::{Identity, Operator, now};

/// Hashing a few hundred megabytes of programs for the first time takes a slow disk some seconds.
const MACHINE_TIMEOUT: Duration = Duration::from_secs(30);
/// A containerd that hangs must not hold a plan up.
const IMAGES_TIMEOUT_MS: u64 = 5_000;
/// Requests to one API server at a time: as many idle connections as `machine` keeps.
const ASKERS: usize = 4;

pub(crate) async fn gather(
    spec: &Arc<Spec>,
    fleet: &Fleet,
    operator: &Operator,
    catalogue: &Catalogue,
) -> Result<Facts, Error> {
    let identity = operator.identity()?;
    let inventory = quorate_plan::certificates(spec);
    let mut asked = JoinSet::new();
    for machine in &spec.machines {
        let Some(connection) = fleet.get(&machine.name).cloned() else {
            continue;
        };
        asked.spawn(one(
            queries::machine(spec, machine, &inventory),
            machine.clone(),
            connection,
        ));
    }
    let (cluster, found) = tokio::join!(cluster(spec, fleet, identity), asked.join_all());
    let mut facts = Facts {
        taken_unix: now(),
        machines: BTreeMap::new(),
        operator: operator.facts(),
        bundle: catalogue.facts.clone(),
        cluster,
    };
    for (name, machine, images) in found {
        facts.cluster.images.extend(images.map(|images| (name.clone(), images)));
        facts.machines.insert(name, machine);
    }
    for machine in &spec.machines {
        let reason = || {
            fleet
                .unreachable()
                .get(&machine.name)
                .cloned()
                .unwrap_or_else(|| "no connection was made".into())
        };
        facts
            .machines
            .entry(machine.name.clone())
            .or_insert_with(|| MachineFacts::Unreachable { reason: reason() });
    }
    Ok(facts)
}

async fn one(
    query: MachineQuery,
    machine: Machine,
    connection: MachineRef,
) -> (String, MachineFacts, Option<BTreeSet<String>>) {
    let asked = timeout(MACHINE_TIMEOUT, async {
        tokio::join!(host(query, &connection), images(&machine, &connection))
    });
    let (found, images) = match asked.await {
        Ok((Ok(host), images)) => (MachineFacts::Found(Box::new(host)), images),
        Ok((Err(error), _)) if error.is_unreachable() => (
            MachineFacts::Unreachable {
                reason: error.to_string(),
            },
            None,
        ),
        Ok((Err(error), _)) => (
            MachineFacts::Silent {
                reason: error.to_string(),
            },
            None,
        ),
        Err(_) => (
            MachineFacts::Silent {
                reason: format!("nothing within {} s", MACHINE_TIMEOUT.as_secs()),
            },
            None,
        ),
    };
    (machine.name, found, images)
}

async fn host(query: MachineQuery, connection: &MachineRef) -> Result<HostFacts, quorate_machine::MachineError> {
    connection
        .gather(GatherQuery {
            paths: query.paths,
            roots: query.roots,
            text_roots: query.texts,
            keys: query.keys,
            certificates: query.kubeconfigs,
            units: query.units,
            sysctls: query.sysctls,
            modules: query.modules,
            users: query.users,
            options: query.options,
            programs: query.programs,
        })
        .await
}

/// References of the images the runtime holds; `None` while it is not up.
async fn images(machine: &Machine, connection: &MachineRef) -> Option<BTreeSet<String>> {
    const RUNTIME: &str = "containerd.service";
    if !machine.is_node()
        || !connection
            .unit_status(vec![RUNTIME.into()])
            .await
            .ok()?
            .get(RUNTIME)?
            .is_active()
    {
        return None;
    }
    let ctr =
        Exec::new([paths::bin("ctr").as_str(), "-n", "k8s.io", "images", "ls", "-q"]).timeout_ms(IMAGES_TIMEOUT_MS);
    // Without an answer every image would be imported again: asking twice is cheaper.
    let listed = match connection.exec_ok(ctr.clone()).await {
        Ok(listed) => listed,
        Err(_) => connection.exec_ok(ctr).await.ok()?,
    };
    Some(listed.stdout.lossy().lines().map(str::to_owned).collect())
}

async fn cluster(spec: &Arc<Spec>, fleet: &Fleet, identity: Option<Identity>) -> ClusterFacts {
    let (etcd, api) = tokio::join!(etcd_facts(spec, fleet), api_facts(spec, fleet, identity));
    ClusterFacts { etcd, ..api }
}

async fn etcd_facts(spec: &Arc<Spec>, fleet: &Fleet) -> Option<EtcdFacts> {
    let mut asked = JoinSet::new();
    for machine in spec.etcd_members() {
        let Some(connection) = fleet.get(&machine.name).cloned() else {
            continue;
        };
        let spec = spec.clone();
        asked.spawn(async move { tokio::join!(etcd::members(&connection, &spec), etcd::status(&connection, &spec)) });
    }
    let answers = asked.join_all().await;
    // A member that lost its data may have begun a cluster of its own: the one most members know counts, or the larger.
    let lists: Vec<_> = answers
        .iter()
        .filter_map(|(members, _)| members.as_ref().ok())
        .collect();
    let known = |cluster: &str| lists.iter().filter(|(id, _)| id == cluster).count();
    let (cluster_id, mut members) = lists
        .iter()
        .rev()
        .max_by_key(|(id, members)| (known(id), members.len()))
        .map(|list| (*list).clone())?;
    // A member that was once removed, or belongs to another cluster, may still answer for itself.
    let statuses: Vec<&etcd::Status> = answers
        .iter()
        .filter_map(|(_, status)| status.as_ref().ok())
        .filter(|status| status.cluster_id == cluster_id)
        .collect();
    for member in &mut members {
        member.healthy = statuses
            .iter()
            .any(|status| status.member_id == member.id && status.is_healthy());
    }
    let leader = statuses
        .iter()
        .map(|status| &status.leader)
        .find(|leader| !leader.is_empty());
    let leader = leader
        .and_then(|id| members.iter().find(|member| member.id == *id))
        .map(|member| member.name.clone());
    Some(EtcdFacts {
        cluster_id,
        leader,
        members,
    })
}

async fn api_facts(spec: &Spec, fleet: &Fleet, identity: Option<Identity>) -> ClusterFacts {
    let mut asked = JoinSet::new();
    for machine in spec.control_planes() {
        let Some(connection) = fleet.get(&machine.name).cloned() else {
            continue;
        };
        let (address, identity) = (spec.api_server_of(machine), identity.clone());
        asked.spawn(async move {
            let ready = ready(&connection, address).await;
            (
                connection.name().to_owned(),
                ready.then(|| identity.map(|identity| Api::new(connection, address, identity))),
            )
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by(|(left, _), (right, _)| left.cmp(right));
    let ready_api_servers = answers
        .iter()
        .filter(|(_, api)| api.is_some())
        .map(|(name, _)| name.clone())
        .collect();
    let servers: Vec<Api> = answers.into_iter().filter_map(|(_, api)| api.flatten()).collect();
    let paths = queries::objects(spec);
    let mut unknown: BTreeSet<String> = paths.iter().cloned().collect();
    let mut objects = BTreeMap::new();
    let (answers, serving_requests) = tokio::join!(answered(&servers, paths), serving_requests(&servers));
    for (path, answer) in answers {
        unknown.remove(&path);
        objects.extend(answer.map(|object| (path, object)));
    }
    ClusterFacts {
        ready_api_servers,
        objects,
        unknown,
        serving_requests,
        ..ClusterFacts::default()
    }
}

/// What one server fails to give is asked of the next.
async fn serving_requests(servers: &[Api]) -> BTreeSet<String> {
    for server in servers {
        if let Ok(nodes) = server.serving_requests().await {
            return nodes;
        }
    }
    BTreeSet::new()
}

/// Asked without an identity: health paths are open to everybody, and the authority's certificate lies on the machine.
async fn ready(connection: &MachineRef, address: std::net::SocketAddr) -> bool {
    let mut request = HttpRequest::get(format!("https://{address}/readyz")).ca(paths::pki("ca.crt"));
    request.server_name = Some("kubernetes".into());
    request.timeout_ms = 2_000;
    connection.http(request).await.is_ok_and(|reply| reply.status == 200)
}

/// What the API said of each path: the live object, or that there is none. Paths that stay without an answer are missing. A
/// few askers per server share the paths, so that each connection is used many times; what one server fails to give is
/// asked of another.
async fn answered(servers: &[Api], paths: Vec<String>) -> Vec<(String, Option<Value>)> {
    let left = Arc::new(Mutex::new(paths));
    let mut asked = JoinSet::new();
    for index in 0..servers.len() * ASKERS {
        let (server, other) = (
            servers[index % servers.len()].clone(),
            servers[(index + 1) % servers.len()].clone(),
        );
        let left = left.clone();
        asked.spawn(async move {
            let mut found = Vec::new();
            loop {
                let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop();
                let Some(path) = next else { return found };
                let answer = match server.get(&path).await {
                    Err(_) => other.get(&path).await,
                    answer => answer,
                };
                found.extend(answer.ok().map(|object| (path, object)));
            }
        });
    }
    asked.join_all().await.into_iter().flatten().collect()
}
