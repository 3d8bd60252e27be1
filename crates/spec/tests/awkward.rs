//! Cluster files as people get them wrong. Each file of `awkward/` is read, and what the user would see is compared
//! with the snapshot beside it; every finding code must be seen at least once.

#![allow(clippy::disallowed_methods, reason = "tests read their files; the library does not")]

use std::collections::BTreeSet;
use std::path::Path;

fn files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/awkward");
    let mut files: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .map(|path| {
            (
                path.file_stem().unwrap().to_str().unwrap().to_owned(),
                std::fs::read_to_string(path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

/// Files too large or too repetitive to keep.
fn made() -> Vec<(String, String)> {
    let bomb = {
        let mut text = String::from("a: &a [x,x,x,x,x,x,x,x,x]\n");
        for (now, last) in [("b", "a"), ("c", "b"), ("d", "c"), ("e", "d"), ("f", "e"), ("g", "f")] {
            text.push_str(&format!("{now}: &{now} [{}]\n", vec![format!("*{last}"); 9].join(",")));
        }
        text
    };
    let many = |count: usize, role: &str| -> String {
        let list = |n: std::ops::Range<usize>, role: &str| -> String {
            n.map(|i| {
                format!(
                    "    - {{address: 10.77.{}.{}, roles: [{role}]}}\n",
                    i / 250,
                    i % 250 + 1
                )
            })
            .collect()
        };
        format!(
            "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  endpoint: {{vip: 10.77.0.254}}\n  machines:\n{}{}",
            list(0..3, "control-plane"),
            list(3..3 + count, role)
        )
    };
    vec![
        ("made-alias-bomb".to_owned(), bomb),
        (
            "made-deep-nesting".to_owned(),
            format!("a: {}{}\n", "[".repeat(5000), "]".repeat(5000)),
        ),
        ("made-too-large".to_owned(), "x".repeat(9 << 20)),
        ("made-300-workers".to_owned(), many(300, "worker")),
        ("made-9-load-balancers".to_owned(), many(9, "load-balancer")),
        ("made-9-etcd-members".to_owned(), many(9, "etcd")),
        ("made-binary".to_owned(), "\u{0}\u{1}\u{2}PK\u{3}".to_owned()),
    ]
}

#[test]
fn every_awkward_file_is_explained() {
    let mut seen = BTreeSet::new();
    let files: Vec<_> = files().into_iter().chain(made()).collect();
    assert!(files.len() >= 60, "{} files", files.len());
    for (name, text) in &files {
        let (verdict, findings) = match quorate_spec::load(text, &format!("{name}.yaml")) {
            Ok((_, warnings)) => ("usable", warnings),
            Err(findings) => ("refused", findings),
        };
        assert!(!findings.is_empty(), "{name} is not awkward");
        seen.extend(findings.iter().map(|f| f.code));
        for finding in &findings {
            assert!(finding.fix.is_some(), "{name}: {} has no fix", finding.code);
            assert!(text.get(finding.span.clone()).is_some(), "{name}: {:?}", finding.span);
        }
        let rendered = quorate_spec::render(&findings, text, false);
        insta::with_settings!({snapshot_path => "awkward", prepend_module_to_snapshot => false, omit_expression => true}, {
            insta::assert_snapshot!(name.as_str(), format!("{verdict}\n\n{rendered}"));
        });
    }
    let unseen: Vec<_> = quorate_spec::CODES.iter().filter(|c| !seen.contains(*c)).collect();
    assert!(unseen.is_empty(), "no awkward file shows {unseen:?}");
}
