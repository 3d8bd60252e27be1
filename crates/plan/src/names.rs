//! Small things several components name alike.

use std::net::IpAddr;

use quorate_spec::{Machine, Spec};

/// An etcd member as the plan wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) address: IpAddr,
}

pub(crate) fn members(spec: &Spec) -> Vec<Member> {
    spec.etcd_members().into_iter().map(member_of).collect()
}

pub(crate) fn member_of(machine: &Machine) -> Member {
    Member {
        name: machine.name.clone(),
        address: machine.address,
    }
}

/// `10.0.0.1:2379`, `[fd00::1]:2379`.
pub fn host_port(address: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(address, port).to_string()
}

/// `Name=true,Other=false`.
pub(crate) fn feature_gates(gates: &std::collections::BTreeMap<String, bool>) -> String {
    gates
        .iter()
        .map(|(name, on)| format!("{name}={on}"))
        .collect::<Vec<_>>()
        .join(",")
}
