//! Certificates of the control planes, before anything runs that needs them.
//!
//! kubeadm takes what it finds: from the same authorities it makes kubeconfigs and, on request, renews everything.

use crate::paths;
use crate::stages::{Planned, api_server_files, control_plane};
use crate::want::{Context, Draft};

pub(crate) fn plan(context: &Context<'_>) -> Planned {
    let mut draft = Draft::new(
        context,
        "certificates",
        "every control plane has the cluster's authorities and its own certificates",
    );
    for machine in context.reached(context.spec.control_planes()) {
        let Some(mut wanted) = draft.machine(machine) else {
            continue;
        };
        control_plane::certificates(&mut wanted);
        for id in ["etcd-server", "etcd-peer", "etcd-healthcheck-client"] {
            if context.runs_etcd(machine) {
                wanted.certificate(id);
            }
        }
        for (path, content) in api_server_files(context.spec) {
            wanted.file(&path, "root", 0o600, content);
        }
        if context.spec.security.audit.enabled {
            wanted.directory(paths::AUDIT_LOGS, "root", 0o700);
        }
        draft.add(wanted, &[]);
    }
    draft.stage.into()
}
