//! The systemd journal's size. Everything Quorate starts logs there, so this is the machines' log rotation; containers'
//! logs are rotated by the kubelet, the audit log by the API server.

use quorate_spec::Spec;

use super::settings::Settings;

pub(crate) fn settings(spec: &Spec) -> Settings {
    let text = spec.host.journal_max_mib.map(|mib| {
        format!(
            "# Written by Quorate (host.journalMaxMiB).\n[Journal]\nSystemMaxUse={mib}M\nRuntimeMaxUse={}M\n",
            // A machine without persistent journal keeps it in memory.
            mib.min(MEMORY_MIB)
        )
    });
    Settings {
        name: "journal",
        title: "limit the journal",
        files: vec![("/etc/systemd/journald.conf.d/quorate.conf", text)],
        blocks: Vec::new(),
        reload: &["systemctl", "restart", "systemd-journald.service"],
    }
}

const MEMORY_MIB: u32 = 128;
