//! Reading the one-file form of a bundle.
use std::{
    fs::File,
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use crate::{
    bundle::{BLOBS, MANIFEST, parse_manifest},
    error::{Error, Result, io_error},
    manifest::Manifest,
};

/// No manifest comes near it; a damaged archive cannot make us read on and on.
const MANIFEST_LIMIT: u64 = 16 << 20;

/// An archive whose manifest has been read.
pub(crate) struct Archive {
    path: PathBuf,
    pub(crate) manifest: Manifest,
    pub(crate) manifest_text: Vec<u8>,
}

impl Archive {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let not = |reason: String| Error::NotABundle {
            path: path.to_owned(),
            reason,
        };
        let read = || -> io::Result<Option<Vec<u8>>> {
            let mut tar = tar::Archive::new(zstd::stream::Decoder::new(File::open(path)?)?);
            let Some(first) = tar.entries()?.next() else {
                return Ok(None);
            };
            let first = first?;
            if first.path()? != Path::new(MANIFEST) {
                return Ok(None);
            }
            let mut text = Vec::new();
            first.take(MANIFEST_LIMIT).read_to_end(&mut text)?;
            Ok(Some(text))
        };
        let manifest_text = read()
            .map_err(|error| not(format!("not a readable .tar.zst file: {error}")))?
            .ok_or_else(|| not(format!("its first entry is not {MANIFEST}")))?;
        let manifest = parse_manifest(&manifest_text).map_err(not)?;
        Ok(Self {
            path: path.to_owned(),
            manifest,
            manifest_text,
        })
    }

    /// Calls `each` with the name and the packed content of every blob in the archive's order.
    pub(crate) fn for_each_blob(&mut self, mut each: impl FnMut(&str, &mut dyn Read) -> io::Result<()>) -> Result<()> {
        let mut read = || -> io::Result<()> {
            let input = BufReader::with_capacity(1 << 20, File::open(&self.path)?);
            let mut tar = tar::Archive::new(zstd::stream::Decoder::with_buffer(input)?);
            for entry in tar.entries()?.skip(1) {
                let mut entry = entry?;
                if entry.header().entry_type().is_dir() {
                    continue;
                }
                let path = entry.path()?.into_owned();
                let name = path
                    .strip_prefix(BLOBS)
                    .ok()
                    .and_then(Path::to_str)
                    .unwrap_or_default()
                    .to_owned();
                if !crate::manifest::is_sha256(&name) {
                    return Err(io::Error::other(format!("unexpected entry {}", path.display())));
                }
                each(&name, &mut entry)?;
            }
            Ok(())
        };
        read().map_err(io_error("read", &self.path))
    }
}
