//! A small client of the Kubernetes API. Requests are made by a control plane to its own API server, so that they work
//! before there is an endpoint; the identity travels with the request and never touches the machine's disk.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_machine::proto::{Bytes, HttpRequest};
use quorate_machine::{MachineError, MachineRef};
use quorate_pki::csr;
use quorate_pki::inventory::Host;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::operator::Identity;

/// Owner of the fields Quorate sets with server-side apply.
pub(crate) const FIELD_MANAGER: &str = "quorate";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";
/// A kubelet's user name, before the name of its node.
const NODE_USER: &str = "system:node:";

/// The API server of one control plane.
#[derive(Clone)]
pub struct Api {
    machine: MachineRef,
    address: SocketAddr,
    identity: Identity,
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum ApiError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// What the server said (`Status.message`).
    #[error("{machine}: {method} {path}: HTTP {status}: {message}")]
    Refused {
        machine: String,
        method: String,
        path: String,
        status: u16,
        message: String,
    },
    #[error("{machine}: {path}: not JSON: {reason}")]
    Malformed {
        machine: String,
        path: String,
        reason: String,
    },
    #[error("the serving certificate of {node} is not approved: {}", reasons.join("; "))]
    Csr { node: String, reasons: Vec<String> },
    #[error("{0}")]
    Late(String),
}

impl ApiError {
    /// Trying again may help: the server is starting, busy, or lacks something that comes by itself (a namespace).
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Machine(_) | Self::Late(_) => true,
            Self::Refused { status, .. } => matches!(status, 403 | 404 | 408 | 409 | 429 | 500..),
            Self::Malformed { .. } | Self::Csr { .. } => false,
        }
    }
}

impl Api {
    /// `address`: where `machine` reaches the server, usually its own.
    pub fn new(machine: MachineRef, address: SocketAddr, identity: Identity) -> Self {
        Self {
            machine,
            address,
            identity,
        }
    }

    pub fn machine(&self) -> &str {
        self.machine.name()
    }

    /// Whether `/readyz` answers 200.
    pub async fn ready(&self) -> bool {
        let mut request = self.request("GET", "/readyz", Bytes::default());
        request.timeout_ms = 2_000;
        self.machine.http(request).await.is_ok_and(|reply| reply.status == 200)
    }

    /// `None` if there is no such object.
    pub async fn get(&self, path: &str) -> Result<Option<Value>, ApiError> {
        match self.call("GET", path, None, Bytes::default()).await {
            Ok(value) => Ok(Some(value)),
            Err(ApiError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The body of an answer that is no JSON, such as a Pod's log.
    pub async fn text(&self, path: &str) -> Result<String, ApiError> {
        self.send("GET", path, None, Bytes::default())
            .await
            .map(|body| body.lossy())
    }

    /// Server-side apply of the object at `path`; conflicts are taken over.
    pub async fn apply(&self, path: &str, body: &[u8]) -> Result<Value, ApiError> {
        // JSON is YAML.
        let path = format!("{path}?fieldManager={FIELD_MANAGER}&force=true");
        self.call("PATCH", &path, Some("application/apply-patch+yaml"), body.into())
            .await
    }

    pub async fn replace(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.call("PUT", path, Some("application/json"), body.to_string().into())
            .await
    }

    pub async fn create(&self, collection: &str, body: &Value) -> Result<Value, ApiError> {
        self.call("POST", collection, Some("application/json"), body.to_string().into())
            .await
    }

    /// An absent object is fine.
    pub async fn delete(&self, path: &str) -> Result<(), ApiError> {
        match self.call("DELETE", path, None, Bytes::default()).await {
            Ok(_) | Err(ApiError::Refused { status: 404, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Nodes whose kubelet waits for an approval of the serving certificate it asked for last.
    pub async fn serving_requests(&self) -> Result<BTreeSet<String>, ApiError> {
        let newest = newest_requests(self).await?;
        let waiting = newest.iter().filter(|(_, request)| !is_decided(request));
        Ok(waiting
            .filter_map(|(user, _)| Some(user.strip_prefix(NODE_USER)?.to_owned()))
            .collect())
    }

    /// Waits for the kubelet's serving request, approves it if its names and addresses are those of `node`, and waits
    /// until it is signed.
    pub(crate) async fn approve_serving(
        &self,
        requests: &Requests,
        node: &Host,
        within: Duration,
    ) -> Result<(), ApiError> {
        let ends = Instant::now() + within;
        let user = format!("{NODE_USER}{}", node.name);
        let mut refused = Vec::new();
        let mut approved: Option<String> = None;
        loop {
            let newest = match &approved {
                None => requests.newest(self, &user).await?,
                // One object instead of all, while the controller manager signs it.
                Some(name) => self.get(&format!("{CSRS}/{name}")).await?.map(Arc::new),
            };
            match &newest {
                Some(request) if !text(request, "/status/certificate").is_empty() => return Ok(()),
                Some(request) if !is_decided(request) => match judge(request, node) {
                    Ok(()) => {
                        self.approve(request).await?;
                        approved = Some(text(request, "/metadata/name").to_owned());
                    }
                    Err(reasons) => refused = reasons,
                },
                _ => {}
            }
            if Instant::now() >= ends {
                return Err(match (refused.is_empty(), &newest) {
                    (false, _) => ApiError::Csr {
                        node: node.name.clone(),
                        reasons: refused,
                    },
                    (_, None) => {
                        ApiError::Late(format!("the kubelet of {} asked for no serving certificate", node.name))
                    }
                    (_, Some(_)) => ApiError::Late(format!(
                        "the controller manager did not sign the serving certificate of {}",
                        node.name
                    )),
                });
            }
            sleep(Duration::from_millis(if refused.is_empty() { 100 } else { 500 })).await;
        }
    }

    async fn approve(&self, request: &Value) -> Result<(), ApiError> {
        let mut approved = request.clone();
        approved["apiVersion"] = json!("certificates.k8s.io/v1");
        approved["kind"] = json!("CertificateSigningRequest");
        approved["status"]["conditions"] = json!([{"type": "Approved", "status": "True", "reason": "QuorateApproved", "message": "names and addresses are those of the cluster file"}]);
        let path = format!("{CSRS}/{}/approval", text(request, "/metadata/name"));
        match self.replace(&path, &approved).await {
            // Somebody changed it meanwhile; it is looked at again.
            Ok(_) | Err(ApiError::Refused { status: 409, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn call(&self, method: &str, path: &str, content_type: Option<&str>, body: Bytes) -> Result<Value, ApiError> {
        let answer = self.send(method, path, content_type, body).await?;
        serde_json::from_slice(&answer).map_err(|error| ApiError::Malformed {
            machine: self.machine().into(),
            path: path.into(),
            reason: error.to_string(),
        })
    }

    async fn send(&self, method: &str, path: &str, content_type: Option<&str>, body: Bytes) -> Result<Bytes, ApiError> {
        let mut request = self.request(method, path, body);
        if let Some(content_type) = content_type {
            request = request.header("content-type", content_type);
        }
        let reply = self.machine.http(request).await?;
        if !reply.ok() {
            let message = serde_json::from_slice::<Value>(&reply.body)
                .ok()
                .and_then(|status| Some(status.get("message")?.as_str()?.to_owned()));
            return Err(ApiError::Refused {
                machine: self.machine().into(),
                method: method.into(),
                path: path.split('?').next().unwrap_or_default().into(),
                status: reply.status,
                message: message.unwrap_or_else(|| reply.body.lossy().chars().take(200).collect()),
            });
        }
        Ok(reply.body)
    }

    fn request(&self, method: &str, path: &str, body: Bytes) -> HttpRequest {
        let mut request = HttpRequest::new(method, format!("https://{}{path}", self.address))
            .header("accept", "application/json")
            .body(body);
        request.identity = Some(self.identity.client.clone());
        request.ca_pem = Some(self.identity.authority.clone());
        request.server_name = Some("kubernetes".into());
        request
    }
}

/// The kubelets' requests for serving certificates, listed once for all who wait for one: a thousand nodes that join at
/// the same time would each fetch a list of a thousand.
#[derive(Default)]
pub(crate) struct Requests(tokio::sync::Mutex<Option<Listed>>);

struct Listed {
    at: Instant,
    /// By the requester's name; the kubelet waits for the one it made last.
    newest: BTreeMap<String, Arc<Value>>,
}

impl Requests {
    const FRESH: Duration = Duration::from_millis(150);

    async fn newest(&self, api: &Api, user: &str) -> Result<Option<Arc<Value>>, ApiError> {
        let mut listed = self.0.lock().await;
        if let Some(listed) = listed.as_ref().filter(|listed| listed.at.elapsed() < Self::FRESH) {
            return Ok(listed.newest.get(user).cloned());
        }
        let newest = newest_requests(api).await?;
        let answer = newest.get(user).cloned();
        *listed = Some(Listed {
            at: Instant::now(),
            newest,
        });
        Ok(answer)
    }
}

/// The serving certificate each kubelet asked for last, by its user name; it waits for no other.
async fn newest_requests(api: &Api) -> Result<BTreeMap<String, Arc<Value>>, ApiError> {
    let list = format!("{CSRS}?fieldSelector=spec.signerName%3D{}", csr::SERVING_SIGNER);
    let mut found = api.get(&list).await?.unwrap_or_default();
    let items = found
        .get_mut("items")
        .and_then(Value::as_array_mut)
        .map(std::mem::take)
        .unwrap_or_default();
    // Within a second it is the one that is not decided.
    let age = |item: &Value| (text(item, "/metadata/creationTimestamp").to_owned(), !is_decided(item));
    let mut newest: BTreeMap<String, Arc<Value>> = BTreeMap::new();
    for item in items {
        let user = text(&item, "/spec/username").to_owned();
        if newest.get(&user).is_none_or(|other| age(other) <= age(&item)) {
            newest.insert(user, Arc::new(item));
        }
    }
    Ok(newest)
}

/// Why the request is not good; empty never.
fn judge(request: &Value, node: &Host) -> Result<(), Vec<String>> {
    let strings = |pointer: &str| -> Vec<String> {
        request
            .pointer(pointer)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|value| value.as_str().map(str::to_owned))
            .collect()
    };
    let pem = STANDARD
        .decode(text(request, "/spec/request"))
        .map_err(|error| vec![format!("spec.request: {error}")])?;
    let parsed = csr::parse(&String::from_utf8_lossy(&pem)).map_err(|error| vec![error.to_string()])?;
    let (groups, usages) = (strings("/spec/groups"), strings("/spec/usages"));
    let asked = csr::Request {
        signer: text(request, "/spec/signerName"),
        username: text(request, "/spec/username"),
        groups: &groups,
        usages: &usages,
    };
    csr::judge(&parsed, &asked, std::slice::from_ref(node)).map(|_| ())
}

fn is_decided(request: &Value) -> bool {
    let conditions = request.pointer("/status/conditions").and_then(Value::as_array);
    conditions.is_some_and(|conditions| {
        conditions
            .iter()
            .any(|condition| matches!(text(condition, "/type"), "Approved" | "Denied" | "Failed"))
    })
}

pub(crate) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The addresses as the plan writes them.
pub(crate) fn host(name: &str, names: &[String], addresses: &[String]) -> Host {
    Host {
        name: name.into(),
        names: names.to_vec(),
        addresses: addresses
            .iter()
            .filter_map(|address| address.parse::<IpAddr>().ok())
            .collect(),
    }
}
