//! YAML out of typed or JSON values; configuration is never templated as text.

use serde_json::Value;

const HEADER: &str = "# Written by quorate; changed by `quorate apply`.\n";

/// What a file or a ConfigMap holds; `Null` for what is no YAML.
pub(crate) fn parse(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap_or_default()
}

pub(crate) fn render(value: &Value) -> String {
    format!("{HEADER}{}", plain(value))
}

/// Without the line that says who wrote it.
pub(crate) fn plain(value: &Value) -> String {
    // A `Value` has string keys and finite numbers only, so serialising cannot fail.
    let mut text = serde_saphyr::to_string(value).unwrap_or_default();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}
