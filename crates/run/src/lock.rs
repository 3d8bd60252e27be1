//! One run per cluster at a time: a lock on the control planes, given by a majority of them. Each hands out a growing
//! number with it, and refuses changes of whoever holds a lower one.

use std::fmt;
use std::time::Duration;

use quorate_machine::MachineRef;
use quorate_machine::proto::{LockHolder, LockOwner, LockRequest};
use quorate_spec::Spec;
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::error::Error;
use crate::fleet::Fleet;
use crate::journal::RunId;
use crate::stop::Stop;

/// A run that is killed blocks the next one for as long. Renewed three times as often.
const TTL_S: u64 = 30;
const ASK: Duration = Duration::from_secs(10);

/// Who has the lock, according to one machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    pub machine: String,
    pub run: String,
    /// `user@host`
    pub who: String,
    pub host: String,
    pub pid: u32,
    /// Seconds since it was taken, and since it was last renewed.
    pub age_s: u64,
    pub idle_s: u64,
    pub expired: bool,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            machine,
            run,
            who,
            pid,
            age_s,
            idle_s,
            expired,
            ..
        } = self;
        write!(
            f,
            "{machine} is locked by run {run} of {who} (pid {pid}), begun {age_s} s ago, last heard of {idle_s} s ago"
        )?;
        if *expired { f.write_str(", expired") } else { Ok(()) }
    }
}

/// A lock that is held. Given back with [`Lock::give_back`]; otherwise it expires.
pub struct Lock {
    request: LockRequest,
    held: Vec<(MachineRef, u64)>,
    lost: Stop,
    renewing: tokio::task::AbortHandle,
}

impl Lock {
    /// A lock whose holder was a process of this computer that is gone is taken without being asked to. `steal` takes it
    /// from a living holder as well, and goes on without a majority where most control planes are away.
    pub async fn take(spec: &Spec, fleet: &Fleet, run: &RunId, steal: bool) -> Result<Self, Error> {
        match Self::ask(spec, fleet, run, steal, steal).await {
            Err(Error::Locked { holders }) if holders.iter().all(Holder::is_dead_here) => {
                Self::ask(spec, fleet, run, true, steal).await
            }
            other => other,
        }
    }

    async fn ask(spec: &Spec, fleet: &Fleet, run: &RunId, steal: bool, without_majority: bool) -> Result<Self, Error> {
        let request = LockRequest {
            name: spec.name.clone(),
            owner: owner(run),
            ttl_s: TTL_S,
            steal,
            renews: None,
        };
        let control_planes = spec.control_planes();
        let (mut held, mut holders, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        let mut asked = JoinSet::new();
        for name in control_planes.iter().map(|machine| &machine.name) {
            let Some(machine) = fleet.get(name).cloned() else {
                reasons.push(match fleet.unreachable().get(name) {
                    Some(reason) if reason.starts_with(&format!("{name}:")) => reason.clone(),
                    Some(reason) => format!("{name}: {reason}"),
                    None => format!("{name}: is in maintenance"),
                });
                continue;
            };
            let request = request.clone();
            asked.spawn(async move {
                let reply = timeout(ASK, machine.lock(request)).await;
                (machine, reply)
            });
        }
        for (machine, reply) in asked.join_all().await {
            match reply {
                Ok(Ok(reply)) if reply.acquired => held.push((machine, reply.token)),
                Ok(Ok(reply)) => holders.extend(reply.holder.map(|holder| Holder::of(machine.name(), holder))),
                Ok(Err(error)) => reasons.push(error.to_string()),
                Err(_) => reasons.push(format!("{}: gave no answer within {} s", machine.name(), ASK.as_secs())),
            }
        }
        // Of those in the cluster file, whoever answers: of two runs that reach different machines only one may have it.
        let majority = control_planes.len() / 2 + 1;
        let enough = held.len() >= majority || (without_majority && !held.is_empty());
        if !enough {
            release(&request.name, &held).await;
            return Err(if holders.is_empty() {
                Error::NoLock {
                    given: held.len(),
                    of: control_planes.len(),
                    reasons,
                }
            } else {
                Error::Locked { holders }
            });
        }
        let lost = Stop::default();
        let renewing = tokio::spawn(renew(request.clone(), held.clone(), majority, lost.clone())).abort_handle();
        Ok(Self {
            request,
            held,
            lost,
            renewing,
        })
    }

    /// Set when another run has taken the lock over.
    pub fn lost(&self) -> &Stop {
        &self.lost
    }

    pub async fn give_back(self) {
        self.renewing.abort();
        release(&self.request.name, &self.held).await;
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

impl Holder {
    fn of(machine: &str, holder: LockHolder) -> Self {
        let LockOwner {
            run_id,
            user,
            host,
            pid,
        } = holder.owner;
        Self {
            machine: machine.into(),
            host: host.clone(),
            run: run_id,
            who: format!("{user}@{host}"),
            pid,
            age_s: holder.age_s,
            idle_s: holder.idle_s,
            expired: holder.expired,
        }
    }

    fn is_dead_here(&self) -> bool {
        self.host == own_host()
            && self.pid != std::process::id()
            && !std::path::Path::new("/proc").join(self.pid.to_string()).exists()
    }
}

/// Another run has the lock as soon as fewer are left than it took to get it: a majority of its own has one of ours in it.
async fn renew(request: LockRequest, held: Vec<(MachineRef, u64)>, majority: usize, lost: Stop) {
    let needed = majority.min(held.len());
    loop {
        sleep(Duration::from_secs(TTL_S / 3)).await;
        let mut asked = JoinSet::new();
        for (machine, token) in held.clone() {
            let renewal = LockRequest {
                steal: false,
                renews: Some(token),
                ..request.clone()
            };
            // A machine that does not answer takes nothing away: its lock just runs out. Nor does one whose store the run
            // itself removed (`reset`).
            asked.spawn(async move {
                let reply = timeout(ASK, machine.lock(renewal)).await;
                matches!(reply, Ok(Ok(reply)) if !reply.acquired && reply.token != 0)
            });
        }
        let taken = asked.join_all().await.into_iter().filter(|taken| *taken).count();
        if held.len() - taken < needed {
            lost.stop();
            return;
        }
    }
}

async fn release(name: &str, held: &[(MachineRef, u64)]) {
    let mut asked = JoinSet::new();
    for (machine, token) in held.iter().cloned() {
        let name = name.to_owned();
        // It expires by itself when this fails.
        asked.spawn(async move { timeout(ASK, machine.done(quorate_machine::Request::Unlock { name, token })).await });
    }
    asked.join_all().await;
}

fn owner(run: &RunId) -> LockOwner {
    let user = std::env::var("SUDO_USER")
        .or_else(|_| std::env::var("USER"))
        .unwrap_or_else(|_| "unknown".into());
    LockOwner {
        run_id: run.to_string(),
        user,
        host: own_host(),
        pid: std::process::id(),
    }
}

fn own_host() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .unwrap_or_default()
        .trim()
        .to_owned()
}
