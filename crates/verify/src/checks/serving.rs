//! No kubelet waits for its serving certificate: without one there are no logs and no exec.

use serde_json::Value;

use crate::{Check, Cluster, check, fail};

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    let finding = async {
        let Some(api) = &cluster.api else {
            return fail("no API server answers", "see the API servers");
        };
        let list = api
            .get("/apis/certificates.k8s.io/v1/certificatesigningrequests")
            .await
            .map_err(|error| (error.to_string(), String::new()))?;
        let waiting = list
            .as_ref()
            .and_then(|list| list.get("items"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|request| {
                request
                    .pointer("/status/conditions")
                    .is_none_or(|conditions| conditions.as_array().is_none_or(Vec::is_empty))
            })
            .filter(|request| {
                request.pointer("/spec/signerName").and_then(Value::as_str) == Some("kubernetes.io/kubelet-serving")
            })
            .filter_map(|request| request.pointer("/spec/username").and_then(Value::as_str))
            .map(|user| user.trim_start_matches("system:node:").to_owned())
            .collect::<std::collections::BTreeSet<_>>();
        if waiting.is_empty() {
            return Ok("no request waits for approval".to_owned());
        }
        fail(
            format!(
                "{} wait for approval",
                waiting.into_iter().collect::<Vec<_>>().join(", ")
            ),
            "`quorate apply` approves those whose names are right",
        )
    };
    vec![check("kubelet-certificates", "cluster", finding).await]
}
