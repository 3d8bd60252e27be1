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
                let conditions = found
                    .pointer("/status/conditions")
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten();
                let ready = conditions.into_iter().find(|condition| condition["type"] == "Ready");
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
