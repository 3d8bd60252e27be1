//! Kernel settings IPVS needs here. What they were before is noted with the interface of the virtual addresses, so that
//! whoever removes it, this process or a later one, can put them back; a restart of the machine forgets both.

use std::collections::BTreeMap;
use std::io;

use super::{Error, Report};

/// With their reasons.
const WANTED: [(&str, &str); 2] = [
    // Otherwise packets to a destination that was deleted vanish, and its clients wait for their time-outs.
    ("expire_nodest_conn", "1"),
    // Otherwise netfilter does not see IPVS connections and cannot masquerade them.
    ("conntrack", "1"),
];
/// The services in the calling thread's network namespace, of all protocols.
const TABLE: &str = "/proc/thread-self/net/ip_vs";
/// How a service's line begins there (net/netfilter/ipvs/ip_vs_ctl.c, `ip_vs_info_seq_show`).
const SERVICE: [&str; 4] = ["TCP ", "UDP ", "SCTP", "FWM "];

/// What the settings were before they were changed here; nothing where that is not known.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Before(BTreeMap<&'static str, String>);

impl Before {
    /// As they are now.
    pub(super) fn found() -> Self {
        Self(
            WANTED
                .iter()
                .filter_map(|(name, _)| Some((*name, read(name).ok()?)))
                .collect(),
        )
    }

    /// Reads what [`Before::note`] wrote.
    pub(super) fn from_note(note: &str) -> Self {
        let value = |name: &str| {
            note.split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .map(str::to_owned)
        };
        Self(
            WANTED
                .iter()
                .filter_map(|(name, _)| Some((*name, value(name)?)))
                .collect(),
        )
    }

    /// In words, for people as well.
    pub(super) fn note(&self) -> String {
        let values = self.0.iter().map(|(name, value)| format!(" {name}={value}"));
        format!("quorate; net.ipv4.vs before:{}", values.collect::<String>())
    }

    /// Puts them back. They stay where others have services in the table: kube-proxy sets the same ones, and only when it
    /// starts.
    pub(super) fn put_back(&self, report: &mut Report) {
        let others = std::fs::read_to_string(TABLE).is_ok_and(|table| has_services(&table));
        if !others {
            set(self.0.iter().map(|(name, value)| (*name, value.as_str())), report);
        }
    }
}

/// Sets what is needed.
pub(super) fn ensure(report: &mut Report) {
    set(WANTED, report);
}

fn set<'a>(values: impl IntoIterator<Item = (&'a str, &'a str)>, report: &mut Report) {
    for (name, value) in values {
        if read(name).is_ok_and(|current| current == value) {
            continue;
        }
        let path = path(name);
        match std::fs::write(&path, value) {
            Ok(()) => report.changes.push(format!("set net.ipv4.vs.{name} = {value}")),
            Err(source) => report.errors.push(Error::Setting { path, source }.to_string()),
        }
    }
}

fn read(name: &str) -> io::Result<String> {
    std::fs::read_to_string(path(name)).map(|text| text.trim().to_owned())
}

fn path(name: &str) -> String {
    format!("/proc/sys/net/ipv4/vs/{name}")
}

fn has_services(table: &str) -> bool {
    table
        .lines()
        .any(|line| SERVICE.iter().any(|protocol| line.starts_with(protocol)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_back() {
        let before = Before([("conntrack", "0".to_owned()), ("expire_nodest_conn", "1".to_owned())].into());
        let note = before.note();
        assert_eq!(note, "quorate; net.ipv4.vs before: conntrack=0 expire_nodest_conn=1");
        assert_eq!(Before::from_note(&note), before);
    }

    #[test]
    fn without_a_note_nothing_is_known() {
        assert_eq!(Before::from_note(""), Before::default());
        assert_eq!(Before::from_note("somebody else's conntrack"), Before::default());
    }

    #[test]
    fn services_of_any_kind_are_seen() {
        let header = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port Forward Weight ActiveConn InActConn\n";
        assert!(!has_services(header));
        for line in [
            "TCP  0A600001:01BB rr  ",
            "UDP  0A60000A:0035 rr  ",
            "FWM  00000001 rr  ",
        ] {
            assert!(has_services(&format!("{header}{line}\n")), "{line}");
        }
    }
}
