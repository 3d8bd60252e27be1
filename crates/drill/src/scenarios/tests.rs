//! What the scripts do, on machines that only pretend.

use std::sync::Arc;

use super::*;
use crate::fault::{BEFORE_THE_CLUSTER, Injection};
use crate::scenario::{Around, PRELUDE, all, find};
use crate::shell::Shell;

/// Of the only part of a scenario.
fn scripts(name: &str) -> (String, String) {
    match find(name).unwrap().parts[0].fault {
        Fault::Script { inject, revert, .. } => (format!("{PRELUDE}{inject}\n"), format!("{PRELUDE}{revert}\n")),
        _ => panic!("{name} is no script"),
    }
}

/// Kills the script that calls at the call, and in the way, that `dies-at` says.
const MORTAL: &str = r#"count=$(($(cat DIR/count) + 1)); echo $count >DIR/count
die() { if [ "$1 $count" = "$(cat DIR/dies-at)" ]; then kill -9 $PPID; exit; fi; }
die before"#;

/// A mount on the data moves what it hides away, and lets the other name of what is seen point there.
const MOUNT: &str = r#"for last; do :; done
if [ "$1" = --bind ]; then
  /bin/mv "$3" "$3.hidden"; /bin/mv "$2" "$3"; /bin/ln -s "$3" "$2"
fi
echo "quorate-drill $last tmpfs" >>DIR/mounts"#;
const UMOUNT: &str = r#"case $1 in
  */data) aside=DIR/run/etcd; /bin/rm $aside; /bin/mv "$1" $aside; /bin/mv "$1.hidden" "$1" ;;
  *) /bin/rm -r "$1"; /bin/mkdir "$1" ;;
esac
grep -v "^quorate-drill $1 " DIR/mounts >DIR/mounts.new
/bin/mv DIR/mounts.new DIR/mounts"#;
/// Half of it.
const COPY: &str = r#"/bin/cp "$@"
for last; do :; done
if [ "during $count" = "$(cat DIR/dies-at)" ]; then /bin/rm -f "$last/wal" "$last/member/wal"; fi
die during"#;

fn member() -> Shell {
    let shell = Shell::new();
    for (name, does) in [
        ("mount", MOUNT),
        ("umount", UMOUNT),
        ("cp", COPY),
        ("rm", r#"/bin/rm "$@""#),
        ("mv", r#"/bin/mv "$@""#),
        ("touch", r#"/bin/touch "$@""#),
        ("sync", ""),
        ("dd", "echo full >DIR/data/quorate-drill.fill"),
        (
            "systemctl",
            r#"case "$*" in *is-active*) exit 3 ;; *" stop "* | "stop "*) echo stopped >DIR/etcd ;; *start*) echo started >DIR/etcd ;; esac"#,
        ),
    ] {
        shell.program(name, &format!("{MORTAL}\n{does}\ndie after"));
    }
    shell.program("pidof", "exit 1");
    std::fs::create_dir(shell.path("data/member")).unwrap();
    shell.write("data/member/wal", "one");
    shell.write("data/member/snap", "one");
    shell
}

/// `dies`: `before 3`, say; empty: it does not.
fn runs(shell: &Shell, script: &str, dies: &str) -> bool {
    shell.write("count", "0");
    shell.write("dies-at", dies);
    shell.run(script, &[], "").status.success()
}

fn calls(shell: &Shell) -> u32 {
    shell.read("count").trim().parse().unwrap()
}

fn is_as_before(shell: &Shell, wal: &str, when: &str) {
    assert_eq!(shell.read("data/member/wal"), wal, "{when}");
    assert_eq!(shell.read("data/member/snap"), "one", "{when}");
    let there: Vec<_> = std::fs::read_dir(shell.path("data")).unwrap().collect();
    assert_eq!(there.len(), 1, "{when}: {there:?}");
    assert_eq!(shell.read("mounts"), "", "{when}");
    assert!(!shell.path("run/etcd.copied").exists(), "{when}");
    assert_eq!(shell.read("etcd"), "started\n", "{when}");
}

#[test]
fn a_full_etcd_disk_is_taken_back_wherever_that_was_interrupted() {
    let (fill, empty) = scripts("etcd-disk-full");
    let mut interrupted = 0;
    for way in ["before", "during", "after"] {
        for call in 1.. {
            let shell = member();
            assert!(runs(&shell, &fill, ""));
            assert_eq!(shell.read("mounts").lines().count(), 2);
            // Acknowledged while the disk was full.
            shell.write("data/member/wal", "two");
            let when = format!("{way} {call}");
            let done = runs(&shell, &empty, &when);
            if calls(&shell) < call {
                break;
            }
            // Only a copy can end in the middle.
            if done {
                continue;
            }
            interrupted += 1;
            // Once more at the same place, then to the end; and the timer afterwards.
            runs(&shell, &empty, &when);
            assert!(runs(&shell, &empty, ""), "{when}");
            is_as_before(&shell, "two", &when);
            assert!(runs(&shell, &empty, ""), "{when}");
            is_as_before(&shell, "two", &when);
        }
    }
    assert!(interrupted > 30, "{interrupted}");
}

#[test]
fn an_etcd_disk_that_was_not_filled_to_the_end_keeps_what_it_had() {
    let (fill, empty) = scripts("etcd-disk-full");
    for way in ["before", "during", "after"] {
        for call in 1.. {
            let shell = member();
            let when = format!("{way} {call}");
            runs(&shell, &fill, &when);
            if calls(&shell) < call {
                break;
            }
            assert!(runs(&shell, &empty, ""), "{when}");
            is_as_before(&shell, "one", &when);
        }
    }
}

/// As an operator who dies right after it breaks something, and then the machine loses its power.
async fn broken_and_restarted(shell: Arc<Shell>, name: &str) -> Arc<Shell> {
    let (inject, revert) = match find(name).unwrap().parts[0].fault {
        Fault::Script {
            inject,
            revert,
            lasting: true,
        }
        | Fault::Applied {
            inject,
            otherwise: revert,
        } => (inject, revert),
        _ => panic!("{name} is not lasting"),
    };
    let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  machines:\n    - {name: m1, address: 10.0.0.1, roles: [control-plane]}\n";
    let (spec, _) = quorate_spec::load(text, "cluster.yaml").unwrap();
    shell.program("systemd-run", "");
    let (machine, id) = (shell.machine("m1"), "d1-0".to_owned());
    let injection = Injection::new(
        &spec,
        &spec.machines[0],
        machine,
        id,
        inject,
        revert,
        "eth0",
        "quorate",
        false,
    );
    let injection = injection.lasting(BEFORE_THE_CLUSTER);
    injection.arm(Duration::from_secs(38)).await.unwrap();
    injection.inject().await.unwrap().unwrap();
    shell.restart();
    assert_eq!(shell.left_at_boot(), 0, "{name}");
    shell
}

/// What is not memory's, a mount's or a process's: files that are written, moved or filled, and settings that are kept.
#[test]
fn faults_that_are_on_disk_are_known_as_lasting() {
    let lasting: Vec<&str> = all()
        .filter(|scenario| {
            scenario.parts.iter().any(|part| match part.fault {
                Fault::Script { lasting, .. } => lasting,
                Fault::Applied { .. } | Fault::Expired { .. } => true,
                Fault::PowerCut | Fault::PlannedRestart => false,
            })
        })
        .map(|scenario| scenario.name)
        .collect();
    assert_eq!(
        lasting,
        [
            "etcd-data-wiped",
            "root-disk-full",
            "etcd-disk-full",
            "clock-skewed",
            "api-server-certificate-expired",
            "etcd-peer-certificate-expired"
        ]
    );
    for part in all().flat_map(|scenario| scenario.parts) {
        if let Fault::Script {
            inject, lasting: false, ..
        } = part.fault
        {
            let on_disk = ["mv", "cp", "fallocate", "set-ntp", "disable", "mask"];
            assert!(
                !inject.split_whitespace().any(|word| on_disk.contains(&word)),
                "{inject}"
            );
        }
    }
}

#[tokio::test]
async fn wiped_data_is_given_back_at_boot_unless_the_member_began_anew() {
    let shell = broken_and_restarted(Arc::new(member()), "etcd-data-wiped").await;
    is_as_before(&shell, "one", "it had not begun");

    let shell = Arc::new(member());
    // etcd makes what it had not.
    shell.program(
        "systemctl",
        r#"case "$*" in *is-active*) exit 3 ;; *start*) echo started >DIR/etcd; /bin/mkdir -p DIR/data/member; [ -e DIR/data/member/wal ] || echo new >DIR/data/member/wal ;; esac"#,
    );
    let shell = broken_and_restarted(shell, "etcd-data-wiped").await;
    assert_eq!(shell.read("data/member/wal"), "new\n", "never two histories");
    assert!(!shell.path("data/quorate-drill.kept").exists());
}

#[tokio::test]
async fn a_disk_that_was_full_when_the_power_went_has_room_again() {
    let shell = Shell::new();
    shell.program("systemctl", "exit 3");
    shell.program("df", "printf 'Avail\n100\n'");
    shell.program("fallocate", "echo full >DIR/var.fill");
    let shell = broken_and_restarted(Arc::new(shell), "root-disk-full").await;
    assert!(!shell.path("var.fill").exists());
}

#[tokio::test]
async fn a_clock_that_was_ahead_when_the_power_went_is_kept_by_ntp_again_and_left_alone() {
    let shell = Shell::new();
    shell.write("uptime", "1000.25 900.0\n");
    shell.write("clock", "50000");
    shell.write("ntp", "yes");
    shell.program(
        "date",
        r#"case $1 in -s) echo "$2" >>DIR/steps ;; *) cat DIR/clock ;; esac"#,
    );
    shell.program(
        "timedatectl",
        // As long as it is off the machine counts as started an hour later, whatever its clock says.
        r#"case $1 in show) cat DIR/ntp ;; *) echo $2 >DIR/ntp; echo 99999 >DIR/clock ;; esac"#,
    );
    let shell = broken_and_restarted(Arc::new(shell), "clock-skewed").await;
    assert_eq!(shell.read("ntp"), "true\n");
    assert_eq!(shell.read("steps"), "+1 hour\n", "the hardware's clock was never ahead");
}

/// What a member acknowledged on the file system that is gone, the data from before does not have.
#[test]
fn a_member_that_served_from_a_full_disk_when_the_power_went_starts_without_data_or_with_all_of_it() {
    let (fill, empty) = scripts("etcd-disk-full");
    let (mut kept, mut lost) = (0, 0);
    for way in ["before", "during", "after"] {
        for call in 1.. {
            let shell = member();
            let when = format!("{way} {call}");
            runs(&shell, &fill, &when);
            let over = calls(&shell) < call;
            let served = shell.read("etcd") == "started\n";
            shell.restart();
            for _ in 0..2 {
                assert!(runs(&shell, &empty, ""), "{when}");
                assert_eq!(shell.read("etcd"), "started\n", "{when}");
                assert!(!shell.path("data/quorate-drill.old").exists(), "{when}");
            }
            if shell.path("data/member").exists() {
                assert!(!served, "{when}: it forgot what it acknowledged");
                is_as_before(&shell, "one", &when);
                kept += 1;
            } else {
                lost += 1;
            }
            if over {
                break;
            }
        }
    }
    assert!(kept > 10 && lost > 3, "{kept} {lost}");
}

#[test]
fn a_full_etcd_disk_that_cannot_be_unmounted_loses_nothing() {
    let (fill, empty) = scripts("etcd-disk-full");
    let shell = member();
    assert!(runs(&shell, &fill, ""));
    shell.write("data/member/wal", "two");
    shell.program("umount", "exit 32");
    assert!(!runs(&shell, &empty, ""), "it is not said to be done");
    assert_eq!(shell.read("data/member/wal"), "two");
    assert!(!runs(&shell, &fill, ""), "nor filled again");
    shell.program("umount", &format!("{MORTAL}\n{UMOUNT}"));
    assert!(runs(&shell, &empty, ""));
    is_as_before(&shell, "two", "at last");
}

#[test]
fn a_read_only_etcd_disk_is_taken_back_once_and_mounts_of_others_stay() {
    let (read_only, writable) = scripts("etcd-disk-read-only");
    let shell = member();
    let others = format!("/dev/sdb1 {} xfs\n", shell.path("data").display());
    shell.write("mounts", &others);
    shell.program("mount", r#"[ "$1" != --bind ] || echo "/dev/sdb1 $3 xfs" >>DIR/mounts"#);
    shell.program("umount", r#"sed -i '$d' DIR/mounts"#);
    assert!(runs(&shell, &writable, ""), "nothing was done yet");
    assert!(runs(&shell, &read_only, ""));
    assert_eq!(shell.read("mounts"), others.repeat(2));
    // The first time it ends before its mark is gone.
    let rm = "/bin/rm \"$@\"";
    shell.program("rm", "exit 1");
    assert!(!runs(&shell, &writable, ""));
    shell.program("rm", rm);
    for _ in 0..2 {
        assert!(runs(&shell, &writable, ""));
        assert_eq!(shell.read("mounts"), others);
    }
}

#[test]
fn a_skewed_clock_is_put_right_once_however_often_it_is_taken_back() {
    let (ahead, in_step) = scripts("clock-skewed");
    let shell = Shell::new();
    shell.write("uptime", "1000.25 900.0\n");
    shell.write("clock", "50000");
    shell.write("ntp", "yes");
    shell.program(
        "date",
        r#"case $2 in
  '+1 hour') echo $(($(cat DIR/clock) + 3600)) >DIR/clock ;;
  '-1 hour') echo $(($(cat DIR/clock) - 3600)) >DIR/clock ;;
  *) cat DIR/clock ;;
esac"#,
    );
    shell.program(
        "timedatectl",
        r#"case $1 in show) cat DIR/ntp ;; set-ntp) if [ $2 = true ]; then echo yes; else echo no; fi >DIR/ntp ;; esac"#,
    );
    let run = |script: &str| shell.run(script, &[], "").status.success();
    assert!(run(&ahead));
    assert_eq!((shell.read("clock").trim(), shell.read("ntp").trim()), ("53600", "no"));
    assert!(!run(&ahead), "an hour is enough");
    for _ in 0..3 {
        assert!(run(&in_step));
        assert_eq!((shell.read("clock").trim(), shell.read("ntp").trim()), ("50000", "yes"));
    }
    // Ended between the mark and the step.
    shell.write("lasting/clock", "no 49000 first\n");
    assert!(run(&in_step));
    assert_eq!((shell.read("clock").trim(), shell.read("ntp").trim()), ("50000", "yes"));
}

#[test]
fn a_signal_to_nobody_is_no_fault() {
    let shell = Shell::new();
    shell.program("systemctl", "exit 3");
    shell.program("pidof", "exit 1");
    for script in ["signal KILL kube-apiserver", "stop kube-apiserver"] {
        let output = shell.run(&format!("{PRELUDE}{script}\n"), &[], "");
        assert_eq!(output.status.code(), Some(1), "{script}");
        assert_eq!(
            String::from_utf8_lossy(&output.stderr),
            "no kube-apiserver here\n",
            "{script}"
        );
    }
    // Nobody needs to be thawed either.
    assert!(shell.run(&format!("{PRELUDE}thaw etcd\n"), &[], "").status.success());
}

/// Two control planes survive the loss of none.
#[test]
fn a_cluster_that_survives_no_loss_is_not_broken_without_being_told() {
    let spec = |control_planes: usize| {
        let mut text = String::from(
            "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {name: demo}\nspec:\n  kubernetes: {version: v1.36.3}\n  endpoint: {vip: 10.0.0.100, port: 8443, on: control-planes}\n  machines:\n    - {name: m9, address: 10.0.0.9, roles: [worker]}\n",
        );
        for number in 1..=control_planes {
            text.push_str(&format!(
                "    - {{name: m{number}, address: 10.0.0.{number}, roles: [control-plane]}}\n"
            ));
        }
        quorate_spec::load(&text, "cluster.yaml").unwrap().0
    };
    for name in ["api-server-killed", "etcd-follower-killed", "machine-off-vip-holder"] {
        let scenario = find(name).unwrap();
        assert!(
            scenario.takes_api_away(&spec(1)) && !scenario.takes_api_away(&spec(3)),
            "{name}"
        );
        assert_eq!(scenario.limits_on(&spec(1)).new_failed, None, "{name}");
    }
    assert!(!find("kubelet-killed").unwrap().takes_api_away(&spec(1)));
    assert!(find("cold-start").unwrap().takes_api_away(&spec(5)));
}

/// `kubeadm`: a kubelet starts again what got SIGTERM.
#[test]
fn what_would_not_stay_stopped_is_skipped() {
    let spec = |bootstrap: &str| {
        let text = format!(
            "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {{name: demo}}\nspec:\n  kubernetes: {{version: v1.36.3, bootstrap: {bootstrap}}}\n  endpoint: {{vip: 10.0.0.100, port: 8443, on: control-planes}}\n  machines:\n    - {{name: m1, address: 10.0.0.1, roles: [control-plane]}}\n    - {{name: m2, address: 10.0.0.2, roles: [control-plane]}}\n    - {{name: m3, address: 10.0.0.3, roles: [control-plane]}}\n"
        );
        quorate_spec::load(&text, "cluster.yaml").unwrap().0
    };
    for name in [
        "api-server-stopped",
        "controller-manager-leader-killed",
        "scheduler-leader-killed",
        "etcd-data-wiped",
        "etcd-disk-full",
        "etcd-disk-read-only",
        "etcd-quorum-lost",
    ] {
        let around = Around {
            bundle: true,
            ..Around::default()
        };
        let skipped = |bootstrap| find(name).unwrap().skipped(&spec(bootstrap), around);
        assert_eq!(skipped("binary"), None, "{name}");
        assert!(skipped("kubeadm").unwrap().contains("kubelet starts"), "{name}");
    }
    let killed = find("api-server-killed").unwrap();
    assert_eq!(killed.skipped(&spec("kubeadm"), Default::default()), None);
}
