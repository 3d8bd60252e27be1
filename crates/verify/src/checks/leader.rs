//! Controller manager and scheduler each have a leader that renews its lease.

use serde_json::Value;

use crate::{Check, Cluster, View, check, fail};

pub(crate) async fn checks(_cluster: &Cluster<'_>, view: &View) -> Vec<Check> {
    let mut list = Vec::new();
    for name in ["kube-controller-manager", "kube-scheduler"] {
        list.push(
            check("leader", name, async {
                let leases = view
                    .leases
                    .as_ref()
                    .map_err(|error| (error.clone(), "see the API servers".to_owned()))?;
                let hint = format!("on the control planes: journalctl -u {name}");
                let holder = leases
                    .get(name)
                    .and_then(|lease| lease.pointer("/spec/holderIdentity"))
                    .and_then(Value::as_str)
                    .filter(|holder| !holder.is_empty());
                let Some(holder) = holder else {
                    return fail("nobody holds the lease", hint);
                };
                // `m1_0f3c…`: the host name, and what tells two processes on it apart.
                Ok(format!("led by {}", holder.split('_').next().unwrap_or(holder)))
            })
            .await,
        );
    }
    list
}
