//! Opening, verifying and writing bundles: a directory with `manifest.json` and `blobs/sha256/<hash>`, or the same in
//! one `.tar.zst` file.
use std::{
    env, fmt, fs,
    fs::File,
    io::{self, BufReader, Read, Write},
    path::{Path, PathBuf},
    sync::Mutex,
    thread,
};

use crate::{
    error::{Error, Result, io_error},
    manifest::{Blob, Manifest},
    pack::{self, Packed},
    unit::write_json,
};

/// Blobs are compressed already: this level finds that out fastest.
const ARCHIVE_LEVEL: i32 = 1;

/// No manifest comes near it; a damaged archive cannot make us read on and on.
const MANIFEST_LIMIT: u64 = 16 << 20;

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
        let directory = path
            .canonicalize()
            .map_err(io_error("open the bundle", path))?;
        let text = fs::read(directory.join(MANIFEST))
            .map_err(|error| not(format!("{MANIFEST}: {error}")))?;
        let manifest = parse_manifest(&text).map_err(not)?;
        Ok(Self {
            directory,
            manifest,
        })
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
            known: self
                .manifest
                .blobs
                .iter()
                .map(|blob| blob.name.clone())
                .collect(),
        })
    }

    /// Writes a blob's content to `output` with the blob's mode, by way of a temporary file next to it.
    pub fn extract(&self, blob: &Blob, output: &Path) -> Result<()> {
        let parent = output
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        fs::create_dir_all(parent).map_err(io_error("create", parent))?;
        let staged = tempfile::NamedTempFile::new_in(parent)
            .map_err(io_error("create a file in", parent))?;
        let packed = self.blob_path(&blob.sha256);
        let input = File::open(&packed).map_err(io_error("open", &packed))?;
        let found =
            pack::unpack(input, &mut staged.as_file()).map_err(io_error("decompress", &packed))?;
        check_sum(&blob.name, &found.sha256, &blob.sha256)?;
        let mode = blob.mode().unwrap_or(0o644);
        fs::set_permissions(
            staged.path(),
            std::os::unix::fs::PermissionsExt::from_mode(mode),
        )
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
                        let taken = next
                            .lock()
                            .ok()
                            .and_then(|mut next| Some((next.len(), next.next()?)));
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
        let mut found = found
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
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
        let staged = tempfile::NamedTempFile::new_in(parent)
            .map_err(io_error("create a file in", parent))?;
        let write = || -> io::Result<()> {
            let mut tar =
                tar::Builder::new(zstd::stream::Encoder::new(staged.as_file(), ARCHIVE_LEVEL)?);
            let mut add = |path: &str, file: &Path| {
                let mut file = File::open(file)?;
                let mut header = tar::Header::new_gnu();
                header.set_mode(0o644);
                header.set_size(file.metadata()?.len());
                header.set_mtime(0);
                tar.append_data(&mut header, path, &mut file)
            };
            add(MANIFEST, &self.directory.join(MANIFEST))?;
            let mut sums: Vec<&str> = self
                .manifest
                .blobs
                .iter()
                .map(|blob| blob.sha256.as_str())
                .collect();
            sums.sort_unstable();
            sums.dedup();
            for sum in sums {
                add(&format!("{BLOBS}/{sum}"), &self.blob_path(sum))?;
            }
            tar.into_inner()?.finish()?.flush()
        };
        write().map_err(io_error("write", output))?;
        fs::set_permissions(
            staged.path(),
            std::os::unix::fs::PermissionsExt::from_mode(0o644),
        )
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
        let directory = bundles.join(format!(
            "unpacked-{}",
            &pack::sum(&archive.manifest_text)[..16]
        ));
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
        fs::write(staging.path().join(MANIFEST), &archive.manifest_text)
            .map_err(io_error("write", staging.path()))?;
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
    if fs::metadata(path)
        .map_err(io_error("open the bundle", path))?
        .is_dir()
    {
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
        let mut named = manifest
            .blobs
            .iter()
            .filter(|blob| blob.sha256 == sum)
            .peekable();
        if named.peek().is_none() {
            problems.push(problem(
                &format!("{BLOBS}/{sum}"),
                "not in the manifest".into(),
            ));
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
    for blob in manifest
        .blobs
        .iter()
        .filter(|blob| !seen.contains(&blob.sha256))
    {
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
    let absolute = |name: &str| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(|| PathBuf::from("/var/cache"))
        .join("quorate")
}

pub(crate) const MANIFEST: &str = "manifest.json";
pub(crate) const BLOBS: &str = "blobs/sha256";

/// An archive whose manifest has been read.
struct Archive {
    path: PathBuf,
    manifest: Manifest,
    manifest_text: Vec<u8>,
}

impl Archive {
    fn open(path: &Path) -> Result<Self> {
        let not = |reason: String| Error::NotABundle {
            path: path.to_owned(),
            reason,
        };
        let read = || -> io::Result<Option<Vec<u8>>> {
            let mut tar = tar::Archive::new(zstd::stream::Decoder::new(File::open(path)?)?);
            let Some(first) = tar.entries()?.next() else {
                return Ok(None);
            };
            let first = first?;
            if first.path()? != Path::new(MANIFEST) {
                return Ok(None);
            }
            let mut text = Vec::new();
            first.take(MANIFEST_LIMIT).read_to_end(&mut text)?;
            Ok(Some(text))
        };
        let manifest_text = read()
            .map_err(|error| not(format!("not a readable .tar.zst file: {error}")))?
            .ok_or_else(|| not(format!("its first entry is not {MANIFEST}")))?;
        let manifest = parse_manifest(&manifest_text).map_err(not)?;
        Ok(Self {
            path: path.to_owned(),
            manifest,
            manifest_text,
        })
    }

    /// Calls `each` with the name and the packed content of every blob in the archive's order.
    fn for_each_blob(
        &mut self,
        mut each: impl FnMut(&str, &mut dyn Read) -> io::Result<()>,
    ) -> Result<()> {
        let mut read = || -> io::Result<()> {
            let input = BufReader::with_capacity(1 << 20, File::open(&self.path)?);
            let mut tar = tar::Archive::new(zstd::stream::Decoder::with_buffer(input)?);
            for entry in tar.entries()?.skip(1) {
                let mut entry = entry?;
                if entry.header().entry_type().is_dir() {
                    continue;
                }
                let path = entry.path()?.into_owned();
                let name = path
                    .strip_prefix(BLOBS)
                    .ok()
                    .and_then(Path::to_str)
                    .unwrap_or_default()
                    .to_owned();
                if !crate::manifest::is_sha256(&name) {
                    return Err(io::Error::other(format!(
                        "unexpected entry {}",
                        path.display()
                    )));
                }
                each(&name, &mut entry)?;
            }
            Ok(())
        };
        read().map_err(io_error("read", &self.path))
    }
}

fn parse_manifest(text: &[u8]) -> Result<Manifest, String> {
    // The format is looked at first: a later one may have other fields.
    let value: serde_json::Value =
        serde_json::from_slice(text).map_err(|error| format!("{MANIFEST}: {error}"))?;
    let format = value["format"].as_str().unwrap_or_default();
    if format != crate::manifest::FORMAT {
        return Err(format!(
            "its format is {format:?}; this program reads {:?}",
            crate::manifest::FORMAT
        ));
    }
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|error| format!("{MANIFEST}: {error}"))?;
    match manifest
        .blobs
        .iter()
        .find(|blob| !crate::manifest::is_sha256(&blob.sha256))
    {
        // Sums become file names.
        Some(blob) => Err(format!(
            "{MANIFEST}: {}: {:?} is not a SHA-256",
            blob.name, blob.sha256
        )),
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
    compare(
        "packed SHA-256",
        found.packed_sha256,
        blob.packed_sha256.clone(),
    );
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
