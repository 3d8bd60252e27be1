//! Settings of programs that are the machine's own: written beside theirs, read by them when told to, and taken back.

use quorate_facts::{HostFacts, block};

use crate::model::*;
use crate::want::sha256;

const MARKER: &str = "quorate";
/// Says which settings a program was last told to read, so that a run which ended before telling it is noticed.
const APPLIED: &str = "/var/lib/quorate/applied";

/// What one program should be set to; absent settings are taken away.
pub(crate) struct Settings {
    /// Short, unique on a machine: `journal`.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) files: Vec<(&'static str, Option<String>)>,
    /// Managed blocks in files of the program's own.
    pub(crate) blocks: Vec<(&'static str, Option<String>)>,
    /// Makes the program read them.
    pub(crate) reload: &'static [&'static str],
}

/// One step to be: name, title, reasons, action, undo.
pub(crate) type Change = (String, String, Vec<String>, Action, Undo);

impl Settings {
    /// The same program without any of our settings.
    pub(crate) fn removed(mut self) -> Self {
        for (_, wanted) in self.files.iter_mut().chain(&mut self.blocks) {
            *wanted = None;
        }
        self
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        let own = self
            .files
            .iter()
            .chain(&self.blocks)
            .map(|(path, _)| (*path).to_owned());
        own.chain([self.mark()]).collect()
    }

    fn mark(&self) -> String {
        format!("{APPLIED}-{}", self.name)
    }

    /// What is to be done, in order: the files, the blocks, the program, the mark.
    pub(crate) fn changes(&self, host: &HostFacts) -> Vec<Change> {
        let text = |path: &str| host.files.get(path).and_then(|file| file.text.as_deref());
        let mut changes: Vec<Change> = Vec::new();
        let mut add = |what: &str, title: String, why: Vec<String>, action: Action, undo: Undo| {
            changes.push((format!("{}-{what}", self.name), title, why, action, undo));
        };
        let (mut write, mut remove, mut why_write, mut why_remove) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (path, wanted) in &self.files {
            match (wanted, text(path)) {
                (Some(wanted), found) if found != Some(wanted.as_str()) => {
                    why_write.push(if found.is_some() {
                        format!("{path} differs")
                    } else {
                        format!("{path} does not exist")
                    });
                    write.push(FileChange {
                        path: (*path).into(),
                        owner: "root".into(),
                        mode: 0o644,
                        content: Content::text(wanted),
                        before: found.map_or(Before::Absent, |text| Before::Text { text: text.into() }),
                    });
                }
                (None, Some(_)) => {
                    why_remove.push(format!("{path} is Quorate's and no longer wanted"));
                    remove.push((*path).to_owned());
                }
                _ => {}
            }
        }
        if !write.is_empty() {
            add(
                "files",
                self.title.into(),
                why_write,
                Action::Files { files: write },
                Undo::Kept,
            );
        }
        if !remove.is_empty() {
            let action = Action::Remove {
                paths: remove,
                recursive: false,
            };
            add(
                "remove",
                format!("take back: {}", self.title),
                why_remove,
                action,
                Undo::Kept,
            );
        }
        for (index, (path, wanted)) in self.blocks.iter().enumerate() {
            let found = text(path).and_then(|text| block::content(text, MARKER));
            if found != wanted.as_deref() {
                let title = if wanted.is_some() {
                    self.title.to_owned()
                } else {
                    format!("take back: {}", self.title)
                };
                let action = Action::Block {
                    path: (*path).into(),
                    marker: MARKER.into(),
                    content: wanted.clone().unwrap_or_default(),
                    before: Before::of(host.files.get(*path)),
                };
                add(
                    &format!("block-{index}"),
                    title,
                    vec![format!("the managed block in {path} differs")],
                    action,
                    Undo::Kept,
                );
            }
        }
        self.tell(host, &mut changes);
        changes
    }

    /// Told when something changed, or when an earlier run ended before it told.
    fn tell(&self, host: &HostFacts, changes: &mut Vec<Change>) {
        let parts: Vec<&str> = self
            .files
            .iter()
            .chain(&self.blocks)
            .filter_map(|(_, wanted)| wanted.as_deref())
            .collect();
        let wanted = (!parts.is_empty()).then(|| format!("{}\n", sha256(parts.join("\0").as_bytes())));
        let mark = self.mark();
        let found = host.files.get(&mark).and_then(|file| file.text.clone());
        if changes.is_empty() && found == wanted {
            return;
        }
        let program = self.reload.first().copied().unwrap_or_default();
        changes.push((
            format!("{}-reload", self.name),
            format!("let it be read: {}", self.reload.join(" ")),
            vec![format!("{program} has not read these settings yet")],
            Action::Run {
                argv: self.reload.iter().map(|word| (*word).to_owned()).collect(),
                stdin: None,
                timeout_ms: 60_000,
                exit_shows: Some("it ends when the settings are read, and with an error if they cannot be".into()),
            },
            Undo::Nothing {
                because: "the settings are taken back by themselves; the program reads them when it starts again"
                    .into(),
            },
        ));
        let before = found.map_or(Before::Absent, |text| Before::Text { text });
        let (action, why) = match wanted {
            Some(text) => (
                Action::Files {
                    files: vec![FileChange {
                        path: mark,
                        owner: "root".into(),
                        mode: 0o600,
                        content: Content::text(text),
                        before,
                    }],
                },
                "so that it is not told again",
            ),
            None => (
                Action::Remove {
                    paths: vec![mark],
                    recursive: false,
                },
                "nothing of ours is set any more",
            ),
        };
        changes.push((
            format!("{}-mark", self.name),
            "note what was read".into(),
            vec![why.into()],
            action,
            Undo::Kept,
        ));
    }
}
