//! Damaged files: whatever stands in the text, it is read without a panic, in time, and every finding can be shown.

#![allow(clippy::disallowed_methods, reason = "tests read their files; the library does not")]

use std::path::Path;

use quorate_spec::{load, render};

/// xorshift64*, seeded: a failure comes back with the same number.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % limit.max(1)
    }
}

fn texts() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<_> = [root.join("tests/awkward"), root.join("../../examples")]
        .iter()
        .flat_map(|folder| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()))
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

#[test]
fn damaged_files_are_explained_too() {
    let texts = texts();
    let pieces = [
        "\n",
        "  ",
        "- ",
        ": ",
        "{",
        "}",
        "[",
        "]",
        "\"",
        "'",
        "#",
        "*m",
        "&m ",
        "<<: ",
        "\t",
        "ü",
        "0",
        "-1",
        "null",
        "~",
        "|",
        ",",
        "\r\n",
        "99999999999999999999",
        "1e400",
        "---\n",
        "!!str ",
        "? ",
    ];
    for seed in 1..=3000 {
        let mut random = Random(seed);
        let mut text = texts[random.below(texts.len())].clone();
        for _ in 0..=random.below(4) {
            let mut at = random.below(text.len() + 1);
            while !text.is_char_boundary(at) {
                at -= 1;
            }
            let mut end = (at + random.below(12)).min(text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            let piece = match random.below(3) {
                0 => "",
                _ => pieces[random.below(pieces.len())],
            };
            text.replace_range(at..end, piece);
        }
        let findings = match load(&text, "damaged.yaml") {
            Ok((_, warnings)) => warnings,
            Err(findings) => {
                assert!(!findings.is_empty(), "seed {seed}: refused without a finding\n{text}");
                findings
            }
        };
        let shown = render(&findings, &text, seed % 2 == 0);
        assert_eq!(shown.is_empty(), findings.is_empty(), "seed {seed}");
    }
}

#[test]
fn two_thousand_machines_are_read_quickly() {
    let mut text = String::from(
        "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  network: {pods: 10.128.0.0/12}\n  machines:\n",
    );
    for i in 0..2000 {
        let role = if i < 3 { "control-plane" } else { "worker" };
        text.push_str(&format!(
            "    - {{name: n{i}, address: 10.77.{}.{}, roles: [{role}], labels: {{rack: r{}}}}}\n",
            i / 250,
            i % 250 + 1,
            i / 40
        ));
    }
    let started = std::time::Instant::now();
    let (spec, findings) = load(&text, "large.yaml").unwrap_or_else(|f| panic!("{}", render(&f, &text, false)));
    assert_eq!((spec.nodes().len(), findings.len()), (2000, 0));
    // A tenth of that with optimisation; quadratic work would take minutes.
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}
