//! Clients and servers in one epoll loop on one CPU, so that the proxy's CPU is its own.
//!
//! A client's first byte says what it wants of the server: `C` one answer, then close; `E` every message
//! back; `S` bytes without end; `I` one byte, then silence; a ClientHello one byte as well.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::sys::{self, Epoll, IN, OUT};

/// Size of a request and of its answer.
pub(crate) const MESSAGE: usize = 128;
const BLOCK: usize = 256 * 1024;

enum Role {
    Listener(TcpListener),
    /// A server's connection that has not said what it wants.
    Fresh,
    Echo,
    Source,
    Quiet,
    /// A client waiting for an answer and the end, since when.
    OneShot {
        since: Instant,
        sent: bool,
        got: usize,
    },
    Asker {
        since: Option<Instant>,
    },
    Sink,
}

struct Peer {
    role: Role,
    stream: Option<TcpStream>,
}

/// What was seen.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) connections: u64,
    pub(crate) failed: u64,
    pub(crate) bytes: u64,
    /// Nanoseconds from when a request was due until its answer was there.
    pub(crate) latencies: Vec<u64>,
}

pub(crate) struct World {
    epoll: Epoll,
    peers: Vec<Option<Peer>>,
    free: Vec<usize>,
    target: SocketAddr,
    pub(crate) seen: Seen,
    block: Vec<u8>,
    idle: Vec<usize>,
}

impl World {
    /// Servers on free ports of loopback; clients go to `target` once set.
    pub(crate) fn new(servers: usize) -> io::Result<(Self, Vec<SocketAddr>)> {
        let mut w = Self {
            epoll: Epoll::new()?,
            peers: Vec::new(),
            free: Vec::new(),
            target: ([127, 0, 0, 1], 0).into(),
            seen: Seen::default(),
            block: vec![b'x'; BLOCK],
            idle: Vec::new(),
        };
        let mut addrs = Vec::new();
        for _ in 0..servers {
            let l = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            l.set_reuse_address(true)?;
            l.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
            l.listen(4096)?;
            l.set_nonblocking(true)?;
            let l: TcpListener = l.into();
            addrs.push(l.local_addr()?);
            let token = w.put(Peer {
                role: Role::Fresh,
                stream: None,
            });
            w.epoll.add(&l, IN, token as u64)?;
            w.peers[token] = Some(Peer {
                role: Role::Listener(l),
                stream: None,
            });
        }
        Ok((w, addrs))
    }

    pub(crate) fn target(&mut self, target: SocketAddr) {
        self.target = target;
        self.seen = Seen::default();
    }

    /// Ends all connections; the servers stay.
    pub(crate) fn clear(&mut self) {
        for i in 0..self.peers.len() {
            if self.peers[i]
                .as_ref()
                .is_some_and(|p| !matches!(p.role, Role::Listener(_)))
            {
                self.peers[i] = None;
                self.free.push(i);
            }
        }
        self.idle.clear();
    }

    /// New connections one after the other, `parallel` at a time.
    pub(crate) fn connections(&mut self, parallel: usize, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        for _ in 0..parallel {
            self.one_shot(Instant::now());
        }
        let mut events = Vec::new();
        while Instant::now() < end {
            self.epoll.wait(&mut events, 10)?;
            for &(t, e) in &events {
                if self.serve(t as usize, e) {
                    self.one_shot(Instant::now());
                }
            }
        }
        Ok(())
    }

    /// New connections at a fixed rate, whatever the answers.
    pub(crate) fn connections_at(&mut self, per_second: f64, time: Duration) -> io::Result<()> {
        self.open_loop(per_second, time, |w, due| {
            w.one_shot(due);
            true
        })
    }

    /// Requests over `parallel` standing connections at a fixed rate.
    pub(crate) fn requests_at(&mut self, parallel: usize, per_second: f64, time: Duration) -> io::Result<()> {
        self.askers(parallel)?;
        self.open_loop(per_second, time, Self::ask)
    }

    /// Requests over standing connections, each as soon as the one before is answered.
    pub(crate) fn requests(&mut self, parallel: usize, time: Duration) -> io::Result<()> {
        self.askers(parallel)?;
        let end = Instant::now() + time;
        let mut events = Vec::new();
        while Instant::now() < end {
            while self.ask(Instant::now()) {}
            self.epoll.wait(&mut events, 10)?;
            for &(t, e) in &events {
                self.serve(t as usize, e);
            }
        }
        Ok(())
    }

    /// Bytes from servers to `streams` clients.
    pub(crate) fn stream(&mut self, streams: usize, time: Duration) -> io::Result<()> {
        for _ in 0..streams {
            let mut s = TcpStream::connect(self.target)?;
            s.write_all(b"S")?;
            s.set_nonblocking(true)?;
            self.watch(Role::Sink, s);
        }
        self.turn(Duration::from_millis(200))?;
        self.seen = Seen::default();
        self.turn(time)
    }

    /// Connections that have said one byte and stay.
    pub(crate) fn idle(&mut self, n: usize) -> io::Result<Vec<TcpStream>> {
        let mut held = Vec::with_capacity(n);
        while held.len() < n {
            let mut s = TcpStream::connect(self.target)?;
            s.write_all(b"I")?;
            held.push(s);
            if held.len() % 64 == 0 {
                self.turn(Duration::from_millis(10))?;
            }
        }
        self.turn(Duration::from_millis(200))?;
        Ok(held)
    }

    /// Serves for a while.
    pub(crate) fn turn(&mut self, time: Duration) -> io::Result<()> {
        let end = Instant::now() + time;
        let mut events = Vec::new();
        while Instant::now() < end {
            self.epoll.wait(&mut events, 10)?;
            for &(t, e) in &events {
                self.serve(t as usize, e);
            }
        }
        Ok(())
    }

    fn open_loop(
        &mut self,
        per_second: f64,
        time: Duration,
        mut go: impl FnMut(&mut Self, Instant) -> bool,
    ) -> io::Result<()> {
        let start = Instant::now();
        let total = (per_second * time.as_secs_f64()) as u64;
        let mut events = Vec::new();
        let mut next = 0;
        // Until everything is answered, at most a second more.
        let done = |w: &Self| w.seen.latencies.len() as u64 + w.seen.failed >= total;
        while start.elapsed() < time + Duration::from_secs(1) && !(next == total && done(self)) {
            while next < total {
                let due = start + Duration::from_secs_f64(next as f64 / per_second);
                if due > Instant::now() || !go(self, due) {
                    break;
                }
                next += 1;
            }
            // Spinning: sleeping would add its own latency to both.
            self.epoll.wait(&mut events, 0)?;
            for &(t, e) in &events {
                self.serve(t as usize, e);
            }
        }
        Ok(())
    }

    fn askers(&mut self, parallel: usize) -> io::Result<()> {
        for _ in 0..parallel {
            let s = TcpStream::connect(self.target)?;
            s.set_nonblocking(true)?;
            s.set_nodelay(true)?;
            let i = self.watch(Role::Asker { since: None }, s);
            self.idle.push(i);
        }
        Ok(())
    }

    /// Sends a request on an idle connection; false when there is none.
    fn ask(&mut self, due: Instant) -> bool {
        let Some(i) = self.idle.pop() else { return false };
        let mut message = [b'x'; MESSAGE];
        message[0] = b'E';
        if let Some(Peer {
            role: Role::Asker { since },
            stream: Some(s),
        }) = &mut self.peers[i]
        {
            *since = Some(due);
            if s.write(&message).is_err() {
                self.seen.failed += 1;
                self.drop_peer(i);
            }
        }
        true
    }

    fn one_shot(&mut self, since: Instant) {
        let connect = || -> io::Result<TcpStream> {
            let s = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
            s.set_nonblocking(true)?;
            match s.connect(&self.target.into()) {
                Ok(()) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
                Err(e) => return Err(e),
            }
            Ok(s.into())
        };
        match connect() {
            Ok(s) => {
                let i = self.put(Peer {
                    role: Role::OneShot {
                        since,
                        sent: false,
                        got: 0,
                    },
                    stream: None,
                });
                let _ = self.epoll.add(&s, OUT, i as u64);
                if let Some(p) = &mut self.peers[i] {
                    p.stream = Some(s);
                }
            }
            Err(_) => self.seen.failed += 1,
        }
    }

    fn put(&mut self, p: Peer) -> usize {
        match self.free.pop() {
            Some(i) => {
                self.peers[i] = Some(p);
                i
            }
            None => {
                self.peers.push(Some(p));
                self.peers.len() - 1
            }
        }
    }

    fn watch(&mut self, role: Role, s: TcpStream) -> usize {
        let i = self.put(Peer { role, stream: None });
        let _ = self.epoll.add(&s, IN, i as u64);
        if let Some(p) = &mut self.peers[i] {
            p.stream = Some(s);
        }
        i
    }

    fn drop_peer(&mut self, i: usize) {
        self.peers[i] = None;
        self.free.push(i);
    }

    /// True when a one-shot connection ended.
    fn serve(&mut self, i: usize, events: u32) -> bool {
        let Some(mut p) = self.peers.get_mut(i).and_then(Option::take) else {
            return false;
        };
        if let Role::Listener(l) = &p.role {
            let mut new = Vec::new();
            while let Ok((s, _)) = l.accept() {
                new.push(s);
            }
            self.peers[i] = Some(p);
            for s in new {
                let _ = s.set_nonblocking(true);
                let _ = s.set_nodelay(true);
                self.watch(Role::Fresh, s);
            }
            return false;
        }
        let Some(s) = &mut p.stream else { return false };
        let token = i as u64;
        let mut over = false;
        let mut end = false;
        match &mut p.role {
            Role::Listener(_) => {}
            Role::Fresh | Role::Echo | Role::Quiet => {
                let mut buf = [0; 4096];
                match s.read(&mut buf) {
                    Ok(0) => over = true,
                    Ok(n) => match buf[0] {
                        b'C' => {
                            over = true;
                            let _ = s.write(&self.block[..MESSAGE]);
                        }
                        b'E' => {
                            p.role = Role::Echo;
                            let _ = s.write(&buf[..n]);
                        }
                        b'S' => {
                            p.role = Role::Source;
                            let _ = self.epoll.change(s, OUT, token);
                        }
                        b'G' => {
                            let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok";
                            let _ = s.write(ok);
                            over = true;
                        }
                        _ => {
                            p.role = Role::Quiet;
                            let _ = s.write(b"k");
                        }
                    },
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    Err(_) => over = true,
                }
            }
            Role::Source => match s.write(&self.block) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => over = true,
            },
            Role::Sink => match sys::discard(s, BLOCK * 4) {
                Ok(0) => over = true,
                Ok(n) => self.seen.bytes += n as u64,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                Err(_) => over = true,
            },
            Role::OneShot { since, sent, got } => {
                if !*sent && events & OUT != 0 {
                    let mut message = [b'x'; MESSAGE];
                    message[0] = b'C';
                    *sent = true;
                    if s.write(&message).is_err() {
                        self.seen.failed += 1;
                        (over, end) = (true, true);
                    }
                    let _ = self.epoll.change(s, IN, token);
                } else {
                    let mut buf = [0; 1024];
                    match s.read(&mut buf) {
                        Ok(0) => {
                            if *got < MESSAGE {
                                self.seen.failed += 1;
                            } else {
                                self.seen.connections += 1;
                            }
                            (over, end) = (true, true);
                        }
                        Ok(n) => {
                            *got += n;
                            if *got == MESSAGE {
                                self.seen.latencies.push(since.elapsed().as_nanos() as u64);
                            }
                        }
                        Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                        Err(_) => {
                            self.seen.failed += 1;
                            (over, end) = (true, true);
                        }
                    }
                }
            }
            Role::Asker { since } => {
                let mut buf = [0; 1024];
                match s.read(&mut buf) {
                    Ok(n) if n > 0 => {
                        if let Some(t) = since.take() {
                            self.seen.latencies.push(t.elapsed().as_nanos() as u64);
                            self.idle.push(i);
                        }
                    }
                    Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                    _ => {
                        self.seen.failed += 1;
                        over = true;
                    }
                }
            }
        }
        if over {
            self.free.push(i);
        } else {
            self.peers[i] = Some(p);
        }
        end
    }
}
