//! Balancing at connect(2): cgroup programs rewrite the destination of a TCP connect from a service's virtual address to
//! one of its backends, so that no packet is touched afterwards and the address needs no interface.
//!
//! The programs are assembled here (no compiler, no blob), attached to a cgroup v2 directory and pinned in bpffs with
//! their maps: without the agent, the last set of backends stays in use. [`Balancer::attach`] takes over what an earlier
//! agent pinned, without a moment in which connects go past it; [`remove`] takes everything away.

mod asm;
mod btf;
mod layout;
mod programs;
mod sys;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use quorate_lb::{Availability, BackendView};

use programs::{Family, Maps};

const MAP_HASH: u32 = 1;
const MAP_SK_STORAGE: u32 = 24;
const NO_PREALLOC: u32 = 1;
/// `enum bpf_attach_type`.
const INET4_CONNECT: u32 = 10;
const INET6_CONNECT: u32 = 11;
const INET4_GETPEERNAME: u32 = 29;
const INET6_GETPEERNAME: u32 = 30;
/// Name of each program and its pinned link, where it is attached, and how it is made.
const HOOKS: [(&str, u32, Family, bool); 4] = [
    ("connect4", INET4_CONNECT, Family::V4, true),
    ("connect6", INET6_CONNECT, Family::V6, true),
    ("getpeername4", INET4_GETPEERNAME, Family::V4, false),
    ("getpeername6", INET6_GETPEERNAME, Family::V6, false),
];

/// What can go wrong; `operation` says at which step.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused.
    #[error("eBPF: {operation}: {source}{}", hint(.source))]
    Kernel {
        /// What was being done.
        operation: String,
        /// The system's reason.
        source: io::Error,
    },
    /// There is no cgroup v2 hierarchy.
    #[error("eBPF: no cgroup v2 hierarchy is mounted; name one in `cgroup`, or use access mode proxy")]
    NoCgroup,
    /// A path is no cgroup v2 directory.
    #[error("eBPF: {} is not a cgroup v2 directory", .0.display())]
    NotCgroup(PathBuf),
    /// Virtual address and backend are of different families.
    #[error("eBPF: {backend} cannot serve {virtual_address}: the address families differ")]
    Family {
        /// Address of the service.
        virtual_address: SocketAddr,
        /// The backend that does not fit.
        backend: SocketAddr,
    },
}

/// Backends of a service, each with the number of 256ths of the connects that go to it.
pub type Shares = BTreeMap<SocketAddr, usize>;

/// The shares that backends with these weights get.
pub fn shares(backends: &[(SocketAddr, u16)]) -> Shares {
    layout::shares(backends)
}

/// Programs and maps in force on one cgroup.
#[derive(Debug)]
pub struct Balancer {
    services: OwnedFd,
    /// Where they are pinned, layout version included.
    directory: PathBuf,
}

/// Whether this kernel can do it, by loading the programs without attaching them; `Err` is the reason, to be said
/// beforehand.
pub fn supported() -> Result<(), Error> {
    let services = create_services()?;
    let sockets = create_sockets()?;
    load_all(&services, &sockets).map(drop)
}

/// The backends that new connections go to, with their weights, as every balancing mode chooses them: those that are up,
/// else the backups, else those that are alive but not ready.
pub fn preferred(backends: &[BackendView]) -> Vec<(SocketAddr, u16)> {
    let tier = |view: &BackendView| match view.availability {
        _ if view.weight == 0 => None,
        Availability::Up if !view.backup => Some(0),
        Availability::Up => Some(1),
        Availability::LastResort => Some(2),
        Availability::Down => None,
    };
    let best = backends.iter().filter_map(tier).min();
    backends
        .iter()
        .filter(|view| best.is_some() && tier(view) == best)
        .map(|view| (view.address, view.weight))
        .collect()
}

/// The root of the cgroup v2 hierarchy that is mounted here. At the root, the programs serve every process, those in
/// Pods included.
pub fn cgroup_root() -> Result<PathBuf, Error> {
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(kernel("reading /proc/self/mounts"))?;
    let root = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| PathBuf::from(path.replace("\\040", " ")))
    });
    root.ok_or(Error::NoCgroup)
}

/// Detaches the programs pinned below `pin` and removes all pins. `Ok(false)` if there was nothing.
pub fn remove(pin: &Path) -> Result<bool, Error> {
    let directory = pin.join(layout::VERSION);
    if !directory.exists() {
        return Ok(false);
    }
    for (name, ..) in HOOKS {
        let path = directory.join(name);
        if let Some(link) = sys::pinned(&path).map_err(kernel(format!("opening {}", path.display())))? {
            // Detached at once, even if another process still has it open.
            sys::detach_link(link.as_fd()).map_err(kernel(format!("detaching {name}")))?;
        }
    }
    let failed = || kernel(format!("removing {}", directory.display()));
    for entry in fs::read_dir(&directory).map_err(failed())? {
        fs::remove_file(entry.map_err(failed())?.path()).map_err(failed())?;
    }
    fs::remove_dir(&directory).map_err(failed())?;
    // Somebody else's pins may lie beside ours.
    let _ = fs::remove_dir(pin);
    Ok(true)
}

/// Whether what is pinned at `pin` could be seen from here: a container may lack the BPF file system.
pub fn is_visible(pin: &Path) -> bool {
    let there = pin.ancestors().find(|path| path.exists());
    there.is_some_and(|path| sys::is_bpffs(path).unwrap_or(false))
}

impl Balancer {
    /// Puts programs and maps in force for all processes in `cgroup` and below, pinned in directory `pin` of a bpffs
    /// (which is mounted on /sys/fs/bpf if needed). What an earlier agent pinned there is taken over with its backends.
    pub fn attach(cgroup: &Path, pin: &Path) -> Result<Self, Error> {
        let directory = prepare(pin)?;
        let services = pinned_map(
            &directory.join("services"),
            (MAP_HASH, layout::ADDRESS, layout::SERVICE),
            create_services,
        )?;
        let sockets = pinned_map(
            &directory.join("sockets"),
            (MAP_SK_STORAGE, 4, layout::SOCKET),
            create_sockets,
        )?;
        let programs = load_all(&services, &sockets)?;
        let target = fs::File::open(cgroup).map_err(kernel(format!("opening {}", cgroup.display())))?;
        let identity = target
            .metadata()
            .map_err(kernel(format!("opening {}", cgroup.display())))?
            .ino();
        for ((name, attach, ..), program) in HOOKS.iter().zip(&programs) {
            let path = directory.join(name);
            link(&path, name, *attach, program, (cgroup, target.as_fd(), identity))?;
        }
        Ok(Self { services, directory })
    }

    /// Makes `virtual_address` a service of these backends with their weights (0: none), replacing the former set at
    /// once: a connect sees the old set or the new one. Without any backend, connects are refused (ECONNREFUSED).
    pub fn set(&self, virtual_address: SocketAddr, backends: &[(SocketAddr, u16)]) -> Result<(), Error> {
        let misfit = backends
            .iter()
            .find(|(backend, _)| backend.is_ipv4() != virtual_address.is_ipv4());
        if let Some((backend, _)) = misfit {
            return Err(Error::Family {
                virtual_address,
                backend: *backend,
            });
        }
        let value = layout::service(backends);
        sys::update(self.services.as_fd(), &layout::encode(virtual_address), &value)
            .map_err(kernel(format!("setting the backends of {virtual_address}")))
    }

    /// Drops every service that is not in `wanted`: connects to it go where the network takes them.
    pub fn retain(&self, wanted: &[SocketAddr]) -> Result<(), Error> {
        for (virtual_address, _) in self.list()? {
            if !wanted.contains(&virtual_address) {
                sys::delete(self.services.as_fd(), &layout::encode(virtual_address))
                    .map_err(kernel(format!("dropping {virtual_address}")))?;
            }
        }
        Ok(())
    }

    /// The services in force with the shares of their backends, as the kernel has them.
    pub fn list(&self) -> Result<Vec<(SocketAddr, Shares)>, Error> {
        let map = self.services.as_fd();
        let mut found = Vec::new();
        let mut last: Option<[u8; layout::ADDRESS]> = None;
        let mut value = vec![0; layout::SERVICE];
        loop {
            let mut key = [0; layout::ADDRESS];
            let after = last.as_ref().map(<[u8; layout::ADDRESS]>::as_slice);
            if !sys::next_key(map, after, &mut key).map_err(kernel("listing services"))? {
                return Ok(found);
            }
            if sys::lookup(map, &key, &mut value).map_err(kernel("reading a service"))? {
                found.extend(layout::decode(&key).map(|address| (address, layout::read_shares(&value))));
            }
            last = Some(key);
        }
    }

    /// Whether all pins are still there; if not (somebody removed them), attach again.
    pub fn is_pinned(&self) -> bool {
        let names = HOOKS.iter().map(|(name, ..)| *name).chain(["services", "sockets"]);
        names.into_iter().all(|name| self.directory.join(name).exists())
    }
}

/// Makes the pin directory, on a bpffs.
fn prepare(pin: &Path) -> Result<PathBuf, Error> {
    let usual = Path::new("/sys/fs/bpf");
    if pin.starts_with(usual) && !sys::is_bpffs(usual).map_err(kernel("looking at /sys/fs/bpf"))? {
        sys::mount_bpffs(usual).map_err(kernel("mounting a BPF file system on /sys/fs/bpf"))?;
    }
    let directory = pin.join(layout::VERSION);
    let failed = || {
        kernel(format!(
            "making {} (it must be on a BPF file system)",
            directory.display()
        ))
    };
    fs::create_dir_all(&directory).map_err(failed())?;
    if !sys::is_bpffs(&directory).map_err(failed())? {
        return Err(failed()(io::ErrorKind::Unsupported.into()));
    }
    Ok(directory)
}

fn create_services() -> Result<OwnedFd, Error> {
    let shape = sys::MapShape {
        name: "quorate_svc",
        kind: MAP_HASH,
        key: layout::ADDRESS,
        value: layout::SERVICE,
        entries: layout::SERVICES_MAX,
        // Five kilobytes a service: allocate those that exist.
        flags: NO_PREALLOC,
        btf: None,
    };
    sys::create_map(&shape).map_err(kernel("creating the map of services"))
}

fn create_sockets() -> Result<OwnedFd, Error> {
    let types = sys::load_btf(&btf::socket_storage())
        .map_err(kernel("loading type information (CONFIG_DEBUG_INFO_BTF is not needed)"))?;
    let shape = sys::MapShape {
        name: "quorate_sk",
        kind: MAP_SK_STORAGE,
        key: 4,
        value: layout::SOCKET,
        entries: 0,
        flags: NO_PREALLOC,
        btf: Some((types.as_fd(), btf::KEY, btf::VALUE)),
    };
    sys::create_map(&shape).map_err(kernel("creating the per-socket map (kernel 5.2 or later)"))
}

/// Opens a pinned map if it has the right shape, else creates and pins it.
fn pinned_map(
    path: &Path,
    shape: (u32, usize, usize),
    create: impl FnOnce() -> Result<OwnedFd, Error>,
) -> Result<OwnedFd, Error> {
    let failed = || kernel(format!("pinning {}", path.display()));
    if let Some(map) = sys::pinned(path).map_err(failed())? {
        if sys::map_shape(map.as_fd()).map_err(failed())? == shape {
            return Ok(map);
        }
        fs::remove_file(path).map_err(failed())?;
    }
    let map = create()?;
    sys::pin(map.as_fd(), path).map_err(failed())?;
    Ok(map)
}

fn load_all(services: &OwnedFd, sockets: &OwnedFd) -> Result<Vec<OwnedFd>, Error> {
    let maps = Maps {
        services: services.as_raw_fd(),
        sockets: sockets.as_raw_fd(),
    };
    HOOKS
        .iter()
        .map(|(name, attach, family, connect)| {
            if !connect {
                return load(name, *attach, programs::getpeername(*family, maps));
            }
            // Kernels before 5.18 cannot choose the error: EPERM there.
            load(name, *attach, programs::connect(*family, maps, true))
                .or_else(|_| load(name, *attach, programs::connect(*family, maps, false)))
        })
        .collect()
}

fn load(name: &str, attach: u32, code: Option<Vec<u8>>) -> Result<OwnedFd, Error> {
    let operation = || kernel(format!("loading program {name}"));
    let code = code
        .ok_or(io::ErrorKind::InvalidData)
        .map_err(|kind| operation()(kind.into()))?;
    sys::load_program(&format!("quorate_{name}"), &code, attach).map_err(operation())
}

/// Updates the pinned link if it is attached to the same cgroup, else makes a new one.
fn link(
    path: &Path,
    name: &str,
    attach: u32,
    program: &OwnedFd,
    (cgroup, target, identity): (&Path, BorrowedFd<'_>, u64),
) -> Result<(), Error> {
    let failed = || kernel(format!("attaching {name} to {}", cgroup.display()));
    if let Some(link) = sys::pinned(path).map_err(failed())? {
        if sys::link_cgroup(link.as_fd()).map_err(failed())? == identity
            && sys::update_link(link.as_fd(), program.as_fd()).is_ok()
        {
            return Ok(());
        }
        let _ = sys::detach_link(link.as_fd());
        fs::remove_file(path).map_err(failed())?;
    }
    let link = sys::create_link(program.as_fd(), target, attach).map_err(|source| match source.raw_os_error() {
        Some(libc::EBADF) => Error::NotCgroup(cgroup.to_owned()),
        _ => failed()(source),
    })?;
    sys::pin(link.as_fd(), path).map_err(failed())
}

fn kernel(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let operation = operation.into();
    move |source| Error::Kernel { operation, source }
}

fn hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; needs root, or CAP_BPF and CAP_NET_ADMIN",
        Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => {
            "; needs kernel 5.8 with CONFIG_CGROUP_BPF; access mode proxy works everywhere"
        }
        _ => "",
    }
}
