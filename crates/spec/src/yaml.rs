//! YAML text to a tree in which every value and every key knows where it stands. The only file that knows the YAML
//! crate. The tree keeps duplicate keys, so that all of them can be reported.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Spanned};

/// Far above any real cluster file (a thousand machines take 200 KiB), far below what hurts.
pub(crate) const MAX_BYTES: usize = 8 << 20;

/// Aliases may copy this many parser events in all; a file needs none, a generous one some hundreds.
const MAX_ALIAS_EVENTS: usize = 20_000;

#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// Bytes in the text. Of a mapping or list: its first byte only.
    pub(crate) span: Range<usize>,
    /// Where the value itself stands: elsewhere than `span` for an alias.
    pub(crate) defined: Range<usize>,
    pub(crate) value: Value,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Int(i128),
    /// Never a valid value; its text is what is shown.
    Float,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) name: String,
    pub(crate) span: Range<usize>,
}

/// Why the text is no YAML document that can be looked at further.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) kind: SyntaxErrorKind,
    pub(crate) span: Range<usize>,
    pub(crate) message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SyntaxErrorKind {
    Syntax,
    SeveralDocuments,
    /// More aliases, anchors or nesting than any honest file has.
    Limits,
}

/// Reads exactly one document. `text` must not be empty (comments only count as empty).
pub(crate) fn parse(text: &str) -> Result<Node, SyntaxError> {
    let offsets = Offsets { text };
    let options = serde_saphyr::options! {
        duplicate_keys: DuplicateKeyPolicy::LastWins,
        strict_booleans: true,
        with_snippet: false,
        emit_comments: false,
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => Ok(offsets.node(raw)),
        Err(error) => Err(offsets.error(&error)),
    }
}

impl Value {
    /// For "found …".
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "a boolean",
            Self::Int(_) => "a whole number",
            Self::Float => "a decimal number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

impl Node {
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        self.entry(key).map(|(_, node)| node)
    }

    /// The last one, as YAML parsers that accept duplicates do.
    pub(crate) fn entry(&self, key: &str) -> Option<&(Key, Self)> {
        match &self.value {
            Value::Map(entries) => entries.iter().rev().find(|(k, _)| k.name == key),
            _ => None,
        }
    }
}

/// What serde hands over, before positions are turned into byte ranges.
enum Raw {
    Null,
    Bool(bool),
    Int(i128),
    Float,
    Text(String),
    List(Vec<Spanned<Self>>),
    Map(Vec<(Spanned<String>, Spanned<Self>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Int(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(i128::try_from(value).map_or(Raw::Float, Raw::Int))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        Ok(Raw::Float)
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

struct Offsets<'a> {
    text: &'a str,
}

impl Offsets<'_> {
    fn node(&self, raw: Spanned<Raw>) -> Node {
        let mut span = self.range(raw.referenced);
        let defined = self.range(raw.defined);
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(v) => Value::Bool(v),
            Raw::Int(v) => Value::Int(v),
            Raw::Float => Value::Float,
            Raw::Text(v) => Value::Text(v),
            Raw::List(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            Raw::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| {
                        (
                            Key {
                                span: self.range(key.referenced),
                                name: key.value,
                            },
                            self.node(value),
                        )
                    })
                    .collect(),
            ),
        };
        if matches!(value, Value::List(_) | Value::Map(_)) {
            span.end = (span.start + 1).min(self.text.len()).max(span.start);
        }
        Node { span, defined, value }
    }

    /// The byte range of a location, within the text and on character boundaries whatever the parser says.
    fn range(&self, location: Location) -> Range<usize> {
        let span = location.span();
        let start = span.byte_offset().and_then(|o| usize::try_from(o).ok());
        let len = span.byte_len().and_then(|l| usize::try_from(l).ok());
        let start = self.boundary(start.unwrap_or_else(|| self.start_of(location)));
        let mut end = self.boundary(start + len.unwrap_or(0));
        // Block scalars and the parser's own notion of an end may take the line break in.
        end = start + self.text[start..end].trim_end().len();
        start..end
    }

    fn start_of(&self, location: Location) -> usize {
        let line = usize::try_from(location.line()).unwrap_or(1).max(1);
        let column = usize::try_from(location.column()).unwrap_or(1).max(1);
        let before: usize = self.text.split_inclusive('\n').take(line - 1).map(str::len).sum();
        let in_line = self.text[before.min(self.text.len())..]
            .chars()
            .take(column - 1)
            .map(char::len_utf8)
            .sum::<usize>();
        before + in_line
    }

    fn boundary(&self, offset: usize) -> usize {
        let mut offset = offset.min(self.text.len());
        while !self.text.is_char_boundary(offset) {
            offset -= 1;
        }
        offset
    }

    fn error(&self, error: &serde_saphyr::Error) -> SyntaxError {
        let error = error.without_snippet();
        let cause = if let serde_saphyr::Error::AliasError { error, .. } = error {
            error.without_snippet()
        } else {
            error
        };
        let kind = match cause {
            serde_saphyr::Error::MultipleDocuments { .. } => SyntaxErrorKind::SeveralDocuments,
            serde_saphyr::Error::Budget { .. }
            | serde_saphyr::Error::AliasReplayLimitExceeded { .. }
            | serde_saphyr::Error::AliasExpansionLimitExceeded { .. }
            | serde_saphyr::Error::AliasReplayStackDepthExceeded { .. } => SyntaxErrorKind::Limits,
            // Of several kinds inside the parser.
            other if other.to_string().contains("recursion limit") => SyntaxErrorKind::Limits,
            _ => SyntaxErrorKind::Syntax,
        };
        let span = error.location().map_or(0..0, |location| self.range(location));
        SyntaxError {
            kind,
            span,
            message: error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text_at<'a>(text: &'a str, node: &Node) -> &'a str {
        &text[node.span.clone()]
    }

    #[test]
    fn every_value_and_key_knows_its_bytes() {
        let text =
            "# Größe\na: {b: 'x y', c: [1, 2.50, off]}\nd: \"ü\"\ne:\n  - 1.36\n  -\n  - yes\nf: |\n  x\n  y\ng: 1\n";
        let root = parse(text).unwrap();
        let a = root.get("a").unwrap();
        assert_eq!(text_at(text, a.get("b").unwrap()), "'x y'");
        let Value::List(items) = &a.get("c").unwrap().value else {
            panic!()
        };
        assert_eq!(
            items.iter().map(|n| text_at(text, n)).collect::<Vec<_>>(),
            ["1", "2.50", "off"]
        );
        assert!(matches!(&items[2].value, Value::Text(t) if t == "off"));
        assert_eq!(text_at(text, root.get("d").unwrap()), "\"ü\"");
        let Value::List(items) = &root.get("e").unwrap().value else {
            panic!()
        };
        assert!(matches!(items[1].value, Value::Null));
        assert_eq!(text_at(text, &items[0]), "1.36");
        assert_eq!(&text[root.entry("g").unwrap().0.span.clone()], "g");
    }

    #[test]
    fn duplicate_keys_stay_in_the_tree() {
        for text in ["a: 1\nb: 2\na: 3\n", "{a: 1, b: 2, a: 3}"] {
            let Value::Map(entries) = parse(text).unwrap().value else {
                panic!()
            };
            assert_eq!(entries.len(), 3, "{text}");
        }
    }

    #[test]
    fn aliases_point_to_where_they_are_used() {
        let text = "a: &x {k: v}\nn: &n 1.10\nc: *n\nb: *x\n";
        let root = parse(text).unwrap();
        assert_eq!(&text[root.get("c").unwrap().defined.clone()], "1.10");
        assert_eq!(&text[root.get("c").unwrap().span.clone()], "*n");
        assert_eq!(root.get("b").unwrap().span.start, text.rfind('*').unwrap());
        assert!(root.get("b").unwrap().get("k").is_some());
    }

    #[test]
    fn what_is_no_single_document_says_so() {
        let kind = |text: &str| parse(text).unwrap_err().kind;
        assert_eq!(kind("a: 1\n---\nb: 2\n"), SyntaxErrorKind::SeveralDocuments);
        assert_eq!(kind("a: [1\nb: 2\n"), SyntaxErrorKind::Syntax);
        let mut bomb = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (now, last) in ["b", "c", "d", "e", "f", "g"]
            .iter()
            .zip(["a", "b", "c", "d", "e", "f"])
        {
            bomb.push_str(&format!(
                "{now}: &{now} [*{last},*{last},*{last},*{last},*{last},*{last},*{last},*{last}]\n"
            ));
        }
        assert_eq!(kind(&bomb), SyntaxErrorKind::Limits);
    }
}
