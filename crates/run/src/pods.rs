//! Why the Pods of a Deployment or DaemonSet are not ready, in their own words.

use quorate_machine::MachineRef;
use serde_json::Value;

use crate::execute::{Ask, Run};
use crate::kube::text;

/// What is said of at most so many Pods; the others mostly have the same trouble.
const MOST: usize = 2;

/// The troubles of the Pods of the object at `path`, one after the other; `None` when nothing can be said.
pub(crate) async fn trouble(run: &Run, machine: &MachineRef, path: &str) -> Option<String> {
    let (namespace, _) = path.split_once("/namespaces/")?.1.split_once('/')?;
    let owner = run.api(machine.name(), Ask::Get { path }).await.ok()??;
    let labels: Vec<String> = owner
        .pointer("/spec/selector/matchLabels")?
        .as_object()?
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}%3D{}", value.as_str()?)))
        .collect();
    let pods = format!("/api/v1/namespaces/{namespace}/pods?labelSelector={}", labels.join(","));
    let pods = run.api(machine.name(), Ask::Get { path: &pods }).await.ok()??;
    let told: Vec<String> = pods
        .get("items")?
        .as_array()?
        .iter()
        .filter_map(of_pod)
        .take(MOST)
        .collect();
    (!told.is_empty()).then(|| told.join("; "))
}

/// `Pod NAME on NODE: why`; `None` for one that is ready.
fn of_pod(pod: &Value) -> Option<String> {
    let name = text(pod, "/metadata/name");
    let why = unschedulable(pod).or_else(|| waiting(pod)).or_else(|| not_ready(pod))?;
    let place = match text(pod, "/spec/nodeName") {
        "" => String::new(),
        node => format!(" on {node}"),
    };
    Some(format!("Pod {name}{place}: {why}"))
}

fn condition<'a>(pod: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = pod.pointer("/status/conditions")?.as_array()?;
    conditions
        .iter()
        .find(|found| text(found, "/type") == kind && text(found, "/status") == "False")
}

fn unschedulable(pod: &Value) -> Option<String> {
    let found = condition(pod, "PodScheduled")?;
    Some(format!("not scheduled: {}", text(found, "/message")))
}

/// A container that was not started, or that ended.
fn waiting(pod: &Value) -> Option<String> {
    let statuses = pod.pointer("/status/containerStatuses")?.as_array()?;
    statuses.iter().find_map(|status| {
        let state = status
            .pointer("/state/waiting")
            .or_else(|| status.pointer("/state/terminated"))?;
        let why = [text(state, "/reason"), text(state, "/message")];
        let why: Vec<&str> = why.into_iter().filter(|part| !part.is_empty()).collect();
        Some(why.join(": "))
    })
}

fn not_ready(pod: &Value) -> Option<String> {
    let found = condition(pod, "Ready")?;
    let why = [text(found, "/reason"), text(found, "/message")];
    let why: Vec<&str> = why.into_iter().filter(|part| !part.is_empty()).collect();
    Some(why.join(": "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_kind_of_trouble_is_told() {
        let pod = |node: &str, status: Value| json!({"metadata": {"name": "dns-1"}, "spec": {"nodeName": node}, "status": status});
        let pending = pod(
            "",
            json!({"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/5 nodes are available"}]}),
        );
        assert_eq!(
            of_pod(&pending).as_deref(),
            Some("Pod dns-1: not scheduled: 0/5 nodes are available")
        );
        let no_image = pod(
            "m1",
            json!({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImageNeverPull", "message": "not present"}}}]}),
        );
        assert_eq!(
            of_pod(&no_image).as_deref(),
            Some("Pod dns-1 on m1: ErrImageNeverPull: not present")
        );
        let unready = pod(
            "m1",
            json!({"containerStatuses": [{"state": {"running": {}}}], "conditions": [
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "containers with unready status: [coredns]"}
            ]}),
        );
        assert_eq!(
            of_pod(&unready).as_deref(),
            Some("Pod dns-1 on m1: ContainersNotReady: containers with unready status: [coredns]")
        );
        let ready = pod("m1", json!({"conditions": [{"type": "Ready", "status": "True"}]}));
        assert_eq!(of_pod(&ready), None);
    }
}
