//! What most verbs begin with: the cluster file, the operator's folder, the machines.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use futures_util::future::join_all;
use quorate_facts::Facts;
use quorate_machine::MachineRef;
use quorate_machine::ssh::{Password, Program, SshMachine, SshTarget};
use quorate_pki::SecretText;
use quorate_pki::store::Import;
use quorate_plan::Plan;
use quorate_run::{Catalogue, Fleet, Operator, Session};
use quorate_spec::{Finding, Machine, Severity, Spec};
use quorate_verify::Report;

use crate::console::UserError;

#[derive(Debug, Args)]
pub(crate) struct ClusterArgs {
    /// Cluster file.
    #[arg(short, long, value_name = "FILE", default_value = "cluster.yaml")]
    pub(crate) file: PathBuf,
    /// Operator's folder: authorities, secrets, journals [default: .quorate/CLUSTER beside the cluster file].
    #[arg(long, value_name = "DIR")]
    pub(crate) folder: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Trust host keys that are not known yet; a changed key is refused all the same.
    #[arg(long)]
    pub(crate) accept_new_host_keys: bool,
    /// Ask for the password of sudo on the machines.
    #[arg(long)]
    pub(crate) ask_sudo_password: bool,
}

/// A checked cluster file.
pub(crate) struct Loaded {
    pub(crate) spec: Spec,
    pub(crate) folder: PathBuf,
    pub(crate) file: PathBuf,
}

/// Reads the cluster file; findings go to standard error, and an unusable file is the user's to mend.
pub(crate) fn load(args: &ClusterArgs) -> anyhow::Result<Loaded> {
    let name = args.file.display().to_string();
    let text = std::fs::read_to_string(&args.file).map_err(|error| {
        UserError::new(format!("read {name}: {error}")).hint("`quorate init` writes one; -f names another")
    })?;
    match quorate_spec::load(&text, &name) {
        Ok((spec, warnings)) => {
            show(&warnings, &text);
            let beside = args
                .file
                .parent()
                .filter(|path| !path.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            let folder = args
                .folder
                .clone()
                .unwrap_or_else(|| beside.join(".quorate").join(&spec.name));
            Ok(Loaded {
                spec,
                folder,
                file: args.file.clone(),
            })
        }
        Err(findings) => {
            show(&findings, &text);
            let errors = findings
                .iter()
                .filter(|finding| finding.severity == Severity::Error)
                .count();
            let things = if errors == 1 {
                "1 error".to_owned()
            } else {
                format!("{errors} errors")
            };
            Err(UserError::new(format!("{things} in {name}; nothing was changed")).into())
        }
    }
}

fn show(findings: &[Finding], text: &str) {
    if !findings.is_empty() {
        crate::err!(
            "{}",
            quorate_spec::render(findings, text, crate::console::colour()).trim_end()
        );
    }
}

/// What a verb is about to do with the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Nothing is changed anywhere, not even in the operator's folder.
    Look,
    /// The same, to say what would be changed.
    Plan,
    /// The cluster is made what its file says.
    Apply,
    /// Something else is changed: it is taken off its machines, or broken on purpose.
    Change,
}

/// The cluster file's machines, the operator's folder and the bundle (empty if there is none and none is needed), ready to
/// be worked with.
pub(crate) async fn session(loaded: &Loaded, args: &ConnectArgs, purpose: Purpose) -> anyhow::Result<Session> {
    let program = Program::current().context("read the running program")?;
    let catalogue = catalogue_for(loaded, purpose)?;
    let fleet = connect(loaded, args, &program).await?;
    let mut operator = Operator::look(&loaded.folder, passphrase(), program.sha256())?;
    if purpose == Purpose::Apply {
        // Before new authorities are made: they would lock everybody out of a cluster that lives.
        if let Some(machine) = operator.foreign(&fleet, &control_planes(loaded)).await {
            let error = quorate_run::Error::ForeignCluster {
                folder: loaded.folder.clone(),
                machine,
            };
            return Err(crate::console::hinted(error));
        }
    }
    if matches!(purpose, Purpose::Apply | Purpose::Change) {
        operator = Operator::open(&loaded.folder, passphrase(), program.sha256())?;
    }
    Ok(Session::new(loaded.spec.clone(), fleet, operator, catalogue))
}

/// Makes the operator's folder with the authorities that lie in another one.
pub(crate) fn import(loaded: &Loaded, from: &Path) -> anyhow::Result<()> {
    let program = program_for_a_new_folder(loaded)?;
    let import = Import::from_folder(from).map_err(|wrong| {
        UserError::new(format!("{}: {}", from.display(), wrong.join("; ")))
            .hint("give a folder with kubeadm's file names; nothing was changed")
    })?;
    Operator::import(&loaded.folder, passphrase(), program.sha256(), &import)?;
    Ok(())
}

/// Makes the operator's folder anew from what a control plane holds.
pub(crate) async fn recover(loaded: &Loaded, args: &ConnectArgs) -> anyhow::Result<()> {
    let program = program_for_a_new_folder(loaded)?;
    let fleet = connect(loaded, args, &program).await?;
    Operator::recover(
        &loaded.folder,
        passphrase(),
        program.sha256(),
        &fleet,
        &control_planes(loaded),
    )
    .await?;
    Ok(())
}

fn program_for_a_new_folder(loaded: &Loaded) -> anyhow::Result<Program> {
    let program = Program::current().context("read the running program")?;
    if Operator::look(&loaded.folder, passphrase(), program.sha256())?
        .folder()
        .is_some()
    {
        let message = format!("{} holds authorities already", loaded.folder.display());
        return Err(UserError::new(message)
            .hint("move it away first; nothing was changed")
            .into());
    }
    Ok(program)
}

fn control_planes(loaded: &Loaded) -> Vec<String> {
    loaded
        .spec
        .control_planes()
        .iter()
        .map(|machine| machine.name.clone())
        .collect()
}

/// What is found now, and what follows from it.
pub(crate) async fn plan(session: &Session) -> anyhow::Result<(Facts, Plan)> {
    let facts = session.gather().await?;
    let plan = quorate_plan::plan(&session.spec, &facts);
    let broken = quorate_plan::lint::lint(&plan);
    if !broken.is_empty() {
        let lines: Vec<String> = broken
            .iter()
            .map(|violation| format!("{}: {}: {}", violation.step, violation.rule, violation.message))
            .collect();
        anyhow::bail!(
            "the plan breaks its own rules, nothing was changed; please report this:\n  {}",
            lines.join("\n  ")
        );
    }
    Ok((facts, plan))
}

pub(crate) async fn verify(session: &Session) -> anyhow::Result<Report> {
    let kubeconfig = kubeconfig(session)?;
    let cluster = quorate_verify::Cluster {
        spec: &session.spec,
        fleet: &session.fleet,
        api: session.api().await?,
        kubeconfig,
        now_unix: now_unix(),
    };
    Ok(quorate_verify::verify(&cluster).await)
}

/// The administrator's kubeconfig; empty while there are no authorities.
fn kubeconfig(session: &Session) -> anyhow::Result<String> {
    Ok(match session.operator.admin_kubeconfig(&session.spec)? {
        Some(path) => std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?,
        None => String::new(),
    })
}

/// Only what is planned comes out of a bundle: looking at a cluster, breaking it and taking it away go on without.
fn catalogue_for(loaded: &Loaded, purpose: Purpose) -> anyhow::Result<Catalogue> {
    match (catalogue(loaded), purpose) {
        (Err(_), Purpose::Look | Purpose::Change) => Ok(Catalogue::default()),
        (found, _) => found,
    }
}

pub(crate) fn has_bundle(loaded: &Loaded) -> bool {
    catalogue(loaded).is_ok()
}

/// The bundle named by the cluster file, or the one made for its version in the user's cache.
fn catalogue(loaded: &Loaded) -> anyhow::Result<Catalogue> {
    let version = loaded.spec.kubernetes.tag();
    let path = match &loaded.spec.bundle {
        Some(path) => PathBuf::from(path),
        None => quorate_bundle::default_cache().join("bundles").join(&version),
    };
    let bundle = quorate_bundle::Bundle::open(&path).map_err(|error| {
        UserError::new(format!("bundle for {version}: {error}"))
            .hint(format!("quorate bundle build --kubernetes {version}"))
    })?;
    Ok(Catalogue::from(&bundle))
}

/// Opens a sealed operator's folder.
pub(crate) fn passphrase() -> Option<SecretText> {
    std::env::var("QUORATE_PASSPHRASE")
        .ok()
        .filter(|text| !text.is_empty())
        .map(SecretText::new)
}

/// A file only its owner may read, replaced whole.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let temporary = path.with_file_name(name);
    let _ = std::fs::remove_file(&temporary);
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| {
            file.write_all(content)?;
            file.sync_all()
        });
    written
        .and_then(|()| std::fs::rename(&temporary, path))
        .with_context(|| format!("write {}", path.display()))
}

fn now_unix() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs().cast_signed())
}

/// Connects to every machine that is not in maintenance, all at once; those that cannot be reached are named with the reason.
async fn connect(loaded: &Loaded, args: &ConnectArgs, program: &Program) -> anyhow::Result<Fleet> {
    let password = if args.ask_sudo_password {
        Some(Password(crate::console::password("sudo password: ")?))
    } else {
        None
    };
    let machines = loaded.spec.machines.iter().filter(|machine| !machine.maintenance);
    let attempts = join_all(machines.map(|machine| {
        let connection = Arc::new(SshMachine::new(
            target(loaded, machine, args, password.clone()),
            program.clone(),
        ));
        async move {
            let connected = connection.connect().await;
            (connection, connected)
        }
    }))
    .await;
    let mut reached: Vec<MachineRef> = Vec::new();
    let mut away: Vec<(MachineRef, String)> = Vec::new();
    // What many machines have in common is said once.
    let mut hints: Vec<String> = Vec::new();
    for (connection, connected) in attempts {
        match connected {
            Ok(()) => reached.push(connection),
            Err(error) => {
                crate::err!("{error}");
                hints.extend(error.hint.clone().filter(|hint| !hints.contains(hint)));
                away.push((connection, error.to_string()));
            }
        }
    }
    for hint in hints {
        crate::err!("hint: {hint}");
    }
    if reached.is_empty() {
        anyhow::bail!("none of the {} machines could be reached", away.len());
    }
    Ok(Fleet::new(reached, BTreeMap::new()).with_away(away))
}

fn target(loaded: &Loaded, machine: &Machine, args: &ConnectArgs, sudo_password: Option<Password>) -> SshTarget {
    // Relative paths in the cluster file are relative to it.
    let beside = |path: &String| loaded.file.parent().unwrap_or(Path::new("")).join(path);
    SshTarget {
        name: machine.name.clone(),
        host: machine.ssh_host.clone(),
        user: machine.ssh.user.clone(),
        port: machine.ssh.port,
        config_file: machine.ssh.config.as_ref().map(beside),
        identity_file: machine.ssh.identity.as_ref().map(beside),
        accept_new_host_keys: args.accept_new_host_keys,
        sudo_password,
        options: machine
            .ssh
            .jump
            .iter()
            .map(|jump| format!("ProxyJump={jump}"))
            .collect(),
        state_dir: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_planning_needs_a_bundle() {
        let text = "apiVersion: quorate.dev/v1\nkind: Cluster\nspec:\n  bundle: {path: /nowhere}\n  endpoint: {on: none}\n  access: proxy\n  machines:\n    - {name: m1, address: 10.0.0.1, roles: [control-plane]}\n";
        let (spec, _) = quorate_spec::load(text, "cluster.yaml")
            .unwrap_or_else(|findings| panic!("{}", quorate_spec::render(&findings, text, false)));
        let loaded = Loaded {
            spec,
            folder: "/nowhere".into(),
            file: "cluster.yaml".into(),
        };
        for purpose in [Purpose::Look, Purpose::Change] {
            assert!(catalogue_for(&loaded, purpose).is_ok_and(|found| found.blobs.is_empty()));
        }
        for purpose in [Purpose::Plan, Purpose::Apply] {
            let error = catalogue_for(&loaded, purpose).unwrap_err();
            assert!(error.is::<UserError>(), "{error}");
        }
        assert!(!has_bundle(&loaded));
    }
}
