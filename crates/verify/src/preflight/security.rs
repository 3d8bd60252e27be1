//! SELinux and AppArmor, as they are. Quorate changes neither.

use quorate_facts::HostFacts;
use quorate_spec::Machine;

use super::{Input, List};

pub(super) fn check(_: &Input<'_>, machine: &Machine, host: &HostFacts, list: &mut List) {
    let name = machine.name.as_str();
    match host.security.selinux.as_deref() {
        // Programs lie in the blob store, whose default label systemd may not start programs from.
        Some("enforcing") => list.warn(
            "selinux",
            name,
            "enforcing; Quorate labels no files",
            "semanage fcontext -a -t bin_t '/var/lib/quorate/(bin|blobs)(/.*)?' before apply, or set it to permissive",
        ),
        Some(mode) => list.note("selinux", name, Ok(mode.into())),
        None => {}
    }
    if host.security.apparmor {
        list.note("apparmor", name, Ok("on; containerd's default profile is used".into()));
    }
}
