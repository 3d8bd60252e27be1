//! etcd: every member is healthy and a voter of the same cluster, and none lags behind.

use futures_util::future::join_all;
use quorate_run::etcd;

use crate::{Check, Cluster, check, fail};

/// Revisions a member may be behind when asked at slightly different moments under load.
const MAX_LAG: u64 = 1_000;

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    let members = cluster.spec.etcd_members();
    let statuses = join_all(members.iter().map(|member| async {
        match cluster.machine(&member.name) {
            Some(machine) => etcd::status(machine, cluster.spec)
                .await
                .map_err(|error| error.to_string()),
            None => Err("its machine does not answer".to_owned()),
        }
    }))
    .await;
    let newest = statuses
        .iter()
        .flatten()
        .map(|status| status.revision)
        .max()
        .unwrap_or(0);
    let first_cluster = statuses
        .iter()
        .flatten()
        .map(|status| status.cluster_id.clone())
        .next()
        .unwrap_or_default();
    let mut list = Vec::new();
    for (member, status) in members.iter().zip(&statuses) {
        let finding = match status {
            Err(error) => fail(
                error.clone(),
                format!(
                    "on {}: {}; one that lost its data `quorate apply` makes a member again",
                    member.name,
                    cluster.logs_of("etcd")
                ),
            ),
            Ok(status) if status.cluster_id != first_cluster => fail(
                "belongs to another etcd cluster",
                "its data directory comes from elsewhere; empty it and apply",
            ),
            Ok(status) if status.learner => fail("is still a learner", "`quorate apply` promotes it"),
            Ok(status) if status.leader.is_empty() => fail(
                "knows no leader",
                format!("on {}: {}", member.name, cluster.logs_of("etcd")),
            ),
            Ok(status) if !status.errors.is_empty() => fail(status.errors.join(", "), "etcdctl alarm list"),
            Ok(status) if newest - status.revision > MAX_LAG => fail(
                format!("{} revisions behind", newest - status.revision),
                "look at its disk and network",
            ),
            Ok(status) => Ok(format!(
                "{}, revision {}",
                if status.is_leader() { "leader" } else { "follower" },
                status.revision
            )),
        };
        list.push(check("etcd-member", &member.name, async { finding }).await);
    }
    list.push(check("etcd-list", "cluster", whole(cluster)).await);
    list
}

/// The member list is that of the cluster file.
async fn whole(cluster: &Cluster<'_>) -> crate::Finding {
    let mut wanted: Vec<String> = cluster
        .spec
        .etcd_members()
        .iter()
        .map(|member| member.name.clone())
        .collect();
    wanted.sort();
    for name in &wanted {
        let Some(machine) = cluster.machine(name) else { continue };
        let Ok((_, members)) = etcd::members(machine, cluster.spec).await else {
            continue;
        };
        let mut found: Vec<String> = members.into_iter().map(|member| member.name).collect();
        found.sort();
        return if found == wanted {
            Ok(format!("{} members: {}", found.len(), found.join(", ")))
        } else {
            fail(
                format!("members are {}, wanted {}", found.join(", "), wanted.join(", ")),
                "`quorate apply` reconciles them",
            )
        };
    }
    fail("no member answers", "start at least a quorum of the etcd machines")
}
