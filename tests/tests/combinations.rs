//! Options together that no example file has: each combination is deployed, proves that what it asks for carries the API,
//! has nothing to do a second time, and is taken off the machines again for the next one. `make test-designs`.

#![expect(clippy::print_stderr, reason = "stories say what they skip and what they measured")]

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use quorate_tests::story::{agent_pods, assert_same, checks_of, field, get, no_steps, traces};
use quorate_tests::{Lab, cannot_run, text};

const VIP: &str = "10.77.0.100";
const ETCD_VIP: &str = "10.77.0.101";

struct Combination {
    bootstrap: &'static str,
    /// `endpoint.on`.
    on: &'static str,
    access: &'static str,
    balancer: &'static str,
    /// `agent.as`.
    agent: &'static str,
    /// Topology, or `external-vip`.
    etcd: &'static str,
    /// Section of the cluster file, and what else it says.
    more: &'static [(&'static str, &'static str)],
}

/// Any two values of the six options that go together at all are together in one of these. Without IPVS, which the lab's kernel
/// lacks, and without static Pods where haproxy leaves the agent nothing to do.
const COMBINATIONS: [Combination; 12] = [
    Combination {
        bootstrap: "kubeadm",
        on: "control-planes",
        access: "endpoint",
        balancer: "haproxy",
        agent: "unit",
        etcd: "external-vip",
        more: &[("kubernetes", "proxyMode: iptables")],
    },
    Combination {
        bootstrap: "binary",
        on: "control-planes",
        access: "endpoint",
        balancer: "quorate",
        agent: "static-pod",
        etcd: "external",
        more: &[("network", "flannel: {backend: host-gw}")],
    },
    Combination {
        bootstrap: "binary",
        on: "control-planes",
        access: "proxy",
        balancer: "quorate",
        agent: "static-pod",
        etcd: "stacked",
        more: &[("security", "tlsMin: \"1.3\", encryption: none, audit: {enabled: false}")],
    },
    Combination {
        bootstrap: "binary",
        on: "control-planes",
        access: "ebpf",
        balancer: "haproxy",
        agent: "static-pod",
        etcd: "stacked",
        more: &[("kubernetes", "proxyMode: iptables")],
    },
    Combination {
        bootstrap: "kubeadm",
        on: "control-planes",
        access: "ebpf",
        balancer: "haproxy",
        agent: "unit",
        etcd: "external",
        more: &[("security", "tlsMin: \"1.3\"")],
    },
    Combination {
        bootstrap: "binary",
        on: "load-balancers",
        access: "endpoint",
        balancer: "haproxy",
        agent: "unit",
        etcd: "stacked",
        // The API servers' own port is free there.
        more: &[("endpoint", "port: 6443, name: api.combined.internal")],
    },
    Combination {
        bootstrap: "binary",
        on: "load-balancers",
        access: "ebpf",
        balancer: "haproxy",
        agent: "unit",
        etcd: "external",
        more: &[("kubernetes", "domain: combined.test"), ("dns", "replicas: 3")],
    },
    Combination {
        bootstrap: "kubeadm",
        on: "load-balancers",
        access: "ebpf",
        balancer: "quorate",
        agent: "unit",
        etcd: "external-vip",
        more: &[("accessOptions", "ebpf: {virtual: \"10.103.98.2:8443\"}")],
    },
    Combination {
        bootstrap: "kubeadm",
        on: "load-balancers",
        access: "proxy",
        balancer: "quorate",
        agent: "unit",
        etcd: "external",
        more: &[(
            "network",
            "services: 10.96.0.0/22, podsPerNodeMask: 26, nodePorts: 31000-31999",
        )],
    },
    Combination {
        bootstrap: "binary",
        on: "none",
        access: "proxy",
        balancer: "haproxy",
        agent: "unit",
        etcd: "external-vip",
        more: &[
            ("accessOptions", "proxy: {listen: \"127.0.0.1:5002\"}"),
            ("etcd", "dataDir: /var/lib/etcd/members, electionTimeout: 1s"),
        ],
    },
    Combination {
        bootstrap: "kubeadm",
        on: "none",
        access: "ebpf",
        balancer: "quorate",
        agent: "static-pod",
        etcd: "external",
        more: &[(
            "network",
            "pods: [10.244.0.0/16, \"fd00:10:244::/56\"], services: [10.96.0.0/16, \"fd00:10:96::/112\"]",
        )],
    },
    Combination {
        bootstrap: "kubeadm",
        on: "none",
        access: "ebpf",
        balancer: "quorate",
        agent: "static-pod",
        etcd: "stacked",
        more: &[(
            "kubernetes",
            "domain: combined.test, apiServer: {sans: [api.combined.internal]}",
        )],
    },
];

/// `QUORATE_COMBINATIONS`: only those with one of these words in their names.
#[test]
#[ignore = "a quarter of an hour; make test-designs"]
fn combinations() {
    if let Some(reason) = cannot_run() {
        eprintln!("skipped: {reason}");
        return;
    }
    let words = std::env::var("QUORATE_COMBINATIONS").unwrap_or_default();
    let words: Vec<&str> = words.split_whitespace().collect();
    let asked = |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word));
    let chosen: Vec<&Combination> = COMBINATIONS.iter().filter(|one| asked(&one.name())).collect();
    assert!(!chosen.is_empty(), "no combination is called {words:?}");

    let machines = ["--machines", "4", "--load-balancers", "2", "--etcd", "3"];
    let programs = ["--package", "haproxy", "--package", "keepalived"];
    let lab = Lab::with("combinations", &[machines.as_slice(), &programs].concat());
    let own = std::fs::read_to_string(lab.cluster_file()).expect("the lab's cluster file");
    let before = traces(&lab);
    let mut wrong = Vec::new();
    for combination in chosen {
        let name = combination.name();
        std::fs::write(lab.cluster_file(), combination.cluster_file(&own)).expect("write the cluster file");
        let started = Instant::now();
        // One that fails keeps none of the others from being tried; why it did is on standard error by then.
        let deployed = catch_unwind(AssertUnwindSafe(|| deployed(&lab, combination, &own)));
        let took = started.elapsed();
        let started = Instant::now();
        let reset = lab.cluster("reset", &["--yes", "--steal"]);
        if !reset.status.success() {
            eprintln!("{}", String::from_utf8_lossy(&reset.stderr));
        }
        let green = deployed
            .as_ref()
            .map_or("FAILED".to_owned(), |green| format!("green in {green:.1?}"));
        eprintln!(
            "{name}: {green}, proved after {took:.1?}, reset in {:.1?}",
            started.elapsed()
        );
        if deployed.is_err() || !reset.status.success() {
            wrong.push(name);
        }
    }
    assert!(wrong.is_empty(), "these do not hold: {wrong:#?}");
    std::fs::write(lab.cluster_file(), own).expect("write the cluster file");
    assert_same(&before, &traces(&lab));
}

/// How long it took to all checks green.
fn deployed(lab: &Lab, combination: &Combination, own: &str) -> Duration {
    let started = Instant::now();
    let applied = text(&lab.cluster("apply", &["--yes"]), &["apply"]);
    let green = started.elapsed();
    assert!(applied.contains("checks passed"), "{applied}");
    no_steps(lab);

    // They held, and not because nothing was looked at.
    lab.await_green(Duration::from_secs(60));
    let report = lab.status();
    let targets = |check: &str| -> BTreeSet<String> { checks_of(&report, check).into_keys().collect() };
    let machines = combination.machines(own);
    let with_a_way = machines.iter().filter(|machine| match combination.access {
        "proxy" => machine.is_node(),
        "ebpf" => machine.role == "worker",
        _ => false,
    });
    let with_a_way: BTreeSet<String> = with_a_way.map(|machine| machine.name.clone()).collect();
    assert_eq!(targets("access"), with_a_way);
    assert_eq!(targets("endpoint").is_empty(), combination.on == "none");
    assert_eq!(targets("etcd-vip").is_empty(), combination.etcd != "external-vip");
    if combination.on != "none" {
        assert_eq!(
            get(lab, &format!("https://{VIP}:{}/readyz", combination.port()), &[]),
            "200"
        );
    }
    let kubelet = lab.ssh("m4", &["cat", "/etc/kubernetes/kubelet.conf"]);
    let way = format!("server: https://{}\n", combination.way());
    assert!(kubelet.contains(&way), "no {way:?} in {kubelet}");

    let pods: BTreeSet<String> = agent_pods(lab).into_iter().collect();
    for machine in &machines {
        let mut at_work = at_work(lab, &machine.name);
        if pods.contains(&machine.name) {
            at_work.insert("static Pod");
        }
        assert_eq!(at_work, combination.carriers(machine), "{}", machine.name);
    }
    green
}

const UNITS: [&str; 3] = ["quorate-agent", "haproxy-quorate", "keepalived-quorate"];

fn at_work(lab: &Lab, machine: &str) -> BTreeSet<&'static str> {
    let asked = format!("'systemctl is-active {}; true'", UNITS.join(" "));
    let said = lab.ssh(machine, &["sh", "-c", &asked]);
    let states = UNITS.iter().zip(said.lines());
    states
        .filter(|(_, state)| *state == "active")
        .map(|(unit, _)| *unit)
        .collect()
}

struct Machine {
    name: String,
    address: String,
    role: String,
}

impl Machine {
    fn is_node(&self) -> bool {
        ["control-plane", "worker"].contains(&self.role.as_str())
    }
}

impl Combination {
    fn name(&self) -> String {
        let parts = [
            self.bootstrap,
            self.on,
            self.access,
            self.balancer,
            self.agent,
            self.etcd,
        ];
        parts.join("-")
    }

    fn cluster_file(&self, own: &str) -> String {
        let line = |start: &str| {
            let found = own.lines().find(|line| line.trim_start().starts_with(start));
            found
                .unwrap_or_else(|| panic!("the lab's cluster file has no {start}"))
                .trim()
        };
        let mut sections: BTreeMap<&str, String> = BTreeMap::from([
            // How much of the computer's disk kubelets want free is the lab's.
            (
                "kubernetes",
                format!("bootstrap: {}, {}", self.bootstrap, line("kubelet:")),
            ),
            ("endpoint", format!("on: {}", self.on)),
            ("agent", format!("as: {}", self.agent)),
            ("etcd", format!("topology: {}", self.etcd.trim_end_matches("-vip"))),
        ]);
        let mut add = |section: &'static str, text: &str| {
            let section = sections.entry(section).or_default();
            let comma = if section.is_empty() { "" } else { ", " };
            section.push_str(&format!("{comma}{text}"));
        };
        if self.on != "none" {
            add("endpoint", &format!("vip: {VIP}"));
        }
        if self.etcd == "external-vip" {
            add("etcd", &format!("vip: {ETCD_VIP}"));
        }
        for (section, text) in self.more {
            add(section, text);
        }
        let mut file = format!(
            "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {{name: {}}}\nspec:\n",
            self.name()
        );
        for (section, text) in sections {
            file += &format!("  {section}: {{{text}}}\n");
        }
        file += &format!(
            "  access: {}\n  balancer: {}\n  {}\n  machines:\n",
            self.access,
            self.balancer,
            line("ssh:")
        );
        let dual_stack = file.contains("fd00:");
        for Machine { name, address, role } in self.machines(own) {
            let last = address.rsplit('.').next().unwrap_or_default();
            let second = if dual_stack {
                format!(", addresses: [\"fd00:77::{last}\"]")
            } else {
                String::new()
            };
            file += &format!("    - {{name: {name}, address: {address}{second}, roles: [{role}]}}\n");
        }
        file
    }

    /// Those of the lab that have something to do.
    fn machines(&self, own: &str) -> Vec<Machine> {
        own.lines()
            .filter(|line| line.starts_with("    - {"))
            .map(|line| Machine {
                name: field(line, "name: "),
                address: field(line, "address: "),
                role: field(line, "roles: ["),
            })
            .filter(|machine| match machine.role.as_str() {
                "load-balancer" => self.on == "load-balancers",
                "etcd" => self.etcd != "stacked",
                _ => true,
            })
            .collect()
    }

    fn said(&self, section: &str, key: &str) -> Option<String> {
        let said = self.more.iter().filter(|(name, _)| *name == section);
        said.map(|(_, text)| field(text, key)).find(|value| !value.is_empty())
    }

    fn port(&self) -> String {
        self.said("endpoint", "port: ").unwrap_or("8443".into())
    }

    /// A worker's way to the API.
    fn way(&self) -> String {
        let virtual_address = self.said("accessOptions", "virtual: \"");
        let listen = self.said("accessOptions", "listen: \"");
        match self.access {
            "endpoint" => format!("{VIP}:{}", self.port()),
            "proxy" => listen.unwrap_or("127.0.0.1:7443".into()),
            _ => virtual_address.unwrap_or("10.103.97.2:6443".into()),
        }
    }

    /// What is to carry the API, or etcd, on a machine.
    fn carriers(&self, machine: &Machine) -> BTreeSet<&'static str> {
        let role = machine.role.as_str();
        let holds_vip = match role {
            "control-plane" => self.on == "control-planes",
            "load-balancer" => self.on == "load-balancers",
            "etcd" => self.etcd == "external-vip",
            _ => false,
        };
        let proxies = holds_vip || (self.access == "proxy" && machine.is_node());
        // kubeadm's programs on a control plane go by the way of the nodes.
        let in_the_kernel =
            self.access == "ebpf" && (role == "worker" || (machine.is_node() && self.bootstrap == "kubeadm"));
        let mut carriers = BTreeSet::new();
        if in_the_kernel || (proxies && self.balancer == "quorate") {
            carriers.insert(match self.agent {
                "unit" => "quorate-agent",
                _ => "static Pod",
            });
        }
        if proxies && self.balancer == "haproxy" {
            carriers.insert("haproxy-quorate");
            if holds_vip {
                carriers.insert("keepalived-quorate");
            }
        }
        carriers
    }
}
