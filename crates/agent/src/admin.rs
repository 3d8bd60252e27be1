//! The control socket: JSON lines over a unix socket only its owner can open.
//!
//! A request is one line, `{"verb": ...}`; the answer is one line, `{"ok": ...}` or `{"error": ..., "hint": ...}`.
//! `take-over` answers with the listening sockets themselves and keeps the connection:
//!
//! ```text
//! new process                                     running process
//! take-over                                  ──▶
//!                                            ◀──  listening sockets
//! listening: it serves clients               ──▶
//!                                            ◀──  released: its virtual addresses are given up
//! running: it takes part in VRRP             ──▶  drains and ends
//! ```
//! Should the new process go away at any point before the end, the running one goes on with all it had.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use quorate_lb::{Command, Input};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::core::CoreSender;
use crate::proxy::{Listening, sys};
use crate::status::collect;

/// Longest request line.
const REQUEST_MAX: u64 = 64 * 1024;
/// How long a predecessor may take to give up its virtual addresses, beside two advertisement intervals.
const RELEASE_PATIENCE: Duration = Duration::from_secs(60);
const LISTENING: &str = "listening";
const RELEASED: &str = "released";
const RUNNING: &str = "running";
/// Descriptors per message (SCM_MAX_FD is 253).
const BATCH: usize = 250;

#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    Show,
    Order { order: Command },
    Reload,
    TakeOver,
}

/// What the running process does for the control socket.
pub trait Process: Send + Sync {
    /// Reads the configuration again; what went wrong.
    fn reload(&self) -> Vec<String>;
    /// Gives up virtual addresses: another process listens, and takes part in VRRP from then on.
    fn yield_to_successor(&self);
    /// That process went away before it took part: this one does again.
    fn go_on(&self);
    /// The successor does everything: drain and end.
    fn retire(&self);
}

/// Removes the socket's file and [`running`]'s when dropped, unless another process has put its own there.
pub struct Socket {
    path: PathBuf,
    inode: u64,
}

impl Drop for Socket {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt;
        if std::fs::metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
            let _ = std::fs::remove_file(running(&self.path));
        }
    }
}

/// Beside the socket: where the process behind it says which files it runs with ([`crate::config::sums`]).
pub fn running(socket: &Path) -> PathBuf {
    socket.with_extension("running")
}

/// Listens at `path` (0600, replacing what is there) and serves each client on a thread of its own.
///
/// # Errors
/// The directory cannot be made or the socket not be bound.
pub fn serve(path: &Path, core: CoreSender, process: &'static dyn Process) -> io::Result<Socket> {
    use std::os::unix::fs::MetadataExt;
    let fail = |e: io::Error| io::Error::new(e.kind(), format!("control socket {}: {e}", path.display()));
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(fail)?;
    }
    // Bound aside and renamed: there is no moment without a socket, nor one with wider permissions.
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    let _ = std::fs::remove_file(&aside);
    let listener = UnixListener::bind(&aside).map_err(fail)?;
    std::fs::set_permissions(&aside, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    std::fs::rename(&aside, path).map_err(fail)?;
    let inode = std::fs::metadata(path).map_err(fail)?.ino();
    std::thread::Builder::new()
        .name("admin".into())
        .stack_size(256 * 1024)
        .spawn(move || {
            for stream in listener.incoming() {
                match stream {
                    Ok(s) => {
                        let core = core.clone();
                        let _ = std::thread::Builder::new()
                            .name("admin".into())
                            .stack_size(512 * 1024)
                            .spawn(move || drop(client(&s, &core, process)));
                    }
                    Err(_) => std::thread::sleep(Duration::from_millis(100)),
                }
            }
        })?;
    Ok(Socket {
        path: path.to_owned(),
        inode,
    })
}

fn client(stream: &UnixStream, core: &CoreSender, process: &dyn Process) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut lines = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if lines.by_ref().take(REQUEST_MAX).read_line(&mut line)? == 0 {
            return Ok(());
        }
        let answer = match serde_json::from_str(&line) {
            Err(e) => json!({"error": format!("not a request: {e}")}),
            Ok(Request::Show) => match core.ask(|c| collect(c)) {
                Some(status) => json!({"ok": status}),
                None => json!({"error": "the agent is ending"}),
            },
            Ok(Request::Order { order }) => order_answer(core, order),
            Ok(Request::Reload) => match process.reload() {
                failed if failed.is_empty() => json!({"ok": "reloaded"}),
                failed => json!({"error": failed.join("; ")}),
            },
            Ok(Request::TakeOver) => {
                hand_over(stream, &mut lines, core, process)?;
                return Ok(());
            }
        };
        let mut stream = stream;
        stream.write_all(format!("{answer}\n").as_bytes())?;
    }
}

/// Carries out an order after making sure that what it names exists.
fn order_answer(core: &CoreSender, order: Command) -> Value {
    let done = core.ask(move |c| {
        let refused = match &order {
            Command::SetAdmin { frontend, backend, .. } | Command::SetWeight { frontend, backend, .. } => {
                let sets = c.balancer.status();
                match sets.iter().find(|s| s.name == *frontend) {
                    None => Some((
                        format!("no frontend is named {frontend:?}"),
                        sets.iter().map(|s| s.name.clone()).collect::<Vec<_>>(),
                    )),
                    Some(s) if !s.backends.iter().any(|b| b.name == *backend) => Some((
                        format!("frontend {frontend:?} has no backend {backend:?}"),
                        s.backends.iter().map(|b| b.name.clone()).collect(),
                    )),
                    Some(_) => None,
                }
            }
            Command::Release { instance, .. } => (!c.config.vrrp.iter().any(|v| v.name == *instance)).then(|| {
                (
                    format!("no virtual router is named {instance:?}"),
                    c.config.vrrp.iter().map(|v| v.name.clone()).collect(),
                )
            }),
        };
        if let Some((error, names)) = refused {
            return json!({"error": error, "hint": format!("there is: {}", names.join(", "))});
        }
        tracing::info!(?order, "order");
        if let (Command::Release { .. }, Some(vrrp)) = (&order, &c.vrrp) {
            vrrp.send(Input::Command { command: order.clone() });
        } else {
            c.input(Input::Command { command: order });
        }
        json!({"ok": "done"})
    });
    done.unwrap_or_else(|| json!({"error": "the agent is ending"}))
}

#[derive(Serialize, Deserialize)]
struct Batch {
    /// What each descriptor of this message is.
    sockets: Vec<(String, std::net::SocketAddr)>,
    more: bool,
}

/// Gives the listening sockets away; gives up virtual addresses when the successor listens, and retires when it runs.
fn hand_over(
    stream: &UnixStream,
    lines: &mut impl BufRead,
    core: &CoreSender,
    process: &dyn Process,
) -> io::Result<()> {
    tracing::info!("another process takes over");
    let sockets = core.ask(|c| c.listening()).unwrap_or_default();
    let mut batches: Vec<&[Listening]> = sockets.chunks(BATCH).collect();
    if batches.is_empty() {
        batches.push(&[]);
    }
    let last = batches.len() - 1;
    for (i, batch) in batches.into_iter().enumerate() {
        let head = Batch {
            sockets: batch.iter().map(|l| (l.frontend.clone(), l.addr)).collect(),
            more: i < last,
        };
        let fds: Vec<_> = batch.iter().map(|l| l.fd.as_raw_fd()).collect();
        let text = serde_json::to_vec(&head).map_err(io::Error::other)?;
        // The length first, with the descriptors: a reader knows when it has the whole.
        let length = u32::try_from(text.len()).map_err(io::Error::other)?;
        sys::send_with_fds(stream.as_fd(), &length.to_be_bytes(), &fds)?;
        let mut stream = stream;
        stream.write_all(&text)?;
    }
    drop(sockets);
    if !says(lines, LISTENING) {
        tracing::error!("the other process went away before it listened; this one goes on");
        return Ok(());
    }
    process.yield_to_successor();
    let mut writer = stream;
    if writer.write_all(format!("{RELEASED}\n").as_bytes()).is_ok() && says(lines, RUNNING) {
        process.retire();
        return Ok(());
    }
    tracing::error!("the other process went away before it took part in VRRP; this one does again");
    process.go_on();
    Ok(())
}

/// Whether the next line is this one. One that does not come in time, or never, is not.
fn says(lines: &mut impl BufRead, word: &str) -> bool {
    let mut line = String::new();
    lines.read_line(&mut line).is_ok() && line.trim() == word
}

/// The predecessor's listening sockets.
pub struct Inheritance {
    pub sockets: Vec<Listening>,
    from: Predecessor,
}

impl Inheritance {
    /// Asks the process behind the control socket, if there is one, to hand over.
    ///
    /// # Errors
    /// There is one, but it does not.
    pub fn ask(path: &Path) -> io::Result<Option<Self>> {
        let Ok(mut stream) = UnixStream::connect(path) else {
            return Ok(None);
        };
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let request = serde_json::to_string(&Request::TakeOver).map_err(io::Error::other)?;
        stream.write_all(format!("{request}\n").as_bytes())?;
        let mut sockets = Vec::new();
        loop {
            let mut length = [0; 4];
            let (n, fds) = sys::recv_with_fds(stream.as_fd(), &mut length)?;
            if n < 4 {
                stream.read_exact(&mut length[n..])?;
            }
            let mut text = vec![0; u32::from_be_bytes(length).min(1 << 20) as usize];
            stream.read_exact(&mut text)?;
            let head: Batch = serde_json::from_slice(&text).map_err(io::Error::other)?;
            sockets.extend(
                head.sockets
                    .into_iter()
                    .zip(fds)
                    .map(|((frontend, addr), fd)| Listening { frontend, addr, fd }),
            );
            if !head.more {
                let from = Predecessor {
                    stream,
                    socket: path.to_owned(),
                };
                return Ok(Some(Self { sockets, from }));
            }
        }
    }

    /// The sockets, and who gave them.
    pub fn split(self) -> (Vec<Listening>, Predecessor) {
        (self.sockets, self.from)
    }
}

/// The process that is replaced. Dropped before [`Self::retire`], it goes on as before.
pub struct Predecessor {
    stream: UnixStream,
    socket: PathBuf,
}

impl Predecessor {
    /// Says that this process listens, and waits until the predecessor has given up its virtual addresses (or died).
    /// `interval`: the longest between advertisements.
    ///
    /// # Errors
    /// It does neither in time, or waits for this process no longer.
    pub fn release(&self, interval: Duration) -> io::Result<()> {
        let patience = RELEASE_PATIENCE + interval * 2;
        self.stream.set_read_timeout(Some(patience))?;
        let mut stream = &self.stream;
        let said = stream.write_all(format!("{LISTENING}\n").as_bytes());
        let mut lines = BufReader::new(stream);
        if said.is_ok() && says(&mut lines, RELEASED) {
            return Ok(());
        }
        // No word: either it is gone, and its virtual addresses with it, or it still has them.
        if UnixStream::connect(&self.socket).is_err() {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "the agent behind {} keeps its virtual addresses; stop it, or try again",
            self.socket.display()
        )))
    }

    /// Says that this process takes part in VRRP; the predecessor drains and ends.
    pub fn retire(self) {
        let mut stream = self.stream;
        let _ = stream.write_all(format!("{RUNNING}\n").as_bytes());
    }
}

/// Sends one request to the agent behind `path`; its answer's `ok`.
///
/// # Errors
/// No agent there, or it refuses (with the reason and a hint).
pub fn request(path: &Path, request: &Request) -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect(path).map_err(|e| {
        anyhow::anyhow!(
            "no agent answers at {}: {e}; is it running, and may you talk to it?",
            path.display()
        )
    })?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let mut answer: Value = serde_json::from_str(&line)?;
    if let Some(error) = answer.get("error").and_then(Value::as_str) {
        let hint = answer
            .get("hint")
            .and_then(Value::as_str)
            .map(|h| format!(" ({h})"))
            .unwrap_or_default();
        anyhow::bail!("{error}{hint}");
    }
    Ok(answer["ok"].take())
}
