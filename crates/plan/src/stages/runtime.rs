//! Container runtime: containerd runs on every node and holds the images.

use crate::components::containerd;
use crate::model::*;
use crate::paths;
use crate::stages::{Planned, programs};
use crate::want::{Context, Draft};

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(context, "runtime", "containerd runs on every node and holds the images");
    for machine in context.reached(context.spec.nodes()) {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        let profile = wanted.profile();
        let pause = context
            .image("/pause")
            .map_or("registry.k8s.io/pause:3.10.2", |item| image_reference(&item.name));
        let config = format!("{}/config.toml", paths::CONTAINERD);
        wanted.directory(paths::CONTAINERD, "root", 0o755);
        wanted.text(&config, containerd::config(pause, profile));
        let shim = paths::bin("containerd");
        wanted.unit("containerd.service", &containerd::unit(profile), &[&config, &shim]);
        wanted.wait(
            Condition::UnitActive {
                unit: "containerd.service".into(),
            },
            30_000,
        );
        let last = draft.add(wanted, &[]);
        images(context, &mut draft, machine, last);
    }
    draft.stage.into()
}

fn images(context: &Context<'_>, draft: &mut Draft<'_>, machine: &quorate_spec::Machine, after: Option<String>) {
    let held = context.facts.cluster.images.get(&machine.name);
    let missing: Vec<BlobRef> = programs::image_names(context, machine)
        .into_iter()
        .filter_map(|name| context.image(name))
        .filter(|item| !held.is_some_and(|held| held.contains(&imported_name(item))))
        .map(|item| BlobRef {
            name: item.name.clone(),
            sha256: item.sha256.clone(),
            packed_size: item.packed_size,
        })
        .collect();
    if missing.is_empty() {
        return;
    }
    draft.push(Step {
        id: draft.id(&machine.name, "images"),
        machine: machine.name.clone(),
        title: format!("import {} images", missing.len()),
        why: missing
            .iter()
            .map(|image| format!("{} is not in the runtime", image_reference(&image.name)))
            .collect(),
        action: Action::Images { images: missing },
        needs: after.into_iter().collect(),
        done_when: Vec::new(),
        undo: Undo::Nothing {
            because: "images are content-addressed; reset removes them".into(),
        },
        attempts: 3,
        essential: machine.roles.iter().any(|role| *role != quorate_spec::Role::Worker),
    });
}

/// Bundle items of images are named by their reference.
pub(crate) fn image_reference(name: &str) -> &str {
    name.strip_prefix("image:").unwrap_or(name)
}

/// The further name an image gets when Quorate imports it, so that facts can tell which archive it came from.
pub fn imported_name(item: &quorate_facts::BundleItem) -> String {
    format!("quorate.dev/imported:{}", &item.sha256[..item.sha256.len().min(32)])
}
