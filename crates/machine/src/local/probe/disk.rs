//! How long a small write takes until it is on disk, measured as etcd's guide measures it: 2300 bytes and an fdatasync,
//! over and over (etcd.io, "Hardware recommendations"; fio with `--fdatasync=1 --bs=2300`).

use std::{
    fs,
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use quorate_facts::DiskLatency;

use crate::error::RemoteError;
use crate::local::absolute;

/// An entry of etcd's log.
const BLOCK: usize = 2_300;

pub(super) fn measure(path: &str, writes: u32, limit: Duration) -> Result<DiskLatency, RemoteError> {
    let above = absolute(path)?
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"));
    let file = Scratch(above.join(format!(".quorate-disk-{}", std::process::id())));
    let io = |error: std::io::Error| RemoteError::io(file.0.display(), &error);
    let mut handle = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&file.0)
        .map_err(io)?;
    let block = [0x51; BLOCK];
    let started = Instant::now();
    let mut took = Vec::new();
    while (took.len() as u32) < writes && (took.is_empty() || started.elapsed() < limit) {
        let before = Instant::now();
        handle.write_all(&block).and_then(|()| handle.sync_data()).map_err(io)?;
        took.push(before.elapsed().as_micros() as u32);
    }
    took.sort_unstable();
    let at = |percent: usize| {
        took.get((took.len() * percent).div_ceil(100).saturating_sub(1))
            .copied()
    };
    Ok(DiskLatency {
        writes: took.len() as u32,
        p50_us: at(50).unwrap_or(0),
        p99_us: at(99).unwrap_or(0),
        max_us: took.last().copied().unwrap_or(0),
    })
}

/// Gone however the measurement ends.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_measured_and_left_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("not/yet/there");
        let found = measure(path.to_str().unwrap(), 5, Duration::from_secs(5)).unwrap();
        assert!(found.writes == 5 && found.p50_us <= found.p99_us && found.p99_us <= found.max_us);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
