//! Desired state of one machine in one stage, compared with what was found as it is declared.
//!
//! A stage says what it wants (`file`, `unit`, …); only what differs becomes part of a step.

use std::collections::{BTreeMap, BTreeSet};

use quorate_facts::{Facts, FileKind, HostFacts};
use quorate_pki::inventory::{AuthorityWanted, Ca, CertificateWanted, Inventory, Place};
use quorate_pki::read;
use quorate_spec::{Machine, Spec};
use sha2::{Digest, Sha256};

use crate::model::*;
use crate::paths;
use crate::profile::Profile;

/// Everything the stages read.
pub(crate) struct Context<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) facts: &'a Facts,
    pub(crate) inventory: Inventory,
    pub(crate) profiles: BTreeMap<&'a str, Profile>,
}

impl<'a> Context<'a> {
    /// Machines that were reached, in the order of the cluster file.
    pub(crate) fn reached(&self, machines: Vec<&'a Machine>) -> Vec<&'a Machine> {
        machines
            .into_iter()
            .filter(|machine| self.facts.reachable(&machine.name))
            .collect()
    }

    /// Cheap, unlike a look through [`Spec::etcd_members`] for each of a thousand machines.
    pub(crate) fn runs_etcd(&self, machine: &Machine) -> bool {
        match self.spec.etcd.topology {
            quorate_spec::EtcdTopology::Stacked => machine.is_control_plane(),
            quorate_spec::EtcdTopology::External => machine.roles.contains(&quorate_spec::Role::Etcd),
        }
    }

    /// Whether etcd is a unit of ours; else it is a static Pod of kubeadm's.
    pub(crate) fn etcd_unit(&self) -> bool {
        self.spec.kubernetes.bootstrap == quorate_spec::Bootstrap::Binary
            || self.spec.etcd.topology == quorate_spec::EtcdTopology::External
    }

    pub(crate) fn profile(&self, machine: &str) -> &Profile {
        &self.profiles[machine]
    }

    /// The control plane API objects are sent through: one whose server answers, else the first that was reached.
    pub(crate) fn api_machine(&self) -> Option<&'a str> {
        let reached = self.reached(self.spec.control_planes());
        let ready = reached
            .iter()
            .find(|machine| self.facts.cluster.ready_api_servers.contains(&machine.name));
        ready.or(reached.first()).map(|machine| machine.name.as_str())
    }

    pub(crate) fn live(&self, path: &str) -> Option<&'a serde_json::Value> {
        self.facts.cluster.objects.get(path)
    }

    /// The API was asked and there is no such object. That nobody answered says nothing of it.
    pub(crate) fn is_absent(&self, path: &str) -> bool {
        let cluster = &self.facts.cluster;
        !cluster.ready_api_servers.is_empty() && !cluster.objects.contains_key(path) && !cluster.unknown.contains(path)
    }

    /// An API server is ready, and yet did not say whether there is such an object.
    pub(crate) fn is_unanswered(&self, path: &str) -> bool {
        let cluster = &self.facts.cluster;
        !cluster.ready_api_servers.is_empty() && cluster.unknown.contains(path)
    }

    /// Reference of the image in the bundle whose repository ends with `name`.
    pub(crate) fn image(&self, name: &str) -> Option<&'a quorate_facts::BundleItem> {
        self.facts.bundle.items.values().find(|item| {
            item.kind == quorate_facts::ItemKind::Image
                && item
                    .name
                    .rsplit_once(':')
                    .is_some_and(|(repository, _)| repository.ends_with(name))
        })
    }
}

/// A stage in the making.
pub(crate) struct Draft<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) stage: Stage,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(context: &'a Context<'a>, name: &str, title: &str) -> Self {
        Self {
            context,
            stage: Stage {
                name: name.into(),
                title: title.into(),
                with_previous: false,
                steps: Vec::new(),
            },
        }
    }

    /// A stage that begins with the one before it.
    pub(crate) fn with_previous(context: &'a Context<'a>, name: &str, title: &str) -> Self {
        let mut draft = Self::new(context, name, title);
        draft.stage.with_previous = true;
        draft
    }

    pub(crate) fn machine(&self, machine: &'a Machine) -> Option<Wanted<'a>> {
        let host = self.context.facts.host(&machine.name)?;
        Some(Wanted::new(self.context, machine, host))
    }

    /// A step id in this stage.
    pub(crate) fn id(&self, machine: &str, what: &str) -> String {
        format!("{}/{machine}/{what}", self.stage.name)
    }

    pub(crate) fn push(&mut self, step: Step) {
        self.stage.steps.push(step);
    }

    /// Adds what `wanted` found to differ, in the order users → directories → files → links → units. Returns the id of
    /// the last step added, for others to need.
    pub(crate) fn add(&mut self, wanted: Wanted<'a>, after: &[String]) -> Option<String> {
        let machine = wanted.machine.name.clone();
        let essential = wanted.essential();
        let mut needs: Vec<String> = after.to_vec();
        let mut last = None;
        for (what, title, why, action, undo, done_when) in wanted.into_actions() {
            let id = self.id(&machine, what);
            self.push(Step {
                id: id.clone(),
                machine: machine.clone(),
                title,
                why,
                action,
                needs: std::mem::replace(&mut needs, vec![id.clone()]),
                done_when,
                undo,
                attempts: 2,
                essential,
            });
            last = Some(id);
        }
        last
    }

    /// Objects that differ from the live ones, applied in one step.
    pub(crate) fn objects(
        &mut self,
        what: &str,
        title: &str,
        objects: Vec<ApiObject>,
        done_when: Vec<Wait>,
        after: &[String],
    ) -> Option<String> {
        let machine = self.context.api_machine()?;
        let mut why = Vec::new();
        let changed: Vec<ApiObject> = objects
            .into_iter()
            // What is there may be other than ours, and a rollback would delete it as a thing of this run's.
            .filter(|object| !self.context.is_unanswered(&object.path))
            .filter_map(|mut object| {
                let live = self.context.live(&object.path);
                let reason = match live {
                    None => "absent".to_owned(),
                    Some(live) => crate::json::difference(&object.body, live)?,
                };
                why.push(format!("{}: {reason}", short(&object.path)));
                object.before = live.cloned();
                Some(object)
            })
            .collect();
        if changed.is_empty() {
            return None;
        }
        let id = self.id(machine, what);
        self.push(Step {
            id: id.clone(),
            machine: machine.to_owned(),
            title: title.to_owned(),
            why,
            action: Action::Apply { objects: changed },
            needs: after.to_vec(),
            done_when,
            undo: Undo::Objects,
            attempts: 8,
            essential: true,
        });
        Some(id)
    }
}

/// `kube-system/configmaps/coredns` out of a whole API path.
fn short(path: &str) -> &str {
    path.split_once("/namespaces/").map_or_else(
        || path.rsplit_once("/v1/").map_or(path, |(_, rest)| rest),
        |(_, rest)| rest,
    )
}

/// Desired state of one machine.
pub(crate) struct Wanted<'a> {
    pub(crate) context: &'a Context<'a>,
    pub(crate) machine: &'a Machine,
    pub(crate) host: &'a HostFacts,
    users: Vec<User>,
    directories: Vec<Directory>,
    files: Vec<FileChange>,
    links: Vec<Link>,
    pods: Vec<FileChange>,
    no_pods: Vec<(String, Vec<Wait>)>,
    why: BTreeMap<&'static str, Vec<String>>,
    touched: BTreeSet<String>,
    units: Units,
    waits: Vec<Wait>,
    pod_waits: Vec<Wait>,
}

#[derive(Default)]
struct Units {
    reload: bool,
    enable: Vec<String>,
    disable: Vec<String>,
    stop: Vec<String>,
    start: Vec<String>,
    restart: Vec<String>,
}

type Planned = (&'static str, String, Vec<String>, Action, Undo, Vec<Wait>);

impl<'a> Wanted<'a> {
    fn new(context: &'a Context<'a>, machine: &'a Machine, host: &'a HostFacts) -> Self {
        Self {
            context,
            machine,
            host,
            users: Vec::new(),
            directories: Vec::new(),
            files: Vec::new(),
            links: Vec::new(),
            pods: Vec::new(),
            no_pods: Vec::new(),
            why: BTreeMap::new(),
            touched: BTreeSet::new(),
            units: Units::default(),
            waits: Vec::new(),
            pod_waits: Vec::new(),
        }
    }

    pub(crate) fn profile(&self) -> &'a Profile {
        self.context.profile(&self.machine.name)
    }

    /// Losing a worker must not stop the others; anything with a role in the control plane must be right.
    fn essential(&self) -> bool {
        self.machine
            .roles
            .iter()
            .any(|role| *role != quorate_spec::Role::Worker)
    }

    fn because(&mut self, what: &'static str, reason: impl Into<String>) {
        self.why.entry(what).or_default().push(reason.into());
    }

    pub(crate) fn user(&mut self, name: &str, home: &str) {
        if !matches!(self.host.users.get(name), Some(Some(_))) {
            self.because("users", format!("user {name} does not exist"));
            self.users.push(User {
                name: name.into(),
                home: home.into(),
            });
        }
    }

    pub(crate) fn directory(&mut self, path: &str, owner: &str, mode: u32) {
        let reason = match self.host.files.get(path) {
            Some(found) if found.kind == FileKind::Directory && found.owner == owner && found.mode == mode => return,
            Some(found) if found.kind == FileKind::Directory => {
                format!("{path} is {}:{:o}, wanted {owner}:{mode:o}", found.owner, found.mode)
            }
            _ => format!("{path} does not exist"),
        };
        self.because("directories", reason);
        self.directories.push(Directory {
            path: path.into(),
            owner: owner.into(),
            mode,
        });
    }

    /// A world-readable file of root's.
    pub(crate) fn text(&mut self, path: &str, text: impl Into<String>) {
        self.file(path, "root", 0o644, Content::text(text));
    }

    pub(crate) fn file(&mut self, path: &str, owner: &str, mode: u32, content: Content) {
        if let Some((reason, before)) = self.file_difference(path, owner, mode, &content) {
            self.because("files", reason);
            self.change(path, owner, mode, content, before);
        }
    }

    /// What is wrong with what lies at the path, and what it is; `None` when nothing is.
    fn file_difference(&self, path: &str, owner: &str, mode: u32, content: &Content) -> Option<(String, Before)> {
        let hash = self.expected_hash(content);
        let Some(found) = self.host.files.get(path).filter(|found| found.exists()) else {
            return Some((format!("{path} does not exist"), Before::Absent));
        };
        if hash.is_some() && found.sha256 == hash {
            if found.owner == owner && found.mode == mode {
                return None;
            }
            let reason = format!("{path} is {}:{:o}, wanted {owner}:{mode:o}", found.owner, found.mode);
            let before = Before::Attributes {
                owner: found.owner.clone(),
                mode: found.mode,
            };
            return Some((reason, before));
        }
        let before = match &found.text {
            Some(text) if !content.is_secret() && !crate::secrets::holds_credentials(text) => {
                Before::Text { text: text.clone() }
            }
            _ => Before::Hash {
                sha256: found.sha256.clone().unwrap_or_default(),
            },
        };
        Some((format!("{path} differs"), before))
    }

    /// A static Pod's manifest, written when all else is done: whatever did its work before has ended then. `anew`: what lies
    /// there now will have been removed.
    pub(crate) fn pod(&mut self, path: &str, manifest: &str, anew: bool, waits: Vec<Wait>) {
        let content = Content::text(manifest);
        let difference = if anew {
            Some((format!("{path} does not exist"), Before::Absent))
        } else {
            self.file_difference(path, "root", 0o600, &content)
        };
        let Some((reason, before)) = difference else { return };
        self.because("pods", reason);
        self.pods.push(FileChange {
            path: path.into(),
            owner: "root".into(),
            mode: 0o600,
            content,
            before,
        });
        self.pod_waits.extend(waits);
    }

    /// A static Pod that is no longer wanted, or not yet, ends before anything else.
    pub(crate) fn no_pod(&mut self, path: &str, waits: Vec<Wait>) {
        if self.host.files.get(path).is_some_and(|found| found.exists()) {
            self.because("no-pods", format!("{path} is not wanted here now"));
            self.no_pods.push((path.into(), waits));
        }
    }

    /// Whether a static Pod comes, goes or is replaced.
    pub(crate) fn changes_pods(&self) -> bool {
        !self.pods.is_empty() || !self.no_pods.is_empty()
    }

    fn change(&mut self, path: &str, owner: &str, mode: u32, content: Content, before: Before) {
        self.touched.insert(path.to_owned());
        self.files.push(FileChange {
            path: path.into(),
            owner: owner.into(),
            mode,
            content,
            before,
        });
    }

    /// Hash of the content, where it is known beforehand.
    pub(crate) fn expected_hash(&self, content: &Content) -> Option<String> {
        let operator = &self.context.facts.operator;
        match content {
            Content::Text { text } => Some(sha256(text.as_bytes())),
            Content::Template { template, secrets } => {
                let rendered = crate::secrets::render(template, secrets, &operator.secrets)?;
                Some(sha256(&rendered))
            }
            Content::Authority { name } => operator
                .authorities
                .get(name)
                .map(|ca| sha256(ca.certificate.as_bytes())),
            Content::Certificate { .. } | Content::Key { .. } => None,
        }
    }

    /// A certificate of the inventory on this machine, re-issued when it no longer serves.
    pub(crate) fn certificate(&mut self, id: &str) {
        let Some(wanted) = self.context.inventory.find(id, &self.machine.name).cloned() else {
            return;
        };
        let Place::Files { certificate, key } = &wanted.place else {
            return;
        };
        let (certificate, key) = (certificate.clone(), key.clone());
        let reasons = self.certificate_differences(&wanted, &certificate, &key);
        if reasons.is_empty() {
            return;
        }
        for reason in &reasons {
            self.because("files", format!("{certificate}: {reason}"));
        }
        let before = |path: &str| match self.host.files.get(path).filter(|found| found.exists()) {
            Some(found) => Before::Hash {
                sha256: found.sha256.clone().unwrap_or_default(),
            },
            None => Before::Absent,
        };
        let (was_certificate, was_key) = (before(&certificate), before(&key));
        let owner = wanted.owner.user.clone();
        self.change(
            &certificate,
            &owner,
            0o644,
            Content::Certificate {
                wanted: Box::new(wanted.clone()),
            },
            was_certificate,
        );
        self.change(
            &key,
            &owner,
            0o600,
            Content::Key {
                wanted: Box::new(wanted),
            },
            was_key,
        );
    }

    fn certificate_differences(&self, wanted: &CertificateWanted, certificate: &str, key: &str) -> Vec<String> {
        let text = |path: &str| self.host.files.get(path).and_then(|found| found.text.as_deref());
        let Some(pem) = text(certificate) else {
            return vec!["does not exist".into()];
        };
        let Some(ca) = self.context.facts.operator.authorities.get(wanted.ca.name()) else {
            return vec!["its authority is new".into()];
        };
        let (Ok(mut found), Ok(ca)) = (read::certificate(pem), read::certificate(&ca.certificate)) else {
            return vec!["cannot be read".into()];
        };
        let Some(found_key) = self.host.keys.get(key).filter(|key| key.error.is_none()) else {
            return vec!["its key does not exist".into()];
        };
        found.key_matches = Some(found_key.spki_sha256 == found.spki_sha256);
        let mut differences = read::differences(wanted, &found, &ca, self.context.facts.taken_unix);
        // Whoever could read a key may have it.
        let owner = &wanted.owner.user;
        for (path, mode) in [(certificate, 0o644), (key, 0o600)] {
            let found = self.host.files.get(path);
            if let Some(found) = found.filter(|found| found.owner != *owner || found.mode != mode) {
                differences.push(format!(
                    "{path} is {}:{:o}, wanted {owner}:{mode:o}",
                    found.owner, found.mode
                ));
            }
        }
        differences
    }

    /// An authority's certificate below `folder`, and its key where the inventory says so.
    pub(crate) fn authority(&mut self, ca: Ca, folder: &str) {
        let rows: Vec<AuthorityWanted> = self
            .context
            .inventory
            .authorities
            .iter()
            .filter(|row| row.ca == ca && row.machine == self.machine.name && row.certificate.starts_with(folder))
            .cloned()
            .collect();
        for row in rows {
            self.file(
                &row.certificate,
                &row.owner.user,
                0o644,
                Content::Authority { name: ca.name().into() },
            );
            if let Some(key) = &row.key {
                let id = match ca {
                    Ca::Cluster => quorate_facts::SecretId::ClusterCaKey,
                    Ca::Etcd => quorate_facts::SecretId::EtcdCaKey,
                    Ca::FrontProxy => quorate_facts::SecretId::FrontProxyCaKey,
                };
                self.secret(key, "root", id);
            }
        }
    }

    /// A file that is one secret.
    pub(crate) fn secret(&mut self, path: &str, owner: &str, id: quorate_facts::SecretId) {
        self.file(
            path,
            owner,
            0o600,
            Content::Template {
                template: crate::secrets::mark(id),
                secrets: vec![id],
            },
        );
    }

    /// A program from the bundle, as a link into the blob store.
    pub(crate) fn program(&mut self, path: &str, item: &str) {
        if let Some(found) = self.context.facts.bundle.items.get(item) {
            self.link(path, &paths::blob(&found.sha256));
        }
    }

    pub(crate) fn link(&mut self, path: &str, target: &str) {
        let before = self
            .host
            .files
            .get(path)
            .filter(|found| found.exists())
            .map(|found| found.target.clone().unwrap_or_default());
        if before.as_deref() == Some(target) {
            return;
        }
        self.because(
            "links",
            format!(
                "{path} {}",
                if before.is_some() {
                    "points elsewhere"
                } else {
                    "does not exist"
                }
            ),
        );
        self.touched.insert(path.to_owned());
        self.links.push(Link {
            path: path.into(),
            target: target.into(),
            before,
        });
    }

    /// A unit that is enabled and runs this text with these inputs; restarted when one of them changes.
    pub(crate) fn unit(&mut self, name: &str, text: &str, inputs: &[&str]) {
        // The inputs' own content is part of the text, so that a change is seen even if a run ended between writing a
        // file and restarting the unit: systemd then reports that the unit file is newer than what it loaded.
        let text = format!("{text}# inputs: {}\n", self.fingerprint(inputs));
        self.plain_unit(name, &text, inputs, true);
    }

    /// The same with the text as it is. `runs`: also started, and restarted when an input was written in this step; else
    /// only enabled, because somebody else starts it first.
    pub(crate) fn plain_unit(&mut self, name: &str, text: &str, inputs: &[&str], runs: bool) {
        let path = paths::unit(name);
        self.text(&path, text);
        let found = self.host.units.get(name);
        let changed = self.touched.contains(&path) || inputs.iter().any(|input| self.touched.contains(*input));
        let stale = found.is_some_and(|unit| unit.needs_daemon_reload);
        let drop_in = |input: &&&str| input.starts_with(paths::UNITS) && self.touched.contains(**input);
        self.units.reload |= self.touched.contains(&path) || stale || inputs.iter().any(|input| drop_in(&input));
        if !found.is_some_and(|unit| unit.is_enabled()) {
            self.because("units", format!("{name} is not enabled"));
            self.units.enable.push(name.into());
        }
        if !runs {
            return;
        }
        match found {
            // One that is still starting also runs what was there before; starting it again would change nothing.
            Some(unit) if (unit.is_active() || unit.active == "activating") && (changed || stale) => {
                self.because("units", format!("{name} runs with what was there before"));
                self.units.restart.push(name.into());
            }
            Some(unit) if unit.is_active() => {}
            other => {
                let state = other.map_or("absent", |unit| {
                    if unit.active.is_empty() {
                        "absent"
                    } else {
                        unit.active.as_str()
                    }
                });
                self.because("units", format!("{name} is {state}"));
                self.units.start.push(name.into());
            }
        }
    }

    /// A unit of ours that must not run, now or at boot. Its file stays until `reset`.
    pub(crate) fn no_unit(&mut self, name: &str) {
        let Some(found) = self.host.units.get(name).filter(|unit| unit.exists()) else {
            return;
        };
        if found.is_enabled() {
            self.because("units", format!("{name} is enabled and no longer wanted"));
            self.units.disable.push(name.into());
        }
        // One that failed or is about to start again has not ended by itself.
        if !matches!(found.active.as_str(), "" | "inactive") {
            self.because("units", format!("{name} is {} and no longer wanted", found.active));
            self.units.stop.push(name.into());
        }
    }

    /// A unit that a step before this one stops runs afterwards.
    pub(crate) fn start_stopped(&mut self, name: &str) {
        self.units.restart.retain(|unit| unit != name);
        if !self.disturbs(name) {
            self.because("units", format!("{name} was stopped"));
            self.units.start.push(name.into());
        }
    }

    /// Whether the machine's step will start or restart this unit.
    pub(crate) fn disturbs(&self, unit: &str) -> bool {
        self.units
            .start
            .iter()
            .chain(&self.units.restart)
            .any(|name| name == unit)
    }

    pub(crate) fn restarts_any(&self) -> bool {
        !self.units.restart.is_empty()
    }

    /// Awaited after the units step, if there is one.
    pub(crate) fn wait(&mut self, until: Condition, timeout_ms: u64) {
        self.waits.push(Wait { until, timeout_ms });
    }

    /// What these files hold, or will, in sixteen digits.
    pub(crate) fn fingerprint(&self, inputs: &[&str]) -> String {
        let mut digest = Sha256::new();
        // Certificates and their keys have no bytes before they are issued; the programs reload them by themselves.
        for input in inputs
            .iter()
            .filter(|input| !input.ends_with(".crt") && !input.ends_with(".key"))
        {
            digest.update(input.as_bytes());
            let planned = self
                .files
                .iter()
                .find(|file| file.path == *input)
                .map(|file| self.identity(&file.content));
            let linked = self
                .links
                .iter()
                .find(|link| link.path == *input)
                .map(|link| link.target.clone());
            let found = self.host.files.get(*input).map(|found| {
                found
                    .target
                    .clone()
                    .or_else(|| found.sha256.clone())
                    .unwrap_or_default()
            });
            digest.update(
                planned
                    .or(linked)
                    .or_else(|| self.program_target(input))
                    .or(found)
                    .unwrap_or_default()
                    .as_bytes(),
            );
        }
        hex(&digest.finalize())[..16].to_owned()
    }

    /// Where a program's link will lead. Programs are linked in a stage of their own, so facts may still show the old one.
    pub(crate) fn program_target(&self, path: &str) -> Option<String> {
        let name = path.strip_prefix(paths::BIN)?.strip_prefix('/')?;
        if name == "quorate" {
            return Some(format!(
                "{}/{}/quorate",
                paths::PROGRAMS,
                self.context.facts.operator.program_sha256
            ));
        }
        self.context
            .facts
            .bundle
            .items
            .get(name)
            .map(|item| paths::blob(&item.sha256))
    }

    /// The hash a file will have.
    fn identity(&self, content: &Content) -> String {
        self.expected_hash(content).unwrap_or_default()
    }

    fn into_actions(mut self) -> Vec<Planned> {
        let mut planned: Vec<Planned> = Vec::new();
        let mut why = std::mem::take(&mut self.why);
        let mut reasons = |what: &str| why.remove(what).unwrap_or_default();
        let (no_pods, ended): (Vec<String>, Vec<Vec<Wait>>) = self.no_pods.into_iter().unzip();
        if !no_pods.is_empty() {
            planned.push((
                "no-pods",
                "end the static Pod".to_owned(),
                reasons("no-pods"),
                Action::Remove {
                    paths: no_pods,
                    recursive: false,
                },
                Undo::Kept,
                ended.concat(),
            ));
        }
        if !self.users.is_empty() {
            let title = format!("create {}", count(self.users.len(), "user"));
            planned.push((
                "users",
                title,
                reasons("users"),
                Action::Users { users: self.users },
                Undo::Nothing {
                    because: "a system user without files harms nobody; reset removes it".into(),
                },
                Vec::new(),
            ));
        }
        if !self.directories.is_empty() {
            let title = format!("make {}", count(self.directories.len(), "directory"));
            planned.push((
                "directories",
                title,
                reasons("directories"),
                Action::Directories {
                    directories: self.directories,
                },
                Undo::Kept,
                Vec::new(),
            ));
        }
        if !self.files.is_empty() {
            let title = format!("write {}", count(self.files.len(), "file"));
            planned.push((
                "files",
                title,
                reasons("files"),
                Action::Files { files: self.files },
                Undo::Kept,
                Vec::new(),
            ));
        }
        if !self.links.is_empty() {
            let title = format!("link {}", count(self.links.len(), "program"));
            planned.push((
                "links",
                title,
                reasons("links"),
                Action::Links { links: self.links },
                Undo::Kept,
                Vec::new(),
            ));
        }
        let units = self.units;
        let busy = !(units.enable.is_empty()
            && units.disable.is_empty()
            && units.stop.is_empty()
            && units.start.is_empty()
            && units.restart.is_empty());
        if busy || units.reload {
            let verb = if units.start.is_empty() { "restart" } else { "start" };
            let names = units
                .start
                .iter()
                .chain(&units.restart)
                .map(|name| name.trim_end_matches(".service"))
                .collect::<Vec<_>>()
                .join(", ");
            let title = if !units.stop.is_empty() && names.is_empty() {
                format!("stop {}", units.stop.join(", ").replace(".service", ""))
            } else if names.is_empty() {
                "bring systemd up to date".to_owned()
            } else {
                format!("{verb} {names}")
            };
            let action = Action::Units {
                reload: units.reload,
                enable: units.enable,
                disable: units.disable,
                stop: units.stop,
                start: units.start,
                restart: units.restart,
            };
            planned.push(("units", title, reasons("units"), action, Undo::Units, self.waits));
        }
        if !self.pods.is_empty() {
            planned.push((
                "pods",
                format!("run {}", count(self.pods.len(), "static Pod")),
                reasons("pods"),
                Action::Files { files: self.pods },
                Undo::Kept,
                self.pod_waits,
            ));
        }
        planned
    }
}

fn count(n: usize, noun: &str) -> String {
    match (n, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{n} {stem}ies"),
        _ => format!("{n} {noun}s"),
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
