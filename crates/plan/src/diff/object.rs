//! An object's change: the live object as it is, and as server-side apply leaves it.

use serde_json::{Map, Value};

use super::unified;
use crate::model::ApiObject;
use crate::yaml;

/// Fields the API server keeps for itself.
const SERVERS: [&str; 6] = [
    "creationTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];
/// As the executor names itself to the API server.
const MANAGER: &str = "quorate";

/// Unified diff of the object's YAML.
pub(super) fn diff(object: &ApiObject) -> String {
    let wanted = shown(object.body.clone());
    let Some(live) = &object.before else {
        return unified(&object.path, None, &yaml::plain(&wanted));
    };
    let before = shown(live.clone());
    let mut kept = before.clone();
    for_others(live, &object.body, &mut kept);
    let after = applied(kept, &wanted);
    unified(&object.path, Some(&yaml::plain(&before)), &yaml::plain(&after))
}

/// Without what is the server's own, and without what a Secret holds.
fn shown(mut object: Value) -> Value {
    let secret = object.get("kind").and_then(Value::as_str) == Some("Secret");
    let Some(fields) = object.as_object_mut() else {
        return object;
    };
    fields.remove("status");
    if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.retain(|name, _| !SERVERS.contains(&name.as_str()));
        // The whole object once more, a Secret's content included.
        let annotations = metadata.get_mut("annotations").and_then(Value::as_object_mut);
        annotations.map(|all| all.remove("kubectl.kubernetes.io/last-applied-configuration"));
    }
    for part in ["data", "stringData"] {
        let values = fields.get_mut(part).filter(|_| secret).and_then(Value::as_object_mut);
        for value in values.into_iter().flat_map(Map::values_mut) {
            // A mark names a secret and holds none.
            if !value.as_str().is_some_and(|text| text.contains("{{secret:")) {
                *value = "***".into();
            }
        }
    }
    object
}

/// `found` with everything `wanted` says. As `json::difference` compares: lists of one length element by element, since the
/// server adds defaults to their elements; other lists as a whole.
fn applied(found: Value, wanted: &Value) -> Value {
    match (found, wanted) {
        (Value::Object(mut found), Value::Object(wanted)) => {
            for (name, value) in wanted {
                let former = found.remove(name).unwrap_or_default();
                found.insert(name.clone(), applied(former, value));
            }
            Value::Object(found)
        }
        (Value::Array(found), Value::Array(wanted)) if found.len() == wanted.len() => {
            let pairs = found.into_iter().zip(wanted);
            pairs.map(|(found, wanted)| applied(found, wanted)).collect()
        }
        (_, wanted) => wanted.clone(),
    }
}

/// Takes out of `object` the fields that only Quorate owns and `wanted` names no more: server-side apply removes them
/// (<https://kubernetes.io/docs/reference/using-api/server-side-apply/#field-management>).
fn for_others(live: &Value, wanted: &Value, object: &mut Value) {
    let entries = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    let entries: Vec<&Value> = entries.into_iter().flatten().collect();
    let ours = |entry: &&&Value| {
        entry.get("manager").and_then(Value::as_str) == Some(MANAGER)
            && entry.get("operation").and_then(Value::as_str) != Some("Update")
    };
    let others: Vec<&Value> = entries
        .iter()
        .filter(|entry| !ours(entry))
        .filter_map(|entry| entry.get("fieldsV1"))
        .collect();
    for fields in entries.iter().filter(ours).filter_map(|entry| entry.get("fieldsV1")) {
        release(fields, &others, wanted, object);
    }
}

/// `fields`: a set as `fieldsV1` writes it, `f:name` for each field of an object. Elements of lists (`k:…`, `v:…`) are left
/// to [`applied`].
fn release(fields: &Value, others: &[&Value], wanted: &Value, object: &mut Value) {
    let (Some(fields), Some(object)) = (fields.as_object(), object.as_object_mut()) else {
        return;
    };
    for (key, inside) in fields {
        let Some(name) = key.strip_prefix("f:") else { continue };
        let owners: Vec<&Value> = others.iter().filter_map(|other| other.get(key)).collect();
        match (wanted.get(name), object.get_mut(name)) {
            (None, Some(_)) if owners.is_empty() => {
                object.remove(name);
            }
            (wanted, Some(value)) => release(inside, &owners, wanted.unwrap_or(&Value::Null), value),
            (_, None) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(path: &str, body: Value, before: Option<Value>) -> ApiObject {
        ApiObject {
            path: path.into(),
            body,
            secrets: Vec::new(),
            before,
        }
    }

    #[test]
    fn a_changed_object_shows_what_changes_and_nothing_the_server_adds() {
        let container = |image: &str| json!({"name": "coredns", "image": image});
        let deployment = |image: &str| json!({"kind": "Deployment", "metadata": {"name": "coredns"}, "spec": {"replicas": 2, "template": {"spec": {"containers": [container(image)]}}}});
        let mut live = deployment("coredns:1");
        live["metadata"]["uid"] = json!("1234");
        live["metadata"]["managedFields"] = json!([]);
        live["status"] = json!({"replicas": 2});
        live["spec"]["revisionHistoryLimit"] = json!(10);
        live["spec"]["template"]["spec"]["containers"][0]["terminationMessagePath"] = json!("/dev/termination-log");
        let shown = diff(&object("/apis/apps/v1/x", deployment("coredns:2"), Some(live)));
        let lines: Vec<&str> = shown
            .lines()
            .filter(|line| line.starts_with(['+', '-']))
            .map(str::trim_end)
            .collect();
        assert_eq!(lines.len(), 4, "{shown}");
        assert_eq!(lines[..2], ["--- /apis/apps/v1/x", "+++ /apis/apps/v1/x"]);
        assert!(
            lines[2].starts_with('-') && lines[2].ends_with("image: coredns:1"),
            "{shown}"
        );
        assert!(
            lines[3].starts_with('+') && lines[3].ends_with("image: coredns:2"),
            "{shown}"
        );
    }

    #[test]
    fn a_field_that_is_ours_and_no_longer_wanted_goes_unless_somebody_else_owns_it() {
        let live = json!({"metadata": {
            "name": "m4",
            "labels": {"zone": "a", "shared": "b", "kubernetes.io/os": "linux"},
            "managedFields": [
                {"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:metadata": {"f:labels": {"f:kubernetes.io/os": {}, "f:shared": {}}}}},
                {"manager": "quorate", "operation": "Apply", "fieldsV1": {"f:metadata": {"f:labels": {"f:zone": {}, "f:shared": {}}}}},
            ],
        }});
        let wanted = json!({"metadata": {"name": "m4", "labels": {}}});
        let shown = diff(&object("/api/v1/nodes/m4", wanted, Some(live)));
        let removed: Vec<&str> = shown.lines().skip(2).filter(|line| line.starts_with('-')).collect();
        assert_eq!(removed, ["-    zone: a"], "{shown}");
        assert!(!shown.contains("managedFields"), "{shown}");
    }

    #[test]
    fn what_a_secret_holds_is_never_shown() {
        let secret = |value: &str| json!({"kind": "Secret", "metadata": {"name": "s"}, "data": {"password": value}});
        let changed = diff(&object("/s", secret("Q0FOQVJZ"), Some(secret("WVJBTkFD"))));
        assert!(
            !changed.contains("Q0FOQVJZ") && !changed.contains("WVJBTkFD"),
            "{changed}"
        );
        let token = json!({"kind": "Secret", "stringData": {"token-secret": "{{secret:bootstrap-token-secret}}", "group": "g"}});
        let created = diff(&object("/s", token, None));
        assert!(created.starts_with("--- /dev/null\n+++ /s\n"), "{created}");
        assert!(created.contains("{{secret:bootstrap-token-secret}}"), "{created}");
    }

    /// A configuration inside a ConfigMap changes by its lines.
    #[test]
    fn text_within_an_object_is_shown_line_by_line() {
        let map = |port: u16| {
            let lines: Vec<String> = (1..=9).map(|n| format!("line {n}")).collect();
            json!({"kind": "ConfigMap", "data": {"Corefile": format!("{}\nport: {port}\n", lines.join("\n"))}})
        };
        let shown = diff(&object("/c", map(54), Some(map(53))));
        assert!(shown.contains("port: 53") && shown.contains("port: 54"), "{shown}");
        assert!(!shown.contains("line 1\\n") && !shown.contains(" line 1\n"), "{shown}");
    }
}
