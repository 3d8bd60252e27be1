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
/// Names the labels that an apply takes away.
const REMOVED: &str = "quorate.dev/removed-labels";

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "labels", "labels and taints are as declared");
    let objects = context
        .reached(context.spec.nodes())
        .into_iter()
        .map(|machine| node(machine, context.live(&node_path(&machine.name))))
        .collect();
    draft.objects("nodes", "label and taint nodes", objects, Vec::new(), &[]);
    // The annotation is how a label leaves; what the reader should know is that it does.
    for why in draft.stage.steps.iter_mut().flat_map(|step| &mut step.why) {
        if let Some((node, _)) = why.split_once(": ").filter(|(_, reason)| reason.contains(REMOVED)) {
            *why = format!("{node}: a label is no longer declared");
        }
    }
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
        body["metadata"]["annotations"][REMOVED] = json!(stale.into_iter().collect::<Vec<_>>().join(","));
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
        // Server-side apply removes what we own and do not repeat: the list goes along as it is.
        return owned(live)
            .any(|fields| fields.pointer("/f:spec/f:taints").is_some())
            .then_some(found);
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
    owned(live)
        .filter_map(|fields| fields.pointer("/f:metadata/f:labels").and_then(Value::as_object))
        .flat_map(|labels| labels.keys().filter_map(|key| key.strip_prefix("f:")))
        .filter(|key| !machine.labels.contains_key(*key))
        .map(str::to_owned)
        .collect()
}

/// The fields that are Quorate's, as `fieldsV1` writes them.
fn owned(live: &Value) -> impl Iterator<Item = &Value> {
    let managed = live.pointer("/metadata/managedFields").and_then(Value::as_array);
    managed
        .into_iter()
        .flatten()
        .filter(|entry| entry.get("manager").and_then(Value::as_str) == Some("quorate"))
        .filter_map(|entry| entry.get("fieldsV1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node as the API server shows it after our apply: labels and taints, and what of it is ours.
    fn live(labels: Value, taints: Value, ours: Value, noted: &str) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": "m4",
                "labels": labels,
                "annotations": {TAINTS: noted},
                "managedFields": [
                    {"manager": "kubelet", "fieldsV1": {"f:metadata": {"f:labels": {"f:kubernetes.io/os": {}}}}},
                    {"manager": "quorate", "fieldsV1": ours},
                ],
            },
            "spec": {"taints": taints},
        })
    }

    fn machine(labels: &[(&str, &str)], taints: &[&str]) -> Machine {
        let quoted: Vec<String> = taints.iter().map(|taint| format!("\"{taint}\"")).collect();
        let text = format!(
            "apiVersion: quorate.dev/v1\nkind: Cluster\nmetadata: {{name: t}}\nspec:\n  machines:\n    \
             - {{name: m1, address: 10.0.0.1, roles: [control-plane]}}\n    \
             - {{name: m4, address: 10.0.0.4, roles: [worker], taints: [{}]}}\n",
            quoted.join(", ")
        );
        let spec = quorate_spec::load(&text, "t").expect("a good file").0;
        let mut machine = spec.machines[1].clone();
        machine.labels = labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect();
        machine
    }

    fn differs(machine: &Machine, live: &Value) -> Option<String> {
        crate::json::difference(&node(machine, Some(live)).body, live)
    }

    #[test]
    fn a_label_taken_out_of_the_file_is_drift_and_others_labels_are_not() {
        let ours = json!({"f:metadata": {"f:labels": {"f:zone": {}}}});
        let found = live(json!({"zone": "a", "kubernetes.io/os": "linux"}), json!([]), ours, "");
        assert_eq!(differs(&machine(&[("zone", "a")], &[]), &found), None);
        assert_eq!(
            differs(&machine(&[("zone", "b")], &[]), &found).as_deref(),
            Some("metadata.labels.zone differs")
        );
        let reason = differs(&machine(&[], &[]), &found).expect("a reason");
        assert!(reason.contains("removed-labels"), "{reason}");
        // What is sent names the label no more, which is what removes it.
        assert_eq!(
            node(&machine(&[], &[]), Some(&found)).body["metadata"]["labels"],
            json!({})
        );
    }

    #[test]
    fn taints_of_the_file_come_and_go_and_those_of_the_cluster_stay() {
        let cordoned = json!({"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"});
        let ours = json!({"key": "gpu", "value": "yes", "effect": "NoSchedule"});
        let owning = json!({"f:spec": {"f:taints": {}}});
        let found = live(json!({}), json!([ours, cordoned]), owning, "gpu=yes:NoSchedule");
        let sent = |machine: &Machine| node(machine, Some(&found)).body["spec"]["taints"].clone();
        // Nothing differs, and nothing is lost if the node is applied for another reason.
        let same = machine(&[], &["gpu=yes:NoSchedule"]);
        assert_eq!(differs(&same, &found), None);
        assert_eq!(sent(&same), json!([ours, cordoned]));
        assert_eq!(sent(&machine(&[], &[])), json!([cordoned]));
        assert!(differs(&machine(&[], &[]), &found).is_some());
        let more = sent(&machine(&[], &["gpu=yes:NoSchedule", "old:NoExecute"]));
        assert_eq!(more.as_array().map(Vec::len), Some(3));
    }
}
