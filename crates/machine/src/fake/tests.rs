use std::time::Instant;

use super::*;
use crate::proto::Request;

fn write(path: &str, content: &str) -> FileWrite {
    FileWrite::new(path, content, 0o644)
}

fn unit(name: &str) -> FileWrite {
    write(&format!("/etc/systemd/system/{name}"), "[Service]\n")
}

#[tokio::test]
async fn files_are_kept_restored_and_seen_by_gather() {
    let fake = FakeMachine::new("m1");
    let machine: &dyn Machine = &*fake;
    machine
        .write(vec![write("/etc/app/a.conf", "one")], "r1")
        .await
        .unwrap();
    assert!(
        !machine
            .write(vec![write("/etc/app/a.conf", "one")], "r2")
            .await
            .unwrap()[0]
            .changed
    );
    machine
        .write(vec![write("/etc/app/a.conf", "two")], "r2")
        .await
        .unwrap();
    let query = GatherQuery {
        text_roots: vec!["/etc/app".into()],
        paths: vec!["/none".into()],
        ..GatherQuery::default()
    };
    let facts = machine.gather(query).await.unwrap();
    assert_eq!(facts.files["/etc/app/a.conf"].text.as_deref(), Some("two"));
    assert!(!facts.files["/none"].exists());
    assert_eq!(facts.kept_runs[0].paths, ["/etc/app/a.conf"]);
    machine
        .items(Request::Restore {
            paths: vec!["/etc/app/a.conf".into()],
            run_id: "r2".into(),
        })
        .await
        .unwrap();
    assert_eq!(fake.file("/etc/app/a.conf").unwrap(), b"one");
    let unknown = FileWrite {
        owner: Owner::new("etcd", "etcd"),
        ..write("/x", "")
    };
    assert_eq!(
        machine.write(vec![unknown], "").await.unwrap_err().kind,
        ErrorKind::NotFound
    );
}

#[tokio::test]
async fn units_listen_while_they_run_and_come_back_with_the_power() {
    let fake = FakeMachine::new("m1");
    let machine: &dyn Machine = &*fake;
    fake.state().listens.insert("etcd.service".into(), vec![2379]);
    let start = |names: &[&str]| vec![UnitOp::Start(names.iter().map(|name| (*name).to_owned()).collect())];
    assert!(
        machine
            .units(start(&["etcd.service"]), 1000)
            .await
            .unwrap_err()
            .message
            .contains("not found")
    );
    machine
        .write(vec![unit("etcd.service"), unit("kubelet.service")], "")
        .await
        .unwrap();
    machine
        .units(vec![UnitOp::Enable(vec!["etcd.service".into()])], 1000)
        .await
        .unwrap();
    machine
        .units(start(&["etcd.service", "kubelet.service"]), 1000)
        .await
        .unwrap();
    let wait = Request::WaitPort {
        address: "127.0.0.1:2379".parse().unwrap(),
        timeout_ms: 100,
    };
    machine.wait(wait.clone()).await.unwrap();

    machine
        .write(vec![write("/etc/systemd/system/etcd.service", "changed")], "")
        .await
        .unwrap();
    let status = machine
        .unit_status(vec!["etcd.service".into(), "none.service".into()])
        .await
        .unwrap();
    assert!(
        status["etcd.service"].is_active()
            && status["etcd.service"].needs_daemon_reload
            && !status["none.service"].exists()
    );

    fake.power_off();
    assert_eq!(
        machine.wait(wait.clone()).await.unwrap_err().kind,
        ErrorKind::Unreachable
    );
    fake.power_on();
    machine.wait(wait).await.unwrap();
    let status = machine.unit_status(vec!["kubelet.service".into()]).await.unwrap();
    assert!(!status["kubelet.service"].is_active(), "it was not enabled");

    fake.state().failing_units.insert("kubelet.service".into(), 1);
    assert!(machine.units(start(&["kubelet.service"]), 1000).await.is_err());
    let status = machine.unit_status(vec!["kubelet.service".into()]).await.unwrap();
    assert_eq!(
        (
            status["kubelet.service"].active.as_str(),
            status["kubelet.service"].exit_status
        ),
        ("failed", 1)
    );
}

#[tokio::test]
async fn faults_happen_once_at_their_moment() {
    let fake = FakeMachine::new("m1");
    let machine: &dyn Machine = &*fake;
    fake.fault(Fault::operation(
        "write /b",
        1,
        ErrorKind::NoSpace,
        "No space left on device",
    ));
    machine.write(vec![write("/a", "")], "").await.unwrap();
    let error = machine.write(vec![write("/b", "")], "").await.unwrap_err();
    assert_eq!(
        (error.kind.clone(), error.to_string().as_str()),
        (ErrorKind::NoSpace, "m1: write /b: No space left on device")
    );
    assert!(fake.file("/b").is_none());
    machine.write(vec![write("/b", "")], "").await.unwrap();

    fake.fault(Fault::dies_after_call(2));
    machine.write(vec![write("/c", "")], "").await.unwrap();
    assert!(
        machine
            .write(vec![write("/d", "")], "")
            .await
            .unwrap_err()
            .outcome_unknown()
    );
    assert!(
        machine
            .write(vec![write("/e", "")], "")
            .await
            .unwrap_err()
            .is_unreachable()
    );
    fake.power_on();
    assert!(fake.file("/d").is_some() && fake.file("/e").is_none());

    fake.state().disk_full = true;
    assert_eq!(
        machine.write(vec![write("/f", "")], "").await.unwrap_err().kind,
        ErrorKind::NoSpace
    );
}

#[tokio::test]
async fn http_and_programs_are_answered_by_the_test() {
    let (one, two) = (FakeMachine::new("m1"), FakeMachine::new("m2"));
    let other = two.clone();
    one.on_http(move |_, request| {
        let up = other
            .listening()
            .iter()
            .any(|(port, _)| request.url.contains(&format!(":{port}/")));
        up.then(|| HttpReply {
            status: 200,
            body: "ok".into(),
            ..HttpReply::default()
        })
    });
    let machine: &dyn Machine = &*one;
    let request = HttpRequest::get("https://10.0.0.2:6443/readyz");
    assert!(
        machine
            .http(request.clone())
            .await
            .unwrap_err()
            .message
            .contains("connection refused")
    );
    two.state().listens.insert("kube-apiserver.service".into(), vec![6443]);
    two.state().units.insert(
        "kube-apiserver.service".into(),
        FakeUnit {
            active: true,
            ..FakeUnit::default()
        },
    );
    assert_eq!(machine.http(request.clone()).await.unwrap().body.lossy(), "ok");
    let with_ca = request.ca("/etc/kubernetes/pki/ca.crt");
    assert_eq!(
        machine.http(with_ca).await.unwrap_err().kind,
        ErrorKind::NotFound,
        "the CA is not on the machine"
    );

    one.on_exec(|_, exec| {
        Some(ExecOutput {
            status: Some(7),
            stderr: exec.argv.join(" ").into(),
            ..ExecOutput::default()
        })
    });
    let error = machine.exec_ok(Exec::new(["ctr", "images", "ls"])).await.unwrap_err();
    assert_eq!(error.to_string(), "m1: run ctr: exit status 7: ctr images ls");
}

#[tokio::test]
async fn a_thousand_machines_answer_a_hundred_thousand_requests_in_seconds() {
    let fakes: Vec<_> = (0..1000).map(|n| FakeMachine::new(&format!("m{n}"))).collect();
    let start = Instant::now();
    for fake in &fakes {
        let machine: &dyn Machine = &**fake;
        for n in 0..100 {
            machine
                .write(vec![write(&format!("/etc/app/{n}"), "some content")], "r1")
                .await
                .unwrap();
        }
    }
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}
