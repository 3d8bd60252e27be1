//! The file while it is being checked: its text, its tree, and what was found so far.

use std::ops::Range;

use crate::finding::{Finding, Severity, line_column};
use crate::yaml::{Node, Value};

/// Steps from the root: keys, and indices of lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Path(pub(crate) Vec<String>);

/// `at!["spec", "machines", 3, "address"]`
macro_rules! at {
    ($($step:expr),* $(,)?) => {
        $crate::document::Path(vec![$($step.to_string()),*])
    };
}
pub(crate) use at;

impl Path {
    pub(crate) fn join(&self, step: impl ToString) -> Self {
        let mut steps = self.0.clone();
        steps.push(step.to_string());
        Self(steps)
    }
}

pub(crate) struct Document<'a> {
    pub(crate) text: &'a str,
    pub(crate) file: &'a str,
    pub(crate) root: Node,
    pub(crate) findings: Vec<Finding>,
}

impl Document<'_> {
    pub(crate) fn error(&mut self, code: &'static str, at: &Path, message: impl Into<String>) -> &mut Finding {
        self.find(Severity::Error, code, at, message.into())
    }

    pub(crate) fn warn(&mut self, code: &'static str, at: &Path, message: impl Into<String>) -> &mut Finding {
        self.find(Severity::Warning, code, at, message.into())
    }

    /// As [`Self::error`], where the place is known in bytes; `at` is for machine readers.
    pub(crate) fn error_at(
        &mut self,
        code: &'static str,
        at: &Path,
        span: Range<usize>,
        message: impl Into<String>,
    ) -> &mut Finding {
        let finding = self.finding(Severity::Error, code, at, span, message.into());
        self.findings.push_mut(finding)
    }

    fn find(&mut self, severity: Severity, code: &'static str, at: &Path, message: String) -> &mut Finding {
        let finding = self.finding(severity, code, at, self.span(at), message);
        self.findings.push_mut(finding)
    }

    fn finding(
        &self,
        severity: Severity,
        code: &'static str,
        at: &Path,
        span: Range<usize>,
        message: String,
    ) -> Finding {
        debug_assert!(crate::CODES.contains(&code), "{code} is not in CODES");
        let (line, column) = line_column(self.text, span.start);
        Finding {
            severity,
            code,
            file: self.file.to_owned(),
            line,
            column,
            span,
            path: self.spell(at),
            message,
            reason: None,
            fix: None,
            related: Vec::new(),
        }
    }

    /// The text of what is at `at`; of its nearest ancestor in the file if it is not written there.
    pub(crate) fn span(&self, at: &Path) -> Range<usize> {
        let mut node = &self.root;
        let mut span = self.whole(node);
        for step in &at.0 {
            match &node.value {
                Value::Map(_) => {
                    let Some((key, value)) = node.entry(step) else {
                        return span;
                    };
                    let scalar = !matches!(value.value, Value::Map(_) | Value::List(_)) && !value.span.is_empty();
                    span = if scalar { value.span.clone() } else { key.span.clone() };
                    node = value;
                }
                Value::List(items) => {
                    let Some(item) = step.parse().ok().and_then(|i: usize| items.get(i)) else {
                        return span;
                    };
                    node = item;
                    span = self.whole(node);
                }
                _ => return span,
            }
        }
        span
    }

    /// The key that leads to `at`.
    pub(crate) fn key_span(&self, at: &Path) -> Range<usize> {
        let Some((last, parents)) = at.0.split_last() else {
            return self.span(at);
        };
        let parent = self.node(&Path(parents.to_vec()));
        parent
            .and_then(|n| n.entry(last))
            .map_or_else(|| self.span(at), |(key, _)| key.span.clone())
    }

    pub(crate) fn node(&self, at: &Path) -> Option<&Node> {
        at.0.iter().try_fold(&self.root, |node, step| match &node.value {
            Value::Map(_) => node.get(step),
            Value::List(items) => step.parse().ok().and_then(|i: usize| items.get(i)),
            _ => None,
        })
    }

    pub(crate) fn is_written(&self, at: &Path) -> bool {
        self.node(at).is_some_and(|n| !matches!(n.value, Value::Null))
    }

    /// A scalar as it stands in the file, so that `1.10` keeps its zero.
    pub(crate) fn raw_text(&self, node: &Node) -> String {
        match &node.value {
            Value::Text(text) => text.clone(),
            _ => self.text[node.defined.clone()].to_owned(),
        }
    }

    /// Of a mapping or list, the rest of its first line.
    fn whole(&self, node: &Node) -> Range<usize> {
        if !matches!(node.value, Value::Map(_) | Value::List(_)) {
            return node.span.clone();
        }
        let rest = &self.text[node.span.start..];
        let line = rest.split('\n').next().unwrap_or_default();
        let without_comment = line.find(" #").map_or(line, |i| &line[..i]);
        node.span.start..node.span.start + without_comment.trim_end().len()
    }

    /// `spec.machines[3].labels["a/b"]`
    fn spell(&self, at: &Path) -> String {
        let mut out = String::new();
        let mut node = Some(&self.root);
        for step in &at.0 {
            let is_list = matches!(node.map(|n| &n.value), Some(Value::List(_)));
            let plain = step.chars().all(|c| c.is_ascii_alphanumeric());
            match (is_list, plain, out.is_empty()) {
                (true, ..) => out.push_str(&format!("[{step}]")),
                (_, false, _) => out.push_str(&format!("[{step:?}]")),
                (_, _, true) => out.push_str(step),
                _ => out.push_str(&format!(".{step}")),
            }
            node = node.and_then(|n| match &n.value {
                Value::Map(_) => n.get(step),
                Value::List(items) => step.parse().ok().and_then(|i: usize| items.get(i)),
                _ => None,
            });
        }
        out
    }
}
