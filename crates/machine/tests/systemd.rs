//! On machines booted with systemd, given by `QUORATE_TEST_SSH_CONFIG=<ssh_config with hosts m1 and m2>` (a lab's, for
//! example). Everything made there is taken away again.

#![allow(clippy::print_stderr)]

#[allow(dead_code)]
mod support;

use std::{sync::Arc, time::Instant};

use quorate_machine::{
    ErrorKind, Machine, SshMachine,
    distribute::{Recipient, Source, distribute},
    proto::*,
    ssh::SshTarget,
};

/// `None`, after saying so, without such machines.
fn machine(name: &str) -> Option<SshMachine> {
    let Some(config) = std::env::var_os("QUORATE_TEST_SSH_CONFIG") else {
        support::skipped("QUORATE_TEST_SSH_CONFIG names no ssh_config");
        return None;
    };
    let target = SshTarget {
        name: name.into(),
        host: name.into(),
        config_file: Some(config.into()),
        ..SshTarget::default()
    };
    Some(SshMachine::new(target, support::program()))
}

fn unit(name: &str, body: &str) -> FileWrite {
    FileWrite::new(
        format!("/etc/systemd/system/{name}"),
        format!("[Service]\n{body}\n[Install]\nWantedBy=multi-user.target\n"),
        0o644,
    )
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[tokio::test]
async fn units_live_and_die() {
    let Some(machine) = machine("m1") else { return };
    let machine: &dyn Machine = &machine;
    let all = names(&["qt-good.service", "qt-bad.service"]);
    machine
        .write(
            vec![
                unit("qt-good.service", "ExecStart=sleep 1000"),
                unit(
                    "qt-bad.service",
                    "Type=oneshot\nExecStart=sh -c 'echo it went wrong; exit 3'",
                ),
            ],
            "qt",
        )
        .await
        .unwrap();
    machine
        .units(
            vec![
                UnitOp::DaemonReload,
                UnitOp::Enable(names(&["qt-good.service"])),
                UnitOp::Start(names(&["qt-good.service"])),
            ],
            10_000,
        )
        .await
        .unwrap();
    let error = machine
        .units(vec![UnitOp::Start(all.clone())], 10_000)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::Failed);
    assert!(
        error.message.contains("qt-bad.service is failed") && error.message.contains("it went wrong"),
        "{error}"
    );

    let asked = [all.clone(), names(&["qt-none.service"])].concat();
    let start = Instant::now();
    let status = machine.unit_status(asked.clone()).await.unwrap();
    eprintln!("status of three units takes {:?}", start.elapsed());
    let good = &status["qt-good.service"];
    assert!(
        good.is_active()
            && good.is_enabled()
            && good.main_pid > 0
            && good.since_unix > 1_700_000_000
            && !good.needs_daemon_reload,
        "{good:?}"
    );
    assert_eq!(
        (
            status["qt-bad.service"].active.as_str(),
            status["qt-bad.service"].exit_status
        ),
        ("failed", 3)
    );
    assert!(!status["qt-none.service"].exists());
    machine
        .write(vec![unit("qt-good.service", "ExecStart=sleep 2000")], "qt")
        .await
        .unwrap();
    assert!(machine.unit_status(all.clone()).await.unwrap()["qt-good.service"].needs_daemon_reload);

    let missing = machine
        .units(vec![UnitOp::Start(names(&["qt-none.service"]))], 10_000)
        .await
        .unwrap_err();
    assert!(missing.message.contains("not found"), "{missing}");
    let gone = vec![
        UnitOp::Stop(asked.clone()),
        UnitOp::Disable(asked.clone()),
        UnitOp::ResetFailed(asked),
    ];
    machine.units(gone, 10_000).await.unwrap();
    let paths = all.iter().map(|name| format!("/etc/systemd/system/{name}")).collect();
    machine
        .items(Request::Remove {
            paths,
            recursive: false,
            run_id: "qt".into(),
        })
        .await
        .unwrap();
    machine.units(vec![UnitOp::DaemonReload], 10_000).await.unwrap();
    assert!(!machine.unit_status(all).await.unwrap()["qt-good.service"].exists());
    machine
        .items(Request::Remove {
            paths: names(&["/var/lib/quorate/kept/qt"]),
            recursive: true,
            run_id: String::new(),
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn facts_are_quick_and_complete() {
    let Some(machine) = machine("m1") else { return };
    let machine: &dyn Machine = &machine;
    let query = GatherQuery {
        roots: names(&["/etc/systemd/system", "/usr/local/bin", "/etc/kubernetes"]),
        units: names(&["ssh.service", "kubelet.service", "etcd.service"]),
        sysctls: names(&["net.ipv4.ip_forward"]),
        users: names(&["root", "etcd"]),
        ..GatherQuery::default()
    };
    machine.gather(query.clone()).await.unwrap();
    let mut took = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        machine.gather(query.clone()).await.unwrap();
        took.push(start.elapsed());
    }
    let facts = machine.gather(query).await.unwrap();
    eprintln!("facts take {took:?}");
    let hardware = quorate_facts::HostFacts {
        files: Default::default(),
        ..facts.clone()
    };
    eprintln!("{hardware:?}");
    assert_eq!(facts.privilege.uid, 0);
    assert!(facts.systemd.as_ref().is_some_and(|systemd| systemd.version > 200));
    assert!(facts.network.default_interface.is_some() || !facts.network.addresses.is_empty());
    assert!(
        facts
            .listening
            .iter()
            .any(|listener| listener.port == 22 && listener.process.is_some())
    );
}

#[tokio::test]
async fn users_sysctls_tables_and_mounts_come_and_go() {
    let Some(machine) = machine("m1") else { return };
    let machine: &dyn Machine = &machine;
    let user = UserSpec {
        name: "qt-user".into(),
        home: "/var/lib/qt-user".into(),
        shell: "/usr/sbin/nologin".into(),
        system: true,
        ..UserSpec::default()
    };
    let changed = async |request: Request| machine.items(request).await.unwrap().iter().any(|item| item.changed);
    assert!(changed(Request::User(user.clone())).await && !changed(Request::User(user)).await);
    let dir = DirSpec {
        path: "/var/lib/qt-user".into(),
        owner: Owner::new("qt-user", "qt-user"),
        mode: 0o700,
    };
    assert!(changed(Request::Mkdir { dirs: vec![dir] }).await);
    assert_eq!(
        machine.stat(names(&["/var/lib/qt-user"])).await.unwrap()[0].owner,
        "qt-user"
    );
    let whoami = machine
        .exec_ok(Exec {
            user: Some("qt-user".into()),
            ..Exec::new(["id", "-un"])
        })
        .await
        .unwrap();
    assert_eq!(whoami.stdout.lossy(), "qt-user\n");

    let mount = MountSpec {
        source: "tmpfs".into(),
        target: "/var/lib/qt-user".into(),
        fstype: "tmpfs".into(),
        options: names(&["size=1m"]),
    };
    assert!(changed(Request::Mount(mount.clone())).await && !changed(Request::Mount(mount)).await);
    let busy = Request::Remove {
        paths: names(&["/var/lib/qt-user"]),
        recursive: true,
        run_id: String::new(),
    };
    assert!(
        machine
            .items(busy.clone())
            .await
            .unwrap_err()
            .message
            .contains("is mounted")
    );
    assert!(
        changed(Request::Unmount {
            targets: names(&["/var/lib/qt-user"])
        })
        .await
    );
    assert!(changed(busy).await);
    assert!(
        changed(Request::UserRemove { name: "qt-user".into() }).await
            && !changed(Request::UserRemove { name: "qt-user".into() }).await
    );

    let table = |ruleset: Option<&str>| Request::NftTable {
        family: "inet".into(),
        name: "qt_table".into(),
        ruleset: ruleset.map(Into::into),
    };
    for _ in 0..2 {
        machine
            .done(table(Some(
                "table inet qt_table {\nchain c { type filter hook input priority 0; }\n}\n",
            )))
            .await
            .unwrap();
    }
    assert!(
        machine
            .gather(GatherQuery::default())
            .await
            .unwrap()
            .firewall
            .nft_tables
            .contains(&"inet qt_table".to_owned())
    );
    machine.done(table(None)).await.unwrap();
    machine.done(table(None)).await.unwrap();

    let set = |value: &str| Request::Sysctl {
        values: [("net.ipv4.ip_local_port_range".to_owned(), value.to_owned())].into(),
    };
    let before = machine.items(set("20000 60000")).await.unwrap().remove(0);
    assert!(before.changed && !changed(set("20000 60000")).await);
    machine.items(set(&before.before.unwrap())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_goes_out_once() {
    use sha2::{Digest, Sha256};
    let (Some(one), Some(two)) = (machine("m1"), machine("m2")) else {
        return;
    };
    let sum = |bytes: &[u8]| -> String { Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    let dir = tempfile::tempdir().unwrap();
    let content: Vec<u8> = (0..25_000_000u32)
        .flat_map(|n| (n / 3).wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let packed = zstd::encode_all(&content[..], 1).unwrap();
    let path = dir.path().join("blob");
    std::fs::write(&path, &packed).unwrap();
    let blob = PackedBlob {
        sha256: sum(&content),
        size: content.len() as u64,
        packed_sha256: sum(&packed),
        packed_size: packed.len() as u64,
    };
    let mut recipients = Vec::new();
    for machine in [one, two] {
        let machine: Arc<dyn Machine> = Arc::new(machine);
        let facts = machine.gather(GatherQuery::default()).await.unwrap();
        let address = facts
            .network
            .addresses
            .iter()
            .map(|a| a.address)
            .find(|address| address.is_ipv4() && !address.is_loopback());
        recipients.push(Recipient {
            machine,
            address,
            wants: vec![blob.sha256.clone()],
        });
    }
    let start = Instant::now();
    let results = distribute(
        &recipients,
        &[Source {
            blob: blob.clone(),
            path,
        }],
        &|_| (),
    )
    .await;
    eprintln!(
        "{} bytes, {} packed, to two machines: {:?}",
        blob.size,
        blob.packed_size,
        start.elapsed()
    );
    let total = |part: fn(&quorate_machine::distribute::Received) -> u64| -> u64 {
        results.values().map(|result| part(result.as_ref().unwrap())).sum()
    };
    assert_eq!(
        (total(|r| r.from_operator), total(|r| r.from_peers)),
        (blob.packed_size, blob.packed_size),
        "{results:?}"
    );
    for recipient in &recipients {
        recipient
            .machine
            .items(Request::BlobsPrune { keep: Some(Vec::new()) })
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_batch_of_files_takes_one_trip() {
    let Some(machine) = machine("m1") else { return };
    let machine: &dyn Machine = &machine;
    let batch = |content: &str| {
        (0..40)
            .map(|n| FileWrite::new(format!("/etc/qt-batch/{}/{n}", n % 5), format!("{content} {n}"), 0o600))
            .collect::<Vec<_>>()
    };
    for content in ["one", "two", "three"] {
        let start = Instant::now();
        assert!(
            machine
                .write(batch(content), "qt-batch")
                .await
                .unwrap()
                .iter()
                .all(|item| item.changed)
        );
        eprintln!("40 files, synced, take {:?}", start.elapsed());
    }
    assert!(
        machine
            .write(batch("three"), "qt-batch")
            .await
            .unwrap()
            .iter()
            .all(|item| !item.changed)
    );
    let kept = Request::Remove {
        paths: names(&["/etc/qt-batch", "/var/lib/quorate/kept/qt-batch"]),
        recursive: true,
        run_id: String::new(),
    };
    machine.items(kept).await.unwrap();
}
