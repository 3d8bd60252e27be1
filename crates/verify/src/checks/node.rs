//! Every node is Ready and runs the version the cluster file names.

use serde_json::Value;

use crate::{Check, Cluster, View, check, fail};

pub(crate) async fn checks(cluster: &Cluster<'_>, view: &View) -> Vec<Check> {
    let mut list = Vec::new();
    for node in cluster.spec.nodes().into_iter().filter(|node| !node.maintenance) {
        list.push(
            check("node", &node.name, async {
                let nodes = view
                    .nodes
                    .as_ref()
                    .map_err(|error| (error.clone(), "see the API servers".to_owned()))?;
                let hint = format!("on {}: journalctl -u kubelet", node.name);
                let Some(found) = nodes.get(&node.name) else {
                    return fail("has not joined", hint);
                };
                let conditions = found.pointer("/status/conditions").and_then(Value::as_array);
                let conditions = conditions.map_or(&[][..], Vec::as_slice);
                let ready = conditions.iter().find(|condition| condition["type"] == "Ready");
                if let Some(pressed) = pressed(conditions) {
                    let hint =
                        "a kubelet that is short of something takes no Pods and evicts those it has: give it more";
                    return fail(pressed, hint);
                }
                let version = found
                    .pointer("/status/nodeInfo/kubeletVersion")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                match ready {
                    Some(condition) if condition["status"] == "True" && version == cluster.spec.kubernetes.tag() => {
                        Ok(format!("Ready, {version}"))
                    }
                    Some(condition) if condition["status"] == "True" => fail(
                        format!("runs {version}, wanted {}", cluster.spec.kubernetes.tag()),
                        "quorate apply",
                    ),
                    Some(condition) => fail(
                        format!("not Ready: {}", condition["message"].as_str().unwrap_or_default()),
                        hint,
                    ),
                    None => fail("has reported nothing yet", hint),
                }
            })
            .await,
        );
    }
    list
}

/// `DiskPressure: kubelet has disk pressure` and its like, of a node that may be Ready all the same.
fn pressed(conditions: &[Value]) -> Option<String> {
    let text = |condition: &Value, key: &str| condition[key].as_str().unwrap_or_default().to_owned();
    let pressed = conditions
        .iter()
        .find(|condition| condition["status"] == "True" && text(condition, "type").ends_with("Pressure"))?;
    Some(format!("{}: {}", text(pressed, "type"), text(pressed, "message")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_ready_node_may_be_short_of_disk() {
        let ready = json!({"type": "Ready", "status": "True", "message": "kubelet is posting ready status"});
        let disk =
            |status: &str| json!({"type": "DiskPressure", "status": status, "message": "kubelet has disk pressure"});
        assert_eq!(pressed(&[disk("False"), ready.clone()]), None);
        assert_eq!(
            pressed(&[disk("True"), ready]).as_deref(),
            Some("DiskPressure: kubelet has disk pressure")
        );
    }
}
