//! A bundle as a run sees it: what it offers the plan, and where each packed blob lies.

use std::collections::BTreeMap;
use std::path::PathBuf;

use quorate_bundle::{BlobKind, Bundle};
use quorate_facts::{BundleFacts, BundleItem, ItemKind};
use quorate_machine::proto::PackedBlob;

/// Blobs by SHA-256 of their content, with the local file of the packed form.
#[derive(Clone, Debug, Default)]
pub struct Catalogue {
    pub facts: BundleFacts,
    pub blobs: BTreeMap<String, (PackedBlob, PathBuf)>,
}

impl From<&Bundle> for Catalogue {
    fn from(bundle: &Bundle) -> Self {
        let manifest = bundle.manifest();
        let mut catalogue = Self {
            facts: BundleFacts {
                kubernetes: manifest.kubernetes.clone(),
                items: BTreeMap::new(),
            },
            blobs: BTreeMap::new(),
        };
        for blob in &manifest.blobs {
            let (kind, name) = match blob.kind {
                BlobKind::Binary => (ItemKind::Binary, blob.name.clone()),
                BlobKind::Image => (ItemKind::Image, format!("image:{}", blob.name)),
                BlobKind::File => (ItemKind::File, blob.name.clone()),
            };
            let item = BundleItem {
                name: name.clone(),
                kind,
                version: blob.version.clone(),
                sha256: blob.sha256.clone(),
                size: blob.size,
                packed_size: blob.packed_size,
            };
            catalogue.facts.items.insert(name, item);
            let packed = PackedBlob {
                sha256: blob.sha256.clone(),
                size: blob.size,
                packed_sha256: blob.packed_sha256.clone(),
                packed_size: blob.packed_size,
            };
            catalogue
                .blobs
                .insert(blob.sha256.clone(), (packed, bundle.blob_path(&blob.sha256)));
        }
        catalogue
    }
}
