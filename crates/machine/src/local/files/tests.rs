use super::*;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn write(&self, name: &str, content: &str, mode: u32, run_id: &str) -> Result<bool, RemoteError> {
        let file = FileWrite {
            owner: Owner::default(),
            ..FileWrite::new(self.path(name), content, mode)
        };
        write(&self.state(), vec![file], run_id).map(|items| items[0].changed)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.path(name)).unwrap().mode() & 0o7777
    }
}

#[test]
fn a_write_replaces_keeps_and_can_be_taken_back() {
    let dir = Dir::new();
    assert!(dir.write("a/b/c.conf", "one", 0o640, "r1").unwrap());
    assert_eq!(
        (dir.text("a/b/c.conf").as_str(), dir.mode("a/b/c.conf"), dir.mode("a")),
        ("one", 0o640, 0o755)
    );
    assert!(
        !dir.write("a/b/c.conf", "one", 0o640, "r2").unwrap(),
        "the same content, owner and mode is no change"
    );

    assert!(dir.write("a/b/c.conf", "two", 0o600, "r2").unwrap());
    assert!(dir.write("a/b/c.conf", "three", 0o600, "r2").unwrap());
    assert_eq!(kept_paths(&dir.state(), "r1"), [""; 0]);
    assert_eq!(kept_paths(&dir.state(), "r2"), [dir.path("a/b/c.conf")]);

    let items = restore(&dir.state(), &[dir.path("a/b/c.conf"), dir.path("never")], "r2").unwrap();
    assert_eq!(
        (dir.text("a/b/c.conf").as_str(), dir.mode("a/b/c.conf")),
        ("one", 0o640),
        "the state before the run"
    );
    assert_eq!(items[1].error.as_ref().unwrap().kind, ErrorKind::NotFound);
    assert_eq!(list(&dir.path("a/b")).unwrap(), ["c.conf"], "no temporary file is left");
}

#[test]
fn a_mode_alone_is_a_change_and_the_kept_file_has_the_old_one() {
    let dir = Dir::new();
    dir.write("key", "secret", 0o644, "r1").unwrap();
    assert!(dir.write("key", "secret", 0o600, "r2").unwrap());
    restore(&dir.state(), &[dir.path("key")], "r2").unwrap();
    assert_eq!(dir.mode("key"), 0o644);
}

#[test]
fn a_batch_with_one_bad_file_changes_none() {
    let dir = Dir::new();
    dir.write("good", "old", 0o644, "r1").unwrap();
    fs::create_dir(dir.path("taken")).unwrap();
    let file = |name: &str| FileWrite {
        owner: Owner::default(),
        ..FileWrite::new(dir.path(name), "new", 0o644)
    };
    let error = write(&dir.state(), vec![file("good"), file("taken")], "r2").unwrap_err();
    assert!(error.message.contains("is a directory"), "{}", error.message);
    assert_eq!(dir.text("good"), "old");
    let unknown = FileWrite {
        owner: Owner::new("no-such-user", ""),
        ..file("other")
    };
    assert_eq!(
        write(&dir.state(), vec![file("good"), unknown], "r2").unwrap_err().kind,
        ErrorKind::NotFound
    );
    assert_eq!(
        (dir.text("good").as_str(), list(&dir.path("")).unwrap()),
        ("old", vec!["good".to_owned(), "taken".into()])
    );
}

#[test]
fn what_a_killed_write_left_behind_is_overwritten() {
    let dir = Dir::new();
    fs::write(dir.path(".c.quorate~"), "half").unwrap();
    dir.write("c", "whole", 0o644, "").unwrap();
    assert_eq!(list(&dir.path("")).unwrap(), ["c"]);
}

#[test]
fn removing_keeps_files_and_refuses_what_is_not_ours() {
    let dir = Dir::new();
    dir.write("d/x", "x", 0o644, "").unwrap();
    let gone =
        |name: &str, recursive| remove(&dir.state(), &[dir.path(name)], recursive, "r1").map(|items| items[0].changed);
    assert!(gone("d", false).is_err(), "not empty");
    assert!(gone("d/x", false).unwrap());
    assert!(!gone("d/x", false).unwrap());
    assert!(gone("d", true).unwrap());
    restore(&dir.state(), &[dir.path("d/x")], "r1").unwrap();
    assert_eq!(dir.text("d/x"), "x");
    for path in ["/", "/etc", "relative", "/tmp/../etc/passwd"] {
        assert_eq!(
            remove(&dir.state(), &[path.into()], true, "r1").unwrap_err().kind,
            ErrorKind::Invalid,
            "{path}"
        );
    }
}

#[test]
fn links_are_replaced_and_restored() {
    let dir = Dir::new();
    let make = |target: &str| link(&dir.state(), &dir.path("l"), target, "r1").unwrap().changed;
    assert!(make("/a") && !make("/a") && make("/b"));
    let found = stat(&[dir.path("l"), dir.path("none")], None).unwrap();
    assert_eq!(
        (found[0].kind.clone(), found[0].target.as_deref()),
        (FileKind::Symlink, Some("/b"))
    );
    assert_eq!(found[1], FileFacts::absent());
    restore(&dir.state(), &[dir.path("l")], "r1").unwrap();
    assert_eq!(fs::read_link(dir.path("l")).unwrap(), Path::new("/a"));
}

#[test]
fn directories_get_owner_and_mode_whatever_the_umask() {
    let dir = Dir::new();
    let wanted = |mode| DirSpec {
        path: dir.path("p/q"),
        owner: Owner::default(),
        mode,
    };
    assert!(mkdir(&[wanted(0o700)]).unwrap()[0].changed);
    assert!(!mkdir(&[wanted(0o700)]).unwrap()[0].changed);
    assert!(set_mode(&[wanted(0o2775)]).unwrap()[0].changed);
    assert_eq!((dir.mode("p/q"), dir.mode("p")), (0o2775, 0o755));
}

#[test]
fn a_block_keeps_the_files_owner_mode_and_rest() {
    let dir = Dir::new();
    dir.write("hosts", "127.0.0.1 localhost\n", 0o664, "").unwrap();
    let block = |content: Option<&str>| ManagedBlock {
        path: dir.path("hosts"),
        marker: "quorate".into(),
        content: content.map(Into::into),
        mode: 0o644,
        run_id: "r1".into(),
    };
    assert!(
        managed_block(&dir.state(), &block(Some("10.77.0.100 api\n")))
            .unwrap()
            .changed
    );
    assert!(
        !managed_block(&dir.state(), &block(Some("10.77.0.100 api\n")))
            .unwrap()
            .changed
    );
    assert_eq!(dir.mode("hosts"), 0o664);
    assert!(managed_block(&dir.state(), &block(None)).unwrap().changed);
    assert_eq!(dir.text("hosts"), "127.0.0.1 localhost\n");
}

#[test]
fn a_run_id_cannot_leave_the_kept_directory() {
    let dir = Dir::new();
    for run_id in ["../x", "a/b", ".."] {
        assert_eq!(dir.write("f", "x", 0o644, run_id).unwrap_err().kind, ErrorKind::Invalid);
    }
}
