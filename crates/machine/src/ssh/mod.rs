//! A machine over the system's own `ssh`: one connection, over which the program is placed if it is not there yet, and
//! then speaks frames.
//!
//! ```text
//! operator                                   machine (login shell → sudo, if not root → sh)
//!   ssh host 'sh -c …'  ───────────────────▶  is /var/lib/quorate/bin/<sha256>/quorate there?
//!                       ◀─── "quorate: need"  or "quorate: have"
//!   the program, if needed  ──────────────▶  written beside, checked, renamed
//!                       ◀─── hello ────────  exec quorate remote
//!   requests  ◀───────────────────────────▶  answers
//! ```
//! ssh_config, agents, jump hosts and known_hosts work as always, because it is the same ssh.

mod bootstrap;
mod errors;

use std::{
    fmt,
    io::Read,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::Mutex,
};

use crate::{
    client::{CallError, Connection},
    error::{ErrorKind, MachineError},
    hash::hex,
    machine::{BoxFuture, Machine},
    proto::{LockRequest, Request, Response},
};

/// How to reach a machine. Everything left out is as ssh_config says.
#[derive(Clone, Default)]
pub struct SshTarget {
    /// Name of the machine in messages.
    pub name: String,
    /// Address, or a `Host` of ssh_config.
    pub host: String,
    pub user: Option<String>,
    pub port: Option<u16>,
    /// `ssh -F`.
    pub config_file: Option<PathBuf>,
    pub identity_file: Option<PathBuf>,
    /// Trust keys of hosts never seen before (`StrictHostKeyChecking=accept-new`). A changed key is refused all the same.
    pub accept_new_host_keys: bool,
    /// For sudo, if the user is not root. Goes through ssh's standard input only.
    pub sudo_password: Option<Password>,
    /// Further `-o` options.
    pub options: Vec<String>,
    /// Where the program is kept on the machine; `/var/lib/quorate` if `None`.
    pub state_dir: Option<String>,
}

/// Never printed.
#[derive(Clone, Default)]
pub struct Password(pub String);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<password>")
    }
}

/// The program that is placed on machines, read once for all of them.
#[derive(Clone)]
pub struct Program(Arc<ProgramFile>);

struct ProgramFile {
    path: PathBuf,
    size: u64,
    sha256: String,
}

impl Program {
    /// The running program itself.
    pub fn current() -> std::io::Result<Self> {
        Self::from_file(Path::new("/proc/self/exe"))
    }

    pub fn from_file(path: &Path) -> std::io::Result<Self> {
        use sha2::Digest;
        let mut file = std::fs::File::open(path)?;
        let (mut digest, mut size) = (sha2::Sha256::new(), 0);
        let mut buffer = vec![0; 256 << 10];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                got => {
                    digest.update(&buffer[..got]);
                    size += got as u64;
                }
            }
        }
        Ok(Self(Arc::new(ProgramFile {
            path: path.to_owned(),
            size,
            sha256: hex(&digest.finalize()),
        })))
    }

    /// Lower-case hex.
    pub fn sha256(&self) -> &str {
        &self.0.sha256
    }
}

/// A machine reached over SSH. Connects with the first call, and again with the first call after the connection broke.
pub struct SshMachine {
    target: SshTarget,
    program: Program,
    slot: Mutex<Slot>,
    /// Locks taken over this machine's connection, taken again after a reconnect so that the fence holds.
    locks: std::sync::Mutex<Vec<(LockRequest, u64)>>,
}

#[derive(Default)]
struct Slot {
    session: Option<Arc<Session>>,
    /// The last attempt to connect, if it failed, and when it ended.
    failed: Option<(Instant, MachineError)>,
}

struct Session {
    connection: Connection,
    stderr: Arc<errors::Tail>,
    _child: Child,
}

/// ssh gives up on a host that does not answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// With jump hosts, slow DNS and sudo; and the program has to travel.
const BOOTSTRAP_TIMEOUT: Duration = Duration::from_secs(120);

impl SshMachine {
    pub fn new(target: SshTarget, program: Program) -> Self {
        Self {
            target,
            program,
            slot: Mutex::default(),
            locks: std::sync::Mutex::default(),
        }
    }

    /// Connects now, to learn early what is wrong.
    pub async fn connect(&self) -> Result<(), MachineError> {
        self.session().await.map(drop)
    }

    /// Ends the connection. What is still under way there is given up.
    pub async fn disconnect(&self) {
        self.slot.lock().await.session.take();
    }

    async fn session(&self) -> Result<Arc<Session>, MachineError> {
        let asked = Instant::now();
        let mut slot = self.slot.lock().await;
        if let Some(session) = slot.session.as_ref().filter(|session| !session.connection.is_broken()) {
            return Ok(session.clone());
        }
        slot.session = None;
        // Calls that come together share one attempt: of ten checks of a dead machine only the first waits for it.
        if let Some((_, error)) = slot.failed.as_ref().filter(|(ended, _)| *ended >= asked) {
            return Err(error.clone());
        }
        let connected = async {
            let session = Arc::new(self.open().await?);
            self.retake_locks(&session).await?;
            Ok(session)
        };
        match connected.await {
            Ok(session) => Ok(slot.session.insert(session).clone()),
            Err(error) => {
                slot.failed = Some((Instant::now(), MachineError::clone(&error)));
                Err(error)
            }
        }
    }

    async fn open(&self) -> Result<Session, MachineError> {
        let name = &self.target.name;
        let mut child = self
            .ssh()
            .arg(bootstrap::command(&self.target, &self.program.0))
            .spawn()
            .map_err(|error| {
                MachineError::new(name, "connect", ErrorKind::Unreachable, format!("ssh: {error}"))
                    .hint("install the OpenSSH client (`ssh`) on this computer")
            })?;
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(MachineError::new(
                name,
                "connect",
                ErrorKind::Unreachable,
                "ssh: no pipes",
            ));
        };
        let stderr = errors::Tail::follow(stderr);
        let opening = self.converse(stdin, stdout, &stderr);
        let failure = match tokio::time::timeout(BOOTSTRAP_TIMEOUT, opening).await {
            Ok(Ok(connection)) => {
                return Ok(Session {
                    connection,
                    stderr,
                    _child: child,
                });
            }
            Ok(Err(failure)) => failure,
            Err(_) => bootstrap::Failure::Silent(BOOTSTRAP_TIMEOUT),
        };
        // What ssh says and how it ends explains more than what was missing on the pipe.
        let status = tokio::time::timeout(Duration::from_secs(1), child.wait())
            .await
            .ok()
            .and_then(Result::ok);
        let _ = child.start_kill();
        stderr.settle().await;
        Err(errors::explain(self, failure, status.and_then(|status| status.code()), &stderr.text()).await)
    }

    async fn converse(
        &self,
        mut stdin: ChildStdin,
        stdout: ChildStdout,
        stderr: &errors::Tail,
    ) -> Result<Connection, bootstrap::Failure> {
        let stdout = bootstrap::place(&self.target, &self.program.0, &mut stdin, stdout, stderr).await?;
        let connection = Connection::open(stdout, stdin)
            .await
            .map_err(bootstrap::Failure::NoHello)?;
        if connection.hello.build != self.program.0.sha256 {
            return Err(bootstrap::Failure::Noise(format!(
                "another build of quorate ({})",
                connection.hello.build
            )));
        }
        Ok(connection)
    }

    /// ssh with everything but the command to run.
    fn ssh(&self) -> Command {
        let mut command = Command::new("ssh");
        command.args(self.options()).arg("--").arg(&self.target.host);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // A Ctrl-C at the terminal is for the operator's program, which then ends its connections in order.
        command.process_group(0).kill_on_drop(true);
        command
    }

    fn options(&self) -> Vec<String> {
        let target = &self.target;
        let strict = if target.accept_new_host_keys {
            "accept-new"
        } else {
            "yes"
        };
        let mut options: Vec<String> = ["-T", "-a", "-x"].map(str::to_owned).to_vec();
        if let Some(file) = &target.config_file {
            options.extend(["-F".into(), file.display().to_string()]);
        }
        if let Some(file) = &target.identity_file {
            options.extend(["-i".into(), file.display().to_string()]);
        }
        if let Some(port) = target.port {
            options.extend(["-p".into(), port.to_string()]);
        }
        if let Some(user) = &target.user {
            options.extend(["-l".into(), user.clone()]);
        }
        let ours = [
            "BatchMode=yes".to_owned(),
            format!("ConnectTimeout={}", CONNECT_TIMEOUT.as_secs()),
            // A dead link is found within 15 s.
            "ServerAliveInterval=5".into(),
            "ServerAliveCountMax=2".into(),
            "TCPKeepAlive=yes".into(),
            format!("StrictHostKeyChecking={strict}"),
            "PermitLocalCommand=no".into(),
            "LogLevel=INFO".into(),
        ];
        options.extend(
            target
                .options
                .iter()
                .cloned()
                .chain(ours)
                .flat_map(|option| ["-o".to_owned(), option]),
        );
        options
    }

    /// After a reconnect: the machine must know again which locks this run holds.
    async fn retake_locks(&self, session: &Session) -> Result<(), MachineError> {
        let held = self.locks.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (mut request, token) in held {
            request.steal = false;
            let request = Request::Lock(request);
            let answer = session
                .connection
                .call(&request)
                .await
                .map_err(|error| self.call_failed(&request, session, error))?;
            let ours = matches!(&answer, Ok(Response::Lock(reply)) if reply.acquired && reply.token == token);
            if !ours {
                return Err(MachineError::new(
                    &self.target.name,
                    &request.operation(),
                    ErrorKind::LockLost,
                    "another run took the lock while this one was cut off",
                )
                .hint("let that run finish, then plan again"));
            }
        }
        Ok(())
    }

    fn note_lock(&self, request: &Request, response: &Response) {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        match (request, response) {
            (Request::Lock(lock), Response::Lock(reply)) if reply.acquired => {
                locks.retain(|(held, _)| held.name != lock.name);
                locks.push((lock.clone(), reply.token));
            }
            (Request::Unlock { name, .. }, _) => locks.retain(|(held, _)| held.name != *name),
            _ => {}
        }
    }

    fn call_failed(&self, request: &Request, session: &Session, error: CallError) -> MachineError {
        let (name, operation) = (&self.target.name, request.operation());
        match error {
            CallError::Lost(reason) => {
                let said = session.stderr.text();
                let said = crate::machine::last_lines(&said, 2);
                let message = if said.is_empty() {
                    reason
                } else {
                    format!("{reason} ({said})")
                };
                MachineError::new(
                    name,
                    &operation,
                    ErrorKind::ConnectionLost,
                    format!("{message}; whether it took place is unknown"),
                )
                .hint("run again: what is there is looked at first")
            }
            CallError::Timeout(after) => MachineError::new(
                name,
                &operation,
                ErrorKind::Timeout,
                format!("no answer within {} s", after.as_secs()),
            )
            .hint("the machine is very slow or stuck; see its load and disks, then run again"),
            CallError::Unsendable(error) => MachineError::new(name, &operation, ErrorKind::Invalid, error.to_string()),
        }
    }
}

impl Machine for SshMachine {
    fn name(&self) -> &str {
        &self.target.name
    }

    fn call(&self, request: Request) -> BoxFuture<'_, Result<Response, MachineError>> {
        Box::pin(async move {
            let session = self.session().await?;
            let answer = session
                .connection
                .call(&request)
                .await
                .map_err(|error| self.call_failed(&request, &session, error))?;
            let response =
                answer.map_err(|error| MachineError::remote(&self.target.name, &request.operation(), error))?;
            self.note_lock(&request, &response);
            Ok(response)
        })
    }

    fn forget(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.disconnect())
    }
}
