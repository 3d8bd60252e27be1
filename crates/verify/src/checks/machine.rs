//! Every machine of the cluster file answers.

use futures_util::future::join_all;

use crate::{Check, Cluster, check};

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    join_all(cluster.expected().map(|machine| {
        check("machine", &machine.name, async move {
            // Asked anew: one that was reached when the program began may be gone since.
            match cluster.fleet.ask(&machine.name).await {
                Ok(()) => Ok("answers".to_owned()),
                Err(reason) => Err((
                    reason,
                    format!("bring {} back, or mark it `maintenance: true`", machine.name),
                )),
            }
        })
    }))
    .await
}
