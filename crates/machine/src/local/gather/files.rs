//! Files, certificates and keys a query names.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use quorate_facts::{CertificateFacts, FileFacts, FileKind, KeyFacts};

use super::super::{Session, absolute, files, owners::Owners};
use crate::{certificates, error::RemoteError, proto::GatherQuery};

#[derive(Default)]
pub(super) struct Found {
    pub(super) files: BTreeMap<String, FileFacts>,
    pub(super) certificates: BTreeMap<String, CertificateFacts>,
    pub(super) keys: BTreeMap<String, KeyFacts>,
    pub(super) problems: Vec<String>,
}

/// Certificates and keys are a few KiB; what is longer is neither.
const LONGEST_PEM: u64 = 256 << 10;

pub(super) fn walk(session: &Session, query: &GatherQuery) -> Result<Found, RemoteError> {
    let owners = Owners::load();
    let mut found = Found::default();
    let mut single: Vec<(PathBuf, bool)> = Vec::new();
    for path in &query.paths {
        single.push((absolute(path)?.to_owned(), false));
    }
    for (roots, text) in [(&query.roots, false), (&query.text_roots, true)] {
        for root in roots {
            let root = absolute(root)?;
            single.extend(below(root, &mut found.problems).into_iter().map(|path| (path, text)));
        }
    }
    for (path, text) in single {
        let name = path.to_string_lossy().into_owned();
        match facts(session, &owners, &path, text) {
            // A root given twice: the one that asks for text wins.
            Ok(facts) if !text && found.files.get(&name).is_some_and(|known| known.text.is_some()) => drop(facts),
            Ok(facts) => drop(found.files.insert(name, facts)),
            Err(error) => found.problems.push(error.message),
        }
    }

    for place in &query.certificates {
        let place = absolute(place)?;
        for path in below(place, &mut found.problems)
            .into_iter()
            .filter(|path| path.is_file())
        {
            let name = path.to_string_lossy().into_owned();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("key") => drop(found.keys.insert(name, key(&path))),
                extension if path == place || matches!(extension, Some("crt" | "pem")) => {
                    found
                        .certificates
                        .extend(certificate(&path).map(|certificate| (name, certificate)));
                }
                _ => {}
            }
        }
    }
    for path in &query.keys {
        if absolute(path)?.is_file() {
            found.keys.insert(path.clone(), key(Path::new(path)));
        }
    }
    Ok(found)
}

fn facts(session: &Session, owners: &Owners, path: &Path, text: bool) -> Result<FileFacts, RemoteError> {
    let small_enough = path
        .symlink_metadata()
        .is_ok_and(|found| found.len() <= GatherQuery::MAX_HASHED);
    let mut facts = files::facts(path, owners, small_enough.then_some(&session.hashes))?;
    if text && facts.kind == FileKind::File && facts.size <= GatherQuery::MAX_TEXT {
        facts.text = fs::read(path).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    }
    Ok(facts)
}

/// The path itself and, if it is a directory, everything in it, without following links and without what is being
/// written. An absent path is listed, to be reported as absent.
fn below(root: &Path, problems: &mut Vec<String>) -> Vec<PathBuf> {
    let mut paths = vec![root.to_owned()];
    let mut next = 0;
    while let Some(path) = paths.get(next).cloned() {
        next += 1;
        if !path.symlink_metadata().is_ok_and(|found| found.is_dir()) {
            continue;
        }
        match fs::read_dir(&path) {
            Ok(entries) => paths.extend(
                entries
                    .flatten()
                    .map(|entry| entry.path())
                    .filter(|path| !path.to_string_lossy().ends_with(files::TEMPORARY_SUFFIX)),
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => problems.push(format!("{}: {error}", path.display())),
        }
        if paths.len() > GatherQuery::MAX_WALKED {
            problems.push(format!(
                "{}: more than {} files, the rest was not looked at",
                root.display(),
                GatherQuery::MAX_WALKED
            ));
            paths.truncate(GatherQuery::MAX_WALKED);
            break;
        }
    }
    paths
}

fn certificate(path: &Path) -> Option<CertificateFacts> {
    match pem(path) {
        Ok(text) => certificates::certificate(&text),
        Err(error) => Some(CertificateFacts {
            error: Some(error),
            ..CertificateFacts::default()
        }),
    }
}

fn key(path: &Path) -> KeyFacts {
    pem(path).map_or_else(
        |error| KeyFacts {
            error: Some(error),
            ..KeyFacts::default()
        },
        |pem| certificates::key(&pem),
    )
}

fn pem(path: &Path) -> Result<String, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > LONGEST_PEM {
        return Err(format!("{length} bytes are too many for a PEM file"));
    }
    fs::read_to_string(path).map_err(|error| error.to_string())
}
