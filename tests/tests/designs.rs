//! One story per design: its example file on lab machines, all checks green, a second apply without steps, the design's own
//! proof, a control plane's power off and on, and `reset` to machines as they were. Some minutes each: `make test-designs`.

#![expect(clippy::print_stderr, reason = "stories say what they skip and what they measured")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

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
        let holder = holder(lab, "vip");
        // haproxy alone dies for good: keepalived's check gives the VIP up.
        lab.ssh(&holder, &["systemctl", "stop", "haproxy-quorate"]);
        within(
            Duration::from_secs(20),
            "the VIP moves away from a dead haproxy",
            || get(lab, "https://10.77.0.100:8443/readyz", &[]) == "200" && self::holder(lab, "vip") != holder,
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

/// An operator who dies at five points of a kubeadm installation, and a control plane that loses power when etcd has just
/// admitted it: the next `apply` goes on from what is there.
#[test]
#[ignore = "some minutes; make test-designs"]
fn half_failed_installs_converge() {
    if let Some(reason) = cannot_run() {
        eprintln!("skipped: {reason}");
        return;
    }
    let lab = Lab::with("half", &["--machines", "4"]);
    use_example(&lab, "colocated", &[]);
    // What the last one said is there for whoever looks into a failure.
    let begin = || {
        let said = std::fs::File::create(lab.folder.join("apply.err")).expect("a file for apply to write");
        lab.command("apply", &["--yes", "--no-progress", "--steal"])
            .stdout(std::process::Stdio::null())
            .stderr(said)
            .spawn()
            .expect("start apply")
    };
    let seed = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.subsec_nanos());
    for part in 0..5_u32 {
        let after = Duration::from_millis(u64::from(seed.rotate_left(part * 6) % 20_000) + 500);
        let mut child = begin();
        std::thread::sleep(after);
        let _ = child.kill();
        let _ = child.wait();
        eprintln!("operator killed after {after:.1?}");
    }
    // The next one to be admitted, if all have not been by now.
    let members = || {
        let list = "'/opt/quorate/bin/etcdctl --cacert=/etc/kubernetes/pki/etcd/ca.crt --cert=/etc/kubernetes/pki/etcd/server.crt \
                    --key=/etc/kubernetes/pki/etcd/server.key member list 2>/dev/null || true'";
        lab.ssh("m1", &["sh", "-c", list]).lines().count()
    };
    let before = members();
    if before < 3 {
        let joining = if before < 2 { "m2" } else { "m3" };
        let mut child = begin();
        let begun = Instant::now();
        while members() <= before.max(1) {
            let said = std::fs::read_to_string(lab.folder.join("apply.err")).unwrap_or_default();
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
    let applied = text(&lab.cluster("apply", &["--yes"]), &["apply"]);
    assert!(applied.contains("checks passed"), "{applied}");
    eprintln!(
        "{example}: bare machines to all checks green in {:.1?}",
        started.elapsed()
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
    let certificates = kubeadm(&["certs", "check-expiration"]);
    assert!(certificates.contains("apiserver-kubelet-client"), "{certificates}");
    assert!(!certificates.contains("invalid"), "{certificates}");
}

/// Machines whose agent is a Pod that is ready.
fn agent_pods(lab: &Lab) -> Vec<String> {
    let wanted = [
        "-n",
        "kube-system",
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=quorate-agent",
        "-o",
        "'jsonpath={range .items[*]}{.spec.nodeName} {.status.containerStatuses[0].ready}{\"\\n\"}{end}'",
    ];
    let pods = text(&lab.kubectl("m1", &wanted), &["get pods"]);
    pods.lines()
        .filter_map(|line| line.strip_suffix(" true").map(str::to_owned))
        .collect()
}

fn no_steps(lab: &Lab) {
    let plan = lab.cluster("plan", &[]);
    assert_eq!(
        plan.status.code(),
        Some(0),
        "a second plan is not empty:\n{}",
        String::from_utf8_lossy(&plan.stdout)
    );
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

/// What follows `key` in a line, up to the next separator; empty if the key is not there.
fn field(line: &str, key: &str) -> String {
    let rest = line.split_once(key).map_or("", |(_, rest)| rest);
    rest.split([',', ']', '}', '"'])
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}

fn machines(lab: &Lab) -> Vec<String> {
    let file = std::fs::read_to_string(lab.cluster_file()).expect("cluster file");
    file.lines()
        .filter(|line| line.starts_with("    - {"))
        .map(|line| field(line, "name: "))
        .collect()
}

/// Target → (holds, what was found) of one kind of check.
fn checks(lab: &Lab, name: &str) -> BTreeMap<String, (bool, String)> {
    let report = lab.status();
    let all = report["checks"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|check| check["name"] == name)
        .map(|check| {
            let text = |key: &str| check[key].as_str().unwrap_or_default().to_owned();
            (text("target"), (check["ok"] == true, text("detail")))
        })
        .collect()
}

/// Who holds a VIP; empty while nobody does, or several do.
fn holder(lab: &Lab, vip: &str) -> String {
    let found = checks(lab, vip).into_values().next();
    let held = found.and_then(|(_, detail)| detail.strip_prefix("held by ").map(str::to_owned));
    held.filter(|name| !name.contains(' ')).unwrap_or_default()
}

/// Who holds a VIP once one machine does.
fn one_holder(lab: &Lab, vip: &str) -> String {
    let mut found = String::new();
    within(Duration::from_secs(30), "one machine holds the VIP", || {
        found = holder(lab, vip);
        !found.is_empty()
    });
    found
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

/// HTTP status of a GET from the operator's place in the lab's network; `000` without an answer.
fn get(lab: &Lab, url: &str, more: &[&str]) -> String {
    let mut arguments = vec!["lab", "exec", &lab.name, "--", "curl", "-sk", "--max-time", "2"];
    arguments.extend(["-o", "/dev/null", "-w", "%{http_code}"]);
    arguments.extend(more);
    arguments.push(url);
    String::from_utf8_lossy(&lab.run(&arguments).stdout).into_owned()
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

fn within(patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < patience, "not within {patience:?}: {what}");
        std::thread::sleep(Duration::from_millis(300));
    }
    eprintln!("{what}: after {:.1?}", started.elapsed());
}

/// What `reset` must leave as it was: files (also on the file systems a lab machine has for some directories), units,
/// mounts, interfaces and addresses, packet rules, users, pinned programs, and those kernel parameters that are not its
/// host's.
fn traces(lab: &Lab) -> BTreeMap<String, String> {
    let script = "'find /etc /opt /usr/local /var/lib /root /var/lib/containerd /var/lib/etcd /var/lib/kubelet /var/lib/quorate -xdev -type f -not -path \"/var/lib/systemd/*\" -not -path \"/var/lib/private/*\" -not -path /etc/machine-id -not -name \"*.cache\" -not -name .bash_history -not -path \"/etc/*-\" -not -path \"/etc/.pwd.lock\" | sort -u | xargs sha256sum; \
        find /etc /opt /var/lib /var/lib/containerd /var/lib/etcd /var/lib/kubelet /var/lib/quorate -xdev -type d | sort -u; \
        systemctl list-unit-files --no-legend --no-pager | cut -d\" \" -f1 | sort; \
        grep -v -e /run/credentials /proc/mounts | cut -d\" \" -f2 | sort; \
        ip -o address show scope global | tr -s \" \" | cut -d\" \" -f2-4 | sort; nft list tables; sort /etc/passwd; ls -R /sys/fs/bpf; \
        grep -s . /proc/sys/net/ipv4/ip_forward /proc/sys/net/ipv[46]/conf/all/* /proc/sys/net/ipv[46]/conf/default/*; true'";
    machines(lab)
        .into_iter()
        .map(|machine| {
            let found = lab.ssh(&machine, &["bash", "-c", script]);
            (machine, found)
        })
        .collect()
}

fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    for (machine, was) in before {
        let (was, is): (BTreeSet<&str>, BTreeSet<&str>) = (was.lines().collect(), after[machine].lines().collect());
        let (gone, new): (Vec<_>, Vec<_>) = (was.difference(&is).collect(), is.difference(&was).collect());
        assert!(
            gone.is_empty() && new.is_empty(),
            "{machine} is not what it was\nlost: {gone:#?}\nleft over: {new:#?}"
        );
    }
}
