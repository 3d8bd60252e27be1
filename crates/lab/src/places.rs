//! Where labs are kept and how one is found by name.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::lock::Lock;
use crate::{Error, Result};

/// Every lab that is up, whoever's home it is kept in: names belong to the computer, as its namespaces do.
const REGISTRY: &str = "/run/quorate/labs";

/// Where a lab of this name is, or would be made.
pub(crate) fn state_dir(lab: &str) -> PathBuf {
    fs::read_link(registered(lab)).unwrap_or_else(|_| labs_home().join(lab))
}

pub(crate) fn cache_dir() -> PathBuf {
    xdg("XDG_CACHE_HOME", ".cache").join("quorate/lab-root")
}

pub(crate) fn lock(lab: &str) -> Result<Lock> {
    Lock::take(&Path::new(REGISTRY).join(format!(".{lab}.lock")))
}

/// With the lab's lock held, which keeps the directory from going away.
pub(crate) fn register(lab: &str, state_dir: &Path) -> Result<()> {
    let link = registered(lab);
    if fs::read_link(&link).is_ok_and(|to| to == state_dir) {
        return Ok(());
    }
    crate::root::remove_file(&link)?;
    symlink(state_dir, &link).map_err(Error::file("making", link))
}

pub(crate) fn forget(lab: &str) -> Result<()> {
    crate::root::remove_file(&registered(lab))
}

/// Directories that held nothing but what was removed; called with no lock held.
pub(crate) fn tidy() {
    for dir in [PathBuf::from(REGISTRY), "/run/quorate".into(), labs_home()] {
        // Anything in use is not empty, and stays.
        let _ = fs::remove_dir(dir);
    }
}

/// Names of all labs, up or only kept from before a reboot.
pub(crate) fn names() -> Vec<String> {
    let names: BTreeSet<String> = [PathBuf::from(REGISTRY), labs_home()]
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| crate::check_name(name).is_ok())
        .collect();
    names.into_iter().collect()
}

fn registered(lab: &str) -> PathBuf {
    Path::new(REGISTRY).join(lab)
}

fn labs_home() -> PathBuf {
    xdg("XDG_STATE_HOME", ".local/state").join("quorate/labs")
}

/// An XDG variable, or its default below the home directory. A relative value is to be ignored (XDG Base Directory
/// Specification).
fn xdg(variable: &str, default: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| std::env::home_dir().unwrap_or_else(|| "/root".into()).join(default))
}
