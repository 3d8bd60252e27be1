//! The host itself: system, hardware, clock, cgroups, privileges.

use std::{fs, path::Path, time::SystemTime};

use quorate_facts::{CgroupFacts, CgroupVersion, ClockFacts, HostFacts, MountFacts, OsFacts, Privilege, SecurityFacts};
use rustix::{
    fs::statvfs,
    process::geteuid,
    system::uname,
    time::{ClockId, clock_gettime},
};

use super::super::{adjtimex, procfs};

pub(super) fn fill(facts: &mut HostFacts) {
    let uname = uname();
    let line = |path: &str| procfs::text(path).trim().to_owned();
    let some = |text: String| if text.is_empty() { None } else { Some(text) };
    facts.hostname = uname.nodename().to_string_lossy().into_owned();
    facts.kernel = uname.release().to_string_lossy().into_owned();
    facts.arch = uname.machine().to_string_lossy().into_owned();
    facts.os = os(&procfs::text(if Path::new("/etc/os-release").exists() {
        "/etc/os-release"
    } else {
        "/usr/lib/os-release"
    }));
    facts.cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
    facts.memory_bytes = procfs::meminfo("MemTotal");
    facts.swaps = procfs::swaps();
    facts.machine_id = line("/etc/machine-id");
    facts.product_uuid = some(line("/sys/class/dmi/id/product_uuid").to_lowercase());
    facts.boot_id = line("/proc/sys/kernel/random/boot_id");
    let uptime = clock_gettime(ClockId::Boottime);
    facts.uptime_ms = uptime.tv_sec as u64 * 1000 + uptime.tv_nsec as u64 / 1_000_000;
    facts.container = some(line("/run/systemd/container")).or_else(|| some(line("/run/host/container-manager")));
    facts.clock = ClockFacts {
        unix_ns: now_ns(),
        synchronized: adjtimex::synchronized(),
        service: None,
    };
    facts.mounts = mounts();
    facts.cgroup = cgroup(&facts.mounts);
    facts.capabilities = procfs::capabilities(procfs::capability_bits("CapBnd"));
    facts.oom_score_adj_writable = oom_score_adj_writable();
    facts.conntrack_writable = writable("/proc/sys/net/netfilter/nf_conntrack_max");
    facts.user_namespace = procfs::text("/proc/self/uid_map")
        .split_whitespace()
        .collect::<Vec<_>>()
        != ["0", "0", "4294967295"];
    facts.privilege = Privilege {
        uid: geteuid().as_raw(),
        sudo_user: std::env::var("SUDO_USER").ok(),
    };
    facts.security = SecurityFacts {
        selinux: match line("/sys/fs/selinux/enforce").as_str() {
            "1" => Some("enforcing".into()),
            "0" => Some("permissive".into()),
            _ => None,
        },
        apparmor: line("/sys/module/apparmor/parameters/enabled") == "Y",
    };
    facts.dns_servers = procfs::text("/etc/resolv.conf")
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next())
        .map(str::to_owned)
        .collect();
}

pub(super) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos() as u64)
}

/// os-release(5).
fn os(text: &str) -> OsFacts {
    let value = |key: &str| {
        let line = text
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
    };
    OsFacts {
        id: value("ID"),
        id_like: value("ID_LIKE").split_whitespace().map(str::to_owned).collect(),
        version_id: value("VERSION_ID"),
        pretty_name: value("PRETTY_NAME"),
    }
}

/// Sizes only of local file systems: asking a dead network server would hang.
fn mounts() -> Vec<MountFacts> {
    const LOCAL: [&str; 10] = [
        "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "overlay", "tmpfs", "vfat",
    ];
    let mut mounts = procfs::mounts();
    for mount in mounts.iter_mut().filter(|mount| LOCAL.contains(&mount.fstype.as_str())) {
        if let Ok(size) = statvfs(mount.target.as_str()) {
            mount.total_bytes = size.f_blocks * size.f_frsize;
            mount.free_bytes = size.f_bavail * size.f_frsize;
        }
    }
    mounts
}

/// cgroups(7): v2 if /sys/fs/cgroup itself is a cgroup2 file system, as systemd and the kubelet decide it.
fn cgroup(mounts: &[MountFacts]) -> CgroupFacts {
    const V1_CONTROLLERS: [&str; 12] = [
        "blkio",
        "cpu",
        "cpuacct",
        "cpuset",
        "devices",
        "freezer",
        "hugetlb",
        "memory",
        "net_cls",
        "net_prio",
        "perf_event",
        "pids",
    ];
    let is_rw = |mount: &MountFacts| mount.options.iter().any(|option| option == "rw");
    if let Some(unified) = mounts
        .iter()
        .rev()
        .find(|mount| mount.target == "/sys/fs/cgroup" && mount.fstype == "cgroup2")
    {
        let controllers = procfs::text("/sys/fs/cgroup/cgroup.controllers");
        return CgroupFacts {
            version: CgroupVersion::V2,
            controllers: controllers.split_whitespace().map(str::to_owned).collect(),
            read_only: Vec::new(),
            writable: is_rw(unified),
        };
    }
    let mut facts = CgroupFacts {
        version: CgroupVersion::V1,
        ..CgroupFacts::default()
    };
    for controller in V1_CONTROLLERS {
        let mounted = mounts
            .iter()
            .rev()
            .find(|mount| mount.fstype == "cgroup" && mount.options.iter().any(|option| option == controller));
        if let Some(mount) = mounted {
            facts.controllers.push(controller.to_owned());
            if !is_rw(mount) {
                facts.read_only.push(controller.to_owned());
            }
        }
    }
    facts.writable = facts.read_only.is_empty() && !facts.controllers.is_empty();
    facts
}

/// Tried on this very process: lowering needs CAP_SYS_RESOURCE in the first user namespace, raising back never fails.
fn oom_score_adj_writable() -> bool {
    const PATH: &str = "/proc/self/oom_score_adj";
    let Ok(present) = procfs::text(PATH).trim().parse::<i32>() else {
        return false;
    };
    if present <= -1000 {
        return true;
    }
    let lowered = fs::write(PATH, (present - 1).to_string()).is_ok();
    if lowered {
        let _ = fs::write(PATH, present.to_string());
    }
    lowered
}

fn writable(path: &str) -> bool {
    fs::OpenOptions::new().write(true).open(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_os_release() {
        let facts = os("PRETTY_NAME=\"Ubuntu 24.04 LTS\"\nVERSION_ID=\"24.04\"\nID=ubuntu\nID_LIKE='debian'\n");
        assert_eq!(
            (facts.id.as_str(), facts.version_id.as_str(), facts.id_like),
            ("ubuntu", "24.04", vec!["debian".to_owned()])
        );
    }

    #[test]
    fn cgroups_of_both_kinds() {
        let mount = |target: &str, fstype: &str, options: &str| MountFacts {
            target: target.into(),
            fstype: fstype.into(),
            options: options.split(',').map(str::to_owned).collect(),
            ..MountFacts::default()
        };
        let v1 = cgroup(&[
            mount("/sys/fs/cgroup/unified", "cgroup2", "rw"),
            mount("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "ro,cpu,cpuacct"),
            mount("/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
        ]);
        assert_eq!((v1.version, v1.writable), (CgroupVersion::V1, false));
        assert_eq!(
            (v1.controllers, v1.read_only),
            (
                vec!["cpu".to_owned(), "cpuacct".into(), "memory".into()],
                vec!["cpu".to_owned(), "cpuacct".into()]
            )
        );
        let v2 = cgroup(&[mount("/sys/fs/cgroup", "cgroup2", "ro,nsdelegate")]);
        assert_eq!((v2.version, v2.writable), (CgroupVersion::V2, false));
    }
}
