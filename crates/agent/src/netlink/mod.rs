//! A small netlink client: addresses, links, their events, and generic netlink families.
//!
//! Written by ourselves because the agent needs a dozen messages of rtnetlink and must not block its VRRP thread on an
//! async runtime. [`Netlink`] is one request socket; [`route`] knows addresses and links, [`generic`] resolves families.

pub(crate) mod codec;
pub mod generic;
pub mod route;
mod sys;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use codec::{Message, MessageBuilder, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR};
pub(crate) use sys::RawSocket;

/// Largest datagram the kernel sends (NLMSG_GOODSIZE is at most 32 KiB for dumps with a large receive buffer).
const RECEIVE_BUFFER: usize = 64 * 1024;
/// The kernel answers requests synchronously; anything slower than this is a bug or a wedged lock, and must not hang us.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// A dump during which the table changed is repeated this often before its last result is taken as good enough.
const DUMP_RETRIES: usize = 3;

/// What can go wrong when talking to the kernel over netlink.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be opened or used.
    #[error("netlink: {operation}: {source}")]
    Socket {
        /// What was being done.
        operation: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel refused the request.
    #[error("netlink: {operation}: {source}{}", .text.as_ref().map(|text| format!(" ({text})")).unwrap_or_default())]
    Refused {
        /// What was asked for.
        operation: String,
        /// The error number as an `io::Error`.
        source: io::Error,
        /// The kernel's own explanation, where it sent one.
        text: Option<String>,
    },
    /// A generic netlink family is not there.
    #[error("the kernel has no netlink family {family}: its module is not loaded or was not built")]
    NoFamily {
        /// Name of the family.
        family: &'static str,
    },
    /// A network interface is not there.
    #[error("network interface {name} does not exist")]
    NoInterface {
        /// Name of the interface.
        name: String,
    },
    /// A network namespace could not be entered.
    #[error("network namespace {path}: {source}")]
    Namespace {
        /// Its path.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
}

impl Error {
    /// The error number behind it, if the kernel refused.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } | Self::Socket { source, .. } | Self::Namespace { source, .. } => {
                source.raw_os_error()
            }
            Self::NoFamily { .. } | Self::NoInterface { .. } => None,
        }
    }
}

/// Which netlink protocol a [`Netlink`] speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum Protocol {
    /// Addresses, links, routes.
    Route = libc::NETLINK_ROUTE,
    /// Generic netlink families.
    Generic = libc::NETLINK_GENERIC,
    /// Listing and destroying sockets.
    SockDiag = 4,
    /// Packet filter and address translation.
    Netfilter = libc::NETLINK_NETFILTER,
}

/// One request-and-answer socket. Not shared between threads.
#[derive(Debug)]
pub struct Netlink {
    socket: RawSocket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket in the calling thread's network namespace.
    pub fn open(protocol: Protocol) -> Result<Self, Error> {
        let socket = RawSocket::open(protocol as i32, 0)
            .and_then(|socket| socket.set_receive_timeout(ANSWER_TIMEOUT).map(|()| socket))
            .map_err(|source| Error::Socket {
                operation: "opening a socket",
                source,
            })?;
        Ok(Self {
            socket,
            sequence: 0,
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// Sends one request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, operation: &str, message: MessageBuilder) -> Result<(), Error> {
        self.exchange(operation, message, NLM_F_ACK, |_| {}).map(drop)
    }

    /// Sends one request whose answer is one message and an acknowledgement.
    pub(crate) fn query(
        &mut self,
        operation: &str,
        message: MessageBuilder,
        each: impl FnMut(&Message<'_>),
    ) -> Result<(), Error> {
        self.exchange(operation, message, NLM_F_ACK, each).map(drop)
    }

    /// Asks for a table; `read` turns each message into an entry. A dump that raced with a change is repeated.
    pub(crate) fn dump<T>(
        &mut self,
        operation: &str,
        message: impl Fn() -> MessageBuilder,
        mut read: impl FnMut(&Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        let mut entries = Vec::new();
        for _ in 0..DUMP_RETRIES {
            entries.clear();
            let consistent = self.exchange(operation, message(), NLM_F_DUMP, |message| {
                entries.extend(read(message))
            })?;
            if consistent {
                break;
            }
        }
        Ok(entries)
    }

    /// Returns whether the answer was consistent (no `NLM_F_DUMP_INTR` seen).
    fn exchange(
        &mut self,
        operation: &str,
        message: MessageBuilder,
        flags: u16,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<bool, Error> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut bytes = message.finish(self.sequence);
        let old = u16::from_ne_bytes([bytes[6], bytes[7]]);
        bytes[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
        self.socket.send(&bytes).map_err(|source| Error::Socket {
            operation: "sending a request",
            source,
        })?;
        let mut consistent = true;
        loop {
            let datagram = self
                .socket
                .receive(&mut self.buffer, true)
                .map_err(|source| Error::Socket {
                    operation: "waiting for the kernel's answer",
                    source,
                })?;
            for message in codec::messages(datagram) {
                if message.sequence != self.sequence {
                    continue; // the rest of an answer that an earlier time-out left behind
                }
                consistent &= message.flags & NLM_F_DUMP_INTR == 0;
                match message.kind {
                    NLMSG_DONE => {
                        // A dump that fails carries its error number in the end marker.
                        let code = codec::u32_at(message.payload, 0).map_or(0, |code| code as i32);
                        return if code < 0 {
                            Err(refused(operation, -code, None))
                        } else {
                            Ok(consistent)
                        };
                    }
                    NLMSG_ERROR => {
                        return codec::acknowledgement(&message)
                            .map(|()| consistent)
                            .map_err(|(errno, text)| refused(operation, errno, text));
                    }
                    _ => each(&message),
                }
            }
        }
    }
}

/// Runs `work` inside each of the network namespaces at `paths` (for example `/run/netns/x` or `/proc/7/ns/net`), one
/// after the other, on one helper thread: `setns` changes the calling thread for good.
pub fn in_namespaces<P: AsRef<Path> + Sync, T: Send>(
    paths: &[P],
    mut work: impl FnMut(&Path) -> T + Send,
) -> Result<Vec<Result<T, Error>>, Error> {
    if paths.is_empty() {
        return Ok(Vec::new());
    }
    let mut enter = move |path: &Path| -> Result<T, Error> {
        File::open(path)
            .and_then(|namespace| sys::enter_network_namespace(namespace.as_fd()))
            .map_err(|source| Error::Namespace {
                path: path.display().to_string(),
                source,
            })?;
        Ok(work(path))
    };
    std::thread::scope(|scope| {
        let helper = std::thread::Builder::new()
            .name("netns-helper".to_owned())
            .spawn_scoped(scope, move || paths.iter().map(|path| enter(path.as_ref())).collect())
            .map_err(|source| Error::Socket {
                operation: "starting a helper thread",
                source,
            })?;
        match helper.join() {
            Ok(results) => Ok(results),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

fn refused(operation: &str, errno: i32, text: Option<String>) -> Error {
    Error::Refused {
        operation: operation.to_owned(),
        source: io::Error::from_raw_os_error(errno),
        text,
    }
}
