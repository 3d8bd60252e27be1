//! Components from official releases.
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use crate::{
    Event,
    error::{Error, Result, io_error},
    fetch::{Client, find_sum},
    manifest::BlobKind,
    recipe::{Component, Download},
    unit::{Product, Unit, UnitCache},
};

/// The component from the cache, or downloaded now.
pub(crate) fn build(
    component: &Component,
    arch: &str,
    client: &Client,
    cache: &UnitCache,
    progress: &mut dyn FnMut(Event),
) -> Result<Unit> {
    let downloads: Vec<Download> = component
        .downloads
        .iter()
        .map(|download| download.resolved(&component.version, arch))
        .collect();
    let without = component.binaries.iter().find(|binary| {
        !downloads
            .iter()
            .any(|download| download.take.contains_key(&binary.name))
    });
    if let Some(binary) = without {
        return Err(Error::Recipe {
            name: component.name.clone(),
            reason: format!("no download has {}; use --from source or --from DIRECTORY", binary.name),
        });
    }
    let hash = UnitCache::hash(&(
        "upstream",
        &component.name,
        &component.version,
        &component.binaries,
        &downloads,
        arch,
    ))?;
    cache.get_or_make(&component.name, &hash, |work| {
        let mut found = BTreeMap::new();
        let mut done = Vec::new();
        for download in &downloads {
            let expected = expected_sum(&component.name, download, arch, client, progress)?;
            let (file, sum) = client.file(&component.name, &download.url, expected.as_deref(), progress)?;
            if expected.is_none() {
                let text = format!("{} has no published checksum; its SHA-256 is {sum}", download.url);
                progress(Event::Note {
                    unit: component.name.clone(),
                    text,
                });
            }
            for (name, path) in take(download, &file, work)? {
                found.insert(name, (path, format!("{} sha256:{sum}", download.url)));
            }
            done.push(file);
        }
        let products = component
            .binaries
            .iter()
            .filter_map(|binary| {
                let (file, origin) = found.remove(&binary.name)?;
                Some(Product {
                    file,
                    name: binary.name.clone(),
                    kind: BlobKind::Binary,
                    version: component.version.clone(),
                    origin,
                    licence: component.licence.clone(),
                    path: Some(binary.install_path()),
                    mode: "0755",
                    also: Vec::new(),
                })
            })
            .collect();
        for file in done {
            fs::remove_file(&file).map_err(io_error("remove", file))?;
        }
        Ok(products)
    })
}

/// The pinned sum, or the published one. Without either, only an authenticated transfer is acceptable.
fn expected_sum(
    unit: &str,
    download: &Download,
    arch: &str,
    client: &Client,
    progress: &mut dyn FnMut(Event),
) -> Result<Option<String>> {
    if let Some(pinned) = download.pinned.get(arch) {
        return Ok(Some(pinned.clone()));
    }
    let url = client.effective(&download.url);
    let Some(sums) = &download.sums else {
        if url.starts_with("https://") {
            return Ok(None);
        }
        let reason = "no checksum is pinned or published, and the transfer is not https; \
                      add its SHA-256 as `pinned` to the recipe and use --sources";
        return Err(Error::Download {
            url,
            reason: reason.into(),
            attempts: 1,
        });
    };
    let text = client.text(unit, sums, progress)?;
    let file = download.url.rsplit('/').next().unwrap_or_default();
    let sum = find_sum(&text, file).ok_or_else(|| Error::Download {
        url: client.effective(sums),
        reason: format!("it has no SHA-256 of {file}"),
        attempts: 1,
    })?;
    Ok(Some(sum))
}

/// Puts the wanted files of an artefact into `work`; lists all that are not in it.
fn take(download: &Download, artefact: &Path, work: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut taken = BTreeMap::new();
    let mut wanted: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, path) in &download.take {
        if path.is_empty() {
            let place = work.join(name);
            fs::copy(artefact, &place).map_err(io_error("copy to", &place))?;
            taken.insert(name.clone(), place);
        } else {
            wanted.insert(path, name);
        }
    }
    if wanted.is_empty() {
        return Ok(taken);
    }
    let mut read = || -> io::Result<()> {
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(File::open(artefact)?));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
            let Some(name) = wanted.remove(path.as_str()) else {
                continue;
            };
            if !entry.header().entry_type().is_file() {
                return Err(io::Error::other(format!("{path} is not a regular file")));
            }
            let place = work.join(name);
            io::copy(&mut entry, &mut File::create(&place)?)?;
            taken.insert(name.to_owned(), place);
            if wanted.is_empty() {
                break;
            }
        }
        Ok(())
    };
    read().map_err(io_error("unpack", artefact))?;
    if wanted.is_empty() {
        return Ok(taken);
    }
    let missing: Vec<&str> = wanted.into_keys().collect();
    Err(Error::Download {
        url: download.url.clone(),
        reason: format!("the archive does not have {}", missing.join(", ")),
        attempts: 1,
    })
}
