//! Building a bundle: components → images → one directory of links into the build cache, with a manifest.
use std::{
    fmt, fs,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    bundle::{BLOBS, Bundle, MANIFEST, default_cache, link_or_copy},
    error::{Error, Result, io_error},
    fetch::{Client, Limits},
    images,
    manifest::{BlobKind, FORMAT, Manifest},
    pack,
    recipe::{self, Component, ImageRecipe},
    source,
    unit::{self, Product, Unit, UnitCache, write_json},
    upstream,
    userland::Collector,
};

/// The image of the verification checks' Pods: this program with the verb `probe`.
pub const PROBE_IMAGE: &str = concat!("quorate.dev/probe:", env!("CARGO_PKG_VERSION"));

/// The Kubernetes version of a bundle when none is named.
pub const DEFAULT_KUBERNETES: &str = "v1.36.3";

/// Bundles of one Kubernetes version kept in the cache: each change of a part makes another, which mostly consists of
/// links to the same files.
const KEPT: usize = 5;

/// What to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// `v1.36.3`.
    pub kubernetes: String,
    pub from: Origin,
    /// A checkout's `bundles` directory instead of the recipes in the program.
    pub sources: Option<PathBuf>,
    /// Where finished parts, bundles and half-done downloads are kept; see [`default_cache`].
    pub cache: PathBuf,
    /// A directory, or a file when it ends in `.tar.zst`; besides the cache.
    pub output: Option<PathBuf>,
    /// The static quorate program for the pause and probe images, which are left out without it.
    pub quorate: Option<PathBuf>,
    /// Base URL that has the official hosts as first path element: `http://mirror/dl.k8s.io/release/…`.
    pub mirror: Option<String>,
    pub limits: Limits,
}

/// Where binaries come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Compiled here, through the Go module proxy.
    Source,
    /// Official releases.
    Upstream,
    /// Taken by name from a directory.
    Directory(PathBuf),
}

/// What [`build`] tells while it works.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// One of `total` components and images begins.
    Started { unit: String, index: usize, total: usize },
    /// Output of the compiler.
    Line { unit: String, line: String },
    /// Bytes of an artefact so far; `total` where the server says it.
    Downloaded {
        unit: String,
        url: String,
        bytes: u64,
        total: Option<u64>,
    },
    /// Something the user should know.
    Note { unit: String, text: String },
    /// Sizes in bytes, uncompressed and packed.
    Finished {
        unit: String,
        cached: bool,
        took: Duration,
        size: u64,
        packed_size: u64,
    },
}

impl Default for BuildOptions {
    /// [`DEFAULT_KUBERNETES`] from upstream, into the default cache, without pause and probe images.
    fn default() -> Self {
        Self {
            kubernetes: DEFAULT_KUBERNETES.into(),
            from: Origin::Upstream,
            sources: None,
            cache: default_cache(),
            output: None,
            quorate: None,
            mirror: None,
            limits: Limits::default(),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Source => f.write_str("source"),
            Self::Upstream => f.write_str("upstream"),
            Self::Directory(directory) => write!(f, "{}", directory.display()),
        }
    }
}

/// Builds the bundle, or finds it: finished components and images are taken from the cache, so an interrupted build goes
/// on where it was, and a second one does nothing. `cache/bundles/<kubernetes>` links to the newest.
///
/// Blocks; errors name the component and the way out.
pub fn build(options: &BuildOptions, progress: &mut dyn FnMut(Event)) -> Result<Bundle> {
    let recipes = recipe::from_option(options.sources.as_deref());
    let recipe = recipes.load(&options.kubernetes)?;
    let arch = architecture()?;
    let root = options.cache.join("build");
    let cache = UnitCache::open(root, progress)?;

    let to_compile = match &options.from {
        Origin::Source => {
            let modules = options.cache.join("modules");
            Some(source::prepare(&recipe.components, &recipes, arch, &modules, &cache)?)
        }
        Origin::Upstream | Origin::Directory(_) => None,
    };
    let client = Client::new(options.mirror.clone(), options.limits, options.cache.join("downloads"));
    let total = recipe.components.len() + recipe.images.len();
    let mut units = Vec::new();
    for (index, component) in recipe.components.iter().enumerate() {
        progress(Event::Started {
            unit: component.name.clone(),
            index,
            total,
        });
        let unit = match (&options.from, &to_compile) {
            (Origin::Directory(directory), _) => from_directory(component, directory, &cache)?,
            (_, Some(prepared)) => source::build(component, &prepared[index], &cache, progress)?,
            (_, None) => upstream::build(component, arch, &client, &cache, progress)?,
        };
        finished(&component.name, &unit, progress);
        units.push(unit);
    }
    let components = units.len();
    let mut userland = Collector::default();
    for (index, image) in recipe.images.iter().enumerate() {
        let image = ImageRecipe {
            name: image.name.replace("{quorate}", env!("CARGO_PKG_VERSION")),
            ..image.clone()
        };
        progress(Event::Started {
            unit: image.name.clone(),
            index: components + index,
            total,
        });
        let Some(unit) = images::build(
            &image,
            arch,
            &units[..components],
            options,
            &cache,
            &mut userland,
            progress,
        )?
        else {
            continue;
        };
        finished(&image.name, &unit, progress);
        units.push(unit);
    }

    let created_from = match options.from {
        Origin::Source => "source",
        Origin::Upstream => "upstream",
        Origin::Directory(_) => "directory",
    };
    let bundle = assemble(&recipe.kubernetes, arch, created_from, &units, &options.cache)?;
    match &options.output {
        Some(output) if output.to_string_lossy().ends_with(".tar.zst") => bundle.write_archive(output)?,
        Some(output) => bundle.write_directory(output)?,
        None => {}
    }
    Ok(bundle)
}

fn from_directory(component: &Component, directory: &Path, cache: &UnitCache) -> Result<Unit> {
    let missing: Vec<String> = component
        .binaries
        .iter()
        .map(|binary| directory.join(&binary.name))
        .filter(|path| !path.is_file())
        .map(|path| format!("{} (of {} {})", path.display(), component.name, component.version))
        .collect();
    if !missing.is_empty() {
        return Err(Error::Missing {
            from: directory.display().to_string(),
            missing,
        });
    }
    let mut sums = Vec::new();
    for binary in &component.binaries {
        sums.push(pack::sum_file(&directory.join(&binary.name))?.0);
    }
    let hash = UnitCache::hash(&(
        "directory",
        &component.name,
        &component.version,
        &component.binaries,
        &sums,
    ))?;
    cache.get_or_make(&component.name, &hash, |_| {
        Ok(component
            .binaries
            .iter()
            .map(|binary| Product {
                file: directory.join(&binary.name),
                name: binary.name.clone(),
                kind: BlobKind::Binary,
                version: component.version.clone(),
                origin: "directory of binaries".into(),
                licence: component.licence.clone(),
                path: Some(binary.install_path()),
                mode: "0755",
                also: Vec::new(),
            })
            .collect())
    })
}

/// The directory with manifest and links; named by the content of the manifest, so it is written once.
fn assemble(kubernetes: &str, arch: &str, created_from: &str, units: &[Unit], cache: &Path) -> Result<Bundle> {
    let mut blobs: Vec<_> = units.iter().flat_map(|unit| unit.blobs.iter().cloned()).collect();
    blobs.sort_by(|a, b| (a.kind, &a.name).cmp(&(b.kind, &b.name)));
    let manifest = Manifest {
        format: FORMAT.into(),
        kubernetes: kubernetes.into(),
        architecture: arch.into(),
        created_from: created_from.into(),
        blobs,
    };
    let bundles = cache.join("bundles");
    fs::create_dir_all(&bundles).map_err(io_error("create", &bundles))?;
    let name = format!("{kubernetes}-{}", UnitCache::hash(&manifest)?);
    let directory = bundles.join(&name);
    let complete = Bundle::open(&directory).is_ok_and(|bundle| {
        bundle.manifest() == &manifest
            && manifest.blobs.iter().all(|blob| {
                fs::metadata(bundle.blob_path(&blob.sha256)).is_ok_and(|found| found.len() == blob.packed_size)
            })
    });
    if !complete {
        let staging = tempfile::Builder::new()
            .prefix(".assembling-")
            .tempdir_in(&bundles)
            .map_err(io_error("create a directory in", &bundles))?;
        let place = staging.path().join(BLOBS);
        fs::create_dir_all(&place).map_err(io_error("create", &place))?;
        for unit in units {
            for blob in &unit.blobs {
                link_or_copy(&unit.packed(blob), &place.join(&blob.sha256))?;
            }
        }
        write_json(&staging.path().join(MANIFEST), &manifest)?;
        fs::set_permissions(staging.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(io_error("set permissions of", staging.path()))?;
        if directory.exists() {
            fs::remove_dir_all(&directory).map_err(io_error("remove the damaged", &directory))?;
        }
        let staged = staging.keep();
        fs::rename(&staged, &directory).map_err(io_error("rename to", &directory))?;
    }
    unit::keep_newest(&bundles, &format!("{kubernetes}-"), KEPT)?;
    // The link of the newest changes in one step; whoever has the old one open keeps it.
    let link = bundles.join(format!(".link-{}", std::process::id()));
    let _ = fs::remove_file(&link);
    std::os::unix::fs::symlink(&name, &link).map_err(io_error("create the link", &link))?;
    let stable = newest(cache, kubernetes);
    fs::rename(&link, &stable).map_err(io_error("rename to", &stable))?;
    Bundle::open(&directory)
}

/// Where [`build`] leaves the newest bundle of a Kubernetes version, if it ever did.
pub fn newest(cache: &Path, kubernetes: &str) -> PathBuf {
    cache.join("bundles").join(kubernetes)
}

fn finished(name: &str, unit: &Unit, progress: &mut dyn FnMut(Event)) {
    progress(Event::Finished {
        unit: name.to_owned(),
        cached: unit.cached,
        took: unit.took,
        size: unit.blobs.iter().map(|blob| blob.size).sum(),
        packed_size: unit.blobs.iter().map(|blob| blob.packed_size).sum(),
    });
}

/// This machine's architecture by its Go name; bundles are built for the architecture they are built on.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => Err(Error::Missing {
            from: "this machine".into(),
            missing: vec![format!(
                "a supported architecture: it is {other}, bundles are for x86_64 and aarch64"
            )],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Binaries of every name of the recipe, with their names as content.
    fn binaries(directory: &Path) {
        let recipe = crate::Recipes::Embedded.load("v1.36.3").unwrap();
        for binary in recipe.components.iter().flat_map(|component| &component.binaries) {
            fs::write(directory.join(&binary.name), &binary.name).unwrap();
        }
    }

    /// Without Debian's packages, which only take time here.
    fn options(root: &Path) -> BuildOptions {
        let (from, sources) = (root.join("bin"), root.join("bundles"));
        fs::create_dir_all(&from).unwrap();
        fs::create_dir_all(&sources).unwrap();
        binaries(&from);
        let recipe = crate::Recipes::Embedded.file("v1.36.3.yaml").unwrap();
        let recipe = String::from_utf8(recipe).unwrap();
        let recipe: Vec<_> = recipe.lines().filter(|line| !line.contains("userland: [")).collect();
        fs::write(sources.join("v1.36.3.yaml"), recipe.join("\n")).unwrap();
        BuildOptions {
            from: Origin::Directory(from),
            sources: Some(sources),
            cache: root.join("cache"),
            ..BuildOptions::default()
        }
    }

    fn cached(options: &BuildOptions) -> (Bundle, Vec<String>) {
        let mut made = Vec::new();
        let bundle = build(options, &mut |event| {
            if let Event::Finished {
                unit, cached: false, ..
            } = event
            {
                made.push(unit);
            }
        });
        (bundle.unwrap(), made)
    }

    #[test]
    fn built_from_a_directory_once() {
        let root = tempfile::tempdir().unwrap();
        let mut options = options(root.path());
        let (bundle, made) = cached(&options);
        assert!(made.contains(&"etcd".to_owned()) && made.contains(&"registry.k8s.io/kube-proxy:v1.36.3".to_owned()));
        assert_eq!(bundle.verify(), []);
        assert_eq!(bundle.manifest().created_from, "directory");
        assert_eq!(
            bundle.blob("bridge").unwrap().path.as_deref(),
            Some("/opt/cni/bin/bridge")
        );
        assert_eq!(
            bundle.blob("registry.k8s.io/etcd:3.6.8-0").unwrap().name,
            "registry.k8s.io/etcd:3.6.16-0"
        );
        let stable = options.cache.join("bundles/v1.36.3");
        assert_eq!(Bundle::open(&stable).unwrap().directory(), bundle.directory());

        let (again, made) = cached(&options);
        assert_eq!((again.directory(), made), (bundle.directory(), Vec::new()));

        let Origin::Directory(from) = &options.from else {
            panic!()
        };
        fs::write(from.join("kube-proxy"), "another").unwrap();
        let (changed, made) = cached(&options);
        assert_eq!(made, ["kubernetes", "registry.k8s.io/kube-proxy:v1.36.3"]);
        assert_ne!(changed.directory(), bundle.directory());
        assert_eq!(changed.directory(), fs::canonicalize(&stable).unwrap());
        assert_eq!(bundle.verify(), [], "the old one stays as it was");

        for output in ["out.tar.zst", "out"] {
            let output = root.path().join(output);
            options.output = Some(output.clone());
            build(&options, &mut |_| {}).unwrap();
            let (manifest, problems) = crate::verify(&output).unwrap();
            assert_eq!((&manifest, problems), (changed.manifest(), Vec::new()));
        }
    }

    #[test]
    fn every_missing_binary_is_named() {
        let root = tempfile::tempdir().unwrap();
        let options = options(root.path());
        let Origin::Directory(from) = &options.from else {
            panic!()
        };
        fs::remove_file(from.join("kubelet")).unwrap();
        fs::remove_file(from.join("kubectl")).unwrap();
        let error = build(&options, &mut |_| {}).unwrap_err().to_string();
        assert!(
            error.contains("bin/kubelet (of kubernetes v1.36.3)") && error.contains("bin/kubectl"),
            "{error}"
        );
    }

    #[test]
    fn pause_and_probe_hold_a_static_program() {
        let root = tempfile::tempdir().unwrap();
        let mut options = options(root.path());
        let program = root.path().join("quorate");
        // An ELF head with one program header: PT_INTERP, then PT_LOAD.
        let mut elf = vec![0_u8; 128];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 1, 3);
        fs::write(&program, &elf).unwrap();
        options.quorate = Some(program.clone());
        let error = build(&options, &mut |_| {}).unwrap_err().to_string();
        assert!(
            error.contains("pause:3.10.2: ") && error.contains("+crt-static"),
            "{error}"
        );

        elf[64] = 1;
        fs::write(&program, &elf).unwrap();
        let (bundle, _) = cached(&options);
        assert!(bundle.blob("registry.k8s.io/pause:3.10.2").is_ok() && bundle.blob(PROBE_IMAGE).is_ok());

        elf[100] = 1;
        fs::write(&program, &elf).unwrap();
        let (_, made) = cached(&options);
        assert_eq!(
            made,
            [
                "registry.k8s.io/pause:3.10.2",
                PROBE_IMAGE,
                concat!("quorate.dev/agent:", env!("CARGO_PKG_VERSION"))
            ],
            "only they are made again"
        );
    }
}
