//! systemd unit files.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::profile::Profile;

/// Flags of one program, sorted by name so that a unit's text depends on nothing but its content.
#[derive(Clone, Debug, Default)]
pub(crate) struct Flags(BTreeMap<String, String>);

impl Flags {
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    /// The user's `extraArgs` win over ours.
    pub(crate) fn extend<'a>(&mut self, extra: impl IntoIterator<Item = (&'a String, &'a String)>) -> &mut Self {
        for (name, value) in extra {
            self.set(name.trim_start_matches('-'), value);
        }
        self
    }

    /// By name, sorted.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// `ExecStart=` with a flag per line; `%` and `$` doubled, since systemd expands both.
    fn exec_start(&self, program: &str) -> String {
        let mut line = format!("ExecStart={program}");
        for (name, value) in &self.0 {
            let value = value.replace('%', "%%").replace('$', "$$");
            let quote = if value.contains([' ', '"', '\\']) { "\"" } else { "" };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"");
            let _ = write!(line, " \\\n  {quote}--{name}={value}{quote}");
        }
        line
    }
}

/// A long-running program under systemd.
pub(crate) struct Unit<'a> {
    pub(crate) description: &'a str,
    pub(crate) documentation: &'a str,
    /// Units this one starts after.
    pub(crate) after: &'a [&'a str],
    pub(crate) program: String,
    pub(crate) flags: Flags,
    pub(crate) notify: bool,
    /// More lines of `[Service]`, in order.
    pub(crate) service: Vec<String>,
    /// Score for the kernel's out-of-memory killer, where it may be set.
    pub(crate) oom_score: i32,
    /// Open files wanted; lowered to what the machine allows.
    pub(crate) files: u64,
}

impl Unit<'_> {
    pub(crate) fn render(&self, profile: &Profile) -> String {
        let mut text = String::from("# Written by quorate; changed by `quorate apply`.\n[Unit]\n");
        let _ = writeln!(text, "Description={}", self.description);
        let _ = writeln!(text, "Documentation={}", self.documentation);
        let after = ["network-online.target"]
            .iter()
            .chain(self.after)
            .copied()
            .collect::<Vec<_>>()
            .join(" ");
        // After, but not Wants: a unit that is stopped on purpose must not be pulled up again by one that restarts.
        let _ = writeln!(text, "After={after}\nWants=network-online.target");
        // Never give up: a control plane that stays down after a bad night is worse than one that retries.
        text.push_str("StartLimitIntervalSec=0\n\n[Service]\n");
        text.push_str(if self.notify { "Type=notify\n" } else { "Type=simple\n" });
        for line in &self.service {
            let _ = writeln!(text, "{line}");
        }
        let _ = writeln!(text, "{}", self.flags.exec_start(&self.program));
        text.push_str("Restart=always\nRestartSec=1\n");
        // Start-up may wait for a quorum; killing it for slowness would only prolong that.
        text.push_str("TimeoutStartSec=infinity\n");
        if let Some(limit) = profile.file_limit {
            let _ = writeln!(text, "LimitNOFILE={}", self.files.min(limit));
        } else {
            let _ = writeln!(text, "LimitNOFILE={}", self.files);
        }
        if profile.oom_adjustable && self.oom_score != 0 {
            let _ = writeln!(text, "OOMScoreAdjust={}", self.oom_score);
        }
        text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
        text
    }
}
