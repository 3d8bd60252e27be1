//! A bad link: carries frames between two interfaces of a namespace, late and not all of them.
#![allow(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
const EVERY_ETHERTYPE: u16 = 0x0003;

/// How bad.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Badness {
    /// Frames lost, of each hundred.
    pub(crate) loss: u64,
    /// Each frame is late by a time between zero and this one, so that they overtake each other.
    pub(crate) jitter: Duration,
}

/// Runs until dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Relay {
    pub(crate) fn start(namespace: PathBuf, interfaces: [String; 2], badness: Badness) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let carry = |_: &std::path::Path| carry(&interfaces.clone().map(|name| open(&name)), badness, &ended);
            let results = quorate_agent::netlink::in_namespaces(&[namespace], carry);
            results.expect("thread").pop().expect("one").expect("namespace");
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn carry(sockets: &[OwnedFd; 2], badness: Badness, stop: &AtomicBool) {
    let mut waiting: BinaryHeap<Reverse<(Instant, usize, Vec<u8>)>> = BinaryHeap::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below.max(1)
    };
    while !stop.load(Ordering::Relaxed) {
        for (from, socket) in sockets.iter().enumerate() {
            while let Some(frame) = receive(socket) {
                if random(100) >= badness.loss {
                    let late = Duration::from_micros(random(badness.jitter.as_micros() as u64));
                    waiting.push(Reverse((Instant::now() + late, 1 - from, frame)));
                }
            }
        }
        while waiting.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
            if let Some(Reverse((_, to, frame))) = waiting.pop() {
                send(&sockets[to], &frame);
            }
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn receive(socket: &OwnedFd) -> Option<Vec<u8>> {
    let mut frame = vec![0u8; 2048];
    // SAFETY: pointer and length describe `frame`, which outlives the call.
    let got = unsafe {
        libc::recv(
            socket.as_raw_fd(),
            frame.as_mut_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
        )
    };
    frame.truncate(usize::try_from(got).ok()?);
    Some(frame)
}

fn send(socket: &OwnedFd, frame: &[u8]) {
    // SAFETY: pointer and length describe `frame`, which outlives the call. A frame that is not taken is one more lost.
    unsafe {
        libc::send(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
        )
    };
}

fn open(name: &str) -> OwnedFd {
    let text = CString::new(name).expect("name");
    // SAFETY: all-zero bytes are valid for sockaddr_ll and packet_mreq; every pointer is to a local with its exact size.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "packet socket");
        let socket = OwnedFd::from_raw_fd(fd);
        let index = libc::if_nametoindex(text.as_ptr()) as i32;
        assert!(index > 0, "no interface {name}");
        let one = 1i32;
        let mut promiscuous: libc::packet_mreq = std::mem::zeroed();
        promiscuous.mr_ifindex = index;
        promiscuous.mr_type = libc::PACKET_MR_PROMISC as u16;
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = EVERY_ETHERTYPE.to_be();
        address.sll_ifindex = index;
        let size = |bytes: usize| bytes as libc::socklen_t;
        libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            PACKET_IGNORE_OUTGOING,
            (&raw const one).cast(),
            size(4),
        );
        libc::setsockopt(
            fd,
            libc::SOL_PACKET,
            libc::PACKET_ADD_MEMBERSHIP,
            (&raw const promiscuous).cast(),
            size(size_of_val(&promiscuous)),
        );
        assert_eq!(
            libc::bind(fd, (&raw const address).cast(), size(size_of_val(&address))),
            0,
            "bind"
        );
        socket
    }
}
