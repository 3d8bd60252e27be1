//! The JSON schema of the cluster file, generated from the raw types.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::file::ClusterFile;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    let mut schema = settings
        .into_generator()
        .into_root_schema_for::<ClusterFile>()
        .to_value();
    tidy(&mut schema);
    schema
});

/// JSON schema, draft 2020-12.
pub fn schema() -> &'static Value {
    &SCHEMA
}

/// The reference page of the cluster file, in Markdown: every field with its type, default and meaning.
pub fn reference() -> String {
    let mut page = String::from(
        "# The cluster file\n\n\
         Generated from the program's types; do not edit. `quorate schema` prints the same as a JSON schema, for editors;\n\
         `quorate init` writes a file to start from; [examples/](../../examples/) has one per design.\n\n\
         Every field but `apiVersion`, `kind`, and the machines' `address` and `roles` has a default. A field that is not\n\
         known is an error. Everything that is wrong is reported at once, with its line, reason and fix.\n\n\
         ```yaml\n\
         apiVersion: quorate.dev/v1\n\
         kind: Cluster\n\
         spec:\n\
         \x20 endpoint: {vip: 10.0.0.100}\n\
         \x20 machines:\n\
         \x20   - {address: 10.0.0.11, roles: [control-plane]}\n\
         \x20   - {address: 10.0.0.12, roles: [control-plane]}\n\
         \x20   - {address: 10.0.0.13, roles: [control-plane]}\n\
         \x20   - {address: 10.0.0.14, roles: [worker]}\n\
         \x20   - {address: 10.0.0.15, roles: [worker]}\n\
         ```\n",
    );
    section(&mut page, schema(), "");
    page
}

/// One table for an object's plain fields, then a section for each object below it.
fn section(page: &mut String, schema: &Value, path: &str) {
    let Some(fields) = schema["properties"].as_object() else {
        return;
    };
    let required: Vec<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let title = if path.is_empty() {
        "The top level".to_owned()
    } else {
        format!("`{path}`")
    };
    page.push_str(&format!("\n## {title}\n\n"));
    if !path.is_empty() {
        page.push_str(&format!("{}\n\n", schema["description"].as_str().unwrap_or_default()));
    }
    page.push_str("| field | type | default | meaning |\n|---|---|---|---|\n");
    for (name, field) in fields {
        let (meaning, told) = field["description"]
            .as_str()
            .unwrap_or_default()
            .split_once(" Default: ")
            .map_or_else(
                || (field["description"].as_str().unwrap_or_default().to_owned(), None),
                |(meaning, default)| (meaning.to_owned(), Some(default.trim_end_matches('.').to_owned())),
            );
        let default = match field.get("default") {
            _ if required.contains(&name.as_str()) => "**required**".to_owned(),
            Some(Value::String(text)) => format!("`{text}`"),
            Some(value) => format!("`{value}`"),
            None => told.unwrap_or_else(|| "–".to_owned()),
        };
        let words: Vec<String> = field["oneOf"]
            .as_array()
            .or_else(|| field["items"]["oneOf"].as_array())
            .into_iter()
            .flatten()
            .map(|w| {
                let meaning = w["description"].as_str().unwrap_or_default();
                format!("<br>`{}`: {meaning}", w["const"].as_str().unwrap_or_default())
            })
            .collect();
        page.push_str(&format!(
            "| `{name}` | {} | {default} | {meaning}{} |\n",
            kind(field),
            words.concat()
        ));
    }
    for (name, field) in fields {
        let here = if path.is_empty() {
            name.clone()
        } else {
            format!("{path}.{name}")
        };
        section(page, field, &here);
        if field["items"]["properties"].is_object() {
            let mut item = field["items"].clone();
            item["description"] = field["description"].clone();
            section(page, &item, &format!("{here}[]"));
        }
    }
}

fn kind(field: &Value) -> String {
    let limits = match (field["minimum"].as_u64(), field["maximum"].as_u64()) {
        (Some(least), Some(most)) => format!(", {least}–{most}"),
        _ => String::new(),
    };
    match field["type"].as_str() {
        _ if field["oneOf"].is_array() => "one of".to_owned(),
        _ if field["anyOf"].is_array() => "text or list".to_owned(),
        _ if field["const"].is_string() => {
            format!("`{}`", field["const"].as_str().unwrap_or_default())
        }
        Some("integer") => format!("number{limits}"),
        Some("boolean") => "true or false".to_owned(),
        Some("array") if field["items"]["oneOf"].is_array() => "list of".to_owned(),
        Some("array") if field["items"]["properties"].is_object() => "list, see below".to_owned(),
        Some("array") => "list of text".to_owned(),
        Some("object") if field["properties"].is_object() => "see below".to_owned(),
        Some("object") => format!("name: {}", kind(&field["additionalProperties"])),
        _ => "text".to_owned(),
    }
}

/// Removes what editors do not need and makes optional fields look as they are written: `T` in place of `T | null`.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            // The formats are names of Rust's integers; the limits say it better.
            if object.get("type").is_some_and(Value::is_string) || object.contains_key("minimum") {
                object.remove("format");
            }
            if let Some(Value::Array(types)) = object.get_mut("type") {
                types.retain(|t| t != "null");
                if types.len() == 1 {
                    let only = types.remove(0);
                    object.insert("type".to_owned(), only);
                    object.remove("format");
                }
            }
            if let Some(Value::Array(choices)) = object.get_mut("anyOf") {
                choices.retain(|c| c.get("type").is_none_or(|t| t != "null"));
                if choices.len() == 1
                    && let Value::Object(only) = choices.remove(0)
                {
                    object.remove("anyOf");
                    for (key, value) in only {
                        // The field's own description and default win over its type's.
                        object.entry(key).or_insert(value);
                    }
                }
            }
            // Defaults of whole sections are empty objects with nulls: noise.
            if object
                .get("default")
                .is_some_and(|d| d.is_object() || d.is_null() || d.as_array().is_some_and(Vec::is_empty))
            {
                object.remove("default");
            }
            if let Some(Value::String(description)) = object.get_mut("description") {
                *description = description.replace('\n', " ");
            }
            object.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}
