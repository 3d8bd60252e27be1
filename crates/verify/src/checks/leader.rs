//! Controller manager and scheduler each have a leader that renews its lease.

use serde_json::Value;

use super::clock;
use crate::{Check, Cluster, View, check};

/// Upstream's default, for a lease that does not say.
const DURATION_S: i64 = 15;
/// Clocks of control planes may be this far apart, with room for the moment between fetching a lease and judging it.
const MARGIN_MS: i64 = 5_000;

pub(crate) async fn checks(cluster: &Cluster<'_>, view: &View) -> Vec<Check> {
    let now_ms = now_ms(cluster).await;
    let mut list = Vec::new();
    for name in ["kube-controller-manager", "kube-scheduler"] {
        list.push(
            check("leader", name, async {
                let leases = view
                    .leases
                    .as_ref()
                    .map_err(|error| (error.clone(), "see the API servers".to_owned()))?;
                judge(leases.get(name), now_ms)
                    .map_err(|detail| (detail, format!("on the control planes: {}", cluster.logs_of(name))))
            })
            .await,
        );
    }
    list
}

/// The clock of the control plane whose API server is asked: its neighbours write the leases, and the operator's own clock
/// may be the wrong one.
async fn now_ms(cluster: &Cluster<'_>) -> i64 {
    let asked = match cluster.api.as_ref().and_then(|api| cluster.machine(api.machine())) {
        Some(machine) => clock::read_ms(machine).await,
        None => None,
    };
    asked.unwrap_or_else(|| cluster.now_unix.saturating_mul(1_000))
}

/// Whoever holds the lease renews it; a holder that does not is dead or hung.
fn judge(lease: Option<&Value>, now_ms: i64) -> Result<String, String> {
    let field = |name: &str| lease.and_then(|lease| lease.pointer("/spec")?.get(name));
    let text = |name: &str| field(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    // `m1_0f3c…`: the host name, and what tells two processes on it apart.
    let holder = text("holderIdentity").ok_or("nobody holds the lease")?;
    let holder = holder.split('_').next().unwrap_or(holder);
    let renewed: jiff::Timestamp = text("renewTime")
        .and_then(|time| time.parse().ok())
        .ok_or_else(|| format!("{holder} holds the lease and never renewed it"))?;
    let duration_ms = field("leaseDurationSeconds")
        .and_then(Value::as_i64)
        .unwrap_or(DURATION_S)
        .saturating_mul(1_000);
    let age_ms = now_ms.saturating_sub(renewed.as_millisecond());
    if age_ms > duration_ms.saturating_add(MARGIN_MS) {
        return Err(format!(
            "{holder} holds the lease and has not renewed it for {} s",
            age_ms / 1_000
        ));
    }
    Ok(format!("led by {holder}"))
}
