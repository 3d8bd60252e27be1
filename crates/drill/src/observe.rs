//! Who holds the VIP, leads etcd and holds the leases, looked at again and again while clients are measured.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quorate_machine::{MachineRef, Request, Response};
use quorate_run::{Api, Session, etcd};
use quorate_spec::Spec;
use serde_json::Value;
use tokio::task::JoinSet;

use crate::holders::Held;
use crate::measure::Sight;
use crate::probe::monotonic_us;

/// A VIP moves within a few advertisements of 100 ms.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LEASES_EVERY: Duration = Duration::from_millis(400);
/// A machine that does not answer by then is not waited for; ssh needs that long to connect again.
const PATIENCE: Duration = Duration::from_secs(4);
pub(crate) const LEASES: [&str; 2] = ["kube-controller-manager", "kube-scheduler"];

/// Watches until it is dropped.
pub(crate) struct Observer {
    seen: Arc<Mutex<Seen>>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    pub(crate) vip: Vec<Sight>,
    pub(crate) etcd: Vec<Sight>,
    /// By lease, on change.
    pub(crate) leases: BTreeMap<&'static str, Vec<Held>>,
}

impl Observer {
    pub(crate) fn start(session: &Session, apis: Vec<Api>) -> Self {
        let seen = Arc::new(Mutex::new(Seen::default()));
        let mut tasks = JoinSet::new();
        if let Some(endpoint) = &session.spec.endpoint {
            for machine in session
                .spec
                .vip_holders()
                .iter()
                .filter_map(|machine| session.fleet.get(&machine.name))
            {
                tasks.spawn(vip(machine.clone(), endpoint.vip, seen.clone()));
            }
        }
        for machine in session
            .spec
            .etcd_members()
            .iter()
            .filter_map(|machine| session.fleet.get(&machine.name))
        {
            tasks.spawn(leader(machine.clone(), session.spec.clone(), seen.clone()));
        }
        tasks.spawn(leases(apis, seen.clone()));
        Self { seen, _tasks: tasks }
    }

    /// A machine without power holds nothing, whoever could not be asked.
    pub(crate) fn gone(&self, machine: &str, at_us: i64) {
        let mut seen = lock(&self.seen);
        let sight = Sight {
            at_us,
            machine: machine.into(),
            holds: false,
        };
        seen.vip.push(sight.clone());
        seen.etcd.push(sight);
    }

    /// Returns once every lease was seen to be renewed by who holds it.
    pub(crate) async fn led(&self) {
        let renews = |held: &Vec<Held>| held.last().is_some_and(|held| held.renews);
        while !LEASES
            .iter()
            .all(|name| lock(&self.seen).leases.get(name).is_some_and(renews))
        {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    pub(crate) fn seen(&self) -> Seen {
        lock(&self.seen).clone()
    }
}

fn lock(seen: &Mutex<Seen>) -> std::sync::MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn vip(machine: MachineRef, vip: IpAddr, seen: Arc<Mutex<Seen>>) {
    loop {
        let asked = monotonic_us();
        if let Ok(Ok(Response::Network(network))) = tokio::time::timeout(PATIENCE, machine.call(Request::Network)).await
        {
            let at_us = (asked + monotonic_us()) / 2;
            lock(&seen).vip.push(Sight {
                at_us,
                machine: machine.name().into(),
                holds: network.interface_of(vip).is_some(),
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn leader(machine: MachineRef, spec: Arc<Spec>, seen: Arc<Mutex<Seen>>) {
    loop {
        let asked = monotonic_us();
        let status = tokio::time::timeout(PATIENCE, etcd::status(&machine, &spec)).await;
        let at_us = (asked + monotonic_us()) / 2;
        // A member that does not answer leads nobody.
        let holds = matches!(status, Ok(Ok(status)) if status.is_leader());
        lock(&seen).etcd.push(Sight {
            at_us,
            machine: machine.name().into(),
            holds,
        });
        tokio::time::sleep(LOOK_EVERY * 2).await;
    }
}

async fn leases(apis: Vec<Api>, seen: Arc<Mutex<Seen>>) {
    let mut turn = 0;
    let mut renewed: BTreeMap<&str, String> = BTreeMap::new();
    loop {
        for name in LEASES {
            let Some(api) = apis.get(turn % apis.len().max(1)) else {
                return;
            };
            let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/{name}");
            let asked = monotonic_us();
            match tokio::time::timeout(PATIENCE, api.get(&path)).await {
                Ok(Ok(Some(lease))) => {
                    let text = |pointer: &str| lease.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
                    let holder = text("/spec/holderIdentity").to_owned();
                    let before = renewed.insert(name, text("/spec/renewTime").to_owned());
                    let mut seen = lock(&seen);
                    let held = seen.leases.entry(name).or_default();
                    match held.last_mut() {
                        Some(last) if last.holder == holder => last.renews |= before.as_ref() != renewed.get(name),
                        _ => held.push(Held {
                            at_us: (asked + monotonic_us()) / 2,
                            holder,
                            renews: false,
                        }),
                    }
                }
                _ => turn += 1,
            }
        }
        tokio::time::sleep(LEASES_EVERY).await;
    }
}
