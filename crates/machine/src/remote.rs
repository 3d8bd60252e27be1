//! The machine's end of a connection: requests in, answers out, in whatever order they are ready.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    sync::mpsc,
    task::JoinSet,
};

use crate::{
    frames,
    hash::is_sha256,
    local::{LocalMachine, STATE_DIR},
    proto::{Answer, Hello, PROTOCOL_VERSION, Request},
};

/// Requests worked on at once; more wait in the pipe. Uploads and waits share the connection, so it is generous.
const AT_ONCE: usize = 256;

/// An operator from whom not a byte came for so long (heartbeats are 5 s apart) has lost the link or sleeps. sshd would
/// not notice for hours, and what was started for him would go on.
const SILENCE: Duration = Duration::from_secs(30);

/// Former builds kept beside the running one: a run that is under way may have been started with it.
const FORMER_BUILDS: usize = 1;

/// Where programs in use are linked from. A build that units start is not old, however many operators came with other
/// builds since.
const LINKS: [&str; 2] = ["/opt/quorate/bin", "/opt/cni/bin"];

/// `quorate remote`: this host on standard input and output, for as long as the connection lasts.
pub async fn serve_stdio() -> io::Result<()> {
    let exe = std::env::current_exe()?;
    let (state_dir, build) = placed(&exe).unwrap_or((Path::new(STATE_DIR), ""));
    prune_builds(state_dir, build, &LINKS.map(Path::new));
    serve(
        LocalMachine::with_state_dir("local", state_dir),
        build.to_owned(),
        tokio::io::stdin(),
        tokio::io::stdout(),
    )
    .await
}

/// State directory and hash of a program that was placed at `<state directory>/bin/<sha256>/quorate`.
fn placed(exe: &Path) -> Option<(&Path, &str)> {
    let dir = exe.parent()?;
    let build = dir.file_name()?.to_str().filter(|name| is_sha256(name))?;
    let bin = dir.parent().filter(|bin| bin.ends_with("bin"))?;
    Some((bin.parent()?, build))
}

/// Deletes all builds but the running one, the last ones used and those something in `links` points to. What cannot be
/// deleted stays, which harms nobody.
fn prune_builds(state_dir: &Path, running: &str, links: &[&Path]) {
    if running.is_empty() {
        return;
    }
    let builds = state_dir.join("bin");
    let linked: Vec<PathBuf> = links
        .iter()
        .filter_map(|dir| fs::read_dir(dir).ok())
        .flatten()
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .collect();
    // The time of its directory tells when a build was last used.
    let _ = File::open(builds.join(running)).and_then(|dir| dir.set_modified(SystemTime::now()));
    let mut former: Vec<(SystemTime, PathBuf)> = fs::read_dir(&builds)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .to_str()
                .is_some_and(|name| is_sha256(name) && name != running)
        })
        .filter(|entry| !linked.iter().any(|target| target.starts_with(entry.path())))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    former.sort();
    former.reverse();
    for (_, path) in former.into_iter().skip(FORMER_BUILDS) {
        let _ = fs::remove_dir_all(path);
    }
}

/// Serves until the other side closes or falls silent. What is still being carried out then is given up: programs are killed, waits
/// end, and a file being written stays as it was.
pub async fn serve(
    machine: LocalMachine,
    build: String,
    input: impl AsyncRead + Unpin,
    output: impl AsyncWrite + Unpin + Send + 'static,
) -> io::Result<()> {
    serve_within(machine, build, input, output, SILENCE).await
}

async fn serve_within(
    machine: LocalMachine,
    build: String,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin + Send + 'static,
    silence: Duration,
) -> io::Result<()> {
    let hello = Hello {
        version: PROTOCOL_VERSION,
        build,
        arch: rustix::system::uname().machine().to_string_lossy().into_owned(),
        uid: rustix::process::geteuid().as_raw(),
    };
    frames::write(&mut output, 0, &hello).await?;
    let (answers, mut ready) = mpsc::channel::<(u64, Answer)>(AT_ONCE);
    let mut writing = tokio::spawn(async move {
        while let Some((id, answer)) = ready.recv().await {
            output.write_all(&encoded(id, answer)?).await?;
            if ready.is_empty() {
                output.flush().await?;
            }
        }
        io::Result::Ok(())
    });
    let (mut input, heard) = Heard::new(input);
    let silent = async {
        while let Some(left) = silence.checked_sub(heard.elapsed()) {
            tokio::time::sleep(left + Duration::from_millis(10)).await;
        }
    };
    tokio::pin!(silent);
    let mut tasks = JoinSet::new();
    let result = loop {
        while tasks.try_join_next().is_some() {}
        if tasks.len() >= AT_ONCE {
            tasks.join_next().await;
        }
        let read = tokio::select! {
            read = frames::read::<Request>(&mut input) => read,
            () = &mut silent => break Err(io::Error::new(io::ErrorKind::TimedOut, "the operator fell silent")),
            // Nobody hears the answers any more.
            written = &mut writing => break written.unwrap_or_else(|error| Err(io::Error::other(error))),
        };
        let (id, request) = match read {
            Ok(Some(message)) => message,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        let (machine, answers) = (machine.clone(), answers.clone());
        tasks.spawn(async move {
            let answer = machine.answer(request).await;
            let _ = answers.send((id, answer)).await;
        });
    };
    tasks.shutdown().await;
    writing.abort();
    result
}

/// A stream that notes when it last brought something.
struct Heard<R> {
    inner: R,
    last: Last,
}

#[derive(Clone)]
struct Last(Arc<Mutex<Instant>>);

impl<R> Heard<R> {
    fn new(inner: R) -> (Self, Last) {
        let last = Last(Arc::new(Mutex::new(Instant::now())));
        (
            Self {
                inner,
                last: last.clone(),
            },
            last,
        )
    }
}

impl Last {
    fn elapsed(&self) -> Duration {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for Heard<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        *self.last.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        Poll::Ready(Ok(()))
    }
}

/// An answer too long for a frame becomes an error, not a broken connection.
fn encoded(id: u64, answer: Answer) -> io::Result<Vec<u8>> {
    frames::encode(id, &answer).or_else(|error| {
        frames::encode::<Answer>(
            id,
            &Err(crate::RemoteError::failed(format!(
                "the answer cannot be sent: {error}"
            ))),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_operator_ends_the_session_and_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let (mut ours, theirs) = tokio::io::duplex(1024);
        let (input, output) = tokio::io::split(theirs);
        let pid = dir.path().join("pid");
        let exec = crate::proto::Exec::new(["sh", "-c", &format!("echo $$ > {}; exec sleep 60", pid.display())]);
        frames::write(&mut ours, 1, &Request::Exec(exec)).await.unwrap();
        let machine = LocalMachine::with_state_dir("m1", dir.path());
        let error = serve_within(machine, String::new(), input, output, Duration::from_millis(300))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let state =
            fs::read_to_string(format!("/proc/{}/stat", fs::read_to_string(pid).unwrap().trim())).unwrap_or_default();
        assert!(state.is_empty() || state.contains(") Z "), "{state}");
    }

    #[test]
    fn a_placed_program_knows_where_it_belongs() {
        let build = "a".repeat(64);
        let exe = format!("/srv/quorate/bin/{build}/quorate");
        assert_eq!(
            placed(Path::new(&exe)),
            Some((Path::new("/srv/quorate"), build.as_str()))
        );
        assert_eq!(placed(Path::new("/usr/local/bin/quorate")), None);
    }

    #[test]
    fn the_running_build_and_the_last_one_stay() {
        let dir = tempfile::tempdir().unwrap();
        let build = |digit: &str| digit.repeat(64);
        for (age, digit) in [(300, "a"), (200, "b"), (100, "c"), (400, "d")] {
            let path = dir.path().join("bin").join(build(digit));
            fs::create_dir_all(&path).unwrap();
            File::open(&path)
                .unwrap()
                .set_modified(SystemTime::now() - std::time::Duration::from_secs(age))
                .unwrap();
        }
        prune_builds(dir.path(), &build("d"), &[]);
        let mut left: Vec<String> = fs::read_dir(dir.path().join("bin"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [build("c"), build("d")]);
    }

    /// Drill `machine-off-each`: after two operators with newer builds the agent had no program to start again.
    #[test]
    fn a_build_that_units_start_stays() {
        let dir = tempfile::tempdir().unwrap();
        let build = |digit: &str| digit.repeat(64);
        for (age, digit) in [(300, "a"), (200, "b"), (100, "c"), (0, "d")] {
            let path = dir.path().join("bin").join(build(digit));
            fs::create_dir_all(&path).unwrap();
            File::open(&path)
                .unwrap()
                .set_modified(SystemTime::now() - std::time::Duration::from_secs(age))
                .unwrap();
        }
        let links = dir.path().join("links");
        fs::create_dir(&links).unwrap();
        std::os::unix::fs::symlink(
            dir.path().join("bin").join(build("a")).join("quorate"),
            links.join("quorate"),
        )
        .unwrap();
        prune_builds(dir.path(), &build("d"), &[&links, Path::new("/nowhere")]);
        let mut left: Vec<String> = fs::read_dir(dir.path().join("bin"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, [build("a"), build("c"), build("d")]);
    }
}
