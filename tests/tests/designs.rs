//! One story per design: its example file on lab machines, deployed over five operators who die meanwhile, all checks green, a
//! second apply without steps, the design's own proof, a control plane's power off and on, and `reset` to machines as they
//! were. Some minutes each: `make test-designs`.

#![expect(clippy::print_stderr, reason = "stories say what they skip and what they measured")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use quorate_tests::story::{
    agent_pods, assert_same, begin_apply, checks, field, five_operators_die, get, holder, no_steps, one_holder, said,
    traces, within,
};
use quorate_tests::{Lab, cannot_run, edit, text, without_program};

#[test]
#[ignore = "some minutes; make test-designs"]
fn binary_proxy() {
    story("binary-proxy", &["--machines", "4", "--etcd", "3"], &[], |lab| {
        // The leader's machine goes; the lease moves, and nodes reach the API through their own proxies all the time.
        let leader = lease_holder(lab, "m1");
        let witness = if leader == "m1" { "m2" } else { "m1" };
        lab.must(&["lab", "off", &lab.name, &leader]);
        within(Duration::from_secs(10), "the node's own proxy answers", || {
            let nodes = [OWN_PROXY.as_slice(), &["get", "nodes"]].concat();
            lab.kubectl(witness, &nodes).status.success()
        });
        within(Duration::from_secs(60), "the lease moves", || {
            ![String::new(), leader.clone()].contains(&lease_holder(lab, witness))
        });
        lab.must(&["lab", "on", &lab.name, &leader]);
    });
}

#[test]
#[ignore = "some minutes; make test-designs"]
fn one_click() {
    let machines = ["--machines", "4", "--etcd", "3", "--load-balancers", "2"];
    story("one-click", &machines, &[], |lab| {
        for vip in ["vip", "etcd-vip"] {
            let holder = holder(lab, vip);
            lab.must(&["lab", "off", &lab.name, &holder]);
            within(Duration::from_secs(15), "the API answers through the VIP", || {
                get(lab, "https://10.77.0.100:8443/readyz", &[]) == "200"
            });
            lab.must(&["lab", "on", &lab.name, &holder]);
            lab.await_green(Duration::from_secs(120));
        }
    });
}

#[test]
#[ignore = "some minutes; make test-designs"]
fn lb_pair() {
    let machines = ["--machines", "4", "--load-balancers", "2"];
    story("lb-pair", &machines, &[], |lab| {
        let holder = holder(lab, "vip");
        lab.must(&["lab", "off", &lab.name, &holder]);
        within(Duration::from_secs(15), "the API answers through the VIP", || {
            get(lab, "https://10.77.0.100:8443/readyz", &[]) == "200"
        });
        lab.must(&["lab", "on", &lab.name, &holder]);
        is_kubeadms(lab);
    });
}

/// VIP and proxy are static Pods: there before the API they lead to, renewed with their configuration, and without power,
/// killed or hung they cost nobody the API for long.
#[test]
#[ignore = "some minutes; make test-designs"]
fn colocated() {
    story("colocated", &["--machines", "5"], &[], |lab| {
        is_kubeadms(lab);
        assert_eq!(agent_pods(lab), ["m1", "m2", "m3"]);
        let shown = lab.ssh("m1", &["/opt/quorate/bin/quorate", "agent", "ctl", "show"]);
        assert!(shown.contains("10.77.0.100"), "{shown}");
        let answers = |lab: &Lab| get(lab, "https://10.77.0.100:8443/readyz", &[]) == "200";
        for (how, break_it) in [
            ("killed", "'kill -9 $(pidof quorate-agent)'"),
            ("hung", "'kill -STOP $(pidof quorate-agent)'"),
        ] {
            let was = one_holder(lab, "vip");
            lab.ssh(&was, &["sh", "-c", break_it]);
            within(
                Duration::from_secs(15),
                &format!("the VIP of an agent that is {how} moves"),
                || answers(lab) && ![String::new(), was.clone()].contains(&holder(lab, "vip")),
            );
            lab.await_green(Duration::from_secs(120));
            within(Duration::from_secs(60), "its kubelet has it run again", || {
                agent_pods(lab).len() == 3
            });
        }
        let was = one_holder(lab, "vip");
        lab.must(&["lab", "off", &lab.name, &was]);
        within(
            Duration::from_secs(15),
            "the VIP of a machine without power moves",
            || answers(lab),
        );
        lab.must(&["lab", "on", &lab.name, &was]);
        lab.await_green(Duration::from_secs(180));
        edit(&lab.cluster_file(), "interval: 100ms", "interval: 200ms");
        text(&lab.cluster("apply", &["--yes"]), &["apply with another interval"]);
        assert_eq!(agent_pods(lab).len(), 3);
        no_steps(lab);
    });
}

/// The shape of ipvs.yaml where the kernel has no IPVS: the node's own proxy, as a static Pod. Joining goes by it.
#[test]
#[ignore = "some minutes; make test-designs"]
fn access_by_static_pods() {
    let ipvs = "  access: ipvs\n  accessOptions:\n    ipvs:\n      virtual: \"10.103.97.2:6443\"     # on every node; outside of the \
                Pod and Service ranges\n      name: apiserver.cluster.local   # in the hosts files of all machines\n";
    story("ipvs", &["--machines", "5"], &[(ipvs, "  access: proxy\n")], |lab| {
        assert_eq!(agent_pods(lab).len(), 5);
        lab.must(&["lab", "off", &lab.name, "m1"]);
        within(Duration::from_secs(10), "the worker's own way leads elsewhere", || {
            checks(lab, "access").get("m4").is_some_and(|(ok, _)| *ok)
        });
        // A worker that boots has nobody but its kubelet to bring its way to the API up.
        lab.must(&["lab", "off", &lab.name, "m4"]);
        lab.must(&["lab", "on", &lab.name, "m4"]);
        within(
            Duration::from_secs(60),
            "a worker that booted has its way again",
            || checks(lab, "access").get("m4").is_some_and(|(ok, _)| *ok),
        );
        lab.must(&["lab", "on", &lab.name, "m1"]);
    });
}

/// Two dedicated machines with haproxy and keepalived of the distribution, and haproxy on the nodes; then the agent instead.
#[test]
#[ignore = "some minutes; make test-designs"]
fn haproxy() {
    let machines = [
        "--machines",
        "4",
        "--load-balancers",
        "2",
        "--package",
        "haproxy",
        "--package",
        "keepalived",
    ];
    let edits = [
        ("bootstrap: kubeadm ", "bootstrap: binary "),
        ("  access: endpoint ", "  balancer: haproxy\n  access: proxy "),
    ];
    story("lb-pair", &machines, &edits, |lab| {
        let page = "http://10.77.0.100:9000/";
        assert_eq!(get(lab, page, &[]), "401", "the statistics page wants a login");
        let password = password(lab);
        assert_eq!(get(lab, page, &["--user", &format!("admin:{password}")]), "200");
        let was = holder(lab, "vip");
        // haproxy alone dies for good: keepalived's check gives the VIP up.
        lab.ssh(&was, &["systemctl", "stop", "haproxy-quorate"]);
        within(
            Duration::from_secs(20),
            "the VIP moves away from a dead haproxy",
            || get(lab, "https://10.77.0.100:8443/readyz", &[]) == "200" && holder(lab, "vip") != was,
        );
        text(&lab.cluster("apply", &["--yes"]), &["apply"]);
        let file = lab.cluster_file();
        let with_haproxy = std::fs::read_to_string(&file).expect("cluster file");
        std::fs::write(&file, with_haproxy.replace("balancer: haproxy", "balancer: quorate")).expect("write");
        text(&lab.cluster("apply", &["--yes"]), &["apply", "with the agent instead"]);
        assert_eq!(get(lab, page, &[]), "401", "the agent's page wants the same login");
        assert_eq!(get(lab, page, &["--user", &format!("admin:{password}")]), "200");
        no_steps(lab);
    });
}

#[test]
#[ignore = "some minutes; make test-designs"]
fn ebpf() {
    let edits = [("spec:\n", "spec:\n  access: ebpf\n")];
    story("minimal", &["--machines", "4"], &edits, ways_lead_elsewhere);
}

#[test]
#[ignore = "some minutes; make test-designs"]
fn ebpf_by_static_pods() {
    let edits = [("spec:\n", "spec:\n  access: ebpf\n  agent: {as: static-pod}\n")];
    story("minimal", &["--machines", "4"], &edits, |lab| {
        // Control planes have an API server of their own.
        assert_eq!(agent_pods(lab), ["m4"]);
        ways_lead_elsewhere(lab);
    });
}

fn ways_lead_elsewhere(lab: &Lab) {
    let kubelet = lab.ssh("m4", &["cat", "/etc/kubernetes/kubelet.conf"]);
    assert!(kubelet.contains("server: https://10.103.97.2:6443"), "{kubelet}");
    for gone in ["m1", "m3"] {
        lab.must(&["lab", "off", &lab.name, gone]);
        within(
            Duration::from_secs(10),
            "the worker's way leads to another API server",
            || {
                let ways = checks(lab, "access");
                ways.get("m4").is_some_and(|(ok, _)| *ok)
            },
        );
        lab.must(&["lab", "on", &lab.name, gone]);
        lab.await_green(Duration::from_secs(120));
    }
}

#[test]
#[ignore = "some minutes; make test-designs"]
fn dual_stack() {
    story("dual-stack", &["--machines", "4"], &[], |lab| {
        let ranges = text(
            &lab.kubectl("m1", &["get", "nodes", "-o", "'jsonpath={.items[*].spec.podCIDRs[1]}'"]),
            &["get nodes"],
        );
        assert_eq!(
            ranges.split_whitespace().count(),
            4,
            "every node has an IPv6 range: {ranges}"
        );
        let addresses = text(
            &lab.kubectl(
                "m1",
                &[
                    "get",
                    "pods",
                    "-A",
                    "--field-selector=spec.nodeName=m4",
                    "-o",
                    "'jsonpath={.items[*].status.podIPs[1].ip}'",
                ],
            ),
            &["get pods"],
        );
        let address = addresses
            .split_whitespace()
            .next()
            .expect("a Pod with an IPv6 address on m4");
        lab.ssh("m1", &["ping", "-6", "-c", "3", "-W", "3", address]);
    });
}

/// Operators who die in a kubeadm installation, and a control plane that loses power when etcd has just admitted it: the next
/// `apply` goes on from what is there.
#[test]
#[ignore = "some minutes; make test-designs"]
fn half_failed_installs_converge() {
    if let Some(reason) = cannot_run() {
        eprintln!("skipped: {reason}");
        return;
    }
    let lab = Lab::with("half", &["--machines", "4"]);
    use_example(&lab, "colocated", &[]);
    five_operators_die(&lab);
    // The next one to be admitted, if all have not been by now.
    let members = || {
        let list = "'/opt/quorate/bin/etcdctl --cacert=/etc/kubernetes/pki/etcd/ca.crt --cert=/etc/kubernetes/pki/etcd/server.crt \
                    --key=/etc/kubernetes/pki/etcd/server.key member list 2>/dev/null || true'";
        lab.ssh("m1", &["sh", "-c", list]).lines().count()
    };
    let before = members();
    if before < 3 {
        let joining = if before < 2 { "m2" } else { "m3" };
        let mut child = begin_apply(&lab);
        let begun = Instant::now();
        while members() <= before.max(1) {
            let said = std::fs::read_to_string(said(&lab)).unwrap_or_default();
            let late = begun.elapsed() > Duration::from_secs(120);
            assert!(!late, "etcd has not admitted {joining} within 120 s:\n{said}");
            std::thread::sleep(Duration::from_millis(200));
        }
        lab.must(&["lab", "off", &lab.name, joining]);
        let _ = child.wait();
        lab.must(&["lab", "on", &lab.name, joining]);
    } else {
        eprintln!("skipped: all three were members before the power could be cut");
    }
    text(&lab.cluster("apply", &["--yes", "--steal"]), &["apply", "--steal"]);
    lab.await_green(Duration::from_secs(180));
    no_steps(&lab);
    assert_eq!(members(), 3);
}

/// What a kernel lacks is said before anything is changed.
#[test]
#[ignore = "some minutes; make test-designs"]
fn ipvs_without_the_kernel() {
    if let Some(reason) = cannot_run() {
        eprintln!("skipped: {reason}");
        return;
    }
    let lab = Lab::with("ipvs", &["--machines", "4"]);
    use_example(&lab, "ipvs", &[]);
    let before = traces(&lab);
    let applied = lab.cluster("apply", &["--yes"]);
    let said = String::from_utf8_lossy(&applied.stderr).into_owned() + &String::from_utf8_lossy(&applied.stdout);
    if applied.status.success() {
        eprintln!("skipped: this kernel has IPVS, so nothing is lacking");
        return;
    }
    assert_eq!(applied.status.code(), Some(3), "{said}");
    assert!(said.contains("lacks ip_vs for `access: ipvs`"), "{said}");
    let mut after = traces(&lab);
    after.values_mut().for_each(|found| *found = without_program(found));
    assert_same(&before, &after);
}

fn story(example: &str, machines: &[&str], edits: &[(&str, &str)], proof: fn(&Lab)) {
    if let Some(reason) = cannot_run() {
        eprintln!("skipped: {reason}");
        return;
    }
    let lab = Lab::with(example, machines);
    use_example(&lab, example, edits);
    let before = traces(&lab);
    let started = Instant::now();
    five_operators_die(&lab);
    let last = Instant::now();
    let applied = text(&lab.cluster("apply", &["--yes", "--steal"]), &["apply", "--steal"]);
    assert!(applied.contains("checks passed"), "{applied}");
    eprintln!(
        "{example}: bare machines to all checks green in {:.1?}, five dead operators included, {:.1?} after the last",
        started.elapsed(),
        last.elapsed()
    );
    no_steps(&lab);
    // What looks at machines beforehand takes nothing of ours for somebody else's.
    text(&lab.cluster("apply", &["--yes"]), &["apply", "again"]);
    proof(&lab);
    lab.await_green(Duration::from_secs(180));
    lab.must(&["lab", "off", &lab.name, "m2"]);
    lab.must(&["lab", "on", &lab.name, "m2"]);
    let green = lab.await_green(Duration::from_secs(180));
    eprintln!("{example}: all checks hold {green:.1?} after m2 has power again");
    no_steps(&lab);
    text(&lab.cluster("reset", &["--yes"]), &["reset"]);
    assert_same(&before, &traces(&lab));
}

/// kubeadm takes the cluster for one of its own.
fn is_kubeadms(lab: &Lab) {
    let kubeadm = |words: &[&str]| lab.ssh("m1", &[&["/opt/quorate/bin/kubeadm"], words].concat());
    // Named, since it would ask the Internet for the newest; CoreDNS is newer than it knows (decision 5).
    let version = kubeadm(&["version", "-o", "short"]);
    let version = version.trim();
    let plan = kubeadm(&[
        "upgrade",
        "plan",
        version,
        "--ignore-preflight-errors=CoreDNSUnsupportedPlugins,CoreDNSMigration",
    ]);
    for expected in [
        "Reading configuration from the \"kubeadm-config\" ConfigMap",
        "Running cluster health checks",
        &format!("Cluster version: {}", version.trim_start_matches('v')),
        &format!("Target version: {version}"),
    ] {
        assert!(plan.contains(expected), "no {expected:?} in what it plans:\n{plan}");
    }
    let certificates = kubeadm(&["certs", "check-expiration"]);
    assert!(certificates.contains("apiserver-kubelet-client"), "{certificates}");
    assert!(!certificates.contains("invalid"), "{certificates}");
}

/// The example becomes the lab's cluster file: the n-th machine of a role is the lab's n-th of that role, and what has no
/// counterpart is left out.
fn use_example(lab: &Lab, example: &str, edits: &[(&str, &str)]) {
    let own = std::fs::read_to_string(lab.cluster_file()).expect("the lab's cluster file");
    let mut machines: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
    for line in own.lines().filter(|line| line.starts_with("    - {")) {
        let machine = (field(line, "name: "), field(line, "address: "));
        machines.entry(field(line, "roles: [")).or_default().push(machine);
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../examples/{example}.yaml"));
    let mut file = std::fs::read_to_string(path).expect("the example");
    for (from, to) in edits {
        assert!(file.contains(from), "{from:?} is not in {example}.yaml");
        file = file.replacen(from, to, 1);
    }
    let ssh = own
        .lines()
        .find(|line| line.starts_with("  ssh:"))
        .expect("the lab's ssh");
    // How much of the computer's disk kubelets want free.
    let kubelet = own
        .lines()
        .find(|line| line.starts_with("    kubelet:"))
        .expect("the lab's kubelets");
    let mut out = String::new();
    if !file.contains("\n  kubernetes:\n") {
        file = file.replacen("spec:\n", "spec:\n  kubernetes:\n", 1);
    }
    for line in file.lines() {
        if line == "  kubernetes:" {
            out += &format!("{line}\n{kubelet}\n");
        } else if line == "  machines:" {
            out += &format!("{ssh}\n{line}\n");
        } else if line.starts_with("    - {") {
            let of_role = machines.entry(field(line, "roles: [")).or_default();
            if of_role.is_empty() {
                continue;
            }
            let (name, address) = of_role.remove(0);
            let last = address.rsplit('.').next().unwrap_or_default();
            let mut line = line.replace(
                &format!("address: {}", field(line, "address: ")),
                &format!("address: {address}"),
            );
            let old = field(&line, "fd00:77::");
            line = line.replace(&format!("fd00:77::{old}"), &format!("fd00:77::{last}"));
            line = match field(&line, "name: ").as_str() {
                "" => line.replacen('{', &format!("{{name: {name}, "), 1),
                old => line.replacen(&format!("name: {old},"), &format!("name: {name},"), 1),
            };
            out += &format!("{line}\n");
        } else {
            out += &format!("{line}\n");
        }
    }
    std::fs::write(lab.cluster_file(), out).expect("write the cluster file");
}

/// The operator's kubeconfig names one machine where there is no VIP; this asks a machine's own proxy instead.
const OWN_PROXY: [&str; 3] = [
    "--server=https://127.0.0.1:5002",
    "--tls-server-name=kubernetes",
    "--request-timeout=5s",
];

/// Who holds the controller managers' lease, by the machine's own proxy; empty without an answer.
fn lease_holder(lab: &Lab, machine: &str) -> String {
    let lease = [
        "-n",
        "kube-system",
        "get",
        "lease",
        "kube-controller-manager",
        "-o",
        "jsonpath={.spec.holderIdentity}",
    ];
    let asked = lab.kubectl(machine, &[OWN_PROXY.as_slice(), &lease].concat());
    let holder = String::from_utf8_lossy(&asked.stdout).into_owned();
    holder.split('_').next().unwrap_or_default().to_owned()
}

fn password(lab: &Lab) -> String {
    let found = std::process::Command::new("find")
        .arg(lab.folder.join(".quorate"))
        .args(["-name", "stats-password*", "-type", "f"])
        .output()
        .expect("find");
    let path = String::from_utf8_lossy(&found.stdout).into_owned();
    let path = path
        .lines()
        .next()
        .expect("the operator's folder has the page's password");
    std::fs::read_to_string(path).expect("the password").trim().to_owned()
}
