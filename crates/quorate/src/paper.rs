//! Planning on paper: what fits into the ranges, which ports must be open. Nothing here needs a machine.

use std::fmt::Write;

use quorate_plan::{firewall, sizing};
use quorate_spec::{Machine, Spec};
use serde_json::{Value, json};

pub(crate) fn capacity(spec: &Spec) -> String {
    let capacity = spec.capacity();
    let max_pods = u128::from(spec.kubernetes.kubelet.max_pods);
    let mut rows: Vec<[String; 3]> = Vec::new();
    for family in &capacity.families {
        let pods = if family.pod_addresses_per_node > max_pods {
            format!(
                "{max_pods} Pods each (maxPods; {} addresses)",
                family.pod_addresses_per_node
            )
        } else {
            format!("{} Pods each", family.pod_addresses_per_node)
        };
        rows.push([
            "pods".into(),
            family.pods.to_string(),
            format!(
                "{} nodes with a /{}, {pods}",
                family.nodes,
                spec.network.node_mask(family.pods)
            ),
        ]);
        rows.push([
            "services".into(),
            family.services.to_string(),
            format!("{} Services", count(family.service_addresses)),
        ]);
    }
    let ports = spec.network.node_ports;
    rows.push([
        "node ports".into(),
        format!("{}-{}", ports.first, ports.last),
        format!("{} ports", capacity.node_ports),
    ]);
    let room = capacity.nodes.saturating_sub(capacity.nodes_used);
    rows.push([
        "nodes".into(),
        format!("{} of {}", capacity.nodes_used, capacity.nodes),
        format!("room for {room} more"),
    ]);
    rows.push([
        "all pods".into(),
        (capacity.nodes_used * capacity.pods_per_node).to_string(),
        format!("on {} nodes, {} each", capacity.nodes_used, capacity.pods_per_node),
    ]);
    let mut text = table(&rows);
    text.push('\n');
    let mut sizes = vec![["machines", "roles", "at least", "advised"].map(str::to_owned)];
    for machine in &spec.machines {
        let sizing = sizing::of(spec, machine);
        sizes.push([
            machine.name.clone(),
            roles(machine),
            size(sizing.least),
            size(sizing.advised),
        ]);
    }
    text.push_str(&table(&sizes));
    text
}

pub(crate) fn capacity_json(spec: &Spec) -> Value {
    let sizing: Vec<Value> = spec
        .machines
        .iter()
        .map(|machine| json!({"machine": machine.name, "roles": machine.roles, "size": sizing::of(spec, machine)}))
        .collect();
    json!({"capacity": spec.capacity(), "sizing": sizing})
}

pub(crate) fn firewall(spec: &Spec) -> String {
    let mut rows = vec![["from", "to", "protocol", "ports", "what for"].map(str::to_owned)];
    for flow in firewall::matrix(spec) {
        let ports = match flow.ports {
            None => "-".to_owned(),
            Some((first, last)) if first == last => first.to_string(),
            Some((first, last)) => format!("{first}-{last}"),
        };
        rows.push([
            flow.from.as_str().into(),
            flow.to.as_str().into(),
            flow.protocol.as_str().into(),
            ports,
            flow.purpose.into(),
        ]);
    }
    table(&rows)
}

pub(crate) fn firewall_nftables(spec: &Spec) -> String {
    let tables: Vec<String> = spec
        .machines
        .iter()
        .map(|machine| firewall::nftables(spec, machine))
        .collect();
    tables.join("\n")
}

fn roles(machine: &Machine) -> String {
    let roles: Vec<&str> = machine.roles.iter().map(|role| role.as_str()).collect();
    roles.join(", ")
}

fn size(size: sizing::Size) -> String {
    format!(
        "{} CPU{}, {} MB, {} GB disk",
        size.cpus,
        if size.cpus == 1 { "" } else { "s" },
        size.memory_mb,
        size.disk_mb.div_ceil(1_000)
    )
}

/// The sizes of IPv6 ranges are best told as powers.
fn count(number: u128) -> String {
    if number < 1 << 32 {
        number.to_string()
    } else {
        format!("2^{}", number.next_power_of_two().trailing_zeros())
    }
}

/// Columns as wide as their widest cell; the last one is not filled up.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned_and_large_numbers_are_powers() {
        assert_eq!(super::count(u128::from(u64::MAX)), "2^64");
        assert_eq!(super::count(65_534), "65534");
        let rows = [["a", "bb", "c"], ["aaa", "b", "long"]].map(|row| row.map(str::to_owned));
        assert_eq!(super::table(&rows), "a    bb  c\naaa  b   long\n");
    }
}
