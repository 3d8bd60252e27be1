//! Programs of the building machine's Debian packages for images that need them: nft and iptables for kube-proxy and
//! flannel, the CA certificates. Files come from `dpkg-query --listfiles`, shared libraries from `ldd`.
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::Read,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    error::{Result, io_error},
    oci::Entry,
    pack,
};

/// What the packages add to an image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Userland {
    /// `name version` of each package whose files were taken.
    pub(crate) packages: Vec<String>,
    pub(crate) entries: BTreeMap<String, Entry>,
    /// Path in the image → SHA-256 or link target: the content for the build cache's hash.
    pub(crate) sums: BTreeMap<String, String>,
    pub(crate) notes: Vec<String>,
}

/// Directories that no program needs at run time.
const LEFT_OUT: &[&str] = &[
    "/usr/share/",
    "/var/",
    "/lib/systemd/",
    "/usr/lib/systemd/",
    "/etc/",
    "/usr/include/",
];

/// Debian's update-alternatives makes these; packages do not contain them. iptables-nft, because it shares the kernel's
/// rules with nft.
const IPTABLES_LINKS: &[&str] = &[
    "iptables",
    "iptables-save",
    "iptables-restore",
    "ip6tables",
    "ip6tables-save",
    "ip6tables-restore",
];

/// Generated from the package ca-certificates by its installation.
const CA_CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Collects packages, each once per build: `ldd` over iptables' hundred plugins takes most of a second.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    known: BTreeMap<String, Userland>,
}

impl Collector {
    /// The files of `packages` and the libraries they need. What is not installed becomes a note.
    pub(crate) fn collect(&mut self, packages: &[String]) -> Result<Userland> {
        let mut all = Userland::default();
        for package in packages {
            let one = match self.known.get(package) {
                Some(one) => one.clone(),
                None => collect(package)?,
            };
            self.known.insert(package.clone(), one.clone());
            all.packages.extend(one.packages);
            all.entries.extend(one.entries);
            all.sums.extend(one.sums);
            all.notes.extend(one.notes);
        }
        Ok(all)
    }
}

fn collect(package: &str) -> Result<Userland> {
    let mut userland = Userland::default();
    let Some(version) = query(&["--show", "--showformat=${Version}", package]) else {
        userland.notes.push(format!(
            "the Debian package {package} is not installed here, so the image lacks it: apt-get install {package}"
        ));
        return Ok(userland);
    };
    userland.packages.push(format!("{package} {version}"));
    if package == "ca-certificates" {
        userland.add(Path::new(CA_CERTIFICATES))?;
        return Ok(userland);
    }
    let listed = query(&["--listfiles", package]).unwrap_or_default();
    let mut files: BTreeSet<PathBuf> = listed
        .lines()
        .filter(|path| !LEFT_OUT.iter().any(|left_out| path.starts_with(left_out)))
        .map(Path::new)
        // Followed: /lib and /sbin are links to directories.
        .filter(|path| fs::metadata(path).is_ok_and(|found| !found.is_dir()))
        .map(merged)
        .collect();
    files.extend(libraries(&files));
    for path in files {
        userland.add(&path)?;
    }
    if package == "iptables" {
        for name in IPTABLES_LINKS {
            userland.link(&format!("/usr/sbin/{name}"), "xtables-nft-multi");
        }
    }
    let merged_usr = |name: &&str| fs::read_link(Path::new("/").join(name)).is_ok();
    for name in ["bin", "lib", "lib64", "sbin"].into_iter().filter(merged_usr) {
        userland.link(&format!("/{name}"), &format!("usr/{name}"));
    }
    Ok(userland)
}

impl Userland {
    fn link(&mut self, path: &str, target: &str) {
        self.sums.insert(path.to_owned(), format!("-> {target}"));
        self.entries.insert(
            path.to_owned(),
            Entry::Symlink {
                target: target.to_owned(),
            },
        );
    }

    /// Adds a file, or a link and what it leads to.
    fn add(&mut self, path: &Path) -> Result<()> {
        let name = path.to_string_lossy().into_owned();
        let found = fs::symlink_metadata(path).map_err(io_error("read", path))?;
        if found.is_symlink() {
            let target = fs::canonicalize(path).map_err(io_error("follow the link", path))?;
            // /etc/alternatives is not in the image, so a link leads to the end of the chain.
            self.link(&name, &target.to_string_lossy());
            return if self.entries.contains_key(&*target.to_string_lossy()) {
                Ok(())
            } else {
                self.add(&target)
            };
        }
        let mode = if std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o111 == 0 {
            0o644
        } else {
            0o755
        };
        self.sums
            .insert(name.clone(), format!("{mode:o} {}", pack::sum_file(path)?.0));
        self.entries.insert(
            name,
            Entry::File {
                source: path.to_owned(),
                mode,
            },
        );
        Ok(())
    }
}

/// The shared libraries and the dynamic linker of every ELF file, by `ldd`, which follows the whole closure.
fn libraries(files: &BTreeSet<PathBuf>) -> Vec<PathBuf> {
    let programs: Vec<&PathBuf> = files.iter().filter(|path| is_elf(path)).collect();
    if programs.is_empty() {
        return Vec::new();
    }
    let Ok(output) = Command::new("ldd").args(programs).env("LC_ALL", "C").output() else {
        return Vec::new();
    };
    parse_ldd(&String::from_utf8_lossy(&output.stdout))
        .iter()
        .map(|path| merged(path))
        .collect()
}

/// `libx.so.1 => /lib/libx.so.1 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`; the first line per file ends in a colon.
fn parse_ldd(text: &str) -> BTreeSet<PathBuf> {
    text.lines()
        .filter(|line| line.contains(" (0x"))
        .filter_map(|line| {
            let line = line.trim();
            let found = line.split_once("=> ").map_or(line, |(_, found)| found);
            found
                .split_whitespace()
                .next()
                .filter(|path| path.starts_with('/'))
                .map(PathBuf::from)
        })
        .collect()
}

/// `/lib/x` → `/usr/lib/x` on systems with a merged /usr, where both are the same file.
fn merged(path: &Path) -> PathBuf {
    let Some(top) = path.components().nth(1) else {
        return path.to_owned();
    };
    let top = Path::new("/").join(top);
    match (fs::read_link(&top), path.strip_prefix(&top)) {
        (Ok(target), Ok(rest)) => Path::new("/").join(target).join(rest),
        _ => path.to_owned(),
    }
}

fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    fs::File::open(path)
        .and_then(|mut file| file.read_exact(&mut magic))
        .is_ok()
        && magic == *b"\x7fELF"
}

/// `None` when dpkg-query is not there or does not know the package.
fn query(arguments: &[&str]) -> Option<String> {
    let output = Command::new("dpkg-query")
        .args(arguments)
        .env("LC_ALL", "C")
        .output()
        .ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_output() {
        let text = "/usr/sbin/nft:\n\tlinux-vdso.so.1 (0x00007ffd)\n\tlibnftables.so.1 => /lib/x86_64-linux-gnu/libnftables.so.1 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n/x.so:\n\tstatically linked\n\tlibgone.so => not found\n";
        let found: Vec<_> = parse_ldd(text).into_iter().collect();
        assert_eq!(
            found,
            [
                Path::new("/lib/x86_64-linux-gnu/libnftables.so.1"),
                Path::new("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }

    #[test]
    fn an_absent_package_is_a_note() {
        let userland = Collector::default()
            .collect(&["quorate-no-such-package".into()])
            .unwrap();
        assert!(userland.entries.is_empty() && userland.packages.is_empty());
        assert!(
            userland.notes[0].ends_with("apt-get install quorate-no-such-package"),
            "{:?}",
            userland.notes
        );
    }
}
