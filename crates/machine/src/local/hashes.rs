//! Hashes of files, remembered by inode, size and modification time: a machine's binaries are half a gigabyte, and
//! every plan asks for their hashes.
//!
//! A remembered hash says what was read or written, which after a power cut may not be what reached the disk. So it
//! counts only within the same boot, or if [`Hashes::mark_durable`] was called after a `sync`.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hash::hex;

/// Below this size reading a file costs no more than looking it up.
const WORTH_REMEMBERING: u64 = 64 << 10;
/// A file changed more recently than this may change again within the same time stamp.
const SETTLED: Duration = Duration::from_secs(2);

pub(super) struct Hashes {
    path: PathBuf,
    boot_id: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    known: HashMap<Identity, Known>,
    dirty: bool,
    /// The file was there. If it is not when it is to be written again, a reset took the store away.
    kept: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified_s: i64,
    modified_ns: i64,
}

#[derive(Clone, Serialize, Deserialize)]
struct Known {
    sha256: String,
    boot_id: String,
    durable: bool,
}

impl Hashes {
    pub(super) fn load(state_dir: &Path) -> Self {
        let path = state_dir.join("hashes");
        let bytes = fs::read(&path);
        let kept = bytes.is_ok();
        let known: Vec<(Identity, Known)> = bytes
            .ok()
            .and_then(|bytes| postcard::from_bytes(&bytes).ok())
            .unwrap_or_default();
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let known = known
            .into_iter()
            .filter(|(_, known)| known.durable || known.boot_id == boot_id)
            .collect();
        Self {
            path,
            boot_id,
            state: Mutex::new(State {
                known,
                dirty: false,
                kept,
            }),
        }
    }

    /// Hash of a regular file.
    pub(super) fn of(&self, path: &Path, metadata: &Metadata) -> io::Result<String> {
        let identity = Identity::of(metadata);
        if metadata.len() >= WORTH_REMEMBERING
            && let Some(known) = self.state().known.get(&identity)
        {
            return Ok(known.sha256.clone());
        }
        let sha256 = read_hash(path)?;
        let settled = metadata
            .modified()
            .ok()
            .and_then(|modified| SystemTime::now().duration_since(modified).ok())
            .is_some_and(|age| age > SETTLED);
        if metadata.len() >= WORTH_REMEMBERING && settled {
            self.insert(identity, sha256.clone());
        }
        Ok(sha256)
    }

    /// The file was just made by us with this content, and nobody else writes to it.
    pub(super) fn remember(&self, metadata: &Metadata, sha256: &str) {
        if metadata.len() >= WORTH_REMEMBERING {
            self.insert(Identity::of(metadata), sha256.to_owned());
        }
    }

    /// Everything remembered so far has been synced to disk.
    pub(super) fn mark_durable(&self) {
        let mut state = self.state();
        let mut changed = false;
        for known in state.known.values_mut() {
            changed |= !std::mem::replace(&mut known.durable, true);
        }
        state.dirty |= changed;
        drop(state);
        self.save();
    }

    /// Losing this file costs time only, so errors are of no interest.
    pub(super) fn save(&self) {
        let mut state = self.state();
        if !std::mem::take(&mut state.dirty) || (state.kept && !self.path.exists()) {
            return;
        }
        let known: Vec<(&Identity, &Known)> = state.known.iter().collect();
        let Ok(bytes) = postcard::to_stdvec(&known) else { return };
        drop(state);
        let temporary = self.path.with_extension(format!("{}~", std::process::id()));
        match fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, &self.path)) {
            Ok(()) => self.state().kept = true,
            Err(_) => drop(fs::remove_file(&temporary)),
        }
    }

    fn insert(&self, identity: Identity, sha256: String) {
        let mut state = self.state();
        state.known.insert(
            identity,
            Known {
                sha256,
                boot_id: self.boot_id.clone(),
                durable: false,
            },
        );
        state.dirty = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }
}

pub(super) fn read_hash(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&digest.finalize())),
            got => digest.update(&buffer[..got]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_hash_holds_until_the_file_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        fs::write(&path, vec![7; 100_000]).unwrap();
        let hashes = Hashes::load(dir.path());
        let metadata = fs::metadata(&path).unwrap();
        let true_hash = hashes.of(&path, &metadata).unwrap();
        assert!(hashes.state().known.is_empty(), "too fresh to be remembered");

        hashes.remember(&metadata, "remembered");
        hashes.save();
        let later = Hashes::load(dir.path());
        assert_eq!(later.of(&path, &metadata).unwrap(), "remembered");
        fs::write(&path, vec![8; 100_001]).unwrap();
        let changed = fs::metadata(&path).unwrap();
        assert_ne!(later.of(&path, &changed).unwrap(), true_hash);
    }

    #[test]
    fn after_another_boot_only_what_was_synced_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("big");
        fs::write(&path, vec![7; 100_000]).unwrap();
        let metadata = fs::metadata(&path).unwrap();
        for (durable, expected) in [(false, read_hash(&path).unwrap()), (true, "remembered".into())] {
            let mut before = Hashes::load(dir.path());
            before.boot_id = "an earlier boot".into();
            before.remember(&metadata, "remembered");
            if durable {
                before.mark_durable()
            } else {
                before.save()
            }
            assert_eq!(Hashes::load(dir.path()).of(&path, &metadata).unwrap(), expected);
        }
    }
}
