//! The real ssh against a real sshd on loopback: placing the program, refusals, and connections that break.

#![allow(clippy::print_stderr)]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use quorate_machine::{
    ErrorKind, HostKey, Machine, SshMachine,
    proto::*,
    ssh::{Password, SshTarget},
};
use support::{Sshd, Tmpfs, skipped};

fn exec(script: &str) -> Exec {
    Exec::new(["sh", "-c", script])
}

/// Connecting fails; the error's kind and both its texts.
async fn refused(machine: &SshMachine) -> (ErrorKind, String, String) {
    let error = machine.connect().await.expect_err("should have been refused");
    assert!(error.to_string().starts_with("m1: "), "{error}");
    (error.kind, error.message, error.hint.unwrap_or_default())
}

#[tokio::test]
async fn the_program_is_placed_once_and_answers_concurrently() {
    let Some(sshd) = Sshd::start() else { return };
    let first = sshd.machine(sshd.target());
    let start = Instant::now();
    first.connect().await.unwrap();
    let placed = start.elapsed();
    let second = sshd.machine(sshd.target());
    let start = Instant::now();
    second.connect().await.unwrap();
    eprintln!("first connection {placed:?}, second {:?}", start.elapsed());

    let builds: Vec<_> = fs::read_dir(sshd.path("state/bin"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert_eq!(builds.len(), 1);
    let files: Vec<_> = fs::read_dir(&builds[0])
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(files, ["quorate"], "no temporary file is left");

    let machine: &dyn Machine = &first;
    let start = Instant::now();
    let slow = machine.exec(exec("sleep 1; echo slow"));
    let many = async {
        for n in 0..200 {
            let output = machine.list("/proc/self/task").await;
            assert!(output.is_ok(), "{n}");
        }
        start.elapsed()
    };
    let (slow, many) = tokio::join!(slow, many);
    assert_eq!(slow.unwrap().stdout.lossy(), "slow\n");
    assert!(many < Duration::from_secs(1), "200 calls took {many:?}");
    eprintln!("one call takes {:?}", many / 200);

    let facts = machine.gather(GatherQuery::default()).await.unwrap();
    assert_eq!(facts.privilege.uid, 0);
    let start = Instant::now();
    machine
        .gather(GatherQuery {
            roots: vec!["/etc".into()],
            ..GatherQuery::default()
        })
        .await
        .unwrap();
    eprintln!("facts with all of /etc take {:?}", start.elapsed());
}

#[tokio::test]
async fn host_keys_are_never_accepted_silently() {
    let Some(sshd) = Sshd::start() else { return };
    let listed = std::process::Command::new("ssh-keygen")
        .arg("-lf")
        .arg(sshd.path("host.pub"))
        .output()
        .unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let sum = listed.split(' ').nth(1).unwrap();

    fs::write(sshd.path("known_hosts"), "").unwrap();
    let (kind, message, hint) = refused(&sshd.machine(sshd.target())).await;
    let ErrorKind::HostKeyUnknown(key) = kind else {
        panic!("{kind:?}: {message}")
    };
    let HostKey {
        fingerprint,
        accept_command,
    } = *key;
    assert!(
        fingerprint.contains(sum) && message.contains(sum),
        "{fingerprint} is not {sum}"
    );
    assert!(accept_command.starts_with("ssh -o StrictHostKeyChecking=ask ") && hint.contains(&accept_command));
    assert!(!sshd.path("state").exists(), "nothing was done there");
    assert_eq!(fs::read_to_string(sshd.path("known_hosts")).unwrap(), "");

    let accepting = SshTarget {
        accept_new_host_keys: true,
        ..sshd.target()
    };
    sshd.machine(accepting.clone()).connect().await.unwrap();
    assert!(
        fs::read_to_string(sshd.path("known_hosts"))
            .unwrap()
            .contains("ssh-ed25519")
    );

    sshd.trust("stranger");
    for target in [sshd.target(), accepting] {
        let (kind, _, hint) = refused(&sshd.machine(target)).await;
        assert_eq!(kind, ErrorKind::HostKeyChanged);
        assert!(hint.contains("ssh-keygen -R"), "{hint}");
    }
}

#[tokio::test]
async fn who_cannot_log_in_is_told_how() {
    let Some(sshd) = Sshd::start() else { return };
    let stranger = SshTarget {
        identity_file: Some(sshd.path("stranger")),
        ..sshd.target()
    };
    let (kind, message, _) = refused(&sshd.machine(stranger)).await;
    assert_eq!(kind, ErrorKind::AuthFailed, "{message}");

    let closed = SshTarget {
        port: Some(1),
        ..sshd.target()
    };
    let (kind, message, hint) = refused(&sshd.machine(closed)).await;
    assert_eq!(kind, ErrorKind::Unreachable);
    assert!(
        message.contains("Connection refused") && hint.contains("ssh "),
        "{message} {hint}"
    );
}

#[tokio::test]
async fn calls_that_come_together_wait_for_a_dead_machine_once() {
    let Some(sshd) = Sshd::start() else { return };
    let dying = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = SshTarget {
        port: Some(dying.local_addr().unwrap().port()),
        ..sshd.target()
    };
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let server = tokio::spawn(async move {
        while let Ok((connection, _)) = dying.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(300)).await;
            drop(connection);
        }
    });
    let machine = sshd.machine(target);
    let all = tokio::join!(refused(&machine), refused(&machine), refused(&machine));
    assert_eq!(made.load(Ordering::SeqCst), 1);
    assert!(all.0 == all.1 && all.1 == all.2, "{all:?}");
    refused(&machine).await;
    assert_eq!(made.load(Ordering::SeqCst), 2, "who comes later has it tried again");
    server.abort();
}

#[tokio::test]
async fn a_broken_connection_leaves_the_old_file_and_the_next_call_connects_again() {
    let Some(sshd) = Sshd::start() else { return };
    let machine = sshd.machine(sshd.target());
    let machine: &dyn Machine = &machine;
    let path = sshd.path("app.conf").display().to_string();
    machine
        .write(vec![FileWrite::new(&path, "old", 0o644)], "r1")
        .await
        .unwrap();
    let parent = machine.exec_ok(exec("echo $PPID")).await.unwrap().stdout.lossy();

    // The remote process dies while a large write and a program are under way.
    let mut files: Vec<FileWrite> = (0..40)
        .map(|n| FileWrite::new(format!("{path}.{n}"), vec![b'x'; 1 << 20], 0o644))
        .collect();
    files.push(FileWrite::new(&path, "new", 0o644));
    let writing = machine.write(files, "r2");
    let sleeping = machine.exec(exec("sleep 30"));
    let killing = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        std::process::Command::new("kill")
            .args(["-9", parent.trim()])
            .status()
            .unwrap();
    };
    let start = Instant::now();
    let (written, slept, ()) = tokio::join!(writing, sleeping, killing);
    assert!(start.elapsed() < Duration::from_secs(5));
    for error in [written.unwrap_err(), slept.unwrap_err()] {
        assert_eq!(error.kind, ErrorKind::ConnectionLost);
        assert!(
            error.outcome_unknown() && error.to_string().contains("whether it took place is unknown"),
            "{error}"
        );
    }
    assert_eq!(fs::read_to_string(&path).unwrap(), "old");
    assert_eq!(machine.read(&path, 100).await.unwrap(), b"old", "a new connection");
}

#[tokio::test]
async fn a_broken_upload_goes_on_where_it_stopped() {
    use sha2::{Digest, Sha256};
    use std::sync::atomic::{AtomicU64, Ordering};
    let Some(sshd) = Sshd::start() else { return };
    let machine = sshd.machine(sshd.target());
    let machine: &dyn Machine = &machine;
    let sum = |bytes: &[u8]| -> String { Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect() };
    let content: Vec<u8> = (0..8_000_000u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let packed = zstd::encode_all(&content[..], 1).unwrap();
    fs::write(sshd.path("packed"), &packed).unwrap();
    let blob = PackedBlob {
        sha256: sum(&content),
        size: content.len() as u64,
        packed_sha256: sum(&packed),
        packed_size: packed.len() as u64,
    };

    let parent = machine.exec_ok(exec("echo $PPID")).await.unwrap().stdout.lossy();
    let sent = AtomicU64::new(0);
    let half_way = |bytes| {
        if sent.fetch_add(bytes, Ordering::Relaxed) + bytes > blob.packed_size / 2 {
            let _ = std::process::Command::new("kill").args(["-9", parent.trim()]).status();
        }
    };
    let error = machine
        .put_blob(&sshd.path("packed"), &blob, &half_way)
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::ConnectionLost);
    assert!(
        machine
            .blobs_present(vec![blob.sha256.clone()])
            .await
            .unwrap()
            .is_empty()
    );

    let (first, total) = (AtomicU64::new(u64::MAX), AtomicU64::new(0));
    let count = |bytes| {
        let _ = first.compare_exchange(u64::MAX, bytes, Ordering::Relaxed, Ordering::Relaxed);
        total.fetch_add(bytes, Ordering::Relaxed);
    };
    machine.put_blob(&sshd.path("packed"), &blob, &count).await.unwrap();
    assert!(
        first.into_inner() > blob.packed_size / 4,
        "what had arrived is not sent again"
    );
    assert_eq!(total.into_inner(), blob.packed_size);
    assert_eq!(
        machine.blobs_present(vec![blob.sha256.clone()]).await.unwrap(),
        vec![blob.sha256.clone()]
    );
}

#[tokio::test]
async fn a_lock_survives_a_reconnect_but_not_another_run() {
    let Some(sshd) = Sshd::start() else { return };
    let (a, b) = (sshd.machine(sshd.target()), sshd.machine(sshd.target()));
    let request = |run_id: &str, steal| LockRequest {
        name: "prod".into(),
        owner: LockOwner {
            run_id: run_id.into(),
            user: "ada".into(),
            host: "desk".into(),
            pid: 1,
        },
        ttl_s: 60,
        steal,
        renews: None,
    };
    let (first, second): (&dyn Machine, &dyn Machine) = (&a, &b);
    assert!(first.lock(request("a", false)).await.unwrap().acquired);
    a.disconnect().await;
    first.exec_ok(exec("true")).await.unwrap();
    let refused = second.lock(request("b", false)).await.unwrap();
    assert!(!refused.acquired && refused.holder.unwrap().to_string().contains("run a of ada@desk"));
    assert!(second.lock(request("b", true)).await.unwrap().acquired);
    assert_eq!(first.exec(exec("true")).await.unwrap_err().kind, ErrorKind::LockLost);
    a.disconnect().await;
    assert_eq!(
        first.exec(exec("true")).await.unwrap_err().kind,
        ErrorKind::LockLost,
        "also over a new connection"
    );
}

#[tokio::test]
async fn disks_that_cannot_take_the_program() {
    let Some(sshd) = Sshd::start() else { return };
    let Some(_full) = Tmpfs::mount(sshd.path("full"), "size=64k") else {
        return;
    };
    let at = |name: &str| SshTarget {
        state_dir: Some(sshd.path(name).display().to_string()),
        ..sshd.target()
    };
    let (kind, message, _) = refused(&sshd.machine(at("full"))).await;
    assert_eq!(kind, ErrorKind::NoSpace, "{message}");
    let left: Vec<_> = walk(&sshd.path("full"))
        .into_iter()
        .filter(|path| path.is_file())
        .collect();
    assert!(left.is_empty(), "{left:?}");

    let Some(_noexec) = Tmpfs::mount(sshd.path("noexec"), "noexec") else {
        return;
    };
    let (kind, message, hint) = refused(&sshd.machine(at("noexec"))).await;
    assert_eq!(kind, ErrorKind::NoExec, "{message}");
    assert!(hint.contains("noexec"));

    let Some(_readonly) = Tmpfs::mount(sshd.path("readonly"), "ro") else {
        return;
    };
    let (kind, message, _) = refused(&sshd.machine(at("readonly"))).await;
    assert_eq!(kind, ErrorKind::ReadOnly, "{message}");
}

#[tokio::test]
async fn a_full_disk_replaces_nothing() {
    let Some(sshd) = Sshd::start() else { return };
    let Some(_small) = Tmpfs::mount(sshd.path("small"), "size=256k") else {
        return;
    };
    let machine = sshd.machine(sshd.target());
    let machine: &dyn Machine = &machine;
    let path = |name: &str| sshd.path("small").join(name).display().to_string();
    machine
        .write(vec![FileWrite::new(path("a"), "old", 0o644)], "")
        .await
        .unwrap();
    let error = machine
        .write(
            vec![
                FileWrite::new(path("a"), "new", 0o644),
                FileWrite::new(path("b"), vec![0; 1 << 20], 0o644),
            ],
            "",
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace);
    assert!(
        error
            .to_string()
            .starts_with(&format!("m1: write {} and 1 more: {}: ", path("a"), path("b"))),
        "{error}"
    );
    assert_eq!(fs::read_to_string(path("a")).unwrap(), "old");
    assert_eq!(walk(&sshd.path("small")).len(), 2, "the directory and the old file");
}

/// sudo as a script of the test's own: asks on stderr and reads standard input as the real one does with -S.
fn fake_sudo(sshd: &Sshd, script: &str) -> SshTarget {
    let bin = sshd.path("fake-bin");
    fs::create_dir_all(&bin).unwrap();
    for (name, script) in [("sudo", script), ("id", "#!/bin/sh\necho 1000\n")] {
        fs::write(bin.join(name), script).unwrap();
        fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let keys = fs::read_to_string(sshd.path("client.pub")).unwrap();
    let forced = format!(
        "command=\"PATH={}:$PATH; export PATH; sh -c \\\"$SSH_ORIGINAL_COMMAND\\\"\" {keys}",
        bin.display()
    );
    fs::write(sshd.path("authorized_keys"), forced).unwrap();
    sshd.target()
}

const SUDO: &str = r#"#!/bin/sh
if [ "$1" = -n ]; then shift; echo "sudo: a password is required" >&2; exit 1; fi
shift; prompt="$2"; shift 2
for try in 1 2 3; do
    printf %s "$prompt" >&2
    read -r password || exit 1
    [ "$password" = "correct horse" ] && exec "$@"
    echo "Sorry, try again." >&2
done
exit 1
"#;

#[tokio::test]
async fn sudo_with_and_without_a_password() {
    let Some(sshd) = Sshd::start() else { return };
    let target = fake_sudo(&sshd, SUDO);
    let (kind, message, hint) = refused(&sshd.machine(target.clone())).await;
    assert_eq!(kind, ErrorKind::SudoPassword, "{message}");
    assert!(hint.contains("NOPASSWD"));

    let wrong = SshTarget {
        sudo_password: Some(Password("battery staple".into())),
        ..target.clone()
    };
    let (kind, message, _) = refused(&sshd.machine(wrong)).await;
    assert_eq!(
        (kind, message.as_str()),
        (ErrorKind::SudoPassword, "sudo does not accept the password")
    );

    let right = SshTarget {
        sudo_password: Some(Password("correct horse".into())),
        ..target.clone()
    };
    assert!(!format!("{:?}", right.sudo_password).contains("horse"));
    let machine = sshd.machine(right);
    machine.connect().await.unwrap();
    let machine: &dyn Machine = &machine;
    let seen = machine
        .exec_ok(exec(
            "cat /proc/[0-9]*/cmdline /proc/self/environ 2>/dev/null | tr '\\0' ' '",
        ))
        .await
        .unwrap();
    assert!(
        !seen.stdout.lossy().contains("correct horse"),
        "the password is in nobody's arguments"
    );

    let target = fake_sudo(&sshd, "#!/bin/sh\nshift; exec \"$@\"\n");
    sshd.machine(target).connect().await.unwrap();

    let target = fake_sudo(&sshd, "#!/bin/sh\necho 'ada is not in the sudoers file.' >&2; exit 1\n");
    assert_eq!(refused(&sshd.machine(target)).await.0, ErrorKind::SudoDenied);
    let target = fake_sudo(
        &sshd,
        "#!/bin/sh\necho 'sudo: sorry, you must have a tty to run sudo' >&2; exit 1\n",
    );
    assert_eq!(refused(&sshd.machine(target)).await.0, ErrorKind::SudoDenied);
}

#[tokio::test]
async fn another_architecture_and_another_program() {
    let Some(sshd) = Sshd::start() else { return };
    let target = fake_sudo(&sshd, "#!/bin/sh\nshift; exec \"$@\"\n");
    let uname = sshd.path("fake-bin/uname");
    fs::write(&uname, "#!/bin/sh\necho riscv64\n").unwrap();
    fs::set_permissions(&uname, fs::Permissions::from_mode(0o755)).unwrap();
    let (kind, message, _) = refused(&sshd.machine(target)).await;
    assert!(
        matches!(kind, ErrorKind::WrongArch(arch) if arch.found == "riscv64"),
        "{message}"
    );
    assert!(!sshd.path("state").exists());

    let keys = fs::read_to_string(sshd.path("client.pub")).unwrap();
    fs::write(
        sshd.path("authorized_keys"),
        format!("command=\"echo This account is closed.\" {keys}"),
    )
    .unwrap();
    let (kind, message, _) = refused(&sshd.machine(sshd.target())).await;
    assert_eq!(kind, ErrorKind::Protocol);
    assert!(message.contains("This account is closed."), "{message}");
}

#[tokio::test]
async fn a_program_cut_short_is_sent_again() {
    let Some(sshd) = Sshd::start() else { return };
    sshd.machine(sshd.target()).connect().await.unwrap();
    let build = fs::read_dir(sshd.path("state/bin"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path()
        .join("quorate");
    let size = fs::metadata(&build).unwrap().len();
    fs::remove_file(&build).unwrap();
    fs::write(&build, "half").unwrap();
    sshd.machine(sshd.target()).connect().await.unwrap();
    assert_eq!(fs::metadata(&build).unwrap().len(), size);
}

fn walk(root: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut paths = vec![root.to_owned()];
    let mut next = 0;
    while next < paths.len() {
        if let Ok(entries) = fs::read_dir(&paths[next]) {
            paths.extend(entries.map(|entry| entry.unwrap().path()));
        }
        next += 1;
    }
    paths
}

#[tokio::test]
async fn a_stopped_link_is_found_in_time() {
    let Some(sshd) = Sshd::start() else { return };
    let machine = sshd.machine(sshd.target());
    let machine: &dyn Machine = &machine;
    // The sshd process of this session is stopped: nothing answers keep-alives any more.
    let session = machine.exec_ok(exec("ps -o ppid= -p $PPID | tr -d ' '")).await;
    let Ok(session) = session else { return skipped("no ps") };
    let session = session.stdout.lossy().trim().to_owned();
    let signal = |name: &str| {
        std::process::Command::new("kill")
            .args([name, &session])
            .status()
            .unwrap()
    };
    signal("-STOP");
    let start = Instant::now();
    let error = machine.exec(exec("true")).await.unwrap_err();
    signal("-CONT");
    assert_eq!(error.kind, ErrorKind::ConnectionLost, "{error}");
    assert!(start.elapsed() < Duration::from_secs(17), "{:?}", start.elapsed());
}
