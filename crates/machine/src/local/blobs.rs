//! The blob store: `blobs/<sha256>` holds content, `packed/<sha256 of the packed form>` what travels.
//!
//! A blob appears under its name only after its content was found to have that hash. Packed forms stay while a run
//! hands them on to other machines and are pruned after it.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, FileExt, PermissionsExt},
    path::{Path, PathBuf},
};

use sha2::{Digest, Sha256};

use super::{Session, door};
use crate::{
    error::{ErrorKind, RemoteError},
    hash::{hex, is_sha256},
    proto::{Item, PackedBlob, Token},
};

pub(super) fn packed_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("packed")
}

pub(super) fn path(state_dir: &Path, sha256: &str) -> Result<PathBuf, RemoteError> {
    named(&state_dir.join("blobs"), sha256)
}

pub(super) fn present(session: &Session, wanted: Vec<String>) -> Result<Vec<String>, RemoteError> {
    let mut present = Vec::new();
    for sha256 in wanted {
        if is_present(session, &sha256)? {
            present.push(sha256);
        }
    }
    session.hashes.save();
    Ok(present)
}

/// There and of the right content; what is not (a power cut before it reached the disk) is deleted.
pub(super) fn is_present(session: &Session, sha256: &str) -> Result<bool, RemoteError> {
    let path = path(&session.state_dir, sha256)?;
    let Ok(metadata) = fs::metadata(&path) else { return Ok(false) };
    let io = |error: io::Error| RemoteError::io(path.display(), &error);
    if session.hashes.of(&path, &metadata).map_err(io)? == sha256 {
        return Ok(true);
    }
    fs::remove_file(&path).map_err(io)?;
    Ok(false)
}

/// From where to send; `None` if the blob is there.
pub(super) fn begin(session: &Session, blob: &PackedBlob) -> Result<Option<u64>, RemoteError> {
    if is_present(session, &blob.sha256)? {
        return Ok(None);
    }
    let part = part_path(&session.state_dir, &blob.packed_sha256)?;
    make_dir(&packed_dir(&session.state_dir))?;
    if let Ok(whole) = fs::metadata(named(&packed_dir(&session.state_dir), &blob.packed_sha256)?) {
        return Ok(Some(whole.len().min(blob.packed_size)));
    }
    let have = fs::metadata(&part).map_or(0, |part| part.len());
    if have > blob.packed_size {
        fs::remove_file(&part).map_err(|error| RemoteError::io(part.display(), &error))?;
        return Ok(Some(0));
    }
    // The last pieces may have been written out of order before the connection broke: they are sent again.
    Ok(Some(have.saturating_sub(4 << 20)))
}

pub(super) fn chunk(state_dir: &Path, packed_sha256: &str, offset: u64, data: &[u8]) -> Result<(), RemoteError> {
    let part = part_path(state_dir, packed_sha256)?;
    let io = |error: io::Error| RemoteError::io(part.display(), &error);
    let file = OpenOptions::new().write(true).create(true).truncate(false).open(&part).map_err(io)?;
    file.write_all_at(data, offset).map_err(io)
}

/// Verifies the packed form and its content and puts the content into the store. A packed form that is not what it
/// should be is deleted, so that the next attempt starts afresh.
pub(super) fn unpack(session: &Session, blob: &PackedBlob) -> Result<(), RemoteError> {
    let state_dir = &session.state_dir;
    if is_present(session, &blob.sha256)? {
        return Ok(());
    }
    let target = path(state_dir, &blob.sha256)?;
    make_dir(&state_dir.join("blobs"))?;
    let whole = named(&packed_dir(state_dir), &blob.packed_sha256)?;
    let part = part_path(state_dir, &blob.packed_sha256)?;
    let packed = if part.exists() { &part } else { &whole };
    let temporary = target.with_extension("new");
    let unpacked = unpack_file(packed, &temporary, blob);
    match &unpacked {
        Ok(()) => {
            if packed == &part {
                fs::rename(&part, &whole).map_err(|error| RemoteError::io(part.display(), &error))?;
            }
            let metadata = fs::metadata(&temporary).map_err(|error| RemoteError::io(temporary.display(), &error))?;
            fs::rename(&temporary, &target).map_err(|error| RemoteError::io(target.display(), &error))?;
            session.hashes.remember(&metadata, &blob.sha256);
            session.hashes.save();
        }
        Err(error) => {
            let _ = fs::remove_file(&temporary);
            if error.kind == ErrorKind::Corrupt {
                let _ = fs::remove_file(packed);
            }
        }
    }
    unpacked
}

fn unpack_file(packed: &Path, target: &Path, blob: &PackedBlob) -> Result<(), RemoteError> {
    let reading = |error: &io::Error| RemoteError::io(packed.display(), error);
    let writing = |error: io::Error| RemoteError::io(target.display(), &error);
    let corrupt = |what: String| {
        RemoteError::new(ErrorKind::Corrupt, format!("blob {}: {what}", blob.sha256)).hint("run again; if it stays, `quorate bundle verify`")
    };
    let source = Hashing { inner: File::open(packed).map_err(|error| reading(&error))?, digest: Sha256::new(), count: 0 };
    let mut decoder = zstd::stream::read::Decoder::new(source).map_err(|error| reading(&error))?.single_frame();
    let _ = fs::remove_file(target);
    let mut file = File::create_new(target).map_err(writing)?;
    let (mut digest, mut size) = (Sha256::new(), 0u64);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let got = decoder.read(&mut buffer).map_err(|error| corrupt(format!("cannot be unpacked: {error}")))?;
        if got == 0 {
            break;
        }
        size += got as u64;
        if size > blob.size {
            return Err(corrupt(format!("is longer than {} bytes", blob.size)));
        }
        digest.update(&buffer[..got]);
        file.write_all(&buffer[..got]).map_err(writing)?;
    }
    let mut source = decoder.finish();
    io::copy(&mut source, &mut io::sink()).map_err(|error| reading(&error))?;
    let source = source.into_inner();
    let (packed_sum, sum) = (hex(&source.digest.finalize()), hex(&digest.finalize()));
    if source.count != blob.packed_size || packed_sum != blob.packed_sha256 {
        return Err(corrupt(format!("its packed form has {} bytes and hash {packed_sum}", source.count)));
    }
    if size != blob.size || sum != blob.sha256 {
        return Err(corrupt(format!("its content has {size} bytes and hash {sum}")));
    }
    file.set_permissions(fs::Permissions::from_mode(0o755)).map_err(writing)
}

/// From the first source that delivers, going on where the one before stopped.
pub(super) async fn fetch(session: &Session, blob: &PackedBlob, from: &[SocketAddr], token: &Token) -> Result<(), RemoteError> {
    let Some(have) = begin(session, blob)? else { return Ok(()) };
    if named(&packed_dir(&session.state_dir), &blob.packed_sha256)?.exists() {
        return Ok(());
    }
    let part = part_path(&session.state_dir, &blob.packed_sha256)?;
    if let Ok(file) = OpenOptions::new().write(true).open(&part) {
        file.set_len(have).map_err(|error| RemoteError::io(part.display(), &error))?;
    }
    let mut failures = Vec::new();
    for address in from {
        match door::fetch(*address, token, blob, &part).await {
            Ok(()) => return Ok(()),
            Err(error) => failures.push(format!("{address}: {}", error.message)),
        }
    }
    Err(RemoteError::failed(format!("no peer delivered blob {}: {}", blob.sha256, failures.join("; "))))
}

pub(super) fn prune(state_dir: &Path, keep: Option<Vec<String>>) -> Result<Vec<Item>, RemoteError> {
    let mut items = Vec::new();
    let mut clear = |dir: PathBuf, stays: &dyn Fn(&str) -> bool| -> Result<(), RemoteError> {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !stays(&name) {
                fs::remove_file(entry.path()).map_err(|error| RemoteError::io(entry.path().display(), &error))?;
                items.push(Item { name, changed: true, ..Item::default() });
            }
        }
        Ok(())
    };
    clear(packed_dir(state_dir), &|_| false)?;
    if let Some(keep) = keep {
        clear(state_dir.join("blobs"), &|name| keep.iter().any(|kept| kept == name))?;
    }
    Ok(items)
}

/// Names in the store, unverified.
pub(super) fn names(state_dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(state_dir.join("blobs")).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).filter(|name| is_sha256(name)).collect();
    names.sort();
    names
}

fn named(dir: &Path, sha256: &str) -> Result<PathBuf, RemoteError> {
    if is_sha256(sha256) { Ok(dir.join(sha256)) } else { Err(RemoteError::new(ErrorKind::Invalid, format!("{sha256:?} is no SHA-256"))) }
}

fn part_path(state_dir: &Path, packed_sha256: &str) -> Result<PathBuf, RemoteError> {
    Ok(named(&packed_dir(state_dir), packed_sha256)?.with_extension("part"))
}

fn make_dir(dir: &Path) -> Result<(), RemoteError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|error| RemoteError::io(dir.display(), &error))
}

/// Hashes what passes through it.
struct Hashing<R> {
    inner: R,
    digest: Sha256,
    count: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(buffer)?;
        self.digest.update(&buffer[..got]);
        self.count += got as u64;
        Ok(got)
    }
}
