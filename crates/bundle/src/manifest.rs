//! `manifest.json`: what a bundle holds.
use serde::{Deserialize, Serialize};

/// The value of [`Manifest::format`]. A program refuses other formats instead of guessing.
pub const FORMAT: &str = "quorate.dev/bundle/v1";

/// The table of contents of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Always [`FORMAT`].
    pub format: String,
    /// With its leading `v`: `v1.36.3`.
    pub kubernetes: String,
    /// The Go name: `amd64` or `arm64`.
    pub architecture: String,
    /// `source`, `upstream` or `directory`.
    pub created_from: String,
    /// Sorted by kind, then name.
    pub blobs: Vec<Blob>,
}

/// One file of a bundle. It is named by the SHA-256 of its content, and stored and sent zstd-compressed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// `kube-apiserver`, or an image's reference: `registry.k8s.io/etcd:3.6.16-0`.
    pub name: String,
    pub kind: BlobKind,
    /// Of the upstream project, with its leading `v` if it has one.
    pub version: String,
    /// Go module and version, URL, file or package list the content came from.
    pub origin: String,
    /// SPDX expression.
    pub licence: String,
    /// Lower-case hexadecimal, of the uncompressed content.
    pub sha256: String,
    /// Bytes, uncompressed.
    pub size: u64,
    /// Lower-case hexadecimal, of the stored zstd frame.
    pub packed_sha256: String,
    /// Bytes, as stored.
    pub packed_size: u64,
    /// Where the file belongs on a machine; images have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Octal permission bits: `"0755"`.
    pub mode: String,
    /// Further references of the same image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub also: Vec<String>,
}

/// What a blob is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobKind {
    /// An executable.
    Binary,
    /// An OCI layout in a tar file, for `ctr --namespace k8s.io images import`.
    Image,
    /// Anything else.
    File,
}

impl BlobKind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Image => "image",
            Self::File => "file",
        }
    }
}

impl Manifest {
    /// The blob called `name` (a binary's name, or any of an image's references).
    pub fn blob(&self, name: &str) -> Option<&Blob> {
        self.blobs
            .iter()
            .find(|blob| blob.name == name || blob.also.iter().any(|also| also == name))
    }

    pub fn binaries(&self) -> impl Iterator<Item = &Blob> {
        self.blobs.iter().filter(|blob| blob.kind == BlobKind::Binary)
    }

    pub fn images(&self) -> impl Iterator<Item = &Blob> {
        self.blobs.iter().filter(|blob| blob.kind == BlobKind::Image)
    }

    /// What is wrong with the manifest itself; empty when nothing is.
    pub(crate) fn findings(&self) -> Vec<String> {
        let mut findings = Vec::new();
        if self.format != FORMAT {
            findings.push(format!("format is {:?}; this program reads {FORMAT:?}", self.format));
        }
        for (index, blob) in self.blobs.iter().enumerate() {
            if self.blobs[..index].iter().any(|other| other.name == blob.name) {
                findings.push(format!("{} is listed twice", blob.name));
            }
            for (field, sum) in [("sha256", &blob.sha256), ("packed_sha256", &blob.packed_sha256)] {
                if !is_sha256(sum) {
                    findings.push(format!("{}: {field} {sum:?} is not a SHA-256", blob.name));
                }
            }
            if blob.mode().is_none() {
                findings.push(format!("{}: mode {:?} is not octal", blob.name, blob.mode));
            }
        }
        findings
    }
}

impl Blob {
    /// The permission bits as a number; `None` when they are not octal.
    pub fn mode(&self) -> Option<u32> {
        u32::from_str_radix(&self.mode, 8).ok().filter(|mode| *mode <= 0o7777)
    }
}

/// 64 lower-case hexadecimal digits. Blob names become file names, so nothing else may pass.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}
