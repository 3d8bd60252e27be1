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
    let Ok(metadata) = fs::metadata(&path) else {
        return Ok(false);
    };
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
    make_dir(&packed_dir(&session.state_dir), 0o700)?;
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
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&part)
        .map_err(io)?;
    file.write_all_at(data, offset).map_err(io)
}

/// Unpacks, verifies the content and puts it into the store. A packed form that is not what it should be is deleted, so
/// that the next attempt starts afresh. Its own hash need not be taken: the content's says more.
pub(super) fn unpack(session: &Session, blob: &PackedBlob) -> Result<(), RemoteError> {
    let state_dir = &session.state_dir;
    if is_present(session, &blob.sha256)? {
        return Ok(());
    }
    let target = path(state_dir, &blob.sha256)?;
    // Programs run from here, some of them under users of their own.
    make_dir(&state_dir.join("blobs"), 0o755)?;
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
        RemoteError::new(ErrorKind::Corrupt, format!("blob {}: {what}", blob.sha256))
            .hint("run again; if it stays, `quorate bundle verify`")
    };
    let source = File::open(packed).map_err(|error| reading(&error))?;
    let length = source.metadata().map_err(|error| reading(&error))?.len();
    if length != blob.packed_size {
        return Err(corrupt(format!(
            "its packed form has {length} of {} bytes",
            blob.packed_size
        )));
    }
    let mut decoder = zstd::stream::read::Decoder::new(source).map_err(|error| reading(&error))?;
    let _ = fs::remove_file(target);
    let mut file = File::create_new(target).map_err(writing)?;
    let (mut digest, mut size) = (Sha256::new(), 0u64);
    let mut buffer = vec![0; 256 << 10];
    loop {
        let got = decoder
            .read(&mut buffer)
            .map_err(|error| corrupt(format!("cannot be unpacked: {error}")))?;
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
    let sum = hex(&digest.finalize());
    if size != blob.size || sum != blob.sha256 {
        return Err(corrupt(format!("its content has {size} bytes and hash {sum}")));
    }
    file.set_permissions(fs::Permissions::from_mode(0o755)).map_err(writing)
}

/// From the first source that delivers, going on where the one before stopped.
pub(super) async fn fetch(
    session: &Session,
    blob: &PackedBlob,
    from: &[SocketAddr],
    token: &Token,
) -> Result<(), RemoteError> {
    let Some(have) = begin(session, blob)? else {
        return Ok(());
    };
    if named(&packed_dir(&session.state_dir), &blob.packed_sha256)?.exists() {
        return Ok(());
    }
    let part = part_path(&session.state_dir, &blob.packed_sha256)?;
    if let Ok(file) = OpenOptions::new().write(true).open(&part) {
        file.set_len(have)
            .map_err(|error| RemoteError::io(part.display(), &error))?;
    }
    let mut failures = Vec::new();
    for address in from {
        match door::fetch(*address, token, blob, &part).await {
            Ok(()) => return Ok(()),
            Err(error) => failures.push(format!("{address}: {}", error.message)),
        }
    }
    Err(RemoteError::failed(format!(
        "no peer delivered blob {}: {}",
        blob.sha256,
        failures.join("; ")
    )))
}

pub(super) fn prune(state_dir: &Path, keep: Option<Vec<String>>) -> Result<Vec<Item>, RemoteError> {
    let mut items = Vec::new();
    let mut clear = |dir: PathBuf, stays: &dyn Fn(&str) -> bool| -> Result<(), RemoteError> {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !stays(&name) {
                fs::remove_file(entry.path()).map_err(|error| RemoteError::io(entry.path().display(), &error))?;
                items.push(Item {
                    name,
                    changed: true,
                    ..Item::default()
                });
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

/// Blobs of the right content, and a line for each that is damaged.
pub(super) fn verified(session: &Session) -> (Vec<String>, Vec<String>) {
    let (mut names, mut problems) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(session.state_dir.join("blobs"))
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !is_sha256(&name) {
            continue;
        }
        match entry
            .metadata()
            .and_then(|metadata| session.hashes.of(&entry.path(), &metadata))
        {
            Ok(sha256) if sha256 == name => names.push(name),
            Ok(_) => problems.push(format!("blob {name} is damaged and counts as missing")),
            Err(error) => problems.push(format!("blob {name}: {error}")),
        }
    }
    names.sort();
    (names, problems)
}

fn named(dir: &Path, sha256: &str) -> Result<PathBuf, RemoteError> {
    if is_sha256(sha256) {
        Ok(dir.join(sha256))
    } else {
        Err(RemoteError::new(
            ErrorKind::Invalid,
            format!("{sha256:?} is no SHA-256"),
        ))
    }
}

fn part_path(state_dir: &Path, packed_sha256: &str) -> Result<PathBuf, RemoteError> {
    Ok(named(&packed_dir(state_dir), packed_sha256)?.with_extension("part"))
}

fn make_dir(dir: &Path, mode: u32) -> Result<(), RemoteError> {
    let io = |error: io::Error| RemoteError::io(dir.display(), &error);
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(io)?;
    }
    DirBuilder::new().recursive(true).mode(mode).create(dir).map_err(io)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode)).map_err(io)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LocalMachine, Machine, hash::sha256_hex, proto::Request};

    struct Store {
        dir: tempfile::TempDir,
        machine: LocalMachine,
        file: PathBuf,
        blob: PackedBlob,
    }

    impl Store {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let content: Vec<u8> = (0..3_000_000u32)
                .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
                .collect();
            let packed = zstd::encode_all(&content[..], 1).unwrap();
            let file = dir.path().join("packed-at-operator");
            fs::write(&file, &packed).unwrap();
            let blob = PackedBlob {
                sha256: sha256_hex(&content),
                size: content.len() as u64,
                packed_sha256: sha256_hex(&packed),
                packed_size: packed.len() as u64,
            };
            Self {
                machine: LocalMachine::with_state_dir("m1", dir.path().join("state")),
                dir,
                file,
                blob,
            }
        }

        async fn put(&self, blob: &PackedBlob) -> Result<u64, crate::MachineError> {
            let sent = std::sync::atomic::AtomicU64::new(0);
            let count = |bytes| {
                sent.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
            };
            let machine: &dyn Machine = &self.machine;
            machine.put_blob(&self.file, blob, &count).await?;
            Ok(sent.into_inner())
        }

        fn files(&self, dir: &str) -> Vec<String> {
            let mut names: Vec<String> = fs::read_dir(self.dir.path().join("state").join(dir))
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }
    }

    #[tokio::test]
    async fn a_blob_is_uploaded_once_installed_and_pruned() {
        let store = Store::new();
        let machine: &dyn Machine = &store.machine;
        assert_eq!(store.put(&store.blob).await.unwrap(), store.blob.packed_size);
        assert_eq!(
            store.put(&store.blob).await.unwrap(),
            store.blob.packed_size,
            "accounted for, not sent"
        );
        assert_eq!(
            (store.files("blobs"), store.files("packed")),
            (vec![store.blob.sha256.clone()], vec![store.blob.packed_sha256.clone()])
        );

        let path = store.dir.path().join("bin/tool").to_str().unwrap().to_owned();
        let install = |mode| Request::Install {
            files: vec![crate::proto::BlobInstall {
                sha256: store.blob.sha256.clone(),
                path: path.clone(),
                owner: crate::proto::Owner::default(),
                mode,
            }],
            run_id: String::new(),
        };
        assert!(machine.items(install(0o755)).await.unwrap()[0].changed);
        assert!(!machine.items(install(0o755)).await.unwrap()[0].changed);
        assert!(
            machine.items(install(0o700)).await.unwrap()[0].changed,
            "a copy: the blob's own mode is shared"
        );
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(
            machine.stat(vec![path]).await.unwrap()[0].sha256.as_ref(),
            Some(&store.blob.sha256)
        );

        machine.items(Request::BlobsPrune { keep: None }).await.unwrap();
        assert_eq!((store.files("blobs").len(), store.files("packed").len()), (1, 0));
        machine
            .items(Request::BlobsPrune { keep: Some(Vec::new()) })
            .await
            .unwrap();
        assert_eq!(store.files("blobs").len(), 0);
    }

    #[tokio::test]
    async fn an_interrupted_upload_goes_on() {
        let store = Store::new();
        let begin = Request::BlobBegin {
            blob: store.blob.clone(),
        };
        store.machine.call(begin.clone()).await.unwrap();
        let packed = fs::read(&store.file).unwrap();
        let part = store
            .dir
            .path()
            .join("state/packed")
            .join(format!("{}.part", store.blob.packed_sha256));
        fs::write(&part, &packed[..6 << 20]).unwrap();
        let offset = store.machine.call(begin).await.unwrap();
        assert_eq!(
            offset,
            crate::Response::Offset(2 << 20),
            "the last pieces are sent again"
        );
        store.put(&store.blob).await.unwrap();
        assert_eq!(store.files("blobs").len(), 1);
    }

    #[tokio::test]
    async fn what_is_not_the_promised_content_never_gets_its_name() {
        let store = Store::new();
        for wrong in [
            PackedBlob {
                sha256: "0".repeat(64),
                ..store.blob.clone()
            },
            PackedBlob {
                size: store.blob.size - 1,
                ..store.blob.clone()
            },
            PackedBlob {
                size: store.blob.size + 1,
                ..store.blob.clone()
            },
            PackedBlob {
                packed_size: store.blob.packed_size - 1,
                ..store.blob.clone()
            },
        ] {
            let error = store.put(&wrong).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
            assert_eq!((store.files("blobs").len(), store.files("packed").len()), (0, 0));
        }
        let invalid = PackedBlob {
            sha256: "../../etc/passwd".into(),
            ..store.blob.clone()
        };
        assert_eq!(store.put(&invalid).await.unwrap_err().kind, ErrorKind::Invalid);
        store.put(&store.blob).await.unwrap();
    }

    #[tokio::test]
    async fn a_blob_damaged_on_disk_is_not_present() {
        let store = Store::new();
        store.put(&store.blob).await.unwrap();
        let path = store.dir.path().join("state/blobs").join(&store.blob.sha256);
        let mut content = fs::read(&path).unwrap();
        content.truncate(100_000);
        fs::write(&path, content).unwrap();
        let machine: &dyn Machine = &store.machine;
        assert!(
            machine
                .blobs_present(vec![store.blob.sha256.clone()])
                .await
                .unwrap()
                .is_empty()
        );
        assert!(store.files("blobs").is_empty());
    }
}
