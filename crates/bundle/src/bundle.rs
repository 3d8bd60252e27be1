//! Opening, verifying and writing bundles: a directory with `manifest.json` and `blobs/sha256/<hash>`, or the same in
//! one `.tar.zst` file.
use std::{
    env, fmt, fs,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use crate::{
    archive::Archive,
    error::{Error, Result, io_error},
    manifest::{Blob, Manifest},
    pack::{self, Packed},
    unit::write_json,
};

/// Blobs are compressed already: this level finds that out fastest.
const ARCHIVE_LEVEL: i32 = 1;

/// An opened bundle.
#[derive(Clone, Debug)]
pub struct Bundle {
    directory: PathBuf,
    manifest: Manifest,
}

/// Something wrong with a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The blob's name, or a file of the bundle.
    pub what: String,
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.reason)
    }
}

impl Bundle {
    /// Opens a bundle's directory. An archive is unpacked, with all sums checked, into the cache once and opened there.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_with_cache(path, &default_cache())
    }

    /// [`Bundle::open`] with another cache than [`default_cache`].
    pub fn open_with_cache(path: &Path, cache: &Path) -> Result<Self> {
        let found = fs::metadata(path).map_err(io_error("open the bundle", path))?;
        if found.is_dir() {
            Self::open_directory(path)
        } else {
            Self::unpack_archive(path, cache)
        }
    }

    fn open_directory(path: &Path) -> Result<Self> {
        let not = |reason: String| Error::NotABundle {
            path: path.to_owned(),
            reason,
        };
        let directory = path.canonicalize().map_err(io_error("open the bundle", path))?;
        let text = fs::read(directory.join(MANIFEST)).map_err(|error| not(format!("{MANIFEST}: {error}")))?;
        let manifest = parse_manifest(&text).map_err(not)?;
        Ok(Self { directory, manifest })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The packed (zstd) file of the blob whose content has this SHA-256; it may be sent as it is.
    pub fn blob_path(&self, sha256: &str) -> PathBuf {
        self.directory.join(BLOBS).join(sha256)
    }

    /// The blob called `name`.
    pub fn blob(&self, name: &str) -> Result<&Blob> {
        self.manifest.blob(name).ok_or_else(|| Error::NoSuchBlob {
            name: name.to_owned(),
            known: self.manifest.blobs.iter().map(|blob| blob.name.clone()).collect(),
        })
    }

    /// Writes a blob's content to `output` with the blob's mode, by way of a temporary file next to it.
    pub fn extract(&self, blob: &Blob, output: &Path) -> Result<()> {
        let parent = output
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        let staged = tempfile::NamedTempFile::new_in(parent).map_err(io_error("create a file in", parent))?;
        let packed = self.blob_path(&blob.sha256);
        let input = File::open(&packed).map_err(io_error("open", &packed))?;
        let found = pack::unpack(input, &mut staged.as_file()).map_err(io_error("decompress", &packed))?;
        check_sum(&blob.name, &found.sha256, &blob.sha256)?;
        let mode = blob.mode().unwrap_or(0o644);
        fs::set_permissions(staged.path(), std::os::unix::fs::PermissionsExt::from_mode(mode))
            .map_err(io_error("set permissions of", output))?;
        staged
            .into_temp_path()
            .persist(output)
            .map_err(|error| io_error("rename to", output)(error.error))
    }

    /// Recomputes every sum; lists everything that is wrong. Several blobs are read at once.
    pub fn verify(&self) -> Vec<Problem> {
        let mut problems: Vec<Problem> = self
            .manifest
            .findings()
            .into_iter()
            .map(|reason| problem(MANIFEST, reason))
            .collect();
        let blobs = &self.manifest.blobs;
        let next = Mutex::new(blobs.iter());
        let found: Mutex<Vec<(usize, Problem)>> = Mutex::new(Vec::new());
        let workers = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    loop {
                        let taken = next.lock().ok().and_then(|mut next| Some((next.len(), next.next()?)));
                        let Some((left, blob)) = taken else { break };
                        let reasons = match File::open(self.blob_path(&blob.sha256)) {
                            Ok(file) => check_blob(blob, pack::unpack(file, &mut io::sink())),
                            Err(error) => vec![error.to_string()],
                        };
                        if let Ok(mut found) = found.lock() {
                            found.extend(
                                reasons
                                    .into_iter()
                                    .map(|why| (blobs.len() - left, problem(&blob.name, why))),
                            );
                        }
                    }
                });
            }
        });
        let mut found = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        found.sort_by_key(|(index, _)| *index);
        problems.extend(found.into_iter().map(|(_, problem)| problem));
        problems.extend(self.strangers());
        problems
    }

    /// Files in the blob directory that the manifest does not know.
    fn strangers(&self) -> Vec<Problem> {
        let directory = self.directory.join(BLOBS);
        let mut names: Vec<String> = match fs::read_dir(&directory) {
            Ok(entries) => entries
                .flatten()
                .map(|entry| entry.file_name().to_string_lossy().into_owned())
                .collect(),
            Err(error) => return vec![problem(BLOBS, error.to_string())],
        };
        names.retain(|name| !self.manifest.blobs.iter().any(|blob| blob.sha256 == *name));
        names.sort();
        names
            .into_iter()
            .map(|name| problem(&format!("{BLOBS}/{name}"), "not in the manifest".into()))
            .collect()
    }

    /// Writes the bundle as one file. Replaces `output` only when it is complete.
    pub fn write_archive(&self, output: &Path) -> Result<()> {
        let parent = output
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        let staged = tempfile::NamedTempFile::new_in(parent).map_err(io_error("create a file in", parent))?;
        let write = || -> io::Result<()> {
            let mut tar = tar::Builder::new(zstd::stream::Encoder::new(staged.as_file(), ARCHIVE_LEVEL)?);
            let mut add = |path: &str, file: &Path| {
                let mut file = File::open(file)?;
                let mut header = tar::Header::new_gnu();
                header.set_mode(0o644);
                header.set_size(file.metadata()?.len());
                header.set_mtime(0);
                tar.append_data(&mut header, path, &mut file)
            };
            add(MANIFEST, &self.directory.join(MANIFEST))?;
            let mut sums: Vec<&str> = self.manifest.blobs.iter().map(|blob| blob.sha256.as_str()).collect();
            sums.sort_unstable();
            sums.dedup();
            for sum in sums {
                add(&format!("{BLOBS}/{sum}"), &self.blob_path(sum))?;
            }
            tar.into_inner()?.finish()?.flush()
        };
        write().map_err(io_error("write", output))?;
        fs::set_permissions(staged.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .map_err(io_error("set permissions of", output))?;
        staged
            .into_temp_path()
            .persist(output)
            .map_err(|error| io_error("rename to", output)(error.error))
    }

    /// Links or copies the bundle's files to another directory.
    pub fn write_directory(&self, output: &Path) -> Result<()> {
        let empty = fs::read_dir(output).map_or(true, |mut entries| entries.next().is_none());
        if !empty && !output.join(MANIFEST).is_file() {
            return Err(Error::NotABundle {
                path: output.to_owned(),
                reason: "it has other files in it and is not overwritten; name an empty or new directory".into(),
            });
        }
        let blobs = output.join(BLOBS);
        fs::create_dir_all(&blobs).map_err(io_error("create", &blobs))?;
        for blob in &self.manifest.blobs {
            link_or_copy(&self.blob_path(&blob.sha256), &blobs.join(&blob.sha256))?;
        }
        write_json(&output.join(MANIFEST), &self.manifest)
    }

    fn unpack_archive(path: &Path, cache: &Path) -> Result<Self> {
        let not = |reason: String| Error::NotABundle {
            path: path.to_owned(),
            reason,
        };
        let mut archive = Archive::open(path)?;
        let bundles = cache.join("bundles");
        let directory = bundles.join(format!("unpacked-{}", &pack::sum(&archive.manifest_text)[..16]));
        if let Ok(bundle) = Self::open_directory(&directory) {
            return Ok(bundle);
        }
        fs::create_dir_all(&bundles).map_err(io_error("create", &bundles))?;
        let staging = tempfile::Builder::new()
            .prefix(".unpacking-")
            .tempdir_in(&bundles)
            .map_err(io_error("create a directory in", &bundles))?;
        let blobs = staging.path().join(BLOBS);
        fs::create_dir_all(&blobs).map_err(io_error("create", &blobs))?;
        let manifest = archive.manifest.clone();
        let mut unknown = Vec::new();
        archive.for_each_blob(|sum, packed| {
            let Some(blob) = manifest.blobs.iter().find(|blob| blob.sha256 == sum) else {
                unknown.push(sum.to_owned());
                return Ok(());
            };
            let mut file = File::create_new(blobs.join(&blob.sha256))?;
            io::copy(packed, &mut file)?;
            Ok(())
        })?;
        if !unknown.is_empty() {
            return Err(not(format!(
                "it has blobs that its manifest does not: {}",
                unknown.join(", ")
            )));
        }
        fs::write(staging.path().join(MANIFEST), &archive.manifest_text).map_err(io_error("write", staging.path()))?;
        let problems = Self {
            directory: staging.path().to_owned(),
            manifest: manifest.clone(),
        }
        .verify();
        if !problems.is_empty() {
            return Err(not(problems
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join("; ")));
        }
        let staged = staging.keep();
        if fs::rename(&staged, &directory).is_err() {
            // Another process was faster with the same content.
            fs::remove_dir_all(&staged).map_err(io_error("remove", &staged))?;
        }
        Self::open_directory(&directory)
    }
}

/// Verifies a directory or an archive without unpacking it; empty when nothing is wrong.
pub fn verify(path: &Path) -> Result<(Manifest, Vec<Problem>)> {
    if fs::metadata(path).map_err(io_error("open the bundle", path))?.is_dir() {
        let bundle = Bundle::open_directory(path)?;
        let problems = bundle.verify();
        return Ok((bundle.manifest, problems));
    }
    let mut archive = Archive::open(path)?;
    let manifest = archive.manifest.clone();
    let mut problems: Vec<Problem> = manifest
        .findings()
        .into_iter()
        .map(|reason| problem(MANIFEST, reason))
        .collect();
    let mut seen = Vec::new();
    let read = archive.for_each_blob(|sum, packed| {
        seen.push(sum.to_owned());
        let mut named = manifest.blobs.iter().filter(|blob| blob.sha256 == sum).peekable();
        if named.peek().is_none() {
            problems.push(problem(&format!("{BLOBS}/{sum}"), "not in the manifest".into()));
            return Ok(());
        }
        let found = pack::unpack(packed, &mut io::sink()).map_err(|error| error.to_string());
        for blob in named {
            let found = found.clone().map_err(io::Error::other);
            problems.extend(
                check_blob(blob, found)
                    .into_iter()
                    .map(|reason| problem(&blob.name, reason)),
            );
        }
        Ok(())
    });
    if let Err(error) = read {
        problems.push(problem(&path.display().to_string(), error.to_string()));
    }
    for blob in manifest.blobs.iter().filter(|blob| !seen.contains(&blob.sha256)) {
        problems.push(problem(&blob.name, "its blob is missing".into()));
    }
    Ok((manifest, problems))
}

/// The manifest of a directory or an archive, without reading the blobs.
pub fn manifest(path: &Path) -> Result<Manifest> {
    if path.is_dir() {
        Ok(Bundle::open_directory(path)?.manifest)
    } else {
        Ok(Archive::open(path)?.manifest)
    }
}

/// `$XDG_CACHE_HOME/quorate`, or `~/.cache/quorate`.
pub fn default_cache() -> PathBuf {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("quorate")
}

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const BLOBS: &str = "blobs/sha256";

pub(crate) fn parse_manifest(text: &[u8]) -> Result<Manifest, String> {
    // The format is looked at first: a later one may have other fields.
    let value: serde_json::Value = serde_json::from_slice(text).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let format = value["format"].as_str().unwrap_or_default();
    if format != crate::manifest::FORMAT {
        return Err(format!(
            "its format is {format:?}; this program reads {:?}",
            crate::manifest::FORMAT
        ));
    }
    let manifest: Manifest = serde_json::from_value(value).map_err(|error| format!("{MANIFEST}: {error}"))?;
    match manifest
        .blobs
        .iter()
        .find(|blob| !crate::manifest::is_sha256(&blob.sha256))
    {
        // Sums become file names.
        Some(blob) => Err(format!("{MANIFEST}: {}: {:?} is not a SHA-256", blob.name, blob.sha256)),
        None => Ok(manifest),
    }
}

fn check_blob(blob: &Blob, found: io::Result<Packed>) -> Vec<String> {
    let found = match found {
        Ok(found) => found,
        Err(error) => return vec![format!("cannot be decompressed: {error}")],
    };
    let mut reasons = Vec::new();
    let mut compare = |what: &str, found: String, expected: String| {
        if found != expected {
            reasons.push(format!("{what} is {found}, the manifest says {expected}"));
        }
    };
    compare("size", found.size.to_string(), blob.size.to_string());
    compare("SHA-256", found.sha256, blob.sha256.clone());
    compare(
        "packed size",
        found.packed_size.to_string(),
        blob.packed_size.to_string(),
    );
    compare("packed SHA-256", found.packed_sha256, blob.packed_sha256.clone());
    reasons
}

pub(crate) fn check_sum(what: &str, found: &str, expected: &str) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::WrongSum {
        what: what.to_owned(),
        found: found.to_owned(),
        expected: expected.to_owned(),
    })
}

/// Packed files are never changed in place, so a hard link is as good as a copy; other file systems get the copy.
pub(crate) fn link_or_copy(from: &Path, to: &Path) -> Result<()> {
    if to.exists() {
        fs::remove_file(to).map_err(io_error("replace", to))?;
    }
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).map_err(io_error("copy to", to))?;
    }
    Ok(())
}

fn problem(what: &str, reason: String) -> Problem {
    Problem {
        what: what.to_owned(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        manifest::{BlobKind, FORMAT},
        pack::pack_all,
    };

    /// A bundle with two blobs, and its directory.
    fn bundle(root: &Path) -> Bundle {
        let directory = root.join("bundle");
        let blobs = directory.join(BLOBS);
        fs::create_dir_all(&blobs).unwrap();
        let names = ["one", "two"];
        let files: Vec<PathBuf> = names.iter().map(|name| root.join(name)).collect();
        for (file, name) in files.iter().zip(names) {
            fs::write(file, name.repeat(1000)).unwrap();
        }
        let packed = pack_all(&files, &blobs).unwrap();
        let blobs = names
            .iter()
            .zip(packed)
            .map(|(name, packed)| Blob {
                name: (*name).into(),
                kind: BlobKind::Binary,
                version: "v1".into(),
                origin: "test".into(),
                licence: "MIT".into(),
                sha256: packed.sha256,
                size: packed.size,
                packed_sha256: packed.packed_sha256,
                packed_size: packed.packed_size,
                path: None,
                mode: "0755".into(),
                also: Vec::new(),
            })
            .collect();
        let manifest = Manifest {
            format: FORMAT.into(),
            kubernetes: "v1.36.3".into(),
            architecture: "amd64".into(),
            created_from: "directory".into(),
            blobs,
        };
        write_json(&directory.join(MANIFEST), &manifest).unwrap();
        Bundle::open(&directory).unwrap()
    }

    fn reasons(problems: &[Problem]) -> Vec<String> {
        problems.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn all_that_is_wrong_is_listed() {
        let root = tempfile::tempdir().unwrap();
        let mut bundle = bundle(root.path());
        assert_eq!(bundle.verify(), []);
        let (one, two) = (bundle.manifest.blobs[0].clone(), bundle.manifest.blobs[1].clone());
        let mut damaged = fs::read(bundle.blob_path(&one.sha256)).unwrap();
        damaged.truncate(damaged.len() - 3);
        fs::write(bundle.blob_path(&one.sha256), damaged).unwrap();
        fs::copy(bundle.blob_path(&two.sha256), bundle.blob_path("stranger")).unwrap();
        bundle.manifest.blobs[1].size = 7;
        bundle.manifest.blobs[1].mode = "rwx".into();
        let found = reasons(&bundle.verify());
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[0], "manifest.json: two: mode \"rwx\" is not octal");
        assert!(found[1].starts_with("one: cannot be decompressed: "), "{found:?}");
        assert_eq!(found[2], "two: size is 3000, the manifest says 7");
        assert_eq!(found[3], "blobs/sha256/stranger: not in the manifest");

        fs::remove_file(bundle.blob_path(&one.sha256)).unwrap();
        assert!(reasons(&bundle.verify())[1].starts_with("one: No such file"));
    }

    #[test]
    fn another_content_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let bundle = bundle(root.path());
        let [one, two] = &bundle.manifest.blobs[..] else {
            panic!()
        };
        fs::copy(bundle.blob_path(&two.sha256), bundle.blob_path(&one.sha256)).unwrap();
        let found = reasons(&bundle.verify());
        assert!(
            found[0].starts_with(&format!("one: SHA-256 is {}", two.sha256)),
            "{found:?}"
        );
        let error = bundle.extract(one, &root.path().join("out")).unwrap_err().to_string();
        assert!(
            error.starts_with("one: SHA-256 is ") && !root.path().join("out").exists(),
            "{error}"
        );
    }

    #[test]
    fn an_archive_is_the_same_bundle() {
        let root = tempfile::tempdir().unwrap();
        let bundle = bundle(root.path());
        let (archive, cache) = (root.path().join("b.tar.zst"), root.path().join("cache"));
        bundle.write_archive(&archive).unwrap();
        assert_eq!(verify(&archive).unwrap(), (bundle.manifest.clone(), Vec::new()));
        assert_eq!(manifest(&archive).unwrap(), bundle.manifest);
        for _ in 0..2 {
            let opened = Bundle::open_with_cache(&archive, &cache).unwrap();
            assert_eq!(opened.manifest, bundle.manifest);
            let out = root.path().join("out/two");
            opened.extract(opened.blob("two").unwrap(), &out).unwrap();
            assert_eq!(fs::read_to_string(&out).unwrap(), "two".repeat(1000));
            let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&out).unwrap().permissions());
            assert_eq!(mode & 0o777, 0o755);
        }
    }

    #[test]
    fn a_cut_archive_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let bundle = bundle(root.path());
        let archive = root.path().join("b.tar.zst");
        bundle.write_archive(&archive).unwrap();
        let whole = fs::read(&archive).unwrap();
        fs::write(&archive, &whole[..whole.len() - 40]).unwrap();
        match verify(&archive) {
            Ok((_, problems)) => assert!(!problems.is_empty()),
            Err(error) => assert!(error.to_string().contains("is not a bundle"), "{error}"),
        }
        assert!(Bundle::open_with_cache(&archive, &root.path().join("cache")).is_err());
    }

    #[test]
    fn other_things_are_no_bundles() {
        let root = tempfile::tempdir().unwrap();
        let say = |path: &Path| Bundle::open(path).unwrap_err().to_string();
        assert!(say(&root.path().join("absent")).starts_with("open the bundle "));
        assert!(say(root.path()).contains("is not a bundle: manifest.json: No such file"));
        let text = root.path().join("text");
        fs::write(&text, "hello").unwrap();
        assert!(say(&text).contains("not a readable .tar.zst file"));
        let format = "{\"format\": \"quorate.dev/bundle/v9\", \"new\": 1}";
        fs::write(root.path().join(MANIFEST), format).unwrap();
        assert!(say(root.path()).contains("its format is \"quorate.dev/bundle/v9\"; this program reads"));
        // A sum that leads out of the bundle.
        let bundle = bundle(root.path());
        let evil = fs::read_to_string(bundle.directory.join(MANIFEST)).unwrap();
        let evil = evil.replacen(&bundle.manifest.blobs[0].sha256, "../../../etc/passwd", 1);
        fs::write(bundle.directory.join(MANIFEST), evil).unwrap();
        assert!(say(&bundle.directory).contains("is not a SHA-256"));
    }

    #[test]
    fn other_files_are_not_overwritten() {
        let root = tempfile::tempdir().unwrap();
        let bundle = bundle(root.path());
        let error = bundle.write_directory(root.path()).unwrap_err().to_string();
        assert!(error.contains("has other files in it"), "{error}");
        bundle.write_directory(&root.path().join("copy")).unwrap();
        bundle.write_directory(&root.path().join("copy")).unwrap();
        assert_eq!(Bundle::open(&root.path().join("copy")).unwrap().verify(), []);
    }
}
