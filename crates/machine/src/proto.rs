//! What can be asked of a machine, as values. `local` carries them out, `remote` moves them over a pair of pipes,
//! `fake` pretends.
//!
//! Every request is safe to repeat: it states what should be, not what to do next. After a lost connection the
//! outcome is found by asking again, never assumed.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
};

use quorate_facts::{FileFacts, HostFacts, NetworkFacts, UnitFacts};
use serde::{Deserialize, Serialize};

use crate::error::RemoteError;
pub use crate::probe::{Probe, Probed};

/// Raised with every incompatible change of these types. Both sides are the same binary, so a mismatch means that
/// something else answered.
pub const PROTOCOL_VERSION: u32 = 3;

/// Content that must not appear in logs: it prints as its length.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Bytes(pub Vec<u8>);

/// The first frame in each direction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    pub version: u32,
    /// SHA-256 of the sender's executable, lower-case hex.
    pub build: String,
    /// `uname -m`.
    pub arch: String,
    /// Effective user of the process that answers.
    pub uid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Everything there is to know, in one trip.
    Gather(GatherQuery),
    /// [`Response::Files`] in the order asked. `hash` reads regular files (or recalls their hash).
    Stat { paths: Vec<String>, hash: bool },
    /// [`Response::Content`]; an error if the file is longer than `max_bytes`.
    Read { path: String, max_bytes: u64 },
    /// [`Response::Names`]: names in a directory, sorted; empty if it does not exist.
    List { path: String },
    /// Each file atomically, after its former self was kept under `run_id`. [`Response::Items`].
    Write { files: Vec<FileWrite>, run_id: String },
    /// Files from the blob store, as [`Request::Write`]. [`Response::Items`].
    Install { files: Vec<BlobInstall>, run_id: String },
    /// Absent paths count as removed. Directories need `recursive`. Files are kept. [`Response::Items`].
    Remove {
        paths: Vec<String>,
        recursive: bool,
        run_id: String,
    },
    /// Puts back what `run_id` kept for these paths; a path it kept nothing for is an item with an error. [`Response::Items`].
    Restore { paths: Vec<String>, run_id: String },
    /// [`Response::Items`].
    Mkdir { dirs: Vec<DirSpec> },
    /// Owner and mode of existing files and directories. [`Response::Items`].
    SetMode { entries: Vec<DirSpec> },
    /// A symbolic link, atomically replaced. [`Response::Items`].
    Link {
        path: String,
        target: String,
        run_id: String,
    },
    /// Lines between two markers in a file whose rest belongs to others. [`Response::Items`].
    ManagedBlock(ManagedBlock),

    /// [`Response::Names`]: those of `sha256` that the store has.
    BlobsPresent { sha256: Vec<String> },
    /// Starts or continues an upload: [`Response::Offset`] says from where to send, [`Response::Done`] that the
    /// blob is there.
    BlobBegin { blob: PackedBlob },
    /// A piece of the packed form at `offset`. [`Response::Done`].
    BlobChunk {
        packed_sha256: String,
        offset: u64,
        data: Bytes,
    },
    /// Verifies and unpacks. [`Response::Done`].
    BlobEnd { blob: PackedBlob },
    /// Offers this machine's packed blobs to others until they are pruned or the session ends. [`Response::Port`].
    BlobServe { listen: IpAddr, token: Token },
    /// Fetches from the first of `from` that delivers; verifies and unpacks. [`Response::Done`].
    BlobFetch {
        blob: PackedBlob,
        from: Vec<SocketAddr>,
        token: Token,
    },
    /// Deletes packed forms and unfinished uploads; with `keep`, also every blob not named in it. [`Response::Items`].
    BlobsPrune { keep: Option<Vec<String>> },

    /// In order, each one `systemctl` call; stops at the first failure. [`Response::Done`].
    Units { ops: Vec<UnitOp>, timeout_ms: u64 },
    /// [`Response::Units`].
    UnitStatus { names: Vec<String> },

    /// A program without a shell. [`Response::Exec`], whatever its exit status.
    Exec(Exec),
    /// [`Response::Wait`].
    WaitPort { address: SocketAddr, timeout_ms: u64 },
    /// Until the path exists, or is gone if `absent`. [`Response::Wait`].
    WaitFile {
        path: String,
        absent: bool,
        timeout_ms: u64,
    },
    /// Repeats a request until a status within `status` (inclusive). [`Response::Wait`].
    WaitHttp {
        http: HttpRequest,
        status: (u16, u16),
        timeout_ms: u64,
    },
    /// One HTTP request made by the machine, with keys that stay there. [`Response::Http`].
    Http(HttpRequest),

    /// Sets each now (not persistently). [`Response::Items`], `before` holding the old value.
    Sysctl { values: BTreeMap<String, String> },
    /// Loads modules unless loaded or built in. [`Response::Items`].
    Modules { names: Vec<String> },
    /// [`Response::Items`].
    Mount(MountSpec),
    /// Not mounted counts as done. [`Response::Items`].
    Unmount { targets: Vec<String> },
    /// Turns off all swap, or on what /etc/fstab lists. [`Response::Items`].
    Swap { on: bool },
    /// [`Response::Items`].
    User(UserSpec),
    /// [`Response::Items`].
    UserRemove { name: String },
    /// Interfaces, addresses and routes. [`Response::Network`].
    Network,
    /// Deletes interfaces by name; absent counts as done. [`Response::Items`].
    LinksRemove { names: Vec<String> },
    /// Replaces or (`None`) deletes a whole nftables table. [`Response::Done`].
    NftTable {
        family: String,
        name: String,
        ruleset: Option<Bytes>,
    },

    /// Tries something out between machines or on this one; changes nothing that stays. [`Response::Probed`].
    Probe(Probe),

    /// Takes or renews a lock. [`Response::Lock`], acquired or not.
    Lock(LockRequest),
    /// Gives a lock back; a lock that is not ours is left alone. [`Response::Done`].
    Unlock { name: String, token: u64 },
    /// Pushes everything written to disk. [`Response::Done`].
    Sync,
    /// The operator is still there. [`Response::Done`].
    Ping,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    Done,
    Facts(Box<HostFacts>),
    Files(Vec<FileFacts>),
    Content(Bytes),
    Names(Vec<String>),
    Items(Vec<Item>),
    Offset(u64),
    Port(u16),
    Units(BTreeMap<String, UnitFacts>),
    Exec(ExecOutput),
    Wait(Waited),
    Http(HttpReply),
    Network(NetworkFacts),
    Lock(LockReply),
    Probed(Probed),
}

/// A request's answer as it travels.
pub type Answer = Result<Response, RemoteError>;

/// The outcome for one of the things a request named.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Path, name or key.
    pub name: String,
    /// It was different before.
    pub changed: bool,
    /// The former value, where it is short and no secret (a sysctl).
    pub before: Option<String>,
    pub error: Option<RemoteError>,
}

/// What [`Request::Gather`] should look at beyond the host itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatherQuery {
    /// Single paths to stat and hash.
    pub paths: Vec<String>,
    /// Directories to walk, hashing regular files up to [`GatherQuery::MAX_HASHED`]. Links are not followed.
    pub roots: Vec<String>,
    /// Files and directories whose files' text is returned, if it is UTF-8 and at most [`GatherQuery::MAX_TEXT`].
    /// Never name a place that holds secrets.
    pub text_roots: Vec<String>,
    /// Certificate files, kubeconfigs with a client certificate inside (their keys stay on the machine), or directories whose
    /// `*.crt`, `*.pem` and `*.key` are read.
    pub certificates: Vec<String>,
    /// Private keys' files.
    pub keys: Vec<String>,
    pub units: Vec<String>,
    /// Dotted names.
    pub sysctls: Vec<String>,
    /// Kernel features beyond the usual ones, by module name.
    pub modules: Vec<String>,
    /// Options of its configuration, such as `CONFIG_MEMCG`; they are told among its features.
    pub options: Vec<String>,
    pub users: Vec<String>,
    /// Programs to look for.
    pub programs: Vec<String>,
}

impl GatherQuery {
    /// The largest upstream binary is about 120 MB, an image archive 100 MB.
    pub const MAX_HASHED: u64 = 1 << 30;
    /// Configuration files; more would slow every plan.
    pub const MAX_TEXT: u64 = 256 << 10;
    /// Files walked below one root; a data directory given by mistake must not be walked for minutes.
    pub const MAX_WALKED: usize = 20_000;
}

/// A file as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileWrite {
    pub path: String,
    pub content: Bytes,
    pub owner: Owner,
    pub mode: u32,
    /// Mode of directories above it that have to be made (owned as the file is).
    pub parent_mode: u32,
}

impl FileWrite {
    /// Owned by root, parents 0755.
    pub fn new(path: impl Into<String>, content: impl Into<Bytes>, mode: u32) -> Self {
        Self {
            path: path.into(),
            content: content.into(),
            owner: Owner::root(),
            mode,
            parent_mode: 0o755,
        }
    }
}

/// User and group by name (or number). Empty means whoever `quorate remote` runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub user: String,
    pub group: String,
}

impl Owner {
    pub fn root() -> Self {
        Self::new("root", "root")
    }

    pub fn new(user: impl Into<String>, group: impl Into<String>) -> Self {
        Self {
            user: user.into(),
            group: group.into(),
        }
    }
}

/// A blob put in its place: a hard link if the store is on the same file system, else a copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobInstall {
    pub sha256: String,
    pub path: String,
    pub owner: Owner,
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirSpec {
    pub path: String,
    pub owner: Owner,
    pub mode: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagedBlock {
    pub path: String,
    /// Appears in the two comment lines `# BEGIN marker` and `# END marker`.
    pub marker: String,
    /// Lines between them; `None` removes block and markers.
    pub content: Option<Bytes>,
    /// Mode of the file if it has to be made.
    pub mode: u32,
    pub run_id: String,
}

/// A blob and its zstd-packed form, the one that travels.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedBlob {
    /// Of the content, lower-case hex; the blob's name in the store.
    pub sha256: String,
    pub size: u64,
    /// Of the packed form, lower-case hex.
    pub packed_sha256: String,
    pub packed_size: u64,
}

/// A key to a machine's blob door for one run. Integrity rests on hashes, not on it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token(pub [u8; 32]);

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnitOp {
    DaemonReload,
    /// Without the daemon-reload that systemctl would add; so `Disable`.
    Enable(Vec<String>),
    Disable(Vec<String>),
    Start(Vec<String>),
    /// `systemctl start --no-block`: queued, not waited for.
    StartNoBlock(Vec<String>),
    Restart(Vec<String>),
    /// Restarts those that run, starts none.
    TryRestart(Vec<String>),
    Reload(Vec<String>),
    Stop(Vec<String>),
    ResetFailed(Vec<String>),
    Mask(Vec<String>),
    Unmask(Vec<String>),
    /// `systemctl kill --signal`.
    Kill {
        names: Vec<String>,
        signal: String,
    },
}

impl UnitOp {
    /// systemctl's word for it and the units.
    pub fn parts(&self) -> (&'static str, &[String]) {
        match self {
            Self::DaemonReload => ("daemon-reload", &[]),
            Self::Enable(names) => ("enable", names),
            Self::Disable(names) => ("disable", names),
            Self::Start(names) | Self::StartNoBlock(names) => ("start", names),
            Self::Restart(names) => ("restart", names),
            Self::TryRestart(names) => ("try-restart", names),
            Self::Reload(names) => ("reload", names),
            Self::Stop(names) => ("stop", names),
            Self::ResetFailed(names) => ("reset-failed", names),
            Self::Mask(names) => ("mask", names),
            Self::Unmask(names) => ("unmask", names),
            Self::Kill { names, .. } => ("kill", names),
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// Program and arguments: visible to every user of the machine, so no secrets.
    pub argv: Vec<String>,
    pub stdin: Bytes,
    /// Added to a minimal environment (`PATH`, `HOME`, `LANG=C.UTF-8`).
    pub env: BTreeMap<String, Bytes>,
    pub cwd: Option<String>,
    /// Run as this user instead of root.
    pub user: Option<String>,
    /// The whole process group is killed then.
    pub timeout_ms: u64,
    /// Of stdout and stderr each; the rest is read and dropped.
    pub max_output: u64,
}

impl Exec {
    /// 30 s and 1 MiB.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            timeout_ms: 30_000,
            max_output: 1 << 20,
            ..Self::default()
        }
    }

    pub fn stdin(mut self, stdin: impl Into<Bytes>) -> Self {
        self.stdin = stdin.into();
        self
    }

    pub fn timeout_ms(mut self, timeout_ms: u64) -> Self {
        self.timeout_ms = timeout_ms;
        self
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecOutput {
    /// `None` if it was ended by a signal.
    pub status: Option<i32>,
    pub signal: Option<i32>,
    pub timed_out: bool,
    /// Output was longer than asked for.
    pub truncated: bool,
    pub stdout: Bytes,
    pub stderr: Bytes,
}

impl ExecOutput {
    pub fn ok(&self) -> bool {
        self.status == Some(0)
    }
}

/// Outcome of a wait. Not reaching the goal is an answer, not an error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waited {
    pub ok: bool,
    pub took_ms: u64,
    /// What was seen last, e.g. `connection refused` or `HTTP 500: [-]etcd failed`.
    pub last: String,
}

/// Paths are on the machine that makes the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRequest {
    pub method: String,
    /// `http://…` or `https://…`.
    pub url: String,
    /// Connect here instead of to the URL's host.
    pub connect: Option<SocketAddr>,
    /// Name to verify the server's certificate against, if not the URL's host.
    pub server_name: Option<String>,
    pub headers: Vec<(String, Bytes)>,
    pub body: Bytes,
    /// PEM; without it the server is trusted by no one and `https` fails.
    pub ca_file: Option<String>,
    pub cert_file: Option<String>,
    pub key_file: Option<String>,
    /// PEM of a client certificate and its key, for an identity that never touches the machine's disk; instead of
    /// `cert_file` and `key_file`.
    pub identity: Option<Bytes>,
    /// PEM of authorities, instead of `ca_file`.
    pub ca_pem: Option<Bytes>,
    /// Its content becomes `Authorization: Bearer …`.
    pub bearer_file: Option<String>,
    pub timeout_ms: u64,
    pub max_body: u64,
}

impl HttpRequest {
    /// 10 s and 8 MiB.
    pub fn new(method: &str, url: impl Into<String>) -> Self {
        Self {
            method: method.into(),
            url: url.into(),
            timeout_ms: 10_000,
            max_body: 8 << 20,
            ..Self::default()
        }
    }

    pub fn get(url: impl Into<String>) -> Self {
        Self::new("GET", url)
    }

    pub fn ca(mut self, path: impl Into<String>) -> Self {
        self.ca_file = Some(path.into());
        self
    }

    pub fn client_cert(mut self, cert: impl Into<String>, key: impl Into<String>) -> Self {
        self.cert_file = Some(cert.into());
        self.key_file = Some(key.into());
        self
    }

    pub fn header(mut self, name: &str, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// The body is JSON.
    pub fn json(self, body: impl Into<Bytes>) -> Self {
        self.header("content-type", "application/json").body(body)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpReply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Bytes,
}

impl HttpReply {
    pub fn ok(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountSpec {
    pub source: String,
    pub target: String,
    /// Empty for a bind mount.
    pub fstype: String,
    /// As after `mount -o`.
    pub options: Vec<String>,
}

/// A user (and its group of the same name) without a password.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserSpec {
    pub name: String,
    pub uid: Option<u32>,
    pub home: String,
    pub shell: String,
    /// Further groups; they must exist.
    pub groups: Vec<String>,
    pub system: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRequest {
    /// Usually the cluster's name.
    pub name: String,
    pub owner: LockOwner,
    /// Seconds until it may be taken by others, if not renewed.
    pub ttl_s: u64,
    /// Take it even from a living holder. Its changes are refused from then on.
    pub steal: bool,
    /// Renew the one that was given with this token: another's is not taken, and one that is gone is not made anew.
    pub renews: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockOwner {
    pub run_id: String,
    pub user: String,
    pub host: String,
    pub pid: u32,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockReply {
    pub acquired: bool,
    /// Grows with every change of holder, from 1. While a session holds a lock, its changes are refused once a higher
    /// one was given out. 0: there is no lock to renew; it went with the machine's store.
    pub token: u64,
    /// Who holds it now, or held it until it was taken over.
    pub holder: Option<LockHolder>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockHolder {
    pub owner: LockOwner,
    pub age_s: u64,
    /// Since it was last renewed.
    pub idle_s: u64,
    /// Its time had run out.
    pub expired: bool,
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LockOwner {
            run_id,
            user,
            host,
            pid,
        } = &self.owner;
        write!(
            f,
            "run {run_id} of {user}@{host} (pid {pid}), {} s old, last seen {} s ago",
            self.age_s, self.idle_s
        )?;
        if self.expired { write!(f, ", expired") } else { Ok(()) }
    }
}

impl Request {
    /// What is being done, for errors and progress: `write /etc/kubernetes/pki/ca.crt and 3 more`.
    pub fn operation(&self) -> String {
        fn list<'a>(verb: &str, mut names: impl ExactSizeIterator<Item = &'a str>) -> String {
            match (names.next(), names.len()) {
                (None, _) => verb.to_owned(),
                (Some(first), 0) => format!("{verb} {first}"),
                (Some(first), more) => format!("{verb} {first} and {more} more"),
            }
        }
        fn strings<'a>(verb: &str, names: &'a [String]) -> String {
            list(verb, names.iter().map(|name: &'a String| name.as_str()))
        }
        fn short(sha256: &str) -> &str {
            sha256.get(..12).unwrap_or(sha256)
        }
        match self {
            Self::Gather(_) => "gather facts".into(),
            Self::Stat { paths, .. } => strings("stat", paths),
            Self::Read { path, .. } => format!("read {path}"),
            Self::List { path } => format!("list {path}"),
            Self::Write { files, .. } => list("write", files.iter().map(|f| f.path.as_str())),
            Self::Install { files, .. } => list("install", files.iter().map(|f| f.path.as_str())),
            Self::Remove { paths, .. } => strings("remove", paths),
            Self::Restore { paths, .. } => strings("restore", paths),
            Self::Mkdir { dirs } => list("make directory", dirs.iter().map(|d| d.path.as_str())),
            Self::SetMode { entries } => list("set owner and mode of", entries.iter().map(|d| d.path.as_str())),
            Self::Link { path, target, .. } => format!("link {path} to {target}"),
            Self::ManagedBlock(block) => format!("edit block {} of {}", block.marker, block.path),
            Self::BlobsPresent { .. } => "look for blobs".into(),
            Self::BlobBegin { blob } => format!("begin upload of blob {}", short(&blob.sha256)),
            Self::BlobChunk {
                packed_sha256, offset, ..
            } => format!("upload {} at {offset}", short(packed_sha256)),
            Self::BlobEnd { blob } => format!("unpack blob {}", short(&blob.sha256)),
            Self::BlobServe { listen, .. } => format!("offer blobs on {listen}"),
            Self::BlobFetch { blob, .. } => format!("fetch blob {}", short(&blob.sha256)),
            Self::BlobsPrune { .. } => "prune blobs".into(),
            Self::Units { ops, .. } => {
                let words: Vec<String> = ops.iter().map(|op| strings(op.parts().0, op.parts().1)).collect();
                format!("systemctl {}", words.join(", "))
            }
            Self::UnitStatus { names } => strings("status of", names),
            Self::Exec(exec) => format!("run {}", exec.argv.first().map_or("nothing", String::as_str)),
            Self::WaitPort { address, .. } => format!("wait for {address}"),
            Self::WaitFile {
                path, absent: false, ..
            } => format!("wait for {path}"),
            Self::WaitFile { path, absent: true, .. } => format!("wait until {path} is gone"),
            Self::WaitHttp { http, .. } => format!("wait for {}", http.url),
            Self::Http(http) => format!("{} {}", http.method, http.url),
            Self::Sysctl { values } => list("set sysctl", values.keys().map(String::as_str)),
            Self::Modules { names } => strings("load module", names),
            Self::Mount(mount) => format!("mount {}", mount.target),
            Self::Unmount { targets } => strings("unmount", targets),
            Self::Swap { on } => format!("turn swap {}", if *on { "on" } else { "off" }),
            Self::User(user) => format!("create user {}", user.name),
            Self::UserRemove { name } => format!("remove user {name}"),
            Self::Network => "read addresses and routes".into(),
            Self::LinksRemove { names } => strings("delete interface", names),
            Self::NftTable {
                family,
                name,
                ruleset: Some(_),
            } => format!("replace nft table {family} {name}"),
            Self::NftTable {
                family,
                name,
                ruleset: None,
            } => format!("delete nft table {family} {name}"),
            Self::Probe(probe) => probe.operation(),
            Self::Lock(lock) => format!("take lock {}", lock.name),
            Self::Unlock { name, .. } => format!("release lock {name}"),
            Self::Sync => "sync disks".into(),
            Self::Ping => "ping".into(),
        }
    }

    /// It changes the machine, beyond Quorate's own store. A session that lost its lock may not send these.
    pub fn is_change(&self) -> bool {
        match self {
            Self::Write { .. }
            | Self::Install { .. }
            | Self::Remove { .. }
            | Self::Restore { .. }
            | Self::Mkdir { .. }
            | Self::SetMode { .. }
            | Self::Link { .. }
            | Self::ManagedBlock(_)
            | Self::Units { .. }
            | Self::Exec(_)
            | Self::Sysctl { .. }
            | Self::Modules { .. }
            | Self::Mount(_)
            | Self::Unmount { .. }
            | Self::Swap { .. }
            | Self::User(_)
            | Self::UserRemove { .. }
            | Self::LinksRemove { .. }
            | Self::NftTable { .. }
            | Self::BlobsPrune { .. } => true,
            Self::Http(http) => !matches!(http.method.as_str(), "GET" | "HEAD"),
            Self::Gather(_)
            | Self::Stat { .. }
            | Self::Read { .. }
            | Self::List { .. }
            | Self::BlobsPresent { .. }
            | Self::BlobBegin { .. }
            | Self::BlobChunk { .. }
            | Self::BlobEnd { .. }
            | Self::BlobServe { .. }
            | Self::BlobFetch { .. }
            | Self::UnitStatus { .. }
            | Self::WaitPort { .. }
            | Self::WaitFile { .. }
            | Self::WaitHttp { .. }
            | Self::Network
            | Self::Probe(_)
            | Self::Lock(_)
            | Self::Unlock { .. }
            | Self::Sync
            | Self::Ping => false,
        }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<token>")
    }
}

impl Bytes {
    /// As text, wrong bytes replaced; for messages.
    pub fn lossy(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<String> for Bytes {
    fn from(text: String) -> Self {
        Self(text.into_bytes())
    }
}

impl From<&str> for Bytes {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl Serialize for Bytes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(bytes.into())
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(bytes.into())
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}
