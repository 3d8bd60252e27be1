//! What changes by itself between two applies: files, units, memberships, objects. As much of it as a fake cluster can
//! express, and never so much that etcd loses its quorum to it.

use quorate_machine::FakeMachine;
use quorate_machine::fake::FakeKind;
use quorate_plan::paths;
use serde_json::{Value, json};

use super::{CSRS, Sim, World, active, defaults};

/// xorshift64*
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % end
    }

    fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        let index = self.below(all.len().max(1) as u64);
        all.get(usize::try_from(index).unwrap())
    }
}

const ETCD: &str = "etcd.service";
const FOLDERS: [&str; 9] = [
    paths::BIN,
    paths::CNI_BIN,
    paths::CNI_CONF,
    paths::KUBERNETES,
    paths::PKI,
    paths::ETCD,
    paths::CONTAINERD,
    paths::QUORATE,
    paths::UNITS,
];
/// Written by kubelets, who know best what is in them.
const KUBELETS: [&str; 3] = [super::CLIENT_CONF, paths::KUBELET_CLIENT, paths::KUBELET_SERVING];

impl Sim {
    /// Something changes. What it was; `None` if there is nothing of the kind to change.
    pub fn drift(&self, dice: &mut Dice) -> Option<String> {
        let names: Vec<&String> = self.machines.keys().collect();
        let name = dice.pick(&names)?.as_str();
        let machine = &*self.machines[name];
        let what = match dice.below(15) {
            0 => edited(machine, dice)?,
            1 => deleted(machine, dice)?,
            2 => given_away(machine, dice)?,
            3 => self.stopped(name, dice)?,
            4 => disabled(machine, dice)?,
            5 => self.no_member(name)?,
            6 => self.without_data(name)?,
            7 => self.restarted(name)?,
            8 => changed_parameter(machine, dice)?,
            9 => deleted_object(&self.world, dice)?,
            10 => changed_object(&self.world, dice)?,
            11 => changed_node(&self.world, name, dice)?,
            12 => no_image(&self.world, name, dice)?,
            13 => no_blob(machine, dice)?,
            _ => no_folder(machine, dice)?,
        };
        Some(format!("{name}: {what}"))
    }

    fn stopped(&self, name: &str, dice: &mut Dice) -> Option<String> {
        let mut state = self.machines[name].state();
        let running: Vec<String> = state
            .units
            .iter()
            .filter(|(_, unit)| unit.active)
            .map(|(name, _)| name.clone())
            .collect();
        let unit = dice.pick(&running)?.clone();
        drop(state);
        if unit == ETCD && !self.world.has_quorum_without(name) {
            return None;
        }
        state = self.machines[name].state();
        let found = state.units.get_mut(&unit)?;
        (found.active, found.failed) = (false, dice.below(2) == 0);
        Some(format!("{unit} stopped"))
    }

    /// As `etcdctl member remove`: the member ends, its data stays.
    pub fn no_member(&self, name: &str) -> Option<String> {
        let is_voter = |member: &&super::Member| member.name == name && !member.learner;
        let id = self.world.state().members.iter().find(is_voter)?.id;
        if self.world.state().members.len() < 3 || !self.world.has_quorum_without(name) {
            return None;
        }
        self.world.state().remove(id);
        self.world.settle();
        Some("removed from etcd".into())
    }

    fn without_data(&self, name: &str) -> Option<String> {
        let data = format!("{}/", self.spec.etcd.data_dir);
        let machine = &self.machines[name];
        if !machine.state().files.keys().any(|path| path.starts_with(&data)) || !self.world.has_quorum_without(name) {
            return None;
        }
        let mut state = machine.state();
        state.files.retain(|path, _| !path.starts_with(&data));
        state.units.get_mut(ETCD)?.active = false;
        Some("etcd's data lost".into())
    }

    fn restarted(&self, name: &str) -> Option<String> {
        let machine = &self.machines[name];
        if active(machine, ETCD) && !self.world.has_quorum_without(name) {
            return None;
        }
        machine.power_off();
        defaults(machine);
        machine.power_on();
        Some("restarted".into())
    }
}

/// What lies on a machine because of us, but for the store, which says what was before, and etcd's data.
fn ours(machine: &FakeMachine, is: impl Fn(&str, &FakeKind) -> bool) -> Vec<String> {
    let state = machine.state();
    let files = state.files.iter().filter(|(path, file)| {
        !path.starts_with("/var/lib/quorate") && !path.starts_with("/var/lib/etcd") && is(path, &file.kind)
    });
    files.map(|(path, _)| path.clone()).collect()
}

fn edited(machine: &FakeMachine, dice: &mut Dice) -> Option<String> {
    let files = ours(machine, |path, kind| {
        !KUBELETS.contains(&path) && path != "/etc/hosts" && !matches!(kind, FakeKind::Directory)
    });
    let path = dice.pick(&files)?;
    let mut state = machine.state();
    let file = state.files.get_mut(path)?;
    match &file.kind {
        FakeKind::Symlink(_) => file.kind = FakeKind::Symlink("/nowhere".into()),
        FakeKind::File { content, .. } => {
            let text = [content.as_slice(), b"# by somebody else\n"].concat();
            let mut changed = super::file("", file.mode);
            changed.kind = quorate_machine::fake::FakeFile::new(text, &Default::default(), 0).kind;
            (changed.owner, changed.group) = (file.owner.clone(), file.group.clone());
            *file = changed;
        }
        FakeKind::Directory => {}
    }
    Some(format!("{path} edited"))
}

fn deleted(machine: &FakeMachine, dice: &mut Dice) -> Option<String> {
    let files = ours(machine, |path, kind| {
        // How a kubelet reaches the API is written anew, but not in the kubelet's own words.
        path != super::CLIENT_CONF && !matches!(kind, FakeKind::Directory)
    });
    let path = dice.pick(&files)?;
    machine.state().files.remove(path);
    Some(format!("{path} deleted"))
}

fn given_away(machine: &FakeMachine, dice: &mut Dice) -> Option<String> {
    let files = ours(machine, |path, kind| {
        !KUBELETS.contains(&path) && path != "/etc/hosts" && matches!(kind, FakeKind::File { .. })
    });
    let path = dice.pick(&files)?;
    machine.state().files.get_mut(path)?.mode = 0o666;
    Some(format!("{path} writable by everybody"))
}

fn disabled(machine: &FakeMachine, dice: &mut Dice) -> Option<String> {
    let mut state = machine.state();
    let enabled: Vec<String> = state
        .units
        .iter()
        .filter(|(_, unit)| unit.enabled)
        .map(|(name, _)| name.clone())
        .collect();
    let unit = dice.pick(&enabled)?;
    state.units.get_mut(unit)?.enabled = false;
    Some(format!("{unit} disabled"))
}

fn changed_parameter(machine: &FakeMachine, dice: &mut Dice) -> Option<String> {
    let wanted = [
        ("net.ipv4.ip_forward", "0"),
        ("fs.inotify.max_user_instances", "128"),
        ("fs.inotify.max_user_watches", "65536"),
    ];
    let (name, value) = dice.pick(&wanted)?;
    let mut state = machine.state();
    state.sysctls.insert((*name).to_owned(), (*value).to_owned());
    state.modules.clear();
    Some(format!("{name} = {value}, modules unloaded"))
}

/// Objects the plan has; nodes and requests are kubelets'.
fn objects(world: &World) -> Vec<String> {
    let state = world.state();
    let paths = state.objects.keys();
    let others = ["/nodes/", "/pods/", "/secrets/", CSRS];
    let ours = paths.filter(|path| !others.iter().any(|other| path.contains(other)));
    ours.cloned().collect()
}

fn deleted_object(world: &World, dice: &mut Dice) -> Option<String> {
    let path = dice.pick(&objects(world))?.clone();
    world.state().objects.remove(&path);
    Some(format!("{path} deleted"))
}

fn changed_object(world: &World, dice: &mut Dice) -> Option<String> {
    let path = dice.pick(&objects(world))?.clone();
    let mut state = world.state();
    let object = state.objects.get_mut(&path)?;
    let mut leaves = Vec::new();
    for field in ["spec", "data", "rules", "roleRef", "subjects"] {
        if let Some(value) = object.get(field) {
            walk(value, format!("/{field}"), &mut leaves);
        }
    }
    let pointer = dice.pick(&leaves)?;
    *object.pointer_mut(pointer)? = json!("by somebody else");
    Some(format!("{path} {pointer} changed"))
}

fn walk(value: &Value, at: String, leaves: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                walk(value, format!("{at}/{key}"), leaves);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                walk(value, format!("{at}/{index}"), leaves);
            }
        }
        _ => leaves.push(at),
    }
}

/// Labels and taints of the cluster file.
fn changed_node(world: &World, name: &str, dice: &mut Dice) -> Option<String> {
    let spec = world.spec.machine(name)?.clone();
    let mut state = world.state();
    let node = state.objects.get_mut(&format!("/api/v1/nodes/{name}"))?;
    if dice.below(2) == 0 && !spec.taints.is_empty() {
        node["spec"]["taints"] = json!([]);
        return Some("taints gone".into());
    }
    let labels: Vec<&String> = spec.labels.keys().collect();
    let label = dice.pick(&labels)?;
    let found = node["metadata"]["labels"].as_object_mut()?;
    match dice.below(2) {
        0 => found.remove(*label),
        _ => found.insert((*label).clone(), json!("by-somebody-else")),
    };
    Some(format!("label {label} changed"))
}

fn no_image(world: &World, name: &str, dice: &mut Dice) -> Option<String> {
    let mut state = world.state();
    let images = state.images.get_mut(name)?;
    let all: Vec<String> = images.iter().cloned().collect();
    let image = dice.pick(&all)?;
    images.remove(image);
    Some(format!("{image} deleted"))
}

fn no_blob(machine: &FakeMachine, dice: &mut Dice) -> Option<String> {
    let mut state = machine.state();
    let all: Vec<String> = state.blobs.iter().cloned().collect();
    let blob = dice.pick(&all)?;
    state.blobs.remove(blob);
    Some(format!("blob {blob} deleted"))
}

fn no_folder(machine: &FakeMachine, dice: &mut Dice) -> Option<String> {
    let folder = *dice.pick(&FOLDERS)?;
    let below = format!("{folder}/");
    let mut state = machine.state();
    if !state.files.contains_key(folder) {
        return None;
    }
    // As above.
    let conf = state.files.get(super::CLIENT_CONF).cloned();
    state
        .files
        .retain(|path, _| path != folder && !path.starts_with(&below));
    if let Some(conf) = conf {
        state.files.insert(super::CLIENT_CONF.into(), conf);
    }
    Some(format!("{folder} deleted"))
}
