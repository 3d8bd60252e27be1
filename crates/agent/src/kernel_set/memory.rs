//! What an agent has put into the kernel, where it outlives the process: kept by name in the state folder, so that a process
//! that is no longer asked for it knows what to take away, and that it was not somebody else's.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// A predecessor that hands over puts back what is missing until it has ended. After this it has.
const SETTLED: Duration = Duration::from_secs(120);

/// Names of one kind, a line each.
#[derive(Debug)]
pub(super) struct Memory {
    file: PathBuf,
    names: BTreeSet<String>,
    /// The file has other names, or could not be read.
    differs: Option<String>,
    configured: Instant,
    settled: bool,
}

impl Memory {
    pub(super) fn load(file: PathBuf) -> Self {
        let (text, differs) = match fs::read_to_string(&file) {
            Ok(text) => (text, None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (String::new(), None),
            Err(error) => (String::new(), Some(error.to_string())),
        };
        Self {
            names: text.lines().map(str::to_owned).collect(),
            file,
            differs,
            configured: Instant::now(),
            settled: false,
        }
    }

    /// A new configuration is in force from now on.
    pub(super) fn look_again(&mut self) {
        self.configured = Instant::now();
        self.settled = false;
    }

    /// To be called before any of `wanted` is put into the kernel.
    ///
    /// # Errors
    /// The file cannot be written; tried again with the next call.
    pub(super) fn keep(&mut self, wanted: &BTreeSet<String>) -> Result<(), String> {
        let known = self.names.len();
        self.names.extend(wanted.iter().cloned());
        self.write(known != self.names.len())
    }

    /// What is to be taken away.
    pub(super) fn left_over(&self, wanted: &BTreeSet<String>) -> Vec<String> {
        self.names.difference(wanted).cloned().collect()
    }

    /// To be called when all that is left over has been looked for. `gone`: what is certainly not there.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn settle(&mut self, gone: &[String]) -> Result<(), String> {
        self.settled |= self.configured.elapsed() >= SETTLED;
        if !self.settled {
            return Ok(());
        }
        let known = self.names.len();
        self.names.retain(|name| !gone.contains(name));
        self.write(known != self.names.len())
    }

    /// There is nothing, or nothing comes back any more.
    pub(super) fn is_settled(&self) -> bool {
        self.settled || self.names.is_empty()
    }

    fn write(&mut self, changed: bool) -> Result<(), String> {
        if !changed && self.differs.is_none() {
            return Ok(());
        }
        let outcome = self.replace();
        self.differs = outcome.err().map(|error| error.to_string());
        match &self.differs {
            None => Ok(()),
            Some(error) => Err(format!(
                "{}: {error}; what this agent puts into the kernel may stay when it is no longer configured. Make the folder \
                 writable, or name another one as `state`",
                self.file.display()
            )),
        }
    }

    fn replace(&self) -> io::Result<()> {
        if let Some(folder) = self.file.parent() {
            fs::create_dir_all(folder)?;
        }
        let aside = self.file.with_extension("tmp");
        let text: String = self.names.iter().map(|name| format!("{name}\n")).collect();
        fs::write(&aside, text)?;
        fs::rename(&aside, &self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_a_process_before_put_there_is_known_until_it_is_certainly_gone() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("state/ebpf");
        let mut first = Memory::load(file.clone());
        assert_eq!(first.left_over(&names(&[])), [""; 0], "nothing was ever made");
        first.keep(&names(&["/a"])).unwrap();
        first.keep(&names(&["/b"])).unwrap();

        let mut next = Memory::load(file.clone());
        next.keep(&names(&["/b"])).unwrap();
        assert_eq!(next.left_over(&names(&["/b"])), ["/a"]);
        next.settle(&["/a".to_owned()]).unwrap();
        assert!(!next.is_settled());
        assert_eq!(next.left_over(&names(&["/b"])), ["/a"], "it may come back");
        next.configured -= SETTLED;
        next.settle(&[]).unwrap();
        assert_eq!(next.left_over(&names(&["/b"])), ["/a"], "it is still there");
        next.settle(&["/a".to_owned()]).unwrap();
        assert_eq!(Memory::load(file).left_over(&names(&[])), ["/b"]);

        assert!(next.is_settled());
        next.look_again();
        assert!(!next.is_settled());
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_until_it_can() {
        let directory = tempfile::tempdir().unwrap();
        let folder = directory.path().join("state");
        fs::write(&folder, "").unwrap();
        let mut memory = Memory::load(folder.join("ebpf"));
        for _ in 0..2 {
            assert!(memory.keep(&names(&["/a"])).unwrap_err().contains("`state`"));
        }
        assert_eq!(memory.left_over(&names(&[])), ["/a"], "known all the same");
        fs::remove_file(&folder).unwrap();
        memory.keep(&names(&["/a"])).unwrap();
        assert_eq!(Memory::load(folder.join("ebpf")).left_over(&names(&[])), ["/a"]);
    }
}
