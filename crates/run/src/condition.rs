//! Waiting until a step's conditions hold. Every wait is bounded and can be given up.

use std::time::Duration;

use quorate_machine::proto::HttpRequest;
use quorate_machine::{MachineRef, Request, Response};
use quorate_plan::{ClientTls, Condition, Wait};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::etcd;
use crate::execute::{Ask, Run};
use crate::failure::StepError;
use crate::pods;

/// Between two looks at something cheap, and at something that costs a TLS handshake.
const POLL: Duration = Duration::from_millis(50);
const POLL_API: Duration = Duration::from_millis(100);
/// The machine itself repeats for this long before it reports back; keeps a wait from outliving a lost connection.
const SLICE_MS: u64 = 5_000;

/// What is awaited, for people.
pub(crate) fn describe(condition: &Condition) -> String {
    match condition {
        Condition::Http {
            url,
            contains: Some(text),
            ..
        } => format!("{url} to answer {text:?}"),
        Condition::Http { url, .. } => format!("{url} to answer 200"),
        Condition::Port { address } => format!("{address} to accept connections"),
        Condition::File { path } => format!("{path} to exist"),
        Condition::Gone { path } => format!("{path} to be gone"),
        Condition::UnitActive { unit } => format!("{unit} to be active"),
        Condition::Object { path, pointer, equals } => format!("{path} to have {pointer} = {equals}"),
        Condition::Deployment { path, replicas } => format!("{path} to have {replicas} new Pods ready and no others"),
        Condition::DaemonSet { path, nodes } => format!("{path} to be ready on {} nodes", nodes.len()),
        Condition::NodeReady { node } => format!("node {node} to be Ready"),
        Condition::EtcdMember { name } => format!("etcd member {name} to be healthy"),
    }
}

/// Returns when the condition holds; an error says what was seen last.
pub(crate) async fn wait(run: &Run, machine: &MachineRef, wait: &Wait) -> Result<(), StepError> {
    let begun = Instant::now();
    let limit = Duration::from_millis(wait.timeout_ms);
    loop {
        let left = limit.saturating_sub(begun.elapsed());
        let seen = tokio::select! {
            seen = look(run, machine, &wait.until, left) => seen,
            () = run.stop.stopped() => return Err(StepError::stopped()),
        };
        let (last, pause) = match seen {
            Ok(()) => return Ok(()),
            Err(seen) => seen,
        };
        if begun.elapsed() >= limit {
            let mut message = format!("waited {} s for {}: {last}", limit.as_secs(), describe(&wait.until));
            if let Condition::Deployment { path, .. } | Condition::DaemonSet { path, .. } = &wait.until
                && let Some(trouble) = pods::trouble(run, machine, path).await
            {
                message += &format!("; {trouble}");
            }
            return Err(StepError::lasting(message));
        }
        tokio::select! {
            () = sleep(pause) => {}
            () = run.stop.stopped() => return Err(StepError::stopped()),
        }
    }
}

type Seen = Result<(), (String, Duration)>;

async fn look(run: &Run, machine: &MachineRef, condition: &Condition, left: Duration) -> Seen {
    let slice = SLICE_MS.min(crate::event::ms(left).max(1));
    match condition {
        Condition::Http { url, tls, contains } => {
            let request = http(url, tls.as_ref());
            match contains {
                None => {
                    waited(
                        machine,
                        Request::WaitHttp {
                            http: request,
                            status: (200, 200),
                            timeout_ms: slice,
                        },
                    )
                    .await
                }
                Some(text) => match machine.http(request).await {
                    Ok(reply) if reply.status == 200 && reply.body.lossy().contains(text.as_str()) => Ok(()),
                    Ok(reply) => Err((
                        format!("HTTP {}: {}", reply.status, short(&reply.body.lossy())),
                        POLL_API,
                    )),
                    Err(error) => Err((error.message, POLL_API)),
                },
            }
        }
        Condition::Port { address } => match address.parse() {
            Ok(address) => {
                waited(
                    machine,
                    Request::WaitPort {
                        address,
                        timeout_ms: slice,
                    },
                )
                .await
            }
            Err(_) => Err((format!("{address} is no address"), left)),
        },
        Condition::File { path } | Condition::Gone { path } => {
            waited(
                machine,
                Request::WaitFile {
                    path: path.clone(),
                    absent: matches!(condition, Condition::Gone { .. }),
                    timeout_ms: slice,
                },
            )
            .await
        }
        Condition::UnitActive { unit } => match machine.unit_status(vec![unit.clone()]).await {
            Ok(units) => match units.get(unit) {
                Some(found) if found.is_active() => Ok(()),
                Some(found) => Err((
                    format!(
                        "it is {} ({}), result {}, exit status {}",
                        found.active, found.sub, found.result, found.exit_status
                    ),
                    POLL,
                )),
                None => Err(("systemd does not know it".into(), POLL)),
            },
            Err(error) => Err((error.to_string(), POLL)),
        },
        Condition::Object { path, pointer, equals } => {
            object(run, machine, path, |object| {
                let found = object.pointer(pointer).unwrap_or(&Value::Null);
                if found == equals {
                    Ok(())
                } else {
                    Err(format!("it is {found}"))
                }
            })
            .await
        }
        Condition::Deployment { path, replicas } => {
            object(run, machine, path, |object| deployment_ready(object, *replicas)).await
        }
        Condition::DaemonSet { path, nodes } => {
            let wanted = nodes.iter().filter(|node| !run.is_lost(node)).count() as u64;
            object(run, machine, path, |object| daemon_set_ready(object, wanted)).await
        }
        Condition::NodeReady { node } => object(run, machine, &format!("/api/v1/nodes/{node}"), node_ready).await,
        Condition::EtcdMember { name } => {
            let member = run.fleet.get(name).unwrap_or(machine);
            match etcd::status(member, &run.spec).await {
                Ok(status) if status.is_healthy() => Ok(()),
                Ok(status) if status.learner => Err(("it is a learner".into(), POLL)),
                Ok(_) => Err(("it sees no leader".into(), POLL)),
                Err(error) => Err((error.to_string(), POLL)),
            }
        }
    }
}

async fn object(run: &Run, machine: &MachineRef, path: &str, judge: impl Fn(&Value) -> Result<(), String>) -> Seen {
    let found = run.api(machine.name(), Ask::Get { path }).await;
    match found {
        Ok(Some(object)) => judge(&object).map_err(|seen| (seen, POLL_API)),
        Ok(None) => Err(("there is no such object".into(), POLL_API)),
        Err(error) => Err((error.to_string(), POLL_API)),
    }
}

/// A status of an earlier generation counts Pods of the former template.
fn is_current(object: &Value) -> bool {
    object.pointer("/status/observedGeneration") == object.pointer("/metadata/generation")
}

/// As `kubectl rollout status` has it: while a template is replaced, `readyReplicas` counts Pods of the former one, too.
fn deployment_ready(object: &Value, replicas: u32) -> Result<(), String> {
    if !is_current(object) {
        return Err("its controller has not seen the change yet".into());
    }
    let count = |field: &str| object["status"][field].as_u64().unwrap_or_default();
    let found = ["replicas", "updatedReplicas", "readyReplicas"].map(count);
    if found == [u64::from(replicas); 3] {
        Ok(())
    } else {
        let [all, updated, ready] = found;
        Err(format!("of {all} Pods {updated} are new and {ready} are ready"))
    }
}

/// As `kubectl rollout status` has it: `numberReady` counts Pods of the former template, too.
fn daemon_set_ready(object: &Value, wanted: u64) -> Result<(), String> {
    if !is_current(object) {
        return Err("its controller has not seen the change yet".into());
    }
    let count = |field: &str| object["status"][field].as_u64().unwrap_or_default();
    let [updated, ready] = ["updatedNumberScheduled", "numberReady"].map(count);
    if updated >= wanted && ready >= wanted {
        Ok(())
    } else {
        Err(format!("of {wanted} Pods {updated} are new and {ready} are ready"))
    }
}

fn node_ready(node: &Value) -> Result<(), String> {
    let conditions = node.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.and_then(|all| {
        all.iter()
            .find(|condition| crate::kube::text(condition, "/type") == "Ready")
    });
    match ready {
        Some(ready) if crate::kube::text(ready, "/status") == "True" => Ok(()),
        Some(ready) => Err(short(crate::kube::text(ready, "/message")).to_owned()),
        None => Err("its kubelet has not reported yet".into()),
    }
}

async fn waited(machine: &MachineRef, request: Request) -> Seen {
    match machine.call(request).await {
        Ok(Response::Wait(waited)) if waited.ok => Ok(()),
        Ok(Response::Wait(waited)) => Err((waited.last, POLL)),
        Ok(_) => Err(("the machine gave an answer to another question".into(), POLL)),
        Err(error) => Err((error.to_string(), POLL_API)),
    }
}

fn http(url: &str, tls: Option<&ClientTls>) -> HttpRequest {
    let mut request = HttpRequest::get(url);
    if let Some(tls) = tls {
        request.ca_file = Some(tls.ca.clone());
        request.cert_file.clone_from(&tls.certificate);
        request.key_file.clone_from(&tls.key);
        request.server_name.clone_from(&tls.server_name);
    }
    request.timeout_ms = 3_000;
    request
}

fn short(text: &str) -> &str {
    text.char_indices().nth(200).map_or(text, |(end, _)| &text[..end])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_is_ready_by_pods_of_its_former_template() {
        let judge = |observed: u32, replicas: u32, updated: u32, ready: u32| {
            let status = json!({"observedGeneration": observed, "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready});
            deployment_ready(&json!({"metadata": {"generation": 2}, "status": status}), 2)
        };
        assert_eq!(judge(2, 2, 2, 2), Ok(()));
        for (observed, replicas, updated, ready) in
            [(1, 2, 2, 2), (2, 2, 1, 2), (2, 3, 2, 2), (2, 3, 2, 3), (2, 2, 2, 1)]
        {
            assert!(judge(observed, replicas, updated, ready).is_err());
        }
        let judge = |observed: u32, updated: u32, ready: u32| {
            let status =
                json!({"observedGeneration": observed, "updatedNumberScheduled": updated, "numberReady": ready});
            daemon_set_ready(&json!({"metadata": {"generation": 2}, "status": status}), 2)
        };
        assert_eq!(judge(2, 2, 2), Ok(()));
        for (observed, updated, ready) in [(1, 2, 2), (2, 1, 2), (2, 2, 1)] {
            assert!(judge(observed, updated, ready).is_err());
        }
        // One without a status.
        assert!(deployment_ready(&json!({"metadata": {"generation": 1}}), 2).is_err());
    }
}
