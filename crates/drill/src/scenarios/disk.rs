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

pub(super) const ALL: [Scenario; 2] = [
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
