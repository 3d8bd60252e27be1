//! Recorded inputs, written as JSON lines and read back, give the same actions.

use std::time::Duration;

use quorate_lb::{
    Action, AdminState, Agent, AgentConfig, Bytes, Command, DialOutcome, Input, ProbeOutcome, ProbeStage,
};
use serde::{Deserialize, Serialize};

const CONFIG: &str = "
apiVersion: quorate.dev/v1
kind: Agent
node: m1
vrrp:
  - {name: api, vrid: 51, interface: eth0, source: 10.0.0.1, vips: [10.0.0.100], peers: [10.0.0.2],
     track: {frontend: api}}
frontends:
  - {name: api, listen: ['0.0.0.0:8443'], backends: [{name: m1, address: '10.0.0.1:6443'}, {name: m2, address: '10.0.0.2:6443'}]}
ipvs:
  - {name: node, virtual: '10.103.97.2:6443', backends: [{name: m1, address: '10.0.0.1:6443'}]}
";

#[derive(Serialize, Deserialize)]
struct Line {
    at: Duration,
    #[serde(flatten)]
    input: Input,
}

fn config() -> AgentConfig {
    serde_saphyr::from_str(CONFIG).unwrap()
}

fn play(lines: &[Line]) -> Vec<Action> {
    let mut agent = Agent::new(&config(), Default::default(), 1, 1);
    let mut actions = Vec::new();
    for line in lines {
        agent.handle(line.at, line.input.clone());
        actions.extend(std::iter::from_fn(|| agent.poll_action()));
        agent.poll_timeout();
    }
    actions
}

/// Lives through a start, a takeover, a dead backend, a lost path, orders and a stop.
fn record() -> (Vec<Line>, Vec<Action>) {
    let mut agent = Agent::new(&config(), Default::default(), 1, 1);
    let (mut lines, mut actions, mut now) = (Vec::new(), Vec::new(), Duration::ZERO);
    let mut script: Vec<(u64, Input)> = vec![
        (0, Input::Start),
        (
            0,
            Input::Link {
                interface: "eth0".into(),
                up: true,
                mac: Some([2, 0, 0, 0, 0, 1]),
                missing: vec!["10.0.0.9".parse().unwrap()],
            },
        ),
        (
            900,
            Input::Vrrp {
                interface: "eth0".into(),
                source: "10.0.0.2".parse().unwrap(),
                destination: "10.0.0.1".parse().unwrap(),
                ttl: 255,
                payload: Bytes(vec![0x31, 51, 1]),
                authentic: None,
            },
        ),
        (
            1000,
            Input::Dial {
                frontend: "api".into(),
                backend: "m2".into(),
                outcome: DialOutcome::Refused,
            },
        ),
        (
            1200,
            Input::Command {
                command: Command::SetAdmin {
                    frontend: "api".into(),
                    backend: "m2".into(),
                    state: AdminState::Drain,
                },
            },
        ),
        (
            1500,
            Input::Config {
                config: Box::new(config()),
            },
        ),
        (3000, Input::Stop),
    ];
    script.reverse();
    let mut answers: Vec<Input> = Vec::new();
    while now < Duration::from_secs(4) {
        let input = if let Some(answer) = answers.pop() {
            answer
        } else if script.last().is_some_and(|(at, _)| Duration::from_millis(*at) <= now) {
            script.pop().unwrap().1
        } else {
            let next = script
                .last()
                .map_or(Duration::from_secs(4), |(at, _)| Duration::from_millis(*at));
            now = agent.poll_timeout().unwrap_or(next).min(next).max(now);
            Input::Tick
        };
        lines.push(Line {
            at: now,
            input: input.clone(),
        });
        agent.handle(now, input);
        while let Some(action) = agent.poll_action() {
            if let Action::Probe {
                frontend, backend, id, ..
            } = &action
            {
                let outcome = match (backend.as_str(), now.as_millis() > 2000) {
                    (_, true) => ProbeOutcome::Refused,
                    ("m1", _) => ProbeOutcome::Ready,
                    _ => ProbeOutcome::Timeout { stage: ProbeStage::Tls },
                };
                answers.push(Input::Probed {
                    frontend: frontend.clone(),
                    backend: backend.clone(),
                    id: *id,
                    outcome,
                    late: Duration::ZERO,
                });
            }
            actions.push(action);
        }
        agent.poll_timeout();
    }
    (lines, actions)
}

#[test]
fn recorded_inputs_replay_to_the_same_actions() {
    let (lines, actions) = record();
    for expected in [
        |a: &Action| matches!(a, Action::AddVip { .. }),
        |a: &Action| matches!(a, Action::RemoveVip { .. }),
        |a: &Action| matches!(a, Action::Backends { .. }),
        |a: &Action| matches!(a, Action::Report { .. }),
        |a: &Action| matches!(a, Action::Stopped),
    ] {
        assert!(actions.iter().any(expected));
    }
    let text: String = lines.iter().map(|l| serde_json::to_string(l).unwrap() + "\n").collect();
    let read: Vec<Line> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(play(&read), actions);
    let written: Vec<String> = actions.iter().map(|a| serde_json::to_string(a).unwrap()).collect();
    let back: Vec<Action> = written.iter().map(|a| serde_json::from_str(a).unwrap()).collect();
    assert_eq!(back, actions);
}

/// The VIP follows the path: it comes when a backend is ready and goes when none is.
#[test]
fn the_vip_follows_the_path() {
    let (lines, actions) = record();
    assert!(!lines.is_empty());
    let position = |wanted: fn(&Action) -> bool| actions.iter().position(wanted).unwrap();
    let path = position(|a| {
        matches!(
            a,
            Action::Report {
                event: quorate_lb::Event::Path { usable: true, .. }
            }
        )
    });
    let add = position(|a| matches!(a, Action::AddVip { .. }));
    let lost = position(|a| {
        matches!(
            a,
            Action::Report {
                event: quorate_lb::Event::Path { usable: false, .. }
            }
        )
    });
    let remove = actions
        .iter()
        .rposition(|a| matches!(a, Action::RemoveVip { .. }))
        .unwrap();
    let stopped = position(|a| matches!(a, Action::Stopped));
    assert!(
        path < add && add < remove && remove < stopped,
        "{path} {add} {remove} {stopped}"
    );
    // VIPs are always first in what one input leads to.
    assert!(lost.abs_diff(remove) < 20, "{lost} {remove}");
}
