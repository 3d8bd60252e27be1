//! One proxied connection: what it holds and how bytes move through it.
//!
//! An idle connection holds no buffer. Bytes are copied through one buffer of the worker; only what the
//! receiver does not take is kept. A direction whose reads keep filling that buffer is spliced through a
//! pipe from the worker's pool instead, and gives the pipe back whenever it runs dry.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::frontend::{Frontend, Lease};
use super::sys::{self, Pipe};

/// Size of the worker's copy buffer. Half of a core's L2 cache or less on everything sold in ten years.
pub(super) const BUFFER: usize = 64 * 1024;
/// A read of at least this much is "the stream is bulk": splicing costs less than copying from here on.
const BULK_READ: usize = 48 * 1024;
/// Consecutive bulk reads before a direction is spliced.
const BULK_STREAK: u8 = 2;
/// Spliced reads below this size count as small ...
const SMALL_READ: usize = 8 * 1024;
/// ... and after this many in a row the direction is copied again.
const SMALL_STREAK: u8 = 8;
/// Most bytes asked from one splice.
const SPLICE_MAX: usize = 1 << 20;
/// Moves per wake-up of one direction before other connections get their turn.
const BUDGET: u32 = 16;

/// What moves bytes for all connections of a worker.
pub(super) struct Io {
    pub(super) buf: Box<[u8]>,
    pipes: Vec<Pipe>,
    /// Pipes in the pool and in use.
    made: usize,
    max_pipes: usize,
    pipe_size: i32,
}

impl Io {
    pub(super) fn new(max_pipes: usize, pipe_size: i32) -> Self {
        Self {
            buf: vec![0; BUFFER].into(),
            pipes: Vec::new(),
            made: 0,
            max_pipes,
            pipe_size,
        }
    }

    fn take_pipe(&mut self) -> Option<Pipe> {
        if let Some(p) = self.pipes.pop() {
            return Some(p);
        }
        if self.made >= self.max_pipes {
            return None;
        }
        let p = Pipe::new(self.pipe_size).ok()?;
        self.made += 1;
        Some(p)
    }

    /// Takes a pipe back; one that still holds bytes of a dead connection is closed.
    fn give_pipe(&mut self, p: Pipe) {
        // Few are kept: an idle agent holds no descriptors it does not need.
        if p.len == 0 && self.pipes.len() < 16 {
            self.pipes.push(p);
        } else {
            self.made -= 1;
        }
    }
}

/// One socket and what epoll last said about it (edge triggered: true until proven otherwise).
pub(super) struct Side {
    pub(super) fd: OwnedFd,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The peer's end of stream or an error is on its way: read until it shows.
    pub(super) ending: bool,
    /// It is an end of stream in order: behind what is in the queue there is nothing more.
    pub(super) finished: bool,
}

impl Side {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            readable: false,
            writable: true,
            ending: false,
            finished: false,
        }
    }

    pub(super) fn note(&mut self, flags: u32) {
        let end = flags & (sys::RDHUP | sys::HUP | sys::ERR) != 0;
        self.readable |= end || flags & sys::IN != 0;
        self.writable |= flags & (sys::OUT | sys::HUP | sys::ERR) != 0;
        self.ending |= end;
        // A read stops short of urgent data, too.
        self.finished |= flags & (sys::RDHUP | sys::ERR | sys::PRI) == sys::RDHUP;
    }
}

/// Bytes read that the receiver did not take yet.
pub(super) struct Pending {
    data: Box<[u8]>,
    sent: usize,
}

/// One direction of a connection.
#[derive(Default)]
pub(super) struct Direction {
    pending: Option<Box<Pending>>,
    pipe: Option<Pipe>,
    /// The sender's end of stream was read.
    eof: bool,
    /// ... and passed on.
    closed: bool,
    bulk: bool,
    streak: u8,
}

impl Direction {
    /// Puts bytes in front of everything still to be read.
    pub(super) fn preload(&mut self, data: &[u8]) {
        if !data.is_empty() {
            self.pending = Some(Box::new(Pending {
                data: data.into(),
                sent: 0,
            }));
        }
    }

    pub(super) fn set_eof(&mut self) {
        self.eof = true;
    }

    pub(super) fn holds_bytes(&self) -> bool {
        self.pending.is_some() || self.pipe.as_ref().is_some_and(|p| p.len > 0)
    }
}

/// How a turn of one direction ended.
enum Turn {
    /// Nothing more to do until epoll says so.
    Rest,
    /// More could be moved at once, after the others.
    More,
}

/// Which socket an error came from.
enum Broken {
    Sender,
    Receiver,
}

/// What a connection wants after its turn.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    Wait,
    Again,
    /// Both directions ended in order.
    Done,
    /// One side broke: reset both.
    Reset,
}

/// An established connection's server side.
pub(super) struct Server {
    pub(super) side: Side,
    /// Which of the dial's attempts it was (its epoll token carries the number).
    pub(super) number: u8,
    pub(super) lease: Lease,
}

/// A client and, once chosen, its backend.
pub(super) struct Conn {
    pub(super) frontend: Arc<Frontend>,
    pub(super) source: SocketAddr,
    pub(super) client: Side,
    pub(super) server: Option<Server>,
    pub(super) up: Direction,
    pub(super) down: Direction,
    pub(super) dial: Option<Box<super::dial::Dial>>,
    /// Counted in the frontend's table of sources.
    pub(super) counted: bool,
}

impl Conn {
    pub(super) fn new(frontend: Arc<Frontend>, client: OwnedFd, source: SocketAddr) -> Self {
        Self {
            frontend,
            source,
            client: Side::new(client),
            server: None,
            up: Direction::default(),
            down: Direction::default(),
            dial: None,
            counted: false,
        }
    }

    /// No longer among the waiting clients.
    pub(super) fn unqueue(&mut self) {
        if self.dial.as_mut().is_some_and(|d| d.queued.take().is_some()) {
            self.frontend.counters.queued.fetch_sub(1, Relaxed);
        }
    }

    /// Moves what can be moved in both directions.
    pub(super) fn pump(&mut self, io: &mut Io) -> Outcome {
        let Some(server) = self.server.as_mut() else {
            return Outcome::Wait;
        };
        let (mut up_bytes, mut down_bytes) = (0, 0);
        let last = self.down.closed;
        let up = pump(
            &mut self.client,
            &mut server.side,
            &mut self.up,
            last,
            io,
            &mut up_bytes,
        );
        let last = self.up.closed;
        let down = pump(
            &mut server.side,
            &mut self.client,
            &mut self.down,
            last,
            io,
            &mut down_bytes,
        );
        let outcome = match (up, down) {
            (Ok(u), Ok(d)) => {
                if self.up.closed && self.down.closed {
                    Outcome::Done
                } else if matches!(u, Turn::More) || matches!(d, Turn::More) {
                    Outcome::Again
                } else {
                    Outcome::Wait
                }
            }
            // The server closed while the client was still sending: its last words (an answer sent before
            // it hung up) were passed on by the turn downwards, as far as the client takes them.
            (Err(Broken::Receiver), Ok(Turn::More)) => Outcome::Again,
            _ => Outcome::Reset,
        };
        server.lease.backend.count_bytes(up_bytes, down_bytes);
        outcome
    }

    /// Gives back what belongs to the worker. The sockets close when the connection is dropped.
    pub(super) fn release(&mut self, io: &mut Io) {
        for d in [&mut self.up, &mut self.down] {
            if let Some(p) = d.pipe.take() {
                io.give_pipe(p);
            }
        }
    }

    /// Ends both sides with RST.
    pub(super) fn reset(self) {
        sys::reset(self.client.fd);
        if let Some(s) = self.server {
            sys::reset(s.side.fd);
        }
        for a in self.dial.into_iter().flat_map(|d| d.attempts).flatten() {
            sys::reset(a.fd);
        }
    }
}

fn pump(
    from: &mut Side,
    to: &mut Side,
    dir: &mut Direction,
    // The other direction has ended: closing the socket will say the same as ending this one.
    last: bool,
    io: &mut Io,
    moved: &mut u64,
) -> Result<Turn, Broken> {
    if dir.closed {
        return Ok(Turn::Rest);
    }
    let mut budget = BUDGET;
    loop {
        if dir.holds_bytes() && !flush(to, dir, moved)? {
            // The receiver is full. If the sender broke meanwhile nobody wants the rest.
            return Ok(Turn::Rest);
        }
        if dir.eof {
            if !last {
                // An error here shows at the next read of that side.
                let _ = sys::shutdown_write(&to.fd);
            }
            dir.closed = true;
            rest(dir, io);
            return Ok(Turn::Rest);
        }
        if !from.readable {
            rest(dir, io);
            return Ok(Turn::Rest);
        }
        if budget == 0 {
            return Ok(Turn::More);
        }
        budget -= 1;
        if dir.bulk && dir.pipe.is_none() {
            dir.pipe = io.take_pipe();
        }
        match &mut dir.pipe {
            Some(pipe) => match pipe.fill(&from.fd, SPLICE_MAX) {
                Ok(0) => dir.eof = true,
                Ok(n) if n < SMALL_READ => {
                    dir.streak += 1;
                    if dir.streak >= SMALL_STREAK {
                        dir.bulk = false;
                        dir.streak = 0;
                        // The pipe is given back after the flush at the head of the loop.
                    }
                }
                Ok(_) => dir.streak = 0,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => from.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Sender),
            },
            None => match sys::recv(&from.fd, &mut io.buf) {
                Ok(0) => dir.eof = true,
                Ok(n) => {
                    copy(&io.buf[..n], to, dir, from.ending, moved)?;
                    if n < BUFFER {
                        // A short read emptied the queue. What comes next raises a new edge, unless the end came already.
                        dir.eof = from.finished;
                        from.readable &= from.ending;
                    }
                    if n >= BULK_READ {
                        dir.streak += 1;
                        if dir.streak >= BULK_STREAK {
                            dir.bulk = true;
                            dir.streak = 0;
                        }
                    } else {
                        dir.streak = 0;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => from.readable = false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Broken::Sender),
            },
        }
    }
}

/// Sends what is held back; true when all of it went.
fn flush(to: &mut Side, dir: &mut Direction, moved: &mut u64) -> Result<bool, Broken> {
    while dir.holds_bytes() {
        if !to.writable {
            return Ok(false);
        }
        let sent = match (&mut dir.pending, &mut dir.pipe) {
            (Some(p), _) => sys::send(&to.fd, &p.data[p.sent..]).inspect(|n| p.sent += n),
            (None, Some(pipe)) => pipe.drain(&to.fd),
            (None, None) => return Ok(true),
        };
        match sent {
            Ok(n) => {
                *moved += n as u64;
                if dir.pending.as_ref().is_some_and(|p| p.sent == p.data.len()) {
                    dir.pending = None;
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable = false,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Broken::Receiver),
        }
    }
    Ok(true)
}

/// Sends freshly read bytes, keeping what is not taken. Before an end that is already known to come they wait
/// for its FIN, which saves a packet of each short connection.
fn copy(data: &[u8], to: &mut Side, dir: &mut Direction, ending: bool, moved: &mut u64) -> Result<(), Broken> {
    let send = if ending { sys::send_more } else { sys::send };
    let mut sent = 0;
    while sent < data.len() {
        if !to.writable {
            dir.preload(&data[sent..]);
            return Ok(());
        }
        match send(&to.fd, &data[sent..]) {
            Ok(n) => {
                sent += n;
                *moved += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => to.writable = false,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(Broken::Receiver),
        }
    }
    Ok(())
}

/// Nothing moves: hand the empty pipe back.
fn rest(dir: &mut Direction, io: &mut Io) {
    if let Some(p) = dir.pipe.take_if(|p| p.len == 0) {
        io.give_pipe(p);
    }
}
