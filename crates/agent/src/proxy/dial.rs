//! From an accepted client to a chosen backend: dialling, hedging, retrying before the first byte.
//!
//! A client is bound to a backend as late as is safe. Until then a failed, slow or dead backend costs the
//! client nothing but time:
//! - a connect that fails is retried on another backend; one that is slow is raced by another;
//! - a client that speaks TLS first is bound only when a backend *answers*: its ClientHello has no effect
//!   on a server and may be given to a second one, so a backend that accepts and then hangs is survived;
//! - any other client is bound with its first byte.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::conn::{Conn, Outcome, Server, Side};
use super::frontend::{Choice, Lease, Options, Set};
use super::sys;
use super::worker::{Fault, Hub, Report, Timer};

/// Attempts in flight at once.
const SLOTS: usize = 2;
/// Attempts are numbered 1 to this, then again: an event of one that was given up, read together with what ended it, must
/// not be taken for its successor's.
const NUMBERS: u8 = 7;
/// Longest first flight of a TLS client that is kept for a second backend (a ClientHello is one record).
const HELLO_MAX: usize = 16 * 1024 + 512;
/// Successive failures of one backend are told to the core at most this often.
const TELL_EVERY_MS: u64 = 20;

/// A connect under way, or a connected backend that has not answered yet.
pub(super) struct Attempt {
    pub(super) fd: std::os::fd::OwnedFd,
    pub(super) lease: Lease,
    /// What its epoll token carries.
    number: u8,
    started: u64,
    connected: bool,
    /// The server side has bytes, an end or an error to read.
    readable: bool,
    ending: bool,
    /// How much of the first flight was sent.
    sent: usize,
    killed: u64,
}

/// A client that is not bound yet.
#[derive(Default)]
pub(super) struct Dial {
    pub(super) attempts: [Option<Attempt>; SLOTS],
    /// Of the latest attempt.
    number: u8,
    /// Backends that failed this client.
    tried: Vec<SocketAddr>,
    /// PROXY header and ClientHello, to be sent to whichever backend is tried.
    flight: Vec<u8>,
    /// A ClientHello is in `flight`, since when.
    hello: Option<u64>,
    /// The core was told that its ClientHello waits.
    doubted: bool,
    answer_hedged: bool,
    /// When an unanswered ClientHello is also sent to another backend.
    answer_hedge: Option<Duration>,
    ticking: bool,
    /// Waiting for a backend below its connection limit, since when.
    pub(super) queued: Option<u64>,
    /// When dialling began: at once, or when a place came free.
    since: u64,
}

/// Starts the first dial of an accepted client.
pub(super) fn start(conn: &mut Conn, hub: &mut Hub, id: u64, options: &Options, set: &Set) -> Outcome {
    let mut dial = Box::new(Dial {
        since: hub.now,
        answer_hedge: options.answer_hedge,
        ..Dial::default()
    });
    if options.proxy_protocol {
        let local = sys::local_addr(&conn.client.fd).unwrap_or(conn.source);
        dial.flight = proxy_header(conn.source, local);
    }
    conn.dial = Some(dial);
    redial(conn, hub, id, options, set)
}

/// Dials for a client that waited for a free place; the time for connects begins now.
pub(super) fn dequeued(conn: &mut Conn, hub: &mut Hub, id: u64, options: &Options, set: &Set) -> Outcome {
    conn.unqueue();
    if let Some(dial) = conn.dial.as_mut() {
        dial.since = hub.now;
    }
    redial(conn, hub, id, options, set)
}

/// Dials one more backend. `Reset` when there is nobody left to hope for.
fn redial(conn: &mut Conn, hub: &mut Hub, id: u64, options: &Options, set: &Set) -> Outcome {
    let Some(dial) = conn.dial.as_mut() else {
        return Outcome::Wait;
    };
    let Some(slot) = dial.attempts.iter().position(Option::is_none) else {
        return Outcome::Wait;
    };
    loop {
        let in_flight = dial.attempts.iter().flatten().map(|a| a.lease.backend.addr);
        let lease = if dial.tried.is_empty() && slot == 0 && dial.attempts[1].is_none() {
            // The common case allocates nothing.
            set.choose(conn.source, &[], hub.random())
        } else {
            let tried: Vec<_> = dial.tried.iter().copied().chain(in_flight).collect();
            set.choose(conn.source, &tried, hub.random())
        };
        let others = dial.attempts.iter().any(Option::is_some);
        let lease = match lease {
            Choice::Use(lease) => lease,
            _ if others => return Outcome::Wait,
            Choice::Full if dial.queued.is_some() => return Outcome::Wait,
            Choice::Full if hub.enqueue(&conn.frontend, id, options.queue_length) => {
                dial.queued = Some(hub.now);
                conn.frontend.counters.queued.fetch_add(1, Relaxed);
                return Outcome::Wait;
            }
            Choice::Full => {
                conn.frontend.counters.refused_queue.fetch_add(1, Relaxed);
                return Outcome::Reset;
            }
            Choice::Nobody => {
                let c = &conn.frontend.counters;
                let counter = if dial.tried.is_empty() {
                    &c.refused_no_backend
                } else {
                    &c.failed
                };
                counter.fetch_add(1, Relaxed);
                return Outcome::Reset;
            }
        };
        let backend = &lease.backend;
        let killed = backend.killed.load(Relaxed);
        let number = dial.next_number();
        let outcome = sys::connect(backend.addr).and_then(|(fd, up)| {
            hub.epoll.add(&fd, sys::CONNECTION, id | u64::from(number) << SIDE)?;
            Ok((fd, up))
        });
        match outcome {
            Ok((fd, connected)) => {
                dial.attempts[slot] = Some(Attempt {
                    fd,
                    lease,
                    number,
                    started: hub.now,
                    connected,
                    readable: false,
                    ending: false,
                    sent: 0,
                    killed,
                });
                if !dial.ticking {
                    dial.ticking = true;
                    hub.timer(tick_after(options), id, Timer::Dial);
                }
                return Outcome::Wait;
            }
            Err(e) => {
                let addr = backend.addr;
                tell(hub, conn.frontend.name.as_str(), &lease, fault(&e), 0);
                dial.tried.push(addr);
            }
        }
    }
}

impl Dial {
    /// A number that no attempt has, nor had lately.
    fn next_number(&mut self) -> u8 {
        loop {
            self.number = self.number % NUMBERS + 1;
            if self.attempts.iter().flatten().all(|a| a.number != self.number) {
                return self.number;
            }
        }
    }
}

/// Bit position of the side (0 client, 1.. attempt) in a token.
pub(super) const SIDE: u32 = 60;

/// Something happened to an attempt's socket.
pub(super) fn on_server(conn: &mut Conn, hub: &mut Hub, id: u64, number: u8, flags: u32) -> Outcome {
    let Some(dial) = conn.dial.as_mut() else {
        return Outcome::Wait;
    };
    let mine = |a: &Option<Attempt>| a.as_ref().is_some_and(|a| a.number == number);
    let Some(slot) = dial.attempts.iter().position(mine) else {
        return Outcome::Wait;
    };
    let Some(a) = dial.attempts[slot].as_mut() else {
        return Outcome::Wait;
    };
    let end = flags & (sys::RDHUP | sys::HUP | sys::ERR) != 0;
    if !a.connected {
        if flags & (sys::ERR | sys::HUP) != 0 {
            let e = sys::take_error(&a.fd)
                .err()
                .unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
            return fail(conn, hub, id, slot, fault(&e));
        }
        if flags & sys::OUT == 0 {
            return Outcome::Wait;
        }
        a.connected = true;
        let backend = &a.lease.backend;
        if backend.killed.load(Relaxed) != a.killed {
            return fail(conn, hub, id, slot, Fault::Killed);
        }
        let took = Duration::from_millis(hub.now.saturating_sub(a.started));
        backend.connected_in(hub.precise_since(took, a.started));
    }
    a.readable |= end || flags & sys::IN != 0;
    a.ending |= end;
    progress(conn, hub, id)
}

/// Does what the client's and the attempts' states allow; binds the client when it is time.
pub(super) fn progress(conn: &mut Conn, hub: &mut Hub, id: u64) -> Outcome {
    loop {
        let Some(dial) = conn.dial.as_mut() else {
            return Outcome::Wait;
        };
        let Some(connected) = dial
            .attempts
            .iter()
            .position(|a| a.as_ref().is_some_and(|a| a.connected))
        else {
            // Nobody to send to. A client that is gone already frees its place at once.
            if conn.client.ending && sys::take_error(&conn.client.fd).is_err() {
                return Outcome::Reset;
            }
            return Outcome::Wait;
        };
        // First flight to everybody connected.
        for slot in 0..SLOTS {
            let Some(a) = dial.attempts[slot].as_mut().filter(|a| a.connected) else {
                continue;
            };
            while a.sent < dial.flight.len() {
                match sys::send(&a.fd, &dial.flight[a.sent..]) {
                    Ok(n) => a.sent += n,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) => return fail(conn, hub, id, slot, fault(&e)),
                }
            }
        }
        // A backend that speaks has won.
        for slot in 0..SLOTS {
            let Some(a) = dial.attempts[slot].as_mut().filter(|a| a.connected && a.readable) else {
                continue;
            };
            match sys::recv(&a.fd, &mut hub.io.buf) {
                Ok(0) if dial.hello.is_some() => return fail(conn, hub, id, slot, Fault::Closed),
                Ok(0) => {
                    conn.down.set_eof();
                    return bind(conn, hub, slot);
                }
                Ok(n) => {
                    let data = hub.io.buf[..n].to_vec();
                    conn.down.preload(&data);
                    return bind(conn, hub, slot);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => a.readable = false,
                Err(e) => return fail(conn, hub, id, slot, fault(&e)),
            }
        }
        if !conn.client.readable {
            return Outcome::Wait;
        }
        let had_hello = dial.hello.is_some();
        match sys::recv(&conn.client.fd, &mut hub.io.buf) {
            Ok(0) => {
                conn.up.set_eof();
                return bind(conn, hub, connected);
            }
            Ok(n) => {
                let data = &hub.io.buf[..n];
                if n < hub.io.buf.len() && !conn.client.ending {
                    conn.client.readable = false;
                }
                let opens = had_hello || is_client_hello(data);
                if !opens || dial.answer_hedge.is_none() || dial.flight.len() + n > HELLO_MAX {
                    let a = dial.attempts[connected].as_ref();
                    let sent = a.map_or(0, |a| a.sent);
                    let mut rest = dial.flight[sent..].to_vec();
                    if rest.is_empty() {
                        // The common case: straight through.
                        let sent = a.map_or(Ok(0), |a| sys::send(&a.fd, data)).unwrap_or(0);
                        conn.up.preload(&data[sent..]);
                    } else {
                        rest.extend_from_slice(data);
                        conn.up.preload(&rest);
                    }
                    return bind(conn, hub, connected);
                }
                dial.flight.extend_from_slice(data);
                if !had_hello {
                    dial.hello = Some(hub.now);
                    if let (false, Some(after)) = (dial.ticking, dial.answer_hedge) {
                        dial.ticking = true;
                        hub.timer(after, id, Timer::Dial);
                    }
                }
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                conn.client.readable = false;
                return Outcome::Wait;
            }
            Err(_) => return Outcome::Reset,
        }
    }
}

/// The timer of a client not bound yet: give up slow connects, race slow backends.
pub(super) fn tick(conn: &mut Conn, hub: &mut Hub, id: u64, options: &Options, set: &Set) -> Outcome {
    let now = hub.now;
    let Some(dial) = conn.dial.as_mut() else {
        return Outcome::Wait;
    };
    dial.ticking = false;
    if dial.queued.is_some() {
        return Outcome::Wait;
    }
    let connected = dial.attempts.iter().flatten().any(|a| a.connected);
    if !connected && now.saturating_sub(dial.since) >= ms(options.connect_timeout) {
        for a in dial.attempts.iter().flatten() {
            tell(hub, &conn.frontend.name, &a.lease, Fault::Timeout, now - a.started);
        }
        conn.frontend.counters.failed.fetch_add(1, Relaxed);
        return Outcome::Reset;
    }
    if !connected {
        // Slow to connect: race it. With no slot left, the oldest gives way to a backend not tried yet.
        let slow: Vec<_> = dial
            .attempts
            .iter()
            .flatten()
            .map(|a| a.lease.backend.clone())
            .collect();
        if !options.hedge_after.is_zero() && hub.hedge_allowed() {
            if slow.len() == SLOTS {
                let mut tried = dial.tried.clone();
                tried.extend(slow.iter().map(|b| b.addr));
                if let Choice::Use(_) = set.choose(conn.source, &tried, hub.random()) {
                    let oldest = usize::from(
                        dial.attempts[1].as_ref().map(|a| a.started) < dial.attempts[0].as_ref().map(|a| a.started),
                    );
                    if let Some(a) = dial.attempts[oldest].take() {
                        dial.tried.push(a.lease.backend.addr);
                        tell(hub, &conn.frontend.name, &a.lease, Fault::Slow, now - a.started);
                        sys::reset(a.fd);
                    }
                }
            } else {
                for a in dial.attempts.iter().flatten() {
                    a.lease.backend.hedges.fetch_add(1, Relaxed);
                    tell(hub, &conn.frontend.name, &a.lease, Fault::Slow, now - a.started);
                }
            }
            let outcome = redial(conn, hub, id, options, set);
            if outcome != Outcome::Wait {
                return outcome;
            }
        }
        arm(conn, hub, id, tick_after(options));
    } else if let (Some(since), Some(after)) = (dial.hello, dial.answer_hedge) {
        let waited = now.saturating_sub(since);
        // Checks of a hung server take as long as they may: they begin before its clients are raced.
        let doubt = ms(after) / 2;
        if waited < doubt {
            arm(conn, hub, id, Duration::from_millis(doubt - waited));
        } else if waited < ms(after) {
            if !std::mem::replace(&mut dial.doubted, true) {
                for a in dial.attempts.iter().flatten().filter(|a| a.connected) {
                    report(hub, &conn.frontend.name, &a.lease, Fault::Silent, waited);
                }
            }
            arm(conn, hub, id, Duration::from_millis(ms(after) - waited));
        } else if !dial.answer_hedged && hub.hedge_allowed() {
            dial.answer_hedged = true;
            for a in dial.attempts.iter().flatten().filter(|a| a.connected) {
                a.lease.backend.hedges.fetch_add(1, Relaxed);
                tell(hub, &conn.frontend.name, &a.lease, Fault::Silent, waited);
            }
            let outcome = redial(conn, hub, id, options, set);
            arm(conn, hub, id, tick_after(options));
            return outcome;
        } else if dial.attempts.iter().flatten().any(|a| !a.connected) {
            arm(conn, hub, id, tick_after(options));
        }
    } else {
        for a in dial.attempts.iter().flatten() {
            let _ = sys::set_liveness(&a.fd, &options.server);
        }
    }
    Outcome::Wait
}

/// Ends the attempts at a backend that was declared dead; others take over.
pub(super) fn killed(conn: &mut Conn, hub: &mut Hub, id: u64, is_dead: &dyn Fn(&Lease) -> bool) -> Outcome {
    for slot in 0..SLOTS {
        let dead = conn
            .dial
            .as_ref()
            .is_some_and(|d| d.attempts[slot].as_ref().is_some_and(|a| is_dead(&a.lease)));
        if dead {
            let outcome = fail(conn, hub, id, slot, Fault::Killed);
            if outcome != Outcome::Wait {
                return outcome;
            }
        }
    }
    Outcome::Wait
}

/// An attempt failed before the client was bound: tell the core, try another backend.
fn fail(conn: &mut Conn, hub: &mut Hub, id: u64, slot: usize, fault: Fault) -> Outcome {
    let (options, set) = (conn.frontend.options(), conn.frontend.set());
    let Some(dial) = conn.dial.as_mut() else {
        return Outcome::Wait;
    };
    let Some(a) = dial.attempts[slot].take() else {
        return Outcome::Wait;
    };
    dial.tried.push(a.lease.backend.addr);
    a.lease.backend.retries.fetch_add(1, Relaxed);
    tell(
        hub,
        &conn.frontend.name,
        &a.lease,
        fault,
        hub.now.saturating_sub(a.started),
    );
    sys::reset(a.fd);
    drop(a.lease);
    redial(conn, hub, id, &options, &set)
}

/// Binds the client to attempt `slot` and moves what is there.
fn bind(conn: &mut Conn, hub: &mut Hub, slot: usize) -> Outcome {
    let Some(mut dial) = conn.dial.take() else {
        return Outcome::Wait;
    };
    let Some(a) = dial.attempts[slot].take() else {
        return Outcome::Wait;
    };
    for loser in dial.attempts.into_iter().flatten() {
        sys::reset(loser.fd);
    }
    if dial.ticking {
        // The pending timer sets the liveness options of connections that live long enough to need them.
    } else {
        let _ = sys::set_liveness(&a.fd, &conn.frontend.options().server);
    }
    if a.sent < dial.flight.len() && !conn.up.holds_bytes() {
        conn.up.preload(&dial.flight[a.sent..]);
    }
    a.lease.backend.total.fetch_add(1, Relaxed);
    let mut side = Side::new(a.fd);
    side.readable = a.readable;
    side.ending = a.ending;
    conn.server = Some(Server {
        side,
        number: a.number,
        lease: a.lease,
    });
    conn.pump(&mut hub.io)
}

fn arm(conn: &mut Conn, hub: &mut Hub, id: u64, after: Duration) {
    if let Some(d) = conn.dial.as_mut().filter(|d| !d.ticking) {
        d.ticking = true;
        hub.timer(after, id, Timer::Dial);
    }
}

/// Counts a failure and tells the core, not more often than it needs to hear.
fn tell(hub: &Hub, frontend: &str, lease: &Lease, fault: Fault, took_ms: u64) {
    let b = &lease.backend;
    match fault {
        Fault::Killed => return,
        Fault::Timeout | Fault::Slow | Fault::Silent => &b.connect_timeouts,
        Fault::Refused | Fault::Unreachable | Fault::Closed | Fault::Local => &b.connect_errors,
    }
    .fetch_add(1, Relaxed);
    report(hub, frontend, lease, fault, took_ms);
}

fn report(hub: &Hub, frontend: &str, lease: &Lease, fault: Fault, took_ms: u64) {
    let b = &lease.backend;
    let last = b.told_ms.load(Relaxed);
    if (last == 0 || hub.now >= last + TELL_EVERY_MS)
        && b.told_ms.compare_exchange(last, hub.now, Relaxed, Relaxed).is_ok()
    {
        hub.report(Report {
            frontend: frontend.to_owned(),
            backend: b.name.clone(),
            fault,
            took: Duration::from_millis(took_ms),
        });
    }
}

fn fault(e: &io::Error) -> Fault {
    match e.raw_os_error() {
        Some(libc::ECONNREFUSED) => Fault::Refused,
        Some(libc::ETIMEDOUT) => Fault::Timeout,
        Some(libc::ECONNRESET | libc::EPIPE) => Fault::Closed,
        // No port, descriptor or memory left here: says nothing about the backend.
        Some(libc::EADDRNOTAVAIL | libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS | libc::EAGAIN) => {
            Fault::Local
        }
        _ => Fault::Unreachable,
    }
}

/// A TLS handshake record holding a ClientHello (RFC 8446 §5.1, §4).
fn is_client_hello(data: &[u8]) -> bool {
    matches!(data, [0x16, 0x03, _, _, _, 0x01, ..])
}

/// PROXY protocol version 2 header, command PROXY, TCP.
fn proxy_header(source: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let mut h = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    match (source.ip(), local.ip()) {
        (IpAddr::V4(s), IpAddr::V4(d)) => {
            h.extend([0x11, 0, 12]);
            h.extend(s.octets());
            h.extend(d.octets());
        }
        (s, d) => {
            let v6 = |ip: IpAddr| match ip {
                IpAddr::V4(a) => a.to_ipv6_mapped().octets(),
                IpAddr::V6(a) => a.octets(),
            };
            h.extend([0x21, 0, 36]);
            h.extend(v6(s));
            h.extend(v6(d));
        }
    }
    h.extend(source.port().to_be_bytes());
    h.extend(local.port().to_be_bytes());
    h
}

/// How often a client not bound yet is looked after.
fn tick_after(options: &Options) -> Duration {
    if options.hedge_after.is_zero() {
        Duration::from_millis(100)
    } else {
        options.hedge_after
    }
}

fn ms(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxy_header_matches_the_specification() {
        let h = proxy_header("1.2.3.4:5".parse().unwrap(), "6.7.8.9:443".parse().unwrap());
        assert_eq!(h.len(), 28);
        assert_eq!(h[12..16], [0x21, 0x11, 0, 12]);
        assert_eq!(h[16..], [1, 2, 3, 4, 6, 7, 8, 9, 0, 5, 1, 187]);
        let h = proxy_header("[::1]:5".parse().unwrap(), "[::2]:443".parse().unwrap());
        assert_eq!((h.len(), h[13]), (52, 0x21));
    }

    #[test]
    fn only_a_client_hello_is_one() {
        assert!(is_client_hello(&[0x16, 3, 1, 2, 0, 1, 0, 1, 252]));
        for other in [
            &b"GET / HTTP/1.1"[..],
            b"",
            b"\x16\x03\x01",
            &[0x16, 3, 3, 0, 4, 2],
            &[0x17, 3, 3, 0, 4, 1],
        ] {
            assert!(!is_client_hello(other));
        }
    }
}
