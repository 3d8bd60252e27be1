//! The boot id of this machine's virtual routers, kept between their starts: see [`next_boot`].

use std::fs;
use std::io;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use quorate_lb::vrrp::next_boot;

/// In the state folder: the last id, in decimal.
const FILE: &str = "boot";

/// The id of a start that happens now. Where none can be kept, the clock alone has to do.
pub(crate) fn next(folder: &Path) -> u64 {
    let (boot, kept) = next_after(folder, now());
    if let Err(error) = kept {
        tracing::warn!(
            "VRRP's boot id cannot be kept in {}: {error}; should this machine's clock ever be set back, its peers will not \
             hear it after a restart. Make the folder writable, or name another one as `state`",
            folder.display()
        );
    }
    boot
}

/// Unix time in milliseconds.
pub(crate) fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

fn next_after(folder: &Path, now: u64) -> (u64, io::Result<()>) {
    let last = last(&folder.join(FILE));
    let boot = next_boot(*last.as_ref().unwrap_or(&None), now);
    // Written even over what could not be read, so that the next start has something to go by.
    let written = write(folder, boot);
    (boot, last.map(drop).and(written))
}

fn last(file: &Path) -> io::Result<Option<u64>> {
    let text = match fs::read_to_string(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let number = text.trim().parse();
    let number = number.map_err(|_| io::Error::other(format!("{} holds no number", file.display())))?;
    Ok(Some(number))
}

/// Not synchronised: a start must not wait for a slow disk, and the kernel writes it within half a minute.
fn write(folder: &Path, boot: u64) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let aside = folder.join(format!("{FILE}.tmp"));
    fs::write(&aside, format!("{boot}\n"))?;
    fs::rename(&aside, folder.join(FILE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_with_an_older_clock_has_a_higher_boot_id() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("state");
        let next = |now: u64| {
            let (boot, kept) = next_after(&folder, now);
            kept.unwrap();
            boot
        };
        assert_eq!(
            [1_000, 2_000, 500, 500, 3_000].map(next),
            [1_000, 2_000, 2_001, 2_002, 3_000]
        );
    }

    #[test]
    fn what_cannot_be_kept_or_read_leaves_the_clock() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        fs::write(&file, "").unwrap();
        let (boot, kept) = next_after(&file, 7);
        assert!(boot == 7 && kept.is_err());

        fs::write(directory.path().join(FILE), "torn").unwrap();
        let (boot, kept) = next_after(directory.path(), 7);
        assert_eq!(boot, 7);
        assert!(kept.unwrap_err().to_string().contains("holds no number"));
        assert_eq!(next_after(directory.path(), 3).0, 8, "mended by the start before");
    }
}
