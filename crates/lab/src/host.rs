//! What this computer offers to put machines in, found by looking.
//!
//! | found | a machine lives in |
//! |---|---|
//! | booted by systemd | a transient scope with `Delegate=yes` |
//! | cgroup v2 alone, no systemd | a group of its own below the root |
//! | cgroup v1 (with or without cgroup2 beside it), no systemd | a group of its own in every hierarchy |

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::{Error, Result};

/// Microseconds of each second for real-time threads of one machine: ten times what a VRRP thread takes, and small
/// enough for thirty machines, since the shares of all groups may not exceed the kernel's 95 %.
const REALTIME_SHARE: &str = "25000";
/// Controllers a machine's systemd and container runtime expect to be handed (cgroup v2 only).
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

#[derive(Clone, Debug)]
pub(crate) struct Host {
    pub(crate) systemd: bool,
    hierarchies: Vec<Hierarchy>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    unified: bool,
}

impl Host {
    pub(crate) fn detect() -> Result<Self> {
        let mounts = "/proc/self/mounts";
        let text = fs::read_to_string(mounts).map_err(Error::file("reading", mounts))?;
        Ok(Self {
            systemd: Path::new("/run/systemd/system").is_dir(),
            hierarchies: hierarchies(&text),
        })
    }

    /// Root and the programs everything else here runs.
    pub(crate) fn require(&self) -> Result<()> {
        if crate::sys::effective_uid() != 0 {
            return Err(Error::NotRoot);
        }
        let needed = [
            ("systemd-nspawn", "systemd-container"),
            ("ip", "iproute2"),
            ("unshare", "util-linux"),
            ("setsid", "util-linux"),
            ("mount", "mount"),
            ("chroot", "coreutils"),
            ("ssh", "openssh-client"),
            ("ssh-keygen", "openssh-client"),
        ];
        for (program, package) in needed {
            if command::find(program).is_none() {
                return Err(Error::MissingProgram { program, package });
            }
        }
        Ok(())
    }

    /// Whether machines see cgroup v2 alone.
    pub(crate) fn unified(&self) -> bool {
        self.hierarchies.iter().all(|h| h.unified)
    }

    /// The groups a machine's processes are in, one per hierarchy. They may not exist.
    pub(crate) fn groups(&self, unit: &str) -> Vec<PathBuf> {
        self.hierarchies
            .iter()
            .map(|h| {
                if self.systemd {
                    h.mount.join("system.slice").join(format!("{unit}.scope"))
                } else {
                    h.mount.join(unit)
                }
            })
            .collect()
    }

    /// Units whose groups exist and whose name begins with `prefix`.
    pub(crate) fn units(&self, prefix: &str) -> Vec<String> {
        let mut units: Vec<String> = self
            .groups("x")
            .iter()
            .filter_map(|group| fs::read_dir(group.parent()?).ok())
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| name.starts_with(prefix))
            .map(|name| name.trim_end_matches(".scope").to_owned())
            .collect();
        units.sort();
        units.dedup();
        units
    }

    /// Makes the groups; on a systemd host the scope is systemd's to make.
    pub(crate) fn make_groups(&self, unit: &str) -> Result<()> {
        if self.systemd {
            return Ok(());
        }
        for (hierarchy, group) in self.hierarchies.iter().zip(self.groups(unit)) {
            if hierarchy.unified {
                for controller in CONTROLLERS {
                    // Not every kernel has each, and in a container the root group may refuse.
                    let _ = fs::write(hierarchy.mount.join("cgroup.subtree_control"), format!("+{controller}"));
                }
            }
            match fs::create_dir(&group) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::file("making the control group", group)(e));
                }
                _ => {}
            }
            // A v1 cpuset takes no process before it has been given processors and memory nodes.
            for file in ["cpuset.cpus", "cpuset.mems"] {
                if let Ok(value) = fs::read_to_string(hierarchy.mount.join(file))
                    && !hierarchy.unified
                {
                    fs::write(group.join(file), value).map_err(Error::file("writing", group.join(file)))?;
                }
            }
            // With CONFIG_RT_GROUP_SCHED a v1 group has no real-time share unless given one, and the agent's VRRP
            // thread would be at the mercy of whatever else runs here. Other kernels have no such file.
            let _ = fs::write(group.join("cpu.rt_runtime_us"), REALTIME_SHARE);
        }
        Ok(())
    }
}

/// Lets go of a unit whose processes are gone, so that its name can be used again at once.
pub(crate) fn forget(host: &Host, unit: &str) {
    if host.systemd {
        let mut stop = Command::new("systemctl");
        // systemd has mostly noticed by itself.
        let _ = command::run(stop.args(["--quiet", "stop"]).arg(format!("{unit}.scope")), "");
    }
    for group in host.groups(unit) {
        remove_below(&group);
    }
}

/// Processes in the groups and below.
pub(crate) fn processes(groups: &[PathBuf]) -> Vec<u32> {
    let mut pids: Vec<u32> = groups.iter().flat_map(|g| processes_below(g)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids
}

/// SIGKILL to everything in the groups and below: at once where the kernel can (`cgroup.kill`, Linux 5.14), and one
/// by one what is not in such a group, or not yet.
pub(crate) fn kill(groups: &[PathBuf]) -> io::Result<()> {
    for group in groups {
        let file = group.join("cgroup.kill");
        if file.exists() {
            fs::write(file, "1")?;
        }
    }
    processes(groups).into_iter().try_for_each(crate::sys::kill)
}

fn processes_below(group: &Path) -> Vec<u32> {
    let mut pids: Vec<u32> = fs::read_to_string(group.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for child in children(group) {
        pids.extend(processes_below(&child));
    }
    pids
}

/// Deepest first: a group with others in it cannot go.
fn remove_below(group: &Path) {
    for child in children(group) {
        remove_below(&child);
    }
    // Nothing there, or in use again: either way not ours to remove.
    let _ = fs::remove_dir(group);
}

fn children(group: &Path) -> Vec<PathBuf> {
    fs::read_dir(group)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Later mounts of the same hierarchy (bind mounts in containers) are left out: the first is the one systemd uses.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut found: Vec<(String, Hierarchy)> = Vec::new();
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, mount, kind @ ("cgroup" | "cgroup2"), options, ..] = fields[..] else {
            continue;
        };
        let mut controllers: Vec<&str> = options
            .split(',')
            .filter(|o| !["rw", "ro", "relatime", "nosuid", "nodev", "noexec"].contains(o))
            .collect();
        controllers.sort_unstable();
        let key = if kind == "cgroup2" {
            "2".to_owned()
        } else {
            controllers.join(",")
        };
        if found.iter().all(|(k, _)| *k != key) {
            let hierarchy = Hierarchy {
                mount: mount.into(),
                unified: kind == "cgroup2",
            };
            found.push((key, hierarchy));
        }
    }
    found.into_iter().map(|(_, hierarchy)| hierarchy).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(mounts: &str, systemd: bool) -> Host {
        Host {
            systemd,
            hierarchies: hierarchies(mounts),
        }
    }

    #[test]
    fn an_ordinary_laptop() {
        let host = host(
            "sysfs /sys sysfs rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nodev,noexec,relatime,nsdelegate 0 0\n",
            true,
        );
        assert!(host.unified());
        assert_eq!(
            host.groups("quorate-demo.m1"),
            [PathBuf::from("/sys/fs/cgroup/system.slice/quorate-demo.m1.scope")]
        );
    }

    #[test]
    fn many_hierarchies_without_systemd() {
        let host = host(
            "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
             cgroup /sys/fs/cgroup/cpu cgroup rw,relatime,cpu 0 0\n\
             cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,name=systemd 0 0\n\
             cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0\n\
             cgroup /elsewhere cgroup ro,relatime,cpu 0 0\n",
            false,
        );
        assert!(!host.unified());
        assert_eq!(
            host.groups("quorate-demo.m1"),
            [
                "/sys/fs/cgroup/cpu/quorate-demo.m1",
                "/sys/fs/cgroup/systemd/quorate-demo.m1",
                "/sys/fs/cgroup/unified/quorate-demo.m1"
            ]
            .map(PathBuf::from)
        );
    }
}
