//! Components compiled from source with the ordinary `go` client, through the Go module proxy and its checksum database.
use std::{
    collections::VecDeque,
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::{
    Event,
    error::{Error, Result, io_error},
    manifest::BlobKind,
    recipe::{Component, Recipes, module_files},
    unit::{Product, Unit, UnitCache},
};

/// Lines of compiler output kept for the error message.
const TAIL: usize = 30;

/// The Go toolchain used for all components of one build.
#[derive(Clone, Debug)]
pub(crate) struct Go {
    program: PathBuf,
    arch: &'static str,
    /// `<cache>/modules/`: the embedded go.mod files are written here.
    modules: PathBuf,
}

impl Go {
    /// Finds `go` in `PATH`, or where its installer puts it.
    pub(crate) fn find(arch: &'static str, modules: PathBuf) -> Option<Self> {
        let path = env::var_os("PATH").unwrap_or_default();
        let program = env::split_paths(&path)
            .chain([PathBuf::from("/usr/local/go/bin")])
            .map(|directory| directory.join("go"))
            .find(|program| program.is_file())?;
        Some(Self { program, arch, modules })
    }

    #[cfg(test)]
    fn at(program: PathBuf, modules: PathBuf) -> Self {
        Self {
            program,
            arch: "amd64",
            modules,
        }
    }
}

/// All that is known of a component before it is compiled.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    go: Go,
    /// Has the component's go.mod and go.sum.
    directory: PathBuf,
    /// Of the toolchain that will compile it.
    version: String,
    hash: String,
}

/// Prepares every component; if those that are not in the cache yet need something that is not installed, says all of it
/// before the first of many minutes is spent.
pub(crate) fn prepare(
    components: &[Component],
    recipes: &Recipes,
    arch: &'static str,
    modules: &Path,
    cache: &UnitCache,
) -> Result<Vec<Prepared>> {
    let Some(go) = Go::find(arch, modules.to_owned()) else {
        return Err(not_installed(missing(components, false)));
    };
    let prepared: Vec<Prepared> = components
        .iter()
        .map(|component| prepare_one(component, recipes, &go))
        .collect::<Result<_>>()?;
    let to_compile: Vec<Component> = components
        .iter()
        .zip(&prepared)
        .filter(|(component, prepared)| cache.get(&component.name, &prepared.hash).is_none())
        .map(|(component, _)| component.clone())
        .collect();
    let missing = missing(&to_compile, true);
    if missing.is_empty() {
        Ok(prepared)
    } else {
        Err(not_installed(missing))
    }
}

/// The component from the cache, or compiled now.
pub(crate) fn build(
    component: &Component,
    prepared: &Prepared,
    cache: &UnitCache,
    progress: &mut dyn FnMut(Event),
) -> Result<Unit> {
    cache.get_or_make(&component.name, &prepared.hash, |work| {
        compile(component, prepared, cache, work, progress)
    })
}

fn prepare_one(component: &Component, recipes: &Recipes, go: &Go) -> Result<Prepared> {
    let modules = module_files(recipes, &component.source.directory)?;
    let directory = go.modules.join(&component.source.directory);
    fs::create_dir_all(&directory).map_err(io_error("create", &directory))?;
    for (name, content) in &modules {
        let path = directory.join(name);
        // Unchanged files keep their time: the go command caches what it read of them.
        if fs::read(&path).ok().as_ref() != Some(content) {
            fs::write(&path, content).map_err(io_error("write", path))?;
        }
    }
    let version = go_version(go, component, &directory)?;
    let without_downloads = Component {
        downloads: Vec::new(),
        ..component.clone()
    };
    let modules: Vec<_> = modules
        .iter()
        .map(|(name, content)| (name, crate::pack::sum(content)))
        .collect();
    let hash = UnitCache::hash(&("source", &without_downloads, modules, &version, go.arch))?;
    Ok(Prepared {
        go: go.clone(),
        directory,
        version,
        hash,
    })
}

fn not_installed(missing: Vec<String>) -> Error {
    Error::Missing {
        from: "source".into(),
        missing,
    }
}

fn missing(components: &[Component], has_go: bool) -> Vec<String> {
    let mut missing = Vec::new();
    if !has_go {
        missing.push("the Go toolchain: https://go.dev/dl, or the package golang-go of a recent Debian".to_owned());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    let has = |name: &str| env::split_paths(&path).any(|directory| directory.join(name).is_file());
    let cgo = components.iter().any(|component| component.source.cgo);
    if cgo && !has("gcc") && env::var_os("CC").is_none() {
        missing.push("a C compiler: apt-get install gcc libc6-dev".to_owned());
    }
    for component in components {
        for need in &component.source.needs {
            if !Path::new(&need.file).exists() {
                missing.push(format!(
                    "{} (for {}): apt-get install {}",
                    need.file, component.name, need.package
                ));
            }
        }
    }
    missing
}

fn compile(
    component: &Component,
    prepared: &Prepared,
    cache: &UnitCache,
    work: &Path,
    progress: &mut dyn FnMut(Event),
) -> Result<Vec<Product>> {
    let fail = |reason: String| Error::Source {
        component: component.name.clone(),
        reason,
    };
    let Prepared {
        go, directory, version, ..
    } = prepared;
    let mut command = go_command(go, directory);
    command.env("CGO_ENABLED", if component.source.cgo { "1" } else { "0" });
    command.args(["build", "-v", "-trimpath", "-ldflags", component.source.ldflags.trim()]);
    if !component.source.tags.is_empty() {
        command.args(["-tags", &component.source.tags.join(",")]);
    }
    // With a trailing slash `go build` takes it for a directory even for one package.
    command.arg("-o").arg(work.join(""));
    command.args(component.binaries.iter().map(|binary| &binary.package));
    command
        .stdin(cache.lock_for_child()?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());

    let mut child = command
        .spawn()
        .map_err(|error| fail(format!("start {}: {error}", go.program.display())))?;
    let mut tail = VecDeque::new();
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr).lines().map_while(|line| line.ok()) {
            if tail.len() == TAIL {
                tail.pop_front();
            }
            tail.push_back(line.clone());
            progress(Event::Line {
                unit: component.name.clone(),
                line,
            });
        }
    }
    let status = child.wait().map_err(|error| fail(format!("wait for go: {error}")))?;
    if !status.success() {
        let tail: Vec<String> = tail.into();
        return Err(fail(format!("go build: {status}\n{}", tail.join("\n"))));
    }

    let mut products = Vec::new();
    for binary in &component.binaries {
        let file = work.join(&binary.name);
        let built = work.join(executable_name(&binary.package));
        if built != file {
            fs::rename(&built, &file).map_err(io_error("rename", built))?;
        }
        products.push(Product {
            file,
            name: binary.name.clone(),
            kind: BlobKind::Binary,
            version: component.version.clone(),
            origin: format!("{}@{} compiled with {version}", binary.package, component.version),
            licence: component.licence.clone(),
            path: Some(binary.install_path()),
            mode: "0755",
            also: Vec::new(),
        });
    }
    Ok(products)
}

/// The version that will compile the component: go.mod may select a newer toolchain than the one installed.
fn go_version(go: &Go, component: &Component, directory: &Path) -> Result<String> {
    let fail = |reason: String| Error::Source {
        component: component.name.clone(),
        reason,
    };
    let output = go_command(go, directory)
        .args(["env", "GOVERSION"])
        .output()
        .map_err(|error| fail(format!("start {}: {error}", go.program.display())))?;
    if !output.status.success() {
        return Err(fail(format!(
            "go env: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        )));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The user's proxy, checksum and toolchain settings apply; what would change the result does not.
fn go_command(go: &Go, directory: &Path) -> Command {
    let mut command = Command::new(&go.program);
    command
        .current_dir(directory)
        .env("GOOS", "linux")
        .env("GOARCH", go.arch)
        .env("GOFLAGS", "-buildvcs=false -mod=readonly")
        .env("GOWORK", "off");
    for name in [
        "GOAMD64",
        "GOARM64",
        "GOEXPERIMENT",
        "GOFIPS140",
        "CGO_CFLAGS",
        "CGO_LDFLAGS",
    ] {
        command.env_remove(name);
    }
    command
}

/// The name `go build` gives a package's executable: the last element of its path that is not a major version.
fn executable_name(package: &str) -> &str {
    let mut elements = package.rsplit('/');
    let last = elements.next().unwrap_or(package);
    let major = last
        .strip_prefix('v')
        .is_some_and(|rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()));
    if major { elements.next().unwrap_or(last) } else { last }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::recipe::{Binary, Need, Source};

    fn component() -> Component {
        Component {
            name: "demo".into(),
            version: "v1.2.3".into(),
            licence: "MIT".into(),
            source: Source {
                directory: "demo".into(),
                cgo: false,
                tags: vec!["a".into(), "b".into()],
                ldflags: "-s -w".into(),
                needs: vec![Need {
                    file: "/nonexistent/x.h".into(),
                    package: "libx-dev".into(),
                }],
            },
            binaries: vec![Binary {
                name: "demo".into(),
                package: "example.org/server/v3".into(),
                path: None,
            }],
            downloads: Vec::new(),
        }
    }

    /// A `go` that writes its arguments into the executable and fails when `fail` exists next to it.
    fn fake_go(root: &Path) -> Go {
        let program = root.join("go");
        fs::write(
            &program,
            "#!/bin/sh\n\
             if [ \"$1\" = env ]; then echo go9.9.9; exit; fi\n\
             echo example.org/server >&2\n\
             [ -e \"$0.fail\" ] && { echo 'x.go:1: broken' >&2; exit 1; }\n\
             for last; do [ \"$previous\" = -o ] && out=$last; previous=$last; done\n\
             echo \"$CGO_ENABLED $*\" | sed \"s#$out#OUT/#\" > \"$out/server\"\n",
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Go::at(program, root.join("modules"))
    }

    fn sources(root: &Path) -> Recipes {
        fs::create_dir_all(root.join("bundles/demo")).unwrap();
        fs::write(root.join("bundles/demo/go.mod"), "module demo\n").unwrap();
        fs::write(root.join("bundles/demo/go.sum"), "").unwrap();
        Recipes::Directory(root.join("bundles"))
    }

    fn make(
        component: &Component,
        recipes: &Recipes,
        go: &Go,
        cache: &UnitCache,
        progress: &mut dyn FnMut(Event),
    ) -> Result<Unit> {
        build(component, &prepare_one(component, recipes, go)?, cache, progress)
    }

    #[test]
    fn compiles_once_and_again_when_an_input_changes() {
        let root = tempfile::tempdir().unwrap();
        let (go, recipes) = (fake_go(root.path()), sources(root.path()));
        let cache = UnitCache::open(root.path().join("build"), &mut |_| {}).unwrap();
        let mut lines = Vec::new();
        let mut seen = |event: Event| lines.push(format!("{event:?}"));
        let unit = make(&component(), &recipes, &go, &cache, &mut seen).unwrap();
        assert!(!unit.cached);
        assert_eq!(
            unit.blobs[0].origin,
            "example.org/server/v3@v1.2.3 compiled with go9.9.9"
        );
        assert_eq!(unit.blobs[0].path.as_deref(), Some("/usr/local/bin/demo"));
        let mut content = Vec::new();
        crate::pack::unpack(fs::File::open(unit.packed(&unit.blobs[0])).unwrap(), &mut content).unwrap();
        assert_eq!(
            String::from_utf8(content).unwrap(),
            "0 build -v -trimpath -ldflags -s -w -tags a,b -o OUT/ example.org/server/v3\n"
        );
        assert!(make(&component(), &recipes, &go, &cache, &mut seen).unwrap().cached);

        let other = tempfile::tempdir().unwrap();
        assert!(
            make(&component(), &sources(other.path()), &go, &cache, &mut seen)
                .unwrap()
                .cached,
            "another clone"
        );

        fs::write(root.path().join("bundles/demo/go.sum"), "changed").unwrap();
        assert!(!make(&component(), &recipes, &go, &cache, &mut seen).unwrap().cached);
        let mut tagged = component();
        tagged.source.tags.pop();
        assert!(!make(&tagged, &recipes, &go, &cache, &mut seen).unwrap().cached);
        assert!(lines.iter().any(|line| line.contains("example.org/server")));
    }

    #[test]
    fn a_failure_shows_the_compiler() {
        let root = tempfile::tempdir().unwrap();
        let (go, recipes) = (fake_go(root.path()), sources(root.path()));
        fs::write(root.path().join("go.fail"), "").unwrap();
        let cache = UnitCache::open(root.path().join("build"), &mut |_| {}).unwrap();
        let error = make(&component(), &recipes, &go, &cache, &mut |_| {})
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("build demo from source: go build: exit status: 1"),
            "{error}"
        );
        assert!(error.contains("x.go:1: broken"), "{error}");
    }

    #[test]
    fn everything_missing_is_said_at_once() {
        let missing = missing(&[component()], false);
        assert_eq!(missing.len(), 2);
        assert!(missing[0].contains("Go toolchain"));
        assert_eq!(missing[1], "/nonexistent/x.h (for demo): apt-get install libx-dev");
    }

    #[test]
    fn executables_are_named_as_go_names_them() {
        for (package, name) in [
            ("go.etcd.io/etcd/server/v3", "server"),
            ("a/cmd/kubelet", "kubelet"),
            ("a/v", "v"),
            ("runc", "runc"),
        ] {
            assert_eq!(executable_name(package), name);
        }
    }
}
