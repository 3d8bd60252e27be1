//! What has to change in the kernel's table: wanted against found. Pure.

use std::net::SocketAddr;

use super::codec::{Destination, Service};

/// A service as wanted, with its destinations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) service: Service,
    pub(super) destinations: Vec<Destination>,
}

/// One change of the kernel's table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    AddService(Service),
    EditService(Service),
    DeleteService(Service),
    AddDestination(SocketAddr, Destination),
    EditDestination(SocketAddr, Destination),
    DeleteDestination(SocketAddr, Destination),
}

/// The changes that lead from `found` to `wanted`. Services that are neither wanted nor `ours` are not looked at: they
/// belong to kube-proxy or another program. Additions come before deletions, so that a service is never without
/// destinations on the way from one set to another.
pub(super) fn changes(
    wanted: &[Wanted],
    found: &[(Service, Vec<Destination>)],
    ours: impl Fn(SocketAddr) -> bool,
) -> Vec<Change> {
    let (mut first, mut last) = (Vec::new(), Vec::new());
    for want in wanted {
        let address = want.service.address;
        let Some((service, destinations)) = found.iter().find(|(service, _)| service.address == address) else {
            first.push(Change::AddService(want.service.clone()));
            first.extend(
                want.destinations
                    .iter()
                    .map(|one| Change::AddDestination(address, one.clone())),
            );
            continue;
        };
        if *service != want.service {
            first.push(Change::EditService(want.service.clone()));
        }
        for destination in &want.destinations {
            match destinations.iter().find(|one| one.address == destination.address) {
                None => first.push(Change::AddDestination(address, destination.clone())),
                Some(one) if one.is_like(destination) => {}
                Some(_) => first.push(Change::EditDestination(address, destination.clone())),
            }
        }
        let gone = destinations
            .iter()
            .filter(|one| want.destinations.iter().all(|other| other.address != one.address));
        last.extend(gone.map(|one| Change::DeleteDestination(address, one.clone())));
    }
    let orphans = found
        .iter()
        .map(|(service, _)| service)
        .filter(|service| ours(service.address) && wanted.iter().all(|want| want.service.address != service.address));
    last.extend(orphans.cloned().map(Change::DeleteService));
    first.extend(last);
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().expect("address")
    }

    fn service(text: &str) -> Service {
        Service {
            address: address(text),
            scheduler: "wrr".to_owned(),
            flags: 0,
        }
    }

    fn wanted() -> Wanted {
        let destinations = ["10.0.0.1:6443", "10.0.0.2:6443"].map(|text| Destination::new(address(text), 1));
        Wanted {
            service: service("10.9.9.9:443"),
            destinations: destinations.into(),
        }
    }

    #[test]
    fn nothing_to_do_when_all_is_there() {
        let want = wanted();
        let mut found = want.destinations.clone();
        found[0].active = 17;
        found.reverse();
        assert_eq!(
            changes(std::slice::from_ref(&want), &[(want.service.clone(), found)], |_| true),
            []
        );
    }

    #[test]
    fn a_flushed_table_is_built_again() {
        let want = wanted();
        let all = changes(std::slice::from_ref(&want), &[], |_| true);
        assert_eq!(all[0], Change::AddService(want.service));
        assert_eq!(all.len(), 3);
    }

    #[test]
    fn additions_come_before_deletions() {
        let want = wanted();
        let mut edited = want.destinations[0].clone();
        edited.weight = 0;
        let old = Destination::new(address("10.0.0.9:6443"), 1);
        let found = [(
            Service {
                flags: 1,
                ..want.service.clone()
            },
            vec![edited, old.clone()],
        )];
        let all = changes(std::slice::from_ref(&want), &found, |_| true);
        let at = want.service.address;
        let expected = [
            Change::EditService(want.service.clone()),
            Change::EditDestination(at, want.destinations[0].clone()),
            Change::AddDestination(at, want.destinations[1].clone()),
            Change::DeleteDestination(at, old),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn only_our_own_orphans_are_deleted() {
        let (ours, foreign) = (service("10.9.9.8:443"), service("10.96.0.1:443"));
        let found = [
            (ours.clone(), vec![]),
            (foreign, vec![Destination::new(address("10.0.0.1:6443"), 1)]),
        ];
        let all = changes(&[], &found, |one| one.ip() == ours.address.ip());
        assert_eq!(all, [Change::DeleteService(ours)]);
    }
}
