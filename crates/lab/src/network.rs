//! The lab's network: one namespace with the bridge, which is also where the operator stands, and one
//! namespace per machine, joined to it by a veth pair named after the machine. Nothing is added to the
//! computer's own namespace, so several labs may use the same addresses.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::description::{Cut, Description, Machine};
use crate::{Error, Result};

const BRIDGE: &str = "quorate0";
/// The port's name inside a machine.
const MACHINE_PORT: &str = "eth0";
/// In [`Cut`], the operator's end: the bridge itself.
pub const OPERATOR: &str = "operator";
const TABLE: &str = "bridge quorate_lab";

/// `ip netns` name of the lab's own namespace.
pub(crate) fn lab_namespace(lab: &str) -> String {
    format!("quorate-{lab}")
}

/// A dot, which no lab name holds, so that this is never another lab's own namespace.
pub(crate) fn machine_namespace(lab: &str, machine: &str) -> String {
    format!("quorate-{lab}.{machine}")
}

pub(crate) fn namespace_path(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Runs `work` on a thread of its own inside the lab's network and gives back its result. Sockets it
/// makes stay in that network; processes it starts do too.
pub(crate) fn inside<T: Send>(lab: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        scope
            .spawn(|| enter(lab).map(|()| work()))
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Moves the calling thread into the lab's network.
pub(crate) fn enter(lab: &str) -> Result<()> {
    crate::sys::enter_network(&namespace_path(&lab_namespace(lab))).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => Error::NotRoot,
        _ => Error::Enter {
            lab: lab.to_owned(),
            source,
        },
    })
}

/// Makes the lab's namespace and bridge unless they are there and whole. Says whether it did.
pub(crate) fn ensure_lab(lab: &Description) -> Result<bool> {
    let namespace = lab_namespace(&lab.name);
    if namespace_path(&namespace).exists() {
        // It is brought up last.
        let whole = command::run(ip(&namespace).args(["-o", "address", "show", "dev", BRIDGE, "up"]), "")
            .is_ok_and(|shown| shown.contains(&format!(" {}/", lab.operator())));
        if whole {
            return Ok(false);
        }
        delete_namespace(&namespace)?;
    }
    command::run(Command::new("ip").args(["netns", "add", &namespace]), "")?;
    // No learning delay (a port forwards as soon as it is up) and no snooping (VRRP's multicast floods).
    let mut batch = format!(
        "link set lo up\n\
         link add {BRIDGE} type bridge forward_delay 0 stp_state 0 mcast_snooping 0\n\
         address add {}/24 dev {BRIDGE}\n",
        lab.operator()
    );
    if let Some(address) = lab.operator6() {
        batch += &format!("address add {address}/64 dev {BRIDGE} nodad\n");
    }
    batch += &format!("link set {BRIDGE} up\n");
    command::run(ip(&namespace).args(["-batch", "-"]), &batch)?;
    apply_cuts(lab)?;
    Ok(true)
}

/// A fresh namespace for a machine, plugged into the bridge. What was left of an older one is removed first:
/// addresses, firewall rules and sockets do not outlive a power cut.
pub(crate) fn plug_in(lab: &Description, machine: &Machine) -> Result<()> {
    unplug(&lab.name, &machine.name)?;
    let (namespace, lab_namespace) = (machine_namespace(&lab.name, &machine.name), lab_namespace(&lab.name));
    command::run(Command::new("ip").args(["netns", "add", &namespace]), "")?;
    let port = &machine.name;
    // Fixed hardware addresses: a machine that comes back is the same to its neighbours' caches.
    let [a, b, c, d] = machine.address.octets();
    command::run(
        ip(&lab_namespace).args(["-batch", "-"]),
        &format!(
            "link add {port} type veth peer name {MACHINE_PORT} netns {namespace} address 02:71:{a:02x}:{b:02x}:{c:02x}:{d:02x}\n\
             link set {port} master {BRIDGE}\n\
             link set {port} up\n"
        ),
    )?;
    let mut batch = format!(
        "link set lo up\n\
         address add {}/24 dev {MACHINE_PORT}\n\
         link set {MACHINE_PORT} up\n\
         route add default via {}\n",
        machine.address,
        lab.operator()
    );
    if let (Some(address), Some(operator)) = (machine.address6, lab.operator6()) {
        batch += &format!(
            "address add {address}/64 dev {MACHINE_PORT} nodad\n\
             route add ::/0 via {operator}\n"
        );
    }
    command::run(ip(&namespace).args(["-batch", "-"]), &batch)?;
    Ok(())
}

/// Whether the machine's cable is in.
pub(crate) fn is_plugged_in(lab: &str, machine: &str) -> bool {
    namespace_path(&machine_namespace(lab, machine)).exists()
        && command::run(ip(&lab_namespace(lab)).args(["link", "show", "dev", machine]), "").is_ok()
}

/// Takes the bridge's port down at once: nothing the machine still sends arrives anywhere.
pub(crate) fn pull_cable(lab: &str, machine: &str) -> Result<()> {
    command::run(
        ip(&lab_namespace(lab)).args(["link", "set", "dev", machine, "down"]),
        "",
    )?;
    Ok(())
}

/// Removes the machine's namespace with its end of the cable. Nothing there is fine.
pub(crate) fn unplug(lab: &str, machine: &str) -> Result<()> {
    // The kernel takes namespaces down in its own time; the port's name must be free before that.
    if namespace_path(&lab_namespace(lab)).exists() {
        let _ = command::run(ip(&lab_namespace(lab)).args(["link", "delete", "dev", machine]), "");
    }
    delete_namespace(&machine_namespace(lab, machine))
}

/// Namespaces that belong to a lab: its own, and those of machines, also of ones its description no longer knows.
pub(crate) fn namespaces(lab: &str) -> Vec<String> {
    let prefix = machine_namespace(lab, "");
    std::fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(&prefix) || *name == lab_namespace(lab))
        .collect()
}

/// Makes the bridge drop exactly `lab.cuts`. The whole table is replaced in one transaction.
pub(crate) fn apply_cuts(lab: &Description) -> Result<()> {
    // The machines' own nft: no need for one on this computer.
    let (root, rules) = (&lab.root, cut_rules(&lab.cuts));
    inside(&lab.name, || {
        command::run(
            Command::new("chroot").arg(root).args(["/usr/sbin/nft", "-f", "-"]),
            &rules,
        )
    })??;
    Ok(())
}

/// Bridge family: sees every frame between ports, so IPv4, IPv6, ARP and the VIP are cut alike.
fn cut_rules(cuts: &[Cut]) -> String {
    let mut rules = format!("table {TABLE}\ndelete table {TABLE}\n");
    if cuts.is_empty() {
        return rules;
    }
    rules += &format!("table {TABLE} {{\n");
    for hook in ["forward", "input", "output"] {
        rules += &format!("  chain {hook} {{\n    type filter hook {hook} priority -300;\n");
        for Cut { from, to } in cuts {
            match (hook, from.as_str(), to.as_str()) {
                ("input", from, OPERATOR) if from != OPERATOR => {
                    rules += &format!("    iifname \"{from}\" drop\n");
                }
                ("output", OPERATOR, to) if to != OPERATOR => {
                    rules += &format!("    oifname \"{to}\" drop\n");
                }
                ("forward", from, to) if from != OPERATOR && to != OPERATOR => {
                    rules += &format!("    iifname \"{from}\" oifname \"{to}\" drop\n");
                }
                _ => {}
            }
        }
        rules += "  }\n";
    }
    rules += "}\n";
    rules
}

pub(crate) fn delete_namespace(name: &str) -> Result<()> {
    let path = namespace_path(name);
    if !path.exists() {
        return Ok(());
    }
    match command::run(Command::new("ip").args(["netns", "delete", name]), "") {
        // A file that nothing is mounted on: left by an `ip netns add` that was killed half-way.
        Err(_) if path.exists() => match std::fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(Error::file("removing the network namespace", path)(e))
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}

fn ip(namespace: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["-netns", namespace]);
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(from: &str, to: &str) -> Cut {
        Cut {
            from: from.into(),
            to: to.into(),
        }
    }

    #[test]
    fn no_cuts_leave_no_table() {
        assert_eq!(
            cut_rules(&[]),
            "table bridge quorate_lab\ndelete table bridge quorate_lab\n"
        );
    }

    #[test]
    fn each_cut_is_one_rule_in_its_chain() {
        let rules = cut_rules(&[cut("m1", "m2"), cut("m3", OPERATOR), cut(OPERATOR, "m4")]);
        let drops: Vec<_> = rules.lines().filter(|l| l.ends_with("drop")).map(str::trim).collect();
        assert_eq!(
            drops,
            [
                "iifname \"m1\" oifname \"m2\" drop",
                "iifname \"m3\" drop",
                "oifname \"m4\" drop"
            ]
        );
    }

    #[test]
    fn a_machines_namespace_is_no_labs_namespace() {
        assert_ne!(machine_namespace("a", "m1"), lab_namespace("a-m1"));
    }
}
