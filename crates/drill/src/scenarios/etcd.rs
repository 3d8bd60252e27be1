//! etcd members.

use super::*;
use crate::scenario::Need;

const CUT: &str = "nft 'table inet quorate_drill {
  chain in { type filter hook prerouting priority -300; tcp dport 2380 ip saddr { {others} } drop; tcp sport 2380 ip saddr { {others} } drop; }
  chain out { type filter hook postrouting priority 300; tcp dport 2380 ip daddr { {others} } drop; tcp sport 2380 ip daddr { {others} } drop; }
}'";

/// Never moved back once the member has a log of its own again: two histories of one member may vote twice.
const WIPE: &str = "stop etcd
mv {data}/member {data}/quorate-drill.kept
start etcd";
const UNWIPE: &str = "if [ -d {data}/quorate-drill.kept ] && [ ! -e {data}/member/wal ]; then
  stop etcd; rm -rf {data}/member; mv {data}/quorate-drill.kept {data}/member
fi
if [ -d {data}/quorate-drill.kept ]; then
  echo 'what the etcd member of {machine} had before a drill is gone, for it has begun anew: if it is no member now, `quorate apply` makes it one again' >&2
  rm -rf {data}/quorate-drill.kept
fi
start etcd";

pub(super) const ALL: [Scenario; 8] = [
    Scenario {
        needs: &[Need::StackedEtcd, Need::EtcdUnit, Need::ThreeControlPlanes],
        ..one(
            "etcd-data-wiped",
            20,
            "a following etcd member loses its data; `apply` makes it a member again",
            &[Part {
                target: Target::EtcdFollower,
                fault: Fault::Applied {
                    inject: WIPE,
                    otherwise: UNWIPE,
                },
            }],
            HUNG,
        )
    },
    one(
        "etcd-follower-killed",
        2,
        "a following etcd member gets SIGKILL",
        &[script(Target::EtcdFollower, "signal KILL etcd", "start etcd")],
        UNSEEN,
    ),
    one(
        "etcd-leader-killed",
        2,
        "the leading etcd member gets SIGKILL",
        &[script(Target::EtcdLeader, "signal KILL etcd", "start etcd")],
        ELECTION,
    ),
    one(
        "etcd-leader-hung",
        4,
        "the leading etcd member is frozen",
        &[script(Target::EtcdLeader, "signal STOP etcd", "thaw etcd")],
        ELECTION,
    ),
    one(
        "etcd-follower-hung",
        4,
        "a following etcd member is frozen",
        &[script(Target::EtcdFollower, "signal STOP etcd", "thaw etcd")],
        HUNG,
    ),
    one(
        "etcd-leader-cut",
        13,
        "the leading etcd member's peer traffic is dropped, everything else passes",
        &[script(Target::EtcdLeader, CUT, "undo")],
        ELECTION,
    ),
    one(
        "etcd-follower-cut",
        13,
        "a following etcd member's peer traffic is dropped, everything else passes",
        &[script(Target::EtcdFollower, CUT, "undo")],
        HUNG,
    ),
    Scenario {
        loses_quorum: true,
        needs: &[Need::EtcdUnit],
        ..one(
            "etcd-quorum-lost",
            32,
            "etcd is stopped on a majority of its members, and comes back",
            &[script(Target::EtcdMajority, "stop etcd", "start etcd")],
            BACK,
        )
    },
];
