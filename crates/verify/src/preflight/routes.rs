//! The cluster's ranges must not hide what the machines reach already.

use super::{Input, List};

pub(super) fn check(input: &Input<'_>, list: &mut List) {
    for (machine, host) in input.hosts() {
        let ranges = input.spec.network.pods.iter().chain(&input.spec.network.services);
        let mut clashes = Vec::new();
        for range in ranges {
            for route in host.network.routes.iter().filter(|route| route.prefix > 0) {
                let ours = route.interface.as_deref().is_some_and(|interface| {
                    ["cni", "flannel", "kube-"]
                        .iter()
                        .any(|prefix| interface.starts_with(prefix))
                });
                // A backend that routes between machines sends Pods' shares to them.
                let to_a_machine = route.gateway.is_some_and(|gateway| {
                    input
                        .spec
                        .machines
                        .iter()
                        .any(|other| other.all_addresses().contains(&gateway))
                });
                let Ok(other) = ipnet::IpNet::new(route.destination, route.prefix) else {
                    continue;
                };
                let overlaps = range.contains(&other.network()) || other.contains(&range.network());
                if !ours && !to_a_machine && overlaps {
                    clashes.push(format!("{range} overlaps the route to {other}"));
                }
            }
        }
        let found = if clashes.is_empty() {
            "no overlap".to_owned()
        } else {
            clashes.join("; ")
        };
        list.require(
            "routes",
            &machine.name,
            clashes.is_empty(),
            found,
            "choose other network.pods or network.services",
        );
    }
}
