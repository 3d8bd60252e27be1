//! One change at a time, across processes: a locked file that disappears with its last holder.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

pub(crate) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits until nobody else holds it. A holder that dies lets go.
    pub(crate) fn take(path: &Path) -> Result<Self> {
        let error = |e| Error::file("locking", path)(e);
        loop {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(error)?;
            }
            let file = match File::options().create(true).truncate(false).write(true).open(path) {
                // Its directory was removed by a lab that went down just now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                file => file.map_err(error)?,
            };
            file.lock().map_err(error)?;
            // The holder before us may have removed the file: then this lock guards nothing.
            let ours = file.metadata().map_err(error)?;
            if fs::metadata(path).is_ok_and(|there| there.ino() == ours.ino() && there.dev() == ours.dev()) {
                return Ok(Self {
                    path: path.into(),
                    _file: file,
                });
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_holder_at_a_time_and_no_file_left() {
        let dir = std::env::temp_dir().join(format!("qt-lab-lock-{}", std::process::id()));
        let path = dir.join("a/b.lock");
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _lock = Lock::take(&path).unwrap();
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!(most.load(Ordering::SeqCst), 1);
        assert!(!path.exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
