//! Taking a cluster off its machines: they end as they were before the first apply.

use std::collections::BTreeMap;

use quorate_facts::{Facts, HostFacts};
use quorate_spec::{Machine, Spec};
use serde_json::Value;

use crate::components::agent;
use crate::model::*;
use crate::stages::{HOSTNAME_SET, HOSTS};
use crate::{paths, queries};

/// Folders whose whole content is Quorate's or the cluster's, in the order of removal.
const OWNED: [&str; 15] = [
    paths::KUBERNETES,
    paths::ETCD,
    paths::CONTAINERD,
    paths::KUBELET,
    "/var/lib/containerd",
    "/var/lib/cni",
    "/run/flannel",
    "/run/containerd",
    // containerd's `opt` plugin makes it.
    "/opt/containerd",
    "/run/quorate",
    "/var/log/kubernetes",
    "/var/log/containers",
    "/var/log/pods",
    "/opt/quorate",
    paths::QUORATE,
];

/// Prefix of lines taken out of /etc/fstab.
pub const SWAP_MARK: &str = "#quorate ";

/// Everything Quorate put on the machines that were reached, and the data of the cluster.
pub fn reset(spec: &Spec, facts: &Facts) -> Plan {
    let mut stage = Stage {
        name: "reset".into(),
        title: "machines are as they were".into(),
        with_previous: false,
        steps: Vec::new(),
    };
    let mut notes = Vec::new();
    for machine in &spec.machines {
        let Some(host) = facts.host(&machine.name) else {
            if !machine.maintenance {
                notes.push(Note {
                    machine: Some(machine.name.clone()),
                    message: "not reached; nothing is removed there".into(),
                    hint: Some("reset again when it is back".into()),
                });
            }
            continue;
        };
        steps(spec, machine, host, &mut stage.steps);
    }
    let stages = if stage.steps.is_empty() {
        Vec::new()
    } else {
        vec![stage]
    };
    Plan {
        cluster: spec.name.clone(),
        kubernetes: spec.kubernetes.tag(),
        stages,
        notes,
    }
}

fn steps(spec: &Spec, of: &Machine, host: &HostFacts, out: &mut Vec<Step>) {
    let machine = of.name.as_str();
    let mut last: Vec<String> = Vec::new();
    let mut push = |what: &str, title: &str, why: Vec<String>, action: Action| {
        let id = format!("reset/{machine}/{what}");
        out.push(Step {
            id: id.clone(),
            machine: machine.into(),
            title: title.into(),
            why,
            action,
            needs: std::mem::replace(&mut last, vec![id]),
            done_when: Vec::new(),
            undo: Undo::Manual {
                hint: "what reset removed comes back with `quorate apply`; the cluster's data does not".into(),
            },
            attempts: 2,
            essential: false,
        });
    };
    let units: Vec<String> = paths::ALL_UNITS
        .iter()
        .filter(|unit| host.units.get(**unit).is_some_and(|found| found.exists()))
        .map(|unit| (*unit).to_owned())
        .collect();
    // Has no file, and is gone when it is stopped.
    let joining = host.units.get(agent::UNTIL_JOINED).filter(|unit| unit.exists());
    let joining = joining.map(|_| agent::UNTIL_JOINED.to_owned());
    if !units.is_empty() || joining.is_some() {
        let why: Vec<String> = units
            .iter()
            .chain(&joining)
            .map(|unit| format!("{unit} is Quorate's"))
            .collect();
        // An API server waits for its clients, etcd for its peers; here all of them go. The units are stopped in the next
        // step, within the second that systemd waits before a restart.
        let running = |unit: &&String| {
            host.units.get(*unit).is_some_and(|found| found.main_pid != 0) && *unit != "quorate-agent.service"
        };
        let doomed: Vec<String> = units.iter().filter(running).cloned().collect();
        if !doomed.is_empty() {
            let argv = ["systemctl", "kill", "--signal=KILL"]
                .map(str::to_owned)
                .into_iter()
                .chain(doomed)
                .collect();
            push(
                "kill",
                "end what runs",
                why.clone(),
                Action::Run {
                    argv,
                    stdin: None,
                    timeout_ms: 10_000,
                    exit_shows: Some("the next step stops the units, and systemd answers when they have ended".into()),
                },
            );
        }
        push(
            "units",
            "stop and disable its units",
            why,
            Action::Units {
                reload: false,
                enable: vec![],
                disable: units.clone(),
                stop: units.into_iter().chain(joining).collect(),
                start: vec![],
                restart: vec![],
                reload_units: vec![],
            },
        );
    }
    let before = before(host);
    let touched =
        host.files.get(paths::BIN).is_some_and(|file| file.exists()) || !host.blobs.is_empty() || before.is_some();
    if !touched {
        return;
    }
    push(
        "clean",
        "end Pods, unmount, remove interfaces and packet rules",
        vec!["Pods and their network outlive the programs that made them".into()],
        Action::Clean {
            data: vec![spec.etcd.data_dir.clone()],
            owned: OWNED.map(str::to_owned).to_vec(),
        },
    );
    let mut files: Vec<String> = paths::ALL_UNITS.iter().map(|unit| paths::unit(unit)).collect();
    files.extend(["/etc/sysctl.d/90-quorate.conf", "/etc/modules-load.d/quorate.conf"].map(str::to_owned));
    files.push(format!("{}/{}", paths::CNI_CONF, paths::CNI_FILE));
    files.extend(
        crate::stages::CNI_PLUGINS
            .iter()
            .map(|plugin| format!("{}/{plugin}", paths::CNI_BIN)),
    );
    files.push(crate::components::kubeadm::KUBELET_DROP_IN.to_owned());
    let present: Vec<String> = files
        .into_iter()
        .filter(|path| host.files.get(path).is_some_and(|file| file.exists()))
        .collect();
    if !present.is_empty() {
        let why = present.iter().map(|path| format!("{path} is Quorate's")).collect();
        push(
            "files",
            "remove files",
            why,
            Action::Remove {
                paths: present,
                recursive: false,
            },
        );
    }
    push(
        "reload",
        "let systemd forget the units",
        vec!["unit files are gone".into()],
        Action::Units {
            reload: true,
            enable: vec![],
            disable: vec![],
            stop: vec![],
            start: vec![],
            restart: vec![],
            reload_units: vec![],
        },
    );
    let hosts = host.files.get(HOSTS);
    if hosts
        .and_then(|file| file.text.as_deref())
        .is_some_and(|text| quorate_facts::block::content(text, "quorate").is_some())
    {
        push(
            "hosts",
            "remove the block in /etc/hosts",
            vec!["the block is Quorate's".into()],
            Action::Block {
                path: HOSTS.into(),
                marker: "quorate".into(),
                content: String::new(),
                before: Before::of(hosts),
            },
        );
    }
    let values: BTreeMap<String, String> = before
        .as_ref()
        .and_then(|before| before.get("sysctls"))
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        // What went with its module cannot be set.
        .filter(|(key, value)| match host.sysctls.get(key) {
            Some(found) => found.as_ref().is_some_and(|found| found != value),
            None => true,
        })
        .collect();
    if !values.is_empty() {
        let why = values.iter().map(|(key, value)| format!("{key} was {value}")).collect();
        push("sysctls", "set kernel parameters back", why, Action::Sysctls { values });
    }
    for settings in crate::stages::own_settings(spec, of, host) {
        for (what, title, why, action, _) in settings.removed().changes(host) {
            push(&what, &title, why, action);
        }
    }
    let fstab = host
        .files
        .get("/etc/fstab")
        .and_then(|file| file.text.as_deref())
        .unwrap_or_default();
    let swaps = strings(before.as_ref(), "swaps");
    let off = swaps
        .iter()
        .any(|path| !host.swaps.iter().any(|swap| swap.path == *path));
    let commented = fstab.lines().any(|line| line.starts_with(SWAP_MARK));
    if host.container.is_none() && (commented || off) {
        push(
            "swap",
            "turn swap on again",
            vec!["the first apply turned it off".into()],
            Action::SwapOn { paths: swaps },
        );
    }
    let name = before
        .as_ref()
        .and_then(|before| before.get("hostname"))
        .and_then(Value::as_str);
    if let Some(name) = name.filter(|name| spec.host.hostname && !name.is_empty() && *name != host.hostname) {
        push(
            "hostname",
            "set the hostname back",
            vec![format!("the hostname was {name}")],
            Action::Run {
                argv: vec!["hostnamectl".into(), "set-hostname".into(), name.into()],
                stdin: None,
                timeout_ms: 10_000,
                exit_shows: Some(HOSTNAME_SET.into()),
            },
        );
    }
    // Made by the first apply if `before.json` says it was not there.
    let made_user = before
        .as_ref()
        .and_then(|before| before.get("users"))
        .and_then(Value::as_array)
        .is_some_and(|users| users.iter().any(|user| user == "etcd"));
    if made_user && matches!(host.users.get("etcd"), Some(Some(_))) {
        push(
            "users",
            "remove the user etcd",
            vec!["the first apply created it".into()],
            Action::RemoveUsers {
                names: vec!["etcd".into()],
            },
        );
    }
    let mut directories = strings(before.as_ref(), "directories");
    directories.sort_by_key(|path| std::cmp::Reverse(path.len()));
    push(
        "store",
        "remove Quorate's own files",
        vec!["nothing of the cluster is left".into()],
        Action::Forget { directories },
    );
}

/// What the first apply found.
fn before(host: &HostFacts) -> Option<Value> {
    serde_json::from_str(host.files.get(queries::BEFORE)?.text.as_deref()?).ok()
}

fn strings(before: Option<&Value>, key: &str) -> Vec<String> {
    let list = before.and_then(|before| before.get(key)).and_then(Value::as_array);
    list.into_iter()
        .flatten()
        .filter_map(|text| text.as_str().map(str::to_owned))
        .collect()
}
