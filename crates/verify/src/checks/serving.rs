//! No kubelet waits for its serving certificate: without one there are no logs and no exec.

use std::collections::BTreeMap;

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
        // A kubelet that was restarted asks again and waits for its newest request only.
        let mut newest: BTreeMap<&str, &Value> = BTreeMap::new();
        for request in list
            .as_ref()
            .and_then(|list| list.get("items"))
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter(|request| text(request, "/spec/signerName") == "kubernetes.io/kubelet-serving")
        {
            let created = |request: &Value| text(request, "/metadata/creationTimestamp").to_owned();
            let of = newest.entry(text(request, "/spec/username")).or_insert(request);
            if created(of) < created(request) || (created(of) == created(request) && !is_decided(of)) {
                *of = request;
            }
        }
        let waiting: Vec<String> = newest
            .into_iter()
            .filter(|(_, request)| !is_decided(request))
            .map(|(user, _)| user.trim_start_matches("system:node:").to_owned())
            .collect();
        if waiting.is_empty() {
            return Ok("no request waits for approval".to_owned());
        }
        fail(
            format!("{} wait for approval", waiting.join(", ")),
            "`quorate apply` approves those whose names are right",
        )
    };
    vec![check("kubelet-certificates", "cluster", finding).await]
}

fn is_decided(request: &Value) -> bool {
    let conditions = request.pointer("/status/conditions").and_then(Value::as_array);
    conditions.is_some_and(|conditions| !conditions.is_empty())
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}
