//! The schema and the reference page in docs/ are what the types say. `INSTA_UPDATE=always` writes them anew.

#![allow(clippy::disallowed_methods, reason = "tests read their files; the library does not")]

use std::path::Path;

fn compare(file: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../docs/reference")
        .join(file);
    if std::env::var("INSTA_UPDATE").is_ok_and(|v| v == "always") {
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "docs/reference/{file} is not up to date: run the test with INSTA_UPDATE=always"
    );
}

#[test]
fn the_schema_is_up_to_date() {
    compare(
        "cluster.schema.json",
        &format!("{}\n", serde_json::to_string_pretty(quorate_spec::schema()).unwrap()),
    );
}

#[test]
fn the_reference_page_is_up_to_date() {
    compare("cluster-file.md", &quorate_spec::reference());
}

/// Writes every default of the schema out and expects no difference: the documentation does not lie.
#[test]
fn documented_defaults_are_the_real_ones() {
    let machines = "machines:\n    - {address: 10.77.0.11, roles: [control-plane]}\n    - {address: 10.77.0.12, roles: [control-plane]}\n    - {address: 10.77.0.13, roles: [control-plane]}\n";
    let head = "apiVersion: quorate.dev/v1\nkind: Cluster\n";
    let text = format!("{head}metadata: {{}}\nspec:\n  endpoint: {{vip: 10.77.0.100, statistics: {{}}}}\n  {machines}");
    let (plain, _) = quorate_spec::load(&text, "plain.yaml").unwrap();

    let mut full = defaults(quorate_spec::schema());
    full["apiVersion"] = "quorate.dev/v1".into();
    full["kind"] = "Cluster".into();
    full["spec"]["endpoint"]["vip"] = "10.77.0.100".into();
    full["spec"]["machines"] = serde_json::json!([
        {"address": "10.77.0.11", "roles": ["control-plane"]},
        {"address": "10.77.0.12", "roles": ["control-plane"]},
        {"address": "10.77.0.13", "roles": ["control-plane"]},
    ]);
    let text = serde_json::to_string_pretty(&full).unwrap();
    let (written, _) = quorate_spec::load(&text, "full.yaml")
        .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, &text, false)));
    assert_eq!(plain, written);
}

fn defaults(schema: &serde_json::Value) -> serde_json::Value {
    let mut out = serde_json::Map::new();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(default) = field.get("default") {
            out.insert(name.clone(), default.clone());
        } else if field["properties"].is_object() {
            out.insert(name.clone(), defaults(field));
        }
    }
    out.into()
}
