//! What a fake machine does with each request.

use std::collections::BTreeMap;

use quorate_facts::{
    CgroupFacts, CgroupVersion, ClockFacts, Feature, FileFacts, FileKind, FirewallFacts, HostFacts, KeptRun, LinkFacts,
    Listener, MountFacts, NetworkFacts, OsFacts, SystemdFacts, Transport, UnitFacts, UserFacts,
};

use super::{FakeFile, FakeKind, FakeState, FakeUnit, waited};
use crate::{
    certificates,
    error::{ErrorKind, RemoteError},
    proto::*,
};

/// Where administrators' units live; the only place a fake looks for them.
const UNIT_DIR: &str = "/etc/systemd/system";

impl FakeState {
    pub(super) fn carry_out(&mut self, request: Request) -> Answer {
        if self.disk_full && writes(&request) {
            return Err(RemoteError::new(
                ErrorKind::NoSpace,
                "No space left on device (os error 28)",
            ));
        }
        Ok(match request {
            Request::Gather(query) => Response::Facts(Box::new(self.gather(&query))),
            Request::Stat { paths, .. } => {
                Response::Files(paths.iter().map(|path| self.file_facts(path, false)).collect())
            }
            Request::Read { path, max_bytes } => match self.files.get(&path).map(|file| &file.kind) {
                Some(FakeKind::File { content, .. }) if content.len() as u64 <= max_bytes => {
                    Response::Content(content.clone().into())
                }
                Some(FakeKind::File { .. }) => {
                    return Err(RemoteError::failed(format!("{path}: longer than {max_bytes} bytes")));
                }
                Some(_) => return Err(RemoteError::failed(format!("{path}: not a regular file"))),
                None => return Err(not_found(&path)),
            },
            Request::List { path } => {
                let prefix = format!("{}/", path.trim_end_matches('/'));
                let mut names: Vec<String> = self
                    .below(&prefix)
                    .filter_map(|(path, _)| path[prefix.len()..].split('/').next().map(str::to_owned))
                    .collect();
                names.dedup();
                Response::Names(names)
            }
            Request::Write { files, run_id } => {
                let owners: Vec<&Owner> = files.iter().map(|file| &file.owner).collect();
                self.know_owners(&owners)?;
                Response::Items(
                    files
                        .into_iter()
                        .map(|file| {
                            self.parents(&file.path, &file.owner, file.parent_mode);
                            self.replace(
                                &run_id,
                                file.path,
                                FakeFile::new(file.content.0, &file.owner, file.mode),
                            )
                        })
                        .collect(),
                )
            }
            Request::Install { files, run_id } => {
                if let Some(missing) = files.iter().find(|file| !self.blobs.contains(&file.sha256)) {
                    return Err(RemoteError::new(
                        ErrorKind::NotFound,
                        format!("{}: blob {} is not in the store", missing.path, missing.sha256),
                    ));
                }
                Response::Items(
                    files
                        .into_iter()
                        .map(|file| {
                            self.parents(&file.path, &file.owner, 0o755);
                            let kind = FakeKind::File {
                                content: Vec::new(),
                                sha256: file.sha256,
                            };
                            self.replace(&run_id, file.path, FakeFile::made(kind, &file.owner, file.mode))
                        })
                        .collect(),
                )
            }
            Request::Remove {
                paths,
                recursive,
                run_id,
            } => {
                let mut items = Vec::new();
                for path in paths {
                    items.push(self.remove(path, recursive, &run_id)?);
                }
                Response::Items(items)
            }
            Request::Restore { paths, run_id } => Response::Items(
                paths
                    .into_iter()
                    .map(|path| match self.kept.get(&(run_id.clone(), path.clone())).cloned() {
                        Some(file) => {
                            let changed = self.files.get(&path) != Some(&file);
                            self.files.insert(path.clone(), file);
                            item(path, changed)
                        }
                        None => {
                            let error =
                                RemoteError::new(ErrorKind::NotFound, format!("{path}: run {run_id} kept nothing"));
                            Item {
                                error: Some(error),
                                ..item(path, false)
                            }
                        }
                    })
                    .collect(),
            ),
            Request::Mkdir { dirs } => {
                self.know_owners(&dirs.iter().map(|dir| &dir.owner).collect::<Vec<_>>())?;
                Response::Items(
                    dirs.into_iter()
                        .map(|dir| {
                            self.parents(&dir.path, &dir.owner, 0o755);
                            let made = FakeFile::made(FakeKind::Directory, &dir.owner, dir.mode);
                            let changed = self.files.get(&dir.path) != Some(&made);
                            self.files.insert(dir.path.clone(), made);
                            item(dir.path, changed)
                        })
                        .collect(),
                )
            }
            Request::SetMode { entries } => {
                self.know_owners(&entries.iter().map(|entry| &entry.owner).collect::<Vec<_>>())?;
                let mut items = Vec::new();
                for entry in entries {
                    let file = self.files.get_mut(&entry.path).ok_or_else(|| not_found(&entry.path))?;
                    let wanted = FakeFile::made(file.kind.clone(), &entry.owner, entry.mode);
                    let changed = *file != wanted;
                    *file = wanted;
                    items.push(item(entry.path, changed));
                }
                Response::Items(items)
            }
            Request::Link { path, target, run_id } => {
                self.parents(&path, &Owner::root(), 0o755);
                let link = FakeFile::made(FakeKind::Symlink(target), &Owner::root(), 0o777);
                Response::Items(vec![self.replace(&run_id, path, link)])
            }
            Request::ManagedBlock(ManagedBlock {
                path,
                marker,
                content,
                mode,
                run_id,
            }) => {
                let (text, mode) = match self.files.get(&path) {
                    Some(FakeFile {
                        kind: FakeKind::File { content, .. },
                        mode,
                        ..
                    }) => (content.clone(), *mode),
                    _ => (Vec::new(), mode),
                };
                let made = quorate_facts::block::edit(&text, &marker, content.as_deref());
                let unchanged = made == text;
                Response::Items(vec![if unchanged {
                    item(path, false)
                } else {
                    self.replace(&run_id, path, FakeFile::new(made, &Owner::root(), mode))
                }])
            }

            Request::BlobsPresent { sha256 } => {
                Response::Names(sha256.into_iter().filter(|blob| self.blobs.contains(blob)).collect())
            }
            Request::BlobBegin { blob } if self.blobs.contains(&blob.sha256) => Response::Done,
            Request::BlobBegin { blob } => Response::Offset(*self.packed.entry(blob.packed_sha256).or_default()),
            Request::BlobChunk {
                packed_sha256,
                offset,
                data,
            } => {
                *self.packed.entry(packed_sha256).or_default() = offset + data.len() as u64;
                Response::Done
            }
            Request::BlobEnd { blob } => {
                if self.packed.get(&blob.packed_sha256) != Some(&blob.packed_size) {
                    return Err(RemoteError::new(
                        ErrorKind::Corrupt,
                        format!("blob {} is incomplete", blob.sha256),
                    ));
                }
                self.blobs.insert(blob.sha256);
                Response::Done
            }
            Request::BlobServe { .. } => Response::Port(40_000),
            Request::BlobFetch { blob, .. } => {
                self.packed.insert(blob.packed_sha256, blob.packed_size);
                self.blobs.insert(blob.sha256);
                Response::Done
            }
            Request::BlobsPrune { keep } => {
                self.packed.clear();
                let gone = |blob: &String| keep.as_ref().is_some_and(|keep| !keep.contains(blob));
                let pruned: Vec<String> = self.blobs.iter().filter(|blob| gone(blob)).cloned().collect();
                self.blobs.retain(|blob| !gone(blob));
                Response::Items(pruned.into_iter().map(|blob| item(blob, true)).collect())
            }

            Request::Units { ops, .. } => {
                for op in &ops {
                    self.unit_op(op)?;
                }
                Response::Done
            }
            Request::UnitStatus { names } => {
                Response::Units(names.iter().map(|name| (name.clone(), self.unit_facts(name))).collect())
            }
            Request::WaitFile {
                path,
                absent,
                timeout_ms,
            } => Response::Wait(match self.files.contains_key(&path) {
                there if there != absent => waited(true, 0, ""),
                true => waited(false, timeout_ms, "it is still there"),
                false => waited(false, timeout_ms, "it does not exist"),
            }),

            Request::Sysctl { values } => Response::Items(
                values
                    .into_iter()
                    .map(|(name, value)| {
                        let before = self.sysctls.insert(name.clone(), value.clone());
                        Item {
                            changed: before.as_ref() != Some(&value),
                            before,
                            ..item(name, false)
                        }
                    })
                    .collect(),
            ),
            Request::Modules { names } => Response::Items(
                names
                    .into_iter()
                    .map(|name| match self.host.kernel_features.get(&name) {
                        Some(Feature::Present) => item(name, false),
                        Some(Feature::Absent) => {
                            let error = RemoteError::new(
                                ErrorKind::NotFound,
                                format!("modprobe: FATAL: Module {name} not found"),
                            );
                            Item {
                                error: Some(error),
                                ..item(name, false)
                            }
                        }
                        _ => item(name.clone(), self.modules.insert(name)),
                    })
                    .collect(),
            ),
            Request::Mount(mount) => {
                let target = mount.target.clone();
                let changed = self.mounts.insert(target.clone(), mount.clone()) != Some(mount);
                Response::Items(vec![item(target, changed)])
            }
            Request::Unmount { targets } => Response::Items(
                targets
                    .into_iter()
                    .map(|target| item(target.clone(), self.mounts.remove(&target).is_some()))
                    .collect(),
            ),
            Request::Swap { on } => {
                let changed = self.swap_on != on;
                self.swap_on = on;
                Response::Items(vec![item("swap".into(), changed)])
            }
            Request::User(user) => Response::Items(vec![self.add_user(user)?]),
            Request::UserRemove { name } => {
                let changed = self.users.remove(&name).is_some();
                Response::Items(vec![item(name, changed)])
            }
            Request::Network => Response::Network(self.host.network.clone()),
            Request::LinksRemove { names } => Response::Items(
                names
                    .into_iter()
                    .map(|name| {
                        let links = &mut self.host.network.links;
                        let before = links.len();
                        links.retain(|link| link.name != name);
                        item(name, before != links.len())
                    })
                    .collect(),
            ),
            Request::NftTable { family, name, ruleset } => {
                let table = format!("{family} {name}");
                match ruleset {
                    Some(ruleset) => self.nft_tables.insert(table, ruleset.0),
                    None => self.nft_tables.remove(&table),
                };
                Response::Done
            }

            Request::Lock(lock) => {
                let now = self.now_unix;
                let found = match lock.renews {
                    Some(_) => self.locks.get_mut(&lock.name),
                    None => Some(self.locks.entry(lock.name.clone()).or_default()),
                };
                Response::Lock(found.map(|found| found.0.take(&lock, now)).unwrap_or_default())
            }
            Request::Unlock { name, token } => {
                if let Some(found) = self.locks.get_mut(&name) {
                    found.0.release(token);
                }
                Response::Done
            }
            Request::Sync | Request::Ping => Response::Done,
            Request::Probe(probe) => Response::Probed(self.probe(&probe)),
            Request::Http(_) | Request::WaitHttp { .. } | Request::WaitPort { .. } | Request::Exec(_) => {
                return Err(RemoteError::new(ErrorKind::Invalid, "not answered from the state"));
            }
        })
    }

    /// The host as set up, plus what requests have made of it.
    fn gather(&self, query: &GatherQuery) -> HostFacts {
        let mut facts = self.host.clone();
        facts.clock.unix_ns = self.now_unix * 1_000_000_000;
        for path in &query.paths {
            facts.files.insert(path.clone(), self.file_facts(path, false));
        }
        for (roots, text) in [(&query.roots, false), (&query.text_roots, true)] {
            for root in roots {
                facts.files.insert(root.clone(), self.file_facts(root, text));
                let prefix = format!("{}/", root.trim_end_matches('/'));
                for (path, _) in self.below(&prefix) {
                    facts.files.insert(path.clone(), self.file_facts(path, text));
                }
            }
        }
        for place in &query.certificates {
            let prefix = format!("{}/", place.trim_end_matches('/'));
            let named = self.files.get_key_value(place);
            for (path, file) in self.below(&prefix).chain(named) {
                let FakeKind::File { content, .. } = &file.kind else {
                    continue;
                };
                let text = String::from_utf8_lossy(content);
                if path.ends_with(".crt") || path.ends_with(".pem") || path == place {
                    let found = certificates::certificate(&text);
                    facts.certificates.extend(found.map(|found| (path.clone(), found)));
                } else if path.ends_with(".key") {
                    facts.keys.insert(path.clone(), certificates::key(&text));
                }
            }
        }
        for path in &query.keys {
            if let Some(FakeFile {
                kind: FakeKind::File { content, .. },
                ..
            }) = self.files.get(path)
            {
                facts
                    .keys
                    .insert(path.clone(), certificates::key(&String::from_utf8_lossy(content)));
            }
        }
        facts.units = query
            .units
            .iter()
            .map(|name| (name.clone(), self.unit_facts(name)))
            .collect();
        facts.sysctls = query
            .sysctls
            .iter()
            .map(|name| (name.clone(), self.sysctls.get(name).cloned()))
            .collect();
        for name in &self.modules {
            facts.kernel_features.insert(name.clone(), Feature::Present);
        }
        for name in &query.modules {
            facts.kernel_features.entry(name.clone()).or_insert(Feature::Loadable);
        }
        facts.users = query
            .users
            .iter()
            .map(|name| (name.clone(), self.users.get(name).cloned()))
            .collect();
        for name in &query.options {
            facts.kernel_features.entry(name.clone()).or_insert(Feature::Present);
        }
        for name in &query.programs {
            facts
                .programs
                .entry(name.clone())
                .or_insert_with(|| Some(format!("/usr/bin/{name}")));
        }
        if !self.swap_on {
            facts.swaps.clear();
        }
        facts.firewall.nft_tables.extend(self.nft_tables.keys().cloned());
        facts.mounts.extend(self.mounts.values().map(|mount| MountFacts {
            source: mount.source.clone(),
            target: mount.target.clone(),
            fstype: mount.fstype.clone(),
            options: mount.options.clone(),
            ..MountFacts::default()
        }));
        facts
            .listening
            .extend(self.listening().into_iter().map(|(port, unit)| Listener {
                transport: Transport::Tcp,
                address: std::net::Ipv4Addr::UNSPECIFIED.into(),
                port,
                pid: Some(1000),
                process: Some(unit.trim_end_matches(".service").to_owned()),
            }));
        facts.blobs = self.blobs.iter().cloned().collect();
        let mut kept: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (run_id, path) in self.kept.keys() {
            kept.entry(run_id.clone()).or_default().push(path.clone());
        }
        facts.kept_runs = kept
            .into_iter()
            .map(|(run_id, paths)| KeptRun { run_id, paths })
            .collect();
        facts
    }

    fn below<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a FakeFile)> {
        self.files
            .range(prefix.to_owned()..)
            .take_while(move |(path, _)| path.starts_with(prefix))
    }

    fn file_facts(&self, path: &str, text: bool) -> FileFacts {
        let Some(file) = self.files.get(path) else {
            return FileFacts::absent();
        };
        let mut facts = FileFacts {
            kind: FileKind::Directory,
            mode: file.mode,
            owner: file.owner.clone(),
            group: file.group.clone(),
            ..FileFacts::absent()
        };
        match &file.kind {
            FakeKind::Directory => {}
            FakeKind::Symlink(target) => (facts.kind, facts.target) = (FileKind::Symlink, Some(target.clone())),
            FakeKind::File { content, sha256 } => {
                facts.kind = FileKind::File;
                facts.size = content.len() as u64;
                facts.sha256 = Some(sha256.clone());
                facts.text = text.then(|| String::from_utf8(content.clone()).ok()).flatten();
            }
        }
        facts
    }

    fn know_owners(&self, owners: &[&Owner]) -> Result<(), RemoteError> {
        for name in owners.iter().flat_map(|owner| [&owner.user, &owner.group]) {
            if !name.is_empty() && name != "root" && name.parse::<u32>().is_err() && !self.users.contains_key(name) {
                return Err(RemoteError::new(
                    ErrorKind::NotFound,
                    format!("there is no user or group {name:?}"),
                ));
            }
        }
        Ok(())
    }

    /// Makes missing directories above `path`.
    fn parents(&mut self, path: &str, owner: &Owner, mode: u32) {
        for (at, _) in path.match_indices('/').skip(1) {
            self.files
                .entry(path[..at].to_owned())
                .or_insert_with(|| FakeFile::made(FakeKind::Directory, owner, mode));
        }
    }

    fn replace(&mut self, run_id: &str, path: String, new: FakeFile) -> Item {
        match self.files.insert(path.clone(), new) {
            Some(old) => {
                let changed = self.files.get(&path) != Some(&old);
                if changed {
                    self.kept.entry((run_id.to_owned(), path.clone())).or_insert(old);
                }
                item(path, changed)
            }
            None => item(path, true),
        }
    }

    fn remove(&mut self, path: String, recursive: bool, run_id: &str) -> Result<Item, RemoteError> {
        let prefix = format!("{path}/");
        let inside: Vec<String> = self.below(&prefix).map(|(path, _)| path.clone()).collect();
        if !inside.is_empty() && !recursive {
            return Err(RemoteError::failed(format!(
                "{path}: Directory not empty (os error 39)"
            )));
        }
        let mut changed = false;
        for path in inside.into_iter().chain([path.clone()]) {
            if let Some(old) = self.files.remove(&path) {
                changed = true;
                if !recursive {
                    self.kept.entry((run_id.to_owned(), path)).or_insert(old);
                }
            }
        }
        Ok(item(path, changed))
    }

    fn add_user(&mut self, user: UserSpec) -> Result<Item, RemoteError> {
        if let Some(missing) = user.groups.iter().find(|group| !self.users.contains_key(*group)) {
            return Err(RemoteError::new(
                ErrorKind::NotFound,
                format!("there is no group {missing:?}"),
            ));
        }
        let uid = user.uid.unwrap_or(900 + self.users.len() as u32);
        let wanted = UserFacts {
            uid,
            gid: uid,
            home: user.home,
            shell: user.shell,
            groups: user.groups,
        };
        let changed = !self.users.contains_key(&user.name);
        if changed {
            self.users.insert(user.name.clone(), wanted);
        }
        Ok(item(user.name, changed))
    }

    fn unit_file(&self, name: &str) -> Option<String> {
        match &self.files.get(&format!("{UNIT_DIR}/{name}"))?.kind {
            FakeKind::File { sha256, .. } => Some(sha256.clone()),
            _ => None,
        }
    }

    fn unit_op(&mut self, op: &UnitOp) -> Result<(), RemoteError> {
        let (verb, names) = op.parts();
        if matches!(op, UnitOp::DaemonReload) {
            let read: Vec<(String, Option<String>)> = self
                .units
                .keys()
                .map(|name| (name.clone(), self.unit_file(name)))
                .collect();
            for (name, read) in read {
                self.units.entry(name).or_default().read = read;
            }
        }
        for name in names {
            let file = self.unit_file(name);
            let known = file.is_some() || self.units.contains_key(name);
            let starts = matches!(
                op,
                UnitOp::Start(_) | UnitOp::StartNoBlock(_) | UnitOp::Restart(_) | UnitOp::Enable(_) | UnitOp::Reload(_)
            );
            if !known {
                if starts {
                    return Err(RemoteError::new(
                        ErrorKind::NotFound,
                        format!("Failed to {verb} {name}: Unit {name} not found."),
                    ));
                }
                continue;
            }
            let fails = self.failing_units.get(name).copied();
            let unit = self.units.entry(name.clone()).or_insert_with(|| FakeUnit {
                read: file,
                ..FakeUnit::default()
            });
            match op {
                UnitOp::Enable(_) => unit.enabled = true,
                UnitOp::Disable(_) => unit.enabled = false,
                UnitOp::Mask(_) => unit.masked = true,
                UnitOp::Unmask(_) => unit.masked = false,
                UnitOp::ResetFailed(_) => unit.failed = false,
                UnitOp::Stop(_) | UnitOp::Kill { .. } => unit.active = false,
                UnitOp::TryRestart(_) if !unit.active => {}
                UnitOp::Start(_) | UnitOp::StartNoBlock(_) if unit.active => {}
                UnitOp::Start(_) | UnitOp::StartNoBlock(_) | UnitOp::Restart(_) | UnitOp::TryRestart(_) => {
                    if unit.masked {
                        return Err(RemoteError::failed(format!(
                            "Failed to {verb} {name}: Unit {name} is masked."
                        )));
                    }
                    unit.starts += 1;
                    (unit.active, unit.failed, unit.exit_status) =
                        (fails.is_none(), fails.is_some(), fails.unwrap_or(0));
                    if fails.is_some() {
                        return Err(RemoteError::failed(format!(
                            "Job for {name} failed because the control process exited with error code."
                        )));
                    }
                }
                UnitOp::Reload(_) if fails.is_some() || !unit.active => {
                    return Err(RemoteError::failed(format!(
                        "Failed to {verb} {name}: the control process exited with error code, or it does not run."
                    )));
                }
                UnitOp::Reload(_) => unit.reloads += 1,
                UnitOp::DaemonReload => {}
            }
        }
        Ok(())
    }

    fn unit_facts(&self, name: &str) -> UnitFacts {
        let file = self.unit_file(name);
        let unit = self.units.get(name);
        if file.is_none() && unit.is_none() {
            return UnitFacts {
                load: "not-found".into(),
                active: "inactive".into(),
                sub: "dead".into(),
                ..UnitFacts::default()
            };
        }
        let unit = unit.cloned().unwrap_or_default();
        let word = |yes: bool, a: &str, b: &str| if yes { a.to_owned() } else { b.to_owned() };
        UnitFacts {
            load: word(unit.masked, "masked", "loaded"),
            enabled: word(unit.enabled, "enabled", "disabled"),
            active: word(unit.active, "active", &word(unit.failed, "failed", "inactive")),
            sub: word(unit.active, "running", &word(unit.failed, "failed", "dead")),
            result: word(unit.failed, "exit-code", "success"),
            exit_status: unit.exit_status,
            main_pid: if unit.active { 1000 } else { 0 },
            restarts: 0,
            since_unix: if unit.starts > 0 { self.now_unix } else { 0 },
            needs_daemon_reload: unit.read.is_some() && unit.read != file,
            fragment: file.map(|_| format!("{UNIT_DIR}/{name}")).unwrap_or_default(),
        }
    }
}

fn writes(request: &Request) -> bool {
    matches!(
        request,
        Request::Write { .. }
            | Request::Install { .. }
            | Request::Mkdir { .. }
            | Request::Link { .. }
            | Request::ManagedBlock(_)
            | Request::BlobChunk { .. }
            | Request::BlobEnd { .. }
            | Request::BlobFetch { .. }
    )
}

fn item(name: String, changed: bool) -> Item {
    Item {
        name,
        changed,
        ..Item::default()
    }
}

fn not_found(path: &str) -> RemoteError {
    RemoteError::new(
        ErrorKind::NotFound,
        format!("{path}: No such file or directory (os error 2)"),
    )
}

pub(super) fn debian(name: &str) -> HostFacts {
    HostFacts {
        hostname: name.into(),
        os: OsFacts {
            id: "debian".into(),
            id_like: Vec::new(),
            version_id: "12".into(),
            pretty_name: "Debian GNU/Linux 12 (bookworm)".into(),
        },
        kernel: "6.1.0-40-amd64".into(),
        arch: "x86_64".into(),
        cpus: 2,
        memory_bytes: 4 << 30,
        machine_id: crate::hash::sha256_hex(name.as_bytes())[..32].to_owned(),
        boot_id: format!("boot-of-{name}"),
        uptime_ms: 60_000,
        clock: ClockFacts {
            unix_ns: 0,
            synchronized: Some(true),
            service: Some("systemd-timesyncd".into()),
        },
        cgroup: CgroupFacts {
            version: CgroupVersion::V2,
            controllers: ["cpu", "cpuset", "io", "memory", "pids"].map(str::to_owned).to_vec(),
            read_only: Vec::new(),
            writable: true,
        },
        systemd: Some(SystemdFacts {
            version: 252,
            state: "running".into(),
            ..SystemdFacts::default()
        }),
        capabilities: ["CAP_BPF", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_SYS_RESOURCE"]
            .map(str::to_owned)
            .to_vec(),
        oom_score_adj_writable: true,
        conntrack_writable: true,
        firewall: FirewallFacts {
            nft: Some("/usr/sbin/nft".into()),
            ..FirewallFacts::default()
        },
        network: NetworkFacts {
            links: vec![LinkFacts {
                name: "eth0".into(),
                mtu: 1500,
                mac: "02:00:00:00:00:01".into(),
                up: true,
                running: true,
            }],
            default_interface: Some("eth0".into()),
            ..NetworkFacts::default()
        },
        kernel_features: ["nf_tables", "vxlan", "overlay", "br_netfilter", "bpf"]
            .map(|name| (name.to_owned(), Feature::Present))
            .into(),
        mounts: vec![MountFacts {
            source: "/dev/vda1".into(),
            target: "/".into(),
            fstype: "ext4".into(),
            options: vec!["rw".into()],
            total_bytes: 50 << 30,
            free_bytes: 40 << 30,
        }],
        ..HostFacts::default()
    }
}

pub(super) fn sysctls() -> BTreeMap<String, String> {
    [
        ("net.ipv4.ip_forward", "0"),
        ("net.ipv6.conf.all.forwarding", "0"),
        ("net.netfilter.nf_conntrack_max", "262144"),
        ("vm.swappiness", "60"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}
