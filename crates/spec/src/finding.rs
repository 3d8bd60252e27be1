//! What is wrong with a cluster file, where, why, and the way out.

use std::fmt::Write as _;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use serde::Serialize;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used and will most likely disappoint.
    Warning,
}

/// One thing that is wrong. All of a file's findings are reported together, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub severity: Severity,
    /// Stable, for scripts and search engines; one of [`crate::CODES`].
    pub code: &'static str,
    /// As given to [`crate::load`].
    pub file: String,
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// In bytes of the text.
    pub span: Range<usize>,
    /// Where in the document: `spec.machines[3].address`; empty for the file as a whole.
    pub path: String,
    /// What is wrong, in one line, with the values at fault.
    pub message: String,
    /// Why that cannot work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What to write instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
    /// Other places that take part in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<Related>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Related {
    pub line: usize,
    pub span: Range<usize>,
    pub label: String,
}

impl Finding {
    pub(crate) fn reason(&mut self, reason: impl Into<String>) -> &mut Self {
        self.reason = Some(reason.into()).filter(|r| !r.is_empty());
        self
    }

    pub(crate) fn fix(&mut self, fix: impl Into<String>) -> &mut Self {
        self.fix = Some(fix.into());
        self
    }

    pub(crate) fn also(&mut self, text: &str, span: Range<usize>, label: impl Into<String>) -> &mut Self {
        let (line, _) = line_column(text, span.start);
        self.related.push(Related {
            line,
            span,
            label: label.into(),
        });
        self
    }
}

/// The findings as people read them: each with the lines of `text` it is about, its reason and its fix, and a count at
/// the end. Empty for no findings.
pub fn render(findings: &[Finding], text: &str, color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut out = String::new();
    for finding in findings {
        out.push_str(&render_one(finding, text, &renderer));
        out.push_str("\n\n");
    }
    if !findings.is_empty() {
        let errors = findings.iter().filter(|f| f.severity == Severity::Error).count();
        let warnings = findings.len() - errors;
        let counts: Vec<String> = [(errors, "error"), (warnings, "warning")]
            .iter()
            .filter(|(n, _)| *n > 0)
            .map(|(n, what)| format!("{n} {what}{}", if *n == 1 { "" } else { "s" }))
            .collect();
        let _ = writeln!(out, "{}: {}", findings[0].file, counts.join(", "));
    }
    out
}

/// A JSON list of all fields of all findings.
pub fn to_json(findings: &[Finding]) -> serde_json::Value {
    serde_json::to_value(findings).unwrap_or_default()
}

/// Line and column, from 1, of a byte offset; the column counts characters.
pub(crate) fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

fn render_one(finding: &Finding, text: &str, renderer: &Renderer) -> String {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    // Only the lines concerned are handed over: a file may have thousands.
    let spans = || std::iter::once(&finding.span).chain(finding.related.iter().map(|r| &r.span));
    let first = spans().map(|s| s.start).min().unwrap_or(0).min(text.len());
    let last = spans().map(|s| s.end).max().unwrap_or(0).min(text.len());
    let start = text[..first].rfind('\n').map_or(0, |i| i + 1);
    let end = text[last..].find('\n').map_or(text.len(), |i| last + i);
    let (line, _) = line_column(text, start);
    let within = |span: &Range<usize>| span.start - start..span.end.max(span.start) - start;

    // Of the same length, so that spans still fit.
    let lines = text[start..end].replace('\r', " ");
    let mut snippet = Snippet::source(&lines)
        .line_start(line)
        .path(&finding.file)
        .annotation(AnnotationKind::Primary.span(within(&finding.span)));
    for related in &finding.related {
        snippet = snippet.annotation(
            AnnotationKind::Context
                .span(within(&related.span))
                .label(&related.label),
        );
    }
    let mut group = level.primary_title(&finding.message).id(finding.code).element(snippet);
    if let Some(reason) = &finding.reason {
        group = group.element(Level::NOTE.with_name("why").message(reason));
    }
    if let Some(fix) = &finding.fix {
        group = group.element(Level::HELP.with_name("fix").message(fix));
    }
    renderer.render(&[group])
}
