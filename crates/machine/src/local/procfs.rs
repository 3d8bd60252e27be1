//! What /proc and /sys say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use quorate_facts::{Listener, MountFacts, SwapFacts, Transport};

/// A file's text; empty if it cannot be read, for files whose absence is itself the answer.
pub(super) fn text(path: &str) -> String {
    fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}

/// Mounts without sizes, in mount order (`/proc/self/mountinfo`, proc(5)).
pub(super) fn mounts() -> Vec<MountFacts> {
    text("/proc/self/mountinfo").lines().filter_map(mount).collect()
}

fn mount(line: &str) -> Option<MountFacts> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let [fstype, source, super_options] = right.splitn(3, ' ').collect::<Vec<_>>()[..] else {
        return None;
    };
    // Options of the mount first, then the file system's own, each once: "ro" of the former wins over "rw" of the latter.
    let mut options: Vec<String> = left.get(5)?.split(',').map(str::to_owned).collect();
    for option in super_options.split(',') {
        if !matches!(option, "rw" | "ro") && !options.iter().any(|known| known == option) {
            options.push(option.to_owned());
        }
    }
    Some(MountFacts {
        source: unescape(source),
        target: unescape(left.get(4)?),
        fstype: fstype.to_owned(),
        options,
        total_bytes: 0,
        free_bytes: 0,
    })
}

/// Undoes `\040` and the like.
fn unescape(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let octal = (first == b'\\')
            .then(|| {
                tail.get(..3)
                    .and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok())
            })
            .flatten();
        match octal {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) fn swaps() -> Vec<SwapFacts> {
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let (path, kind, kib) = (
            unescape(fields.next()?),
            fields.next()?,
            fields.next()?.parse::<u64>().ok()?,
        );
        let kind = if path.contains("/zram") { "zram" } else { kind };
        Some(SwapFacts {
            kind: kind.to_owned(),
            size_bytes: kib << 10,
            path,
        })
    };
    text("/proc/swaps").lines().skip(1).filter_map(line).collect()
}

/// `MemTotal` and the like, in bytes.
pub(super) fn meminfo(key: &str) -> u64 {
    let text = text("/proc/meminfo");
    let kib = text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(':')?
            .trim()
            .strip_suffix(" kB")?
            .parse::<u64>()
            .ok()
    });
    kib.unwrap_or(0) << 10
}

/// A hexadecimal capability set of `/proc/self/status`.
pub(super) fn capability_bits(set: &str) -> u64 {
    let text = text("/proc/self/status");
    let bits = text
        .lines()
        .find_map(|line| u64::from_str_radix(line.strip_prefix(set)?.strip_prefix(':')?.trim(), 16).ok());
    bits.unwrap_or(0)
}

/// Names of capabilities by number (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub(super) fn capabilities(bits: u64) -> Vec<String> {
    let mut names: Vec<String> = CAPABILITIES
        .iter()
        .enumerate()
        .filter(|(bit, _)| bits >> bit & 1 == 1)
        .map(|(_, name)| format!("CAP_{name}"))
        .collect();
    names.sort();
    names
}

/// Sockets that wait for clients, with the processes behind them.
pub(super) fn listening() -> Vec<Listener> {
    let mut sockets: Vec<(u64, Listener)> = Vec::new();
    // 0A is TCP_LISTEN; 07 (TCP_CLOSE) is what an unconnected UDP socket shows.
    for (table, transport, state) in [
        ("tcp", Transport::Tcp, "0A"),
        ("tcp6", Transport::Tcp, "0A"),
        ("udp", Transport::Udp, "07"),
        ("udp6", Transport::Udp, "07"),
    ] {
        sockets.extend(
            text(&format!("/proc/self/net/{table}"))
                .lines()
                .skip(1)
                .filter_map(|line| socket(line, transport, state)),
        );
    }
    let owners = socket_owners(&sockets.iter().map(|(inode, _)| *inode).collect());
    for (inode, listener) in &mut sockets {
        if let Some((pid, process)) = owners.get(inode) {
            (listener.pid, listener.process) = (Some(*pid), Some(process.clone()));
        }
    }
    let mut listeners: Vec<Listener> = sockets.into_iter().map(|(_, listener)| listener).collect();
    listeners.sort_by_key(|l| (l.port, l.address, l.pid));
    listeners
}

fn socket(line: &str, transport: Transport, state: &str) -> Option<(u64, Listener)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    if *fields.get(3)? != state {
        return None;
    }
    let (address, port) = fields.get(1)?.split_once(':')?;
    let listener = Listener {
        transport,
        address: hex_address(address)?,
        port: u16::from_str_radix(port, 16).ok()?,
        pid: None,
        process: None,
    };
    Some((fields.get(9)?.parse().ok()?, listener))
}

/// The kernel prints each 32-bit word in host order.
fn hex_address(text: &str) -> Option<IpAddr> {
    let words: Vec<[u8; 4]> = (0..text.len() / 8)
        .map(|i| {
            u32::from_str_radix(&text[i * 8..i * 8 + 8], 16)
                .ok()
                .map(u32::to_ne_bytes)
        })
        .collect::<Option<_>>()?;
    match words[..] {
        [v4] => Some(Ipv4Addr::from(v4).into()),
        [a, b, c, d] => <[u8; 16]>::try_from([a, b, c, d].concat())
            .ok()
            .map(|bytes| Ipv6Addr::from(bytes).into()),
        _ => None,
    }
}

fn socket_owners(wanted: &BTreeSet<u64>) -> BTreeMap<u64, (u32, String)> {
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        if found.len() == wanted.len() {
            break;
        }
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        for fd in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(fd.path()) else { continue };
            let inode = target
                .to_str()
                .and_then(|t| t.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
            if let Some(inode) = inode.filter(|inode| wanted.contains(inode)) {
                found
                    .entry(inode)
                    .or_insert_with(|| (pid, text(&format!("/proc/{pid}/comm")).trim().to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo() {
        let line = r"36 35 98:0 /mnt1 /mnt\040a ro,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let mount = mount(line).unwrap();
        assert_eq!(
            (mount.target.as_str(), mount.source.as_str(), mount.fstype.as_str()),
            ("/mnt a", "/dev/root", "ext3")
        );
        assert_eq!(mount.options, ["ro", "noatime", "errors=continue"]);
        assert_eq!(unescape(r"a\\b\1"), r"a\\b\1");
    }

    #[test]
    fn addresses_of_sockets() {
        if cfg!(target_endian = "little") {
            assert_eq!(hex_address("0100007F"), Some("127.0.0.1".parse().unwrap()));
            assert_eq!(
                hex_address("00000000000000000000000001000000"),
                Some("::1".parse().unwrap())
            );
        }
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = listening().into_iter().find(|l| l.port == port).unwrap();
        assert_eq!(found.pid, Some(std::process::id()));
    }

    #[test]
    fn capabilities_by_name() {
        assert_eq!(capabilities(1 << 24 | 1 << 39), ["CAP_BPF", "CAP_SYS_RESOURCE"]);
    }
}
