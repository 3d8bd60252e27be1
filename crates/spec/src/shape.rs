//! Compares the tree with the JSON schema: unknown, repeated, missing and mistyped fields, all at once. What is wrong
//! is reported and left out, so that the rest can still be checked.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json};

use crate::document::{Document, Path};
use crate::schema::schema;
use crate::suggest::closest;
use crate::yaml::{Node, Value};

/// Names that other tools use for what stands in a cluster file under another one.
const ELSEWHERE: &[(&str, &str)] = &[
    ("podsubnet", "spec.network.pods"),
    ("podcidr", "spec.network.pods"),
    ("podscidr", "spec.network.pods"),
    ("clustercidr", "spec.network.pods"),
    ("servicesubnet", "spec.network.services"),
    ("servicecidr", "spec.network.services"),
    ("servicescidr", "spec.network.services"),
    ("controlplaneendpoint", "spec.endpoint.vip"),
    ("virtualip", "spec.endpoint.vip"),
    ("routerid", "spec.endpoint.vrid"),
    ("virtualrouterid", "spec.endpoint.vrid"),
    ("kubernetesversion", "spec.kubernetes.version"),
    ("clustername", "metadata.name"),
    ("dnsdomain", "spec.kubernetes.domain"),
    ("clusterdomain", "spec.kubernetes.domain"),
    ("certsans", "spec.kubernetes.apiServer.sans"),
    ("clusterdns", "spec.dns.clusterIp"),
    ("hosts", "spec.machines"),
    ("nodes", "spec.machines"),
    ("servers", "spec.machines"),
    ("ip", "spec.machines[].address"),
    ("host", "spec.machines[].address"),
    ("privateaddress", "spec.machines[].address"),
    ("internaladdress", "spec.machines[].address"),
    ("hostname", "spec.machines[].name"),
    ("role", "spec.machines[].roles"),
    ("keypath", "spec.ssh.identity"),
    ("privatekeypath", "spec.ssh.identity"),
    ("bastion", "spec.ssh.jump"),
];

/// What is left of the document after everything wrong was reported: fits the raw types.
pub(crate) fn check(document: &mut Document<'_>) -> Json {
    let root = document.root.clone();
    Shape { document }
        .value(&root, schema(), &Path::default())
        .unwrap_or_else(|| Json::Object(Map::new()))
}

struct Shape<'d, 'a> {
    document: &'d mut Document<'a>,
}

impl Shape<'_, '_> {
    /// `None`: absent, null or wrong.
    fn value(&mut self, node: &Node, schema: &Json, at: &Path) -> Option<Json> {
        if matches!(node.value, Value::Null) {
            return None;
        }
        if let Some(words) = schema.get("oneOf").and_then(Json::as_array) {
            return self.word(node, words, schema, at);
        }
        if let Some(constant) = schema.get("const").and_then(Json::as_str) {
            return self.constant(node, constant, at);
        }
        if let Some(choices) = schema.get("anyOf").and_then(Json::as_array) {
            let wanted = if matches!(node.value, Value::List(_)) {
                "array"
            } else {
                "string"
            };
            let choice = choices.iter().find(|c| c["type"] == wanted).unwrap_or(schema);
            return self.value(node, choice, at);
        }
        match schema["type"].as_str().unwrap_or_default() {
            "object" => self.object(node, schema, at),
            "array" => self.list(node, schema, at),
            "integer" => self.integer(node, schema, at),
            "boolean" => match node.value {
                Value::Bool(value) => Some(Json::Bool(value)),
                _ => self.wrong_type(node, "true or false", schema, at),
            },
            _ => match node.value {
                Value::List(_) | Value::Map(_) => self.wrong_type(node, "text", schema, at),
                _ => Some(Json::String(self.document.raw_text(node))),
            },
        }
    }

    fn object(&mut self, node: &Node, schema: &Json, at: &Path) -> Option<Json> {
        let Value::Map(entries) = &node.value else {
            return self.wrong_type(node, "a mapping", schema, at);
        };
        let empty = Map::new();
        let fields = schema.get("properties").and_then(Json::as_object).unwrap_or(&empty);
        let rest = schema.get("additionalProperties").filter(|s| s.is_object());
        let mut seen = BTreeMap::new();
        let mut out = Map::new();
        for (key, value) in entries {
            let here = at.join(&key.name);
            if let Some(first) = seen.insert(key.name.clone(), key.span.clone()) {
                let text = self.document.text;
                let message = format!("`{}` is given twice", key.name);
                self.document
                    .error_at("duplicate-key", &here, key.span.clone(), message)
                    .reason("only one of them can be meant, and YAML programs do not agree on which one counts")
                    .fix("keep one of them")
                    .also(text, first, "first given here");
                continue;
            }
            match fields.get(&key.name).or(rest) {
                Some(schema) => {
                    if let Some(value) = self.value(value, schema, &here) {
                        out.insert(key.name.clone(), value);
                    }
                }
                None => self.unknown(&key.name, key.span.clone(), fields, at),
            }
        }
        for name in schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten()
            .filter_map(Json::as_str)
        {
            if entries
                .iter()
                .all(|(key, value)| key.name != name || matches!(value.value, Value::Null))
            {
                self.missing(name, &fields[name], at);
            }
        }
        Some(Json::Object(out))
    }

    fn list(&mut self, node: &Node, schema: &Json, at: &Path) -> Option<Json> {
        let Value::List(items) = &node.value else {
            return self.wrong_type(node, "a list", schema, at);
        };
        if items.is_empty() && schema.get("minItems").is_some() {
            self.document
                .error("empty-list", at, format!("`{}` is empty", last(at)))
                .reason(sentence(schema))
                .fix(example(last(at)));
        }
        let mut of_items = schema["items"].clone();
        if of_items.get("description").is_none() {
            of_items["description"] = schema["description"].clone();
        }
        let mut out = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let here = at.join(i);
            if matches!(item.value, Value::Null) {
                self.wrong_type(item, kind_of(&of_items), &of_items, &here);
            }
            // A wrong item keeps its place, so that later findings point at the right line.
            let value = self.value(item, &of_items, &here);
            match (value, of_items["type"].as_str()) {
                (Some(value), _) => out.push(value),
                (None, Some("object")) => out.push(Json::Object(Map::new())),
                (None, _) => {}
            }
        }
        Some(Json::Array(out))
    }

    fn integer(&mut self, node: &Node, schema: &Json, at: &Path) -> Option<Json> {
        let Value::Int(value) = node.value else {
            return self.wrong_type(node, "a whole number", schema, at);
        };
        let limit = |name: &str| schema.get(name).and_then(Json::as_i64).map(i128::from);
        let (least, most) = (
            limit("minimum").unwrap_or(0),
            limit("maximum").unwrap_or(i128::from(u32::MAX)),
        );
        if !(least..=most).contains(&value) {
            self.document
                .error(
                    "out-of-range",
                    at,
                    format!("`{}: {value}` is not between {least} and {most}", last(at)),
                )
                .reason(sentence(schema))
                .fix(format!("write a number from {least} to {most}"));
            return None;
        }
        i64::try_from(value).ok().map(Json::from)
    }

    fn word(&mut self, node: &Node, words: &[Json], schema: &Json, at: &Path) -> Option<Json> {
        if matches!(node.value, Value::List(_) | Value::Map(_)) {
            return self.wrong_type(node, "one word", schema, at);
        }
        let text = self.document.raw_text(node);
        let known: Vec<&str> = words.iter().filter_map(|w| w["const"].as_str()).collect();
        if known.contains(&text.as_str()) {
            return Some(Json::String(text));
        }
        let field = if at.0.last().is_some_and(|l| l.parse::<usize>().is_ok()) {
            &at.0[at.0.len() - 2]
        } else {
            last(at)
        };
        let list = known.iter().map(|w| format!("`{w}`")).collect::<Vec<_>>().join(", ");
        let fix = match closest(&text, known.iter().copied()) {
            Some(close) => format!("did you mean `{close}`? Possible are {list}"),
            None => format!("write one of {list}"),
        };
        let message = format!("`{text}` is no possible value of `{field}`");
        self.document
            .error("unknown-value", at, message)
            .reason(sentence(schema))
            .fix(fix);
        None
    }

    fn constant(&mut self, node: &Node, constant: &str, at: &Path) -> Option<Json> {
        let text = match node.value {
            Value::List(_) | Value::Map(_) => node.value.kind().to_owned(),
            _ => self.document.raw_text(node),
        };
        if text == constant {
            return Some(Json::String(text));
        }
        let code = if last(at) == "kind" {
            "wrong-kind"
        } else {
            "wrong-api-version"
        };
        let reason = if text.contains("kubeadm") || text.contains("k8s.io") || text == "ClusterConfiguration" {
            "this looks like a file for another program; Quorate renders kubeadm's and the components' files itself"
        } else {
            "this program reads exactly this kind of file, so that a newer format is never half understood"
        };
        self.document
            .error(
                code,
                at,
                format!("`{}: {text}` is not a Quorate cluster file", last(at)),
            )
            .reason(reason)
            .fix(format!(
                "write `{}: {constant}`; `quorate init` writes a file to start from",
                last(at)
            ));
        None
    }

    fn wrong_type(&mut self, node: &Node, wanted: &str, schema: &Json, at: &Path) -> Option<Json> {
        let text = self.document.raw_text(node);
        let found = match &node.value {
            Value::Text(_) | Value::Bool(_) | Value::Int(_) | Value::Float => {
                format!("{} `{}`", node.value.kind(), text.lines().next().unwrap_or_default())
            }
            other => other.kind().to_owned(),
        };
        let (field, of) = match at.0.last() {
            Some(index) if index.parse::<usize>().is_ok() && at.0.len() > 1 => (&at.0[at.0.len() - 2], "an item of "),
            Some(field) => (field, ""),
            None => {
                self.document
                    .error("wrong-type", at, format!("the file is {found}, not a mapping"))
                    .fix("start with `apiVersion: quorate.dev/v1`; `quorate init` writes a file to start from");
                return None;
            }
        };
        let message = format!("{of}`{field}` must be {wanted}, found {found}");
        let field = field.clone();
        let finding = self.document.error("wrong-type", at, message).reason(sentence(schema));
        let unquoted = match (&node.value, wanted) {
            (Value::Text(t), "a whole number") => t.trim().parse::<i64>().ok().map(|n| n.to_string()),
            (Value::Text(t), "true or false") => match t.to_lowercase().as_str() {
                "yes" | "on" | "true" | "y" => Some("true".to_owned()),
                "no" | "off" | "false" | "n" => Some("false".to_owned()),
                _ => None,
            },
            (Value::Text(_) | Value::Int(_) | Value::Float | Value::Bool(_), "a list") => Some(format!("[{text}]")),
            _ => None,
        };
        finding.fix(match unquoted {
            Some(value) if of.is_empty() => format!("write `{field}: {value}`"),
            _ => example(&field),
        });
        None
    }

    fn unknown(&mut self, name: &str, span: std::ops::Range<usize>, fields: &Map<String, Json>, at: &Path) {
        let here = at.join(name);
        let known = fields.keys().map(String::as_str);
        let plain = name.to_lowercase().replace(['-', '_'], "");
        let elsewhere = ELSEWHERE
            .iter()
            .find(|(word, _)| *word == plain)
            .map(|(_, field)| (*field).to_owned());
        let mut moved = Vec::new();
        find_field(schema(), name, "", &mut moved);
        let place = if at.0.is_empty() {
            "at the top of the file".to_owned()
        } else {
            format!("in `{}`", self.parent_name(at))
        };
        let fix = if let Some(close) = closest(name, known.clone()) {
            format!("did you mean `{close}`?")
        } else if let Some(field) = elsewhere {
            format!("what other tools call `{name}` is `{field}` here")
        } else if (1..=3).contains(&moved.len()) {
            let parents: Vec<String> = moved
                .iter()
                .filter_map(|m| m.rsplit_once('.'))
                .map(|(parent, _)| format!("`{parent}`"))
                .collect();
            format!("`{name}` belongs under {}", parents.join(" or "))
        } else {
            format!(
                "known here are {}",
                known.map(|k| format!("`{k}`")).collect::<Vec<_>>().join(", ")
            )
        };
        self.document
            .error_at(
                "unknown-field",
                &here,
                span,
                format!("there is no field `{name}` {place}"),
            )
            .reason("a field that is not understood is never passed over, since it was written for a purpose")
            .fix(fix);
    }

    fn missing(&mut self, name: &str, schema: &Json, at: &Path) {
        let place = if at.0.is_empty() {
            "the file".to_owned()
        } else {
            format!("`{}`", self.parent_name(at))
        };
        self.document
            .error("missing-field", at, format!("{place} has no `{name}`"))
            .reason(sentence(schema))
            .fix(example(name));
    }

    fn parent_name(&self, at: &Path) -> String {
        let mut out = String::new();
        for step in &at.0 {
            match step.parse::<usize>() {
                Ok(i) => out.push_str(&format!("[{i}]")),
                Err(_) if out.is_empty() => out.push_str(step),
                Err(_) => out.push_str(&format!(".{step}")),
            }
        }
        out
    }
}

/// Paths of all fields called `name`, except directly at the top.
fn find_field(schema: &Json, name: &str, at: &str, out: &mut Vec<String>) {
    for (key, field) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
        let here = if at.is_empty() {
            key.clone()
        } else {
            format!("{at}.{key}")
        };
        if key == name {
            out.push(here.clone());
        }
        find_field(field, name, &here, out);
        if let Some(items) = field.get("items") {
            find_field(items, name, &format!("{here}[]"), out);
        }
    }
}

fn last(at: &Path) -> &str {
    at.0.last().map_or("", String::as_str)
}

/// The field's own description as the reason.
fn sentence(schema: &Json) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    let text = text.split(" Default: ").next().unwrap_or(text).trim_end_matches('.');
    if text.is_empty() {
        String::new()
    } else {
        format!("the reference says: {text}")
    }
}

fn kind_of(schema: &Json) -> &'static str {
    match schema["type"].as_str() {
        Some("object") => "a mapping",
        Some("integer") => "a whole number",
        Some("boolean") => "true or false",
        Some("array") => "a list",
        _ => "text",
    }
}

/// How the field is written.
fn example(field: &str) -> String {
    match field {
        "apiVersion" => "write `apiVersion: quorate.dev/v1`".to_owned(),
        "kind" => "write `kind: Cluster`".to_owned(),
        "spec" => "write `spec:` and below it at least `machines:`".to_owned(),
        "machines" => "write a list such as `- {address: 10.0.0.11, roles: [control-plane]}`".to_owned(),
        "address" => "write `address: 10.0.0.11`, the address the others reach this machine at".to_owned(),
        "roles" => "write `roles: [control-plane]`, or worker, etcd, load-balancer".to_owned(),
        "taints" => "write `taints: [\"key=value:NoSchedule\"]`".to_owned(),
        "labels" => "write `labels: {zone: a}`".to_owned(),
        "bundle" => "write `bundle: {path: FILE}`".to_owned(),
        "etcd" => "write `etcd: {topology: stacked}`".to_owned(),
        "endpoint" => "write `endpoint: {vip: 10.0.0.100}`".to_owned(),
        "kubernetes" => "write `kubernetes: {version: v1.36.3}`".to_owned(),
        "network" => "write `network: {pods: 10.244.0.0/16}`".to_owned(),
        _ => format!("see `{field}` in the reference of the cluster file, or `quorate schema`"),
    }
}
