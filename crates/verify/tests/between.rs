//! What is tried out between machines, on fake ones: each fault is found with its hint, healthy machines raise nothing, and
//! a running cluster's ports are never listened on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use quorate_facts::*;
use quorate_machine::fake::Fault;
use quorate_machine::proto::ExecOutput;
use quorate_machine::{ErrorKind, FakeMachine, MachineRef};
use quorate_run::Fleet;
use quorate_spec::Spec;
use quorate_verify::{Report, measure, preflight_measured, worth_measuring};

#[tokio::test]
async fn healthy_machines_raise_nothing() {
    let lab = Lab::new(5);
    let report = lab.report().await;
    assert_eq!(said(&report), "");
    let details: BTreeMap<&str, &str> = report
        .checks
        .iter()
        .map(|check| (check.name.as_str(), check.detail.as_str()))
        .collect();
    // Not because nothing was tried.
    for (name, detail) in [
        ("path-mtu", "1500 bytes pass whole"),
        ("vip-in-use", "nobody answers"),
        ("vrid", "nobody advertises"),
        ("vrrp", "heard from m1 m2"),
        ("clock-skew", "within"),
        ("latency", "at most 0.2 ms"),
        ("fsync", "p99"),
        ("reach", "ports open to"),
    ] {
        assert!(
            details.get(name).is_some_and(|found| found.contains(detail)),
            "{name}: {details:?}"
        );
    }
}

#[tokio::test]
async fn every_fault_between_machines_is_found_with_its_hint() {
    type Break = fn(&Lab);
    let cases: [(&str, Break); 18] = [
        ("overlay-blocked", |lab| {
            for other in ["m1", "m2", "m3", "m5"] {
                lab.deaf(other, "10.77.0.14", Some(8472));
            }
        }),
        ("etcd-peers-blocked-one-way", |lab| {
            lab.deaf("m1", "10.77.0.12", Some(2380))
        }),
        ("cut-off", |lab| {
            for other in ["m1", "m2", "m3", "m4"] {
                lab.deaf(other, "10.77.0.15", None);
            }
        }),
        ("small-mtu", |lab| lab.machines["m1"].state().path_mtu = 1_400),
        ("slow-disk", |lab| {
            lab.machines["m2"].state().disk = DiskLatency {
                writes: 100,
                p50_us: 4_000,
                p99_us: 25_000,
                max_us: 30_000,
            }
        }),
        ("clock-off", |lab| lab.machines["m3"].state().now_unix += 10),
        ("clock-a-little-off", |lab| lab.machines["m3"].state().now_unix += 1),
        ("squatted-vip", |lab| lab.owner("02:42:00:00:09:99")),
        ("vip-on-a-worker", |lab| lab.owner("02:00:00:00:00:04")),
        ("vrid-taken", |lab| lab.router(51, "10.77.0.250")),
        ("keepalived-left-on-a-machine", |lab| lab.router(51, "10.77.0.12")),
        ("vrrp-dropped-by-a-holder", |lab| {
            for other in ["10.77.0.11", "10.77.0.13"] {
                lab.machines["m2"].state().unheard.insert(other.parse().unwrap());
            }
        }),
        ("vrrp-dropped-one-way", |lab| {
            lab.machines["m1"].state().unheard.insert("10.77.0.13".parse().unwrap());
        }),
        ("holder-on-another-link", |lab| lab.deaf("m3", "10.77.0.11", None)),
        ("name-server-silent", |lab| {
            lab.machines["m4"].on_exec(|_, _| {
                Some(ExecOutput {
                    timed_out: true,
                    ..ExecOutput::default()
                })
            })
        }),
        ("endpoint-name-elsewhere", |lab| {
            lab.machines["m1"].on_exec(|_, exec| {
                let address = if exec.argv.iter().any(|word| word == "api.test") {
                    "192.0.2.7"
                } else {
                    "127.0.0.1"
                };
                Some(answered(address))
            })
        }),
        ("localhost-elsewhere", |lab| {
            lab.machines["m2"].on_exec(|_, _| Some(answered("10.77.0.100")))
        }),
        ("cannot-be-tried", |lab| {
            lab.machines["m5"].fault(Fault::operation(
                "send",
                1,
                ErrorKind::PermissionDenied,
                "a raw ICMP socket: not permitted",
            ))
        }),
    ];
    let mut text = String::new();
    for (name, break_) in cases {
        let lab = Lab::new(5);
        break_(&lab);
        let said = said(&lab.report().await);
        assert!(!said.is_empty(), "{name} is not found");
        text.push_str(&format!("{name}\n{said}"));
    }
    insta::assert_snapshot!(text);
}

#[tokio::test]
async fn another_vrid_on_the_link_is_no_fault_and_our_own_holder_is_none() {
    let lab = Lab::new(5);
    lab.router(7, "10.77.0.250");
    assert_eq!(said(&lab.report().await), "");
    // Deployed: m1 holds the VIP, and the others hear it.
    let mut lab = Lab::new(5);
    lab.deploy();
    lab.owner("02:00:00:00:00:01");
    lab.router(51, "10.77.0.11");
    assert_eq!(said(&lab.report().await), "");
}

#[tokio::test]
async fn vrrp_is_tried_between_bare_holders_alone() {
    let tried = |lab: &Lab| -> Vec<String> {
        let asked = |name: &String| {
            lab.machines[name]
                .state()
                .journal
                .iter()
                .any(|line| line.contains("VRRP"))
        };
        lab.machines.keys().filter(|name| asked(name)).cloned().collect()
    };
    let lab = Lab::new(5);
    lab.report().await;
    assert_eq!(tried(&lab), ["m1", "m2", "m3"], "workers hold no VIP");
    // An agent runs on m1.
    let mut lab = Lab::new(5);
    lab.deploy_on("m1");
    lab.machines["m2"].state().unheard.insert("10.77.0.13".parse().unwrap());
    let text = said(&lab.report().await);
    assert_eq!(tried(&lab), ["m2", "m3"]);
    assert!(text.contains("FAIL vrrp m2: VRRP does not arrive from m3"), "{text}");
    // Nobody is left to hear.
    let mut lab = Lab::new(5);
    lab.deploy_on("m1");
    lab.deploy_on("m2");
    lab.report().await;
    assert_eq!(tried(&lab), Vec::<String>::new());
    // A firewall that apply opens.
    let mut lab = Lab::new(5);
    lab.change("m2", |host| host.firewall.ufw_active = true);
    lab.machines["m2"].state().unheard.insert("10.77.0.13".parse().unwrap());
    let text = said(&lab.report().await);
    assert!(text.contains("warn vrrp m2: closed by its firewall"), "{text}");
}

#[tokio::test]
async fn nothing_is_listened_on_where_the_cluster_runs() {
    let mut lab = Lab::new(5);
    assert!(worth_measuring(&lab.facts));
    lab.deploy();
    assert!(!worth_measuring(&lab.facts));
    let report = lab.report().await;
    assert_eq!(said(&report), "");
    for (name, machine) in &lab.machines {
        let asked = machine.state().journal.join("\n");
        assert!(
            !asked.contains("listen on 1") && !asked.contains("ports") && !asked.contains("VRRP"),
            "{name}: {asked}"
        );
    }
    // What listens there anyway is dialled.
    lab.change("m2", |host| host.listening.push(listener(6443)));
    let report = lab.report().await;
    assert!(
        report
            .checks
            .iter()
            .any(|check| check.name == "reach" && check.target == "m2" && check.ok)
    );
    lab.deaf("m1", "10.77.0.12", Some(6443));
    assert!(said(&lab.report().await).contains("tcp 6443"));
}

#[tokio::test]
async fn a_machine_that_is_deaf_to_questions_holds_nobody_up() {
    let lab = Lab::new(30);
    let started = std::time::Instant::now();
    let report = lab.report().await;
    assert_eq!(said(&report), "");
    assert!(started.elapsed().as_secs() < 5);
}

#[tokio::test]
async fn what_apply_will_open_is_no_obstacle() {
    let mut lab = Lab::new(5);
    lab.change("m4", |host| host.firewall.ufw_active = true);
    lab.deaf("m1", "10.77.0.14", Some(10_250));
    let text = said(&lab.report().await);
    assert!(
        text.contains("warn reach m4: closed by its firewall, which apply opens"),
        "{text}"
    );
    lab.deploy();
    lab.change("m4", |host| host.listening.push(listener(10_250)));
    assert!(said(&lab.report().await).contains("FAIL reach m4"));
}

struct Lab {
    spec: Spec,
    facts: Facts,
    machines: BTreeMap<String, Arc<FakeMachine>>,
}

impl Lab {
    /// Three control planes and workers, bare.
    fn new(count: u8) -> Self {
        let mut text = "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: test}\nspec:\n  endpoint: {name: api.test, vip: 10.77.0.100}\n  machines:\n".to_owned();
        for n in 1..=count {
            let role = if n <= 3 { "control-plane" } else { "worker" };
            text.push_str(&format!(
                "    - {{name: m{n}, address: 10.77.0.{}, roles: [{role}]}}\n",
                10 + n
            ));
        }
        let spec = quorate_spec::load(&text, "cluster.yaml")
            .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, &text, false)))
            .0;
        let mut lab = Self {
            facts: Facts {
                taken_unix: 1_800_000_000,
                ..Facts::default()
            },
            machines: BTreeMap::new(),
            spec,
        };
        for (index, machine) in lab.spec.machines.iter().enumerate() {
            let fake = FakeMachine::new(&machine.name);
            let mut host = fake.state().host.clone();
            host.hostname = machine.name.clone();
            host.machine_id = format!("id-{}", machine.name);
            host.product_uuid = Some(format!("uuid-{}", machine.name));
            host.cpus = 4;
            host.memory_bytes = 20 << 30;
            host.dns_servers = vec!["10.77.0.1".into()];
            host.clock.unix_ns = 1_800_000_000_000_000_000;
            host.clock.service = Some("chronyd".into());
            for mount in &mut host.mounts {
                (mount.total_bytes, mount.free_bytes) = (100 << 30, 50 << 30);
            }
            host.network.addresses = vec![AddressFacts {
                interface: "eth0".into(),
                address: machine.address,
                prefix: 24,
            }];
            host.network.links[0].mac = format!("02:00:00:00:00:{:02x}", index + 1);
            fake.on_exec(|_, exec| {
                let address = match exec.argv.last().map(String::as_str) {
                    Some("localhost") => "127.0.0.1",
                    _ => "10.77.0.100",
                };
                Some(answered(address))
            });
            let found = MachineFacts::Found(Box::new(host));
            lab.facts.machines.insert(machine.name.clone(), found);
            lab.machines.insert(machine.name.clone(), fake);
        }
        lab
    }

    async fn report(&self) -> Report {
        let machines = self.machines.values().map(|machine| machine.clone() as MachineRef);
        let fleet = Fleet::new(machines, BTreeMap::new());
        let measured = measure(&self.spec, &fleet, &self.facts).await;
        preflight_measured(&self.spec, &self.facts, &measured)
    }

    fn change(&mut self, machine: &str, with: impl Fn(&mut HostFacts)) {
        if let Some(MachineFacts::Found(host)) = self.facts.machines.get_mut(machine) {
            with(host);
        }
    }

    fn deploy(&mut self) {
        let names: Vec<String> = self.machines.keys().cloned().collect();
        for name in names {
            self.deploy_on(&name);
        }
    }

    fn deploy_on(&mut self, machine: &str) {
        self.change(machine, |host| {
            let folder = FileFacts {
                kind: FileKind::Directory,
                ..FileFacts::absent()
            };
            host.files.insert("/opt/quorate/bin".into(), folder);
        });
    }

    /// What `from` sends to the address (to one port of it) gets no answer.
    fn deaf(&self, from: &str, to: &str, port: Option<u16>) {
        let to: IpAddr = to.parse().unwrap();
        self.machines[from].state().silent.insert((to, port));
    }

    /// The VIP is answered for from this hardware address.
    fn owner(&self, mac: &str) {
        for name in ["m1", "m2", "m3"] {
            let vip = "10.77.0.100".parse().unwrap();
            self.machines[name].state().link.owners.insert(vip, mac.into());
        }
    }

    fn router(&self, vrid: u8, source: &str) {
        self.machines["m2"].state().link.routers.push(Router {
            vrid,
            version: 2,
            priority: 100,
            source: source.parse().unwrap(),
        });
    }
}

fn said(report: &Report) -> String {
    let mut text = String::new();
    for check in report.checks.iter().filter(|check| !check.ok || check.is_warning()) {
        assert!(!check.hint.is_empty(), "{} has no hint", check.name);
        let mark = if check.ok { "warn" } else { "FAIL" };
        text.push_str(&format!(
            "  {mark} {} {}: {}\n       hint: {}\n",
            check.name, check.target, check.detail, check.hint
        ));
    }
    text
}

fn answered(address: &str) -> ExecOutput {
    ExecOutput {
        status: Some(0),
        stdout: format!("{address} STREAM name\n").into(),
        ..ExecOutput::default()
    }
}

fn listener(port: u16) -> Listener {
    Listener {
        transport: Transport::Tcp,
        address: "0.0.0.0".parse().unwrap(),
        port,
        pid: Some(1),
        process: Some("kube-apiserver".into()),
    }
}
