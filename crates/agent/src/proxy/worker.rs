//! One worker thread: its epoll loop, listeners, connections and timers.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::conn::{Conn, Io, Outcome};
use super::dial::{self, SIDE};
use super::frontend::{Backend, Choice, Frontend, Lease};
use super::sys::{self, Epoll, Event, Waker};
use super::wheel::Wheel;

/// Accepted per wake-up of a listener before established connections get their turn.
const ACCEPT_BATCH: usize = 64;
/// Pause of a listener that cannot accept (no descriptors left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often waiting clients look for a free place when no connection of this worker ends.
const QUEUE_LOOK: Duration = Duration::from_millis(10);
/// Most pipes per worker: 64 bulk directions at once, the others are copied.
const MAX_PIPES: usize = 64;
/// A worker that has not turned its loop for so long after it was asked to hangs.
const HUNG: Duration = Duration::from_secs(2);
const LISTENER: u64 = 1 << 63;
const WAKER: u64 = u64::MAX;

/// Why an attempt at a backend failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Refused,
    /// Not connected within the time for all attempts.
    Timeout,
    Unreachable,
    /// Not connected within the hedging delay.
    Slow,
    /// Connected, but did not answer a ClientHello in time.
    Silent,
    /// Connected, then closed before its first byte.
    Closed,
    /// This machine's own fault (ports, descriptors, memory).
    Local,
    /// Declared dead meanwhile.
    Killed,
}

/// A failed attempt, as workers tell the core.
#[derive(Clone, Debug)]
pub struct Report {
    pub frontend: String,
    pub backend: String,
    pub fault: Fault,
    pub took: Duration,
}

/// Receives reports; called from worker threads, must not block.
pub type Sink = Arc<dyn Fn(Report) + Send + Sync>;

/// What a worker is told.
pub(super) enum Command {
    Listen {
        frontend: Arc<Frontend>,
        fd: OwnedFd,
    },
    /// Closes this worker's listeners of a frontend; connections stay.
    Unlisten {
        frontend: String,
    },
    /// Resets every client of a backend, spread at random over a time.
    Kill {
        backend: Arc<Backend>,
        spread: Duration,
    },
    /// Accepts no more; ends when the last connection has, or at the deadline.
    Drain {
        deadline: Instant,
    },
    /// Shows that the loop turns.
    Beat,
}

/// A worker as others see it.
pub(super) struct Handle {
    inbox: Mutex<Vec<Command>>,
    waker: Waker,
    pub(super) connections: AtomicUsize,
    pub(super) finished: AtomicBool,
    /// Milliseconds when a [`Command::Beat`] was given that was not taken yet; 0: none.
    asked: AtomicU64,
}

impl Handle {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            inbox: Mutex::default(),
            waker: Waker::new()?,
            connections: AtomicUsize::new(0),
            finished: AtomicBool::new(false),
            asked: AtomicU64::new(0),
        })
    }

    pub(super) fn tell(&self, c: Command) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).push(c);
        self.waker.wake();
    }

    /// Whether it left what it was asked `HUNG` ago undone. Asks again if not. `now`: milliseconds, not 0.
    pub(super) fn hangs(&self, now: u64) -> bool {
        let asked = self.asked.load(Relaxed);
        if asked == 0 {
            self.asked.store(now, Relaxed);
            self.tell(Command::Beat);
            return false;
        }
        now.saturating_sub(asked) > HUNG.as_millis() as u64
    }
}

/// What a timer is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Timer {
    /// A client not bound yet, or one that just was.
    Dial,
    /// A client of a dead backend whose turn has come.
    Kill,
    /// A paused listener.
    Resume,
    /// Waiting clients.
    Queue,
}

/// What connections need of their worker.
pub(super) struct Hub {
    pub(super) epoll: Epoll,
    pub(super) io: Io,
    /// Milliseconds since `epoch`, as of this turn of the loop.
    pub(super) now: u64,
    epoch: Instant,
    wheel: Wheel<Timer>,
    queues: Vec<Queue>,
    sink: Sink,
    seed: u64,
    /// Extra dials allowed at the moment, so that slow backends are not buried under hedges.
    hedges: f32,
}

/// Clients of one frontend that wait for a backend below its connection limit.
struct Queue {
    frontend: Arc<Frontend>,
    waiting: VecDeque<u64>,
}

impl Hub {
    pub(super) fn random(&mut self) -> u64 {
        // xorshift64*: spreads load, guards nothing.
        self.seed ^= self.seed >> 12;
        self.seed ^= self.seed << 25;
        self.seed ^= self.seed >> 27;
        self.seed.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub(super) fn timer(&mut self, after: Duration, id: u64, what: Timer) {
        let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX / 2);
        self.wheel.add(self.now + ms, id, what);
    }

    /// Puts a client at the end of its frontend's queue; false when that is full.
    pub(super) fn enqueue(&mut self, frontend: &Arc<Frontend>, id: u64, length: u32) -> bool {
        let known = self.queues.iter().position(|q| Arc::ptr_eq(&q.frontend, frontend));
        let at = known.unwrap_or(self.queues.len());
        if self.queues.get(at).map_or(0, |q| q.waiting.len()) >= length as usize {
            return false;
        }
        if known.is_none() {
            self.queues.push(Queue {
                frontend: Arc::clone(frontend),
                waiting: VecDeque::new(),
            });
        }
        self.queues[at].waiting.push_back(id);
        true
    }

    pub(super) fn report(&self, r: Report) {
        (self.sink)(r);
    }

    /// Time since `started` (milliseconds of the loop's clock), more precise than the loop's clock where
    /// that says zero.
    pub(super) fn precise_since(&self, coarse: Duration, started: u64) -> Duration {
        if coarse.is_zero() {
            self.epoch.elapsed().saturating_sub(Duration::from_millis(started))
        } else {
            coarse
        }
    }

    pub(super) fn hedge_allowed(&mut self) -> bool {
        let yes = self.hedges >= 1.0;
        if yes {
            self.hedges -= 1.0;
        }
        yes
    }

    fn connection_made(&mut self) {
        // A quarter of new connections may be hedged, after a burst of 256.
        self.hedges = (self.hedges + 0.25).min(256.0);
    }
}

struct Listener {
    frontend: Arc<Frontend>,
    fd: OwnedFd,
    paused: bool,
}

struct Slot {
    generation: u32,
    conn: Option<Box<Conn>>,
}

pub(super) struct Worker {
    hub: Hub,
    handle: Arc<Handle>,
    listeners: Vec<Option<Listener>>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    live: usize,
    /// Descriptors this worker may use for connections.
    max_live: usize,
    /// Connections with more to move than one turn allows.
    again: Vec<u64>,
    freed: bool,
    queue_armed: bool,
    drain: Option<Instant>,
}

impl Worker {
    pub(super) fn new(
        handle: Arc<Handle>,
        sink: Sink,
        max_live: usize,
        pipe_size: i32,
        seed: u64,
        epoch: Instant,
    ) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        epoll.add(handle.waker.fd(), sys::IN, WAKER)?;
        Ok(Self {
            hub: Hub {
                epoll,
                io: Io::new(MAX_PIPES, pipe_size),
                now: 0,
                epoch,
                wheel: Wheel::new(),
                queues: Vec::new(),
                sink,
                seed: seed | 1,
                hedges: 256.0,
            },
            handle,
            listeners: Vec::new(),
            slots: Vec::new(),
            free: Vec::new(),
            live: 0,
            max_live,
            again: Vec::new(),
            freed: false,
            queue_armed: false,
            drain: None,
        })
    }

    /// The loop. Ends after a drain.
    pub(super) fn run(mut self) {
        let mut events = [Event::EMPTY; 256];
        let mut due = Vec::new();
        loop {
            let timeout = self.timeout();
            let n = match self.hub.epoll.wait(&mut events, timeout) {
                Ok(n) => n,
                Err(e) => {
                    tracing::error!(error = %e, "epoll_wait failed; the worker ends");
                    break;
                }
            };
            self.hub.now = self.hub.epoch.elapsed().as_millis() as u64;
            for e in &events[..n] {
                match e.token() {
                    WAKER => self.commands(),
                    t if t & LISTENER != 0 => self.accept((t & !LISTENER) as usize),
                    t => self.ready(t, e.flags()),
                }
            }
            for id in std::mem::take(&mut self.again) {
                self.with(id, |c, hub| c.pump(&mut hub.io));
            }
            self.hub.wheel.expire(self.hub.now, &mut due);
            for (id, what) in due.drain(..) {
                self.timer(id, what);
            }
            self.serve_queue();
            self.handle.connections.store(self.live, Relaxed);
            if self.drain.is_some_and(|d| self.live == 0 || Instant::now() >= d) {
                break;
            }
        }
        for slot in &mut self.slots {
            if let Some(c) = slot.conn.take() {
                forget(&c);
                c.reset();
            }
        }
        self.handle.connections.store(0, Relaxed);
        self.handle.finished.store(true, Relaxed);
    }

    fn timeout(&self) -> Option<Duration> {
        if !self.again.is_empty() {
            return Some(Duration::ZERO);
        }
        let wheel = self
            .hub
            .wheel
            .next()
            .map(|ms| Duration::from_millis(ms).saturating_sub(self.hub.epoch.elapsed()));
        let drain = self.drain.map(|d| d.saturating_duration_since(Instant::now()));
        match (wheel, drain) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    fn commands(&mut self) {
        self.handle.waker.clear();
        let commands = std::mem::take(&mut *self.handle.inbox.lock().unwrap_or_else(PoisonError::into_inner));
        for c in commands {
            match c {
                Command::Listen { frontend, fd } => self.listen(frontend, fd),
                Command::Unlisten { frontend } => {
                    self.unlisten(|l| l.frontend.name == frontend);
                }
                Command::Kill { backend, spread } => self.kill(&backend, spread),
                Command::Drain { deadline } => {
                    self.unlisten(|_| true);
                    self.drain = Some(deadline);
                }
                Command::Beat => self.handle.asked.store(0, Relaxed),
            }
        }
    }

    fn listen(&mut self, frontend: Arc<Frontend>, fd: OwnedFd) {
        let i = self
            .listeners
            .iter()
            .position(Option::is_none)
            .unwrap_or(self.listeners.len());
        // Not EPOLLEXCLUSIVE: during a hand-over two processes watch this socket, and a wake-up given to the one
        // that is just letting go would leave a client waiting.
        if let Err(e) = self.hub.epoll.add(&fd, sys::IN, LISTENER | i as u64) {
            tracing::error!(frontend = frontend.name, error = %e, "cannot watch the listener");
            return;
        }
        let l = Some(Listener {
            frontend,
            fd,
            paused: false,
        });
        if i == self.listeners.len() {
            self.listeners.push(l);
        } else {
            self.listeners[i] = l;
        }
    }

    fn unlisten(&mut self, which: impl Fn(&Listener) -> bool) {
        for l in &mut self.listeners {
            if let Some(l) = l.take_if(|l| which(l)) {
                // Explicitly: the socket itself lives on when another process holds it too.
                let _ = self.hub.epoll.del(&l.fd);
            }
        }
    }

    fn accept(&mut self, i: usize) {
        let Some(Some(l)) = self.listeners.get(i) else { return };
        let frontend = Arc::clone(&l.frontend);
        let (options, set) = (frontend.options(), frontend.set());
        for _ in 0..ACCEPT_BATCH {
            let Some(Some(l)) = self.listeners.get_mut(i) else {
                return;
            };
            let active = frontend.counters.active.load(Relaxed);
            let full = options.max_connections != 0 && active >= options.max_connections;
            if full || self.live >= self.max_live {
                // Clients wait in the listen queue, as they would at any full server.
                pause(&mut self.hub, l, i);
                return;
            }
            let (fd, source) = match sys::accept(&l.fd) {
                Ok(x) => x,
                Err(e) => match e.raw_os_error() {
                    Some(libc::EAGAIN) => return,
                    // That one client is gone already.
                    Some(libc::ECONNABORTED | libc::EINTR | libc::EPROTO | libc::EPERM) => continue,
                    _ => {
                        frontend.counters.accept_errors.fetch_add(1, Relaxed);
                        pause(&mut self.hub, l, i);
                        return;
                    }
                },
            };
            frontend.counters.total.fetch_add(1, Relaxed);
            if options.max_per_source != 0 && !frontend.admit(source.ip(), options.max_per_source) {
                frontend.counters.refused_source.fetch_add(1, Relaxed);
                sys::reset(fd);
                continue;
            }
            frontend.counters.active.fetch_add(1, Relaxed);
            self.hub.connection_made();
            let mut conn = Box::new(Conn::new(Arc::clone(&frontend), fd, source));
            conn.counted = options.max_per_source != 0;
            let id = self.reserve();
            if self.hub.epoll.add(&conn.client.fd, sys::CONNECTION, id).is_err() {
                self.settle(id, conn, Outcome::Reset);
                continue;
            }
            let outcome = dial::start(&mut conn, &mut self.hub, id, &options, &set);
            self.settle(id, conn, outcome);
        }
    }

    /// A socket of a connection is ready.
    fn ready(&mut self, token: u64, flags: u32) {
        let side = (token >> SIDE) as u8 & 7;
        let id = token & ((1 << SIDE) - 1);
        self.with(id, |c, hub| {
            if c.dial.is_some() {
                if side == 0 {
                    c.client.note(flags);
                    dial::progress(c, hub, id)
                } else {
                    dial::on_server(c, hub, id, side, flags)
                }
            } else {
                match &mut c.server {
                    _ if side == 0 => c.client.note(flags),
                    Some(s) if s.number == side => s.side.note(flags),
                    // An attempt that lost.
                    _ => return Outcome::Wait,
                }
                c.pump(&mut hub.io)
            }
        });
    }

    fn timer(&mut self, id: u64, what: Timer) {
        match what {
            Timer::Dial => {
                self.with(id, |c, hub| {
                    if c.dial.is_some() {
                        let (options, set) = (c.frontend.options(), c.frontend.set());
                        return dial::tick(c, hub, id, &options, &set);
                    }
                    if let Some(s) = &c.server {
                        let _ = sys::set_liveness(&s.side.fd, &c.frontend.options().server);
                    }
                    Outcome::Wait
                });
            }
            Timer::Kill => {
                self.with(id, |c, _| {
                    if let Some(s) = &c.server {
                        s.lease.backend.resets.fetch_add(1, Relaxed);
                    }
                    Outcome::Reset
                });
            }
            Timer::Resume => {
                let i = id as usize;
                if let Some(Some(l)) = self
                    .listeners
                    .get_mut(i)
                    .filter(|l| l.as_ref().is_some_and(|l| l.paused))
                {
                    l.paused = self.hub.epoll.add(&l.fd, sys::IN, LISTENER | id).is_err();
                    if l.paused {
                        self.hub.timer(ACCEPT_PAUSE, id, Timer::Resume);
                    }
                }
            }
            Timer::Queue => {
                self.queue_armed = false;
                self.freed = true;
            }
        }
    }

    fn kill(&mut self, backend: &Arc<Backend>, spread: Duration) {
        let is_dead = |l: &Lease| Arc::ptr_eq(&l.backend, backend);
        let spread = u64::try_from(spread.as_millis()).unwrap_or(u64::MAX);
        for i in 0..self.slots.len() {
            let Some(c) = &self.slots[i].conn else { continue };
            let id = (i as u64) | u64::from(self.slots[i].generation) << 32;
            if c.dial.is_some() {
                self.with(id, |c, hub| dial::killed(c, hub, id, &is_dead));
            } else if c.server.as_ref().is_some_and(|s| is_dead(&s.lease)) {
                let after = if spread == 0 { 0 } else { self.hub.random() % spread };
                if after == 0 {
                    self.timer(id, Timer::Kill);
                } else {
                    self.hub.timer(Duration::from_millis(after), id, Timer::Kill);
                }
            }
        }
    }

    /// Gives free places to waiting clients, first come first served at each frontend; ends those who waited too long.
    fn serve_queue(&mut self) {
        if self.freed {
            self.freed = false;
            for at in 0..self.hub.queues.len() {
                self.serve(at);
            }
            self.hub.queues.retain(|q| !q.waiting.is_empty());
        }
        if !self.hub.queues.is_empty() && !self.queue_armed {
            self.queue_armed = true;
            self.hub.timer(QUEUE_LOOK, 0, Timer::Queue);
        }
    }

    /// The same for one frontend's clients, until its backends are full again.
    fn serve(&mut self, at: usize) {
        while let Some(id) = self.hub.queues[at].waiting.pop_front() {
            let mut still_full = false;
            let now = self.hub.now;
            self.with(id, |c, hub| {
                let (options, set) = (c.frontend.options(), c.frontend.set());
                let Some(since) = c.dial.as_ref().and_then(|d| d.queued) else {
                    return Outcome::Wait;
                };
                let gone = c.client.ending && sys::take_error(&c.client.fd).is_err();
                if gone || now.saturating_sub(since) >= options.queue_timeout.as_millis() as u64 {
                    c.unqueue();
                    c.frontend.counters.refused_queue.fetch_add(u64::from(!gone), Relaxed);
                    return Outcome::Reset;
                }
                // A place may go to another worker between looking and dialling: then it is queued again.
                if let Choice::Full = set.choose(c.source, &[], hub.random()) {
                    still_full = true;
                    return Outcome::Wait;
                }
                dial::dequeued(c, hub, id, &options, &set)
            });
            if still_full {
                self.hub.queues[at].waiting.push_front(id);
                break;
            }
        }
    }

    /// Runs `f` on a connection that still exists; false when it does not.
    fn with(&mut self, id: u64, f: impl FnOnce(&mut Conn, &mut Hub) -> Outcome) -> bool {
        let Some(slot) = self.slots.get_mut(id as u32 as usize) else {
            return false;
        };
        if u64::from(slot.generation) != id >> 32 {
            return false;
        }
        let Some(mut conn) = slot.conn.take() else { return false };
        let outcome = f(&mut conn, &mut self.hub);
        self.settle(id, conn, outcome);
        true
    }

    fn settle(&mut self, id: u64, mut conn: Box<Conn>, outcome: Outcome) {
        let i = id as u32 as usize;
        match outcome {
            Outcome::Wait => self.slots[i].conn = Some(conn),
            Outcome::Again => {
                self.slots[i].conn = Some(conn);
                self.again.push(id);
            }
            Outcome::Done | Outcome::Reset => {
                conn.release(&mut self.hub.io);
                forget(&conn);
                if outcome == Outcome::Reset {
                    conn.reset();
                }
                let slot = &mut self.slots[i];
                // 28 bits: what a token has room for.
                slot.generation = (slot.generation + 1) & 0x0fff_ffff;
                self.free.push(i as u32);
                self.live -= 1;
                self.freed = true;
            }
        }
    }

    fn reserve(&mut self) -> u64 {
        self.live += 1;
        let i = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot {
                generation: 0,
                conn: None,
            });
            self.slots.len() as u32 - 1
        });
        u64::from(i) | u64::from(self.slots[i as usize].generation) << 32
    }
}

/// Takes an ended connection out of the frontend's counters.
fn forget(c: &Conn) {
    let counters = &c.frontend.counters;
    counters.active.fetch_sub(1, Relaxed);
    if c.dial.as_ref().is_some_and(|d| d.queued.is_some()) {
        counters.queued.fetch_sub(1, Relaxed);
    }
    if c.counted {
        c.frontend.leave(c.source.ip());
    }
}

fn pause(hub: &mut Hub, l: &mut Listener, i: usize) {
    if !l.paused && hub.epoll.del(&l.fd).is_ok() {
        l.paused = true;
        hub.timer(ACCEPT_PAUSE, i as u64, Timer::Resume);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use quorate_lb::config::Algorithm;
    use quorate_lb::{Availability, BackendView, Reason};

    use super::super::frontend::{Options, Set};
    use super::*;

    /// A worker driven by hand, and what it tells the core.
    struct Bench {
        worker: Worker,
        frontend: Arc<Frontend>,
        reports: Arc<Mutex<Vec<Fault>>>,
    }

    impl Bench {
        fn new(views: &[BackendView]) -> Self {
            let reports: Arc<Mutex<Vec<Fault>>> = Arc::default();
            let sink: Sink = {
                let reports = Arc::clone(&reports);
                Arc::new(move |r| reports.lock().unwrap().push(r.fault))
            };
            let handle = Arc::new(Handle::new().unwrap());
            let worker = Worker::new(handle, sink, 100, 4096, 1, Instant::now()).unwrap();
            let set = Set::new(Algorithm::RoundRobin, views, None);
            let frontend = Arc::new(Frontend::new("f", Options::default(), set));
            Self {
                worker,
                frontend,
                reports,
            }
        }

        /// A client as `accept` makes it. Keep the stream.
        fn client(&mut self) -> (u64, TcpStream) {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (accepted, source) = listener.accept().unwrap();
            accepted.set_nonblocking(true).unwrap();
            let frontend = Arc::clone(&self.frontend);
            frontend.counters.active.fetch_add(1, Relaxed);
            let (options, set) = (frontend.options(), frontend.set());
            let mut conn = Box::new(Conn::new(frontend, accepted.into(), source));
            let id = self.worker.reserve();
            let outcome = dial::start(&mut conn, &mut self.worker.hub, id, &options, &set);
            self.worker.settle(id, conn, outcome);
            (id, stream)
        }

        fn lives(&self, id: u64) -> bool {
            self.worker.slots[id as u32 as usize].conn.is_some()
        }
    }

    fn view(name: &str, address: SocketAddr) -> BackendView {
        BackendView {
            name: name.into(),
            address,
            weight: 100,
            max_connections: 0,
            backup: false,
            local: false,
            availability: Availability::Up,
            reason: Reason::Ready,
        }
    }

    #[test]
    fn an_event_of_an_attempt_that_was_given_up_does_not_end_the_next_one() {
        let good = TcpListener::bind("127.0.0.1:0").unwrap();
        let refusing = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut views = [view("refusing", refusing), view("good", good.local_addr().unwrap())];
        views[1].backup = true;
        let mut bench = Bench::new(&views);
        let (id, _client) = bench.client();
        let first = id | 1 << SIDE;
        bench.worker.ready(first, sys::ERR | sys::HUP);
        assert_eq!(*bench.reports.lock().unwrap(), [Fault::Refused]);
        // Of the same batch, after the client's own event or a timer made it dial again.
        bench.worker.ready(first, sys::ERR | sys::HUP);
        assert!(bench.lives(id), "the attempt at the good backend was failed");
        assert_eq!(*bench.reports.lock().unwrap(), [Fault::Refused]);
    }

    #[test]
    fn time_in_the_queue_is_not_time_spent_connecting() {
        let backend = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut views = [view("b", backend.local_addr().unwrap())];
        views[0].max_connections = 1;
        let mut bench = Bench::new(&views);
        let (first, _one) = bench.client();
        let (second, _two) = bench.client();
        assert_eq!(bench.frontend.counters.queued.load(Relaxed), 1);
        let options = bench.frontend.options();
        // Longer than connects may take, shorter than clients may wait.
        bench.worker.hub.now += options.connect_timeout.as_millis() as u64 + 1000;
        bench.worker.with(first, |_, _| Outcome::Reset);
        bench.worker.serve_queue();
        assert_eq!(bench.frontend.counters.queued.load(Relaxed), 0);
        bench.worker.hub.now += options.hedge_after.as_millis() as u64;
        bench.worker.timer(second, Timer::Dial);
        assert!(bench.lives(second), "given up at the first look");
        bench.worker.hub.now += options.connect_timeout.as_millis() as u64;
        bench.worker.timer(second, Timer::Dial);
        assert!(!bench.lives(second), "connects are bounded all the same");
    }
}
