//! What was seen, against what must hold.

use super::*;

/// Requests take some milliseconds, a few hundred are made in a second: more than these are not under way at one instant.
const UNDER_WAY: u64 = 5;

impl Drill {
    pub(super) fn judge(
        &self,
        scenario: &Scenario,
        outcome: &mut Outcome,
        seen: &Seen,
        reverted_us: i64,
        why: &mut Vec<String>,
    ) {
        let (vantages, fault_us) = (&outcome.details.vantages, outcome.details.fault_us);
        let since = |at_us: i64| (at_us - fault_us) / 1_000;
        outcome.new = Series::of(Kind::New, vantages, fault_us);
        outcome.reused = Series::of(Kind::Reused, vantages, fault_us);
        outcome.watch = Series::of(Kind::Watch, vantages, fault_us);
        let writes = Series::of(Kind::Write, vantages, fault_us);
        outcome.writes = Writes {
            acknowledged: writes.sent - writes.failed,
            lost: 0,
            failed: writes.failed,
            worst_ms: writes.worst_ms,
        };

        let vip = reigns(seen.vip.clone());
        outcome.vip_owner = vip
            .iter()
            .map(|reign| Owner {
                at_ms: since(reign.at_us),
                owner: reign.holders.join("+"),
            })
            .collect();
        outcome.leader = reigns(seen.etcd.clone())
            .iter()
            .map(|reign| Leader {
                of: "etcd".into(),
                at_ms: since(reign.at_us),
                leader: reign.holders.join("+"),
            })
            .collect();
        for name in LEASES {
            let held = seen.leases.get(name).into_iter().flatten();
            outcome.leader.extend(held.map(|(at_us, holder)| Leader {
                of: name.into(),
                at_ms: since(*at_us),
                leader: holder.clone(),
            }));
        }

        let limits = scenario.limits;
        let mut exceeds = |what: &str, found: u64, limit: Option<u64>, unit: &str| {
            if let Some(limit) = limit.filter(|limit| found > *limit) {
                why.push(format!("{what}: {found}{unit}, the limit is {limit}{unit}"));
            }
        };
        exceeds("new connections failed", outcome.new.failed, limits.new_failed, "");
        exceeds(
            "new connections interrupted by the fault",
            outcome.new.interrupted,
            limits.new_failed.map(|_| UNDER_WAY),
            "",
        );
        exceeds(
            "slowest new connection",
            outcome.new.worst_ms,
            limits.new_worst_ms,
            " ms",
        );
        exceeds(
            "longest time without a new connection",
            outcome.new.outage_ms,
            limits.new_outage_ms,
            " ms",
        );
        exceeds(
            "VIP held by two machines after the fault",
            contested_ms(&vip, reverted_us, monotonic_us()),
            Some(CONTESTED_MS),
            " ms",
        );
        if outcome.new.sent == 0 {
            why.push("nothing was measured: no probe answered".into());
        }
    }

    /// Names that were acknowledged and are not there; `None` if all are. What was written is removed.
    pub(super) async fn read_back(&self, outcome: &Outcome) -> Result<Option<Vec<String>>, Error> {
        let Some(api) = self.session.api().await? else {
            return Ok(None);
        };
        let collection = format!("/api/v1/namespaces/{}/configmaps", probe::NAMESPACE);
        // Without a resource version: what a quorum has.
        let list = api.get(&collection).await?.unwrap_or_default();
        let found: std::collections::BTreeSet<&str> = list
            .get("items")
            .and_then(serde_json::Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|item| item.pointer("/metadata/name")?.as_str())
            .collect();
        let mut lost = Vec::new();
        for vantage in &outcome.details.vantages {
            for (key, acknowledged) in probe::written(&vantage.samples) {
                if acknowledged && !found.contains(key) {
                    lost.push(key.to_owned());
                }
            }
        }
        // Left over, it goes with the namespace at the drill's end.
        let _ = api.delete(&collection).await;
        Ok((!lost.is_empty()).then_some(lost))
    }
}
