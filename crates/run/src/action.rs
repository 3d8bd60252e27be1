//! What each kind of action does on its machine. Every one may be repeated: it states what should be.

use std::collections::BTreeMap;

use quorate_facts::SecretId;
use quorate_machine::proto::{Bytes, DirSpec, Exec, FileWrite, ManagedBlock, Owner, UnitOp, UserSpec};
use quorate_machine::{ErrorKind, MachineRef, Request};
use quorate_pki::inventory::{Ca, CertificateWanted};
use quorate_pki::issue::Issued;
use quorate_plan::{Action, ApiObject, Before, BlobRef, Content, FileChange, SWAP_MARK, Step, paths, secrets};

use crate::etcd;
use crate::execute::{Ask, Run};
use crate::failure::StepError;
use crate::kube;
use crate::operator::now;

/// systemd's own limit for stopping a unit is 90 s.
const UNITS_TIMEOUT_MS: u64 = 120_000;
/// Unpacking an image of 100 MB on a slow disk.
const IMPORT_TIMEOUT_MS: u64 = 180_000;
/// Ending Pods and emptying a runtime's folders.
const CLEAN_TIMEOUT_MS: u64 = 180_000;
const SERVING_TIMEOUT_MS: u64 = 20_000;

type Done = Result<(), StepError>;

pub(crate) async fn act(run: &Run, machine: &MachineRef, step: &Step, attempt: u32) -> Done {
    let id = run.id.as_str();
    match &step.action {
        Action::Users { users } => {
            for user in users {
                let spec = UserSpec {
                    name: user.name.clone(),
                    home: user.home.clone(),
                    shell: "/usr/sbin/nologin".into(),
                    system: true,
                    ..UserSpec::default()
                };
                machine.items(Request::User(spec)).await?;
            }
            Ok(())
        }
        Action::Directories { directories } => {
            let dirs = directories
                .iter()
                .map(|dir| DirSpec {
                    path: dir.path.clone(),
                    owner: owner(&dir.owner),
                    mode: dir.mode,
                })
                .collect();
            items(machine, Request::Mkdir { dirs }).await
        }
        Action::Files { files: changes } => files(run, machine, changes).await,
        Action::Remove { paths, recursive } => {
            items(
                machine,
                Request::Remove {
                    paths: paths.clone(),
                    recursive: *recursive,
                    run_id: id.into(),
                },
            )
            .await
        }
        Action::Block {
            path, marker, content, ..
        } => {
            let content = (!content.is_empty()).then(|| Bytes::from(content.as_str()));
            items(
                machine,
                Request::ManagedBlock(ManagedBlock {
                    path: path.clone(),
                    marker: marker.clone(),
                    content,
                    mode: 0o644,
                    run_id: id.into(),
                }),
            )
            .await
        }
        // Distributed together with those of the other machines; see `blobs`.
        Action::Blobs { .. } => Ok(()),
        Action::Links { links } => {
            for link in links {
                machine
                    .items(Request::Link {
                        path: link.path.clone(),
                        target: link.target.clone(),
                        run_id: id.into(),
                    })
                    .await?;
            }
            Ok(())
        }
        Action::Sysctls { values } => items(machine, Request::Sysctl { values: values.clone() }).await,
        Action::Modules { names } => items(machine, Request::Modules { names: names.clone() }).await,
        Action::SwapOff => swap_off(machine, id).await,
        Action::SwapOn { paths } => swap_on(machine, id, paths).await,
        Action::Images { images } => {
            for image in images {
                import(machine, image).await?;
            }
            Ok(())
        }
        Action::Units {
            reload,
            enable,
            disable,
            stop,
            start,
            restart,
        } => {
            if attempt > 1 {
                // After a failed attempt systemd may refuse to start it again for a while.
                let names: Vec<String> = start.iter().chain(restart).cloned().collect();
                let _ = machine.units(vec![UnitOp::ResetFailed(names)], UNITS_TIMEOUT_MS).await;
            }
            let ops = [
                // Before the reload, which makes systemd see what they changed.
                UnitOp::Enable(enable.clone()),
                UnitOp::Disable(disable.clone()),
                UnitOp::DaemonReload,
                UnitOp::Stop(stop.clone()),
                UnitOp::StartNoBlock(start.clone()),
                UnitOp::Restart(restart.clone()),
            ];
            let wanted = |op: &UnitOp| match op {
                UnitOp::DaemonReload => *reload,
                named => !named.parts().1.is_empty(),
            };
            let ops = ops.into_iter().filter(wanted).collect();
            Ok(machine.units(ops, UNITS_TIMEOUT_MS).await?)
        }
        Action::Run {
            argv,
            stdin,
            timeout_ms,
            ..
        } => {
            let mut issued = BTreeMap::new();
            let stdin = match stdin {
                Some(content) => render(run, content, &mut issued)?,
                None => Vec::new(),
            };
            machine
                .exec_ok(Exec::new(argv.clone()).stdin(stdin).timeout_ms(*timeout_ms))
                .await?;
            Ok(())
        }
        Action::EtcdAddLearner { peer_url, .. } => Ok(etcd::add_learner(machine, &run.spec, peer_url).await?),
        Action::EtcdPromote { name } => Ok(etcd::promote(machine, &run.spec, name).await?),
        Action::EtcdRemove { id, .. } => Ok(etcd::remove(machine, &run.spec, id).await?),
        Action::Apply { objects } => {
            for object in objects {
                apply(run, machine, object).await?;
            }
            Ok(())
        }
        Action::Delete { paths } => {
            for path in paths {
                delete(run, machine, &reveal(run, path)?).await?;
            }
            Ok(())
        }
        Action::ApproveServing { node, names, addresses } => approve(run, machine, node, names, addresses).await,
        Action::Await => Ok(()),
        Action::Clean { data, owned } => clean(run, machine, data, owned).await,
        Action::RemoveUsers { names } => {
            for name in names {
                machine.items(Request::UserRemove { name: name.clone() }).await?;
            }
            Ok(())
        }
        Action::Forget { directories } => forget(machine, directories).await,
    }
}

/// Adds what the units involved said last: the reason is nearly always there.
pub(crate) async fn explain(machine: &MachineRef, step: &Step, mut error: StepError) -> StepError {
    let Action::Units { start, restart, .. } = &step.action else {
        return error;
    };
    let names: Vec<String> = start.iter().chain(restart).cloned().collect();
    let Ok(states) = machine.unit_status(names.clone()).await else {
        return error;
    };
    for (name, unit) in states.iter().filter(|(_, unit)| !unit.is_active() || unit.restarts > 0) {
        error.message.push_str(&format!(
            "\n{name} is {} ({}), {} restarts",
            unit.active, unit.sub, unit.restarts
        ));
        let logs = Exec::new([
            "journalctl",
            "--unit",
            name,
            "--lines",
            "8",
            "--no-pager",
            "--output",
            "cat",
        ])
        .timeout_ms(5_000);
        if let Ok(output) = machine.exec(logs).await {
            error
                .message
                .extend(output.stdout.lossy().lines().map(|line| format!("\n  {line}")));
        }
    }
    if error.hint.is_none() && !names.is_empty() {
        error.hint = Some(format!("on {}: journalctl -u {}", machine.name(), names.join(" -u ")));
    }
    error
}

async fn items(machine: &MachineRef, request: Request) -> Done {
    machine.items(request).await?;
    Ok(())
}

async fn files(run: &Run, machine: &MachineRef, changes: &[FileChange]) -> Done {
    let mut issued = BTreeMap::new();
    let (mut writes, mut attributes) = (Vec::new(), Vec::new());
    for change in changes {
        let owner = owner(&change.owner);
        if matches!(change.before, Before::Attributes { .. }) {
            attributes.push(DirSpec {
                path: change.path.clone(),
                owner,
                mode: change.mode,
            });
            continue;
        }
        let content = render(run, &change.content, &mut issued)?;
        writes.push(FileWrite {
            owner,
            ..FileWrite::new(&change.path, content, change.mode)
        });
    }
    if !writes.is_empty() {
        machine.write(writes, run.id.as_str()).await?;
    }
    if !attributes.is_empty() {
        machine.items(Request::SetMode { entries: attributes }).await?;
    }
    Ok(())
}

/// The bytes of a content. Both halves of a pair come from one certificate in `issued`.
fn render(run: &Run, content: &Content, issued: &mut BTreeMap<String, Issued>) -> Result<Vec<u8>, StepError> {
    let pki = || {
        run.operator
            .pki()
            .ok_or_else(|| StepError::lasting("the operator holds no authorities"))
    };
    Ok(match content {
        Content::Text { text } => text.clone().into_bytes(),
        Content::Template { template, secrets: ids } => template_of(run, template, ids)?,
        Content::Certificate { wanted } => pair(run, wanted, issued)?.certificate_pem.clone().into_bytes(),
        Content::Key { wanted } => pair(run, wanted, issued)?.key_pem.expose().as_bytes().to_vec(),
        Content::Authority { name } => match Ca::ALL.into_iter().find(|ca| ca.name() == name) {
            Some(ca) => pki()?.authority(ca).certificate_pem().as_bytes().to_vec(),
            None => return Err(StepError::lasting(format!("there is no authority {name}"))),
        },
    })
}

fn pair<'a>(
    run: &Run,
    wanted: &CertificateWanted,
    issued: &'a mut BTreeMap<String, Issued>,
) -> Result<&'a Issued, StepError> {
    let pki = run
        .operator
        .pki()
        .ok_or_else(|| StepError::lasting("the operator holds no authorities"))?;
    match issued.entry(wanted.id.clone()) {
        std::collections::btree_map::Entry::Occupied(found) => Ok(found.into_mut()),
        std::collections::btree_map::Entry::Vacant(place) => {
            let made = pki
                .authority(wanted.ca)
                .issue(wanted, now())
                .map_err(|error| StepError::lasting(error.to_string()))?;
            Ok(place.insert(made))
        }
    }
}

fn template_of(run: &Run, template: &str, ids: &[SecretId]) -> Result<Vec<u8>, StepError> {
    secrets::render(template, ids, &run.operator.facts().secrets)
        .ok_or_else(|| StepError::lasting(format!("the operator holds none of {ids:?}")))
}

/// Puts the public id of the bootstrap token into a path.
fn reveal(run: &Run, path: &str) -> Result<String, StepError> {
    let path = template_of(run, path, &[SecretId::BootstrapTokenId])?;
    Ok(String::from_utf8_lossy(&path).into_owned())
}

async fn apply(run: &Run, machine: &MachineRef, object: &ApiObject) -> Done {
    let path = reveal(run, &object.path)?;
    let body = template_of(run, &object.body.to_string(), &object.secrets)?;
    let node = path.strip_prefix("/api/v1/nodes/");
    if node.is_some_and(|node| run.is_lost(node)) {
        return Ok(());
    }
    // Server-side apply would make a node that no kubelet stands behind.
    if node.is_some() && run.api(machine.name(), Ask::Get { path: &path }).await?.is_none() {
        return Err(StepError::passing(format!("{path}: the node has not joined")));
    }
    run.api(
        machine.name(),
        Ask::Apply {
            path: &path,
            body: &body,
        },
    )
    .await?;
    Ok(())
}

async fn delete(run: &Run, machine: &MachineRef, path: &str) -> Done {
    run.api(machine.name(), Ask::Delete { path }).await?;
    // Accepted is not yet gone: a finalizer may hold it.
    match run.api(machine.name(), Ask::Get { path }).await? {
        None => Ok(()),
        Some(_) => Err(StepError::passing(format!("{path}: deleted, and still there"))),
    }
}

async fn approve(run: &Run, machine: &MachineRef, node: &str, names: &[String], addresses: &[String]) -> Done {
    let host = kube::host(node, names, addresses);
    run.api(machine.name(), Ask::ApproveServing { node: &host }).await?;
    if let Some(kubelet) = run.fleet.get(node) {
        let wait = Request::WaitFile {
            path: paths::KUBELET_SERVING.into(),
            absent: false,
            timeout_ms: SERVING_TIMEOUT_MS,
        };
        kubelet.wait(wait).await?;
    }
    Ok(())
}

/// containerd's word for an image that kubelet's garbage collection leaves alone (internal/cri/labels).
const PINNED: &str = "io.cri-containerd.pinned=pinned";

async fn import(machine: &MachineRef, image: &BlobRef) -> Done {
    let ctr = |words: &[&str]| {
        let program = paths::bin("ctr");
        let argv = [program.as_str(), "--namespace", "k8s.io", "images"]
            .into_iter()
            .chain(words.iter().copied())
            .map(str::to_owned)
            .collect::<Vec<_>>();
        Exec::new(argv).timeout_ms(IMPORT_TIMEOUT_MS)
    };
    let reference = image.name.strip_prefix("image:").unwrap_or(&image.name);
    // A kubelet that is short of disk deletes what no container uses, and there may be no registry to bring it back from.
    // What a machine never runs is not unpacked: containerd does so before an image's first container
    // (internal/cri/opts/container.go, `WithNewSnapshot`).
    let blob = paths::blob(&image.sha256);
    machine
        .exec_ok(ctr(&["import", "--no-unpack", "--label", PINNED, &blob]))
        .await?;
    // Last: it says that the import is whole.
    let mark = format!("quorate.dev/imported:{}", &image.sha256[..image.sha256.len().min(32)]);
    machine.exec_ok(ctr(&["tag", "--force", reference, &mark])).await?;
    Ok(())
}

async fn swap_off(machine: &MachineRef, run: &str) -> Done {
    edit_fstab(machine, run, without_swap).await?;
    items(machine, Request::Swap { on: false }).await
}

async fn swap_on(machine: &MachineRef, run: &str, paths: &[String]) -> Done {
    edit_fstab(machine, run, with_swap).await?;
    items(machine, Request::Swap { on: true }).await?;
    for path in paths {
        // One that is on already, or is gone (zram), says so by its exit status; neither is ours to mend.
        machine.exec(Exec::new(["swapon", "--", path])).await?;
    }
    Ok(())
}

async fn edit_fstab(machine: &MachineRef, run: &str, edit: fn(&str) -> String) -> Done {
    const FSTAB: &str = "/etc/fstab";
    let text = match machine.read(FSTAB, 1 << 20).await {
        Ok(text) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) if error.kind == ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error.into()),
    };
    let edited = edit(&text);
    if edited != text {
        machine.write(vec![FileWrite::new(FSTAB, edited, 0o644)], run).await?;
    }
    Ok(())
}

fn with_swap(fstab: &str) -> String {
    fstab
        .split_inclusive('\n')
        .map(|line| line.strip_prefix(SWAP_MARK).unwrap_or(line))
        .collect()
}

/// Lines of file system type `swap` become comments.
fn without_swap(fstab: &str) -> String {
    let is_swap = |line: &str| !line.trim_start().starts_with('#') && line.split_whitespace().nth(2) == Some("swap");
    fstab
        .split_inclusive('\n')
        .map(|line| {
            if is_swap(line) {
                format!("{SWAP_MARK}{line}")
            } else {
                line.to_owned()
            }
        })
        .collect()
}

async fn clean(run: &Run, machine: &MachineRef, data: &[String], owned: &[String]) -> Done {
    let link = paths::bin("quorate");
    let placed = format!("{}/{}/quorate", paths::PROGRAMS, run.operator.facts().program_sha256);
    let there = machine
        .stat(vec![link.clone()])
        .await?
        .iter()
        .any(quorate_facts::FileFacts::exists);
    let mut argv = vec![if there { link } else { placed }, "clean".to_owned()];
    argv.extend(data.iter().flat_map(|path| ["--data".to_owned(), path.clone()]));
    argv.extend(owned.iter().cloned());
    machine.exec_ok(Exec::new(argv).timeout_ms(CLEAN_TIMEOUT_MS)).await?;
    Ok(())
}

/// The store goes last: until then a broken reset can be run again. The program that answers us may be removed under
/// itself; Linux keeps it until it ends.
async fn forget(machine: &MachineRef, directories: &[String]) -> Done {
    const STORE: &str = "/var/lib/quorate";
    for directory in directories {
        // Fails where somebody else has put something; then it stays.
        machine.exec(Exec::new(["rmdir", directory])).await?;
    }
    // The run's lock lies in it, so this is the last thing that may be done. It goes first of all: what a renewal in that
    // very moment leaves behind goes with the rest. The exit code says no more than that the store itself stays, which is
    // right where it is a mount point.
    let lock = format!("{STORE}/lock");
    machine
        .exec(Exec::new(["rm", "-rf", "--one-file-system", &lock, STORE]).timeout_ms(CLEAN_TIMEOUT_MS))
        .await?;
    let left = machine.list(STORE).await?;
    if left.is_empty() {
        return Ok(());
    }
    Err(StepError::passing(format!("{STORE} still holds {}", left.join(", "))))
}

fn owner(name: &str) -> Owner {
    Owner::new(name, name)
}
