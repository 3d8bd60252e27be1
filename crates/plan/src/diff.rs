//! A file's change as people read it.

use similar::TextDiff;

use crate::model::{Before, Content, FileChange};

/// Unified diff, three lines of context. Secrets are named, never shown.
pub fn file_diff(change: &FileChange) -> String {
    let after = match &change.content {
        Content::Text { text } => text.clone(),
        Content::Template { template, .. } => template.clone(),
        Content::Certificate { wanted } => format!(
            "(certificate {}, valid for {}, {} days)\n",
            wanted.common_name,
            names(&wanted.dns, &wanted.ips),
            wanted.days
        ),
        Content::Key { wanted } => format!("(private key of {})\n", wanted.common_name),
        Content::Authority { name } => format!("(certificate of the {name} CA)\n"),
    };
    let before = match &change.before {
        Before::Absent => String::new(),
        Before::Text { text } => text.clone(),
        Before::Hash { sha256 } => format!("(sha256 {})\n", sha256.get(..16).unwrap_or(sha256)),
        Before::Attributes { owner, mode } => {
            return format!(
                "--- {0}\n+++ {0}\n-owner {owner} mode {mode:04o}\n+owner {1} mode {2:04o}\n",
                change.path, change.owner, change.mode
            );
        }
    };
    let from = if matches!(change.before, Before::Absent) {
        "/dev/null"
    } else {
        &change.path
    };
    TextDiff::from_lines(&before, &after)
        .unified_diff()
        .context_radius(3)
        .header(from, &change.path)
        .to_string()
}

fn names(dns: &[String], ips: &[std::net::IpAddr]) -> String {
    let all: Vec<String> = dns.iter().cloned().chain(ips.iter().map(ToString::to_string)).collect();
    if all.is_empty() {
        "client use".into()
    } else {
        all.join(", ")
    }
}
