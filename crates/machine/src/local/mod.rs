//! Carries requests out on this host: for `quorate remote` at the far end of a connection and for `address: local`.

mod adjtimex;
mod blobs;
mod door;
mod exec;
mod files;
mod gather;
mod hashes;
mod host;
mod http;
mod locks;
mod netlink;
mod owners;
mod probe;
mod procfs;
mod units;
mod wait;

use std::{path::PathBuf, sync::Arc};

pub use probe::{LinkTools, VrrpSender, set_link_tools};

use crate::{
    error::{ErrorKind, MachineError, RemoteError},
    machine::{BoxFuture, Machine},
    proto::*,
};

/// Where Quorate keeps its own things on a machine: `bin/`, `blobs/`, `packed/`, `kept/`, `lock/`.
pub const STATE_DIR: &str = "/var/lib/quorate";

/// This host. Cloning shares the session: its locks, HTTP connections and blob door.
#[derive(Clone)]
pub struct LocalMachine {
    name: Arc<str>,
    session: Arc<Session>,
}

struct Session {
    state_dir: PathBuf,
    hashes: hashes::Hashes,
    locks: locks::Held,
    http: http::Pool,
    door: door::Door,
    unpackers: tokio::sync::Semaphore,
    listeners: probe::Listeners,
}

impl LocalMachine {
    pub fn new(name: &str) -> Self {
        Self::with_state_dir(name, STATE_DIR)
    }

    /// With another place for its own things.
    pub fn with_state_dir(name: &str, state_dir: impl Into<PathBuf>) -> Self {
        let state_dir = state_dir.into();
        // Unpacking is bound by the CPU, and the machine has its own work to do.
        let unpackers = std::thread::available_parallelism().map_or(1, |cpus| cpus.get().div_ceil(2).min(4));
        let session = Session {
            hashes: hashes::Hashes::load(&state_dir),
            locks: locks::Held::default(),
            http: http::Pool::default(),
            door: door::Door::default(),
            listeners: probe::Listeners::default(),
            unpackers: tokio::sync::Semaphore::new(unpackers),
            state_dir,
        };
        Self {
            name: name.into(),
            session: Arc::new(session),
        }
    }

    pub(crate) async fn answer(&self, request: Request) -> Answer {
        let session = &self.session;
        if request.is_change() {
            session.locks.check(&session.state_dir)?;
        }
        match request {
            Request::Ping => Ok(Response::Done),
            Request::Gather(query) => gather::gather(session.clone(), query)
                .await
                .map(|facts| Response::Facts(Box::new(facts))),
            Request::Probe(probe) => probe::carry_out(&session.listeners, probe).await.map(Response::Probed),
            Request::Http(request) => session.http.send(&request).await.map(Response::Http),
            Request::WaitPort { address, timeout_ms } => Ok(Response::Wait(wait::port(address, timeout_ms).await)),
            Request::WaitFile {
                path,
                absent,
                timeout_ms,
            } => Ok(Response::Wait(wait::file(&path, absent, timeout_ms).await)),
            Request::WaitHttp {
                http,
                status,
                timeout_ms,
            } => Ok(Response::Wait(
                wait::http(&session.http, http, status, timeout_ms).await,
            )),
            Request::Exec(exec) => exec::run(exec).await.map(Response::Exec),
            Request::Units { ops, timeout_ms } => units::carry_out(&ops, timeout_ms).await.map(|()| Response::Done),
            Request::UnitStatus { names } => units::status(&names).await.map(Response::Units),
            Request::Modules { names } => host::modules(names).await.map(Response::Items),
            Request::Mount(mount) => host::mount(mount).await.map(|item| Response::Items(vec![item])),
            Request::Unmount { targets } => host::unmount(targets).await.map(Response::Items),
            Request::Swap { on } => host::swap(on).await.map(|item| Response::Items(vec![item])),
            Request::User(user) => host::user(user).await.map(|item| Response::Items(vec![item])),
            Request::UserRemove { name } => host::user_remove(name).await.map(|item| Response::Items(vec![item])),
            Request::LinksRemove { names } => host::links_remove(names).await.map(Response::Items),
            Request::NftTable { family, name, ruleset } => {
                host::nft_table(&family, &name, ruleset).await.map(|()| Response::Done)
            }
            Request::BlobServe { listen, token } => session
                .door
                .open(listen, token, blobs::packed_dir(&session.state_dir))
                .await
                .map(Response::Port),
            Request::BlobFetch { blob, from, token } => {
                blobs::fetch(session, &blob, &from, &token).await?;
                self.unpack(blob).await
            }
            Request::BlobEnd { blob } => self.unpack(blob).await,
            other => {
                let session = session.clone();
                blocking(move || session.answer_blocking(other)).await
            }
        }
    }

    async fn unpack(&self, blob: PackedBlob) -> Answer {
        let session = self.session.clone();
        let _permit = session
            .unpackers
            .acquire()
            .await
            .map_err(|error| RemoteError::failed(error.to_string()))?;
        let session = self.session.clone();
        blocking(move || blobs::unpack(&session, &blob).map(|()| Response::Done)).await
    }
}

impl Session {
    /// What takes files and system calls only.
    fn answer_blocking(&self, request: Request) -> Answer {
        let state_dir = &*self.state_dir;
        Ok(match request {
            Request::Stat { paths, hash } => Response::Files(files::stat(&paths, hash.then_some(&self.hashes))?),
            Request::Read { path, max_bytes } => Response::Content(files::read(&path, max_bytes)?.into()),
            Request::List { path } => Response::Names(files::list(&path)?),
            Request::Write { files, run_id } => Response::Items(files::write(state_dir, files, &run_id)?),
            Request::Install { files, run_id } => Response::Items(files::install(self, files, &run_id)?),
            Request::Remove {
                paths,
                recursive,
                run_id,
            } => Response::Items(files::remove(state_dir, &paths, recursive, &run_id)?),
            Request::Restore { paths, run_id } => Response::Items(files::restore(state_dir, &paths, &run_id)?),
            Request::Mkdir { dirs } => Response::Items(files::mkdir(&dirs)?),
            Request::SetMode { entries } => Response::Items(files::set_mode(&entries)?),
            Request::Link { path, target, run_id } => {
                Response::Items(vec![files::link(state_dir, &path, &target, &run_id)?])
            }
            Request::ManagedBlock(block) => Response::Items(vec![files::managed_block(state_dir, &block)?]),
            Request::BlobsPresent { sha256 } => Response::Names(blobs::present(self, sha256)?),
            Request::BlobBegin { blob } => blobs::begin(self, &blob)?.map_or(Response::Done, Response::Offset),
            Request::BlobChunk {
                packed_sha256,
                offset,
                data,
            } => {
                blobs::chunk(state_dir, &packed_sha256, offset, &data)?;
                Response::Done
            }
            Request::BlobsPrune { keep } => {
                self.door.close();
                Response::Items(blobs::prune(state_dir, keep)?)
            }
            Request::Sysctl { values } => Response::Items(host::sysctl(values)),
            Request::Network => {
                Response::Network(netlink::network().map_err(|error| RemoteError::io("netlink", &error))?)
            }
            Request::Lock(lock) => Response::Lock(self.locks.take(state_dir, &lock)?),
            Request::Unlock { name, token } => {
                self.locks.release(state_dir, &name, token)?;
                Response::Done
            }
            Request::Sync => {
                sync(state_dir)?;
                self.hashes.mark_durable();
                Response::Done
            }
            other => {
                return Err(RemoteError::new(
                    ErrorKind::Invalid,
                    format!("{} is not a matter of files", other.operation()),
                ));
            }
        })
    }
}

impl Machine for LocalMachine {
    fn name(&self) -> &str {
        &self.name
    }

    fn call(&self, request: Request) -> BoxFuture<'_, Result<Response, MachineError>> {
        Box::pin(async move {
            let operation = request.operation();
            self.answer(request)
                .await
                .map_err(|error| MachineError::remote(&self.name, &operation, error))
        })
    }
}

/// sync(2) waits for every file system but tells no error; syncfs(2) tells those of the store's since it was opened.
fn sync(state_dir: &std::path::Path) -> Result<(), RemoteError> {
    let store = std::fs::File::open(state_dir);
    rustix::fs::sync();
    match store {
        Ok(store) => rustix::fs::syncfs(&store)
            .map_err(|error| RemoteError::io(state_dir.display(), &std::io::Error::from(error))),
        // A reset took it away.
        Err(_) => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RemoteError> + Send + 'static,
) -> Result<T, RemoteError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| RemoteError::failed(format!("internal error: {error}")))?
}

/// Paths are absolute and free of `..`: what is written is what was planned.
fn absolute(path: &str) -> Result<&std::path::Path, RemoteError> {
    let checked = std::path::Path::new(path);
    let plain = checked.is_absolute()
        && !path.contains('\0')
        && checked.components().all(|part| part != std::path::Component::ParentDir);
    if plain {
        Ok(checked)
    } else {
        Err(RemoteError::new(
            ErrorKind::Invalid,
            format!("{path:?} is not an absolute path without `..`"),
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::{Duration, SystemTime};

    use super::*;

    fn lock(renews: Option<u64>) -> LockRequest {
        LockRequest {
            name: "prod".into(),
            owner: LockOwner {
                run_id: "a".into(),
                ..LockOwner::default()
            },
            ttl_s: 30,
            steal: false,
            renews,
        }
    }

    /// Long enough and old enough for its hash to be remembered.
    fn big_file(dir: &std::path::Path, name: &str) -> String {
        let path = dir.join(name);
        fs::write(&path, vec![7; 100_000]).unwrap();
        let earlier = SystemTime::now() - Duration::from_secs(60);
        fs::File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(earlier))
            .unwrap();
        path.display().to_string()
    }

    #[tokio::test]
    async fn a_store_that_a_reset_removed_is_not_made_again() {
        // A store that is a mount point is emptied, and stays.
        for mount_point in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let store = dir.path().join("store");
            let local = LocalMachine::with_state_dir("m1", &store);
            let machine: &dyn Machine = &local;
            let token = machine.lock(lock(None)).await.unwrap().token;
            machine.stat(vec![big_file(dir.path(), "one")]).await.unwrap();
            machine.blobs_present(Vec::new()).await.unwrap();
            assert!(store.join("hashes").exists() && store.join("lock/prod.json").exists());

            fs::remove_dir_all(&store).unwrap();
            if mount_point {
                fs::create_dir(&store).unwrap();
            }
            machine.stat(vec![big_file(dir.path(), "two")]).await.unwrap();
            let renewed = machine.lock(lock(Some(token))).await.unwrap();
            assert_eq!((renewed.acquired, renewed.token), (false, 0), "released, not another's");
            machine.done(Request::Sync).await.unwrap();
            let name = "prod".to_owned();
            machine.done(Request::Unlock { name, token }).await.unwrap();
            let left: Vec<_> = fs::read_dir(&store).into_iter().flatten().flatten().collect();
            assert!(store.exists() == mount_point && left.is_empty(), "{left:?}");
        }
    }

    #[tokio::test]
    async fn what_was_synced_is_remembered_over_a_boot() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        fs::create_dir(&store).unwrap();
        let local = LocalMachine::with_state_dir("m1", &store);
        let machine: &dyn Machine = &local;
        machine.stat(vec![big_file(dir.path(), "one")]).await.unwrap();
        machine.blobs_present(Vec::new()).await.unwrap();
        let before = fs::read(store.join("hashes")).unwrap();
        machine.done(Request::Sync).await.unwrap();
        assert_ne!(fs::read(store.join("hashes")).unwrap(), before);
    }
}
