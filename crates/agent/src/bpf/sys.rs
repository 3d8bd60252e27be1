//! bpf(2) and bpffs: where this module meets the kernel.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const MAP_UPDATE: libc::c_long = 2;
const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const INFO_BY_FD: libc::c_long = 15;
const BTF_LOAD: libc::c_long = 18;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

const PROG_CGROUP_SOCK_ADDR: u32 = 18;
const NAME_LEN: usize = 16;
/// bpffs magic (include/uapi/linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// The helpers we use ask for no GPL licence, so the program carries the project's own.
const LICENCE: &[u8] = b"Apache-2.0\0";
const LOG_SIZE: usize = 64 * 1024;

/// Attribute block of a command: `union bpf_attr`, as far as each command needs it.
trait Attributes: Copy {}

macro_rules! attributes {
    ($($(#[$about:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$about])*
        #[derive(Clone, Copy, Debug, Default)]
        #[repr(C)]
        struct $name { $($field: $type),* }
        impl Attributes for $name {}
    )*};
}

attributes! {
    MapCreate {
        kind: u32, key: u32, value: u32, entries: u32, flags: u32, inner: u32, numa: u32, name: [u8; NAME_LEN],
        interface: u32, btf: u32, btf_key: u32, btf_value: u32,
    }
    Element { map: u32, padding: u32, key: u64, value: u64, flags: u64 }
    ProgLoad {
        kind: u32, count: u32, code: u64, licence: u64, log_level: u32, log_size: u32, log: u64, version: u32,
        flags: u32, name: [u8; NAME_LEN], interface: u32, attach: u32,
    }
    Object { path: u64, descriptor: u32, flags: u32 }
    Info { descriptor: u32, length: u32, info: u64 }
    BtfLoad { btf: u64, log: u64, size: u32, log_size: u32, log_level: u32 }
    LinkCreate { program: u32, target: u32, attach: u32, flags: u32 }
    LinkUpdate { link: u32, program: u32, flags: u32, old: u32 }
    LinkDetach { link: u32 }
}

/// What a map is made of.
#[derive(Debug, Clone, Copy)]
pub(super) struct MapShape<'a> {
    pub(super) name: &'a str,
    pub(super) kind: u32,
    pub(super) key: usize,
    pub(super) value: usize,
    pub(super) entries: u32,
    pub(super) flags: u32,
    /// Type information and the ids of key and value in it.
    pub(super) btf: Option<(BorrowedFd<'a>, u32, u32)>,
}

pub(super) fn create_map(shape: &MapShape<'_>) -> io::Result<OwnedFd> {
    let (btf, btf_key, btf_value) = shape.btf.map_or((0, 0, 0), |(descriptor, key, value)| {
        (descriptor.as_raw_fd() as u32, key, value)
    });
    descriptor(
        MAP_CREATE,
        &mut MapCreate {
            kind: shape.kind,
            key: shape.key as u32,
            value: shape.value as u32,
            entries: shape.entries,
            flags: shape.flags,
            name: name(shape.name),
            btf,
            btf_key,
            btf_value,
            ..MapCreate::default()
        },
    )
}

/// Kind, key size and value size of a map.
pub(super) fn map_shape(map: BorrowedFd<'_>) -> io::Result<(u32, usize, usize)> {
    let info = info(map)?;
    let field = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    Ok((field(0), field(8) as usize, field(12) as usize))
}

/// The cgroup that a link is attached to (its inode number). 0 after the cgroup was removed.
pub(super) fn link_cgroup(link: BorrowedFd<'_>) -> io::Result<u64> {
    let info = info(link)?;
    let octets: [u8; 8] = info[16..24].try_into().unwrap_or_default();
    Ok(u64::from_ne_bytes(octets))
}

/// Writes an entry as a whole: readers see the old one or the new one.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let mut attributes = Element {
        map: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value: value.as_ptr() as u64,
        ..Element::default()
    };
    // The caller's slices have the map's own key and value sizes: this module creates the maps and checks pinned ones.
    call(MAP_UPDATE, &mut attributes).map(drop)
}

/// `Ok(false)` if there was no such entry.
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let mut attributes = Element {
        map: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        ..Element::default()
    };
    absent_is_false(call(MAP_DELETE, &mut attributes))
}

/// `Ok(false)` if there is no such entry.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let mut attributes = Element {
        map: map.as_raw_fd() as u32,
        key: key.as_ptr() as u64,
        value: value.as_mut_ptr() as u64,
        ..Element::default()
    };
    absent_is_false(call(MAP_LOOKUP, &mut attributes))
}

/// The key behind `after` (`None`: the first). `Ok(false)` at the end.
pub(super) fn next_key(map: BorrowedFd<'_>, after: Option<&[u8]>, key: &mut [u8]) -> io::Result<bool> {
    let mut attributes = Element {
        map: map.as_raw_fd() as u32,
        key: after.map_or(0, |after| after.as_ptr() as u64),
        value: key.as_mut_ptr() as u64,
        ..Element::default()
    };
    absent_is_false(call(MAP_NEXT_KEY, &mut attributes))
}

/// Loads a program for one attach type. On failure, the verifier's last lines are part of the error.
pub(super) fn load_program(program_name: &str, code: &[u8], attach: u32) -> io::Result<OwnedFd> {
    let mut attributes = ProgLoad {
        kind: PROG_CGROUP_SOCK_ADDR,
        count: (code.len() / 8) as u32,
        code: code.as_ptr() as u64,
        licence: LICENCE.as_ptr() as u64,
        name: name(program_name),
        attach,
        ..ProgLoad::default()
    };
    let first = match descriptor(PROG_LOAD, &mut attributes) {
        Ok(program) => return Ok(program),
        Err(error) => error,
    };
    let mut log = vec![0u8; LOG_SIZE];
    attributes.log_level = 1;
    attributes.log_size = log.len() as u32;
    attributes.log = log.as_mut_ptr() as u64;
    if let Ok(program) = descriptor(PROG_LOAD, &mut attributes) {
        return Ok(program);
    }
    let text = String::from_utf8_lossy(&log);
    let lines: Vec<&str> = text
        .trim_end_matches('\0')
        .lines()
        .filter(|line| !line.starts_with("processed"))
        .collect();
    match lines.last() {
        Some(last) => Err(io::Error::new(first.kind(), format!("{first} (verifier: {last})"))),
        None => Err(first),
    }
}

pub(super) fn load_btf(bytes: &[u8]) -> io::Result<OwnedFd> {
    descriptor(
        BTF_LOAD,
        &mut BtfLoad {
            btf: bytes.as_ptr() as u64,
            size: bytes.len() as u32,
            ..BtfLoad::default()
        },
    )
}

pub(super) fn create_link(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach: u32) -> io::Result<OwnedFd> {
    let (program, target) = (program.as_raw_fd() as u32, cgroup.as_raw_fd() as u32);
    descriptor(
        LINK_CREATE,
        &mut LinkCreate {
            program,
            target,
            attach,
            flags: 0,
        },
    )
}

/// Replaces the program of a link at once: no connect sees neither.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    call(
        LINK_UPDATE,
        &mut LinkUpdate {
            link,
            program,
            flags: 0,
            old: 0,
        },
    )
    .map(drop)
}

pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    call(
        LINK_DETACH,
        &mut LinkDetach {
            link: link.as_raw_fd() as u32,
        },
    )
    .map(drop)
}

pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attributes = Object {
        path: path.as_ptr() as u64,
        descriptor: object.as_raw_fd() as u32,
        flags: 0,
    };
    call(OBJ_PIN, &mut attributes).map(drop)
}

/// `Ok(None)` if nothing is pinned there.
pub(super) fn pinned(path: &Path) -> io::Result<Option<OwnedFd>> {
    let path = c_path(path)?;
    match descriptor(
        OBJ_GET,
        &mut Object {
            path: path.as_ptr() as u64,
            descriptor: 0,
            flags: 0,
        },
    ) {
        Ok(object) => Ok(Some(object)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `path` lies on a BPF file system.
pub(super) fn is_bpffs(path: &Path) -> io::Result<bool> {
    let path = c_path(path)?;
    // SAFETY: all-zero bytes are a valid statfs.
    let mut found: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: reads a NUL-terminated path and writes one statfs, both locals.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut found) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(found.f_type as i64 == BPF_FS_MAGIC)
}

/// Mounts a BPF file system.
pub(super) fn mount_bpffs(path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    // SAFETY: all pointers are NUL-terminated strings that outlive the call; no data is passed.
    let done = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
            std::ptr::null(),
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// First octets of `struct bpf_map_info` or `struct bpf_link_info`.
fn info(object: BorrowedFd<'_>) -> io::Result<[u8; 80]> {
    let mut info = [0u8; 80];
    let mut attributes = Info {
        descriptor: object.as_raw_fd() as u32,
        length: info.len() as u32,
        info: info.as_mut_ptr() as u64,
    };
    call(INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

fn absent_is_false(result: io::Result<i64>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

fn descriptor<A: Attributes>(command: libc::c_long, attributes: &mut A) -> io::Result<OwnedFd> {
    let fd = call(command, attributes)?;
    // SAFETY: the commands passed here return a fresh descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn call<A: Attributes>(command: libc::c_long, attributes: &mut A) -> io::Result<i64> {
    loop {
        // SAFETY: `attributes` is the command's own prefix of union bpf_attr and is passed with its exact size; addresses
        // in it belong to slices and locals of the caller that outlive the call, with the sizes the kernel expects.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<A>()) };
        if result >= 0 {
            return Ok(result);
        }
        let error = io::Error::last_os_error();
        // The verifier gives up its lock when a signal is due.
        if error.raw_os_error() != Some(libc::EAGAIN) {
            return Err(error);
        }
    }
}

fn name(text: &str) -> [u8; NAME_LEN] {
    let mut name = [0; NAME_LEN];
    for (to, from) in name[..NAME_LEN - 1].iter_mut().zip(text.bytes()) {
        *to = from;
    }
    name
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}
