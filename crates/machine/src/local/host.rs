//! The host itself: sysctls, modules, mounts, swap, users, interfaces, nftables.

use std::{
    collections::BTreeMap,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    absolute,
    exec::{failure, tool, tool_output},
    owners::Owners,
    procfs,
};
use crate::{
    error::{ErrorKind, RemoteError},
    proto::{Bytes, Item, MountSpec, UserSpec},
};

const TOOL_TIMEOUT_MS: u64 = 30_000;
/// Turning swap off moves what is there back into memory.
const SWAP_TIMEOUT_MS: u64 = 300_000;

/// Each on its own: one the kernel refuses does not keep the others from being set.
pub(super) fn sysctl(values: BTreeMap<String, String>) -> Vec<Item> {
    values
        .into_iter()
        .map(|(name, value)| set_sysctl(name, &value))
        .collect()
}

fn set_sysctl(name: String, value: &str) -> Item {
    let before = read_sysctl(&name);
    let path = sysctl_path(&name);
    let mut item = Item {
        name,
        before: before.clone(),
        ..Item::default()
    };
    if before.as_deref().is_some_and(|before| words(before) == words(value)) {
        return item;
    }
    match path.ok_or_else(|| RemoteError::new(ErrorKind::Invalid, format!("{:?} cannot name a sysctl", item.name))) {
        Ok(path) => match fs::write(&path, value) {
            Ok(()) => {
                item.changed = true;
                // Some values are taken without a word and made into others. What cannot be read back is write-only.
                item.error = read_sysctl(&item.name)
                    .filter(|found| words(found) != words(value))
                    .map(|found| RemoteError::failed(format!("{} = {value}: the kernel made it {found}", item.name)));
            }
            Err(error) => item.error = Some(RemoteError::io(format_args!("{} = {value}", item.name), &error)),
        },
        Err(error) => item.error = Some(error),
    }
    item
}

pub(super) fn read_sysctl(name: &str) -> Option<String> {
    Some(fs::read_to_string(sysctl_path(name)?).ok()?.trim_end().to_owned())
}

/// As sysctl(8): dots separate, a slash stands for a dot within a part (`net.ipv4.conf.eth0/1.rp_filter`).
fn sysctl_path(name: &str) -> Option<PathBuf> {
    let swapped: String = name
        .chars()
        .map(|c| {
            if c == '.' {
                '/'
            } else if c == '/' {
                '.'
            } else {
                c
            }
        })
        .collect();
    let plain = !swapped.is_empty()
        && swapped
            .split('/')
            .all(|part| !part.is_empty() && part != "." && part != "..");
    plain.then(|| Path::new("/proc/sys").join(swapped))
}

/// The kernel prints tabs where blanks were written.
fn words(value: &str) -> Vec<&str> {
    value.split_whitespace().collect()
}

pub(super) async fn modules(names: Vec<String>) -> Result<Vec<Item>, RemoteError> {
    let mut items = Vec::new();
    for name in names {
        let mut item = Item {
            name,
            ..Item::default()
        };
        if !module_present(&item.name) {
            match tool(&["modprobe", "--", &item.name], b"", TOOL_TIMEOUT_MS).await {
                // `install` lines of modprobe.d may do something else in its place.
                Ok(_) if !module_present(&item.name) => {
                    let message = format!("modprobe {} ended well, and the kernel has no such module", item.name);
                    item.error = Some(RemoteError::failed(message).hint("grep -r install /etc/modprobe.d"));
                }
                Ok(_) => item.changed = true,
                Err(error) => item.error = Some(error),
            }
        }
        items.push(item);
    }
    Ok(items)
}

/// Loaded, or built in and visible.
pub(super) fn module_present(name: &str) -> bool {
    let name = name.replace('-', "_");
    Path::new("/sys/module").join(&name).exists()
        || procfs::text("/proc/filesystems")
            .lines()
            .any(|line| line.split_whitespace().next_back() == Some(name.as_str()))
        || listed_in("modules.builtin", &name)
}

/// A file of the running kernel's module directory names it.
pub(super) fn listed_in(list: &str, name: &str) -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    procfs::text(&format!("/lib/modules/{release}/{list}"))
        .lines()
        .filter_map(|line| line.split(':').next()?.rsplit('/').next()?.split(".ko").next())
        .any(|module| module.replace('-', "_") == name)
}

pub(super) async fn mount(wanted: MountSpec) -> Result<Item, RemoteError> {
    absolute(&wanted.target)?;
    let mut item = Item {
        name: wanted.target.clone(),
        ..Item::default()
    };
    let remount = wanted.options.iter().any(|option| option == "remount");
    if !remount
        && let Some(found) = procfs::mounts()
            .into_iter()
            .rev()
            .find(|mount| mount.target == wanted.target)
    {
        if wanted.fstype.is_empty() || wanted.fstype == found.fstype {
            return Ok(item);
        }
        return Err(RemoteError::failed(format!(
            "{}: {} ({}) is mounted there already",
            found.target, found.source, found.fstype
        )));
    }
    let options = wanted.options.join(",");
    let mut argv = vec!["mount"];
    if !wanted.fstype.is_empty() {
        argv.extend(["-t", &wanted.fstype]);
    }
    if !options.is_empty() {
        argv.extend(["-o", &options]);
    }
    argv.push("--");
    if !wanted.source.is_empty() {
        argv.push(&wanted.source);
    }
    argv.push(&wanted.target);
    tool(&argv, b"", TOOL_TIMEOUT_MS).await?;
    item.changed = true;
    Ok(item)
}

/// Also what is stacked on the same place.
pub(super) async fn unmount(targets: Vec<String>) -> Result<Vec<Item>, RemoteError> {
    let mut items = Vec::new();
    for target in targets {
        absolute(&target)?;
        let mut item = Item {
            name: target,
            ..Item::default()
        };
        let stacked = procfs::mounts()
            .iter()
            .filter(|mount| mount.target == item.name)
            .count();
        for _ in 0..stacked {
            match tool(&["umount", "--", &item.name], b"", TOOL_TIMEOUT_MS).await {
                Ok(_) => item.changed = true,
                Err(error) => {
                    item.error = Some(error.hint("a process still uses it; stop its unit first"));
                    break;
                }
            }
        }
        items.push(item);
    }
    Ok(items)
}

pub(super) async fn swap(on: bool) -> Result<Item, RemoteError> {
    let before = procfs::swaps();
    if on {
        tool(&["swapon", "--all"], b"", TOOL_TIMEOUT_MS).await?;
    } else if !before.is_empty() {
        tool(&["swapoff", "--all"], b"", SWAP_TIMEOUT_MS).await?;
    }
    let now = procfs::swaps();
    if !on && !now.is_empty() {
        return Err(RemoteError::failed("swapoff ended well, and the kernel still swaps"));
    }
    Ok(Item {
        name: "swap".into(),
        changed: now != before,
        ..Item::default()
    })
}

pub(super) async fn user(wanted: UserSpec) -> Result<Item, RemoteError> {
    let mut item = Item {
        name: wanted.name.clone(),
        ..Item::default()
    };
    if let Some(found) = Owners::load().user(&wanted.name) {
        if let Some(uid) = wanted.uid.filter(|uid| *uid != found.uid) {
            item.error = Some(RemoteError::failed(format!(
                "user {} exists with uid {}, not {uid}",
                wanted.name, found.uid
            )));
        }
        return Ok(item);
    }
    let uid = wanted.uid.map(|uid| uid.to_string());
    let groups = wanted.groups.join(",");
    let mut argv = vec![
        "useradd",
        "--user-group",
        "--no-create-home",
        "--home-dir",
        &wanted.home,
        "--shell",
        &wanted.shell,
    ];
    if wanted.system {
        argv.push("--system");
    }
    if let Some(uid) = &uid {
        argv.extend(["--uid", uid]);
    }
    if !groups.is_empty() {
        argv.extend(["--groups", &groups]);
    }
    argv.extend(["--", &wanted.name]);
    let output = tool_output(&argv, b"", TOOL_TIMEOUT_MS).await?;
    // 9: the group is there already, left by an earlier user of that name.
    if output.status == Some(9) {
        argv[1] = "--gid";
        argv.insert(2, &wanted.name);
        tool(&argv, b"", TOOL_TIMEOUT_MS).await?;
    } else if !output.ok() {
        return Err(failure(&argv, TOOL_TIMEOUT_MS, &output));
    }
    if Owners::load().user(&wanted.name).is_none() {
        let message = format!("useradd ended well, and /etc/passwd has no user {}", wanted.name);
        return Err(RemoteError::failed(message));
    }
    item.changed = true;
    Ok(item)
}

pub(super) async fn user_remove(name: String) -> Result<Item, RemoteError> {
    let owners = Owners::load();
    let mut item = Item {
        name,
        ..Item::default()
    };
    if let Some(found) = owners.user(&item.name) {
        if found.uid == 0 {
            return Err(RemoteError::new(ErrorKind::Invalid, "will not remove root"));
        }
        tool(&["userdel", "--", &item.name], b"", TOOL_TIMEOUT_MS).await?;
        if Owners::load().user(&item.name).is_some() {
            let message = format!("userdel ended well, and /etc/passwd still has {}", item.name);
            return Err(RemoteError::failed(message));
        }
        item.changed = true;
    }
    Ok(item)
}

pub(super) async fn links_remove(names: Vec<String>) -> Result<Vec<Item>, RemoteError> {
    let mut items = Vec::new();
    for name in names {
        let mut item = Item {
            name,
            ..Item::default()
        };
        if !item.name.is_empty() && !item.name.contains('/') && Path::new("/sys/class/net").join(&item.name).exists() {
            match tool(&["ip", "link", "delete", "dev", &item.name], b"", TOOL_TIMEOUT_MS).await {
                Ok(_) => item.changed = true,
                Err(error) => item.error = Some(error),
            }
        }
        items.push(item);
    }
    Ok(items)
}

/// In one transaction: adding the table makes deleting it safe whether or not it was there.
pub(super) async fn nft_table(family: &str, name: &str, ruleset: Option<Bytes>) -> Result<(), RemoteError> {
    let word = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
    if !word(family) || !word(name) {
        return Err(RemoteError::new(
            ErrorKind::Invalid,
            format!("{family:?} {name:?} cannot name an nftables table"),
        ));
    }
    let mut script = format!("add table {family} {name}\ndelete table {family} {name}\n").into_bytes();
    script.extend(ruleset.iter().flat_map(|ruleset| ruleset.iter()));
    tool(&["nft", "-f", "-"], &script, TOOL_TIMEOUT_MS).await.map(drop)
}

/// Names of `/etc/hosts`.
pub(super) fn hosts_file() -> BTreeMap<String, Vec<IpAddr>> {
    let mut hosts: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for line in procfs::text("/etc/hosts").lines() {
        let mut fields = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(ip) = fields.next().and_then(|ip| ip.parse().ok()) else {
            continue;
        };
        for name in fields {
            hosts.entry(name.to_owned()).or_default().push(ip);
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sysctls() {
        let path = |name| sysctl_path(name).map(|path| path.display().to_string());
        assert_eq!(
            path("net.ipv4.ip_forward").as_deref(),
            Some("/proc/sys/net/ipv4/ip_forward")
        );
        assert_eq!(
            path("net.ipv4.conf.eth0/1.rp_filter").as_deref(),
            Some("/proc/sys/net/ipv4/conf/eth0.1/rp_filter")
        );
        for name in ["", "..", "kernel..x", "net.//.x"] {
            assert_eq!(path(name), None, "{name}");
        }
        assert!(read_sysctl("kernel.ostype").is_some_and(|value| value == "Linux"));
        let items = sysctl([("kernel.no_such_thing".to_owned(), "1".to_owned())].into());
        assert!(items[0].error.is_some() && !items[0].changed);
    }

    #[tokio::test]
    async fn a_table_name_cannot_carry_commands() {
        let error = nft_table("inet", "x; flush ruleset", None).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
}
