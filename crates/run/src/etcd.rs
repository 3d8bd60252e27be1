//! etcd's membership, asked of a member through its own gRPC gateway (<https://etcd.io/docs/v3.6/dev-guide/api_grpc_gateway/>)
//! by the machine it runs on, with the health-check certificate that lies there.

use std::time::Duration;

use quorate_facts::EtcdMember;
use quorate_machine::proto::HttpRequest;
use quorate_machine::{MachineError, MachineRef};
use quorate_spec::{Bootstrap, EtcdTopology, Spec};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

const URL: &str = "https://127.0.0.1:2379";
/// A member without a quorum keeps linearizable requests waiting; nobody waits for it longer.
const TIMEOUT_MS: u64 = 2_000;
/// After a start or a change etcd refuses the next change of membership until all voters were connected for 5 s.
const RECONFIGURE: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, thiserror::Error)]
pub enum EtcdError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("{machine}: etcd: {message}")]
    Refused { machine: String, message: String },
    #[error("{machine}: etcd: {name} is no member")]
    NoMember { machine: String, name: String },
}

/// What a member says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    pub cluster_id: String,
    pub member_id: String,
    /// Empty without a leader.
    pub leader: String,
    pub learner: bool,
    /// Of the store, as this member has it.
    pub revision: u64,
    /// Alarms and the like, in etcd's words.
    pub errors: Vec<String>,
}

impl Status {
    pub fn is_leader(&self) -> bool {
        self.leader == self.member_id
    }

    pub fn is_healthy(&self) -> bool {
        !self.leader.is_empty() && !self.learner
    }
}

/// Where a member's certificates lie on its machine.
fn pki(spec: &Spec) -> &'static str {
    let stacked = spec.etcd.topology == EtcdTopology::Stacked;
    if stacked && spec.kubernetes.bootstrap == Bootstrap::Kubeadm {
        "/etc/kubernetes/pki/etcd"
    } else {
        "/etc/etcd/pki"
    }
}

/// The cluster's id and its members; `healthy` is not filled in.
pub async fn members(machine: &MachineRef, spec: &Spec) -> Result<(String, Vec<EtcdMember>), EtcdError> {
    let reply = call(machine, spec, "/v3/cluster/member/list", json!({})).await?;
    let members = reply.get("members").and_then(Value::as_array).into_iter().flatten();
    Ok((id(&reply, "/header/cluster_id"), members.map(member).collect()))
}

pub async fn status(machine: &MachineRef, spec: &Spec) -> Result<Status, EtcdError> {
    let reply = call(machine, spec, "/v3/maintenance/status", json!({})).await?;
    let leader = id(&reply, "/leader");
    Ok(Status {
        cluster_id: id(&reply, "/header/cluster_id"),
        member_id: id(&reply, "/header/member_id"),
        leader: if leader == "0" { String::new() } else { leader },
        learner: reply.get("isLearner").and_then(Value::as_bool).unwrap_or_default(),
        revision: id(&reply, "/header/revision").parse().unwrap_or_default(),
        errors: reply
            .get("errors")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
    })
}

/// Adds a learner with this peer URL; one that is there already is fine.
pub(crate) async fn add_learner(machine: &MachineRef, spec: &Spec, peer_url: &str) -> Result<(), EtcdError> {
    if members(machine, spec)
        .await?
        .1
        .iter()
        .any(|member| member.peer_urls.iter().any(|url| url == peer_url))
    {
        return Ok(());
    }
    change(
        machine,
        spec,
        "/v3/cluster/member/add",
        json!({"peerURLs": [peer_url], "isLearner": true}),
    )
    .await
}

/// Makes the learner a voter; a voter is fine. Refused by etcd until it has caught up.
pub(crate) async fn promote(machine: &MachineRef, spec: &Spec, name: &str) -> Result<(), EtcdError> {
    let (_, members) = members(machine, spec).await?;
    match members.iter().find(|member| member.name == name) {
        None => Err(EtcdError::NoMember {
            machine: machine.name().into(),
            name: name.into(),
        }),
        Some(member) if !member.learner => Ok(()),
        Some(member) => change(machine, spec, "/v3/cluster/member/promote", json!({"ID": member.id})).await,
    }
}

/// Removes a member by its id; an unknown one is fine.
pub(crate) async fn remove(machine: &MachineRef, spec: &Spec, id: &str) -> Result<(), EtcdError> {
    if !members(machine, spec).await?.1.iter().any(|member| member.id == id) {
        return Ok(());
    }
    change(machine, spec, "/v3/cluster/member/remove", json!({"ID": id})).await
}

async fn change(machine: &MachineRef, spec: &Spec, path: &str, body: Value) -> Result<(), EtcdError> {
    let ends = Instant::now() + RECONFIGURE;
    loop {
        match call(machine, spec, path, body.clone()).await {
            Ok(_) => return Ok(()),
            Err(EtcdError::Refused { message, .. }) if not_yet(&message) && Instant::now() < ends => {
                sleep(Duration::from_millis(250)).await
            }
            Err(error) => return Err(error),
        }
    }
}

/// Refusals that end by themselves.
fn not_yet(message: &str) -> bool {
    [
        "unhealthy cluster",
        "in sync with leader",
        "not enough started members",
        "leader changed",
        "no leader",
        "request timed out",
    ]
    .iter()
    .any(|text| message.contains(text))
}

async fn call(machine: &MachineRef, spec: &Spec, path: &str, body: Value) -> Result<Value, EtcdError> {
    let pki = pki(spec);
    let mut request = HttpRequest::new("POST", format!("{URL}{path}"))
        .ca(format!("{pki}/ca.crt"))
        .client_cert(
            format!("{pki}/healthcheck-client.crt"),
            format!("{pki}/healthcheck-client.key"),
        )
        .json(body.to_string());
    request.timeout_ms = TIMEOUT_MS;
    let reply = machine.http(request).await?;
    let refused = |message: String| EtcdError::Refused {
        machine: machine.name().into(),
        message,
    };
    let value: Value = serde_json::from_slice(&reply.body)
        .map_err(|_| refused(format!("HTTP {}: {}", reply.status, reply.body.lossy())))?;
    if !reply.ok() {
        let said = value
            .get("message")
            .or(value.get("error"))
            .and_then(Value::as_str)
            .unwrap_or_default();
        return Err(refused(format!("HTTP {}: {said}", reply.status)));
    }
    Ok(value)
}

fn member(found: &Value) -> EtcdMember {
    let peers = found.get("peerURLs").and_then(Value::as_array).into_iter().flatten();
    EtcdMember {
        id: id(found, "/ID"),
        name: found.get("name").and_then(Value::as_str).unwrap_or_default().into(),
        peer_urls: peers.filter_map(|url| url.as_str().map(str::to_owned)).collect(),
        learner: found.get("isLearner").and_then(Value::as_bool).unwrap_or_default(),
        healthy: false,
    }
}

/// 64-bit numbers travel as decimal strings.
fn id(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Number(number)) => number.to_string(),
        _ => String::new(),
    }
}
