//! The operator's end of a connection: many calls at once over one pair of pipes.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};

use crate::{
    frames,
    proto::{Answer, Hello, PROTOCOL_VERSION, Request},
};

/// Requests waiting to be written; beyond it callers wait.
const QUEUE: usize = 64;
/// Beyond a request's own deadline, or for requests that have none: unpacking the largest blob on a slow machine.
const PATIENCE: Duration = Duration::from_secs(180);

/// How often the machine hears that we are still here; see `remote::SILENCE`.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// Id of heartbeats, whose answers nobody waits for.
const HEARTBEAT_ID: u64 = 0;

/// A connection to a machine that has said hello.
pub(crate) struct Connection {
    pub(crate) hello: Hello,
    next: AtomicU64,
    frames: mpsc::Sender<Vec<u8>>,
    waiting: Arc<Waiting>,
    tasks: [JoinHandle<()>; 3],
}

/// Calls that wait for an answer, or why there will be none.
#[derive(Default)]
struct Waiting(Mutex<Pending>);

#[derive(Default)]
struct Pending {
    calls: HashMap<u64, oneshot::Sender<Answer>>,
    broken: Option<String>,
}

/// Why a call has no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// With the reason.
    Lost(String),
    /// After so long.
    Timeout(Duration),
    /// The request cannot be sent.
    Unsendable(io::Error),
}

impl Connection {
    /// Waits for the other side's hello, then serves calls.
    pub(crate) async fn open(
        mut input: impl AsyncRead + Unpin + Send + 'static,
        mut output: impl AsyncWrite + Unpin + Send + 'static,
    ) -> io::Result<Self> {
        let hello = match frames::read::<Hello>(&mut input).await? {
            Some((_, hello)) if hello.version == PROTOCOL_VERSION => hello,
            Some((_, hello)) => {
                return Err(io::Error::other(format!(
                    "speaks protocol {}, not {PROTOCOL_VERSION}",
                    hello.version
                )));
            }
            None => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let waiting = Arc::new(Waiting::default());
        let (frames, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
        let broken = waiting.clone();
        let writing = tokio::spawn(async move {
            while let Some(frame) = queue.recv().await {
                let mut sent = output.write_all(&frame).await;
                if sent.is_ok() && queue.is_empty() {
                    sent = output.flush().await;
                }
                if let Err(error) = sent {
                    return broken.fail(&format!("the connection broke: {error}"));
                }
            }
        });
        let answers = waiting.clone();
        let reading = tokio::spawn(async move {
            loop {
                match frames::read::<Answer>(&mut input).await {
                    Ok(Some((id, answer))) => answers.answer(id, answer),
                    Ok(None) => return answers.fail("the machine closed the connection"),
                    Err(error) => return answers.fail(&format!("the connection broke: {error}")),
                }
            }
        });
        let beat = frames::encode(HEARTBEAT_ID, &Request::Ping)?;
        let queue = frames.clone();
        let beating = tokio::spawn(async move {
            while queue.send(beat.clone()).await.is_ok() {
                tokio::time::sleep(HEARTBEAT).await;
            }
        });
        Ok(Self {
            hello,
            next: AtomicU64::new(HEARTBEAT_ID + 1),
            frames,
            waiting,
            tasks: [writing, reading, beating],
        })
    }

    pub(crate) async fn call(&self, request: &Request) -> Result<Answer, CallError> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let frame = frames::encode(id, request).map_err(CallError::Unsendable)?;
        let (sender, answer) = oneshot::channel();
        self.waiting.add(id, sender).map_err(CallError::Lost)?;
        let patience = own_deadline(request) + PATIENCE;
        let answered = async {
            if self.frames.send(frame).await.is_err() {
                return Err(CallError::Lost(self.reason()));
            }
            answer.await.map_err(|_| CallError::Lost(self.reason()))
        };
        match tokio::time::timeout(patience, answered).await {
            Ok(answer) => answer,
            Err(_) => {
                self.waiting.forget(id);
                Err(CallError::Timeout(patience))
            }
        }
    }

    pub(crate) fn is_broken(&self) -> bool {
        self.waiting.lock().broken.is_some()
    }

    fn reason(&self) -> String {
        self.waiting
            .lock()
            .broken
            .clone()
            .unwrap_or_else(|| "the connection broke".into())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Waiting {
    fn add(&self, id: u64, sender: oneshot::Sender<Answer>) -> Result<(), String> {
        let mut pending = self.lock();
        match &pending.broken {
            Some(reason) => Err(reason.clone()),
            None => {
                pending.calls.insert(id, sender);
                Ok(())
            }
        }
    }

    fn answer(&self, id: u64, answer: Answer) {
        if let Some(call) = self.lock().calls.remove(&id) {
            let _ = call.send(answer);
        }
    }

    fn forget(&self, id: u64) {
        self.lock().calls.remove(&id);
    }

    /// Every call that waits fails, as does every later one.
    fn fail(&self, reason: &str) {
        let mut pending = self.lock();
        pending.broken.get_or_insert_with(|| reason.to_owned());
        pending.calls.clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pending> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The time a request may take by its own account.
fn own_deadline(request: &Request) -> Duration {
    Duration::from_millis(match request {
        Request::Exec(exec) => exec.timeout_ms,
        Request::Http(http) => http.timeout_ms,
        Request::Units { ops, timeout_ms } => timeout_ms.saturating_mul(ops.len() as u64 + 1),
        Request::WaitPort { timeout_ms, .. }
        | Request::WaitFile { timeout_ms, .. }
        | Request::WaitHttp { timeout_ms, .. } => *timeout_ms,
        // 1 GB over 10 Mbit/s.
        Request::BlobFetch { .. } => 900_000,
        _ => 0,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::{
        local::LocalMachine,
        proto::{Exec, Response},
        remote,
    };

    async fn connected(dir: &tempfile::TempDir) -> Connection {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let (input, output) = tokio::io::split(theirs);
        let machine = LocalMachine::with_state_dir("m1", dir.path());
        tokio::spawn(remote::serve(machine, "build".into(), input, output));
        let (input, output) = tokio::io::split(ours);
        Connection::open(input, output).await.unwrap()
    }

    #[tokio::test]
    async fn answers_come_as_they_are_ready() {
        let dir = tempfile::tempdir().unwrap();
        let connection = connected(&dir).await;
        assert_eq!(connection.hello.build, "build");
        let start = Instant::now();
        let (slow, fast) = (
            Request::Exec(Exec::new(["sleep", "0.5"])),
            Request::List {
                path: "/proc/self".into(),
            },
        );
        let slow = async { (connection.call(&slow).await, start.elapsed()) };
        let fast = async { (connection.call(&fast).await, start.elapsed()) };
        let ((slow, slow_took), (fast, fast_took)) = tokio::join!(slow, fast);
        assert!(matches!(slow, Ok(Ok(Response::Exec(output))) if output.ok()));
        assert!(matches!(fast, Ok(Ok(Response::Names(names))) if !names.is_empty()));
        assert!(fast_took < slow_took, "{fast_took:?} {slow_took:?}");
    }

    #[tokio::test]
    async fn a_lost_connection_fails_every_call() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let (input, output) = tokio::io::split(ours);
        let hello = Hello {
            version: PROTOCOL_VERSION,
            build: String::new(),
            arch: String::new(),
            uid: 0,
        };
        let mut theirs = theirs;
        frames::write(&mut theirs, 0, &hello).await.unwrap();
        let connection = Connection::open(input, output).await.unwrap();
        let request = Request::Sync;
        let call = connection.call(&request);
        let cut = async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            theirs.write_all(&[200, 0, 0]).await.unwrap();
            drop(theirs);
        };
        let (answer, ()) = tokio::join!(call, cut);
        assert!(matches!(answer, Err(CallError::Lost(_))));
        assert!(connection.is_broken());
        assert!(matches!(
            connection.call(&Request::Network).await,
            Err(CallError::Lost(_))
        ));
    }

    #[tokio::test]
    async fn another_version_is_refused() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let (input, output) = tokio::io::split(ours);
        let hello = Hello {
            version: PROTOCOL_VERSION + 1,
            build: String::new(),
            arch: String::new(),
            uid: 0,
        };
        frames::write(&mut theirs, 0, &hello).await.unwrap();
        assert!(Connection::open(input, output).await.is_err());
    }

    #[tokio::test]
    async fn programs_die_with_the_session() {
        let dir = tempfile::tempdir().unwrap();
        let connection = connected(&dir).await;
        let file = dir.path().join("pid");
        let exec = Request::Exec(Exec::new([
            "sh",
            "-c",
            &format!("echo $$ > {}; exec sleep 60", file.display()),
        ]));
        let called = tokio::time::timeout(Duration::from_millis(300), connection.call(&exec)).await;
        assert!(called.is_err(), "still running");
        drop(connection);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let pid = std::fs::read_to_string(file).unwrap();
        let state = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }
}
