//! The running agent: starts everything in order, serves signals and the watchdog, ends in order.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use quorate_lb::AgentConfig;
use quorate_lb::vrrp::Routers;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::admin::{self, Inheritance};
use crate::boot;
use crate::core::{self, CoreSender};
use crate::notify::{notify, watchdog};
use crate::proxy::{bound_allocator, raise_open_files};
use crate::stats::{self, Credentials, Site};
use crate::vrrp_io;

/// How long clients may go on after SIGTERM: a watch never ends by itself, and its client comes back elsewhere.
const STOP_DRAIN: Duration = Duration::from_secs(5);
/// How long they may after another process took over: nobody waits for this one.
const TAKEN_OVER_DRAIN: Duration = Duration::from_secs(600);
/// More threads than this gain nothing in front of a few API servers.
const MOST_WORKERS: usize = 8;

/// How to run.
#[derive(Debug)]
pub struct Options {
    pub config: PathBuf,
    /// Replace the agent that runs behind the same control socket, without refusing a connection.
    pub take_over: bool,
    /// Proxy threads; one per CPU if not given.
    pub workers: Option<usize>,
}

enum Wish {
    Stop,
    Retire,
}

struct Running {
    path: PathBuf,
    socket: PathBuf,
    core: CoreSender,
    vrrp: Mutex<Vrrp>,
    wishes: mpsc::UnboundedSender<Wish>,
}

#[derive(Default)]
struct Vrrp {
    handle: Option<vrrp_io::Handle<Routers>>,
    /// This process ends, or another one does its work: none is to be started any more.
    over: bool,
}

impl Running {
    fn vrrp(&self) -> MutexGuard<'_, Vrrp> {
        self.vrrp.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says that this configuration is in force, for whoever changed it.
    fn say_what_runs(&self, config: &AgentConfig) {
        let file = admin::running(&self.socket);
        let aside = file.with_extension("tmp");
        let outcome = crate::config::sums(&self.path, config)
            .and_then(|sums| std::fs::write(&aside, sums))
            .and_then(|()| std::fs::rename(&aside, &file));
        if let Err(error) = outcome {
            tracing::warn!(file = %file.display(), %error, "cannot say which configuration is in force");
        }
    }

    /// Takes part in VRRP, as the configuration of the moment says.
    fn start_vrrp(&self, boot: u64) -> anyhow::Result<()> {
        let Some(config) = self.core.ask(|c| c.config.clone()) else {
            return Ok(());
        };
        let mut vrrp = self.vrrp();
        if !vrrp.over {
            vrrp.handle = virtual_routers(&config, &self.core, boot)?;
        }
        Ok(())
    }

    fn stop_vrrp(&self) {
        let handle = self.vrrp().handle.take();
        if let Some(h) = handle {
            h.stop();
        }
    }

    /// Stops it for good.
    fn end_vrrp(&self) {
        self.vrrp().over = true;
        self.stop_vrrp();
    }
}

impl admin::Process for Running {
    fn reload(&self) -> Vec<String> {
        notify("RELOADING=1");
        let failed = match crate::config::load(&self.path) {
            Ok(config) => {
                let no_vrrp = self.vrrp().handle.is_none();
                let mut failed = Vec::new();
                if no_vrrp && !config.vrrp.is_empty() {
                    failed.push("the first virtual router needs a restart".to_owned());
                }
                let new = config.clone();
                let done = self.core.ask(move |c| c.reconfigure(new));
                failed.extend(done.unwrap_or_else(|| vec!["the agent is ending".into()]));
                if failed.is_empty() {
                    self.say_what_runs(&config);
                }
                failed
            }
            Err(e) => vec![format!("nothing was changed: {e}")],
        };
        notify("READY=1");
        for f in &failed {
            tracing::error!(error = f, "reload");
        }
        if failed.is_empty() {
            tracing::info!("configuration reloaded");
        }
        failed
    }

    fn yield_to_successor(&self) {
        self.stop_vrrp();
    }

    fn go_on(&self) {
        let Some(state) = self.core.ask(|c| c.config.state.clone()) else {
            return;
        };
        // Another life for its peers, so another boot id: the first one's packets have been counted.
        if let Err(error) = self.start_vrrp(boot::next(&state)) {
            tracing::error!(
                error = format!("{error:#}"),
                "no virtual addresses from here on; restart the agent"
            );
        }
    }

    fn retire(&self) {
        let _ = self.wishes.send(Wish::Retire);
    }
}

/// Runs until it is told to stop. Blocks.
///
/// # Errors
/// The configuration is wrong, or something needed could not be had.
pub fn run(options: &Options) -> anyhow::Result<()> {
    bound_allocator();
    let config = crate::config::load(&options.config)?;
    let open_files = raise_open_files();
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()?
        .block_on(serve(options, config, open_files))
}

/// What the service manager takes for the service: the supervisor where there is one, since the agent proper may die and
/// come back without the service having ended.
fn main_process() -> u32 {
    if crate::supervise::is_supervised() {
        std::os::unix::process::parent_id()
    } else {
        std::process::id()
    }
}

async fn serve(options: &Options, config: AgentConfig, open_files: u64) -> anyhow::Result<()> {
    // Before anything that can be interrupted: a signal during the start is served after it.
    let mut hup = signal(SignalKind::hangup())?;
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let socket = config.admin.socket.clone();
    let inheritance = predecessor(&socket, options.take_over)?;
    let (inherited, predecessor) = match inheritance {
        Some(i) => {
            let (sockets, predecessor) = i.split();
            tracing::info!(sockets = sockets.len(), "taking over from the running agent");
            (sockets, Some(predecessor))
        }
        None => (Vec::new(), None),
    };
    for reason in crate::kernel_set::check(&config) {
        tracing::error!(reason, "this machine cannot do all that is configured");
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let boot = if config.vrrp.is_empty() {
        boot::now()
    } else {
        boot::next(&config.state)
    };
    let (core, thread, listens) = core::start(core::Start {
        config: config.clone(),
        inherited,
        workers: options.workers.unwrap_or(cpus.min(MOST_WORKERS)),
        open_files,
        kernel_sets: crate::kernel_set::all(&config),
        seed: seed(&config.node),
        boot,
    })?;
    let (wishes, mut wished) = mpsc::unbounded_channel();
    let running: &'static Running = Box::leak(Box::new(Running {
        path: options.config.clone(),
        socket: socket.clone(),
        core: core.clone(),
        vrrp: Mutex::default(),
        wishes: wishes.clone(),
    }));
    if predecessor.is_none() {
        running.start_vrrp(boot)?;
    }
    // What could not be bound was logged; the rest serves.
    tokio::task::spawn_blocking(move || listens.recv()).await??;
    let sites = sites(&config, &core)?;
    // Last of all: a predecessor goes on with its virtual addresses and its control socket until this process has shown
    // that it can run.
    let predecessor = match predecessor {
        Some(p) => {
            let interval = config.vrrp.iter().map(|v| v.interval.get()).max().unwrap_or_default();
            let p = tokio::task::spawn_blocking(move || p.release(interval).map(|()| p)).await??;
            running.start_vrrp(boot)?;
            Some(p)
        }
        None => None,
    };
    let _socket = admin::serve(&socket, core.clone(), running)?;
    running.say_what_runs(&config);
    if let Some(p) = predecessor {
        p.retire();
    }
    notify(&format!("READY=1\nMAINPID={}", main_process()));
    tracing::info!(
        node = config.node,
        open_files,
        frontends = config.frontends.len(),
        vrrp = config.vrrp.len(),
        "ready"
    );

    let mut beat = watchdog().map(tokio::time::interval);
    let deadline = loop {
        tokio::select! {
            _ = hup.recv() => { tokio::task::spawn_blocking(|| admin::Process::reload(running)).await?; }
            _ = term.recv() => { let _ = wishes.send(Wish::Stop); }
            _ = int.recv() => { let _ = wishes.send(Wish::Stop); }
            () = tick(&mut beat) => {
                let core = core.clone();
                // A core that does not answer is a reason not to say so.
                if tokio::task::spawn_blocking(move || core.ask(|c| c.healthy())).await? == Some(true) {
                    notify("WATCHDOG=1");
                }
            }
            Some(wish) = wished.recv() => break Instant::now() + match wish {
                Wish::Stop => STOP_DRAIN,
                Wish::Retire => TAKEN_OVER_DRAIN,
            },
        }
    };
    tracing::info!("stopping");
    for site in sites {
        site.abort();
    }
    notify("STOPPING=1");
    // The VIP moves first, while this machine still serves those who have not noticed.
    tokio::task::spawn_blocking(|| running.end_vrrp()).await?;
    core.ask(move |c| c.drain(deadline));
    loop {
        let asked = core.clone();
        if tokio::task::spawn_blocking(move || asked.ask(|c| c.drained())).await? != Some(false) {
            break;
        }
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(50)) => {}
            _ = term.recv() => break,
            _ = int.recv() => break,
        }
    }
    core.ask(core::Core::stop);
    let _ = thread.join();
    tracing::info!("stopped");
    Ok(())
}

fn predecessor(socket: &Path, take_over: bool) -> anyhow::Result<Option<Inheritance>> {
    if take_over {
        return Inheritance::ask(socket).with_context(|| format!("taking over from the agent at {}", socket.display()));
    }
    anyhow::ensure!(
        std::os::unix::net::UnixStream::connect(socket).is_err(),
        "an agent is running already (control socket {}); stop it, or replace it with --take-over",
        socket.display()
    );
    Ok(None)
}

fn virtual_routers(
    config: &AgentConfig,
    core: &CoreSender,
    boot: u64,
) -> anyhow::Result<Option<vrrp_io::Handle<Routers>>> {
    if config.vrrp.is_empty() {
        return Ok(None);
    }
    let keys = crate::config::keys(config)
        .map_err(|f| anyhow::anyhow!(f.into_iter().map(|f| f.message).collect::<Vec<_>>().join("; ")))?;
    let routers = Routers::new(&config.vrrp, keys, boot);
    let sink = {
        let core = core.clone();
        move |out| core.vrrp(out)
    };
    let options = vrrp_io::Options {
        realtime: true,
        record: config.record.is_some(),
    };
    core.ask(move |c| c.expect_vrrp(boot));
    let (handle, shortcomings) = vrrp_io::spawn(config, routers, options, sink)?;
    for s in &shortcomings.0 {
        tracing::warn!("{s}");
    }
    let sender = handle.sender();
    core.ask(move |c| c.attach_vrrp(sender));
    Ok(Some(handle))
}

fn sites(config: &AgentConfig, core: &CoreSender) -> anyhow::Result<Vec<JoinHandle<()>>> {
    let mut sites = Vec::new();
    if let Some(s) = &config.stats {
        let login = match &s.login {
            Some(l) => {
                let password = crate::config::password(&l.password_file).map_err(anyhow::Error::msg)?;
                Some(Credentials::new(&l.user, password))
            }
            None => None,
        };
        sites.push(stats::serve(
            s.listen,
            Site {
                core: core.clone(),
                page: true,
                login,
            },
        )?);
    }
    if let Some(m) = &config.metrics
        && config.stats.as_ref().is_none_or(|s| s.listen != m.listen)
    {
        sites.push(stats::serve(
            m.listen,
            Site {
                core: core.clone(),
                page: false,
                login: None,
            },
        )?);
    }
    Ok(sites)
}

async fn tick(beat: &mut Option<tokio::time::Interval>) {
    match beat {
        Some(b) => drop(b.tick().await),
        None => std::future::pending().await,
    }
}

fn seed(node: &str) -> u64 {
    let mut h = DefaultHasher::new();
    node.hash(&mut h);
    h.finish()
}
