//! Clocks agree: certificates, leases and logs depend on it.

use futures_util::future::join_all;
use quorate_machine::MachineRef;
use quorate_machine::proto::Exec;

use crate::{Check, Cluster, check, fail};

/// A leader lease is renewed every 2 s and certificates are back-dated by minutes; beyond this, logs of two machines
/// can no longer be put in order.
const MAX_SKEW_MS: i64 = 500;

pub(crate) async fn checks(cluster: &Cluster<'_>) -> Vec<Check> {
    let readings = join_all(cluster.fleet.iter().map(|(name, machine)| async move {
        let asked = now_ms();
        let theirs = read_ms(machine).await?;
        let answered = now_ms();
        // Half of the round trip belongs to neither clock.
        Some((name, theirs - (asked + answered) / 2, answered - asked))
    }))
    .await;
    let readings: Vec<(&str, i64, i64)> = readings.into_iter().flatten().collect();
    let mut offsets: Vec<i64> = readings.iter().map(|reading| reading.1).collect();
    offsets.sort_unstable();
    // Against the median of the machines: the operator's own clock may be the wrong one.
    let Some(median) = offsets.get(offsets.len() / 2).copied() else {
        return Vec::new();
    };
    let mut list = Vec::new();
    for (name, offset, round_trip) in readings {
        let skew = offset - median;
        let finding = if skew.abs() <= MAX_SKEW_MS + round_trip {
            Ok(format!("{skew:+} ms from the others"))
        } else {
            fail(
                format!("{skew:+} ms from the others"),
                format!("start a time service on {name} (chrony, systemd-timesyncd)"),
            )
        };
        list.push(check("clock", name, async { finding }).await);
    }
    list
}

/// A machine's clock, milliseconds since 1970.
pub(crate) async fn read_ms(machine: &MachineRef) -> Option<i64> {
    let output = machine
        .exec_ok(Exec::new(["date", "+%s%N"]).timeout_ms(5_000))
        .await
        .ok()?;
    Some(output.stdout.lossy().trim().parse::<i64>().ok()? / 1_000_000)
}

fn now_ms() -> i64 {
    let since = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
