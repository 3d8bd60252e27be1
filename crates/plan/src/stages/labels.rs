//! Labels and taints: as declared, at every apply.

use std::collections::BTreeSet;

use quorate_spec::Machine;
use serde_json::{Map, Value, json};

use crate::components::objects::object;
use crate::model::*;
use crate::stages::Planned;
use crate::stages::nodes::node_path;
use crate::want::{Context, Draft};

/// Remembers on the node which taints came from the cluster file, so that one taken out of it can be told from one the
/// cluster put there itself. (Labels need no such thing: server-side apply knows their owner.)
const TAINTS: &str = "quorate.dev/taints";

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "labels", "labels and taints are as declared");
    let objects = context
        .reached(context.spec.nodes())
        .into_iter()
        .map(|machine| node(machine, context.live(&node_path(&machine.name))))
        .collect();
    draft.objects("nodes", "label and taint nodes", objects, Vec::new(), &[]);
    draft.stage.into()
}

fn node(machine: &Machine, live: Option<&Value>) -> ApiObject {
    let keys: Vec<String> = machine.taints.iter().map(ToString::to_string).collect();
    let mut body = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": machine.name, "labels": machine.labels},
    });
    if !keys.is_empty() {
        body["metadata"]["annotations"][TAINTS] = json!(keys.join(","));
    }
    // A label we own and no longer declare goes away by itself with server-side apply, but only if an apply is sent.
    if let Some(stale) = live
        .map(|live| stale_labels(live, machine))
        .filter(|stale| !stale.is_empty())
    {
        body["metadata"]["annotations"]["quorate.dev/removed-labels"] =
            json!(stale.into_iter().collect::<Vec<_>>().join(","));
    }
    if let Some(live) = live
        && let Some(taints) = taints(machine, live)
    {
        body["spec"] = json!({"taints": taints});
    }
    object(node_path(&machine.name), body)
}

/// The whole list of taints as it should be, if it differs: ours as declared, everybody else's as they are.
fn taints(machine: &Machine, live: &Value) -> Option<Vec<Value>> {
    let before: BTreeSet<&str> = live
        .pointer("/metadata/annotations")
        .and_then(|all| all.get(TAINTS))
        .and_then(Value::as_str)
        .unwrap_or_default()
        .split(',')
        .filter(|key| !key.is_empty())
        .collect();
    let found = live
        .pointer("/spec/taints")
        .and_then(Value::as_array)
        .cloned()
        .unwrap_or_default();
    let wanted: BTreeSet<String> = machine.taints.iter().map(ToString::to_string).collect();
    let present: BTreeSet<String> = found.iter().map(text).collect();
    let surplus: BTreeSet<&str> = before
        .iter()
        .copied()
        .filter(|key| present.contains(*key) && !wanted.contains(*key))
        .collect();
    if surplus.is_empty() && wanted.is_subset(&present) {
        return None;
    }
    let keep = found
        .iter()
        .filter(|taint| !surplus.contains(text(taint).as_str()) && !wanted.contains(&text(taint)));
    Some(machine.taints.iter().map(declared).chain(keep.cloned()).collect())
}

fn declared(taint: &quorate_spec::Taint) -> Value {
    let mut fields = Map::from_iter([
        ("key".to_owned(), json!(taint.key)),
        ("effect".to_owned(), json!(format!("{:?}", taint.effect))),
    ]);
    if !taint.value.is_empty() {
        fields.insert("value".into(), json!(taint.value));
    }
    Value::Object(fields)
}

/// `key=value:Effect`, as [`quorate_spec::Taint`] prints.
fn text(taint: &Value) -> String {
    let field = |name: &str| taint.get(name).and_then(Value::as_str).unwrap_or_default();
    let equals = if field("value").is_empty() { "" } else { "=" };
    format!("{}{equals}{}:{}", field("key"), field("value"), field("effect"))
}

/// Labels whose owner is Quorate (by managed fields) and which are no longer declared.
fn stale_labels(live: &Value, machine: &Machine) -> BTreeSet<String> {
    let managed = live
        .pointer("/metadata/managedFields")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    managed
        .filter(|entry| entry.get("manager").and_then(Value::as_str) == Some("quorate"))
        .filter_map(|entry| {
            entry
                .pointer("/fieldsV1/f:metadata/f:labels")
                .and_then(Value::as_object)
        })
        .flat_map(|labels| labels.keys().filter_map(|key| key.strip_prefix("f:")))
        .filter(|key| !machine.labels.contains_key(*key))
        .map(str::to_owned)
        .collect()
}
