//! The Plan: stages → steps, as data. What is shown, journalled, executed, tested and undone is this one value.

use std::collections::BTreeMap;

use quorate_facts::{FileFacts, SecretId};
use quorate_pki::inventory::CertificateWanted;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Everything one run will do, in order. Execution has no choices left.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub cluster: String,
    /// Version of Kubernetes the plan leads to.
    pub kubernetes: String,
    pub stages: Vec<Stage>,
    /// What the reader should know beforehand: a kernel that lacks IPVS, a machine that is away.
    pub notes: Vec<Note>,
}

/// Steps that belong together. A stage begins when the one before it is through its gate, or together with that one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Short name: `etcd`.
    pub name: String,
    /// One line for people: what is true when it ends.
    pub title: String,
    /// Begins with the stage before: each step waits for what it needs, and not for the end of that stage.
    #[serde(default)]
    pub with_previous: bool,
    pub steps: Vec<Step>,
}

/// One change on one machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// Unique in the plan: `etcd/m1/start`.
    pub id: String,
    pub machine: String,
    /// Imperative, short: "start etcd".
    pub title: String,
    /// What differs from what is wanted; one line per reason.
    pub why: Vec<String>,
    pub action: Action,
    /// Ids of steps that must be done before, of this stage or an earlier one.
    pub needs: Vec<String>,
    /// Conditions that hold when the step is done; awaited after acting.
    pub done_when: Vec<Wait>,
    pub undo: Undo,
    /// How often acting may be tried; 1 = once. Waits between tries double from 250 ms.
    pub attempts: u32,
    /// A failure stops the run at the end of the stage. `false` for workers: their machine drops out, the rest goes on.
    pub essential: bool,
}

impl Action {
    /// How the executor itself knows that acting had its effect. `None`: only conditions can tell, so the step has some.
    pub fn confirmed_by(&self) -> Option<&str> {
        Some(match self {
            Self::Users { .. } | Self::RemoveUsers { .. } => "the machine looks the name up again",
            Self::Directories { .. } | Self::Links { .. } => "the kernel answers for each with what it is now",
            Self::Files { .. } | Self::Block { .. } => "synced to disk under another name, then renamed into place",
            Self::Remove { .. } => "the kernel answers when the name is gone",
            Self::Blobs { .. } => "what arrived is hashed before it gets its name",
            Self::Sysctls { .. } => "the kernel is asked for the value again",
            Self::Modules { .. } => "the kernel is asked whether it has the module",
            Self::SwapOff => "the kernel is asked what it still swaps to",
            Self::SwapOn { .. } => "swapon fails for what /etc/fstab names; other swap (zram) may be gone",
            Self::Images { .. } => "the runtime verifies digests; its name for a whole import comes last",
            Self::Units { start, restart, .. } => {
                if !(start.is_empty() && restart.is_empty()) {
                    // Started is not yet working.
                    return None;
                }
                "systemd answers when the jobs are done"
            }
            Self::Run { exit_shows, .. } => return exit_shows.as_deref(),
            Self::EtcdAddLearner { .. } | Self::EtcdRemove { .. } => "etcd answers when its members have agreed",
            // A voter may still be one that lags behind or dies.
            Self::EtcdPromote { .. } => return None,
            Self::Apply { .. } => "the API server answers with what etcd has stored",
            Self::Delete { .. } => "the API server is asked again until the object is gone",
            Self::ApproveServing { .. } => "the kubelet's certificate is awaited, signed and on its machine",
            Self::Await => return None,
            Self::Clean { .. } => "its exit status says whether anything could not be removed",
            Self::Forget { .. } => "the store is looked into again",
        })
    }
}

impl Step {
    /// The machine a step is for, which drops out with it. What is asked of the API for all of them is for none.
    pub fn concerns(&self) -> Option<&str> {
        match &self.action {
            Action::Apply { .. } | Action::Delete { .. } | Action::Await => None,
            Action::ApproveServing { node, .. } => Some(node),
            _ => Some(&self.machine),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Note {
    pub machine: Option<String>,
    pub message: String,
    pub hint: Option<String>,
}

/// What a step does. Every variant is a value: no closures, nothing decided later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Action {
    /// System users and groups, without a shell.
    Users {
        users: Vec<User>,
    },
    Directories {
        directories: Vec<Directory>,
    },
    /// Written to a temporary name, synced, renamed; what stood there is kept under the run's id.
    Files {
        files: Vec<FileChange>,
    },
    /// Removed, kept under the run's id.
    Remove {
        paths: Vec<String>,
        recursive: bool,
    },
    /// Lines between two markers of a file whose rest is not ours.
    Block {
        path: String,
        marker: String,
        /// Empty: the block and its markers go.
        content: String,
        /// Of the whole file.
        before: Before,
    },
    /// Content-addressed blobs that must be on the machine.
    Blobs {
        blobs: Vec<BlobRef>,
    },
    /// Symbolic links, replaced atomically.
    Links {
        links: Vec<Link>,
    },
    Sysctls {
        values: BTreeMap<String, String>,
    },
    Modules {
        names: Vec<String>,
    },
    SwapOff,
    /// Uncomments what `SwapOff` took out of /etc/fstab and turns swap on again, there and on these paths.
    SwapOn {
        paths: Vec<String>,
    },
    /// Archives imported into the container runtime.
    Images {
        images: Vec<BlobRef>,
    },
    /// Changes of systemd units, in this order: reload, enable, stop, start, restart.
    Units {
        reload: bool,
        enable: Vec<String>,
        disable: Vec<String>,
        stop: Vec<String>,
        start: Vec<String>,
        restart: Vec<String>,
    },
    /// A program, without a shell.
    Run {
        argv: Vec<String>,
        stdin: Option<Content>,
        timeout_ms: u64,
        /// Why success by its exit status is all there is to await, where that is so; else the step has conditions.
        exit_shows: Option<String>,
    },
    /// Membership of etcd, asked of the member on `machine`.
    EtcdAddLearner {
        name: String,
        peer_url: String,
    },
    EtcdPromote {
        name: String,
    },
    EtcdRemove {
        id: String,
        name: String,
    },
    /// Server-side apply of objects, through the API server of `machine`.
    Apply {
        objects: Vec<ApiObject>,
    },
    /// Objects deleted through the API server of `machine`; absent ones are fine.
    Delete {
        paths: Vec<String>,
    },
    /// Approve the kubelet's serving CSR if, and only if, its names and addresses are these.
    ApproveServing {
        node: String,
        names: Vec<String>,
        addresses: Vec<String>,
    },
    /// Nothing to do but wait for `done_when`.
    Await,
    /// End Pods, unmount their file systems, remove their interfaces, namespaces and packet rules; empty `data` and `owned`.
    Clean {
        data: Vec<String>,
        owned: Vec<String>,
    },
    RemoveUsers {
        names: Vec<String>,
    },
    /// Quorate's own store on the machine, and directories it made if they are empty. Last: nothing is kept after it.
    Forget {
        directories: Vec<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    pub name: String,
    pub home: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Directory {
    pub path: String,
    pub owner: String,
    /// Permission bits, e.g. `0o700`.
    pub mode: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FileChange {
    pub path: String,
    /// User and group of the same name.
    pub owner: String,
    pub mode: u32,
    pub content: Content,
    pub before: Before,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Link {
    pub path: String,
    pub target: String,
    pub before: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlobRef {
    pub name: String,
    pub sha256: String,
    pub packed_size: u64,
}

/// An object for server-side apply, or a template of one when it carries a secret.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApiObject {
    /// `/api/v1/namespaces/kube-system/configmaps/coredns`
    pub path: String,
    pub body: Value,
    /// String values of `body` may hold `{{secret:…}}` marks.
    pub secrets: Vec<SecretId>,
    pub before: Option<Value>,
}

/// What a file will hold. Secrets stay references until the moment of writing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case")]
pub enum Content {
    Text {
        text: String,
    },
    /// Text with `{{secret:NAME}}` marks (NAME as [`SecretId`] prints in kebab case).
    Template {
        template: String,
        secrets: Vec<SecretId>,
    },
    /// The certificate half of an issued pair.
    Certificate {
        wanted: Box<CertificateWanted>,
    },
    /// The key half of the same pair.
    Key {
        wanted: Box<CertificateWanted>,
    },
    /// An authority's certificate, by its name in the inventory.
    Authority {
        name: String,
    },
}

impl Content {
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text { text: text.into() }
    }

    /// Whether showing the content would show a secret.
    pub fn is_secret(&self) -> bool {
        matches!(self, Self::Key { .. }) || matches!(self, Self::Template { secrets, .. } if !secrets.is_empty())
    }
}

/// What stood at a path when the plan was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "was", rename_all = "kebab-case")]
pub enum Before {
    Absent,
    Text {
        text: String,
    },
    /// Known by hash only: a secret, or too large to show.
    Hash {
        sha256: String,
    },
    /// The content is right; owner or mode is not.
    Attributes {
        owner: String,
        mode: u32,
    },
}

impl Before {
    /// Text that may be shown, else its hash.
    pub(crate) fn of(found: Option<&FileFacts>) -> Self {
        match found.filter(|found| found.exists()) {
            None => Self::Absent,
            Some(found) => match &found.text {
                Some(text) if !crate::secrets::holds_credentials(text) => Self::Text { text: text.clone() },
                _ => Self::Hash {
                    sha256: found.sha256.clone().unwrap_or_default(),
                },
            },
        }
    }
}

/// A condition, and how long it may take.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Wait {
    pub until: Condition,
    pub timeout_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub enum Condition {
    /// GET from the machine itself answers 200 and, if given, a body that contains the text.
    Http {
        url: String,
        tls: Option<ClientTls>,
        contains: Option<String>,
    },
    Port {
        address: String,
    },
    File {
        path: String,
    },
    /// Nothing is at the path any more.
    Gone {
        path: String,
    },
    UnitActive {
        unit: String,
    },
    /// The object at `path` (through the machine's API server) has `pointer` equal to `equals`.
    Object {
        path: String,
        pointer: String,
        equals: Value,
    },
    /// The Deployment at `path` has so many Pods, all of its present template and ready.
    Deployment {
        path: String,
        replicas: u32,
    },
    /// The DaemonSet at `path` has a ready Pod of its present template on each of these nodes; nodes whose machine dropped
    /// out of the run do not count.
    DaemonSet {
        path: String,
        nodes: Vec<String>,
    },
    /// Node is Ready.
    NodeReady {
        node: String,
    },
    /// This etcd member is started, healthy and no learner.
    EtcdMember {
        name: String,
    },
}

/// Paths on the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClientTls {
    pub ca: String,
    pub certificate: Option<String>,
    pub key: Option<String>,
    pub server_name: Option<String>,
}

/// How a step is taken back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Undo {
    /// Put back what the run kept; remove what it created.
    Kept,
    /// Stop and disable units this step started for the first time; restart those it restarted.
    Units,
    /// Delete the objects it created.
    Objects,
    /// Nothing to take back: the step only waits, or adds what harms nobody.
    Nothing { because: String },
    /// Cannot be taken back by itself; says what to do.
    Manual { hint: String },
}

struct Hashing(Sha256);

impl std::io::Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Plan {
    /// SHA-256 (hex) over the plan's JSON: the journal's first line, the thing one confirms.
    pub fn hash(&self) -> String {
        // Without a copy of the whole: a plan for a thousand machines has tens of megabytes.
        let mut sink = Hashing(Sha256::new());
        let _ = serde_json::to_writer(&mut sink, self);
        sink.0.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.stages.iter().flat_map(|stage| &stage.steps)
    }

    /// Stages that run together, in order: what begins with the stage before is of its wave.
    pub fn waves(&self) -> impl Iterator<Item = &[Stage]> {
        self.stages.chunk_by(|_, next| next.with_previous)
    }

    pub fn step_count(&self) -> usize {
        self.stages.iter().map(|stage| stage.steps.len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.step_count() == 0
    }
}
