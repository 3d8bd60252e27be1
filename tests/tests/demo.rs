//! What `make demo` says last is true when it says so. The program is played by a few lines of shell.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const LAST: &str = "cluster demo is highly available: 3 control planes, 2 workers, 61 checks passed in 43.3 s";

#[test]
fn the_last_line_waits_until_the_cluster_is_well_after_the_drill() {
    let stage = Stage::new("well", 1);
    let output = stage.demo("60");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(said.lines().last(), Some(LAST));
    assert_eq!(stage.asked(), 2);
}

#[test]
fn a_cluster_that_is_not_well_after_the_drill_is_not_called_highly_available() {
    let stage = Stage::new("ill", 1_000);
    let output = stage.demo("0");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("FAIL  node  m3  NotReady") && !said.contains("ok    node"),
        "{said}"
    );
}

#[test]
fn without_the_program_the_lab_is_not_forgotten() {
    let stage = Stage::new("down", 0);
    let down = |program: &Path| {
        Command::new(script("demo-down"))
            .args([program, stage.folder.as_path()])
            .output()
            .expect("start demo-down")
    };
    assert!(!down(Path::new("/nowhere/quorate")).status.success());
    assert!(stage.folder.is_dir());
    assert!(down(&stage.program()).status.success());
    assert!(!stage.folder.exists());
}

struct Stage {
    folder: PathBuf,
}

impl Stage {
    /// A program whose drill misses a limit, and whose status fails that many times.
    fn new(name: &str, failures: u32) -> Self {
        let folder = std::env::temp_dir().join(format!("qt-demo-{name}-{}", std::process::id()));
        let stage = Self { folder };
        std::fs::create_dir_all(&stage.folder).expect("make a folder");
        let text = format!(
            "#!/bin/sh\ncase $1 in\n  apply) echo 'ok    node  m3  Ready'; echo '{LAST}' ;;\n  drill) exit 3 ;;\n  \
             status) echo >>\"$0.asked\"\n    echo 'ok    node  m1  Ready'\n    \
             [ $(wc -l <\"$0.asked\") -gt {failures} ] || {{ echo 'FAIL  node  m3  NotReady'; exit 3; }} ;;\nesac\n"
        );
        std::fs::write(stage.program(), text).expect("write the program");
        std::fs::set_permissions(stage.program(), PermissionsExt::from_mode(0o755)).expect("make it one");
        stage
    }

    fn program(&self) -> PathBuf {
        self.folder.join("quorate")
    }

    fn demo(&self, patience: &str) -> Output {
        Command::new(script("demo"))
            .args([self.program(), self.folder.join("demo")])
            .env("QUORATE_DEMO_PATIENCE", patience)
            .env_remove("QUORATE_NO_DRILL")
            .output()
            .expect("start demo")
    }

    fn asked(&self) -> usize {
        std::fs::read_to_string(self.folder.join("quorate.asked")).map_or(0, |text| text.lines().count())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts").join(name)
}
