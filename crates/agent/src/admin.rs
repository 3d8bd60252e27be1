//! The control socket: JSON lines over a unix socket only its owner can open.
//!
//! A request is one line, `{"verb": ...}`; the answer is one line, `{"ok": ...}` or `{"error": ..., "hint": ...}`.
//! `take-over` answers with the listening sockets themselves and keeps the connection: the next line says
//! when the new process listens.

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
    /// Gives up virtual addresses and everything else but client connections: another process is to take over.
    fn yield_to_successor(&self);
    /// The successor listens: drain and end.
    fn retire(&self);
}

/// Removes the socket's file when dropped, unless another process has put its own there.
pub struct Socket {
    path: PathBuf,
    inode: u64,
}

impl Drop for Socket {
    fn drop(&mut self) {
        use std::os::unix::fs::MetadataExt;
        if std::fs::metadata(&self.path).is_ok_and(|m| m.ino() == self.inode) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
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

/// Gives the listening sockets away; retires when the successor says it has them.
fn hand_over(
    stream: &UnixStream,
    lines: &mut impl BufRead,
    core: &CoreSender,
    process: &dyn Process,
) -> io::Result<()> {
    tracing::info!("another process takes over");
    process.yield_to_successor();
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
    let mut line = String::new();
    lines.read_line(&mut line)?;
    if line.trim() == "listening" {
        process.retire();
    } else {
        tracing::error!(
            "the other process went away before it listened; virtual addresses return with the next reload"
        );
    }
    Ok(())
}

/// The predecessor's listening sockets.
pub struct Inheritance {
    pub sockets: Vec<Listening>,
    stream: UnixStream,
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
                return Ok(Some(Self { sockets, stream }));
            }
        }
    }

    /// Says that this process listens; the predecessor drains and ends.
    pub fn accept(stream: UnixStream) {
        let mut stream = stream;
        let _ = stream.write_all(b"listening\n");
    }

    /// The sockets, and what to [`Self::accept`] with.
    pub fn split(self) -> (Vec<Listening>, UnixStream) {
        (self.sockets, self.stream)
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
