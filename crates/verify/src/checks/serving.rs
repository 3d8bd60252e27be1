//! No kubelet waits for its serving certificate: without one there are no logs and no exec.

use crate::{Check, Cluster, check, fail};

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    let finding = async {
        let Some(api) = &cluster.api else {
            return fail("no API server answers", "see the API servers");
        };
        let waiting = api
            .serving_requests()
            .await
            .map_err(|error| (error.to_string(), String::new()))?;
        if waiting.is_empty() {
            return Ok("no request waits for approval".to_owned());
        }
        let waiting: Vec<String> = waiting.into_iter().collect();
        fail(
            format!("{} wait for approval", waiting.join(", ")),
            "`quorate apply` approves those whose names are right",
        )
    };
    vec![check("kubelet-certificates", "cluster", finding).await]
}
