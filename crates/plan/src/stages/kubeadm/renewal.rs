//! Client certificates inside kubeadm's kubeconfigs: renewed by kubeadm before they end. Their Pods read them only when they
//! start (<https://kubernetes.io/docs/tasks/administer-cluster/kubeadm/kubeadm-certs/>).

use quorate_pki::inventory::{Ca, Place};
use quorate_pki::read;
use quorate_spec::Machine;

use super::run;
use crate::components::kubeadm;
use crate::model::*;
use crate::want::{Draft, Wanted};

pub(crate) struct Ending {
    /// As in the inventory; kubeadm's name is this and `.conf`.
    id: String,
    why: String,
    /// Of the certificate that ends.
    pub(crate) mark: String,
}

impl Ending {
    /// The static Pod that reads the kubeconfig.
    pub(crate) fn pod(&self) -> Option<&'static str> {
        match self.id.as_str() {
            "controller-manager" => Some("kube-controller-manager"),
            "scheduler" => Some("kube-scheduler"),
            _ => None,
        }
    }
}

pub(crate) fn ending(wanted: &Wanted<'_>) -> Vec<Ending> {
    let facts = wanted.context.facts;
    let authority = facts.operator.authorities.get(Ca::Cluster.name());
    let Some(ca) = authority.and_then(|ca| read::certificate(&ca.certificate).ok()) else {
        return Vec::new();
    };
    let rows = wanted.context.inventory.on(&wanted.machine.name);
    rows.filter_map(|row| {
        let Place::Kubeconfig { path } = &row.place else {
            return None;
        };
        let found = wanted
            .host
            .certificates
            .get(path)
            .filter(|found| found.error.is_none())?;
        let reason = read::expires(row.days, found.not_after, ca.not_after, facts.taken_unix)?;
        Some(Ending {
            id: row.id.clone(),
            why: format!("{path}: {reason}"),
            mark: found.fingerprint.chars().take(8).collect(),
        })
    })
    .collect()
}

/// One call of kubeadm for each, one after the other; what is returned is what comes after them needs.
pub(crate) fn renew(
    draft: &mut Draft<'_>,
    machine: &Machine,
    ending: &[Ending],
    mut needs: Vec<String>,
) -> Vec<String> {
    for ending in ending {
        let id = draft.id(&machine.name, &format!("renew-{}", ending.id));
        let conf = format!("{}.conf", ending.id);
        let mut step = run(
            id.clone(),
            &machine.name,
            format!("renew the client certificate in {conf}"),
            vec![ending.why.clone()],
            &["certs", "renew", &conf, "--config", kubeadm::CONFIG],
            "",
        );
        if let Action::Run { exit_shows, .. } = &mut step.action {
            *exit_shows = Some("kubeadm fails if the kubeconfig is not written; the next plan reads its dates".into());
        }
        step.undo = Undo::Nothing {
            because: "the new certificate is the old one with a later end".into(),
        };
        step.needs = std::mem::take(&mut needs);
        step.attempts = 2;
        draft.push(step);
        needs = vec![id];
    }
    needs
}
