//! The program is one file: it runs where there is nothing else.

#![expect(clippy::print_stderr, reason = "stories say what they skip and what they measured")]

use std::process::Command;

use quorate_tests::cannot_run;

#[test]
fn runs_in_an_empty_root() {
    if let Some(reason) = cannot_run() {
        eprintln!("skipped: {reason}");
        return;
    }
    let root = std::env::temp_dir().join(format!("qt-static-{}", std::process::id()));
    std::fs::create_dir_all(&root).expect("make an empty root");
    std::fs::copy(quorate_tests::quorate().expect("checked before"), root.join("quorate")).expect("copy the program");
    let output = Command::new("chroot")
        .arg(&root)
        .args(["/quorate", "--version"])
        .output()
        .expect("chroot");
    let schema = Command::new("chroot")
        .arg(&root)
        .args(["/quorate", "schema"])
        .output()
        .expect("chroot");
    std::fs::remove_dir_all(&root).expect("remove the root");
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("quorate "),
        "{output:?}"
    );
    assert!(schema.status.success() && schema.stdout.starts_with(b"{"));
}
