//! The trait every way of reaching a machine implements, and names for the common requests.

use std::{
    collections::BTreeMap,
    future::Future,
    io::{Read, Seek, SeekFrom},
    path::Path,
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use quorate_facts::{FileFacts, HostFacts, UnitFacts};

use crate::{
    error::{ErrorKind, MachineError, RemoteError},
    proto::*,
};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
pub type MachineRef = Arc<dyn Machine>;

/// A machine that can be asked to do things. Calls may be made concurrently and are answered in any order.
pub trait Machine: Send + Sync {
    /// Its name in the cluster file; appears in every error.
    fn name(&self) -> &str;

    fn call(&self, request: Request) -> BoxFuture<'_, Result<Response, MachineError>>;

    /// Forgets the connection, if there is one; the next call makes a new one. For whoever knows that the machine's power
    /// was cut, before a dead link shows by its silence.
    fn forget(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }
}

/// A piece of an upload. Large enough to keep a fast link busy with [`CHUNKS_IN_FLIGHT`], small enough that other
/// requests on the same connection are not delayed noticeably.
const CHUNK: usize = 256 << 10;
/// 8 × 256 KiB covers 100 Mbit/s at 160 ms or 1 Gbit/s at 16 ms.
const CHUNKS_IN_FLIGHT: usize = 8;

/// Calls and unwraps the one answer that belongs to the request.
macro_rules! ask {
    ($self:expr, $request:expr, $pattern:pat => $value:expr) => {{
        let request = $request;
        let operation = request.operation();
        match $self.call(request).await? {
            $pattern => Ok($value),
            other => Err(unexpected($self.name(), &operation, &other)),
        }
    }};
}

impl dyn Machine + '_ {
    pub async fn gather(&self, query: GatherQuery) -> Result<HostFacts, MachineError> {
        ask!(self, Request::Gather(query), Response::Facts(facts) => *facts)
    }

    /// With hashes, in the order asked.
    pub async fn stat(&self, paths: Vec<String>) -> Result<Vec<FileFacts>, MachineError> {
        ask!(self, Request::Stat { paths, hash: true }, Response::Files(files) => files)
    }

    pub async fn read(&self, path: &str, max_bytes: u64) -> Result<Vec<u8>, MachineError> {
        ask!(self, Request::Read { path: path.into(), max_bytes }, Response::Content(content) => content.0)
    }

    /// Names in a directory, sorted; none where there is no directory.
    pub async fn list(&self, path: &str) -> Result<Vec<String>, MachineError> {
        ask!(self, Request::List { path: path.into() }, Response::Names(names) => names)
    }

    pub async fn write(&self, files: Vec<FileWrite>, run_id: &str) -> Result<Vec<Item>, MachineError> {
        self.items(Request::Write {
            files,
            run_id: run_id.into(),
        })
        .await
    }

    /// Any request answered by items; the first failed item is the error.
    pub async fn items(&self, request: Request) -> Result<Vec<Item>, MachineError> {
        let operation = request.operation();
        let items = ask!(self, request, Response::Items(items) => items)?;
        match items.iter().find_map(|item| item.error.clone()) {
            Some(error) => Err(MachineError::remote(self.name(), &operation, error)),
            None => Ok(items),
        }
    }

    /// Any request answered by [`Response::Done`].
    pub async fn done(&self, request: Request) -> Result<(), MachineError> {
        ask!(self, request, Response::Done => ())
    }

    pub async fn blobs_present(&self, sha256: Vec<String>) -> Result<Vec<String>, MachineError> {
        ask!(self, Request::BlobsPresent { sha256 }, Response::Names(names) => names)
    }

    pub async fn units(&self, ops: Vec<UnitOp>, timeout_ms: u64) -> Result<(), MachineError> {
        self.done(Request::Units { ops, timeout_ms }).await
    }

    pub async fn unit_status(&self, names: Vec<String>) -> Result<BTreeMap<String, UnitFacts>, MachineError> {
        ask!(self, Request::UnitStatus { names }, Response::Units(units) => units)
    }

    /// The output, whatever the exit status.
    pub async fn exec(&self, exec: Exec) -> Result<ExecOutput, MachineError> {
        ask!(self, Request::Exec(exec), Response::Exec(output) => output)
    }

    /// The output; any exit status but 0 is an error that carries the last lines of stderr.
    pub async fn exec_ok(&self, exec: Exec) -> Result<ExecOutput, MachineError> {
        let operation = Request::Exec(exec.clone()).operation();
        let timeout_ms = exec.timeout_ms;
        let output = self.exec(exec).await?;
        if output.ok() {
            return Ok(output);
        }
        let (kind, how) = match (output.timed_out, output.status, output.signal) {
            (true, ..) => (ErrorKind::Timeout, format!("killed after {timeout_ms} ms")),
            (_, Some(status), _) => (ErrorKind::Failed, format!("exit status {status}")),
            (_, None, signal) => (
                ErrorKind::Failed,
                format!("ended by signal {}", signal.unwrap_or_default()),
            ),
        };
        let said = if output.stderr.is_empty() {
            output.stdout.lossy()
        } else {
            output.stderr.lossy()
        };
        Err(MachineError::new(
            self.name(),
            &operation,
            kind,
            format!("{how}: {}", last_lines(&said, 8)),
        ))
    }

    pub async fn http(&self, request: HttpRequest) -> Result<HttpReply, MachineError> {
        ask!(self, Request::Http(request), Response::Http(reply) => reply)
    }

    /// Any of the `Wait…` requests; not reaching the goal in time is an error.
    pub async fn wait(&self, request: Request) -> Result<Waited, MachineError> {
        let operation = request.operation();
        let waited = ask!(self, request, Response::Wait(waited) => waited)?;
        if waited.ok {
            return Ok(waited);
        }
        let message = format!("gave up after {} ms: {}", waited.took_ms, waited.last);
        Err(MachineError::new(self.name(), &operation, ErrorKind::Timeout, message))
    }

    pub async fn probe(&self, probe: Probe) -> Result<Probed, MachineError> {
        ask!(self, Request::Probe(probe), Response::Probed(probed) => probed)
    }

    pub async fn lock(&self, request: LockRequest) -> Result<LockReply, MachineError> {
        ask!(self, Request::Lock(request), Response::Lock(reply) => reply)
    }

    /// Sends a packed blob from a local file, going on where an earlier upload stopped. `progress` is told of each
    /// number of packed bytes as it is accounted for (bytes already there included), so that they add up to the size.
    pub async fn put_blob(
        &self,
        packed: &Path,
        blob: &PackedBlob,
        progress: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(), MachineError> {
        let begin = Request::BlobBegin { blob: blob.clone() };
        let operation = begin.operation();
        let mut offset = match self.call(begin).await? {
            Response::Done => {
                progress(blob.packed_size);
                return Ok(());
            }
            Response::Offset(offset) => offset,
            other => return Err(unexpected(self.name(), &operation, &other)),
        };
        let local = |error: std::io::Error| {
            MachineError::remote(
                self.name(),
                &operation,
                RemoteError::io(format_args!("{} here", packed.display()), &error),
            )
        };
        let mut file = std::fs::File::open(packed).map_err(local)?;
        file.seek(SeekFrom::Start(offset)).map_err(local)?;
        progress(offset);
        let mut in_flight = std::collections::VecDeque::new();
        loop {
            if in_flight.len() == CHUNKS_IN_FLIGHT || offset == blob.packed_size {
                let Some((size, sent)) = in_flight.pop_front() else {
                    break;
                };
                join(sent).await?;
                progress(size);
                continue;
            }
            let mut data = vec![0; CHUNK.min((blob.packed_size - offset) as usize)];
            file.read_exact(&mut data).map_err(local)?;
            let size = data.len() as u64;
            let chunk = Request::BlobChunk {
                packed_sha256: blob.packed_sha256.clone(),
                offset,
                data: data.into(),
            };
            in_flight.push_back((size, Started::new(self.call(chunk)).await));
            offset += size;
        }
        self.done(Request::BlobEnd { blob: blob.clone() }).await
    }
}

/// A call that was polled once, so that its request is on its way while others are prepared.
enum Started<'a> {
    Answered(Result<Response, MachineError>),
    Pending(BoxFuture<'a, Result<Response, MachineError>>),
}

impl<'a> Started<'a> {
    async fn new(mut call: BoxFuture<'a, Result<Response, MachineError>>) -> Self {
        let polled = std::future::poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
        match polled {
            Poll::Ready(answer) => Self::Answered(answer),
            Poll::Pending => Self::Pending(call),
        }
    }
}

async fn join(started: Started<'_>) -> Result<Response, MachineError> {
    match started {
        Started::Answered(answer) => answer,
        Started::Pending(call) => call.await,
    }
}

fn unexpected(machine: &str, operation: &str, response: &Response) -> MachineError {
    let kind = format!("{response:?}");
    let kind = kind.split(['(', ' ', '{']).next().unwrap_or_default();
    MachineError::new(
        machine,
        operation,
        ErrorKind::Protocol,
        format!("answered with {kind}, which does not belong to the request"),
    )
    .hint("the machine runs another build of quorate; connect again")
}

pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
