//! Recording every input of the decision core, and replaying a recording.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use quorate_lb::config::VrrpInstance;
use quorate_lb::vrrp::{Keyring, Routers, SecretKey};
use quorate_lb::{Action, AgentConfig, Balancer, Input};
use serde::{Deserialize, Serialize};

/// Whose input it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Vrrp,
    Balancer,
}

/// A line of a recording. Secrets are not in it, only their files' names: what depends on them was found out when it was
/// recorded ([`Input::Vrrp`]'s `authentic`).
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "line")]
pub enum Line {
    /// A process's first: what it was started with.
    Config {
        config: Box<AgentConfig>,
        seed: u64,
    },
    /// The virtual routers are started: after the rest, and anew when a process that should have taken over did not.
    Routers {
        vrrp: Vec<VrrpInstance>,
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

/// As it is written: a process that takes over appends to the same file while the one before still does.
#[derive(Serialize)]
struct Written<'a> {
    run: u64,
    #[serde(flatten)]
    line: &'a Line,
}

#[derive(Deserialize)]
struct Read {
    run: u64,
    #[serde(flatten)]
    line: Line,
}

/// Appends lines to a file.
#[derive(Debug)]
pub struct Recorder {
    file: File,
    run: u64,
    failed: bool,
}

impl Recorder {
    /// `run`: another one for each process.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn create(path: &Path, run: u64) -> io::Result<Self> {
        let open = File::options().append(true).create(true).open(path);
        let file = open.map_err(|e| io::Error::new(e.kind(), format!("record file {}: {e}", path.display())))?;
        Ok(Self {
            file,
            run,
            failed: false,
        })
    }

    /// A recording that cannot go on (disk full) never stops the agent.
    pub(crate) fn write(&mut self, line: &Line) {
        let written = Written { run: self.run, line };
        let Ok(mut text) = serde_json::to_vec(&written) else {
            return;
        };
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

/// What one process decided with.
struct Core {
    routers: Routers,
    balancer: Balancer,
}

/// Gives a recording to a fresh core; `each` gets every action in order. The actions are those of the process that recorded,
/// but for the signatures (HMAC) of what is sent, which are zeros.
///
/// # Errors
/// The file cannot be read, or a line is not one of a recording (with its number).
pub fn replay(path: &Path, mut each: impl FnMut(Replayed) -> io::Result<()>) -> anyhow::Result<usize> {
    let file = File::open(path).map_err(|e| anyhow::anyhow!("cannot read {}: {e}", path.display()))?;
    let mut runs: BTreeMap<u64, Core> = BTreeMap::new();
    let mut inputs = 0;
    for (n, line) in BufReader::new(file).lines().enumerate() {
        let at = |e: &dyn std::fmt::Display| anyhow::anyhow!("{}, line {}: {e}", path.display(), n + 1);
        let Read { run, line } = serde_json::from_str(&line?).map_err(|e| at(&e))?;
        let is_first = matches!(line, Line::Config { .. });
        anyhow::ensure!(
            is_first || runs.contains_key(&run),
            at(&"an input before any configuration")
        );
        let core = runs.entry(run).or_insert_with(|| Core {
            routers: Routers::new(&[], Keyring::new(), 0),
            balancer: Balancer::new(&AgentConfig::new(""), 0),
        });
        let now = match line {
            Line::Config { config, seed } => {
                core.balancer = Balancer::new(&config, seed);
                continue;
            }
            Line::Routers { vrrp, boot } => {
                core.routers = Routers::new(&vrrp, unknown_keys(&vrrp), boot);
                continue;
            }
            Line::Input { now, to, input } => {
                inputs += 1;
                match to {
                    Side::Vrrp => {
                        if let Input::Config { config } = &input {
                            core.routers.set_keys(unknown_keys(&config.vrrp));
                        }
                        core.routers.handle(now, &input);
                    }
                    Side::Balancer => core.balancer.handle(now, &input),
                }
                now
            }
            Line::Path { now, frontend, usable } => {
                core.routers.set_path(now, &frontend, usable);
                now
            }
        };
        while let Some(action) = core.routers.poll_action() {
            each(Replayed {
                now,
                by: Side::Vrrp,
                action,
            })?;
        }
        while let Some(action) = core.balancer.poll_action() {
            each(Replayed {
                now,
                by: Side::Balancer,
                action,
            })?;
        }
    }
    Ok(inputs)
}

/// The recording tells what the keys would.
fn unknown_keys(vrrp: &[VrrpInstance]) -> Keyring {
    let keys = |v: &VrrpInstance| v.auth.keys.iter().map(|key| SecretKey::unknown(key.id)).collect();
    vrrp.iter().map(|v| (v.name.clone(), keys(v))).collect()
}

#[cfg(test)]
mod tests {
    use quorate_lb::{Bytes, VrrpState};

    use super::*;

    const SECRET: &[u8] = b"a secret that nobody else knows";
    const OTHER: &[u8] = b"a key that is not ours at all...";
    const TAG: usize = 32;

    fn config(own: &str, peer: &str, priority: u8, keys: &[u8]) -> AgentConfig {
        let keys: Vec<String> = keys
            .iter()
            .map(|id| format!("{{id: {id}, file: /nowhere/{id}}}"))
            .collect();
        let text = format!(
            "{{apiVersion: quorate.dev/v1, kind: Agent, node: n, vrrp: [{{name: api, vrid: 51, interface: eth0, source: {own}, \
             vips: [10.0.0.100], peers: [{peer}], priority: {priority}, track: {{frontend: api}}, \
             auth: {{mode: enforce, keys: [{}]}}}}], frontends: [{{name: api, listen: ['0.0.0.0:8443'], backends: []}}]}}",
            keys.join(", ")
        );
        serde_saphyr::from_str(&text).unwrap()
    }

    fn ring(secrets: &[(u8, &[u8])]) -> Keyring {
        let keys = secrets.iter().map(|(id, secret)| SecretKey::new(*id, secret).unwrap());
        Keyring::from([("api".to_owned(), keys.collect())])
    }

    /// A machine's virtual router with its keys, recorded as the process does it.
    struct Machine {
        routers: Routers,
        recorder: Recorder,
        now: Duration,
        actions: Vec<Action>,
    }

    impl Machine {
        fn start(record: &Path, config: &AgentConfig, keys: Keyring, boot: u64) -> Self {
            let mut recorder = Recorder::create(record, boot).unwrap();
            let vrrp = config.vrrp.clone();
            let config = Box::new(config.clone());
            recorder.write(&Line::Config { config, seed: 1 });
            let routers = Routers::new(&vrrp, keys, boot);
            recorder.write(&Line::Routers { vrrp, boot });
            let mut machine = Self {
                routers,
                recorder,
                now: Duration::from_secs(100),
                actions: Vec::new(),
            };
            machine.give(Input::Start);
            machine.give(Input::Link {
                interface: "eth0".into(),
                up: true,
                mac: Some([2, 0, 0, 0, 0, 1]),
                missing: Vec::new(),
            });
            machine
        }

        fn give(&mut self, mut input: Input) {
            let found = self.routers.judge(&input);
            if let Input::Vrrp { authentic, .. } = &mut input {
                *authentic = found;
            }
            let (now, to) = (self.now, Side::Vrrp);
            self.recorder.write(&Line::Input {
                now,
                to,
                input: input.clone(),
            });
            // The process itself finds it out.
            if let Input::Vrrp { authentic, .. } = &mut input {
                *authentic = None;
            }
            self.routers.handle(now, &input);
            self.actions.extend(std::iter::from_fn(|| self.routers.poll_action()));
        }

        fn path(&mut self, usable: bool) {
            let (now, frontend) = (self.now, "api".to_owned());
            self.recorder.write(&Line::Path { now, frontend, usable });
            self.routers.set_path(now, "api", usable);
            self.actions.extend(std::iter::from_fn(|| self.routers.poll_action()));
        }

        fn run(&mut self, time: Duration) {
            let end = self.now + time;
            while let Some(at) = self.routers.poll_timeout().filter(|at| *at <= end) {
                self.now = at;
                self.give(Input::Tick);
            }
            self.now = end;
        }

        fn state(&self) -> VrrpState {
            self.routers.status()[0].state
        }
    }

    /// What a holder with these keys sends in its first moment.
    fn advertisements(keys: Keyring, ids: &[u8], boot: u64) -> Vec<Input> {
        let config = config("10.0.0.2", "10.0.0.1", 200, ids);
        let folder = tempfile::tempdir().unwrap();
        let mut peer = Machine::start(&folder.path().join("peer"), &config, keys, boot);
        peer.path(true);
        peer.run(Duration::from_secs(1));
        let sent = peer.actions.into_iter().filter_map(|action| match action {
            Action::SendVrrp { payload, .. } => Some(Input::Vrrp {
                interface: "eth0".into(),
                source: [10, 0, 0, 2].into(),
                destination: [10, 0, 0, 1].into(),
                ttl: 255,
                payload,
                authentic: None,
            }),
            _ => None,
        });
        sent.collect()
    }

    /// Without the signatures of what is sent.
    fn unsigned(actions: impl IntoIterator<Item = Action>) -> Vec<Action> {
        let unsigned = |mut action: Action| {
            if let Action::SendVrrp {
                payload: Bytes(payload),
                ..
            } = &mut action
            {
                let body = payload.len() - TAG;
                payload[body..].fill(0);
            }
            action
        };
        actions.into_iter().map(unsigned).collect()
    }

    fn replayed(record: &Path) -> Vec<Action> {
        let mut actions = Vec::new();
        replay(record, |one| {
            actions.push(one.action);
            Ok(())
        })
        .unwrap();
        actions
    }

    #[test]
    fn a_signed_story_is_replayed_without_its_keys() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("record");
        let ours = config("10.0.0.1", "10.0.0.2", 100, &[1]);
        let mut machine = Machine::start(&record, &ours, ring(&[(1, SECRET)]), 7);
        machine.path(true);
        machine.run(Duration::from_secs(1));
        assert_eq!(machine.state(), VrrpState::Master);
        // Signed by somebody else, and by the peer; once more, which is a replay of another kind.
        for input in advertisements(ring(&[(1, OTHER)]), &[1], 3).into_iter().take(2) {
            machine.give(input);
        }
        assert_eq!(machine.state(), VrrpState::Master);
        let theirs = advertisements(ring(&[(1, SECRET)]), &[1], 4);
        for input in [&theirs[0], &theirs[0], &theirs[1]] {
            machine.give(input.clone());
        }
        assert_eq!(machine.state(), VrrpState::Backup);
        machine.run(Duration::from_secs(1));
        assert_eq!(machine.state(), VrrpState::Master);
        // A key is added, and the peer signs with that one.
        let both = ring(&[(1, SECRET), (2, OTHER)]);
        machine.routers.set_keys(both);
        machine.give(Input::Config {
            config: Box::new(config("10.0.0.1", "10.0.0.2", 100, &[1, 2])),
        });
        machine.give(advertisements(ring(&[(2, OTHER)]), &[2], 5).remove(0));
        assert_eq!(machine.state(), VrrpState::Backup);
        machine.path(false);

        let text = std::fs::read_to_string(&record).unwrap();
        assert!(text.contains("\"authentic\":true") && text.contains("\"authentic\":false"));
        for secret in [SECRET, OTHER] {
            let hex = format!("{:?}", Bytes(secret.to_vec()));
            assert!(!text.contains(&hex) && !text.contains(std::str::from_utf8(secret).unwrap()));
        }
        let expected = unsigned(machine.actions);
        assert!(expected.len() > 50);
        assert_eq!(replayed(&record), expected);
    }

    #[test]
    fn two_processes_record_into_one_file() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("record");
        let ours = config("10.0.0.1", "10.0.0.2", 100, &[1]);
        let mut old = Machine::start(&record, &ours, ring(&[(1, SECRET)]), 7);
        old.path(true);
        old.run(Duration::from_secs(1));
        let before = old.actions.len();
        let mut new = Machine::start(&record, &ours, ring(&[(1, SECRET)]), 8);
        let started = new.actions.len();
        old.give(Input::Stop);
        old.run(Duration::from_secs(1));
        new.path(true);
        new.run(Duration::from_secs(1));
        let (first, last) = old.actions.split_at(before);
        let (begun, rest) = new.actions.split_at(started);
        let expected = [first, begun, last, rest].concat();
        assert_eq!(replayed(&record), unsigned(expected));
    }
}
