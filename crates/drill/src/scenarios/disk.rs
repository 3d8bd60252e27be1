//! Disks and clocks.

use super::*;
use crate::scenario::Need;

/// The member's data moves to a small file system of its own, is served from there while that is full, and moves back
/// with everything it acknowledged meanwhile.
const FILL: &str = "data={data}; aside=/run/quorate-drill/etcd
systemctl stop etcd
mkdir -p $aside
size=$(($(du -sm $data | cut -f1) + 24))
mount -t tmpfs -o size=${size}m,mode=700 quorate-drill $aside
cp -a $data/. $aside/
mount --bind $aside $data
dd if=/dev/zero of=$data/quorate-drill.fill bs=64k 2>/dev/null || true
systemctl start --no-block etcd";
const EMPTY: &str = "data={data}; aside=/run/quorate-drill/etcd
if mountpoint -q $aside; then
  systemctl stop etcd
  rm -f $data/quorate-drill.fill
  umount $data
  cp -a $aside/member $data/member.new
  rm -rf $data/member
  mv $data/member.new $data/member
  sync
  umount $aside
fi
start etcd";

/// Only the mount made here is taken away: the directory may be a mount of its own.
const READ_ONLY: &str = "mkdir -p /run/quorate-drill
stop etcd
mount --bind {data} {data}
touch /run/quorate-drill/read-only
mount -o remount,bind,ro {data}
start etcd";
const WRITABLE: &str = "if [ -e /run/quorate-drill/read-only ]; then
  stop etcd; umount {data}; rm /run/quorate-drill/read-only
fi
start etcd";

/// System calls of a running program are delayed or fail by ptrace, so that it needs no device of its own. Whoever restarts
/// is found again.
const SLOW: &str = "command -v strace >/dev/null || cannot 'strace is not installed on {machine}'
systemd-run --quiet --collect --property=KillSignal=SIGKILL --unit=quorate-drill-disk /bin/sh -c 'while :; do pid=$(pidof etcd) && strace -f -qq -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:delay_exit=300000 -p $pid; sleep 0.2; done'";
const FAILING: &str = "command -v strace >/dev/null || cannot 'strace is not installed on {machine}'
systemd-run --quiet --collect --property=KillSignal=SIGKILL --unit=quorate-drill-disk /bin/sh -c 'while :; do pid=$(pidof etcd) && strace -f -qq -o /dev/null -e trace=fsync,fdatasync -e inject=fsync,fdatasync:error=EIO -p $pid; sleep 0.2; done'";
const WELL: &str = "systemctl stop quorate-drill-disk.service 2>/dev/null || true
start etcd";

const AUDIT_FULL: &str = "logs=/var/log/kubernetes
[ -e $logs/audit.log ] || cannot 'the API server of {machine} keeps no audit log'
mount -t tmpfs -o size=64k,mode=$(stat -c %a $logs),uid=$(stat -c %u $logs),gid=$(stat -c %g $logs) quorate-drill $logs
dd if=/dev/zero of=$logs/quorate-drill.fill bs=4k 2>/dev/null || true
again kube-apiserver";
const AUDIT_EMPTY: &str = "if grep -q '^quorate-drill /var/log/kubernetes ' /proc/mounts; then
  umount -l /var/log/kubernetes
  again kube-apiserver
fi";

/// A MiB is left for whoever takes it back.
const ROOT_FULL: &str = "free=$(df --output=avail -B1M /var | tail -1)
fallocate -l $((free - 1))M /var/quorate-drill.fill";
const ROOT_EMPTY: &str = "rm -f /var/quorate-drill.fill; start etcd";

pub(super) const ALL: [Scenario; 7] = [
    Scenario {
        needs: &[Need::ThreeControlPlanes],
        ..one(
            "audit-disk-full",
            15,
            "the file system of the API server's audit log is full on the VIP's holder",
            &[script(Target::VipHolder, AUDIT_FULL, AUDIT_EMPTY)],
            UNSEEN,
        )
    },
    Scenario {
        needs: &[Need::OwnDisk, Need::ThreeControlPlanes],
        ..one(
            "root-disk-full",
            15,
            "the file system under / is full on a control plane without the VIP",
            &[script(Target::VipBackup, ROOT_FULL, ROOT_EMPTY)],
            ELECTION,
        )
    },
    Scenario {
        hold: Duration::from_secs(15),
        needs: &[Need::StackedEtcd, Need::ThreeControlPlanes],
        ..one(
            "etcd-leader-disk-slow",
            16,
            "every fsync of the leading etcd member takes 300 ms longer",
            &[script(Target::EtcdLeader, SLOW, WELL)],
            ELECTION,
        )
    },
    Scenario {
        needs: &[Need::StackedEtcd, Need::ThreeControlPlanes],
        ..one(
            "etcd-disk-failing",
            17,
            "every fsync of a following etcd member ends with an I/O error",
            &[script(Target::EtcdFollower, FAILING, WELL)],
            HUNG,
        )
    },
    Scenario {
        needs: &[Need::StackedEtcd, Need::ThreeControlPlanes],
        ..one(
            "etcd-disk-read-only",
            17,
            "the file system under a following etcd member is read-only",
            &[script(Target::EtcdFollower, READ_ONLY, WRITABLE)],
            HUNG,
        )
    },
    Scenario {
        needs: &[Need::StackedEtcd, Need::ThreeControlPlanes],
        ..one(
            "etcd-disk-full",
            15,
            "the file system under a following etcd member is full",
            &[script(Target::EtcdFollower, FILL, EMPTY)],
            ELECTION,
        )
    },
    Scenario {
        needs: &[Need::OwnClock],
        ..one(
            "clock-skewed",
            18,
            "a control plane's clock is an hour ahead",
            &[script(
                Target::VipBackup,
                "timedatectl set-ntp false 2>/dev/null || true; date -s '+1 hour' >/dev/null",
                "date -s '-1 hour' >/dev/null; timedatectl set-ntp true 2>/dev/null || true",
            )],
            UNSEEN,
        )
    },
];
