//! Where each row of the fault matrix is shown: by drills, by tests, or not yet.

use std::fmt::Write;

use crate::scenario;

/// A row of the fault matrix.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    pub number: u8,
    pub fault: &'static str,
    /// Tests that show it besides drills, or why nothing does yet. Empty: drills only.
    pub also: &'static str,
}

/// All 36, in order.
pub fn rows() -> &'static [Row] {
    &ROWS
}

impl Row {
    /// Its scenarios' names.
    pub fn scenarios(&self) -> Vec<&'static str> {
        scenario::all()
            .filter(|scenario| scenario.row == self.number)
            .map(|scenario| scenario.name)
            .collect()
    }

    /// Drills and tests, in words.
    pub fn shown(&self) -> String {
        let scenarios = self.scenarios();
        let drills = if scenarios.is_empty() {
            String::new()
        } else {
            format!("drill {}", scenarios.join(", "))
        };
        [drills.as_str(), self.also]
            .into_iter()
            .filter(|part| !part.is_empty())
            .collect::<Vec<_>>()
            .join("; ")
    }
}

/// docs/reference/drills.md.
pub fn document() -> String {
    let mut text = String::from(
        "# Drills\n\n\
         Written by `crates/drill/src/coverage.rs`; a test keeps it up to date.\n\n\
         ## Scenarios\n\n\
         Limits are for one drill in a lab of five machines on one computer. *Worst* is the slowest new connection, *outage* the longest time without an answered one, \
         *failed* those without a good answer within five seconds; *reused* the last two for requests that share one HTTP/2 connection, *watch* the longest way of an acknowledged write to a watch, *writes* the longest time without an acknowledged one. *VIP* and *leases* (of kube-controller-manager and kube-scheduler) say how often they may move; *two owners* how long two machines may have the VIP while the fault is there.\n\n\
         | scenario | row | what | held for | worst | outage | failed | reused: outage | failed | watch | writes | VIP | two owners | leases | green within | |\n|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|---|--:|---|--:|---|\n",
    );
    for scenario in scenario::all() {
        let limit =
            |limit: Option<u64>, unit: &str| limit.map_or("reported".to_owned(), |limit| format!("{limit}{unit}"));
        let limits = scenario.limits;
        let note = match (scenario.loses_quorum, scenario.short) {
            (true, _) => "needs `--allow-outage`",
            (_, true) => "part of `--short`",
            _ => "",
        };
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} s | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} s | {note} |",
            scenario.name,
            scenario.row,
            scenario.what,
            scenario.hold.as_secs(),
            limit(limits.new_worst_ms, " ms"),
            limit(limits.new_outage_ms, " ms"),
            limit(limits.new_failed, ""),
            limit(limits.reused_outage_ms, " ms"),
            limit(limits.reused_failed, ""),
            limit(limits.watch_worst_ms, " ms"),
            limit(limits.write_outage_ms, " ms"),
            limits.vip,
            limit(limits.vip_shared_ms, " ms"),
            limits.leases,
            limits.recovery_s
        );
    }
    text.push_str("\nAfter every scenario: all checks of `quorate status` hold again, etcd's member list is that of the cluster file, the VIP had never two owners for longer than half a second once the fault was gone, every acknowledged write is there, and at least one was acknowledged unless the whole API was to be away. All measuring clients must have been heard of.\n");
    text.push_str("\n*With its holder* is: if whoever holds it is one of the machines the fault is on; else it must stay. A lease whose holder is killed, or loses its power, must be another process's in time: the lease's duration, twice the longest pause between two looks of who would take it (15 s and 2 × 4.4 s with upstream's flags; those of the cluster file count), and a second to see it. Nothing is broken before both leases were seen to be renewed, for up to 30 s.\n");
    text.push_str("\nEvery fault is taken back by a timer on its machine if the operator is gone. A fault that outlasts a restart (wiped data, full disks, a skewed clock, expired certificates, a node cordoned with `--power sysrq`) is taken back by a unit at boot as well. Data that a member had on a disk that was only in memory is lost with the power, and so is what a wiped member was when it has begun anew: the journal of the machine says so, and `quorate apply` makes it a member again.\n");
    text.push_str("\nWhat a machine had taken when it lost its power, no other can answer: only the client's own time-out ends such a request. Reads that were under way then count as failed, in `interrupted` besides, and are allowed, up to five on new and five on reused connections; the report says how many there were. They do not count against *worst*.\n");
    text.push_str("\nWhere the VIP moves, a client's first packet that is lost meanwhile is sent again after exactly one second (RFC 6298 §2.1), whatever servers do. The limit stays the promised 1000 ms: a drill that met such a packet says that it did not hold.\n");
    text.push_str("\nOn a cluster that does not survive the loss of one control plane or etcd member, every scenario on one of them needs `--allow-outage`, and nothing is promised but that all checks hold again.\n");
    text.push_str("\nA scenario that a machine or cluster cannot have (no `strace`, no `/dev/net/tun`, no disk or clock of its own, static Pods that do not stay stopped) is in the report with `skipped` and a `why` of `skipped: reason`. It has neither held nor failed.\n");
    text.push_str("\n## Fault matrix\n\n");
    text.push_str(&matrix());
    text
}

/// The rows as a table; also in SPECIFICATION.md.
pub fn matrix() -> String {
    let mut text = String::from("| row | fault | shown by |\n|--:|---|---|\n");
    for row in rows() {
        let _ = writeln!(text, "| {} | {} | {} |", row.number, row.fault, row.shown());
    }
    text
}

const fn row(number: u8, fault: &'static str, also: &'static str) -> Row {
    Row { number, fault, also }
}

const ROWS: [Row; 36] = [
    row(1, "API server, controller manager or scheduler killed or stopped", ""),
    row(2, "etcd leader or follower killed", ""),
    row(3, "API server hung, port open", ""),
    row(4, "etcd member frozen", ""),
    row(
        5,
        "balancer that holds the VIP frozen",
        "tests of crate agent: supervise, vrrp",
    ),
    row(
        6,
        "balancer killed with the VIP on the interface",
        "tests of crate agent: vrrp",
    ),
    row(7, "power of a machine cut, or taken away in order", ""),
    row(8, "power of the whole cluster cut", ""),
    row(9, "symmetric partition", "tests of crate lb: vrrp simulated"),
    row(10, "one-way partition", "tests of crate lb: vrrp simulated"),
    row(11, "bridge partition", ""),
    row(12, "only VRRP blocked", "tests of crate agent: vrrp"),
    row(13, "client network well and etcd's cut, and the reverse", ""),
    row(14, "packets lost, late and out of order", ""),
    row(15, "disk full under etcd, under / and under the audit log", ""),
    row(16, "slow fsync", ""),
    row(17, "read-only file system, I/O errors", ""),
    row(
        18,
        "clock skew",
        "tests of crates spec and verify (preflight) for what is refused",
    ),
    row(
        19,
        "certificates expired, not yet valid, with wrong names or of another authority",
        "tests of crate pki (every judgement of the inventory) and of crate plan (what is issued again)",
    ),
    row(
        20,
        "data lost; corrupt configuration, state, journal or binary",
        "tests of crate run (journal with a torn tail) and of crate machine (blobs by hash)",
    ),
    row(21, "VIP on a stranger's interface", "tests of crate agent: arp"),
    row(
        22,
        "VRID of a stranger",
        "tests of crate lb: authentication; of crate agent: vrrp",
    ),
    row(
        23,
        "installation stopped after any step",
        "tests of crate run: executor on fake machines",
    ),
    row(
        24,
        "operator's computer dies in the middle of an apply",
        "tests of crate run: executor and lock; of crate machine: lock",
    ),
    row(
        25,
        "SSH lost in the middle of a command or upload",
        "tests of crate machine: ssh against a real sshd, uploads that go on",
    ),
    row(
        26,
        "host key changed or unknown",
        "tests of crate machine: ssh against a real sshd",
    ),
    row(
        27,
        "sudo missing or asking, umask, noexec",
        "tests of crate machine: ssh against a real sshd",
    ),
    row(28, "ports in use", "tests of crate verify: preflight"),
    row(
        29,
        "time-outs everywhere",
        "tests of crate machine: waits and deadlines; of crate bundle: downloads",
    ),
    row(
        30,
        "leftover clusters, swap, old kernels, firewalls",
        "tests of crates plan and verify: preflight",
    ),
    row(31, "processors starved; memory: not yet", ""),
    row(32, "a majority lost, and back; lost for good: waits for backups", ""),
    row(33, "upgrade interrupted", "waits for upgrades"),
    row(
        34,
        "neighbours with a stale idea of the VIP",
        "tests of crate lb: announcements; every drill measures from machines that do not hold the VIP",
    ),
    row(
        35,
        "IPVS or BPF objects lost",
        "tests of crate agent: ebpf, ipvs in a virtual machine",
    ),
    row(36, "what is not in the data path dies; the console: waits for it", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_shown_or_says_why_not() {
        for (index, row) in rows().iter().enumerate() {
            assert_eq!(usize::from(row.number), index + 1);
            assert!(!row.shown().is_empty(), "row {}", row.number);
        }
        assert!(scenario::all().all(|scenario| (1..=36).contains(&scenario.row)));
    }

    /// `UPDATE_DOCS=1 cargo test -p quorate-drill` writes it.
    #[test]
    fn the_documents_are_up_to_date() {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let specification = format!("{root}/SPECIFICATION.md");
        let is = std::fs::read_to_string(&specification).unwrap_or_default();
        let (before, rest) = is.split_once(BEGINS).expect("the matrix begins");
        let (_, after) = rest.split_once(ENDS).expect("the matrix ends");
        let wanted = [
            (format!("{root}/docs/reference/drills.md"), document()),
            (specification, format!("{before}{BEGINS}\n{}{ENDS}{after}", matrix())),
        ];
        for (path, wanted) in wanted {
            if std::env::var_os("UPDATE_DOCS").is_some() {
                std::fs::write(&path, &wanted).unwrap();
            }
            let is = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(is == wanted, "{path}: UPDATE_DOCS=1 cargo test -p quorate-drill");
        }
    }

    const BEGINS: &str = "<!-- Fault matrix: written by crates/drill/src/coverage.rs -->";
    const ENDS: &str = "<!-- Fault matrix ends -->";
}
