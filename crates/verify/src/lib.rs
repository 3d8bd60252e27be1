//! Is the cluster what it should be? A list of named checks, each with its reason and a hint.
//!
//! The same list ends an `apply`, prints `status` and judges drills. `checks.rs` is the table of contents.

mod checks;
mod dns;
mod preflight;
pub mod probe;

pub use preflight::{measure, preflight, preflight_measured, worth_measuring};

use std::collections::BTreeMap;
use std::time::Instant;

use quorate_machine::MachineRef;
use quorate_run::{Api, Fleet};
use quorate_spec::{Bootstrap, EtcdTopology, Machine, Spec};
use serde::Serialize;
use serde_json::Value;

/// One condition, looked at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// `etcd-member`
    pub name: String,
    /// A machine, a node, or the cluster.
    pub target: String,
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when all is well. One that holds and has a hint is a warning.
    pub hint: String,
    pub took_ms: u64,
}

impl Check {
    /// It holds, and somebody should know all the same.
    pub fn is_warning(&self) -> bool {
        self.ok && !self.hint.is_empty()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    pub cluster: String,
    pub checks: Vec<Check>,
}

impl Report {
    pub fn ok(&self) -> bool {
        self.checks.iter().all(|check| check.ok)
    }

    pub fn passed(&self) -> usize {
        self.checks.iter().filter(|check| check.ok).count()
    }

    pub fn warnings(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.is_warning())
    }

    pub fn failed(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| !check.ok)
    }
}

/// A running cluster, as checks see it.
pub struct Cluster<'a> {
    pub spec: &'a Spec,
    pub fleet: &'a Fleet,
    /// A ready API server, asked as the administrator.
    pub api: Option<Api>,
    /// A kubeconfig text for `kubectl` on a machine; given on its standard input, never written.
    pub kubeconfig: String,
    /// Seconds since 1970.
    pub now_unix: i64,
}

/// All checks, run at the same time; the order of the report is the order of the list.
pub async fn verify(cluster: &Cluster<'_>) -> Report {
    let view = View::fetch(cluster).await;
    let groups = futures_util::future::join_all(checks::all(cluster, &view)).await;
    Report {
        cluster: cluster.spec.name.clone(),
        checks: groups.into_iter().flatten().collect(),
    }
}

/// API objects several checks look at, fetched once.
pub(crate) struct View {
    pub(crate) nodes: Result<BTreeMap<String, Value>, String>,
    pub(crate) leases: Result<BTreeMap<String, Value>, String>,
    /// Probe Pods: node → Pod address.
    pub(crate) probes: Result<BTreeMap<String, Probe>, String>,
    pub(crate) services: BTreeMap<String, Value>,
}

#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) pod: String,
    pub(crate) address: String,
}

impl View {
    async fn fetch(cluster: &Cluster<'_>) -> Self {
        let list = |path: &'static str| async move {
            let api = cluster.api.as_ref().ok_or_else(|| "no API server answers".to_owned())?;
            let list = api
                .get(path)
                .await
                .map_err(|error| error.to_string())?
                .ok_or_else(|| format!("{path} does not exist"))?;
            Ok::<_, String>(by_name(&list))
        };
        let (nodes, leases, pods, services) = tokio::join!(
            list("/api/v1/nodes"),
            list("/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"),
            list("/api/v1/namespaces/kube-system/pods?labelSelector=app.kubernetes.io%2Fname%3Dquorate-probe"),
            list("/api/v1/namespaces/kube-system/services"),
        );
        let probes = pods.map(|pods| {
            pods.into_iter()
                .filter_map(|(pod, body)| probe_of(pod, &body))
                .collect()
        });
        Self {
            nodes,
            leases,
            probes,
            services: services.unwrap_or_default(),
        }
    }
}

fn by_name(list: &Value) -> BTreeMap<String, Value> {
    let items = list.get("items").and_then(Value::as_array).into_iter().flatten();
    items
        .filter_map(|item| Some((item.pointer("/metadata/name")?.as_str()?.to_owned(), item.clone())))
        .collect()
}

fn probe_of(pod: String, body: &Value) -> Option<(String, Probe)> {
    let node = body.pointer("/spec/nodeName")?.as_str()?.to_owned();
    let address = body.pointer("/status/podIP")?.as_str()?.to_owned();
    body.pointer("/metadata/deletionTimestamp")
        .is_none()
        .then_some((node, Probe { pod, address }))
}

/// What a check found: `Ok` and `Err` both carry the detail; a failure carries its hint.
pub(crate) type Finding = Result<String, (String, String)>;

/// Runs one check and times it.
pub(crate) async fn check(name: &str, target: &str, work: impl Future<Output = Finding>) -> Check {
    let started = Instant::now();
    let finding = work.await;
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let (ok, detail, hint) = match finding {
        Ok(detail) => (true, detail, String::new()),
        Err((detail, hint)) => (false, detail, hint),
    };
    Check {
        name: name.into(),
        target: target.into(),
        ok,
        detail,
        hint,
        took_ms,
    }
}

pub(crate) fn fail(detail: impl Into<String>, hint: impl Into<String>) -> Finding {
    Err((detail.into(), hint.into()))
}

impl Cluster<'_> {
    pub(crate) fn machine(&self, name: &str) -> Option<&MachineRef> {
        self.fleet.get(name)
    }

    /// How to see what a program of the control plane says, on its machine.
    pub(crate) fn logs_of(&self, program: &str) -> String {
        let unit = program == "etcd" && self.spec.etcd.topology == EtcdTopology::External;
        if self.spec.kubernetes.bootstrap == Bootstrap::Kubeadm && !unit {
            format!("tail /var/log/pods/kube-system_{program}-*/{program}/*.log")
        } else {
            format!("journalctl -u {program}")
        }
    }

    /// Machines that should be there, with what was learned of each.
    pub(crate) fn expected(&self) -> impl Iterator<Item = &Machine> {
        self.spec.machines.iter().filter(|machine| !machine.maintenance)
    }
}
