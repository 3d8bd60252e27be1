//! Every machine of the cluster file answers.

use crate::{Check, Cluster, check, fail};

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    let mut list = Vec::new();
    for machine in cluster.expected() {
        let finding = match (
            cluster.machine(&machine.name),
            cluster.fleet.unreachable().get(&machine.name),
        ) {
            (Some(_), _) => Ok("answers".to_owned()),
            (None, reason) => fail(
                reason.cloned().unwrap_or_else(|| "does not answer".into()),
                format!("bring {} back, or mark it `maintenance: true`", machine.name),
            ),
        };
        list.push(check("machine", &machine.name, async { finding }).await);
    }
    list
}
