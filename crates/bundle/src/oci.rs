//! Writes container images: an OCI image layout (image-spec v1.1, "Image Layout") in one tar file, for
//! `ctr --namespace k8s.io images import`.
//!
//! Deterministic: entries are sorted, times are zero, owners are root. The one layer is zstd-compressed (image-spec v1.1,
//! "+zstd Media Types"): a machine writes an archive's content three times, to its blob store, to containerd's content
//! store (and waits for the disk there), and unpacked; only the last must have its full size.
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use crate::{
    error::{Error, Result, io_error},
    pack::{self, Hashing, sum},
};

/// What [`write`] puts into an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Image {
    /// The first is the image's name, the others are further references of it.
    pub(crate) references: Vec<String>,
    pub(crate) architecture: String,
    pub(crate) version: String,
    pub(crate) licence: String,
    pub(crate) entrypoint: Vec<String>,
    /// Absolute path in the image → what is there. Parent directories need not be listed.
    pub(crate) entries: BTreeMap<String, Entry>,
}

/// One file of an image's layer.
#[derive(Clone, Debug)]
pub(crate) enum Entry {
    File { source: PathBuf, mode: u32 },
    Text { content: String, mode: u32 },
    Symlink { target: String },
    Directory { mode: u32 },
}

/// Debian's and Docker's; static Pods name programs without their directory.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";

/// Writes `image` to the file `output`; the layer is kept in a temporary file next to it meanwhile.
pub(crate) fn write(image: &Image, output: &Path) -> Result<()> {
    let name = image.references.first().cloned().unwrap_or_default();
    let directory = output.parent().unwrap_or(Path::new("."));
    let layer = tempfile::NamedTempFile::new_in(directory).map_err(io_error("create a file in", directory))?;
    let fail = |reason: io::Error| Error::Image {
        image: name.clone(),
        reason: reason.to_string(),
    };
    let Layer {
        content_sum,
        sum: layer_sum,
        size: layer_size,
    } = write_layer(&image.entries, layer.as_file()).map_err(fail)?;

    let config = bytes(&json!({
        "architecture": image.architecture,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {"Entrypoint": image.entrypoint, "Env": [PATH], "WorkingDir": "/"},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{content_sum}")]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "quorate bundle build"}],
    }));
    let manifest = bytes(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": descriptor(CONFIG_TYPE, &sum(&config), config.len() as u64),
        "layers": [descriptor(LAYER_TYPE, &layer_sum, layer_size)],
        "annotations": {
            "org.opencontainers.image.version": image.version,
            "org.opencontainers.image.licenses": image.licence,
        },
    }));
    let descriptors: Vec<Value> = image
        .references
        .iter()
        .map(|reference| {
            let mut one = descriptor(MANIFEST_TYPE, &sum(&manifest), manifest.len() as u64);
            one["platform"] = json!({"architecture": image.architecture, "os": "linux"});
            one["annotations"] = json!({
                "io.containerd.image.name": reference,
                "org.opencontainers.image.ref.name": tag(reference),
            });
            one
        })
        .collect();
    let index = bytes(&json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": descriptors}));

    let mut blobs = BTreeMap::from([(sum(&config), config), (sum(&manifest), manifest)]);
    blobs.retain(|digest, _| *digest != layer_sum);
    let file = File::create(output).map_err(io_error("create", output))?;
    let assemble = || -> io::Result<()> {
        let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
        append(&mut tar, "oci-layout", &bytes(&json!({"imageLayoutVersion": "1.0.0"})))?;
        append(&mut tar, "index.json", &index)?;
        append_directory(&mut tar, "blobs/", 0o755)?;
        append_directory(&mut tar, "blobs/sha256/", 0o755)?;
        for (digest, content) in &blobs {
            append(&mut tar, &format!("blobs/sha256/{digest}"), content)?;
        }
        let mut head = header(tar::EntryType::Regular, 0o644, layer_size);
        tar.append_data(
            &mut head,
            format!("blobs/sha256/{layer_sum}"),
            File::open(layer.path())?,
        )?;
        tar.into_inner()?.flush()
    };
    assemble().map_err(fail)
}

struct Layer {
    /// SHA-256 of the tar file itself.
    content_sum: String,
    /// SHA-256 and size of its compressed form.
    sum: String,
    size: u64,
}

fn write_layer(entries: &BTreeMap<String, Entry>, output: &File) -> io::Result<Layer> {
    let mut encoder = zstd::stream::Encoder::new(Hashing::new(output), pack::LEVEL)?;
    encoder.include_checksum(false)?; // SHA-256 covers it
    let mut tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, Hashing::new(encoder)));
    for (path, entry) in &with_parents(entries) {
        let path = path.trim_start_matches('/');
        match entry {
            Entry::File { source, mode } => {
                let file = File::open(source)
                    .map_err(|error| io::Error::new(error.kind(), format!("open {}: {error}", source.display())))?;
                let mut head = header(tar::EntryType::Regular, *mode, file.metadata()?.len());
                tar.append_data(&mut head, path, file)?;
            }
            Entry::Text { content, mode } => {
                let mut head = header(tar::EntryType::Regular, *mode, content.len() as u64);
                tar.append_data(&mut head, path, content.as_bytes())?;
            }
            Entry::Symlink { target } => {
                let mut head = header(tar::EntryType::Symlink, 0o777, 0);
                tar.append_link(&mut head, path, target)?;
            }
            Entry::Directory { mode } => append_directory(&mut tar, &format!("{path}/"), *mode)?,
        }
    }
    let content = tar.into_inner()?.into_inner().map_err(io::IntoInnerError::into_error)?;
    let (encoder, content_sum, _) = content.finish();
    let (_, sum, size) = encoder.finish()?.finish();
    Ok(Layer { content_sum, sum, size })
}

/// Adds the directories above each entry. A parent sorts before its children.
fn with_parents(entries: &BTreeMap<String, Entry>) -> BTreeMap<String, Entry> {
    let mut all = entries.clone();
    for path in entries.keys() {
        let mut path = path.as_str();
        while let Some((parent, _)) = path.rsplit_once('/')
            && !parent.is_empty()
        {
            all.entry(parent.to_owned()).or_insert(Entry::Directory { mode: 0o755 });
            path = parent;
        }
    }
    all
}

fn append(tar: &mut tar::Builder<impl Write>, path: &str, content: &[u8]) -> io::Result<()> {
    let mut head = header(tar::EntryType::Regular, 0o644, content.len() as u64);
    tar.append_data(&mut head, path, content)
}

fn append_directory(tar: &mut tar::Builder<impl Write>, path: &str, mode: u32) -> io::Result<()> {
    let mut head = header(tar::EntryType::Directory, mode, 0);
    tar.append_data(&mut head, path, io::empty())
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

fn descriptor(media_type: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": size})
}

/// `serde_json` keeps object keys sorted, so the same image has the same bytes.
fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

/// The tag of a reference: what follows the last colon after the last slash.
pub(crate) fn tag(reference: &str) -> &str {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    name.split_once(':').map_or("latest", |(_, tag)| tag)
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read};

    use super::*;

    fn image(directory: &Path) -> Image {
        let source = directory.join("program");
        fs::write(&source, "ELF").unwrap();
        Image {
            references: vec![
                "registry.k8s.io/etcd:3.6.16-0".into(),
                "registry.k8s.io/etcd:3.6.8-0".into(),
            ],
            architecture: "amd64".into(),
            version: "v3.6.16".into(),
            licence: "Apache-2.0".into(),
            entrypoint: vec!["etcd".into()],
            entries: BTreeMap::from([
                ("/usr/local/bin/etcd".into(), Entry::File { source, mode: 0o755 }),
                (
                    "/etc/passwd".into(),
                    Entry::Text {
                        content: "root:x:0:0\n".into(),
                        mode: 0o644,
                    },
                ),
                (
                    "/bin".into(),
                    Entry::Symlink {
                        target: "usr/bin".into(),
                    },
                ),
                ("/tmp".into(), Entry::Directory { mode: 0o1777 }),
            ]),
        }
    }

    fn files(tar: &[u8]) -> BTreeMap<String, Vec<u8>> {
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().to_string_lossy().into_owned(), content);
        }
        files
    }

    #[test]
    fn every_digest_leads_to_its_content() {
        let directory = tempfile::tempdir().unwrap();
        let output = directory.path().join("image.tar");
        write(&image(directory.path()), &output).unwrap();
        let files = files(&fs::read(&output).unwrap());
        assert_eq!(files["oci-layout"], br#"{"imageLayoutVersion":"1.0.0"}"#);
        for (path, content) in &files {
            if let Some(digest) = path.strip_prefix("blobs/sha256/").filter(|digest| !digest.is_empty()) {
                assert_eq!(digest, sum(content));
            }
        }
        let blob = |descriptor: &Value| -> &Vec<u8> {
            let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let content = &files[&format!("blobs/sha256/{digest}")];
            assert_eq!(descriptor["size"], content.len());
            content
        };
        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        assert_eq!(
            index["manifests"][1]["annotations"]["io.containerd.image.name"],
            "registry.k8s.io/etcd:3.6.8-0"
        );
        assert_eq!(
            index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"],
            "3.6.16-0"
        );
        let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])).unwrap();
        let config: Value = serde_json::from_slice(blob(&manifest["config"])).unwrap();
        let layer = blob(&manifest["layers"][0]);
        let layer = zstd::decode_all(&layer[..]).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"][0], format!("sha256:{}", sum(&layer)));
        let names: Vec<_> = tar::Archive::new(&layer[..])
            .entries()
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                format!(
                    "{} {:o}",
                    entry.path().unwrap().display(),
                    entry.header().mode().unwrap()
                )
            })
            .collect();
        assert_eq!(
            names,
            [
                "bin 777",
                "etc/ 755",
                "etc/passwd 644",
                "tmp/ 1777",
                "usr/ 755",
                "usr/local/ 755",
                "usr/local/bin/ 755",
                "usr/local/bin/etcd 755",
            ]
        );
    }

    #[test]
    fn the_same_image_has_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (directory.path().join("one"), directory.path().join("two"));
        write(&image(directory.path()), &one).unwrap();
        write(&image(directory.path()), &two).unwrap();
        assert_eq!(fs::read(one).unwrap(), fs::read(two).unwrap());
    }

    #[test]
    fn tags() {
        assert_eq!(tag("registry.k8s.io/etcd:3.6.8-0"), "3.6.8-0");
        assert_eq!(tag("localhost:5000/x"), "latest");
    }
}
