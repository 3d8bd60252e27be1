//! The kubelet as kubeadm's packages ship it, and its configuration, which is kubeadm's to write at first and ours to keep.

use quorate_spec::Machine;
use serde_json::Value;

use super::state::{self, State};
use crate::components::{kubeadm, kubeconfig};
use crate::model::*;
use crate::want::{Wanted, sha256};
use crate::{paths, yaml};

const UNIT: &str = "kubelet.service";
/// A kubelet that got a new configuration.
const READY_TIMEOUT_MS: u64 = 60_000;

/// What lies on every node, whatever its state. `Member`: the kubelet also runs, with what is wanted now.
pub(crate) fn files(wanted: &mut Wanted<'_>, state: State) {
    let (context, machine, profile) = (wanted.context, wanted.machine, wanted.profile());
    let spec = context.spec;
    wanted.directory(kubeadm::FOLDER, "root", 0o700);
    wanted.directory(kubeadm::PATCHES, "root", 0o700);
    wanted.directory(&parent(kubeadm::KUBELET_DROP_IN), "root", 0o755);
    wanted.text(kubeadm::RESET, kubeadm::reset());
    wanted.text(kubeadm::DISCOVERY, kubeadm::discovery(spec));
    wanted.text(
        &kubeadm::patch("kubeletconfiguration"),
        kubeadm::kubelet_patch(spec, machine, profile),
    );
    let settings = kubeadm::kubelet(spec, machine, profile);
    let flags = flags(wanted);
    if state == State::Member {
        configuration(wanted, &settings);
        arguments(wanted, &flags);
        way(wanted);
    }
    let way = spec.endpoint_url_for(machine);
    let inputs = sha256(format!("{settings} {flags:?} {way} {}", program(wanted)).as_bytes());
    wanted.text(kubeadm::KUBELET_DROP_IN, kubeadm::kubelet_drop_in(&inputs[..16]));
    wanted.plain_unit(
        UNIT,
        &kubeadm::kubelet_unit(),
        &[
            kubeadm::KUBELET_DROP_IN,
            kubeadm::FLAGS,
            &format!("{}/config.yaml", paths::KUBELET),
            &state::kubelet_conf(),
        ],
        state == State::Member,
    );
    if state == State::Member {
        wanted.wait(Condition::UnitActive { unit: UNIT.into() }, READY_TIMEOUT_MS);
    }
}

/// `--name=value`, sorted.
fn flags(wanted: &Wanted<'_>) -> Vec<String> {
    kubeadm::kubelet_args(wanted.context.spec, wanted.machine)
        .iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

/// Where the link to the program leads; another program is a reason to start it anew.
fn program(wanted: &Wanted<'_>) -> String {
    wanted.program_target(&paths::bin("kubelet")).unwrap_or_default()
}

/// kubeadm wrote the whole configuration with every default; only what we want and what differs is changed in it.
fn configuration(wanted: &mut Wanted<'_>, settings: &Value) {
    let path = format!("{}/config.yaml", paths::KUBELET);
    let found = yaml::parse(text_of(wanted, &path));
    if crate::json::difference(settings, &found).is_some() {
        wanted.text(&path, yaml::render(&crate::json::overlay(found, settings)));
    }
}

/// kubeadm adds a flag or two of its own, which are kept.
fn arguments(wanted: &mut Wanted<'_>, flags: &[String]) {
    const KUBEADMS: [&str; 3] = [
        "--hostname-override=",
        "--register-with-taints=",
        "--container-runtime-endpoint=",
    ];
    let text = text_of(wanted, kubeadm::FLAGS);
    let found: Vec<&str> = text
        .trim()
        .trim_start_matches("KUBELET_KUBEADM_ARGS=")
        .trim_matches('"')
        .split_whitespace()
        .collect();
    let own = |flag: &&&str| KUBEADMS.iter().any(|name| flag.starts_with(name));
    let ours: Vec<&&str> = found.iter().filter(|flag| !own(flag)).collect();
    if ours.len() == flags.len() && flags.iter().all(|flag| found.contains(&flag.as_str())) {
        return;
    }
    let kept = found
        .iter()
        .filter(|flag| own(flag))
        .map(|flag| (*flag).to_owned())
        .collect::<Vec<_>>();
    let all: Vec<String> = kept.into_iter().chain(flags.iter().cloned()).collect();
    wanted.text(kubeadm::FLAGS, format!("KUBELET_KUBEADM_ARGS=\"{}\"\n", all.join(" ")));
}

/// The kubelet writes its kubeconfig when it joins; it is ours to change only when a worker's way to the API changes. A
/// control plane's leads to its own API server and never does.
fn way(wanted: &mut Wanted<'_>) {
    let machine: &Machine = wanted.machine;
    if machine.is_control_plane() {
        return;
    }
    let path = state::kubelet_conf();
    let server = wanted.context.spec.endpoint_url_for(machine);
    if text_of(wanted, &path).contains(&format!("server: {server}\n")) {
        return;
    }
    let text = kubeconfig::by_path(
        &wanted.context.spec.name,
        &server,
        &paths::pki("ca.crt"),
        "default-auth",
        paths::KUBELET_CLIENT,
        paths::KUBELET_CLIENT,
    );
    wanted.file(&path, "root", 0o600, Content::text(text));
}

fn text_of<'a>(wanted: &Wanted<'a>, path: &str) -> &'a str {
    wanted
        .host
        .files
        .get(path)
        .and_then(|file| file.text.as_deref())
        .unwrap_or_default()
}

fn parent(path: &str) -> String {
    path.rsplit_once('/')
        .map_or(String::new(), |(folder, _)| folder.to_owned())
}
