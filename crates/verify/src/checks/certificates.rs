//! Certificates on the machines: what expires, and when.

use futures_util::future::join_all;
use quorate_machine::proto::GatherQuery;

use crate::{Check, Cluster, check, fail};

/// Below this a missed maintenance window is an outage.
const SOON_DAYS: i64 = 30;
const FOLDERS: [&str; 4] = [
    "/etc/kubernetes/pki",
    "/etc/kubernetes/pki/etcd",
    "/etc/etcd/pki",
    "/var/lib/kubelet/pki",
];

/// kubeadm keeps client certificates inside of these.
const KUBECONFIGS: [&str; 3] = [
    "/etc/kubernetes/admin.conf",
    "/etc/kubernetes/controller-manager.conf",
    "/etc/kubernetes/scheduler.conf",
];

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    join_all(
        cluster
            .expected()
            .filter_map(|machine| Some((&machine.name, cluster.machine(&machine.name)?)))
            .map(|(name, machine)| {
                check("certificates", name, async move {
                    let query = GatherQuery {
                        certificates: FOLDERS
                            .iter()
                            .chain(&KUBECONFIGS)
                            .map(|place| (*place).to_owned())
                            .collect(),
                        ..GatherQuery::default()
                    };
                    let facts = machine
                        .gather(query)
                        .await
                        .map_err(|error| (error.to_string(), "look at the machine".to_owned()))?;
                    let readable: Vec<_> = facts
                        .certificates
                        .iter()
                        .filter(|(_, certificate)| certificate.error.is_none())
                        .collect();
                    let first = readable.iter().min_by_key(|(_, certificate)| certificate.not_after);
                    let Some((path, certificate)) = first else {
                        return Ok("none on this machine".to_owned());
                    };
                    let days = (certificate.not_after - cluster.now_unix) / 86_400;
                    let detail = format!("{} found, the first expires in {days} days ({path})", readable.len());
                    if days < SOON_DAYS {
                        fail(detail, "`quorate apply` renews it")
                    } else {
                        Ok(detail)
                    }
                })
            }),
    )
    .await
}
