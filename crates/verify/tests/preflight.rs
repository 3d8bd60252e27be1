//! Awkward machines: each is found, with a hint, before anything is changed; healthy ones raise nothing.

use quorate_facts::*;
use quorate_spec::Spec;
use quorate_verify::{Report, preflight};

#[test]
fn healthy_machines_raise_nothing() {
    let (spec, facts) = healthy();
    let report = preflight(&spec, &facts);
    assert_eq!(said(&report), Vec::<String>::new());
}

/// What does not hold, and warnings.
fn said(report: &Report) -> Vec<String> {
    let marked = report.checks.iter().filter(|check| !check.ok || check.is_warning());
    marked
        .map(|check| format!("{} {}: {}", check.name, check.target, check.detail))
        .collect()
}

#[test]
fn every_awkward_machine_is_found() {
    type Change = fn(&mut HostFacts);
    let cases: [(&str, Change); 55] = [
        ("no-root", |host| host.privilege.uid = 1000),
        ("no-systemd", |host| host.systemd = None),
        ("address-elsewhere", |host| host.network.addresses.clear()),
        ("little-memory", |host| host.memory_bytes = 512 << 20),
        ("one-cpu", |host| host.cpus = 1),
        ("full-disk", |host| host.mounts[0].free_bytes = 1 << 20),
        ("disk-short-for-kubelets", |host| {
            (host.mounts[0].total_bytes, host.mounts[0].free_bytes) = (200 << 30, 29 << 30)
        }),
        ("port-taken", |host| {
            host.listening.push(listener(6443, "nginx", "0.0.0.0"))
        }),
        ("port-taken-on-one-address", |host| {
            host.listening.push(listener(2379, "python3", "127.0.0.1"))
        }),
        ("endpoint-port-taken", |host| {
            host.listening.push(listener(8443, "haproxy", "0.0.0.0"))
        }),
        ("kubelet-port-taken", |host| {
            host.listening.push(listener(10250, "k3s-server", "::"))
        }),
        ("foreign-kubelet", |host| {
            host.units.insert("kubelet.service".into(), unit());
        }),
        ("foreign-containerd", |host| {
            host.units.insert("containerd.service".into(), unit());
        }),
        ("foreign-pki", |host| {
            host.files.insert(
                "/etc/kubernetes/pki".into(),
                FileFacts {
                    kind: FileKind::Directory,
                    ..FileFacts::absent()
                },
            );
        }),
        ("no-overlay", |host| {
            host.kernel_features.insert("overlay".into(), Feature::Absent);
        }),
        ("no-nf-tables", |host| {
            host.kernel_features.insert("nf_tables".into(), Feature::Absent);
        }),
        ("no-packet-filter-tools", |host| {
            host.firewall.nft = None;
            host.firewall.iptables = None;
        }),
        ("old-kernel-and-no-iptables", |host| {
            host.kernel = "5.10.0-28-amd64".into()
        }),
        ("nft-older-than-kube-proxy-takes", |host| {
            host.firewall.nft_version = Some("0.9.3".into())
        }),
        ("no-mount", |host| {
            host.programs.insert("mount".into(), None);
            host.programs.insert("losetup".into(), None);
        }),
        ("no-useradd-for-etcd", |host| {
            host.users.insert("etcd".into(), None);
            host.programs.insert("useradd".into(), None);
        }),
        ("no-modprobe-for-a-module", |host| {
            host.kernel_features.insert("overlay".into(), Feature::Loadable);
            host.programs.insert("modprobe".into(), None);
        }),
        ("swap-and-no-swapoff", |host| {
            host.swaps.push(SwapFacts::default());
            host.programs.insert("swapoff".into(), None);
        }),
        ("kernel-before-any-tested", |host| {
            host.kernel = "4.18.0-553.el8_10.x86_64".into();
            host.firewall.iptables = Some("/usr/sbin/iptables".into());
            host.cgroup.version = CgroupVersion::V1;
            let more = ["cpuacct", "devices", "freezer"].map(str::to_owned);
            host.cgroup.controllers.extend(more);
            host.container = Some("lxc".into());
        }),
        ("kernel-too-old-for-cgroup-v2", |host| {
            host.kernel = "5.7.0-1-amd64".into();
            host.firewall.iptables = Some("/usr/sbin/iptables".into());
        }),
        ("no-memory-cgroup-in-the-kernel", |host| {
            host.kernel_features.insert("CONFIG_MEMCG".into(), Feature::Absent);
        }),
        ("no-cgroup-bpf", |host| {
            host.kernel_features.insert("CONFIG_CGROUP_BPF".into(), Feature::Absent);
        }),
        ("no-numgen", |host| {
            host.kernel_features.insert("CONFIG_NFT_NUMGEN".into(), Feature::Absent);
        }),
        ("no-limits-of-cpu-time", |host| {
            host.kernel_features
                .insert("CONFIG_CFS_BANDWIDTH".into(), Feature::Absent);
        }),
        ("no-br-netfilter", |host| {
            host.kernel_features.insert("br_netfilter".into(), Feature::Absent);
        }),
        ("cgroup-v1", |host| {
            host.cgroup.version = CgroupVersion::V1;
            let more = ["cpuacct", "devices", "freezer"].map(str::to_owned);
            host.cgroup.controllers.extend(more);
        }),
        ("cgroup-v1-without-some", |host| host.cgroup.version = CgroupVersion::V1),
        ("foreign-static-pod", |host| {
            file(host, "/etc/kubernetes/manifests/etcd.yaml");
            file(host, "/etc/kubernetes/manifests/.etcd.yaml.swp");
        }),
        ("foreign-kubelet-identity", |host| {
            file(host, "/etc/kubernetes/kubelet.conf")
        }),
        ("kubeadm-s-package", |host| {
            file(host, "/usr/lib/systemd/system/kubelet.service.d/10-kubeadm.conf")
        }),
        ("no-memory-cgroup", |host| {
            host.cgroup.controllers.retain(|controller| controller != "memory")
        }),
        ("cloned-machine-id", |host| host.machine_id = "id-m2".into()),
        ("cloned-uuid", |host| host.product_uuid = Some("uuid-m2".into())),
        ("same-hostname", |host| host.hostname = "m2".into()),
        ("clock-an-hour-behind", |host| host.clock.unix_ns -= 3_600_000_000_000),
        ("clock-a-year-ahead", |host| {
            host.clock.unix_ns += 31_536_000_000_000_000
        }),
        ("no-time-service", |host| {
            host.clock.synchronized = Some(false);
            host.clock.service = None;
        }),
        ("another-architecture", |host| host.arch = "aarch64".into()),
        ("little-disk-in-all", |host| {
            (host.mounts[0].total_bytes, host.mounts[0].free_bytes) = (12 << 30, 11 << 30)
        }),
        ("foreign-etcd-data", |host| {
            host.files.insert(
                "/var/lib/etcd/member".into(),
                FileFacts {
                    kind: FileKind::Directory,
                    ..FileFacts::absent()
                },
            );
        }),
        ("foreign-pod-network", |host| {
            host.network.links.push(LinkFacts {
                name: "cni0".into(),
                ..LinkFacts::default()
            })
        }),
        ("foreign-kube-proxy", |host| {
            host.firewall.nft_tables.push("ip kube-proxy".into())
        }),
        ("foreign-pod-network-to-come", |host| {
            for file in ["05-calico.conflist", "99-loopback.conf", "05-calico.kubeconfig"] {
                let found = FileFacts {
                    kind: FileKind::File,
                    ..FileFacts::absent()
                };
                host.files.insert(format!("/etc/cni/net.d/{file}"), found);
            }
        }),
        ("stopped-k3s", |host| {
            let stopped = UnitFacts {
                active: "inactive".into(),
                ..unit()
            };
            host.units.insert("k3s.service".into(), stopped);
        }),
        ("no-vxlan", |host| {
            host.kernel_features.insert("vxlan".into(), Feature::Absent);
        }),
        ("selinux-enforcing", |host| {
            host.security.selinux = Some("enforcing".into())
        }),
        ("rules-that-drop", |host| {
            host.firewall.dropping.push("inet filter input".into())
        }),
        ("the-vip-on-a-bare-holder", |host| {
            host.network.addresses.push(AddressFacts {
                interface: "eth0".into(),
                address: "10.77.0.100".parse().unwrap(),
                prefix: 24,
            })
        }),
        ("memory-below-advice", |host| host.memory_bytes = 2 << 30),
        ("route-under-the-pods", |host| {
            host.network.routes.push(RouteFacts {
                destination: "10.244.7.0".parse().unwrap(),
                prefix: 24,
                gateway: None,
                interface: Some("eth1".into()),
                metric: 0,
            });
        }),
    ];
    let mut text = String::new();
    for (name, change) in cases {
        let (spec, mut facts) = healthy();
        let MachineFacts::Found(host) = facts.machines.get_mut("m1").unwrap() else {
            unreachable!()
        };
        change(host);
        let report = preflight(&spec, &facts);
        assert!(!said(&report).is_empty(), "{name} is not found");
        for check in report.checks.iter().filter(|check| !check.ok || check.is_warning()) {
            assert!(!check.hint.is_empty(), "{name}: {} has no hint", check.name);
            let mark = if check.ok { " (warning)" } else { "" };
            text.push_str(&format!(
                "{name}: {} {}: {}{mark}\n    hint: {}\n",
                check.name, check.target, check.detail, check.hint
            ));
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn a_machine_that_is_away_and_a_vip_that_is_taken_are_found() {
    let (spec, mut facts) = healthy();
    facts.machines.insert(
        "m5".into(),
        MachineFacts::Unreachable {
            reason: "m5: connect: no route to host".into(),
        },
    );
    let MachineFacts::Found(host) = facts.machines.get_mut("m4").unwrap() else {
        unreachable!()
    };
    host.network.addresses.push(AddressFacts {
        interface: "eth0".into(),
        address: "10.77.0.100".parse().unwrap(),
        prefix: 32,
    });
    facts.machines.insert(
        "m3".into(),
        MachineFacts::Silent {
            reason: "m3: gather facts: Input/output error".into(),
        },
    );
    let report = preflight(&spec, &facts);
    let failed: Vec<String> = report
        .failed()
        .map(|check| format!("{} {}", check.name, check.target))
        .collect();
    assert_eq!(failed, ["facts m3", "reachable m5", "vip m4"]);
    let silent = report.failed().next().unwrap();
    assert!(silent.detail.contains("Input/output error") && silent.hint.contains("maintenance"));
}

#[test]
fn a_balancer_that_will_be_replaced_takes_no_ports() {
    let (spec, mut facts) = healthy();
    let MachineFacts::Found(host) = facts.machines.get_mut("m1").unwrap() else {
        unreachable!()
    };
    host.listening.push(listener(8443, "haproxy", "0.0.0.0"));
    let active = UnitFacts {
        active: "active".into(),
        ..unit()
    };
    host.units.insert("haproxy-quorate.service".into(), active);
    assert_eq!(said(&preflight(&spec, &facts)), Vec::<String>::new());
}

#[test]
fn a_vip_in_front_of_etcd_may_have_etcd_s_own_port() {
    for (balancer, process) in [
        ("quorate", "quorate"),
        ("quorate", "quorate-agent"),
        ("haproxy", "haproxy"),
    ] {
        let (spec, mut facts) = external_etcd(balancer);
        let host = found(&mut facts, "e1");
        host.listening = vec![
            listener(2379, "etcd", "127.0.0.1"),
            listener(2379, "etcd", "10.77.0.41"),
            listener(2380, "etcd", "10.77.0.41"),
            listener(2381, "etcd", "127.0.0.1"),
            listener(2379, process, "10.77.0.101"),
        ];
        deploy(host);
        assert_eq!(taken(&spec, &facts), Vec::<String>::new(), "{process}");
        // Anybody else there, or the balancer on etcd's own address, is in the way.
        found(&mut facts, "e1").listening[4].process = Some("nginx".into());
        found(&mut facts, "e2").listening = vec![listener(2379, process, "10.77.0.42")];
        assert_eq!(
            taken(&spec, &facts),
            [
                format!("e1: taken: 2379 ({balancer}) by nginx, pid 42"),
                format!("e2: taken: 2379 (etcd) by {process}, pid 42"),
            ]
        );
    }
}

#[test]
fn where_nothing_is_deployed_a_program_of_the_right_name_is_foreign() {
    let (spec, mut facts) = external_etcd("haproxy");
    found(&mut facts, "e1").listening = vec![
        listener(2379, "etcd", "0.0.0.0"),
        listener(2380, "etcd", "127.0.0.1"),
        listener(2379, "haproxy", "10.77.0.101"),
    ];
    let vxlan = Listener {
        transport: Transport::Udp,
        pid: None,
        process: None,
        ..listener(8472, "", "::")
    };
    found(&mut facts, "w1").listening = vec![vxlan, listener(8472, "python3", "::")];
    assert_eq!(
        taken(&spec, &facts),
        [
            // 2380 is taken on an address that is not wanted.
            "w1: taken: udp 8472 (vxlan) by an unknown process",
            "e1: taken: 2379 (etcd) by etcd, pid 42; 2379 (haproxy) by etcd, pid 42; 2379 (haproxy) by haproxy, pid 42",
        ]
    );
    deploy(found(&mut facts, "w1"));
    assert_eq!(taken(&spec, &facts).len(), 1);
}

#[test]
fn the_agent_s_own_statistics_have_a_port_too() {
    let spec = spec("access: proxy");
    let (_, mut facts) = healthy();
    found(&mut facts, "m4").listening = vec![listener(9445, "prometheus", "127.0.0.1")];
    assert_eq!(
        taken(&spec, &facts),
        ["m4: taken: 9445 (quorate) by prometheus, pid 42"]
    );
}

/// What the check of ports found, by machine.
fn taken(spec: &Spec, facts: &Facts) -> Vec<String> {
    let report = preflight(spec, facts);
    let ports = report.failed().filter(|check| check.name == "ports");
    ports
        .map(|check| format!("{}: {}", check.target, check.detail))
        .collect()
}

fn found<'a>(facts: &'a mut Facts, machine: &str) -> &'a mut HostFacts {
    match facts.machines.get_mut(machine).unwrap() {
        MachineFacts::Found(host) => host,
        _ => unreachable!(),
    }
}

fn deploy(host: &mut HostFacts) {
    let folder = FileFacts {
        kind: FileKind::Directory,
        ..FileFacts::absent()
    };
    host.files.insert("/opt/quorate/bin".into(), folder);
}

/// Etcd on machines of its own, behind a VIP with the usual port.
fn external_etcd(balancer: &str) -> (Spec, Facts) {
    let mut text = format!(
        "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  balancer: {balancer}\n  \
         etcd: {{topology: external, vip: 10.77.0.101, vrid: 52}}\n  machines:\n    \
         - {{name: m1, address: 10.77.0.11, roles: [control-plane]}}\n    \
         - {{name: w1, address: 10.77.0.21, roles: [worker]}}\n"
    );
    for n in 1..=3 {
        text.push_str(&format!("    - {{name: e{n}, address: 10.77.0.4{n}, roles: [etcd]}}\n"));
    }
    let spec = quorate_spec::load(&text, "cluster.yaml")
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, &text, false)))
        .0;
    let facts = facts_of(&spec);
    (spec, facts)
}

#[test]
fn equal_hostnames_are_what_apply_mends_where_it_sets_them() {
    let (_, mut facts) = healthy();
    found(&mut facts, "m1").hostname = "debian".into();
    found(&mut facts, "m2").hostname = "debian".into();
    assert_eq!(
        said(&preflight(&spec("access: endpoint"), &facts)),
        ["hostname cluster: m1 and m2 share debian"]
    );
    let report = preflight(&spec("host: {hostname: true}"), &facts);
    assert_eq!(said(&report), Vec::<String>::new());
    let hostname = report.checks.iter().find(|check| check.name == "hostname").unwrap();
    assert_eq!(
        hostname.detail,
        "m1 and m2 share debian; apply gives each its name in the file"
    );
}

#[test]
fn a_bundle_of_other_versions_or_without_an_image_is_found() {
    let (_, mut facts) = healthy();
    facts.bundle = bundle(&["pause", "coredns/coredns", "probe"]);
    let kubeadm = "kubernetes: {version: v1.36.3, bootstrap: kubeadm}\n  access: proxy\n  agent: {as: static-pod}";
    let failed = |option: &str, facts: &Facts| -> Vec<String> {
        preflight(&spec(option), facts)
            .failed()
            .map(|check| format!("{}: {}", check.name, check.detail))
            .collect()
    };
    assert_eq!(failed("kubernetes: {version: v1.36.3}", &facts), Vec::<String>::new());
    assert_eq!(
        failed(kubeadm, &facts),
        ["images: the bundle lacks kube-apiserver, kube-controller-manager, kube-scheduler, kube-proxy, etcd, agent"]
    );
    facts.bundle = bundle(&[
        "pause",
        "coredns/coredns",
        "probe",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kube-proxy",
        "etcd",
        "agent",
    ]);
    assert_eq!(failed(kubeadm, &facts), Vec::<String>::new());
    facts.bundle.kubernetes = "v1.36.2".into();
    assert_eq!(
        failed("kubernetes: {version: v1.36.3}\n  etcd: {version: 3.6.15}", &facts),
        ["bundle: the bundle has Kubernetes v1.36.2, not v1.36.3; etcd 3.6.16, not 3.6.15"]
    );
}

fn bundle(images: &[&str]) -> BundleFacts {
    let images = images
        .iter()
        .map(|image| (format!("image:registry.k8s.io/{image}:v1"), ItemKind::Image));
    let items = images
        .chain([("etcd".to_owned(), ItemKind::Binary)])
        .map(|(name, kind)| {
            let item = BundleItem {
                name: name.clone(),
                kind,
                version: "v3.6.16".into(),
                sha256: "ab".repeat(32),
                size: 1,
                packed_size: 1,
            };
            (name, item)
        });
    BundleFacts {
        kubernetes: "v1.36.3".into(),
        items: items.collect(),
    }
}

#[test]
fn what_access_and_balancer_want_of_a_machine_is_found_missing() {
    let (_, mut facts) = healthy();
    for machine in facts.machines.values_mut() {
        if let MachineFacts::Found(host) = machine {
            for feature in ["ip_vs", "cgroup_bpf"] {
                host.kernel_features.insert(feature.into(), Feature::Absent);
            }
            host.programs.insert("haproxy".into(), Some("/usr/sbin/haproxy".into()));
            host.programs.insert("keepalived".into(), None);
        }
    }
    let failed = |option: &str| -> Vec<String> {
        preflight(&spec(option), &facts)
            .failed()
            .map(|check| format!("{} {}: {}", check.name, check.target, check.detail))
            .collect()
    };
    let on = |machines: &[&str], text: &str| -> Vec<String> {
        machines
            .iter()
            .map(|machine| text.replace("MACHINE", machine))
            .collect()
    };
    let all = ["m1", "m2", "m3", "m4", "m5"];
    assert_eq!(
        failed("access: ipvs"),
        on(
            &all,
            "access-kernel MACHINE: the kernel 6.1.0-18-amd64 lacks ip_vs for `access: ipvs`"
        )
    );
    assert_eq!(
        failed("access: ebpf"),
        on(
            &all,
            "access-kernel MACHINE: the kernel 6.1.0-18-amd64 lacks cgroup_bpf for `access: ebpf`"
        )
    );
    // Workers only proxy; what has the VIP needs both.
    assert_eq!(
        failed("balancer: haproxy\n  access: proxy"),
        on(&all[..3], "balancer MACHINE: without keepalived")
    );
    assert_eq!(failed("access: proxy"), Vec::<String>::new());
}

#[test]
fn kernels_and_containers_that_tell_little_are_not_held_against_them() {
    let (spec, mut facts) = healthy();
    let host = found(&mut facts, "m1");
    // No configuration to be read, IP_VS absent and not asked for, cgroup v1 as the container's host has it.
    for option in ["CONFIG_MEMCG", "CONFIG_NFT_NUMGEN", "CONFIG_SECCOMP"] {
        host.kernel_features.insert(option.into(), Feature::Unknown);
    }
    host.kernel_features.insert("ip_vs".into(), Feature::Absent);
    host.kernel_features.insert("br_netfilter".into(), Feature::Unknown);
    host.container = Some("systemd-nspawn".into());
    host.cgroup.version = CgroupVersion::V1;
    let more = ["cpuacct", "devices", "freezer"].map(str::to_owned);
    host.cgroup.controllers.extend(more);
    // One of two names of an option is enough, and as a module it is there.
    let host = found(&mut facts, "m2");
    host.kernel = "5.10.0-28-amd64".into();
    host.firewall.iptables = Some("/usr/sbin/iptables".into());
    host.kernel_features
        .insert("CONFIG_IP_NF_TARGET_REDIRECT".into(), Feature::Absent);
    host.kernel_features
        .insert("CONFIG_NETFILTER_XT_TARGET_REDIRECT".into(), Feature::Loadable);
    // For other modes than its own.
    host.kernel_features.insert("CONFIG_NFT_NUMGEN".into(), Feature::Absent);
    assert_eq!(said(&preflight(&spec, &facts)), Vec::<String>::new());
}

#[test]
fn a_mode_of_kube_proxy_that_a_machine_cannot_do_is_found() {
    let failed = |option: &str, change: fn(&mut HostFacts)| -> Vec<String> {
        let (_, mut facts) = healthy();
        change(found(&mut facts, "m4"));
        let report = preflight(&spec(option), &facts);
        report
            .failed()
            .map(|check| format!("{} {}: {}", check.name, check.target, check.detail))
            .collect()
    };
    let nftables = "kubernetes: {proxyMode: nftables}";
    let old: fn(&mut HostFacts) = |host| {
        host.kernel = "5.10.0-28-amd64".into();
        host.firewall.iptables = Some("/usr/sbin/iptables".into());
    };
    assert_eq!(
        failed(nftables, old),
        ["proxy-mode m4: `nftables` cannot work: the kernel 5.10.0-28-amd64 is older than 5.13"]
    );
    let old_nft: fn(&mut HostFacts) = |host| {
        host.firewall.nft_version = Some("1.0.0".into());
        host.firewall.iptables = Some("/usr/sbin/iptables".into());
    };
    assert_eq!(
        failed(nftables, old_nft),
        ["proxy-mode m4: `nftables` cannot work: nft 1.0.0 is older than 1.0.1"]
    );
    // It falls back by itself, or brings its own.
    assert_eq!(failed("kubernetes: {proxyMode: auto}", old_nft), Vec::<String>::new());
    let kubeadm = "kubernetes: {bootstrap: kubeadm, proxyMode: nftables}";
    assert_eq!(failed(kubeadm, old_nft), Vec::<String>::new());
    let bare: fn(&mut HostFacts) = |host| {
        for module in ["ip_vs", "ip_vs_rr"] {
            host.kernel_features.insert(module.into(), Feature::Absent);
        }
        for program in ["iptables-restore", "ipset"] {
            host.programs.insert(program.into(), None);
        }
        host.firewall.iptables = Some("/usr/sbin/iptables".into());
    };
    let found = failed("kubernetes: {proxyMode: ipvs}", bare);
    let of_m4: Vec<&String> = found.iter().filter(|line| line.contains(" m4")).collect();
    assert_eq!(
        of_m4,
        [
            "programs m4: without iptables-restore (kube-proxy), ipset (kube-proxy)",
            "proxy-mode m4: `ipvs` cannot work: the kernel 6.1.0-18-amd64 lacks ip_vs, ip_vs_rr",
        ]
    );
    // The agent's own rules, where nothing else wants nft.
    let no_nft: fn(&mut HostFacts) = |host| {
        host.firewall.nft = None;
        host.firewall.iptables = Some("/usr/sbin/iptables".into());
    };
    assert_eq!(failed("access: proxy", no_nft), Vec::<String>::new());
    assert_eq!(
        failed("access: ipvs", no_nft),
        ["programs m4: without nft (`access: ipvs`)"]
    );
}

#[test]
fn a_cluster_with_ipv6_finds_machines_without() {
    let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  \
                network: {pods: [10.244.0.0/16, fd00:244::/48], services: [10.96.0.0/16, fd00:96::/112]}\n  machines:\n    \
                - {name: m1, address: 10.77.0.11, addresses: [fd77::11], roles: [control-plane]}\n    \
                - {name: m2, address: 10.77.0.12, addresses: [fd77::12], roles: [worker]}\n";
    let spec = quorate_spec::load(text, "cluster.yaml")
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, text, false)))
        .0;
    let mut facts = facts_of(&spec);
    for machine in &spec.machines {
        let host = found(&mut facts, &machine.name);
        host.network.addresses.push(AddressFacts {
            interface: "eth0".into(),
            address: machine.addresses[0],
            prefix: 64,
        });
        host.sysctls
            .insert("net.ipv6.conf.all.forwarding".into(), Some("0".into()));
        host.sysctls
            .insert("net.ipv6.conf.all.disable_ipv6".into(), Some("0".into()));
    }
    let ipv6 = |facts: &Facts| -> Vec<String> {
        let report = preflight(&spec, facts);
        let checks = report.checks.iter().filter(|check| check.name == "ipv6");
        checks
            .map(|check| format!("{} {} {}", check.target, check.ok, check.detail))
            .collect()
    };
    assert_eq!(ipv6(&facts), ["m1 true on", "m2 true on"]);
    found(&mut facts, "m1")
        .sysctls
        .insert("net.ipv6.conf.all.forwarding".into(), None);
    let off = Some("1".to_owned());
    found(&mut facts, "m2")
        .sysctls
        .insert("net.ipv6.conf.all.disable_ipv6".into(), off);
    assert_eq!(
        ipv6(&facts),
        [
            "m1 false the kernel has none",
            "m2 false turned off by net.ipv6.conf.all.disable_ipv6",
        ]
    );
    // Where nothing of the cluster's is IPv6, nobody asks.
    let (spec, mut facts) = healthy();
    found(&mut facts, "m1")
        .sysctls
        .insert("net.ipv6.conf.all.forwarding".into(), None);
    assert_eq!(said(&preflight(&spec, &facts)), Vec::<String>::new());
}

#[test]
fn a_proxy_that_would_take_the_cluster_s_own_requests_is_told() {
    let (spec, mut facts) = healthy();
    let mut warned = |no_proxy: Option<&str>| -> Vec<String> {
        let systemd = found(&mut facts, "m1").systemd.as_mut().unwrap();
        systemd.https_proxy = true;
        systemd.no_proxy = no_proxy.map(str::to_owned);
        said(&preflight(&spec, &facts))
    };
    assert_eq!(
        warned(None),
        [
            "http-proxy m1: units are started with HTTPS_PROXY, and NO_PROXY lacks 10.77.0.11 10.77.0.12 10.77.0.13 and 4 more"
        ]
    );
    assert_eq!(
        warned(Some("localhost,10.77.0.0/24,.internal")),
        ["http-proxy m1: units are started with HTTPS_PROXY, and NO_PROXY lacks 10.96.0.1"]
    );
    assert_eq!(warned(Some("10.77.0.0/24, 10.96.0.1")), Vec::<String>::new());
    assert_eq!(warned(Some("*")), Vec::<String>::new());
}

fn file(host: &mut HostFacts, path: &str) {
    let found = FileFacts {
        kind: FileKind::File,
        ..FileFacts::absent()
    };
    host.files.insert(path.into(), found);
}

fn healthy() -> (Spec, Facts) {
    let spec = spec("access: endpoint");
    let facts = facts_of(&spec);
    (spec, facts)
}

fn facts_of(spec: &Spec) -> Facts {
    let taken_unix = 1_800_000_000;
    let machines = spec.machines.iter().map(|machine| {
        (
            machine.name.clone(),
            MachineFacts::Found(Box::new(host(&machine.name, machine.address, taken_unix))),
        )
    });
    Facts {
        taken_unix,
        machines: machines.collect(),
        ..Facts::default()
    }
}

fn spec(option: &str) -> Spec {
    let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: test}\nspec:\n  endpoint: {vip: 10.77.0.100}\n  OPTION\n  machines:\n".replace("OPTION", option);
    let machines: String = (1..=5)
        .map(|n| {
            format!(
                "    - {{name: m{n}, address: 10.77.0.1{n}, roles: [{}]}}\n",
                if n <= 3 { "control-plane" } else { "worker" }
            )
        })
        .collect();
    let text = format!("{text}{machines}");
    quorate_spec::load(&text, "cluster.yaml")
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, &text, false)))
        .0
}

fn host(name: &str, address: std::net::IpAddr, now: i64) -> HostFacts {
    let mut host = HostFacts {
        hostname: name.into(),
        machine_id: format!("id-{name}"),
        product_uuid: Some(format!("uuid-{name}")),
        kernel: "6.1.0-18-amd64".into(),
        arch: "x86_64".into(),
        cpus: 4,
        memory_bytes: 8 << 30,
        systemd: Some(SystemdFacts {
            version: 252,
            state: "running".into(),
            ..SystemdFacts::default()
        }),
        ..HostFacts::default()
    };
    host.clock = ClockFacts {
        unix_ns: now as u64 * 1_000_000_000,
        synchronized: Some(true),
        service: Some("chronyd".into()),
    };
    host.cgroup.controllers = ["cpu", "cpuset", "memory", "pids"].map(str::to_owned).to_vec();
    host.firewall.nft = Some("/usr/sbin/nft".into());
    host.mounts = vec![MountFacts {
        target: "/".into(),
        total_bytes: 100 << 30,
        free_bytes: 50 << 30,
        ..MountFacts::default()
    }];
    host.network.addresses = vec![AddressFacts {
        interface: "eth0".into(),
        address,
        prefix: 24,
    }];
    host
}

fn unit() -> UnitFacts {
    UnitFacts {
        load: "loaded".into(),
        active: "active".into(),
        ..UnitFacts::default()
    }
}

fn listener(port: u16, process: &str, address: &str) -> Listener {
    Listener {
        transport: Transport::Tcp,
        address: address.parse().unwrap(),
        port,
        pid: Some(42),
        process: Some(process.into()),
    }
}
