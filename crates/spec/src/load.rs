//! The way from text to [`Spec`].

use crate::document::{Document, Path};
use crate::file::ClusterFile;
use crate::finding::{Finding, Severity};
use crate::spec::Spec;
use crate::yaml::{self, Node, SyntaxErrorKind, Value};
use crate::{check, shape};

/// Reads a cluster file. `file_name` is for the findings only.
///
/// Returns the [`Spec`] together with the warnings, or all findings if there is an error among them; either list is in
/// the file's order.
pub fn load(text: &str, file_name: &str) -> Result<(Spec, Vec<Finding>), Vec<Finding>> {
    let nothing = Node {
        span: 0..0,
        defined: 0..0,
        value: Value::Null,
    };
    let mut document = Document {
        text,
        file: file_name,
        root: nothing,
        findings: Vec::new(),
    };
    let spec = read(&mut document);
    let mut findings = document.findings;
    findings.sort_by(|a, b| (a.span.start, a.severity, a.code).cmp(&(b.span.start, b.severity, b.code)));
    findings.dedup();
    // The graver finding about the same address says it all.
    let in_range: Vec<String> = findings
        .iter()
        .filter(|f| f.code == "vip-in-range")
        .map(|f| f.path.clone())
        .collect();
    findings.retain(|f| f.code != "vip-in-other-network" || !in_range.contains(&f.path));
    match spec {
        Some(spec) if findings.iter().all(|f| f.severity == Severity::Warning) => Ok((spec, findings)),
        _ => Err(findings),
    }
}

fn read(document: &mut Document<'_>) -> Option<Spec> {
    let text = document.text;
    if text.len() > yaml::MAX_BYTES {
        document
            .error_at(
                "file-too-large",
                &Path::default(),
                0..0,
                format!("the file has {} MiB", text.len() >> 20),
            )
            .reason(format!(
                "no cluster file needs more than {} MiB: this is probably something else",
                yaml::MAX_BYTES >> 20
            ))
            .fix("name the right file");
        return None;
    }
    let is_content = |line: &str| {
        let line = line.trim_start_matches('\u{feff}').trim();
        !(line.is_empty() || line.starts_with('#') || line == "---" || line == "...")
    };
    if !text.lines().any(is_content) {
        document
            .error_at("empty-file", &Path::default(), 0..0, "the file is empty")
            .reason("there is nothing but white space and comments in it")
            .fix("`quorate init` writes a file to start from");
        return None;
    }
    match yaml::parse(text) {
        Ok(root) => document.root = root,
        Err(error) => {
            syntax(document, error);
            return None;
        }
    }
    if !matches!(document.root.value, Value::Map(_)) {
        let kind = document.root.value.kind();
        document
            .error(
                "wrong-type",
                &Path::default(),
                format!("the file is {kind}, not a mapping"),
            )
            .reason("a cluster file begins with `apiVersion:` and `kind:`")
            .fix("`quorate init` writes a file to start from");
        return None;
    }
    let json = shape::check(document);
    let foreign = ["wrong-kind", "wrong-api-version"];
    if document.findings.iter().any(|f| foreign.contains(&f.code)) {
        // Not our format: what the rest lacks to be it would be noise.
        document.findings.retain(|f| foreign.contains(&f.code));
        return None;
    }
    match serde_json::from_value::<ClusterFile>(json) {
        Ok(file) => check::spec(document, &file),
        Err(error) => {
            document
                .error(
                    "wrong-type",
                    &Path::default(),
                    format!("the file cannot be read: {error}"),
                )
                .fix("compare it with the output of `quorate schema`");
            None
        }
    }
}

fn syntax(document: &mut Document<'_>, error: yaml::SyntaxError) {
    let text = document.text;
    let tabs = tab_indented(text);
    if error.kind == SyntaxErrorKind::Syntax && !tabs.is_empty() {
        for span in tabs {
            document
                .error_at("tab-indentation", &Path::default(), span, "a tab in the indentation")
                .reason("YAML is indented with spaces only, since a tab's width differs from editor to editor")
                .fix("replace it by spaces");
        }
        return;
    }
    let (code, message, reason, fix) = match error.kind {
        SyntaxErrorKind::Syntax => (
            "yaml-syntax",
            "this is not YAML".to_owned(),
            error.message.lines().next().unwrap_or_default().to_owned(),
            "look at the indentation, brackets and quotes here and in the line before",
        ),
        SyntaxErrorKind::SeveralDocuments => (
            "several-documents",
            "there is more than one document in the file".to_owned(),
            "a cluster file describes one cluster; which document counts must not be a guess".to_owned(),
            "keep one document per file, without a second `---`",
        ),
        SyntaxErrorKind::Limits => (
            "yaml-limits",
            "the file's anchors and aliases, or its nesting, go beyond all reason".to_owned(),
            "written out in full it would be enormous, and reading it would exhaust this computer".to_owned(),
            "write the values out; a cluster file needs no aliases",
        ),
    };
    document
        .error_at(code, &Path::default(), error.span, message)
        .reason(reason)
        .fix(fix);
}

/// The tabs at the beginnings of lines.
fn tab_indented(text: &str) -> Vec<std::ops::Range<usize>> {
    let mut spans = Vec::new();
    let mut start = 0;
    for line in text.split_inclusive('\n') {
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        if let Some(tab) = line[..indent].find('\t')
            && !line.trim().is_empty()
            && !line.trim_start().starts_with('#')
        {
            spans.push(start + tab..start + tab + 1);
        }
        start += line.len();
    }
    spans
}
