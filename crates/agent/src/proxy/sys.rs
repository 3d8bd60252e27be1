//! The few Linux calls the data path needs, as safe functions over owned descriptors.
//!
//! Everything here is non-blocking and close-on-exec.
#![allow(unsafe_code)]

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Events a descriptor is watched for, and the ones reported.
pub(crate) const IN: u32 = libc::EPOLLIN as u32;
pub(crate) const OUT: u32 = libc::EPOLLOUT as u32;
pub(crate) const PRI: u32 = libc::EPOLLPRI as u32;
pub(crate) const RDHUP: u32 = libc::EPOLLRDHUP as u32;
pub(crate) const ERR: u32 = libc::EPOLLERR as u32;
pub(crate) const HUP: u32 = libc::EPOLLHUP as u32;
pub(crate) const EDGE: u32 = libc::EPOLLET as u32;
/// What both sockets of a connection are watched for.
pub(crate) const CONNECTION: u32 = IN | OUT | PRI | RDHUP | EDGE;

/// One reported readiness.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Event(libc::epoll_event);

impl Event {
    pub(crate) const EMPTY: Self = Self(libc::epoll_event { events: 0, u64: 0 });

    pub(crate) fn token(&self) -> u64 {
        self.0.u64
    }

    pub(crate) fn flags(&self) -> u32 {
        self.0.events
    }
}

/// An epoll instance.
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers; the returned descriptor is owned by nobody else.
        let fd = cvt(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: `fd` was just created and is owned here.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Watches `fd`. Closing the descriptor ends the watch.
    pub(crate) fn add(&self, fd: &OwnedFd, flags: u32, token: u64) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_ADD, fd.as_raw_fd(), flags, token)
    }

    pub(crate) fn del(&self, fd: &OwnedFd) -> io::Result<()> {
        self.ctl(libc::EPOLL_CTL_DEL, fd.as_raw_fd(), 0, 0)
    }

    fn ctl(&self, op: i32, fd: RawFd, flags: u32, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: flags,
            u64: token,
        };
        // SAFETY: `event` lives over the call; both descriptors are open.
        cvt(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), op, fd, &raw mut event) }).map(drop)
    }

    /// Waits for events; `None` waits for ever. An interrupted wait reports no events.
    pub(crate) fn wait(&self, events: &mut [Event], timeout: Option<Duration>) -> io::Result<usize> {
        // Rounded up, so that a timer is due when its wait ends.
        let ms = timeout.map_or(-1, |t| i32::try_from(t.as_micros().div_ceil(1000)).unwrap_or(i32::MAX));
        // SAFETY: `Event` is a transparent epoll_event; the kernel writes at most `len` of them.
        let n = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr().cast(),
                i32::try_from(events.len()).unwrap_or(i32::MAX),
                ms,
            )
        };
        match cvt(n) {
            Ok(n) => Ok(n as usize),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(e) => Err(e),
        }
    }
}

/// A counter another thread raises to wake an epoll loop.
pub(crate) struct Waker(OwnedFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = cvt(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        // SAFETY: just created, owned here.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.0
    }

    pub(crate) fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight readable bytes. A full counter means a wake-up is already due.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), 8) };
    }

    pub(crate) fn clear(&self) {
        let mut b = [0u8; 8];
        // SAFETY: eight writable bytes.
        unsafe { libc::read(self.0.as_raw_fd(), b.as_mut_ptr().cast(), 8) };
    }
}

/// How a socket is kept honest: probes for silent peers and a bound on unacknowledged data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Liveness {
    /// Silence before the first keepalive probe.
    pub idle: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer before the connection is given up.
    pub probes: u32,
    /// Longest time sent data may stay unacknowledged.
    pub user_timeout: Duration,
}

/// A listening TCP socket whose accepted sockets inherit NODELAY and the liveness options.
///
/// FREEBIND lets it start before the address is on this host (a VIP held elsewhere).
pub(crate) fn listen(addr: SocketAddr, backlog: i32, liveness: &Liveness) -> io::Result<OwnedFd> {
    let fd = tcp_socket(addr)?;
    set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    set_int(&fd, libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
    if addr.is_ipv6() {
        // One socket per family: [::]:port and 0.0.0.0:port are named apart in the configuration.
        set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
        set_int(&fd, libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?;
    } else {
        set_int(&fd, libc::IPPROTO_IP, libc::IP_FREEBIND, 1)?;
    }
    set_nodelay(&fd)?;
    set_liveness(&fd, liveness)?;
    let (raw, len) = to_raw(addr);
    // SAFETY: `raw` holds a socket address of `len` bytes.
    cvt(unsafe { libc::bind(fd.as_raw_fd(), (&raw const raw).cast(), len) })?;
    // SAFETY: no pointers.
    cvt(unsafe { libc::listen(fd.as_raw_fd(), backlog) })?;
    Ok(fd)
}

/// Takes one connection; `WouldBlock` when none waits.
pub(crate) fn accept(fd: &OwnedFd) -> io::Result<(OwnedFd, SocketAddr)> {
    // SAFETY: all-zero is a valid sockaddr_storage.
    let mut raw: libc::sockaddr_storage = unsafe { mem::zeroed() };
    let mut len = mem::size_of_val(&raw) as libc::socklen_t;
    // SAFETY: `raw` has room for `len` bytes.
    let s = cvt(unsafe {
        libc::accept4(
            fd.as_raw_fd(),
            (&raw mut raw).cast(),
            &raw mut len,
            libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC,
        )
    })?;
    // SAFETY: just accepted, owned here.
    let s = unsafe { OwnedFd::from_raw_fd(s) };
    Ok((s, from_raw(&raw)))
}

/// Starts a connection; `Ok(true)` when it is already up, `Ok(false)` when it is under way.
pub(crate) fn connect(addr: SocketAddr) -> io::Result<(OwnedFd, bool)> {
    let fd = tcp_socket(addr)?;
    set_nodelay(&fd)?;
    let (raw, len) = to_raw(addr);
    // SAFETY: `raw` holds a socket address of `len` bytes.
    match cvt(unsafe { libc::connect(fd.as_raw_fd(), (&raw const raw).cast(), len) }) {
        Ok(_) => Ok((fd, true)),
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => Ok((fd, false)),
        Err(e) => Err(e),
    }
}

/// The pending error of a socket (outcome of a connect), cleared by reading it.
pub(crate) fn take_error(fd: &OwnedFd) -> io::Result<()> {
    let mut err: libc::c_int = 0;
    let mut len = mem::size_of_val(&err) as libc::socklen_t;
    // SAFETY: `err` has room for `len` bytes.
    cvt(unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ERROR,
            (&raw mut err).cast(),
            &raw mut len,
        )
    })?;
    if err == 0 {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(err))
    }
}

/// Keepalive probes and TCP_USER_TIMEOUT.
pub(crate) fn set_liveness(fd: &OwnedFd, l: &Liveness) -> io::Result<()> {
    let secs = |d: Duration| i32::try_from(d.as_secs().max(1)).unwrap_or(i32::MAX);
    let ms = i32::try_from(l.user_timeout.as_millis()).unwrap_or(i32::MAX);
    set_int(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)?;
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, secs(l.idle))?;
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, secs(l.interval))?;
    set_int(
        fd,
        libc::IPPROTO_TCP,
        libc::TCP_KEEPCNT,
        i32::try_from(l.probes).unwrap_or(3),
    )?;
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, ms)
}

pub(crate) fn set_nodelay(fd: &OwnedFd) -> io::Result<()> {
    set_int(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY, 1)
}

/// Closes with RST instead of FIN.
pub(crate) fn reset(fd: OwnedFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: `linger` is read over the call. Should it fail, the close below still ends the socket.
    unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            mem::size_of_val(&linger) as libc::socklen_t,
        )
    };
    drop(fd);
}

/// Sends FIN; reading goes on.
pub(crate) fn shutdown_write(fd: &OwnedFd) -> io::Result<()> {
    // SAFETY: no pointers.
    cvt(unsafe { libc::shutdown(fd.as_raw_fd(), libc::SHUT_WR) }).map(drop)
}

pub(crate) fn recv(fd: &OwnedFd, buf: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buf` is writable for its length.
    size(unsafe { libc::recv(fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len(), libc::MSG_DONTWAIT) })
}

pub(crate) fn send(fd: &OwnedFd, buf: &[u8]) -> io::Result<usize> {
    send_flags(fd, buf, 0)
}

/// Sends bytes that something else follows at once (MSG_MORE), so that a FIN travels with the last of them.
pub(crate) fn send_more(fd: &OwnedFd, buf: &[u8]) -> io::Result<usize> {
    send_flags(fd, buf, libc::MSG_MORE)
}

fn send_flags(fd: &OwnedFd, buf: &[u8], flags: i32) -> io::Result<usize> {
    // SAFETY: `buf` is readable for its length.
    size(unsafe {
        libc::send(
            fd.as_raw_fd(),
            buf.as_ptr().cast(),
            buf.len(),
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | flags,
        )
    })
}

/// A pipe used as the kernel-side buffer of a spliced stream.
pub(crate) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    /// Bytes inside.
    pub(crate) len: usize,
}

impl Pipe {
    /// A pipe of `capacity` bytes, or of the default size where the system's limits do not allow it.
    pub(crate) fn new(capacity: i32) -> io::Result<Self> {
        let mut fds = [0; 2];
        // SAFETY: room for two descriptors.
        cvt(unsafe { libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) })?;
        // SAFETY: both just created, owned here.
        let (read, write) = unsafe { (OwnedFd::from_raw_fd(fds[0]), OwnedFd::from_raw_fd(fds[1])) };
        // SAFETY: no pointers. A refusal (pipe-user-pages-soft) leaves the default size: slower, not wrong.
        unsafe { libc::fcntl(fds[1], libc::F_SETPIPE_SZ, capacity) };
        Ok(Self { read, write, len: 0 })
    }

    /// Moves up to `max` bytes from the socket into the pipe; 0 is the end of the stream.
    pub(crate) fn fill(&mut self, from: &OwnedFd, max: usize) -> io::Result<usize> {
        let n = splice(from, &self.write, max)?;
        self.len += n;
        Ok(n)
    }

    /// Moves what is inside to the socket.
    pub(crate) fn drain(&mut self, to: &OwnedFd) -> io::Result<usize> {
        let n = splice(&self.read, to, self.len)?;
        self.len -= n;
        Ok(n)
    }
}

fn splice(from: &OwnedFd, to: &OwnedFd, max: usize) -> io::Result<usize> {
    // SAFETY: null offsets are allowed for pipes and sockets.
    size(unsafe {
        libc::splice(
            from.as_raw_fd(),
            std::ptr::null_mut(),
            to.as_raw_fd(),
            std::ptr::null_mut(),
            max,
            libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE,
        )
    })
}

/// Raises the limit of open files to the most this process may have; returns it.
pub fn raise_open_files() -> u64 {
    let mut lim = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `lim` is writable / readable over each call.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut lim) != 0 {
            return 1024;
        }
        let wish = libc::rlimit {
            rlim_cur: 1 << 20,
            rlim_max: lim.rlim_max.max(1 << 20),
        };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wish) == 0 {
            return wish.rlim_cur;
        }
        let wish = libc::rlimit {
            rlim_cur: lim.rlim_max,
            rlim_max: lim.rlim_max,
        };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const wish) == 0 {
            return wish.rlim_cur;
        }
    }
    lim.rlim_cur
}

/// Keeps the allocator from giving every thread an arena of its own: the agent's threads allocate little.
pub fn bound_allocator() {
    // SAFETY: plain integers.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Sends `bytes` together with descriptors over a unix stream socket (SCM_RIGHTS).
///
/// At most 250 descriptors (the kernel's SCM_MAX_FD is 253).
pub(crate) fn send_with_fds(sock: BorrowedFd<'_>, bytes: &[u8], fds: &[RawFd]) -> io::Result<()> {
    let payload = mem::size_of_val(fds);
    // SAFETY: CMSG_SPACE is arithmetic.
    let space = unsafe { libc::CMSG_SPACE(payload as u32) } as usize;
    // u64s, for the header's alignment.
    let mut control = vec![0u64; space.div_ceil(8)];
    let mut iov = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: all-zero is a valid msghdr; the pointers set below outlive the call, and the one header
    // written has room for `payload` bytes.
    let n = unsafe {
        let mut msg: libc::msghdr = mem::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        if !fds.is_empty() {
            msg.msg_control = control.as_mut_ptr().cast();
            msg.msg_controllen = space as _;
            let c = libc::CMSG_FIRSTHDR(&raw const msg);
            (*c).cmsg_level = libc::SOL_SOCKET;
            (*c).cmsg_type = libc::SCM_RIGHTS;
            (*c).cmsg_len = libc::CMSG_LEN(payload as u32) as _;
            std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(c), payload);
        }
        libc::sendmsg(sock.as_raw_fd(), &raw const msg, libc::MSG_NOSIGNAL)
    };
    match size(n)? {
        n if n == bytes.len() => Ok(()),
        _ => Err(io::Error::new(io::ErrorKind::WriteZero, "message cut short")),
    }
}

/// Receives bytes and the descriptors that came with them.
pub(crate) fn recv_with_fds(sock: BorrowedFd<'_>, buf: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    const MAX: usize = 253;
    let mut control = vec![0u64; 16 + MAX];
    let mut iov = libc::iovec {
        iov_base: buf.as_mut_ptr().cast(),
        iov_len: buf.len(),
    };
    let mut fds = Vec::new();
    // SAFETY: all-zero is a valid msghdr; buffers outlive the call; the kernel's headers are walked with
    // the CMSG macros inside msg_controllen, and each descriptor found is new and owned by nobody else.
    let n = unsafe {
        let mut msg: libc::msghdr = mem::zeroed();
        msg.msg_iov = &raw mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = (control.len() * 8) as _;
        let n = size(libc::recvmsg(sock.as_raw_fd(), &raw mut msg, libc::MSG_CMSG_CLOEXEC))?;
        let mut c = libc::CMSG_FIRSTHDR(&raw const msg);
        while !c.is_null() {
            if (*c).cmsg_level == libc::SOL_SOCKET && (*c).cmsg_type == libc::SCM_RIGHTS {
                let bytes = (*c).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
                let data = libc::CMSG_DATA(c).cast::<RawFd>();
                for i in 0..bytes / mem::size_of::<RawFd>() {
                    fds.push(OwnedFd::from_raw_fd(data.add(i).read_unaligned()));
                }
            }
            c = libc::CMSG_NXTHDR(&raw const msg, c);
        }
        n
    };
    Ok((n, fds))
}

/// The address a socket is bound to.
pub(crate) fn local_addr(fd: &OwnedFd) -> io::Result<SocketAddr> {
    // SAFETY: all-zero is a valid sockaddr_storage, with room for `len` bytes.
    let raw = unsafe {
        let mut raw: libc::sockaddr_storage = mem::zeroed();
        let mut len = mem::size_of_val(&raw) as libc::socklen_t;
        cvt(libc::getsockname(fd.as_raw_fd(), (&raw mut raw).cast(), &raw mut len))?;
        raw
    };
    Ok(from_raw(&raw))
}

/// Milliseconds of CPU time used by this process, and its resident memory in bytes.
pub(crate) fn usage() -> (u64, u64) {
    // SAFETY: all-zero is a valid rusage and the kernel fills it.
    let ru = unsafe {
        let mut ru: libc::rusage = mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &raw mut ru);
        ru
    };
    let ms = |t: libc::timeval| t.tv_sec as u64 * 1000 + t.tv_usec as u64 / 1000;
    let pages: u64 = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|s| s.split(' ').nth(1)?.parse().ok())
        .unwrap_or(0);
    (ms(ru.ru_utime) + ms(ru.ru_stime), pages * 4096)
}

fn tcp_socket(addr: SocketAddr) -> io::Result<OwnedFd> {
    let family = if addr.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET };
    // SAFETY: no pointers.
    let fd = cvt(unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just created, owned here.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_int(fd: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: `value` is read over the call.
    cvt(unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    })
    .map(drop)
}

fn to_raw(addr: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_storage, which is large and aligned enough for both families.
    unsafe {
        let mut raw: libc::sockaddr_storage = mem::zeroed();
        let len = match addr {
            SocketAddr::V4(a) => {
                let p = (&raw mut raw).cast::<libc::sockaddr_in>();
                (*p).sin_family = libc::AF_INET as libc::sa_family_t;
                (*p).sin_port = a.port().to_be();
                (*p).sin_addr.s_addr = u32::from_ne_bytes(a.ip().octets());
                mem::size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(a) => {
                let p = (&raw mut raw).cast::<libc::sockaddr_in6>();
                (*p).sin6_family = libc::AF_INET6 as libc::sa_family_t;
                (*p).sin6_port = a.port().to_be();
                (*p).sin6_addr.s6_addr = a.ip().octets();
                (*p).sin6_scope_id = a.scope_id();
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        (raw, len as libc::socklen_t)
    }
}

fn from_raw(raw: &libc::sockaddr_storage) -> SocketAddr {
    // SAFETY: the family says which of the two layouts the kernel wrote.
    unsafe {
        if i32::from(raw.ss_family) == libc::AF_INET6 {
            let p = &*(&raw const *raw).cast::<libc::sockaddr_in6>();
            SocketAddr::new(
                IpAddr::V6(Ipv6Addr::from(p.sin6_addr.s6_addr)),
                u16::from_be(p.sin6_port),
            )
        } else {
            let p = &*(&raw const *raw).cast::<libc::sockaddr_in>();
            SocketAddr::new(
                IpAddr::V4(Ipv4Addr::from(p.sin_addr.s_addr.to_ne_bytes())),
                u16::from_be(p.sin_port),
            )
        }
    }
}

fn cvt(r: i32) -> io::Result<i32> {
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(r) }
}

fn size(r: isize) -> io::Result<usize> {
    usize::try_from(r).map_err(|_| io::Error::last_os_error())
}
