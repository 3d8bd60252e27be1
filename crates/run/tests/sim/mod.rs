//! A cluster of fake machines: etcd's membership and quorum, the API's objects, kubelets that join, just enough of each for
//! a plan to be carried out and planned again.

#![allow(dead_code, unreachable_pub)] // each test program uses a part

pub mod drift;
pub mod kubeadm;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_facts::{AddressFacts, BundleFacts, BundleItem, ItemKind};
use quorate_machine::fake::{FakeFile, FakeKind};
use quorate_machine::proto::{Exec, ExecOutput, HttpReply, HttpRequest, PackedBlob};
use quorate_machine::{FakeMachine, MachineRef};
use quorate_pki::inventory::{Ca, CertificateWanted, Holder, Owner, Place};
use quorate_plan::{Plan, paths};
use quorate_run::{Catalogue, Ended, Event, Fleet, Listener, Operator, Options, Outcome, Session, silent};
use quorate_spec::Spec;
use serde_json::{Value, json};

const CLIENT_CONF: &str = "/etc/kubernetes/kubelet.conf";
const AGENT_POD: &str = "quorate-agent";
const AGENT_UNTIL_JOINED: &str = "quorate-agent-joining.service";
const CSRS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

pub struct Sim {
    pub spec: Spec,
    pub machines: BTreeMap<String, Arc<FakeMachine>>,
    pub world: Arc<World>,
    pub operator: Operator,
    pub catalogue: Catalogue,
}

/// What is shared by machines: the cluster's own state.
pub struct World {
    spec: Spec,
    /// `address:port` of each API server, and its machine.
    servers: BTreeMap<String, String>,
    machines: Mutex<BTreeMap<String, Arc<FakeMachine>>>,
    state: Mutex<State>,
    /// Time passes by itself only, not with every request: for very many machines.
    pub lazy: std::sync::atomic::AtomicBool,
    /// The next control plane to join dies after its etcd member was added.
    pub dies_in_join: std::sync::atomic::AtomicBool,
    /// What API servers fail to read just now.
    pub unreadable: Mutex<Option<String>>,
    /// Words of every program that ran on a machine.
    pub words: Mutex<BTreeSet<String>>,
}

#[derive(Clone, Default)]
struct State {
    members: Vec<Member>,
    /// Peer addresses of those that were removed: nobody talks to them any more.
    removed: BTreeSet<String>,
    next_id: u64,
    objects: BTreeMap<String, Value>,
    images: BTreeMap<String, BTreeSet<String>>,
}

#[derive(Clone, Debug)]
struct Member {
    id: u64,
    name: String,
    peer: String,
    learner: bool,
    /// It was there once: without data it starts no more.
    started: bool,
}

impl State {
    fn remove(&mut self, id: u64) {
        let (removed, left) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(|member| member.id == id);
        self.members = left;
        let removed: Vec<Member> = removed;
        self.removed.extend(removed.into_iter().map(|member| member.peer));
    }
}

impl Sim {
    pub fn new(yaml: &str, folder: &Path) -> Self {
        let operator = Operator::open(folder, None, &"ab".repeat(32)).unwrap();
        Self::with(load(yaml), operator)
    }

    pub fn with(spec: Spec, operator: Operator) -> Self {
        let servers = spec
            .control_planes()
            .into_iter()
            .map(|machine| (spec.api_server_of(machine).to_string(), machine.name.clone()))
            .collect();
        let world = Arc::new(World {
            spec: spec.clone(),
            servers,
            machines: Mutex::default(),
            state: Mutex::default(),
            lazy: false.into(),
            dies_in_join: false.into(),
            unreadable: Mutex::default(),
            words: Mutex::default(),
        });
        let mut machines = BTreeMap::new();
        for machine in &spec.machines {
            let fake = FakeMachine::new(&machine.name);
            fake.state().host.network.addresses = machine
                .all_addresses()
                .into_iter()
                .map(|address| AddressFacts {
                    interface: "eth0".into(),
                    address,
                    prefix: 24,
                })
                .collect();
            defaults(&fake);
            // The world knows the machines, so they may only know it weakly.
            let weak = Arc::downgrade(&world);
            fake.on_http(move |fake, request| weak.upgrade()?.http(fake, request));
            let weak = Arc::downgrade(&world);
            fake.on_exec(move |fake, exec| weak.upgrade()?.exec(fake, exec));
            machines.insert(machine.name.clone(), fake);
        }
        *world.machines.lock().unwrap() = machines.clone();
        Self {
            spec,
            machines,
            world,
            operator,
            catalogue: catalogue(),
        }
    }

    pub fn power_off(&self, name: &str) {
        self.machines[name].power_off();
        defaults(&self.machines[name]);
    }

    /// A new machine under the old name.
    pub fn replace(&self, name: &str) {
        let fresh = Self::with(self.spec.clone(), self.operator.clone());
        *self.machines[name].state() = fresh.machines[name].state().clone();
    }

    /// The same cluster once more, as it is now, for another story.
    pub fn copy(&self) -> Self {
        let copy = Self::with(self.spec.clone(), self.operator.clone());
        for (name, machine) in &self.machines {
            *copy.machines[name].state() = machine.state().clone();
        }
        *copy.world.state() = self.world.state().clone();
        copy
    }

    /// Sessions as a new process of the operator would have: connected to what can be reached now.
    pub fn session(&self) -> Session {
        let (mut reached, mut away) = (Vec::new(), BTreeMap::new());
        for (name, machine) in &self.machines {
            if machine.state().unreachable {
                away.insert(name.clone(), "no route to host".to_owned());
            } else {
                reached.push(machine.clone() as MachineRef);
            }
        }
        Session::new(
            self.spec.clone(),
            Fleet::new(reached, away),
            self.operator.clone(),
            self.catalogue.clone(),
        )
    }

    pub async fn plan(&self) -> Plan {
        self.world.settle();
        let facts = self.session().gather().await.unwrap();
        let plan = quorate_plan::plan(&self.spec, &facts);
        assert_eq!(quorate_plan::lint::lint(&plan), []);
        plan
    }

    /// Steps another plan would have, and why.
    pub async fn left(&self) -> Vec<(String, Vec<String>)> {
        let plan = self.plan().await;
        let away = plan
            .notes
            .iter()
            .filter_map(|note| Some((note.machine.clone()?, vec![note.message.clone()])));
        plan.steps()
            .map(|step| (step.id.clone(), step.why.clone()))
            .chain(away)
            .collect()
    }

    pub async fn apply(&self) -> (Plan, Outcome) {
        self.apply_with(&silent()).await
    }

    pub async fn apply_with(&self, events: &Listener) -> (Plan, Outcome) {
        let plan = self.plan().await;
        let outcome = self.carry_out(&plan, events).await;
        (plan, outcome)
    }

    pub async fn carry_out(&self, plan: &Plan, events: &Listener) -> Outcome {
        let (session, options) = (self.session(), options());
        let outcome = self
            .while_time_passes(session.execute(plan, &options, events))
            .await
            .unwrap();
        self.world.settle();
        outcome
    }

    pub async fn while_time_passes<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(std::time::Duration::from_millis(20)) => self.world.settle(),
            }
        }
    }

    /// The operator's process ends at once when `count` steps have been done; `None` if there are fewer.
    pub async fn apply_killed_after(&self, count: usize) -> Option<Plan> {
        let plan = self.plan().await;
        let (tell, told) = tokio::sync::oneshot::channel();
        let left = Mutex::new((count, Some(tell)));
        let events: Listener = Arc::new(move |event| {
            let mut left = left.lock().unwrap();
            if matches!(event, Event::StepDone { .. }) {
                left.0 = left.0.saturating_sub(1);
            }
            if left.0 == 0
                && let Some(tell) = left.1.take()
            {
                let _ = tell.send(());
            }
        });
        let (session, options) = (self.session(), options());
        tokio::select! {
            biased;
            _ = told => Some(plan),
            outcome = self.while_time_passes(session.execute(&plan, &options, &events)) => {
                outcome.unwrap();
                None
            }
        }
    }

    /// What a static Pod says that it was made of.
    pub fn inputs(&self, machine: &str, pod: &str) -> String {
        let path = format!("/api/v1/namespaces/kube-system/pods/{pod}-{machine}");
        let state = self.world.state();
        let shown = state.objects[&path].pointer("/metadata/annotations/quorate.dev~1inputs");
        shown.and_then(Value::as_str).unwrap_or_default().to_owned()
    }

    /// Everything that must be the same however the machines got there: no keys, times, ids.
    pub fn fingerprint(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        for (name, machine) in &self.machines {
            let state = machine.state();
            // What only a member without data reads says how it joined, which may differ.
            for (path, file) in state
                .files
                .iter()
                .filter(|(path, _)| *path != "/etc/etcd/bootstrap.env")
            {
                let what = match &file.kind {
                    FakeKind::File { .. }
                        if path.ends_with(".crt") || path.ends_with(".key") || path.ends_with(".pem") =>
                    {
                        "a file".to_owned()
                    }
                    FakeKind::File { content, .. } => String::from_utf8_lossy(content).into_owned(),
                    FakeKind::Directory => "a directory".to_owned(),
                    FakeKind::Symlink(target) => format!("to {target}"),
                };
                all.insert(
                    format!("{name}:{path}"),
                    format!("{}:{} {:o} {what}", file.owner, file.group, file.mode),
                );
            }
            for (unit, found) in &state.units {
                all.insert(
                    format!("{name}:{unit}"),
                    format!("active {} enabled {}", found.active, found.enabled),
                );
            }
            all.insert(format!("{name}:sysctls"), format!("{:?}", state.sysctls));
            all.insert(format!("{name}:users"), format!("{:?}", state.users.keys()));
        }
        let world = self.world.state();
        for (path, object) in world.objects.iter().filter(|(path, _)| !path.starts_with(CSRS)) {
            all.insert(path.clone(), object.to_string());
        }
        let mut members: Vec<String> = world
            .members
            .iter()
            .map(|member| format!("{} {} {}", member.name, member.peer, member.learner))
            .collect();
        members.sort();
        all.insert("etcd".into(), members.join(", "));
        all
    }
}

pub fn options() -> Options {
    // The one before may have been killed without giving its lock back.
    Options {
        steal: true,
        ..Options::default()
    }
}

/// The operator dies after each step of a first apply (every `stride`th without QUORATE_SIM_RUNS) and applies again: nothing
/// is left to do then, and `compare` is given what an undisturbed apply made, what this one made, and when it died.
pub async fn killed_after_every_step(
    cluster: &str,
    stride: usize,
    compare: impl Fn(&BTreeMap<String, String>, &BTreeMap<String, String>, &str),
) {
    let folder = tempfile::tempdir().unwrap();
    let first = Sim::new(cluster, folder.path());
    let (plan, _) = first.apply().await;
    let expected = first.fingerprint();
    let stride = if std::env::var_os("QUORATE_SIM_RUNS").is_some() {
        1
    } else {
        stride
    };
    for count in (0..plan.step_count()).step_by(stride) {
        let when = format!("after {count} steps");
        let sim = Sim::with(first.spec.clone(), first.operator.clone());
        assert!(sim.apply_killed_after(count).await.is_some());
        let (_, outcome) = sim.apply().await;
        assert_eq!(outcome.ended, Ended::Complete, "{when}: {:#?}", outcome.failures);
        assert_eq!(sim.left().await, [], "{when}");
        compare(&expected, &sim.fingerprint(), &when);
    }
}

/// The same in a running cluster that one machine, made anew, joins again; the operator dies after each step of that.
pub async fn killed_after_every_step_of_a_join(
    cluster: &str,
    machine: &str,
    compare: impl Fn(&BTreeMap<String, String>, &BTreeMap<String, String>, &str),
) {
    let folder = tempfile::tempdir().unwrap();
    let running = Sim::new(cluster, folder.path());
    assert_eq!(running.apply().await.1.ended, Ended::Complete);
    let expected = running.fingerprint();
    running.replace(machine);
    let plan = running.plan().await;
    assert!(plan.steps().any(|step| step.id == format!("etcd/{machine}/promote")));
    for count in 0..plan.step_count() {
        let when = format!("{machine} joins, after {count} steps");
        let sim = running.copy();
        assert!(sim.apply_killed_after(count).await.is_some());
        assert!(sim.world.has_quorum(), "{when}");
        let (_, outcome) = sim.apply().await;
        assert_eq!(outcome.ended, Ended::Complete, "{when}: {:#?}", outcome.failures);
        assert_eq!(sim.left().await, [], "{when}");
        compare(&expected, &sim.fingerprint(), &when);
    }
}

pub fn load(yaml: &str) -> Spec {
    quorate_spec::load(yaml, "cluster.yaml")
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, yaml, false)))
        .0
}

/// What `bundle` would offer, with files that are as small as can be.
pub fn catalogue() -> Catalogue {
    let binaries = [
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubectl",
        "kubelet",
        "kube-proxy",
        "kubeadm",
        "etcd",
        "etcdctl",
        "etcdutl",
        "containerd",
        "containerd-shim-runc-v2",
        "ctr",
        "runc",
        "flanneld",
        "bridge",
        "host-local",
        "loopback",
        "portmap",
        "firewall",
        "bandwidth",
        "tuning",
    ];
    let images = [
        "image:registry.k8s.io/pause:3.10.2",
        "image:quorate.dev/probe:0.1.0",
        "image:quorate.dev/agent:0.1.0",
        "image:registry.k8s.io/coredns/coredns:v1.14.2",
        "image:registry.k8s.io/kube-apiserver:v1.36.3",
        "image:registry.k8s.io/kube-controller-manager:v1.36.3",
        "image:registry.k8s.io/kube-scheduler:v1.36.3",
        "image:registry.k8s.io/kube-proxy:v1.36.3",
        "image:registry.k8s.io/etcd:3.6.16-0",
    ];
    let mut catalogue = Catalogue {
        facts: BundleFacts {
            kubernetes: "v1.36.3".into(),
            ..BundleFacts::default()
        },
        ..Catalogue::default()
    };
    for (index, (name, kind)) in binaries
        .iter()
        .map(|name| (name, ItemKind::Binary))
        .chain(images.iter().map(|name| (name, ItemKind::Image)))
        .enumerate()
    {
        let sha256 = format!("{:064x}", index + 1);
        let item = BundleItem {
            name: (*name).into(),
            kind,
            version: "1".into(),
            sha256: sha256.clone(),
            size: 0,
            packed_size: 0,
        };
        catalogue.facts.items.insert((*name).into(), item);
        let packed = PackedBlob {
            sha256: sha256.clone(),
            size: 0,
            packed_sha256: format!("{:064x}", index + 1000),
            packed_size: 0,
        };
        catalogue.blobs.insert(sha256, (packed, "/dev/null".into()));
    }
    catalogue
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn machine(&self, name: &str) -> Option<Arc<FakeMachine>> {
        self.machines.lock().unwrap().get(name).cloned()
    }

    fn all(&self) -> Vec<Arc<FakeMachine>> {
        self.machines.lock().unwrap().values().cloned().collect()
    }

    /// Whether a majority of the voters runs, or there are no voters yet.
    pub fn has_quorum(&self) -> bool {
        self.has_quorum_without("")
    }

    pub fn has_quorum_without(&self, machine: &str) -> bool {
        let voters: Vec<Member> = self
            .state()
            .members
            .iter()
            .filter(|member| !member.learner)
            .cloned()
            .collect();
        let alive = voters
            .iter()
            .filter(|member| {
                member.name != machine
                    && self
                        .machine(&member.name)
                        .is_some_and(|machine| self.etcd_runs(&machine))
            })
            .count();
        alive > voters.len() / 2
    }

    pub fn was_formed(&self) -> bool {
        !self.state().members.is_empty()
    }

    pub fn object(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// What time does by itself: members join, kubelets ask for certificates, controllers sign and count.
    pub fn settle(&self) {
        for machine in self.all() {
            self.start_etcd(&machine);
        }
        let apis = self.all().iter().any(|machine| self.api_runs(machine));
        if apis {
            for machine in self.all() {
                self.kubelet(&machine);
                self.agent_pod(&machine);
            }
            self.controllers();
        }
    }

    /// Its kubelet runs it and says so; what did its work before ends.
    fn agent_pod(&self, machine: &FakeMachine) {
        let name = quorate_machine::Machine::name(machine).to_owned();
        let path = format!("/api/v1/namespaces/kube-system/pods/{AGENT_POD}-{name}");
        if !Self::runs_pod(machine, AGENT_POD) {
            self.state().objects.remove(&path);
            return;
        }
        let manifest = text(machine, &format!("{}/{AGENT_POD}.yaml", paths::STATIC_PODS)).unwrap_or_default();
        let inputs = manifest.split_once("quorate.dev/inputs: ").map(|(_, rest)| rest);
        let inputs = inputs.and_then(|rest| rest.split_once('}')).map(|(inputs, _)| inputs);
        assert!(inputs.is_some(), "{manifest}");
        assert!(!active(machine, "quorate-agent.service"), "{name} runs the agent twice");
        machine.state().units.remove(AGENT_UNTIL_JOINED);
        self.state().objects.insert(
            path,
            json!({
                "metadata": {"annotations": {"quorate.dev/inputs": inputs}},
                "status": {"containerStatuses": [{"ready": true}]},
            }),
        );
    }

    fn start_etcd(&self, machine: &FakeMachine) {
        let name = quorate_machine::Machine::name(machine).to_owned();
        let member_dir = format!("{}/member", self.spec.etcd.data_dir);
        if !active(machine, "etcd.service") {
            return;
        }
        if machine.state().files.contains_key(&member_dir) {
            // "the member has been permanently removed from the cluster"
            let is_member = self.state().members.iter().any(|member| member.name == name);
            if let Some(unit) = machine.state().units.get_mut("etcd.service").filter(|_| !is_member) {
                unit.active = false;
            }
            return;
        }
        let Some(bootstrap) = text(machine, "/etc/etcd/bootstrap.env") else {
            return;
        };
        let value = |key: &str| {
            bootstrap
                .lines()
                .find_map(|line| line.strip_prefix(&format!("{key}=")))
                .unwrap_or_default()
                .to_owned()
        };
        let cluster: Vec<(String, String)> = value("ETCD_INITIAL_CLUSTER")
            .split(',')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, peer)| (name.to_owned(), peer.to_owned()))
            .collect();
        let Some((_, own)) = cluster.iter().find(|(other, _)| *other == name).cloned() else {
            return;
        };
        {
            let mut state = self.state();
            if value("ETCD_INITIAL_CLUSTER_STATE") == "new" {
                if state.members.is_empty() {
                    for (name, peer) in &cluster {
                        state.next_id += 1;
                        let id = state.next_id;
                        state.members.push(Member {
                            id,
                            name: name.clone(),
                            peer: peer.clone(),
                            learner: false,
                            started: false,
                        });
                    }
                }
                assert!(
                    state.members.iter().any(|member| member.peer == own) || state.removed.contains(&own),
                    "{name} starts a second cluster"
                );
            }
            match state.members.iter_mut().find(|member| member.peer == own) {
                // "member … has already been bootstrapped": one without memory would let the others forget.
                Some(member) if member.started => return,
                Some(member) => (member.name, member.started) = (name, true),
                // It ends with an error: it is not in the list.
                None => return,
            }
        }
        let mut state = machine.state();
        let directory = state.files.get(&self.spec.etcd.data_dir).cloned().unwrap();
        state.files.insert(format!("{member_dir}/wal"), directory.clone());
        state.files.insert(member_dir, directory);
    }

    fn etcd_runs(&self, machine: &FakeMachine) -> bool {
        (active(machine, "etcd.service") || Self::runs_pod(machine, "etcd"))
            && machine
                .state()
                .files
                .contains_key(&format!("{}/member", self.spec.etcd.data_dir))
    }

    fn api_runs(&self, machine: &FakeMachine) -> bool {
        Self::serves(machine) && self.has_quorum()
    }

    fn serves(machine: &FakeMachine) -> bool {
        active(machine, "kube-apiserver.service") || Self::runs_pod(machine, "kube-apiserver")
    }

    fn kubelet(&self, machine: &FakeMachine) {
        let name = quorate_machine::Machine::name(machine).to_owned();
        if !active(machine, "kubelet.service") {
            return;
        }
        set(machine, SET_BY_KUBELET);
        let node_path = format!("/api/v1/nodes/{name}");
        if text(machine, paths::KUBELET_CLIENT).is_none() {
            let Some(bootstrap) = text(machine, "/etc/kubernetes/bootstrap-kubelet.conf") else {
                return;
            };
            let token = |object: &Value| {
                let field = |field: &str| {
                    object
                        .pointer(&format!("/stringData/{field}"))
                        .and_then(Value::as_str)
                        .unwrap_or_default()
                        .to_owned()
                };
                bootstrap.contains(&format!("{}.{}", field("token-id"), field("token-secret")))
            };
            if !self
                .state()
                .objects
                .iter()
                .any(|(path, object)| path.contains("/secrets/bootstrap-token-") && token(object))
            {
                return;
            }
            machine.put_file(paths::KUBELET_CLIENT, "certificate and key", 0o600);
            let server = bootstrap
                .lines()
                .find_map(|line| line.trim().strip_prefix("server: "))
                .unwrap_or_default()
                .to_owned();
            machine.put_file(CLIENT_CONF, format!("server: {server}\n"), 0o600);
        }
        let ready = active(machine, "flanneld.service");
        let mut state = self.state();
        let node = state.objects.entry(node_path).or_insert_with(|| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "spec": {}}));
        if node.pointer("/spec/taints").is_none()
            && let Some(spec) = self.spec.machine(&name)
        {
            // As `registerWithTaints` of the kubelet's configuration says.
            let taints: Vec<Value> = spec
                .taints
                .iter()
                .map(|taint| match taint.value.as_str() {
                    "" => json!({"key": taint.key, "effect": format!("{:?}", taint.effect)}),
                    value => json!({"key": taint.key, "value": value, "effect": format!("{:?}", taint.effect)}),
                })
                .collect();
            node["spec"]["taints"] = json!(taints);
        }
        node["status"] = json!({"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }, "message": "container runtime network not ready"}]});
        drop(state);
        if text(machine, paths::KUBELET_SERVING).is_none() {
            self.serving(machine, &name);
        }
    }

    fn serving(&self, machine: &FakeMachine, name: &str) {
        let path = format!("{CSRS}/csr-{name}");
        let mut state = self.state();
        match state.objects.get_mut(&path) {
            None => {
                let request = self.request(name, &format!("csr-{name}"), name, "2026-11-21T08:00:00Z");
                state.objects.insert(path, request);
            }
            Some(request) if request.pointer("/status/conditions/0/type") == Some(&json!("Approved")) => {
                request["status"]["certificate"] = json!("signed");
                drop(state);
                machine.put_file(paths::KUBELET_SERVING, "certificate and key", 0o600);
            }
            Some(_) => {}
        }
    }

    /// The kubelet of a node that serves asks for another certificate, for this DNS name. The request's path.
    pub fn asks_again(&self, node: &str, dns: &str) -> String {
        let name = format!("csr-again-{node}");
        let request = self.request(node, &name, dns, "2027-08-01T08:00:00Z");
        let path = format!("{CSRS}/{name}");
        self.state().objects.insert(path.clone(), request);
        path
    }

    /// A kubelet's request for a serving certificate.
    fn request(&self, node: &str, name: &str, dns: &str, created: &str) -> Value {
        let spec = self.spec.machine(node).unwrap();
        let wanted = CertificateWanted {
            id: "kubelet".into(),
            holder: Holder::Machine(node.into()),
            place: Place::Files {
                certificate: String::new(),
                key: String::new(),
            },
            ca: Ca::Cluster,
            common_name: format!("system:node:{node}"),
            organizations: vec!["system:nodes".into()],
            dns: vec![dns.into()],
            ips: spec.all_addresses(),
            server: true,
            client: false,
            days: 365,
            owner: Owner::root(),
        };
        let (_, pem) = quorate_pki::issue::request(&wanted).unwrap();
        json!({
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {
                "request": STANDARD.encode(pem), "signerName": "kubernetes.io/kubelet-serving", "username": format!("system:node:{node}"),
                "groups": ["system:nodes", "system:authenticated"], "usages": ["digital signature", "server auth"],
            },
            "status": {},
        })
    }

    fn controllers(&self) {
        let mut state = self.state();
        let ready = state
            .objects
            .values()
            .filter(|object| {
                object["kind"] == "Node" && object.pointer("/status/conditions/0/status") == Some(&json!("True"))
            })
            .count();
        let nodes = state.objects.values().filter(|object| object["kind"] == "Node").count();
        for (path, object) in &mut state.objects {
            match object.get("kind").and_then(Value::as_str) {
                // It needs no Pod network.
                Some("DaemonSet") if path.ends_with("/kube-proxy") => object["status"] = json!({"numberReady": nodes}),
                Some("Deployment") if ready > 0 => {
                    let replicas = object["spec"]["replicas"].clone();
                    object["status"] =
                        json!({"replicas": replicas, "updatedReplicas": replicas, "readyReplicas": replicas});
                }
                Some("DaemonSet") => object["status"] = json!({"numberReady": ready}),
                Some("CertificateSigningRequest") => object["status"]["certificate"] = json!("signed"),
                _ => {}
            }
        }
    }

    fn http(&self, machine: &FakeMachine, request: &HttpRequest) -> Option<HttpReply> {
        if !self.lazy.load(std::sync::atomic::Ordering::Relaxed) {
            self.settle();
        }
        let rest = request.url.strip_prefix("https://")?;
        let (host, path) = rest.split_at(rest.find('/')?);
        if host == "127.0.0.1:2379" {
            return self.etcd(machine, path, &serde_json::from_slice(&request.body).ok()?);
        }
        if let Some(server) = self.servers.get(host) {
            let server = self.machine(server)?;
            if !Self::serves(&server) {
                return None;
            }
            if !self.has_quorum() {
                return Some(reply(500, json!({"message": "[-]etcd failed"})));
            }
            return Some(self.api(request, path));
        }
        // A proxy on the machine, or the VIP.
        let local = active(machine, "quorate-agent.service")
            || active(machine, AGENT_UNTIL_JOINED)
            || Self::runs_pod(machine, AGENT_POD);
        let any = self
            .servers
            .values()
            .any(|name| self.machine(name).is_some_and(|machine| self.api_runs(&machine)));
        (local && any && path == "/readyz").then(|| reply(200, json!("ok")))
    }

    fn etcd(&self, machine: &FakeMachine, path: &str, body: &Value) -> Option<HttpReply> {
        let name = quorate_machine::Machine::name(machine).to_owned();
        if !self.etcd_runs(machine) {
            return None;
        }
        let quorum = self.has_quorum();
        let mut state = self.state();
        let own = state.members.iter().find(|member| member.name == name)?.clone();
        let header = json!({"cluster_id": "77", "member_id": own.id.to_string(), "revision": "5"});
        let refused = |message: &str| Some(reply(503, json!({"code": 14, "message": message})));
        match path {
            "/v3/maintenance/status" => Some(reply(
                200,
                json!({"header": header, "leader": if quorum { "1" } else { "0" }, "isLearner": own.learner}),
            )),
            _ if !quorum => refused("etcdserver: request timed out"),
            _ if own.learner => refused("etcdserver: rpc not supported for learner"),
            "/v3/cluster/member/list" => {
                let members: Vec<Value> = state
                    .members
                    .iter()
                    .map(|member| json!({"ID": member.id.to_string(), "name": member.name, "peerURLs": [member.peer], "isLearner": member.learner}))
                    .collect();
                Some(reply(200, json!({"header": header, "members": members})))
            }
            "/v3/cluster/member/add" => {
                assert!(!state.members.iter().any(|member| member.learner), "a second learner");
                state.next_id += 1;
                let id = state.next_id;
                state.members.push(Member {
                    id,
                    name: String::new(),
                    peer: body["peerURLs"][0].as_str()?.to_owned(),
                    learner: true,
                    started: false,
                });
                Some(reply(200, json!({"header": header})))
            }
            "/v3/cluster/member/promote" => {
                let id: u64 = body["ID"].as_str()?.parse().ok()?;
                let started = state
                    .members
                    .iter()
                    .find(|member| member.id == id)
                    .map(|member| member.name.clone())?;
                drop(state);
                if !self.machine(&started).is_some_and(|machine| self.etcd_runs(&machine)) {
                    return refused("etcdserver: can only promote a learner member which is in sync with leader");
                }
                self.state().members.iter_mut().find(|member| member.id == id)?.learner = false;
                Some(reply(200, json!({"header": header})))
            }
            "/v3/cluster/member/remove" => {
                let id: u64 = body["ID"].as_str()?.parse().ok()?;
                state.remove(id);
                Some(reply(200, json!({"header": header})))
            }
            _ => refused("unknown"),
        }
    }

    fn api(&self, request: &HttpRequest, path: &str) -> HttpReply {
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        if path == "/readyz" {
            return reply(200, json!("ok"));
        }
        assert!(
            request.identity.is_some(),
            "{} {path} without an identity",
            request.method
        );
        let mut state = self.state();
        let body = || serde_json::from_slice::<Value>(&request.body).unwrap_or_default();
        match request.method.as_str() {
            "GET" if self.unreadable.lock().unwrap().as_deref() == Some(path) => {
                reply(500, json!({"message": "etcdserver: request timed out"}))
            }
            "GET" if path == CSRS => {
                let items: Vec<Value> = state
                    .objects
                    .range(format!("{CSRS}/")..)
                    .take_while(|(path, _)| path.starts_with(CSRS))
                    .map(|(_, object)| object.clone())
                    .collect();
                reply(200, json!({"items": items}))
            }
            "GET" => state.objects.get(path).map_or_else(
                || reply(404, json!({"message": "not found"})),
                |object| reply(200, object.clone()),
            ),
            "PATCH" => {
                assert!(query.contains("fieldManager=quorate") && query.contains("force=true"));
                let object = state.objects.entry(path.to_owned()).or_insert_with(|| json!({}));
                merge(object, &body());
                reply(200, object.clone())
            }
            "PUT" => {
                let path = path.strip_suffix("/approval").unwrap_or(path).to_owned();
                state.objects.insert(path, body());
                reply(200, body())
            }
            "DELETE" => match state.objects.remove(path) {
                Some(_) => reply(200, json!({"status": "Success"})),
                None => reply(404, json!({"message": "not found"})),
            },
            other => reply(405, json!({"message": format!("{other} is not known here")})),
        }
    }

    fn exec(&self, machine: &FakeMachine, exec: &Exec) -> Option<ExecOutput> {
        let name = quorate_machine::Machine::name(machine).to_owned();
        self.words.lock().unwrap().extend(exec.argv.iter().cloned());
        let words: Vec<&str> = exec.argv.iter().map(String::as_str).collect();
        let said = |text: String| {
            Some(ExecOutput {
                status: Some(0),
                stdout: text.into(),
                ..ExecOutput::default()
            })
        };
        match words.as_slice() {
            ["systemd-run", ..] if exec.argv.iter().any(|word| word == "agent") => {
                let mut state = machine.state();
                state.units.entry(AGENT_UNTIL_JOINED.into()).or_default().active = true;
                drop(state);
                said(String::new())
            }
            [ctr, rest @ ..] if ctr.ends_with("/ctr") => {
                if !active(machine, "containerd.service") {
                    return Some(ExecOutput {
                        status: Some(1),
                        stderr: "connection refused".into(),
                        ..ExecOutput::default()
                    });
                }
                let mut state = self.state();
                let images = state.images.entry(name).or_default();
                match rest {
                    [_, _, _, "tag", _, _, mark] => {
                        images.insert((*mark).to_owned());
                        said(String::new())
                    }
                    [_, _, _, "ls", ..] => said(images.iter().map(|image| format!("{image}\n")).collect()),
                    _ => said(String::new()),
                }
            }
            [_, _, program, rest @ ..] if program.ends_with("/kubeadm") && self.is_kubeadm() => {
                Some(self.kubeadm(machine, rest))
            }
            ["/usr/bin/find", data, "-mindepth", "1", "-delete"] => {
                let below = format!("{data}/");
                machine.state().files.retain(|path, _| !path.starts_with(&below));
                said(String::new())
            }
            ["/usr/bin/rm", "-f", path] => {
                machine.state().files.remove(*path);
                said(String::new())
            }
            ["hostnamectl", "set-hostname", name] => {
                machine.state().host.hostname = (*name).to_owned();
                said(String::new())
            }
            [program, "clean", rest @ ..] if program.ends_with("/quorate") => {
                let roots: Vec<String> = rest
                    .iter()
                    .filter(|word| **word != "--data")
                    .map(|word| (*word).to_owned())
                    .collect();
                machine.state().files.retain(|path, _| {
                    !roots
                        .iter()
                        .any(|root| path == root || path.starts_with(&format!("{root}/")))
                });
                said(String::new())
            }
            ["rm", "-rf", .., root] => {
                let mut state = machine.state();
                state
                    .files
                    .retain(|path, _| path != root && !path.starts_with(&format!("{root}/")));
                if *root == "/var/lib/quorate" {
                    state.locks.clear();
                }
                drop(state);
                said(String::new())
            }
            ["rmdir", path] => {
                let mut state = machine.state();
                let inside = state.files.keys().any(|other| other.starts_with(&format!("{path}/")));
                if !inside {
                    state.files.remove(*path);
                }
                said(String::new())
            }
            _ => None,
        }
    }
}

/// Kernel parameters of every Linux, which a fake does not know.
fn defaults(machine: &FakeMachine) {
    let defaults = [
        ("fs.inotify.max_user_instances", "128"),
        ("fs.inotify.max_user_watches", "65536"),
        ("kernel.keys.root_maxbytes", "25000000"),
        ("kernel.keys.root_maxkeys", "1000000"),
        ("kernel.panic", "0"),
        ("kernel.panic_on_oops", "0"),
        ("vm.overcommit_memory", "0"),
        ("vm.panic_on_oom", "0"),
    ];
    set(machine, defaults);
}

/// pkg/kubelet/cm/container_manager_linux.go, `setupKernelTunables`.
const SET_BY_KUBELET: [(&str, &str); 6] = [
    ("kernel.keys.root_maxbytes", "25000000"),
    ("kernel.keys.root_maxkeys", "1000000"),
    ("kernel.panic", "10"),
    ("kernel.panic_on_oops", "1"),
    ("vm.overcommit_memory", "1"),
    ("vm.panic_on_oom", "0"),
];

fn set<const N: usize>(machine: &FakeMachine, sysctls: [(&str, &str); N]) {
    let sysctls = sysctls.map(|(name, value)| (name.to_owned(), value.to_owned()));
    machine.state().sysctls.extend(sysctls);
}

fn active(machine: &FakeMachine, unit: &str) -> bool {
    let state = machine.state();
    state.units.get(unit).is_some_and(|unit| unit.active)
}

fn text(machine: &FakeMachine, path: &str) -> Option<String> {
    Some(String::from_utf8_lossy(&machine.file(path)?).into_owned())
}

fn reply(status: u16, body: Value) -> HttpReply {
    HttpReply {
        status,
        headers: Vec::new(),
        body: body.to_string().into(),
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

pub fn file(content: &str, mode: u32) -> FakeFile {
    FakeFile::new(content.into(), &quorate_machine::proto::Owner::root(), mode)
}
