//! Kernel limits that all machines of all labs share with this computer.
//!
//! A container has no inotify limits of its own, and a few machines with a kubelet each use up the kernel's 128 instances:
//! systemd then says "Too many open files" and kubelets do not start. The limit is raised while labs are up, and put back
//! when the last one goes.

use std::fs;

const INSTANCES: &str = "/proc/sys/fs/inotify/max_user_instances";
/// Kept here rather than with a lab: it outlives any one of them. Gone after a reboot, as the changed limit is.
const BEFORE: &str = "/run/quorate/inotify-instances";
const ENOUGH: u64 = 8_192;

/// Best effort: without the right to it a small lab works all the same.
pub(crate) fn raise() {
    let Some(now) = read(INSTANCES).filter(|now| *now < ENOUGH) else {
        return;
    };
    if fs::write(BEFORE, now.to_string()).is_ok() {
        let _ = fs::write(INSTANCES, ENOUGH.to_string());
    }
}

/// Called when a lab is gone; `others`: labs that are still there.
pub(crate) fn restore(others: usize) {
    if others == 0
        && let Some(before) = read(BEFORE)
    {
        let _ = fs::write(INSTANCES, before.to_string());
        let _ = fs::remove_file(BEFORE);
    }
}

fn read(path: &str) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}
