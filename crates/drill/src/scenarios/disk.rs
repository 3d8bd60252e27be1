//! Disks and clocks.

use super::*;
use crate::scenario::Need;

/// The member's data moves to a small file system of its own, is served from there while that is full, and moves back
/// with everything it acknowledged meanwhile. Once the copy is whole, and marked so, it is what counts; before, what was
/// there is. A restart in between loses the copy: what was there must not start then, for a member that forgets what it
/// acknowledged can make others lose it, too. So it is put aside first.
const FILL: &str = "data=$(readlink -f {data}); aside=/run/quorate-drill/etcd
mounted() { grep -q \"^quorate-drill $1 \" /proc/mounts; }
if mounted $aside || mounted $data || [ -e $aside.copied ] || [ -e $data/quorate-drill.old ]; then
  echo 'an earlier drill of this disk was not taken back' >&2; exit 1
fi
stop etcd
mkdir -p $aside
size=$(($(du -sm $data | cut -f1) + 24))
mount -t tmpfs -o size=${size}m,mode=700 quorate-drill $aside
cp -a $data/. $aside/
touch $aside.copied
mv $data/member $data/quorate-drill.old
sync $data
mount --bind $aside $data
dd if=/dev/zero of=$data/quorate-drill.fill bs=64k 2>/dev/null || true
systemctl start --no-block etcd";
/// May be ended anywhere and begun again: there is always one whole copy that the next one finds, and what was there
/// before goes last. After a restart there is none.
const EMPTY: &str = "data=$(readlink -f {data}); aside=/run/quorate-drill/etcd
mounted() { grep -q \"^quorate-drill $1 \" /proc/mounts; }
if [ -e $aside.copied ]; then
  mounted $aside || { echo \"the member's data is no longer at $aside\" >&2; exit 1; }
  stop etcd
  rm -f $aside/quorate-drill.fill
  while mounted $data; do umount $data; done
  rm -rf $data/quorate-drill.new
  cp -a $aside/member $data/quorate-drill.new
  sync
  if [ -e $data/quorate-drill.old ]; then rm -rf $data/member
  elif [ -e $data/member ]; then mv $data/member $data/quorate-drill.old
  fi
  mv $data/quorate-drill.new $data/member
  sync
  rm $aside.copied
fi
if mounted $aside; then umount $aside; fi
if [ -e $data/quorate-drill.old ]; then
  [ -e $data/member/wal ] || echo 'the etcd member of {machine} lost its data when the machine restarted in the middle of a drill: `quorate apply` makes it a member again' >&2
  rm -rf $data/quorate-drill.old
fi
start etcd";

/// Only the mount made here is taken away: the directory may be a mount of its own, so they are counted.
const READ_ONLY: &str = "data=$(readlink -f {data}); mark=/run/quorate-drill/read-only
[ ! -e $mark ] || { echo 'an earlier drill of this disk was not taken back' >&2; exit 1; }
grep -c \" $data \" /proc/mounts > $mark || true
stop etcd
mount --bind $data $data
mount -o remount,bind,ro $data
start etcd";
const WRITABLE: &str = "data=$(readlink -f {data}); mark=/run/quorate-drill/read-only
if [ -e $mark ]; then
  if [ $(grep -c \" $data \" /proc/mounts) -gt $(cat $mark) ]; then stop etcd; umount $data; fi
  rm $mark
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

/// How far the clock is from the time since the start tells whether it is ahead: no matter how often it is taken back. The
/// hardware's clock stays right (the kernel sets it only while NTP does), so that a restart leaves NTP switched off, no more.
const AHEAD: &str = "mark=/var/lib/quorate/drill/clock
[ ! -e $mark ] || { echo 'an earlier drill of this clock was not taken back' >&2; exit 1; }
step() { echo $(($(date +%s) - $(cut -d. -f1 /proc/uptime))); }
ntp=$(timedatectl show --property=NTP --value 2>/dev/null) || ntp=no
echo ${ntp:-no} $(step) $(cat /proc/sys/kernel/random/boot_id) > $mark.new
mv $mark.new $mark
sync $mark ${mark%/*}
if [ ${ntp:-no} = yes ]; then timedatectl set-ntp false; fi
date -s '+1 hour' >/dev/null";
const IN_STEP: &str = "mark=/var/lib/quorate/drill/clock
step() { echo $(($(date +%s) - $(cut -d. -f1 /proc/uptime))); }
if [ -e $mark ]; then
  read -r ntp before boot < $mark
  if [ $boot = $(cat /proc/sys/kernel/random/boot_id) ] && [ $(($(step) - before)) -gt 1800 ]; then date -s '-1 hour' >/dev/null; fi
  if [ $ntp = yes ]; then timedatectl set-ntp true; fi
  rm $mark
fi";

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
            &[lasting(Target::VipBackup, ROOT_FULL, ROOT_EMPTY)],
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
        needs: &[Need::StackedEtcd, Need::EtcdUnit, Need::ThreeControlPlanes],
        ..one(
            "etcd-disk-read-only",
            17,
            "the file system under a following etcd member is read-only",
            &[script(Target::EtcdFollower, READ_ONLY, WRITABLE)],
            HUNG,
        )
    },
    Scenario {
        needs: &[Need::StackedEtcd, Need::EtcdUnit, Need::ThreeControlPlanes],
        ..one(
            "etcd-disk-full",
            15,
            "the file system under a following etcd member is full",
            &[lasting(Target::EtcdFollower, FILL, EMPTY)],
            ELECTION,
        )
    },
    Scenario {
        needs: &[Need::OwnClock],
        ..one(
            "clock-skewed",
            18,
            "a control plane's clock is an hour ahead",
            &[lasting(Target::VipBackup, AHEAD, IN_STEP)],
            UNSEEN,
        )
    },
];
