//! What was seen, against what must hold.

use super::*;

/// Requests take some milliseconds, a few hundred are made in a second: more than these are not under way at one instant.
const UNDER_WAY: u64 = 5;

/// What there is to say of a scenario.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// What did not hold.
    pub(super) why: Vec<String>,
    /// What did not, and need not.
    pub(super) allowed: Vec<String>,
    /// Why it could not be done.
    pub(super) skipped: Option<String>,
}

impl Findings {
    /// The last word. What was skipped but left something behind has failed.
    pub(super) fn settle(mut self, outcome: &mut Outcome) {
        outcome.ok = self.why.is_empty() && self.skipped.is_none();
        outcome.skipped = self.why.is_empty() && self.skipped.is_some();
        self.why.extend(self.skipped.map(|reason| format!("skipped: {reason}")));
        self.why.append(&mut self.allowed);
        outcome.why = self.why.join("; ");
    }
}

/// What clients must not see more of than this. `api_stays`: not in a scenario that takes the whole API away.
pub(super) fn clients(limits: &Limits, api_stays: bool, outcome: &Outcome, findings: &mut Findings) {
    let mut exceeds = |what: &str, found: u64, limit: Option<u64>, unit: &str| {
        if let Some(limit) = limit.filter(|limit| found > *limit) {
            findings
                .why
                .push(format!("{what}: {found}{unit}, the limit is {limit}{unit}"));
        }
    };
    let (new, reused, watch, writes) = (&outcome.new, &outcome.reused, &outcome.watch, &outcome.writes);
    for (name, series, limit) in [
        ("new connections", new, limits.new_failed),
        ("requests on reused connections", reused, limits.reused_failed),
    ] {
        exceeds(&format!("{name} failed"), series.failed - series.interrupted, limit, "");
        exceeds(
            &format!("{name} cut off when the power went"),
            series.interrupted,
            limit.map(|_| UNDER_WAY),
            "",
        );
    }
    exceeds(
        "slowest new connection",
        new.answerable_worst_ms,
        limits.new_worst_ms,
        " ms",
    );
    exceeds(
        "longest time without a new connection",
        new.outage_ms,
        limits.new_outage_ms,
        " ms",
    );
    exceeds(
        "longest time without an answer on a reused connection",
        reused.outage_ms,
        limits.reused_outage_ms,
        " ms",
    );
    exceeds(
        "acknowledged writes that a watch did not show",
        watch.failed,
        limits.watch_worst_ms.map(|_| 0),
        "",
    );
    exceeds(
        "slowest way of an acknowledged write to a watch",
        watch.worst_ms,
        limits.watch_worst_ms,
        " ms",
    );
    exceeds(
        "longest time without an acknowledged write",
        writes.outage_ms,
        limits.write_outage_ms,
        " ms",
    );
    if new.sent == 0 {
        findings.why.push("nothing was measured: no probe answered".into());
    } else if api_stays && writes.acknowledged == 0 {
        findings
            .why
            .push("no write was acknowledged, so that nothing is known of lost ones".into());
    }
    let cut = new.interrupted + reused.interrupted;
    if cut > 0 {
        findings.allowed.push(format!(
            "{cut} of the failed reads were under way when the power went: what that machine had taken, no other can answer"
        ));
    }
}

impl Drill {
    pub(super) fn judge(
        &self,
        scenario: &Scenario,
        outcome: &mut Outcome,
        seen: &Seen,
        cuts_us: &[i64],
        reverted_us: i64,
        findings: &mut Findings,
    ) {
        let (vantages, fault_us) = (&outcome.details.vantages, outcome.details.fault_us);
        let since = |at_us: i64| (at_us - fault_us) / 1_000;
        outcome.new = Series::of(Kind::New, vantages, fault_us, cuts_us);
        outcome.reused = Series::of(Kind::Reused, vantages, fault_us, cuts_us);
        outcome.watch = Series::of(Kind::Watch, vantages, fault_us, cuts_us);
        let writes = Series::of(Kind::Write, vantages, fault_us, cuts_us);
        outcome.writes = Writes {
            acknowledged: writes.sent - writes.failed,
            lost: 0,
            outage_ms: writes.outage_ms,
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
            outcome.leader.extend(held.map(|held| Leader {
                of: name.into(),
                at_ms: since(held.at_us),
                leader: holders::host(&held.holder).to_owned(),
            }));
        }

        let spec = &self.session.spec;
        let limits = scenario.limits_on(spec);
        clients(&limits, !scenario.takes_api_away(spec), outcome, findings);
        let times = Times {
            fault_us,
            ended_us: cuts_us.iter().copied().max().unwrap_or(fault_us),
            reverted_us,
            end_us: monotonic_us(),
        };
        let broken = &outcome.details.targets;
        findings.why.extend(holders::vip(&limits, &vip, broken, times));
        for (name, held) in &seen.leases {
            findings
                .why
                .extend(holders::lease(scenario, &limits, spec, name, held, broken, times));
        }
    }

    /// Names that were acknowledged and are not there. What was written is removed.
    pub(super) async fn read_back(&self, outcome: &Outcome) -> Result<Vec<String>, Error> {
        let Some(api) = self.session.api().await? else {
            return Err(Error::Unread);
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
        Ok(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nothing was noticed.
    fn calm() -> Outcome {
        let series = Series {
            sent: 100,
            worst_ms: 20,
            answerable_worst_ms: 20,
            ..Series::default()
        };
        Outcome {
            new: series.clone(),
            reused: series.clone(),
            watch: series,
            writes: Writes {
                acknowledged: 50,
                ..Writes::default()
            },
            ..Outcome::default()
        }
    }

    fn judged(name: &str, seen: impl FnOnce(&mut Outcome)) -> Findings {
        let mut outcome = calm();
        seen(&mut outcome);
        let scenario = crate::scenario::find(name).unwrap();
        let mut findings = Findings::default();
        clients(&scenario.limits, !scenario.loses_quorum, &outcome, &mut findings);
        findings
    }

    fn why(name: &str, seen: impl FnOnce(&mut Outcome)) -> String {
        judged(name, seen).why.join("; ")
    }

    #[test]
    fn reused_connections_watches_and_writes_are_judged_too() {
        let name = "api-server-killed";
        assert_eq!(why(name, |_| ()), "");
        assert!(why(name, |seen| seen.reused.failed = 1).contains("reused connections failed: 1"));
        assert!(why(name, |seen| seen.reused.outage_ms = 2_001).contains("on a reused connection: 2001 ms"));
        assert!(why(name, |seen| seen.watch.worst_ms = 2_001).contains("to a watch: 2001 ms"));
        assert!(why(name, |seen| seen.watch.failed = 1).contains("a watch did not show: 1"));
        assert!(why(name, |seen| seen.writes.outage_ms = 2_001).contains("without an acknowledged write: 2001 ms"));
        let lost = why("cold-start", |seen| {
            seen.reused.failed = 90;
            seen.watch.worst_ms = 60_000;
            seen.writes.outage_ms = 60_000;
        });
        assert_eq!(lost, "", "nothing is promised without a quorum");
    }

    #[test]
    fn what_a_machine_took_into_its_grave_is_allowed_and_said() {
        let findings = judged("machine-off-vip-holder", |seen| {
            seen.new.failed = 2;
            seen.new.interrupted = 2;
            seen.new.worst_ms = 5_000;
        });
        let mut outcome = calm();
        assert_eq!(findings.why, [""; 0]);
        findings.settle(&mut outcome);
        assert!(
            outcome.ok && outcome.why.contains("2 of the failed reads"),
            "{}",
            outcome.why
        );

        let more = why("machine-off-vip-holder", |seen| {
            seen.new.failed = 3;
            seen.new.interrupted = 2;
        });
        assert!(more.contains("new connections failed: 1"), "{more}");
        let many = why("machine-off-vip-holder", |seen| {
            seen.new.failed = 6;
            seen.new.interrupted = 6;
        });
        assert!(many.contains("cut off when the power went: 6"), "{many}");
    }

    #[test]
    fn no_acknowledged_write_shows_nothing_unless_the_api_was_away() {
        let none = |name: &str| why(name, |seen| seen.writes.acknowledged = 0);
        assert!(none("api-server-killed").contains("no write was acknowledged"));
        assert_eq!(none("quorum-lost"), "");
    }

    #[test]
    fn what_was_skipped_has_not_held_and_has_failed_only_if_it_left_something() {
        let mut outcome = calm();
        let skipped = || Some("m2 has no /dev/net/tun".to_owned());
        let findings = Findings {
            skipped: skipped(),
            ..Findings::default()
        };
        findings.settle(&mut outcome);
        assert!(!outcome.ok && outcome.skipped);
        assert_eq!(outcome.why, "skipped: m2 has no /dev/net/tun");
        let findings = Findings {
            skipped: skipped(),
            why: vec!["not green within 120 s".into()],
            ..Findings::default()
        };
        findings.settle(&mut outcome);
        assert!(!outcome.ok && !outcome.skipped);
    }
}
