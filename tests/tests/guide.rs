//! The guide says what is so: its commands run, its links lead somewhere.

#![expect(clippy::print_stderr, reason = "stories say what they skip")]

use std::path::{Path, PathBuf};
use std::process::Command;

use quorate_tests::quorate;

fn checkout() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> = std::fs::read_dir(checkout().join("docs/guide"))
        .expect("the guide")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .collect();
    pages.sort();
    assert!(pages.len() >= 6, "a page per design and one to choose by: {pages:?}");
    pages
}

/// Commands after a `$ ` work on paper: they need the checkout and nothing else.
#[test]
fn commands_on_paper_run() {
    let program = match quorate() {
        Ok(program) => program,
        Err(reason) => {
            eprintln!("skipped: {reason}");
            return;
        }
    };
    let mut commands = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        for line in text.lines().filter_map(|line| line.strip_prefix("$ quorate ")) {
            let output = Command::new(&program)
                .args(line.split_whitespace())
                .current_dir(checkout())
                .output()
                .expect("running it");
            assert!(
                output.status.success() && !output.stdout.is_empty(),
                "{}: quorate {line}: {}",
                page.display(),
                String::from_utf8_lossy(&output.stderr)
            );
            commands += 1;
        }
    }
    assert!(commands >= 10, "{commands} commands were found");
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        let folder = page.parent().expect("a folder");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if !target.contains("://") {
                let path = folder.join(target.split('#').next().unwrap_or(target));
                assert!(path.exists(), "{}: {target}", page.display());
            }
        }
    }
}
