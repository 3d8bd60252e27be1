//! Recording every input of the decision core, and replaying a recording.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use quorate_lb::vrrp::Routers;
use quorate_lb::{Action, AgentConfig, Balancer, Input};
use serde::{Deserialize, Serialize};

/// Whose input it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Vrrp,
    Balancer,
}

/// A line of a recording.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "line")]
pub enum Line {
    /// The first: what the agent was started with. Secrets are not in it, only their files' names.
    Config {
        config: Box<AgentConfig>,
        seed: u64,
        boot: u64,
    },
    Input {
        now: Duration,
        to: Side,
        input: Input,
    },
    /// The virtual routers were told whether a frontend has a path.
    Path {
        now: Duration,
        frontend: String,
        usable: bool,
    },
}

/// Appends lines to a file.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    failed: bool,
}

impl Recorder {
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn create(path: &Path) -> io::Result<Self> {
        let open = File::options().append(true).create(true).open(path);
        let file = open.map_err(|e| io::Error::new(e.kind(), format!("record file {}: {e}", path.display())))?;
        Ok(Self { file, failed: false })
    }

    /// A recording that cannot go on (disk full) never stops the agent.
    pub(crate) fn write(&mut self, line: &Line) {
        let Ok(mut text) = serde_json::to_vec(line) else { return };
        text.push(b'\n');
        if let Err(e) = self.file.write_all(&text)
            && !self.failed
        {
            self.failed = true;
            tracing::error!(error = %e, "the recording has gaps");
        }
    }
}

/// An action of a replay and when it was taken.
#[derive(Debug, Serialize)]
pub struct Replayed {
    pub now: Duration,
    pub by: Side,
    pub action: Action,
}

/// Gives a recording to a fresh core; `each` gets every action in order.
///
/// # Errors
/// The file cannot be read, or a line is not one of a recording (with its number).
pub fn replay(path: &Path, mut each: impl FnMut(Replayed) -> io::Result<()>) -> anyhow::Result<usize> {
    let file = File::open(path).map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
    let mut core: Option<(Routers, Balancer)> = None;
    let mut inputs = 0;
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let at = |e: &dyn std::fmt::Display| anyhow::anyhow!("{}, line {}: {e}", path.display(), n + 1);
        let line: Line = serde_json::from_str(&line?).map_err(|e| at(&e))?;
        let now = match line {
            Line::Config { config, seed, boot } => {
                // A restart of the agent appends to the same file. Without the secrets, signed advertisements
                // are judged unsigned; everything else is as it was.
                let keys = crate::config::keys(&config).unwrap_or_default();
                core = Some((Routers::new(&config.vrrp, keys, boot), Balancer::new(&config, seed)));
                continue;
            }
            Line::Input { now, to, input } => {
                let (routers, balancer) = core.as_mut().ok_or_else(|| at(&"an input before any configuration"))?;
                inputs += 1;
                match to {
                    Side::Vrrp => {
                        routers.poll_timeout();
                        routers.handle(now, &input);
                    }
                    Side::Balancer => {
                        balancer.poll_timeout();
                        balancer.handle(now, &input);
                    }
                }
                now
            }
            Line::Path { now, frontend, usable } => {
                let (routers, _) = core.as_mut().ok_or_else(|| at(&"an input before any configuration"))?;
                routers.set_path(now, &frontend, usable);
                now
            }
        };
        let Some((routers, balancer)) = core.as_mut() else {
            continue;
        };
        while let Some(action) = routers.poll_action() {
            each(Replayed {
                now,
                by: Side::Vrrp,
                action,
            })?;
        }
        while let Some(action) = balancer.poll_action() {
            each(Replayed {
                now,
                by: Side::Balancer,
                action,
            })?;
        }
    }
    Ok(inputs)
}
