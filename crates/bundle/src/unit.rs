//! The build cache: each component and each image is one unit, kept under the hash of everything it was made from.
//!
//! A unit is a directory `build/<name>-<hash>/` with `unit.json` and `blobs/<sha256>`. It is made in a staging directory
//! and renamed, so what is there is complete; a killed build leaves only a `.staging-*` directory, removed by the next.
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::{
    Event,
    error::{Error, Result, io_error},
    manifest::{Blob, BlobKind},
    pack,
};

/// Part of every unit's hash: a change of how units are stored or made drops all old ones.
const UNIT_FORMAT: u32 = 1;

/// 64 bits are plenty to tell the handful of builds in one cache apart.
const HASH_DIGITS: usize = 16;

/// Builds of one unit that are kept: switching between a few versions or programs does not rebuild.
const KEPT: usize = 5;

/// Finished blobs of one component or image, in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) directory: PathBuf,
    pub(crate) blobs: Vec<Blob>,
    pub(crate) cached: bool,
    pub(crate) took: Duration,
}

/// A file that was made and is to become a blob.
#[derive(Debug)]
pub(crate) struct Product {
    pub(crate) file: PathBuf,
    pub(crate) name: String,
    pub(crate) kind: BlobKind,
    pub(crate) version: String,
    pub(crate) origin: String,
    pub(crate) licence: String,
    pub(crate) path: Option<String>,
    pub(crate) mode: &'static str,
    pub(crate) also: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct UnitFile {
    blobs: Vec<Blob>,
}

/// Where units are kept.
#[derive(Debug)]
pub(crate) struct UnitCache {
    root: PathBuf,
    /// Locked as long as it is open, here or in a compiler that was started with it.
    lock: File,
}

impl UnitCache {
    /// Opens (and creates) `root` for one build at a time, and clears what killed builds left.
    pub(crate) fn open(root: PathBuf, progress: &mut dyn FnMut(Event)) -> Result<Self> {
        fs::create_dir_all(&root).map_err(io_error("create", &root))?;
        let path = root.join(".lock");
        let lock = File::create(&path).map_err(io_error("create", &path))?;
        if lock.try_lock().is_err() {
            let text = format!("another build is at work in {}; waiting for it", root.display());
            progress(Event::Note {
                unit: "bundle".into(),
                text,
            });
            lock.lock().map_err(io_error("lock", &path))?;
        }
        for entry in fs::read_dir(&root).map_err(io_error("read", &root))?.flatten() {
            if entry.file_name().to_string_lossy().starts_with(STAGING) {
                fs::remove_dir_all(entry.path()).map_err(io_error("remove", entry.path()))?;
            }
        }
        Ok(Self { root, lock })
    }

    /// The lock for a child process's standard input (an empty file): should this process be killed, the next build waits
    /// until the child has ended, too, instead of compiling beside it.
    pub(crate) fn lock_for_child(&self) -> Result<File> {
        self.lock.try_clone().map_err(io_error("share the lock of", &self.root))
    }

    /// Hash of a unit's inputs; contents only, so neither paths nor times matter.
    pub(crate) fn hash(inputs: &impl Serialize) -> Result<String> {
        let bytes = serde_json::to_vec(&(UNIT_FORMAT, inputs)).map_err(|error| Error::Recipe {
            name: "inputs".into(),
            reason: error.to_string(),
        })?;
        Ok(pack::sum(&bytes)[..HASH_DIGITS].to_owned())
    }

    /// The complete unit, if it is there.
    pub(crate) fn get(&self, name: &str, hash: &str) -> Option<Unit> {
        let directory = self.directory(name, hash);
        let text = fs::read(directory.join("unit.json")).ok()?;
        let UnitFile { blobs } = serde_json::from_slice(&text).ok()?;
        let whole = blobs.iter().all(|blob| {
            fs::metadata(directory.join("blobs").join(&blob.sha256)).is_ok_and(|found| found.len() == blob.packed_size)
        });
        whole.then_some(Unit {
            directory,
            blobs,
            cached: true,
            took: Duration::ZERO,
        })
    }

    /// The unit from the cache, or made now: `make` gets an empty staging directory and returns what it put there.
    pub(crate) fn get_or_make(
        &self,
        name: &str,
        hash: &str,
        make: impl FnOnce(&Path) -> Result<Vec<Product>>,
    ) -> Result<Unit> {
        if let Some(unit) = self.get(name, hash) {
            return Ok(unit);
        }
        let started = Instant::now();
        let staging = tempfile::Builder::new()
            .prefix(STAGING)
            .tempdir_in(&self.root)
            .map_err(io_error("create a directory in", &self.root))?;
        let work = staging.path().join("work");
        let result = staging.path().join("unit");
        let packed_directory = result.join("blobs");
        fs::create_dir(&work).map_err(io_error("create", &work))?;
        fs::create_dir_all(&packed_directory).map_err(io_error("create", &packed_directory))?;

        let products = make(&work)?;
        let files: Vec<PathBuf> = products.iter().map(|product| product.file.clone()).collect();
        let packed = pack::pack_all(&files, &packed_directory)?;
        let blobs: Vec<Blob> = products
            .into_iter()
            .zip(packed)
            .map(|(product, packed)| Blob {
                name: product.name,
                kind: product.kind,
                version: product.version,
                origin: product.origin,
                licence: product.licence,
                sha256: packed.sha256,
                size: packed.size,
                packed_sha256: packed.packed_sha256,
                packed_size: packed.packed_size,
                path: product.path,
                mode: product.mode.to_owned(),
                also: product.also,
            })
            .collect();
        write_json(&result.join("unit.json"), &UnitFile { blobs: blobs.clone() })?;

        let directory = self.directory(name, hash);
        if directory.exists() {
            // Incomplete, or `get` would have returned it.
            fs::remove_dir_all(&directory).map_err(io_error("remove the damaged", &directory))?;
        }
        fs::rename(&result, &directory).map_err(io_error("rename to", &directory))?;
        keep_newest(&self.root, &format!("{}-", file_name(name)), KEPT)?;
        Ok(Unit {
            directory,
            blobs,
            cached: false,
            took: started.elapsed(),
        })
    }

    fn directory(&self, name: &str, hash: &str) -> PathBuf {
        self.root.join(format!("{}-{hash}", file_name(name)))
    }
}

impl Unit {
    /// The packed file of one of its blobs.
    pub(crate) fn packed(&self, blob: &Blob) -> PathBuf {
        self.directory.join("blobs").join(&blob.sha256)
    }
}

/// Removes the directories `<prefix><16 hexadecimal digits>` in `root` but the `kept` newest.
pub(crate) fn keep_newest(root: &Path, prefix: &str, kept: usize) -> Result<()> {
    let mut found: Vec<(SystemTime, PathBuf)> = fs::read_dir(root)
        .map_err(io_error("read", root))?
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            name.to_str()
                .and_then(|name| name.strip_prefix(prefix))
                .is_some_and(|rest| rest.len() == HASH_DIGITS && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found.truncate(found.len().saturating_sub(kept));
    for (_, directory) in found {
        fs::remove_dir_all(&directory).map_err(io_error("remove the outdated", &directory))?;
    }
    Ok(())
}

fn file_name(unit: &str) -> String {
    unit.replace(['/', ':'], "_")
}

/// Pretty-printed, so that a person can read it and `diff` works.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(|error| io_error("write", path)(error.into()))?;
    text.push(b'\n');
    fs::write(path, text).map_err(io_error("write", path))
}

const STAGING: &str = ".staging-";

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn product(file: PathBuf) -> Product {
        Product {
            file,
            name: "tool".into(),
            kind: BlobKind::Binary,
            version: "v1".into(),
            origin: "here".into(),
            licence: "MIT".into(),
            path: None,
            mode: "0755",
            also: Vec::new(),
        }
    }

    fn open(root: &Path) -> UnitCache {
        UnitCache::open(root.to_owned(), &mut |_| {}).unwrap()
    }

    fn make(work: &Path) -> Result<Vec<Product>> {
        let file = work.join("tool");
        fs::write(&file, "content").unwrap();
        Ok(vec![product(file)])
    }

    fn never(_: &Path) -> Result<Vec<Product>> {
        panic!("made although it is there")
    }

    #[test]
    fn made_once_and_again_when_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        let unit = cache.get_or_make("a/b:c", "00", make).unwrap();
        assert!(!unit.cached && unit.directory.ends_with("a_b_c-00"));
        assert!(cache.get_or_make("a/b:c", "00", never).unwrap().cached);
        assert!(cache.get("a/b:c", "01").is_none());
        fs::write(unit.packed(&unit.blobs[0]), "cut").unwrap();
        assert!(cache.get("a/b:c", "00").is_none());
        assert!(!cache.get_or_make("a/b:c", "00", make).unwrap().cached);
    }

    #[test]
    fn a_failed_or_killed_build_never_counts() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        let failed = cache.get_or_make("a", "00", |work| {
            make(work)?;
            Err(Error::Source {
                component: "a".into(),
                reason: "broken".into(),
            })
        });
        assert!(failed.is_err() && cache.get("a", "00").is_none());
        let left = directory.path().join(".staging-killed/work");
        fs::create_dir_all(&left).unwrap();
        drop(cache);
        let cache = open(directory.path());
        assert!(!left.exists());
        assert!(!cache.get_or_make("a", "00", make).unwrap().cached);
    }

    #[test]
    fn only_the_newest_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        cache.get_or_make("ab", "00000000000000ff", make).unwrap();
        for index in 0..KEPT + 2 {
            cache.get_or_make("a", &format!("{index:016x}"), make).unwrap();
        }
        assert!(cache.get("a", &format!("{:016x}", 1)).is_none());
        assert!(cache.get("a", &format!("{:016x}", 2)).is_some());
        assert!(cache.get("ab", "00000000000000ff").is_some());
    }

    #[test]
    fn the_next_build_waits_for_a_killed_ones_compiler() {
        let directory = tempfile::tempdir().unwrap();
        let cache = open(directory.path());
        let lock = cache.lock_for_child().unwrap();
        let mut child = Command::new("sleep").arg("0.3").stdin(lock).spawn().unwrap();
        let started = Instant::now();
        drop(cache);
        let mut notes = 0;
        UnitCache::open(directory.path().to_owned(), &mut |_| notes += 1).unwrap();
        assert!(started.elapsed() > Duration::from_millis(200));
        assert_eq!(notes, 1);
        child.wait().unwrap();
    }

    #[test]
    fn the_hash_is_of_contents() {
        let one = UnitCache::hash(&("x", 1)).unwrap();
        assert_eq!(one, UnitCache::hash(&("x", 1)).unwrap());
        assert_ne!(one, UnitCache::hash(&("x", 2)).unwrap());
        assert_eq!(one.len(), HASH_DIGITS);
    }
}
