//! systemd through `systemctl`: one call for many units.

use std::{collections::BTreeMap, path::Path};

use quorate_facts::UnitFacts;
use rustix::time::{ClockId, clock_gettime};

use super::exec::{failure, tool, tool_output};
use crate::{
    error::{ErrorKind, RemoteError},
    proto::UnitOp,
};

const STATUS_TIMEOUT_MS: u64 = 10_000;

pub(super) async fn carry_out(ops: &[UnitOp], timeout_ms: u64) -> Result<(), RemoteError> {
    need_systemd()?;
    for op in ops {
        let (verb, names) = op.parts();
        if names.is_empty() && !matches!(op, UnitOp::DaemonReload) {
            continue;
        }
        let mut argv = vec!["systemctl", "--no-ask-password", verb];
        match op {
            UnitOp::StartNoBlock(_) => argv.push("--no-block"),
            // systemd would look at every unit of the machine again; that is done once, by `DaemonReload`.
            UnitOp::Enable(_) | UnitOp::Disable(_) => argv.push("--no-reload"),
            UnitOp::Kill { signal, .. } => argv.extend(["--signal", signal]),
            _ => {}
        }
        argv.push("--");
        argv.extend(names.iter().map(String::as_str));
        let output = tool_output(&argv, b"", timeout_ms).await?;
        if output.ok() {
            continue;
        }
        match op {
            // What does not exist is stopped, disabled and unmasked. One bad name keeps `disable` from the others, so
            // they are taken one by one.
            UnitOp::Stop(_) | UnitOp::Disable(_) | UnitOp::ResetFailed(_) | UnitOp::Unmask(_) | UnitOp::Kill { .. } => {
                let prefix = argv.len() - names.len();
                for name in names {
                    let mut one = argv[..prefix].to_vec();
                    one.push(name);
                    let output = tool_output(&one, b"", timeout_ms).await?;
                    if !output.ok() && !is_missing(&output.stderr.lossy()) {
                        return Err(failure(&one, timeout_ms, &output));
                    }
                }
            }
            UnitOp::Start(_) | UnitOp::Restart(_) | UnitOp::TryRestart(_) | UnitOp::Reload(_) => {
                // One that refuses to reload goes on.
                let goes_on = matches!(op, UnitOp::Reload(_));
                return Err(explained(failure(&argv, timeout_ms, &output), names, goes_on).await);
            }
            _ => return Err(failure(&argv, timeout_ms, &output)),
        }
    }
    Ok(())
}

fn is_missing(said: &str) -> bool {
    ["not loaded", "does not exist", "not be found", "not found"]
        .iter()
        .any(|words| said.contains(words))
}

/// Adds what the units that did not come up wrote last; with `all`, also those that are active.
async fn explained(mut error: RemoteError, names: &[String], all: bool) -> RemoteError {
    let states = status(names).await.unwrap_or_default();
    for (name, unit) in states.iter().filter(|(_, unit)| all || unit.active != "active") {
        error.message.push_str(&format!(
            "\n{name} is {} ({}), result {}",
            unit.active, unit.sub, unit.result
        ));
        let log = tool(
            &[
                "journalctl",
                "--unit",
                name,
                "--lines",
                "10",
                "--no-pager",
                "--output",
                "cat",
            ],
            b"",
            5_000,
        )
        .await;
        for line in log.unwrap_or_default().lines() {
            error.message.push_str("\n  ");
            error.message.push_str(line);
        }
        error
            .hint
            .get_or_insert_with(|| format!("`journalctl -u {name}` on that machine tells more"));
    }
    error
}

pub(super) fn need_systemd() -> Result<(), RemoteError> {
    if Path::new("/run/systemd/system").is_dir() {
        return Ok(());
    }
    Err(
        RemoteError::new(ErrorKind::NoSystemd, "this machine was not booted with systemd")
            .hint("Quorate needs systemd as the init system"),
    )
}

const PROPERTIES: &str = "--property=Id,LoadState,UnitFileState,ActiveState,SubState,Result,ExecMainStatus,MainPID,NRestarts,\
                          StateChangeTimestampMonotonic,NeedDaemonReload,FragmentPath";

pub(super) async fn status(names: &[String]) -> Result<BTreeMap<String, UnitFacts>, RemoteError> {
    need_systemd()?;
    if names.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut argv = vec!["systemctl", "show", PROPERTIES, "--"];
    argv.extend(names.iter().map(String::as_str));
    let shown = tool(&argv, b"", STATUS_TIMEOUT_MS).await?;
    let now = (clock_gettime(ClockId::Realtime).tv_sec as u64)
        .saturating_sub(clock_gettime(ClockId::Monotonic).tv_sec as u64);
    // One block per name, in the order asked: an alias shows another Id than it was asked by.
    Ok(names
        .iter()
        .cloned()
        .zip(shown.split("\n\n").map(|block| parse(block, now)))
        .collect())
}

fn parse(block: &str, boot_unix: u64) -> UnitFacts {
    let properties: BTreeMap<&str, &str> = block.lines().filter_map(|line| line.split_once('=')).collect();
    let text = |key: &str| properties.get(key).copied().unwrap_or_default().to_owned();
    let number = |key: &str| text(key).parse::<u64>().unwrap_or(0);
    let changed_us = number("StateChangeTimestampMonotonic");
    UnitFacts {
        load: text("LoadState"),
        enabled: text("UnitFileState"),
        active: text("ActiveState"),
        sub: text("SubState"),
        result: text("Result"),
        exit_status: text("ExecMainStatus").parse().unwrap_or(0),
        main_pid: number("MainPID") as u32,
        restarts: number("NRestarts") as u32,
        since_unix: if changed_us == 0 {
            0
        } else {
            boot_unix + changed_us / 1_000_000
        },
        needs_daemon_reload: text("NeedDaemonReload") == "yes",
        fragment: text("FragmentPath"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_systemctl_shows() {
        let unit = parse(
            "Id=etcd.service\nLoadState=loaded\nUnitFileState=enabled\nActiveState=failed\nSubState=failed\nResult=exit-code\n\
             ExecMainStatus=203\nMainPID=0\nNRestarts=5\nStateChangeTimestampMonotonic=60000000\nNeedDaemonReload=yes\n\
             FragmentPath=/etc/systemd/system/etcd.service\n",
            1_000_000,
        );
        assert!(unit.exists() && unit.is_enabled() && !unit.is_active() && unit.needs_daemon_reload);
        assert_eq!((unit.exit_status, unit.restarts, unit.since_unix), (203, 5, 1_000_060));
        assert!(!parse("LoadState=not-found\nActiveState=inactive\n", 0).exists());
    }
}
