//! The machines: names, addresses, roles, labels, taints, logins.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{address, names};
use crate::document::{Document, Path, at};
use crate::file::{MachineFile, SshFile};
use crate::spec::*;

const CONTROL_PLANE: &str = "node-role.kubernetes.io/control-plane";

/// A machine as far as it could be read.
pub(super) struct Draft<'f> {
    /// Its place in the file's list.
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) address: Option<IpAddr>,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) roles: BTreeSet<Role>,
    file: &'f MachineFile,
}

impl Draft<'_> {
    pub(super) fn at(&self) -> Path {
        at!["spec", "machines", self.index]
    }

    pub(super) fn has(&self, role: Role) -> bool {
        self.roles.contains(&role)
    }

    pub(super) fn is_node(&self) -> bool {
        self.has(Role::ControlPlane) || self.has(Role::Worker)
    }

    pub(super) fn is_away(&self) -> bool {
        self.file.maintenance.unwrap_or(false)
    }

    pub(super) fn all_addresses(&self) -> Vec<IpAddr> {
        self.address.iter().chain(&self.addresses).copied().collect()
    }
}

/// Reads every machine and compares them with each other.
pub(super) fn drafts<'f>(document: &mut Document<'_>, files: &'f [MachineFile]) -> Vec<Draft<'f>> {
    let drafts: Vec<Draft<'f>> = files
        .iter()
        .enumerate()
        .map(|(i, file)| draft(document, i, file))
        .collect();
    unique(document, &drafts);
    families(document, &drafts);
    roles(document, &drafts);
    drafts
}

fn draft<'f>(document: &mut Document<'_>, index: usize, file: &'f MachineFile) -> Draft<'f> {
    let at = at!["spec", "machines", index];
    let name = match &file.name {
        Some(name) => {
            hostname(document, &at.join("name"), name);
            name.clone()
        }
        None => format!("m{}", index + 1),
    };
    let main = file
        .address
        .as_ref()
        .and_then(|a| address::host(document, &at.join("address"), a, "the machine's address"));
    let mut others = Vec::new();
    for (i, text) in file.addresses.iter().enumerate() {
        others.extend(address::host(
            document,
            &at.join("addresses").join(i),
            text,
            "the machine's address",
        ));
    }
    let mut roles = BTreeSet::new();
    for (i, role) in file.roles.iter().enumerate() {
        if !roles.insert(Role::from(*role)) {
            document
                .warn(
                    "duplicate-role",
                    &at.join("roles").join(i),
                    format!("machine `{name}` has a role twice"),
                )
                .fix("leave one of them out");
        }
    }
    Draft {
        index,
        name,
        address: main,
        addresses: others,
        roles,
        file,
    }
}

fn hostname(document: &mut Document<'_>, at: &Path, name: &str) {
    if let Some(why) = names::why_no_hostname(name) {
        document
            .error("bad-machine-name", at, format!("`{name}` cannot be a machine's name"))
            .reason(format!("it becomes the node's name: {why}"))
            .fix("write a name such as `m1` or `node-a.example.internal`");
    } else if matches!(
        name,
        "localhost" | "kubernetes" | "kubernetes.default" | "kubernetes.default.svc"
    ) {
        document
            .error(
                "reserved-name",
                at,
                format!("`{name}` is a name with a meaning of its own"),
            )
            .reason("it is in every API server's certificate already, for another purpose")
            .fix("choose another name");
    }
}

fn unique(document: &mut Document<'_>, drafts: &[Draft<'_>]) {
    let text = document.text;
    let mut names: BTreeMap<&str, &Draft<'_>> = BTreeMap::new();
    let mut owners: BTreeMap<IpAddr, (usize, Path)> = BTreeMap::new();
    for draft in drafts {
        let at = draft.at().join("name");
        if let Some(first) = names.insert(&draft.name, draft) {
            let span = document.span(&first.at().join("name"));
            let given = if draft.file.name.is_some() {
                ""
            } else {
                " (its default, by its place in the list)"
            };
            document
                .error(
                    "duplicate-name",
                    &at,
                    format!("two machines are called `{}`{given}", draft.name),
                )
                .reason("the name is the node's name, the etcd member's name and the certificate's subject")
                .fix("give each machine its own name")
                .also(text, span, "the other one");
        }
        let written = std::iter::once((draft.file.address.as_ref(), draft.at().join("address"))).chain(
            draft
                .file
                .addresses
                .iter()
                .enumerate()
                .map(|(i, a)| (Some(a), draft.at().join("addresses").join(i))),
        );
        for (address, at) in written {
            let Some(address) = address.and_then(|a| a.parse::<IpAddr>().ok()) else {
                continue;
            };
            if let Some((other, other_at)) = owners.get(&address) {
                let span = document.span(other_at);
                let message = if *other == draft.index {
                    format!("machine `{}` has the address {address} twice", draft.name)
                } else {
                    format!(
                        "machines `{}` and `{}` have the same address {address}",
                        drafts[*other].name, draft.name
                    )
                };
                document
                    .error("duplicate-address", &at, message)
                    .reason("each machine is known to the others by its address")
                    .fix("correct one of them; a machine with several tasks is listed once, with several roles")
                    .also(text, span, "first given here");
            } else {
                owners.insert(address, (draft.index, at));
            }
        }
    }
}

fn families(document: &mut Document<'_>, drafts: &[Draft<'_>]) {
    let text = document.text;
    let Some((first, address)) = drafts.iter().find_map(|d| d.address.map(|a| (d, a))) else {
        return;
    };
    for draft in drafts {
        if draft.address.is_some_and(|a| a.is_ipv4() != address.is_ipv4()) {
            let span = document.span(&first.at().join("address"));
            let (this, that) = (draft.address.map_or("", address::family), address::family(address));
            document
                .error(
                    "mixed-families",
                    &draft.at().join("address"),
                    format!(
                        "machine `{}` has an {this} address, `{}` an {that} one",
                        draft.name, first.name
                    ),
                )
                .reason("etcd's members and the nodes must all reach each other by `address`")
                .fix(format!(
                    "give the {that} address in `address` and the {this} one in `addresses`"
                ))
                .also(text, span, that);
        }
    }
}

fn roles(document: &mut Document<'_>, drafts: &[Draft<'_>]) {
    let at = at!["spec", "machines"];
    let control_planes: Vec<&Draft<'_>> = drafts.iter().filter(|d| d.has(Role::ControlPlane)).collect();
    // Roles that could not be read were reported already; what follows from their absence would only confuse.
    let unread = drafts.iter().any(|d| d.roles.is_empty());
    if control_planes.is_empty() && !drafts.is_empty() && !unread {
        document
            .error("no-control-plane", &at, "no machine has the role `control-plane`")
            .reason("nothing would run the API server")
            .fix("give three machines `roles: [control-plane]`, or one for a cluster that may fail");
    }
    if control_planes.len() == 1 && !unread {
        document
            .warn(
                "single-control-plane",
                &control_planes[0].at(),
                "there is 1 control plane: the cluster is not highly available",
            )
            .reason("when this machine is away, so is the API")
            .fix("use 3 control planes (1 may fail) or 5 (2 may fail)");
    }
    if !control_planes.is_empty() && control_planes.iter().all(|d| d.is_away()) {
        document
            .error(
                "all-control-planes-away",
                &at,
                "every control plane is under maintenance",
            )
            .reason("there is no API server left to work with")
            .fix("remove `maintenance: true` from those that are back");
    }
}

/// The finished machines; `None` if any of them has no address.
pub(super) fn finish(document: &mut Document<'_>, drafts: &[Draft<'_>], ssh: &Ssh) -> Option<Vec<Machine>> {
    let has_workers = drafts.iter().any(|d| d.has(Role::Worker));
    let machines: Vec<Option<Machine>> = drafts
        .iter()
        .map(|d| finish_one(document, d, ssh, has_workers))
        .collect();
    let nowhere = |m: &Option<Machine>| {
        m.as_ref()
            .is_some_and(|m| !m.is_node() || m.taints.iter().any(|t| t.effect != TaintEffect::PreferNoSchedule))
    };
    if drafts.iter().any(Draft::is_node) && machines.iter().all(nowhere) {
        document
            .warn(
                "nowhere-to-run",
                &at!["spec", "machines"],
                "every node has a taint that keeps Pods away",
            )
            .reason("Pods without a matching toleration will stay Pending")
            .fix("add a machine with role `worker`, or write `taints: []` on a control plane");
    }
    machines.into_iter().collect()
}

fn finish_one(document: &mut Document<'_>, draft: &Draft<'_>, ssh: &Ssh, has_workers: bool) -> Option<Machine> {
    let (file, at) = (draft.file, draft.at());
    let labels = labels(document, draft);
    let taints = taints(document, draft, has_workers);
    let host = ssh_host(document, draft);
    if let Some(user) = &file.ssh.user {
        argument(document, &at.join("ssh").join("user"), user, "the user");
    }
    if let Some(interface) = &file.interface {
        super::endpoint::interface(document, &at.join("interface"), interface);
    }
    let address = draft.address?;
    Some(Machine {
        name: draft.name.clone(),
        address,
        addresses: draft.addresses.clone(),
        roles: draft.roles.clone(),
        labels,
        taints,
        ssh: Ssh {
            user: file.ssh.user.clone().or_else(|| ssh.user.clone()),
            port: file.ssh.port.or(ssh.port),
            ..ssh.clone()
        },
        ssh_host: host.unwrap_or_else(|| address.to_string()),
        maintenance: draft.is_away(),
        interface: file.interface.clone(),
        weight: file.weight.unwrap_or(1),
    })
}

fn labels(document: &mut Document<'_>, draft: &Draft<'_>) -> BTreeMap<String, String> {
    let at = draft.at().join("labels");
    for (key, value) in &draft.file.labels {
        let here = at.join(key);
        if let Some(why) = names::why_no_key(key) {
            let span = document.key_span(&here);
            document
                .error_at("bad-label", &here, span, format!("`{key}` is no label key"))
                .reason(why)
                .fix("write e.g. `zone: a` or `example.com/rack: r1`");
        }
        if let Some(why) = names::why_no_value(value) {
            document
                .error("bad-label", &here, format!("`{value}` is no label value"))
                .reason(why)
                .fix("write e.g. `zone: a`");
        }
        let managed = [
            "kubernetes.io/hostname",
            "kubernetes.io/os",
            "kubernetes.io/arch",
            CONTROL_PLANE,
        ];
        if managed.contains(&key.as_str()) {
            document
                .error("managed-label", &here, format!("the label `{key}` is not yours to set"))
                .reason("it is written by kubelet or follows from the machine's role")
                .fix("leave it out");
        }
    }
    if !draft.is_node() {
        if !draft.file.labels.is_empty() || draft.file.taints.is_some() {
            let what = if draft.file.labels.is_empty() {
                "taints"
            } else {
                "labels"
            };
            document
                .warn(
                    "no-node",
                    &draft.at().join(what),
                    format!("machine `{}` runs no kubelet, so its {what} go nowhere", draft.name),
                )
                .reason("only control planes and workers are nodes")
                .fix(format!("leave the {what} out, or add the role `worker`"));
        }
        return BTreeMap::new();
    }
    let mut labels = draft.file.labels.clone();
    if draft.has(Role::ControlPlane) {
        // As kubeadm does (kubeadm: MarkControlPlane).
        labels.insert(CONTROL_PLANE.to_owned(), String::new());
        labels.insert(
            "node.kubernetes.io/exclude-from-external-load-balancers".to_owned(),
            String::new(),
        );
    }
    labels
}

fn taints(document: &mut Document<'_>, draft: &Draft<'_>, has_workers: bool) -> Vec<Taint> {
    if !draft.is_node() {
        return Vec::new();
    }
    let Some(texts) = &draft.file.taints else {
        let keep_away = draft.has(Role::ControlPlane) && !draft.has(Role::Worker) && has_workers;
        let default = Taint {
            key: CONTROL_PLANE.to_owned(),
            value: String::new(),
            effect: TaintEffect::NoSchedule,
        };
        return if keep_away { vec![default] } else { Vec::new() };
    };
    let mut taints: Vec<Taint> = Vec::new();
    for (i, text) in texts.iter().enumerate() {
        let at = draft.at().join("taints").join(i);
        match taint(text) {
            Err(why) => {
                document
                    .error("bad-taint", &at, format!("`{text}` is no taint"))
                    .reason(why)
                    .fix("write `key=value:NoSchedule` or `key:NoSchedule`; effects are NoSchedule, PreferNoSchedule, NoExecute");
            }
            Ok(taint) if taint.key.starts_with("node.kubernetes.io/") => {
                document
                    .error(
                        "managed-taint",
                        &at,
                        format!("the taint `{}` is not yours to set", taint.key),
                    )
                    .reason("Kubernetes puts it on and takes it off by the node's conditions")
                    .fix("use a key of your own");
            }
            Ok(taint) if taints.iter().any(|t| t.key == taint.key && t.effect == taint.effect) => {
                document
                    .error(
                        "duplicate-taint",
                        &at,
                        format!("`{}` with {:?} is given twice", taint.key, taint.effect),
                    )
                    .reason("a node has each key at most once with each effect")
                    .fix("keep one of them");
            }
            Ok(taint) => taints.push(taint),
        }
    }
    taints
}

fn taint(text: &str) -> Result<Taint, &'static str> {
    let (rest, effect) = text.rsplit_once(':').ok_or("there is no `:Effect` at its end")?;
    let effect = match effect {
        "NoSchedule" => TaintEffect::NoSchedule,
        "PreferNoSchedule" => TaintEffect::PreferNoSchedule,
        "NoExecute" => TaintEffect::NoExecute,
        _ => return Err("the part after the colon is no effect"),
    };
    let (key, value) = rest.split_once('=').unwrap_or((rest, ""));
    match names::why_no_key(key).or_else(|| names::why_no_value(value)) {
        Some(why) => Err(why),
        None => Ok(Taint {
            key: key.to_owned(),
            value: value.to_owned(),
            effect,
        }),
    }
}

fn ssh_host(document: &mut Document<'_>, draft: &Draft<'_>) -> Option<String> {
    let host = draft.file.ssh.address.clone()?;
    argument(document, &draft.at().join("ssh").join("address"), &host, "the host");
    Some(host)
}

/// `spec.ssh`.
pub(super) fn ssh(document: &mut Document<'_>, file: &SshFile) -> Ssh {
    let at = at!["spec", "ssh"];
    for (field, value, what) in [
        ("user", &file.user, "the user"),
        ("config", &file.config, "the path"),
        ("identity", &file.identity, "the path"),
        ("jump", &file.jump, "the jump host"),
    ] {
        if let Some(value) = value {
            argument(document, &at.join(field), value, what);
        }
    }
    Ssh {
        user: file.user.clone(),
        port: file.port,
        config: file.config.clone(),
        identity: file.identity.clone(),
        jump: file.jump.clone(),
    }
}

fn argument(document: &mut Document<'_>, at: &Path, value: &str, what: &str) {
    let spaced = what != "the path" && value.contains(char::is_whitespace);
    let why = names::why_no_argument(value).or(spaced.then_some("it has white space in it"));
    if let Some(why) = why {
        let code = if why.contains("secret") {
            "secret-in-file"
        } else {
            "bad-ssh-setting"
        };
        let shown = value.lines().next().filter(|_| code != "secret-in-file").unwrap_or("…");
        // A key is not shown again, neither here nor in the lines beside the finding.
        let span = if code == "secret-in-file" {
            document.key_span(at)
        } else {
            document.span(at)
        };
        document
            .error_at(code, at, span, format!("{what} `{shown}` cannot be given to ssh"))
            .reason(why)
            .fix("correct it, or leave it out and set it in ~/.ssh/config");
    }
}
