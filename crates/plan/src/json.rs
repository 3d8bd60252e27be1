//! Whether a live API object already holds what is wanted.

use serde_json::Value;

/// The first place where `wanted` is not contained in `live`; `None` when all of it is. Fields the server adds do not count;
/// lists must agree element by element, since a shorter list wanted means that something must go.
pub(crate) fn difference(wanted: &Value, live: &Value) -> Option<String> {
    find(wanted, live, &mut String::new())
}

/// `found` with everything `wanted` says; lists are replaced as a whole.
pub(crate) fn overlay(found: Value, wanted: &Value) -> Value {
    match (found, wanted) {
        (Value::Object(mut found), Value::Object(wanted)) => {
            for (name, value) in wanted {
                let former = found.remove(name).unwrap_or_default();
                found.insert(name.clone(), overlay(former, value));
            }
            Value::Object(found)
        }
        (_, wanted) => wanted.clone(),
    }
}

fn find(wanted: &Value, live: &Value, path: &mut String) -> Option<String> {
    match (wanted, live) {
        (Value::Object(wanted), Value::Object(live)) => wanted.iter().find_map(|(key, value)| {
            let is_entry = is_map(path.rsplit('.').next().unwrap_or_default());
            let length = path.len();
            path.push('.');
            path.push_str(key);
            let found = match live.get(key) {
                Some(live) => find(value, live, path),
                None if !is_entry && is_empty(key, value) => None,
                None => Some(format!("{} is missing", path.trim_start_matches('.'))),
            };
            path.truncate(length);
            found
        }),
        (Value::Array(wanted), Value::Array(live)) if wanted.len() == live.len() => {
            wanted.iter().zip(live).enumerate().find_map(|(index, (wanted, live))| {
                let length = path.len();
                path.push_str(&format!("[{index}]"));
                let found = find(wanted, live, path);
                path.truncate(length);
                found
            })
        }
        (wanted, live) if wanted == live => None,
        _ => Some(format!("{} differs", path.trim_start_matches('.'))),
    }
}

/// Where keys are the user's: an empty value says something.
fn is_map(field: &str) -> bool {
    ["labels", "annotations", "matchLabels", "nodeSelector", "data"].contains(&field)
}

/// The server drops empty values and `false`.
fn is_empty(field: &str, value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) if is_map(field) => fields.is_empty(),
        Value::Object(fields) => fields.iter().all(|(field, value)| is_empty(field, value)),
        Value::String(text) => text.is_empty(),
        Value::Number(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_overlay_keeps_what_is_not_wanted_otherwise() {
        assert_eq!(
            overlay(
                json!({"a": {"b": 1, "c": [1, 2]}, "d": 2}),
                &json!({"a": {"c": [3]}, "e": true})
            ),
            json!({"a": {"b": 1, "c": [3]}, "d": 2, "e": true})
        );
    }

    #[test]
    fn a_label_without_a_value_is_missed_and_an_empty_field_is_not() {
        let wanted = json!({"metadata": {"labels": {"role": ""}}, "spec": {"note": "", "more": {"on": false}}});
        let missing = |live| difference(&wanted, &live);
        assert_eq!(missing(json!({"metadata": {"labels": {"role": ""}}, "spec": {}})), None);
        let label = Some("metadata.labels.role is missing".to_owned());
        assert_eq!(missing(json!({"metadata": {"labels": {}}, "spec": {}})), label);
        let labels = Some("metadata.labels is missing".to_owned());
        assert_eq!(missing(json!({"metadata": {}})), labels);
    }

    #[test]
    fn a_live_object_with_more_fields_is_no_difference_and_a_changed_one_is_named() {
        let wanted = json!({"spec": {"ports": [{"port": 53}], "automount": false}});
        assert_eq!(
            difference(
                &wanted,
                &json!({"spec": {"ports": [{"port": 53, "nodePort": 1}]}, "status": {}})
            ),
            None
        );
        let cases = [
            (json!({"spec": {"ports": [{"port": 54}]}}), "spec.ports[0].port differs"),
            (json!({"spec": {"ports": []}}), "spec.ports differs"),
            (json!({}), "spec is missing"),
        ];
        for (live, expected) in cases {
            assert_eq!(difference(&wanted, &live).as_deref(), Some(expected));
        }
    }
}
