//! What a step creates, changes and removes, as people read it.

mod object;

use quorate_facts::block;
use serde::Serialize;
use similar::TextDiff;

use crate::model::{Action, ApiObject, Before, Content, FileChange, Step};

/// One file, or one object of the API, of a step.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub kind: ChangeKind,
    /// On the machine, or in the API.
    pub path: &'a str,
    of: Of<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChangeKind {
    Created,
    Changed,
    Removed,
}

#[derive(Clone, Copy, Debug)]
enum Of<'a> {
    File(&'a FileChange),
    Block {
        marker: &'a str,
        content: &'a str,
        before: &'a Before,
    },
    Object(&'a ApiObject),
    /// What is removed is not in the plan.
    Nothing,
}

/// Files and objects a step changes, in its order.
pub fn changes(step: &Step) -> Vec<Change<'_>> {
    match &step.action {
        Action::Files { files } => files
            .iter()
            .map(|file| Change {
                kind: kind(matches!(file.before, Before::Absent)),
                path: &file.path,
                of: Of::File(file),
            })
            .collect(),
        Action::Block {
            path,
            marker,
            content,
            before,
        } => vec![Change {
            kind: kind(matches!(before, Before::Absent)),
            path,
            of: Of::Block {
                marker,
                content,
                before,
            },
        }],
        Action::Apply { objects } => objects
            .iter()
            .map(|object| Change {
                kind: kind(object.before.is_none()),
                path: &object.path,
                of: Of::Object(object),
            })
            .collect(),
        Action::Remove { paths, .. } | Action::Delete { paths } => paths
            .iter()
            .map(|path| Change {
                kind: ChangeKind::Removed,
                path,
                of: Of::Nothing,
            })
            .collect(),
        _ => Vec::new(),
    }
}

impl Change<'_> {
    /// Unified diff, three lines of context. Secrets are named, never shown. Of what is removed, the path alone.
    pub fn diff(&self) -> String {
        match self.of {
            Of::File(file) => file_diff(file),
            Of::Block {
                marker,
                content,
                before,
            } => block_diff(self.path, marker, content, before),
            Of::Object(object) => object::diff(object),
            Of::Nothing => format!("--- {}\n+++ {NOTHING}\n", self.path),
        }
    }
}

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
        Before::Absent => None,
        Before::Text { text } => Some(text.clone()),
        Before::Hash { sha256 } => Some(format!("(sha256 {})\n", sha256.get(..16).unwrap_or(sha256))),
        Before::Attributes { owner, mode } => {
            return format!(
                "--- {0}\n+++ {0}\n-owner {owner} mode {mode:04o}\n+owner {1} mode {2:04o}\n",
                change.path, change.owner, change.mode
            );
        }
    };
    unified(&change.path, before.as_deref(), &after)
}

const NOTHING: &str = "/dev/null";

fn kind(new: bool) -> ChangeKind {
    if new { ChangeKind::Created } else { ChangeKind::Changed }
}

/// Where the rest of the file may not be shown, of the block alone.
fn block_diff(path: &str, marker: &str, content: &str, before: &Before) -> String {
    let (known, found) = match before {
        Before::Absent => (None, ""),
        Before::Text { text } => (Some(text.as_str()), text.as_str()),
        Before::Hash { .. } | Before::Attributes { .. } => (Some(""), ""),
    };
    let content = (!content.is_empty()).then_some(content.as_bytes());
    let made = block::edit(found.as_bytes(), marker, content);
    unified(path, known, &String::from_utf8_lossy(&made))
}

fn unified(path: &str, before: Option<&str>, after: &str) -> String {
    let from = before.map_or(NOTHING, |_| path);
    TextDiff::from_lines(before.unwrap_or_default(), after)
        .unified_diff()
        .context_radius(3)
        .header(from, path)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_shown_as_the_change_of_its_file() {
        let hosts = "127.0.0.1 localhost\n# BEGIN quorate\n10.0.0.1 m1\n10.0.0.2 m2\n# END quorate\n10.9.9.9 other\n";
        let text = |text: &str| Before::Text { text: text.into() };
        let shown = |content, before: &Before| block_diff("/etc/hosts", "quorate", content, before);
        assert_eq!(
            shown("10.0.0.1 m1\n10.0.0.3 m2\n", &text(hosts)),
            "--- /etc/hosts\n+++ /etc/hosts\n@@ -1,6 +1,6 @@\n 127.0.0.1 localhost\n # BEGIN quorate\n 10.0.0.1 m1\n\
             -10.0.0.2 m2\n+10.0.0.3 m2\n # END quorate\n 10.9.9.9 other\n"
        );
        let gone = shown("", &text(hosts));
        assert!(
            gone.contains("-# BEGIN quorate\n-10.0.0.1 m1\n-10.0.0.2 m2\n-# END quorate\n"),
            "{gone}"
        );
        assert!(
            gone.contains(" 127.0.0.1 localhost\n") && gone.contains(" 10.9.9.9 other\n"),
            "{gone}"
        );
        // What follows a beginning whose end somebody lost is theirs.
        let lost = "# BEGIN quorate\nprecious\n# BEGIN quorate\n10.0.0.1 m1\n# END quorate\n";
        let gone = shown("", &text(lost));
        assert!(
            gone.contains("\n precious\n") && gone.contains("\n-10.0.0.1 m1\n"),
            "{gone}"
        );
        // What may not be shown stays so, and is not said to go away.
        let hidden = shown("10.0.0.1 m1\n", &Before::Hash { sha256: "ab".into() });
        assert!(hidden.contains("+10.0.0.1 m1\n") && !hidden.contains("\n-"), "{hidden}");
        assert!(shown("10.0.0.1 m1\n", &Before::Absent).starts_with("--- /dev/null\n"));
    }
}
