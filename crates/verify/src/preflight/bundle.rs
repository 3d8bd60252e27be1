//! The bundle is that of the versions the cluster file asks for: what is deployed comes from it.

use super::{Input, List};
use crate::fail;

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    let (spec, bundle) = (input.spec, &input.facts.bundle);
    if bundle.items.is_empty() {
        return;
    }
    let wanted = spec.kubernetes.tag();
    let mut others = Vec::new();
    if bundle.kubernetes != wanted {
        others.push(format!("Kubernetes {}, not {wanted}", bundle.kubernetes));
    }
    if let (Some(wanted), Some(etcd)) = (&spec.etcd.version, bundle.items.get("etcd")) {
        let found = etcd.version.trim_start_matches('v');
        if found != wanted.to_string() {
            others.push(format!("etcd {found}, not {wanted}"));
        }
    }
    let finding = if others.is_empty() {
        Ok(format!("of Kubernetes {wanted}"))
    } else {
        fail(
            format!("the bundle has {}", others.join("; ")),
            format!(
                "quorate bundle build --kubernetes {wanted}, name another bundle in `bundle.path`, or ask for the \
                 versions of this one"
            ),
        )
    };
    list.note("bundle", "cluster", finding);
}
