//! Files, directories and links: replaced atomically, kept before they are replaced.
//!
//! A new file is written beside its place under a fixed temporary name, synced, given owner and mode, and only then
//! renamed over the old one. A batch is prepared completely before its first rename, so a full disk replaces nothing.
//! A kill in between leaves the old file and a temporary one that the next write of the same path overwrites.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink},
    path::{Path, PathBuf},
};

use quorate_facts::{FileFacts, FileKind};

use super::{Session, absolute, blobs, hashes::Hashes, owners::Owners};
use crate::{
    error::{ErrorKind, RemoteError},
    proto::{BlobInstall, DirSpec, FileWrite, Item, ManagedBlock, Owner},
};

/// Ends the name of a file that is being written.
pub(super) const TEMPORARY_SUFFIX: &str = ".quorate~";

pub(super) fn stat(paths: &[String], hashes: Option<&Hashes>) -> Result<Vec<FileFacts>, RemoteError> {
    let owners = Owners::load();
    paths
        .iter()
        .map(|path| facts(absolute(path)?, &owners, hashes))
        .collect()
}

/// Facts of one path, hashed if it is a regular file and `hashes` is given.
pub(super) fn facts(path: &Path, owners: &Owners, hashes: Option<&Hashes>) -> Result<FileFacts, RemoteError> {
    let io = |error: &io::Error| RemoteError::io(path.display(), error);
    let metadata = match path.symlink_metadata() {
        Ok(metadata) => metadata,
        Err(error) if absent(&error) => return Ok(FileFacts::absent()),
        Err(error) => return Err(io(&error)),
    };
    let kind = match metadata.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let sha256 = match hashes {
        Some(hashes) if kind == FileKind::File => Some(hashes.of(path, &metadata).map_err(|error| io(&error))?),
        _ => None,
    };
    let target = match kind {
        FileKind::Symlink => Some(
            fs::read_link(path)
                .map_err(|error| io(&error))?
                .to_string_lossy()
                .into_owned(),
        ),
        _ => None,
    };
    Ok(FileFacts {
        mode: metadata.mode() & 0o7777,
        owner: owners.user_name(metadata.uid()),
        group: owners.group_name(metadata.gid()),
        size: if kind == FileKind::File { metadata.len() } else { 0 },
        sha256,
        target,
        text: None,
        kind,
    })
}

pub(super) fn read(path: &str, max_bytes: u64) -> Result<Vec<u8>, RemoteError> {
    let io = |error: io::Error| RemoteError::io(path, &error);
    let file = File::open(absolute(path)?).map_err(io)?;
    let mut content = Vec::new();
    file.take(max_bytes.saturating_add(1))
        .read_to_end(&mut content)
        .map_err(io)?;
    if content.len() as u64 > max_bytes {
        return Err(RemoteError::failed(format!("{path}: longer than {max_bytes} bytes")));
    }
    Ok(content)
}

pub(super) fn list(path: &str) -> Result<Vec<String>, RemoteError> {
    let entries = match fs::read_dir(absolute(path)?) {
        Ok(entries) => entries,
        Err(error) if absent(&error) => return Ok(Vec::new()),
        Err(error) => return Err(RemoteError::io(path, &error)),
    };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    Ok(names)
}

pub(super) fn write(state_dir: &Path, files: Vec<FileWrite>, run_id: &str) -> Result<Vec<Item>, RemoteError> {
    let owners = Owners::load();
    let mut batch = Batch::new(state_dir, run_id)?;
    for FileWrite {
        path,
        content,
        owner,
        mode,
        parent_mode,
    } in files
    {
        let ids = owners.resolve(&owner).map_err(|error| naming(&path, error))?;
        let place = absolute(&path)?;
        if is_already(place, &content, ids, mode) {
            batch.unchanged(path);
            continue;
        }
        make_parents(place, ids, parent_mode)?;
        batch.prepare(path, |temporary| {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(temporary)?;
            file.write_all(&content)?;
            set_owner(temporary, ids)?;
            file.set_permissions(Permissions::from_mode(mode))?;
            Ok(Some(file))
        })?;
    }
    batch.commit()
}

pub(super) fn install(session: &Session, files: Vec<BlobInstall>, run_id: &str) -> Result<Vec<Item>, RemoteError> {
    let owners = Owners::load();
    let mut batch = Batch::new(&session.state_dir, run_id)?;
    for BlobInstall {
        sha256,
        path,
        owner,
        mode,
    } in files
    {
        let ids = owners.resolve(&owner).map_err(|error| naming(&path, error))?;
        let place = absolute(&path)?;
        if !blobs::is_present(session, &sha256)? {
            return Err(RemoteError::new(
                ErrorKind::NotFound,
                format!("{path}: blob {sha256} is not in the store"),
            )
            .hint("distribute the bundle again"));
        }
        let blob = blobs::path(&session.state_dir, &sha256)?;
        let io = |error: io::Error| RemoteError::io(&path, &error);
        let stored = fs::metadata(&blob).map_err(io)?;
        let right = |found: &fs::Metadata| has_owner(found, ids) && found.mode() & 0o7777 == mode;
        if let Ok(found) = place.symlink_metadata()
            && found.is_file()
            && right(&found)
            && session.hashes.of(place, &found).map_err(io)? == sha256
        {
            batch.unchanged(path);
            continue;
        }
        make_parents(place, ids, 0o755)?;
        batch.prepare(path, |temporary| {
            // A link shares owner and mode with every other place the blob is in, so it must not change them there.
            if !right(&stored) && stored.nlink() == 1 {
                set_owner(&blob, ids)?;
                fs::set_permissions(&blob, Permissions::from_mode(mode))?;
            }
            if right(&fs::metadata(&blob)?) && fs::hard_link(&blob, temporary).is_ok() {
                return Ok(None);
            }
            fs::copy(&blob, temporary)?;
            set_owner(temporary, ids)?;
            fs::set_permissions(temporary, Permissions::from_mode(mode))?;
            session.hashes.remember(&fs::metadata(temporary)?, &sha256);
            // Not synced, as the blob is not: half a gigabyte would be waited for. `Request::Sync` ends a run, and
            // until then what a power cut damaged is found by its hash.
            Ok(None)
        })?;
    }
    batch.commit()
}

pub(super) fn link(state_dir: &Path, path: &str, target: &str, run_id: &str) -> Result<Item, RemoteError> {
    let place = absolute(path)?;
    if fs::read_link(place).is_ok_and(|found| found == Path::new(target)) {
        return Ok(Item {
            name: path.into(),
            ..Item::default()
        });
    }
    make_parents(place, (None, None), 0o755)?;
    let mut batch = Batch::new(state_dir, run_id)?;
    batch.prepare(path.into(), |temporary| symlink(target, temporary).map(|()| None))?;
    Ok(batch.commit()?.remove(0))
}

pub(super) fn managed_block(state_dir: &Path, wanted: &ManagedBlock) -> Result<Item, RemoteError> {
    /// Nobody edits by hand what is longer.
    const LONGEST: u64 = 4 << 20;
    let ManagedBlock {
        path,
        marker,
        content,
        mode,
        run_id,
    } = wanted;
    let found = fs::metadata(absolute(path)?).ok();
    let text = if found.is_some() {
        read(path, LONGEST)?
    } else {
        Vec::new()
    };
    let made = quorate_facts::block::edit(&text, marker, content.as_deref());
    if made == text {
        return Ok(Item {
            name: path.clone(),
            ..Item::default()
        });
    }
    let (owner, mode) = match &found {
        Some(found) => (
            Owner::new(found.uid().to_string(), found.gid().to_string()),
            found.mode() & 0o7777,
        ),
        None => (Owner::default(), *mode),
    };
    let file = FileWrite {
        path: path.clone(),
        content: made.clone().into(),
        owner,
        mode,
        parent_mode: 0o755,
    };
    match write(state_dir, vec![file], run_id) {
        Ok(mut items) => Ok(items.remove(0)),
        // A bind-mounted file (/etc/hosts of a container) cannot be renamed over, only written into.
        Err(_) if is_mount_point(path) => {
            let io = |error: io::Error| RemoteError::io(path, &error);
            keep(state_dir, run_id, Path::new(path)).map_err(io)?;
            fs::write(path, made).map_err(io)?;
            Ok(Item {
                name: path.clone(),
                changed: true,
                ..Item::default()
            })
        }
        Err(error) => Err(error),
    }
}

pub(super) fn remove(
    state_dir: &Path,
    paths: &[String],
    recursive: bool,
    run_id: &str,
) -> Result<Vec<Item>, RemoteError> {
    check_run_id(run_id)?;
    let mut items = Vec::new();
    for path in paths {
        let place = absolute(path)?;
        let io = |error: io::Error| RemoteError::io(path, &error);
        let changed = match place.symlink_metadata() {
            Err(error) if absent(&error) => false,
            Err(error) => return Err(io(error)),
            Ok(found) if !found.is_dir() => {
                keep(state_dir, run_id, place).map_err(io)?;
                fs::remove_file(place).map_err(io)?;
                true
            }
            Ok(_) => {
                if recursive {
                    check_removable(place)?;
                    fs::remove_dir_all(place).map_err(io)?;
                } else {
                    fs::remove_dir(place).map_err(io)?;
                }
                true
            }
        };
        items.push(Item {
            name: path.clone(),
            changed,
            ..Item::default()
        });
    }
    Ok(items)
}

pub(super) fn restore(state_dir: &Path, paths: &[String], run_id: &str) -> Result<Vec<Item>, RemoteError> {
    let mut items = Vec::new();
    for path in paths {
        let place = absolute(path)?;
        let kept = kept_path(state_dir, run_id, place)?;
        if kept.symlink_metadata().is_err() {
            let error = RemoteError::new(ErrorKind::NotFound, format!("{path}: run {run_id} kept nothing"));
            items.push(Item {
                name: path.clone(),
                error: Some(error),
                ..Item::default()
            });
            continue;
        }
        make_parents(place, (None, None), 0o755)?;
        let mut batch = Batch::new(state_dir, "")?;
        batch.prepare(path.clone(), |temporary| duplicate(&kept, temporary).map(|()| None))?;
        items.extend(batch.commit()?);
    }
    Ok(items)
}

pub(super) fn mkdir(dirs: &[DirSpec]) -> Result<Vec<Item>, RemoteError> {
    let owners = Owners::load();
    let mut items = Vec::new();
    for DirSpec { path, owner, mode } in dirs {
        let place = absolute(path)?;
        let ids = owners.resolve(owner).map_err(|error| naming(path, error))?;
        let io = |error: io::Error| RemoteError::io(path, &error);
        let changed = match fs::metadata(place) {
            Ok(found) if !found.is_dir() => {
                return Err(RemoteError::failed(format!("{path}: exists and is no directory")));
            }
            Ok(found) => adjust(place, &found, ids, *mode).map_err(io)?,
            Err(_) => {
                make_parents(place, (None, None), 0o755)?;
                make_dir(place, ids, *mode).map_err(io)?;
                true
            }
        };
        items.push(Item {
            name: path.clone(),
            changed,
            ..Item::default()
        });
    }
    Ok(items)
}

pub(super) fn set_mode(entries: &[DirSpec]) -> Result<Vec<Item>, RemoteError> {
    let owners = Owners::load();
    let mut items = Vec::new();
    for DirSpec { path, owner, mode } in entries {
        let place = absolute(path)?;
        let ids = owners.resolve(owner).map_err(|error| naming(path, error))?;
        let found = fs::metadata(place).map_err(|error| RemoteError::io(path, &error))?;
        let changed = adjust(place, &found, ids, *mode).map_err(|error| RemoteError::io(path, &error))?;
        items.push(Item {
            name: path.clone(),
            changed,
            ..Item::default()
        });
    }
    Ok(items)
}

/// Original paths of what a run kept.
pub(super) fn kept_paths(state_dir: &Path, run_id: &str) -> Vec<String> {
    fn walk(dir: &Path, root: &Path, paths: &mut Vec<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => walk(&entry.path(), root, paths),
                _ => paths.extend(
                    entry
                        .path()
                        .strip_prefix(root)
                        .ok()
                        .map(|path| format!("/{}", path.display())),
                ),
            }
        }
    }
    let root = state_dir.join("kept").join(run_id);
    let mut paths = Vec::new();
    walk(&root, &root, &mut paths);
    paths.sort();
    paths
}

/// Files written and not yet in place. Dropped without [`Batch::commit`] it leaves no trace.
struct Batch<'a> {
    state_dir: &'a Path,
    run_id: &'a str,
    entries: Vec<Entry>,
}

struct Entry {
    path: String,
    temporary: Option<PathBuf>,
    to_sync: Option<File>,
}

impl<'a> Batch<'a> {
    fn new(state_dir: &'a Path, run_id: &'a str) -> Result<Self, RemoteError> {
        check_run_id(run_id)?;
        Ok(Self {
            state_dir,
            run_id,
            entries: Vec::new(),
        })
    }

    fn unchanged(&mut self, path: String) {
        self.entries.push(Entry {
            path,
            temporary: None,
            to_sync: None,
        });
    }

    /// Lets `make` create the file under its temporary name; the file it returns is synced before the rename.
    fn prepare(
        &mut self,
        path: String,
        make: impl FnOnce(&Path) -> io::Result<Option<File>>,
    ) -> Result<(), RemoteError> {
        let place = Path::new(&path);
        if place.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            return Err(
                RemoteError::failed(format!("{path}: is a directory; a file should take its place"))
                    .hint("move the directory away, then run again"),
            );
        }
        let mut name = OsString::from(".");
        name.push(
            place
                .file_name()
                .ok_or_else(|| RemoteError::new(ErrorKind::Invalid, format!("{path:?} names no file")))?,
        );
        name.push(TEMPORARY_SUFFIX);
        let temporary = place.with_file_name(name);
        let _ = fs::remove_file(&temporary);
        self.entries.push(Entry {
            path,
            temporary: Some(temporary.clone()),
            to_sync: None,
        });
        let Some(entry) = self.entries.last_mut() else {
            return Ok(());
        };
        entry.to_sync = make(&temporary).map_err(|error| RemoteError::io(&entry.path, &error))?;
        Ok(())
    }

    fn commit(mut self) -> Result<Vec<Item>, RemoteError> {
        let written: Vec<(String, File)> = self
            .entries
            .iter_mut()
            .filter_map(|entry| Some((entry.path.clone(), entry.to_sync.take()?)))
            .collect();
        sync_all(&written)?;
        for entry in &self.entries {
            if entry.temporary.is_some() {
                keep(self.state_dir, self.run_id, Path::new(&entry.path))
                    .map_err(|error| RemoteError::io(format_args!("keeping {}", entry.path), &error))?;
            }
        }
        let mut directories = BTreeSet::new();
        let mut items = Vec::new();
        for entry in &mut self.entries {
            let changed = entry.temporary.is_some();
            if let Some(temporary) = &entry.temporary {
                fs::rename(temporary, &entry.path).map_err(|error| RemoteError::io(&entry.path, &error))?;
                directories.extend(temporary.parent().map(Path::to_owned));
                entry.temporary = None;
            }
            items.push(Item {
                name: entry.path.clone(),
                changed,
                ..Item::default()
            });
        }
        let open = |directory: PathBuf| -> Result<(String, File), RemoteError> {
            let shown = directory.display().to_string();
            let opened = File::open(directory).map_err(|error| RemoteError::io(&shown, &error))?;
            Ok((shown, opened))
        };
        sync_all(&directories.into_iter().map(open).collect::<Result<Vec<_>, _>>()?)?;
        Ok(items)
    }
}

/// Several at once: a journaling file system brings them to disk with one commit.
fn sync_all(files: &[(String, File)]) -> Result<(), RemoteError> {
    const AT_ONCE: usize = 16;
    let share = files.len().div_ceil(AT_ONCE).max(1);
    let sync = |(path, file): &(String, File)| file.sync_all().map_err(|error| RemoteError::io(path, &error));
    if files.len() <= 1 {
        return files.iter().try_for_each(sync);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .chunks(share)
            .map(|files| scope.spawn(move || files.iter().try_for_each(sync)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(RemoteError::failed("a thread that synced files died")))
        })
    })
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for temporary in self.entries.iter().filter_map(|entry| entry.temporary.as_deref()) {
            let _ = fs::remove_file(temporary);
        }
    }
}

/// Keeps what is at `path`, unless this run already kept something for it: the first is the state before the run.
/// An empty run id keeps nothing.
fn keep(state_dir: &Path, run_id: &str, path: &Path) -> io::Result<()> {
    if run_id.is_empty() || path.symlink_metadata().is_err() {
        return Ok(());
    }
    let kept = kept_path(state_dir, run_id, path).map_err(io::Error::other)?;
    if kept.symlink_metadata().is_ok() {
        return Ok(());
    }
    if let Some(parent) = kept.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    duplicate(path, &kept)
}

/// The same file under a second name: a link where possible, else a copy with owner and mode, complete or not at all.
fn duplicate(from: &Path, to: &Path) -> io::Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let metadata = from.symlink_metadata()?;
    if metadata.file_type().is_symlink() {
        symlink(fs::read_link(from)?, to)?;
        return lchown(to, Some(metadata.uid()), Some(metadata.gid()));
    }
    let partial = to.with_extension("partial~");
    let copied = (|| {
        fs::copy(from, &partial)?;
        chown(&partial, Some(metadata.uid()), Some(metadata.gid()))?;
        fs::set_permissions(&partial, metadata.permissions())?;
        File::open(&partial)?.sync_all()?;
        fs::rename(&partial, to)
    })();
    if copied.is_err() {
        let _ = fs::remove_file(&partial);
    }
    copied
}

fn kept_path(state_dir: &Path, run_id: &str, path: &Path) -> Result<PathBuf, RemoteError> {
    check_run_id(run_id)?;
    let inside = path.strip_prefix("/").unwrap_or(path);
    Ok(state_dir.join("kept").join(run_id).join(inside))
}

fn check_run_id(run_id: &str) -> Result<(), RemoteError> {
    let plain = run_id
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && !run_id.starts_with('.');
    if plain {
        Ok(())
    } else {
        Err(RemoteError::new(
            ErrorKind::Invalid,
            format!("{run_id:?} cannot be a run's id"),
        ))
    }
}

type Ids = (Option<u32>, Option<u32>);

fn is_already(place: &Path, content: &[u8], ids: Ids, mode: u32) -> bool {
    place.symlink_metadata().is_ok_and(|found| {
        found.is_file()
            && found.len() == content.len() as u64
            && found.mode() & 0o7777 == mode
            && has_owner(&found, ids)
            && fs::read(place).is_ok_and(|present| present == content)
    })
}

fn has_owner(found: &fs::Metadata, (uid, gid): Ids) -> bool {
    uid.is_none_or(|uid| uid == found.uid()) && gid.is_none_or(|gid| gid == found.gid())
}

/// Only if it differs: an ordinary user may keep what is his.
fn set_owner(path: &Path, ids: Ids) -> io::Result<()> {
    if has_owner(&path.symlink_metadata()?, ids) {
        Ok(())
    } else {
        lchown(path, ids.0, ids.1)
    }
}

fn adjust(place: &Path, found: &fs::Metadata, ids: Ids, mode: u32) -> io::Result<bool> {
    if has_owner(found, ids) && found.mode() & 0o7777 == mode {
        return Ok(false);
    }
    chown(place, ids.0, ids.1)?;
    fs::set_permissions(place, Permissions::from_mode(mode))?;
    Ok(true)
}

fn make_parents(place: &Path, ids: Ids, mode: u32) -> Result<(), RemoteError> {
    let missing: Vec<&Path> = place
        .ancestors()
        .skip(1)
        .take_while(|dir| dir.metadata().is_err())
        .collect();
    for dir in missing.into_iter().rev() {
        make_dir(dir, ids, mode).map_err(|error| RemoteError::io(dir.display(), &error))?;
    }
    Ok(())
}

/// Mode and owner hold whatever the umask is.
fn make_dir(dir: &Path, ids: Ids, mode: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        other => other?,
    }
    set_owner(dir, ids)?;
    fs::set_permissions(dir, Permissions::from_mode(mode))
}

/// Whole trees go only if they are clearly somebody's own and nothing is mounted in them.
fn check_removable(place: &Path) -> Result<(), RemoteError> {
    let shown = place.display();
    if place.components().count() < 3 {
        return Err(RemoteError::new(
            ErrorKind::Invalid,
            format!("{shown}: will not remove a top-level directory"),
        ));
    }
    match mount_points().iter().find(|mounted| mounted.starts_with(place)) {
        Some(mounted) => {
            Err(RemoteError::failed(format!("{shown}: {} is mounted", mounted.display())).hint("unmount it first"))
        }
        None => Ok(()),
    }
}

fn is_mount_point(path: &str) -> bool {
    mount_points().iter().any(|mounted| mounted == Path::new(path))
}

fn mount_points() -> Vec<PathBuf> {
    super::procfs::mounts()
        .into_iter()
        .map(|mount| mount.target.into())
        .collect()
}

fn naming(path: &str, error: RemoteError) -> RemoteError {
    RemoteError {
        message: format!("{path}: {}", error.message),
        ..error
    }
}

fn absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[cfg(test)]
mod tests;
