//! Locks as files under `lock/`, and the fence: a session that held a lock and lost it may change nothing more.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{
    error::{ErrorKind, RemoteError},
    lock::LockRecord,
    proto::{LockReply, LockRequest},
};

/// Locks this session has taken, with the tokens it got.
#[derive(Default)]
pub(super) struct Held(Mutex<BTreeMap<String, u64>>);

impl Held {
    pub(super) fn take(&self, state_dir: &Path, request: &LockRequest) -> Result<LockReply, RemoteError> {
        let make = request.renews.is_none();
        let reply = change(state_dir, &request.name, make, |record| {
            record.take(request, now_unix())
        })?;
        let reply = reply.unwrap_or_default();
        if reply.acquired {
            self.held().insert(request.name.clone(), reply.token);
        }
        Ok(reply)
    }

    pub(super) fn release(&self, state_dir: &Path, name: &str, token: u64) -> Result<(), RemoteError> {
        change(state_dir, name, false, |record| record.release(token))?;
        self.held().remove(name);
        Ok(())
    }

    /// Refuses if a lock of this session is someone else's by now.
    pub(super) fn check(&self, state_dir: &Path) -> Result<(), RemoteError> {
        for (name, token) in &*self.held() {
            let record = read(&path(state_dir, name)?)?;
            if record.token != *token || record.owner.is_none() {
                let holder = record.owner.map_or("released".into(), |owner| {
                    format!(
                        "taken over by run {} of {}@{} (pid {})",
                        owner.run_id, owner.user, owner.host, owner.pid
                    )
                });
                return Err(RemoteError::new(
                    ErrorKind::LockLost,
                    format!("the lock on {name} was {holder}; nothing was changed"),
                )
                .hint("let that run finish, then plan again"));
            }
        }
        Ok(())
    }

    fn held(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads, changes and writes back a lock, alone among all processes of the machine. Only `make` makes one: after a reset
/// took the store away, whoever still held a lock in it must not bring it back. `None`: there is none.
fn change<T>(
    state_dir: &Path,
    name: &str,
    make: bool,
    change: impl FnOnce(&mut LockRecord) -> T,
) -> Result<Option<T>, RemoteError> {
    let path = path(state_dir, name)?;
    let io = |error: std::io::Error| RemoteError::io(path.display(), &error);
    if make {
        fs::create_dir_all(state_dir.join("lock")).map_err(io)?;
    }
    let guard = OpenOptions::new()
        .write(true)
        .create(make)
        .truncate(false)
        .open(path.with_extension("guard"));
    let guard = match guard {
        Err(error) if !make && error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(io)?,
    };
    guard.lock().map_err(io)?;
    if !make && !path.exists() {
        return Ok(None);
    }
    let mut record = read(&path)?;
    let before = record.clone();
    let made = change(&mut record);
    if record != before {
        let temporary = path.with_extension("new");
        let mut file = File::create(&temporary).map_err(io)?;
        file.write_all(&serde_json::to_vec(&record).map_err(|error| RemoteError::failed(error.to_string()))?)
            .map_err(io)?;
        file.sync_all().map_err(io)?;
        fs::rename(&temporary, &path).map_err(io)?;
    }
    Ok(Some(made))
}

fn read(path: &Path) -> Result<LockRecord, RemoteError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
            RemoteError::new(ErrorKind::Corrupt, format!("{}: {error}", path.display()))
                .hint("if no run is under way, delete that file")
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(LockRecord::default()),
        Err(error) => Err(RemoteError::io(path.display(), &error)),
    }
}

fn path(state_dir: &Path, name: &str) -> Result<PathBuf, RemoteError> {
    let plain = !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        && !name.starts_with('.');
    if plain {
        Ok(state_dir.join("lock").join(format!("{name}.json")))
    } else {
        Err(RemoteError::new(
            ErrorKind::Invalid,
            format!("{name:?} cannot name a lock"),
        ))
    }
}

fn now_unix() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::LockOwner;

    #[test]
    fn a_session_whose_lock_was_stolen_is_fenced_off() {
        let dir = tempfile::tempdir().unwrap();
        let request = |run_id: &str, steal| LockRequest {
            name: "prod".into(),
            owner: LockOwner {
                run_id: run_id.into(),
                user: "ada".into(),
                host: "desk".into(),
                pid: 7,
            },
            ttl_s: 60,
            steal,
            renews: None,
        };
        let (a, b) = (Held::default(), Held::default());
        assert!(a.take(dir.path(), &request("a", false)).unwrap().acquired);
        assert!(a.check(dir.path()).is_ok());
        assert!(!b.take(dir.path(), &request("b", false)).unwrap().acquired);
        assert!(b.take(dir.path(), &request("b", true)).unwrap().acquired);
        let error = a.check(dir.path()).unwrap_err();
        assert_eq!(error.kind, ErrorKind::LockLost);
        assert!(
            error.message.contains("taken over by run b of ada@desk"),
            "{}",
            error.message
        );
        assert!(b.check(dir.path()).is_ok());
        a.release(dir.path(), "prod", 1).unwrap();
        assert!(b.check(dir.path()).is_ok(), "a former holder's release changes nothing");
    }

    #[test]
    fn a_lock_cannot_leave_its_directory() {
        for name in ["", "..", "a/b", ".hidden"] {
            assert!(path(Path::new("/s"), name).is_err(), "{name}");
        }
    }
}
