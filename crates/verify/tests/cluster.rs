//! Checks of a running cluster on fake machines: what is wrong is said by the check whose matter it is.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use quorate_facts::AddressFacts;
use quorate_machine::proto::{ExecOutput, HttpReply, HttpRequest};
use quorate_machine::{FakeMachine, MachineRef};
use quorate_pki::DAY;
use quorate_pki::inventory::{Ca, CertificateWanted, Holder, Owner, Place};
use quorate_pki::issue::{Authority, Issued};
use quorate_run::{Api, Fleet, Identity, kubeconfig};
use quorate_spec::Spec;
use quorate_verify::{Cluster, Report, verify};
use serde_json::{Value, json};

const NOW: i64 = 1_800_000_000;
/// Checks this file is about. The others ask for Pods and API servers that are not here.
const NAMES: [&str; 8] = [
    "machine",
    "clock",
    "certificates",
    "etcd-member",
    "etcd-list",
    "leader",
    "vip",
    "etcd-vip",
];

#[tokio::test]
async fn a_cluster_that_is_well_raises_nothing() {
    for bootstrap in ["binary", "kubeadm"] {
        let report = World::new(bootstrap).report().await;
        assert_eq!(said(&report), BTreeSet::new(), "{bootstrap}");
        // Not because nothing was looked at.
        for name in ["machine", "certificates", "etcd-member", "etcd-list", "leader", "vip"] {
            assert!(report.checks.iter().any(|check| check.name == name), "{name}");
        }
        let led = report.checks.iter().filter(|check| check.detail == "led by m2").count();
        assert_eq!(led, 2);
    }
}

#[tokio::test]
async fn every_bad_state_is_said_by_the_check_whose_matter_it_is() {
    type Break = fn(&mut World);
    let cases: [(&str, Break, &str); 24] = [
        (
            "a-machine-died",
            |world| world.machines["m4"].power_off(),
            "machine m4: m4: ping",
        ),
        (
            "nobody-leads",
            |world| world.lease(json!({"holderIdentity": ""})),
            "leader kube-scheduler: nobody holds the lease",
        ),
        (
            "never-led",
            |world| drop(world.answers().leases.remove("kube-scheduler")),
            "leader kube-scheduler: nobody holds the lease",
        ),
        (
            "the-leader-died",
            |world| world.lease(lease(NOW - 60)),
            "leader kube-scheduler: m2 holds the lease and has not renewed it for 60 s",
        ),
        (
            "the-leader-died-just-now",
            |world| world.lease(lease(NOW - 21)),
            "leader kube-scheduler: m2 holds the lease and has not renewed it for 21 s",
        ),
        (
            "all-leaders-died-an-hour-ago-and-the-operator's-clock-is-behind",
            |world| {
                world.now_unix -= 3_600;
                world.dates(|_| i128::from(NOW) * 1_000_000_000);
                world.lease(lease(NOW - 3_600));
            },
            "leader kube-scheduler: m2 holds the lease and has not renewed it for 3600 s",
        ),
        (
            "a-lease-without-a-time",
            |world| world.lease(json!({"holderIdentity": "m2_1"})),
            "leader kube-scheduler: m2 holds the lease and never renewed it",
        ),
        (
            "no-api-server",
            |world| world.api = false,
            "leader kube-scheduler: no API server answers",
        ),
        (
            "etcd-is-down",
            |world| drop(world.answers().etcd.remove("m2")),
            "etcd-member m2: m2: POST https://127.0.0.1:2379/v3/maintenance/status",
        ),
        (
            "a-learner",
            |world| world.etcd("m3", "isLearner", json!(true)),
            "etcd-member m3: is still a learner",
        ),
        (
            "no-leader",
            |world| world.etcd("m3", "leader", json!("0")),
            "etcd-member m3: knows no leader",
        ),
        (
            "an-alarm",
            |world| world.etcd("m1", "errors", json!(["memberID:1 alarm:NOSPACE"])),
            "etcd-member m1: memberID:1 alarm:NOSPACE",
        ),
        (
            "another-cluster",
            |world| {
                world.etcd(
                    "m3",
                    "header",
                    json!({"cluster_id": "8", "member_id": "3", "revision": "5000"}),
                )
            },
            "etcd-member m3: belongs to another etcd cluster",
        ),
        (
            "far-behind",
            |world| {
                world.etcd(
                    "m3",
                    "header",
                    json!({"cluster_id": "7", "member_id": "3", "revision": "3000"}),
                )
            },
            "etcd-member m3: 2000 revisions behind",
        ),
        (
            "a-member-too-few",
            |world| world.answers().members.truncate(2),
            "etcd-list cluster: members are m1, m2, wanted m1, m2, m3",
        ),
        (
            "a-stranger",
            |world| world.answers().members.push("x9"),
            "etcd-list cluster: members are m1, m2, m3, x9, wanted m1, m2, m3",
        ),
        (
            "nobody-has-the-vip",
            |world| world.machines["m1"].state().host.network.addresses.clear(),
            "vip 10.77.0.100: nobody holds it",
        ),
        (
            "two-have-the-vip",
            |world| world.holds("m3", "10.77.0.100"),
            "vip 10.77.0.100: held by m1 and m3 at once",
        ),
        (
            "a-clock-ahead",
            |world| world.dates(|name| now_ns() + if name == "m3" { 5_000_000_000 } else { 0 }),
            "clock m3: +",
        ),
        (
            "a-clock-behind",
            |world| world.dates(|name| now_ns() - if name == "m1" { 60_000_000_000 } else { 0 }),
            "clock m1: -",
        ),
        (
            "a-certificate-ends",
            |world| world.put("m1", "/etc/kubernetes/pki/apiserver.crt", &issued(355).certificate_pem),
            "certificates m1: 2 found, the first expires in 10 days (/etc/kubernetes/pki/apiserver.crt)",
        ),
        (
            "etcd's-certificate-ended",
            |world| world.put("m2", "/etc/etcd/pki/peer.crt", &issued(366).certificate_pem),
            "certificates m2: 2 found, the first expires in -1 days (/etc/etcd/pki/peer.crt)",
        ),
        (
            "kubeadm's-manager-ends",
            |world| {
                *world = World::new("kubeadm");
                world.put("m2", "/etc/kubernetes/controller-manager.conf", &embedded(355));
            },
            "certificates m2: 2 found, the first expires in 10 days (/etc/kubernetes/controller-manager.conf)",
        ),
        (
            "kubeadm's-scheduler-ended",
            |world| {
                *world = World::new("kubeadm");
                world.put("m1", "/etc/kubernetes/scheduler.conf", &embedded(367));
            },
            "certificates m1: 2 found, the first expires in -2 days (/etc/kubernetes/scheduler.conf)",
        ),
    ];
    for (name, break_, expected) in cases {
        let mut world = World::new("binary");
        break_(&mut world);
        let said = said(&world.report().await);
        assert!(said.iter().any(|line| line.starts_with(expected)), "{name}: {said:#?}");
    }
}

#[tokio::test]
async fn a_lease_is_judged_by_the_clock_of_those_who_write_it() {
    let mut world = World::new("binary");
    world.now_unix += 3_600;
    world.dates(|_| i128::from(NOW) * 1_000_000_000);
    assert_eq!(said(&world.report().await), BTreeSet::new());
    // A leader renews every two seconds; its successor needs as long as the lease lasts.
    world.lease(lease(NOW - 15));
    assert_eq!(said(&world.report().await), BTreeSet::new());
}

/// They have no authority to know it by: the check would never hold.
#[tokio::test]
async fn machines_of_etcd_alone_are_not_asked_for_the_api() {
    let mut world = World::new("binary");
    let worker = world.spec.machines.last_mut().expect("machines");
    worker.roles = [quorate_spec::Role::Etcd].into();
    let report = world.report().await;
    let asked = report.checks.iter().filter(|check| check.name == "endpoint");
    let asked: Vec<&str> = asked.map(|check| check.target.as_str()).collect();
    assert_eq!(asked, ["m1", "m2", "m3"]);
}

#[tokio::test]
async fn a_kubeconfig_that_names_files_holds_no_certificate() {
    let world = World::new("binary");
    let names_files = "apiVersion: v1\nkind: Config\nusers:\n- name: x\n  user:\n    client-certificate: /a.crt\n";
    world.put("m1", "/etc/kubernetes/scheduler.conf", names_files);
    let report = world.report().await;
    let found = |target: &str| {
        let mut checks = report.checks.iter();
        checks
            .find(|check| check.name == "certificates" && check.target == target)
            .map(|check| check.detail.split(',').next().unwrap_or_default().to_owned())
    };
    assert_eq!(found("m1"), Some("1 found".into()));
}

struct World {
    spec: Spec,
    machines: BTreeMap<String, Arc<FakeMachine>>,
    answers: Arc<Mutex<Answers>>,
    now_unix: i64,
    api: bool,
}

/// What API servers and etcd say.
struct Answers {
    leases: BTreeMap<String, Value>,
    etcd: BTreeMap<String, Value>,
    members: Vec<&'static str>,
}

impl World {
    /// Three control planes with the VIP on the first, a worker, all well.
    fn new(bootstrap: &str) -> Self {
        let mut text = format!(
            "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {{name: test}}\nspec:\n  kubernetes: {{bootstrap: {bootstrap}}}\n  endpoint: {{vip: 10.77.0.100}}\n  machines:\n"
        );
        for n in 1..=4 {
            let role = if n <= 3 { "control-plane" } else { "worker" };
            text.push_str(&format!(
                "    - {{name: m{n}, address: 10.77.0.1{n}, roles: [{role}]}}\n"
            ));
        }
        let spec = quorate_spec::load(&text, "cluster.yaml")
            .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, &text, false)))
            .0;
        let leader = |name: &str| (name.to_owned(), lease(NOW - 2));
        let status = |id: u32| {
            json!({
                "header": {"cluster_id": "7", "member_id": id.to_string(), "revision": "5000"}, "leader": "1",
            })
        };
        let answers = Arc::new(Mutex::new(Answers {
            leases: ["kube-controller-manager", "kube-scheduler"].map(leader).into(),
            etcd: [1, 2, 3].map(|id| (format!("m{id}"), status(id))).into(),
            members: vec!["m1", "m2", "m3"],
        }));
        let mut machines = BTreeMap::new();
        for machine in &spec.machines {
            let fake = FakeMachine::new(&machine.name);
            let shared = answers.clone();
            fake.on_http(move |fake, request| shared.lock().unwrap().http(fake, request));
            machines.insert(machine.name.clone(), fake);
        }
        let world = Self {
            spec,
            machines,
            answers,
            now_unix: NOW,
            api: true,
        };
        let pki = if bootstrap == "kubeadm" {
            "/etc/kubernetes/pki/etcd"
        } else {
            "/etc/etcd/pki"
        };
        for name in ["m1", "m2", "m3"] {
            for file in ["ca.crt", "healthcheck-client.key"] {
                world.put(name, &format!("{pki}/{file}"), "not looked at");
            }
            world.put(
                name,
                &format!("{pki}/healthcheck-client.crt"),
                &issued(0).certificate_pem,
            );
        }
        world.holds("m1", "10.77.0.100");
        world
    }

    fn put(&self, machine: &str, path: &str, text: &str) {
        self.machines[machine].put_file(path, text, 0o600);
    }

    fn holds(&self, machine: &str, address: &str) {
        let address = AddressFacts {
            interface: "eth0".into(),
            address: address.parse().unwrap(),
            prefix: 32,
        };
        self.machines[machine].state().host.network.addresses.push(address);
    }

    fn answers(&self) -> std::sync::MutexGuard<'_, Answers> {
        self.answers.lock().unwrap()
    }

    /// The scheduler's.
    fn lease(&self, spec: Value) {
        self.answers().leases.insert("kube-scheduler".into(), spec);
    }

    fn etcd(&self, member: &str, field: &str, value: Value) {
        self.answers().etcd.get_mut(member).unwrap()[field] = value;
    }

    /// What `date +%s%N` says on each machine.
    fn dates(&self, date: fn(&str) -> i128) {
        for (name, machine) in &self.machines {
            let name = name.clone();
            machine.on_exec(move |_, exec| {
                (exec.argv[0] == "date").then(|| ExecOutput {
                    status: Some(0),
                    stdout: date(&name).to_string().into(),
                    ..ExecOutput::default()
                })
            });
        }
    }

    async fn report(&self) -> Report {
        let machines = self.machines.values().map(|machine| machine.clone() as MachineRef);
        let fleet = Fleet::new(machines, BTreeMap::new());
        let identity = Identity {
            client: "".into(),
            authority: "".into(),
        };
        let api = Api::new(
            fleet.get("m1").unwrap().clone(),
            "10.77.0.11:6443".parse().unwrap(),
            identity,
        );
        let cluster = Cluster {
            spec: &self.spec,
            fleet: &fleet,
            api: self.api.then_some(api),
            kubeconfig: String::new(),
            now_unix: self.now_unix,
        };
        verify(&cluster).await
    }
}

impl Answers {
    fn http(&self, fake: &FakeMachine, request: &HttpRequest) -> Option<HttpReply> {
        let body = if request.url.ends_with("/v3/maintenance/status") {
            self.etcd.get(quorate_machine::Machine::name(fake))?.clone()
        } else if request.url.ends_with("/v3/cluster/member/list") {
            let members = self.members.iter().map(|name| json!({"name": name}));
            json!({"header": {"cluster_id": "7"}, "members": members.collect::<Vec<_>>()})
        } else if request.url.ends_with("/namespaces/kube-system/leases") {
            let leases = self.leases.iter();
            let items = leases.map(|(name, spec)| json!({"metadata": {"name": name}, "spec": spec}));
            json!({"items": items.collect::<Vec<_>>()})
        } else {
            return None;
        };
        Some(HttpReply {
            status: 200,
            body: body.to_string().into(),
            ..HttpReply::default()
        })
    }
}

/// Held by m2, which renewed it then.
fn lease(renewed: i64) -> Value {
    let renewed = jiff::Timestamp::from_second(renewed).unwrap();
    json!({
        "holderIdentity": "m2_0f3c", "leaseDurationSeconds": 15,
        "renewTime": renewed.strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string(),
    })
}

/// A certificate for a year, that many days old.
fn issued(days_ago: i64) -> Issued {
    let then = NOW - days_ago * DAY;
    let wanted = CertificateWanted {
        id: "client".into(),
        holder: Holder::Operator,
        place: Place::Files {
            certificate: String::new(),
            key: String::new(),
        },
        ca: Ca::Cluster,
        common_name: "client".into(),
        organizations: Vec::new(),
        dns: Vec::new(),
        ips: Vec::new(),
        server: false,
        client: true,
        days: 365,
        owner: Owner::root(),
    };
    Authority::create(Ca::Cluster, then)
        .unwrap()
        .issue(&wanted, then)
        .unwrap()
}

fn embedded(days_ago: i64) -> String {
    let text = kubeconfig("test", "https://10.77.0.100:8443", "", "client", &issued(days_ago));
    text.expose().to_owned()
}

fn now_ns() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i128::try_from(since.as_nanos()).unwrap()
}

fn said(report: &Report) -> BTreeSet<String> {
    let of_ours = report
        .checks
        .iter()
        .filter(|check| NAMES.contains(&check.name.as_str()));
    of_ours
        .filter(|check| !check.ok)
        .map(|check| {
            assert!(!check.hint.is_empty(), "{} has no hint", check.name);
            format!("{} {}: {}", check.name, check.target, check.detail)
        })
        .collect()
}
