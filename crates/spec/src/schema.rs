//! The JSON schema of the cluster file, generated from the raw types.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use crate::file::ClusterFile;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = true;
    let mut schema = settings.into_generator().into_root_schema_for::<ClusterFile>().to_value();
    tidy(&mut schema);
    schema
});

/// JSON schema, draft 2020-12.
pub fn schema() -> &'static Value {
    &SCHEMA
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
            if object.get("default").is_some_and(|d| d.is_object() || d.is_null() || d.as_array().is_some_and(Vec::is_empty)) {
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
