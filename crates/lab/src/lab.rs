use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::description::{Cut, Description, Machine, Storage, Subnet, Wanted, check_name};
use crate::host::Host;
use crate::power::{self, Power};
use crate::root::{self, Recipe};
use crate::{Error, Event, Result, command, files, limits, network, places};

/// Debian release of the machines unless said otherwise.
const SUITE: &str = "bookworm";
const MACHINES: usize = 5;
/// For keys, logs and what a booted system writes; what is deployed comes on top and says itself if it does not fit.
const NEEDED_MIB: u64 = 100;

/// What `up` shall make. `None` means: as it is already, or the default for a new lab.
#[derive(Clone, Debug)]
pub struct Options {
    /// See [`check_name`].
    pub name: String,
    /// Control planes (three, or one if there are fewer than three machines) and workers. Default 5.
    pub machines: Option<usize>,
    pub load_balancers: Option<usize>,
    /// Machines for an external etcd.
    pub etcd: Option<usize>,
    /// Debian release. Default bookworm.
    pub suite: Option<String>,
    /// More Debian packages in the root tree.
    pub packages: Vec<String>,
    /// Debian mirror for debootstrap; its own default if `None`.
    pub mirror: Option<String>,
    /// Default 10.77.0.0/24.
    pub subnet: Option<Subnet>,
    /// Where ssh_config and cluster.yaml are written. Default: the lab's own directory.
    pub dir: Option<PathBuf>,
    /// Program and leading arguments that connect stdio to a machine when followed by `NAME HOST PORT`;
    /// goes into ssh_config as ProxyCommand. Absolute.
    pub dial: Vec<String>,
}

impl Options {
    pub fn new(name: impl Into<String>, dial: Vec<String>) -> Self {
        Self {
            name: name.into(),
            machines: None,
            load_balancers: None,
            etcd: None,
            suite: None,
            packages: Vec::new(),
            mirror: None,
            subnet: None,
            dir: None,
            dial,
        }
    }
}

/// A lab that exists. Holds its description as of when it was opened.
#[derive(Clone, Debug)]
pub struct Lab {
    description: Description,
    state_dir: PathBuf,
}

/// All labs of this computer, broken ones as the error that opening them gives.
pub fn list() -> Vec<(String, Result<Lab>)> {
    places::names()
        .into_iter()
        .map(|name| {
            let lab = Lab::open(&name);
            (name, lab)
        })
        .collect()
}

impl Lab {
    /// Makes the lab, or completes and starts what there is of it: machines that run are left alone, ones that are
    /// off are switched on, more are added if more are wanted. Returns when every machine's sshd answers.
    pub fn up(options: &Options, events: &mut dyn FnMut(Event)) -> Result<Self> {
        check_name(&options.name)?;
        let host = Host::detect()?;
        host.require()?;
        let lock = places::lock(&options.name)?;
        let state_dir = places::state_dir(&options.name);
        check_path(&state_dir)?;
        load_kernel_modules();
        let mut lab = Self {
            description: describe(options, &state_dir, events)?,
            state_dir,
        };
        let before = lab.description.clone();
        let wanted = Wanted {
            machines: options.machines.or(before.machines.is_empty().then_some(MACHINES)),
            etcd: options.etcd,
            load_balancers: options.load_balancers,
        };
        if let Err(e) = lab.description.grow(wanted, random_id) {
            if before.machines.is_empty() {
                // It never came to be.
                root::remove_tree(&lab.state_dir)?;
                drop(lock);
                places::tidy();
            }
            return Err(e);
        }
        lab.save()?;
        places::register(lab.name(), &lab.state_dir)?;
        limits::raise();

        let key = lab.ensure_key()?;
        if network::ensure_lab(&lab.description)? {
            events(Event::NetworkReady {
                subnet: lab.description.subnet.to_string(),
                operator: lab.description.operator().to_string(),
            });
        }
        let begun = Instant::now();
        let mut started = Vec::new();
        for machine in lab.machines() {
            let power = lab.power(&host, machine);
            if power.is_on() {
                if network::is_plugged_in(lab.name(), &machine.name) {
                    events(Event::Kept {
                        machine: machine.name.clone(),
                    });
                    continue;
                }
                // Half-started, or its network was taken away: nothing to be kept.
                power.off()?;
            }
            power.prepare()?;
            power.authorize(&key)?;
            power.on()?;
            events(Event::Starting {
                machine: machine.name.clone(),
            });
            started.push(machine);
        }
        lab.write_files(&host, &before, events)?;
        drop(lock);
        // All of them: one that was kept may have been started a moment ago by a run that was killed.
        let all: Vec<&Machine> = lab.machines().iter().collect();
        lab.wait_for_ssh(&host, &all, &mut |machine| {
            if started.contains(&machine) {
                events(Event::Ready {
                    machine: machine.name.clone(),
                    took: begun.elapsed(),
                });
            }
        })?;
        Ok(lab)
    }

    /// Ends a lab and removes all there is of it, also of one that is broken or was never finished. Says nothing
    /// against one that does not exist, so that it can be repeated.
    pub fn down(name: &str, events: &mut dyn FnMut(Event)) -> Result<()> {
        check_name(name)?;
        let host = Host::detect()?;
        host.require()?;
        let lock = places::lock(name)?;
        let state_dir = places::state_dir(name);
        let known = load(name, &state_dir).ok();
        let namespaces = network::namespaces(name);
        let mut stopped = 0;
        if let Some(description) = known.clone() {
            let lab = Self {
                description,
                state_dir: state_dir.clone(),
            };
            let machines: Vec<Power> = lab.machines().iter().map(|m| lab.power(&host, m)).collect();
            stopped = machines.iter().filter(|machine| machine.is_on()).count();
            // First all at once, then one by one until they are gone.
            machines.iter().try_for_each(Power::kill)?;
            machines.iter().try_for_each(|machine| machine.off().map(drop))?;
        }
        stopped += power::clear(&host, name)?;
        let was_there = stopped > 0 || !namespaces.is_empty() || state_dir.exists();
        if was_there {
            events(Event::Stopped { machines: stopped });
        }
        namespaces
            .iter()
            .try_for_each(|namespace| network::delete_namespace(namespace))?;
        if let Some(description) = &known {
            remove_written(description, events)?;
        }
        root::remove_tree(&state_dir)?;
        places::forget(name)?;
        limits::restore(places::names().len());
        drop(lock);
        places::tidy();
        let lab = name.into();
        events(if was_there {
            Event::Gone { lab }
        } else {
            Event::NeverWas { lab }
        });
        Ok(())
    }

    pub fn open(name: &str) -> Result<Self> {
        check_name(name)?;
        let state_dir = places::state_dir(name);
        Ok(Self {
            description: load(name, &state_dir)?,
            state_dir,
        })
    }

    /// The lab of that name, or the only one there is.
    pub fn find(name: Option<&str>) -> Result<Self> {
        match name {
            Some(name) => Self::open(name),
            None => Self::open(&only_name()?),
        }
    }

    pub fn name(&self) -> &str {
        &self.description.name
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    pub fn machines(&self) -> &[Machine] {
        &self.description.machines
    }

    pub fn machine(&self, name: &str) -> Result<&Machine> {
        self.description.machine(name)
    }

    /// Holds disks, keys and `lab.json`; only root can read it.
    pub fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    pub fn ssh_config(&self) -> PathBuf {
        self.description.dir.join("ssh_config")
    }

    pub fn cluster_file(&self) -> PathBuf {
        self.description.dir.join("cluster.yaml")
    }

    pub fn is_on(&self, machine: &str) -> Result<bool> {
        Ok(self.power(&Host::detect()?, self.machine(machine)?).is_on())
    }

    /// Power cut. The time until the cable was dead and all processes had their SIGKILL; returns when they are gone.
    /// Disks keep what was written. A machine that is off already is left as it is.
    pub fn off(&self, machine: &str) -> Result<Duration> {
        let host = Host::detect()?;
        host.require()?;
        let machine = self.machine(machine)?;
        let _lock = places::lock(self.name())?;
        self.power(&host, machine).off()
    }

    /// Switches on and waits for sshd. The time that took. A machine that is on already is left as it is.
    pub fn on(&self, machine: &str) -> Result<Duration> {
        let begun = Instant::now();
        let host = Host::detect()?;
        host.require()?;
        let machine = self.machine(machine)?;
        let power = self.power(&host, machine);
        {
            let _lock = places::lock(self.name())?;
            if !power.is_on() {
                network::ensure_lab(&load(self.name(), &self.state_dir)?)?;
                power.on()?;
            }
        }
        self.wait_for_ssh(&host, &[machine], &mut |_| ())?;
        Ok(begun.elapsed())
    }

    /// Drops every frame from `a` to `b`, and back unless `one_way`. Either may be [`crate::OPERATOR`], this side.
    pub fn cut(&self, a: &str, b: &str, one_way: bool) -> Result<()> {
        for end in [a, b] {
            if end != network::OPERATOR {
                self.machine(end)?;
            }
        }
        let cut = |from: &str, to: &str| Cut {
            from: from.into(),
            to: to.into(),
        };
        self.change_cuts(|cuts| {
            cuts.push(cut(a, b));
            if !one_way {
                cuts.push(cut(b, a));
            }
        })
    }

    /// Takes back all cuts.
    pub fn heal(&self) -> Result<()> {
        self.change_cuts(Vec::clear)
    }

    /// Runs `work` on a thread of its own in the lab's network, at the operator's place. Sockets made there stay
    /// in that network; so do processes started there.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        network::inside(self.name(), work)
    }

    /// Moves the calling thread into the lab's network for good; for a process that is about to become another.
    pub fn enter(&self) -> Result<()> {
        network::enter(self.name())
    }

    /// `ssh` to a machine as root; arguments for the far side are to be added.
    pub fn ssh(&self, machine: &str) -> Result<Command> {
        let machine = self.machine(machine)?;
        let mut ssh = Command::new("ssh");
        ssh.arg("-F").arg(self.ssh_config()).arg(&machine.name);
        Ok(ssh)
    }

    pub(crate) fn power<'a>(&'a self, host: &'a Host, machine: &'a Machine) -> Power<'a> {
        Power {
            host,
            lab: &self.description,
            machine,
            dir: self.state_dir.join("machines").join(&machine.name),
        }
    }

    fn change_cuts(&self, change: impl FnOnce(&mut Vec<Cut>)) -> Result<()> {
        Host::detect()?.require()?;
        let _lock = places::lock(self.name())?;
        let mut lab = Self {
            description: load(self.name(), &self.state_dir)?,
            state_dir: self.state_dir.clone(),
        };
        change(&mut lab.description.cuts);
        let cuts = &mut lab.description.cuts;
        cuts.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
        cuts.dedup();
        network::apply_cuts(&lab.description)?;
        lab.save()
    }

    fn save(&self) -> Result<()> {
        let mut text = serde_json::to_string_pretty(&self.description).map_err(|e| Error::BadDescription {
            path: self.state_dir.clone(),
            lab: self.name().into(),
            reason: e.to_string(),
        })?;
        text.push('\n');
        let (file, new) = (self.state_dir.join("lab.json"), self.state_dir.join("lab.json.new"));
        root::write(&new, 0o600, &text)?;
        fs::rename(&new, &file).map_err(Error::file("putting in place", file))
    }

    /// The lab's own key, made once; its public half.
    fn ensure_key(&self) -> Result<String> {
        let (key, public) = (self.key(), self.key().with_extension("pub"));
        if !public.exists() {
            let new = self.state_dir.join("key.new");
            let new_public = new.with_extension("new.pub");
            root::remove_file(&new)?;
            root::remove_file(&new_public)?;
            power::keygen(&new, &format!("quorate lab {}", self.name()))?;
            fs::rename(&new, &key).map_err(Error::file("putting in place", &key))?;
            // Last: with it the key is whole.
            fs::rename(&new_public, &public).map_err(Error::file("putting in place", &public))?;
        }
        fs::read_to_string(&public).map_err(Error::file("reading", public))
    }

    fn key(&self) -> PathBuf {
        self.state_dir.join("id_ed25519")
    }

    fn write_files(&self, host: &Host, before: &Description, events: &mut dyn FnMut(Event)) -> Result<()> {
        let keys = self
            .machines()
            .iter()
            .map(|machine| self.power(host, machine).host_key())
            .collect::<Result<Vec<_>>>()?;
        let known_hosts = self.state_dir.join("known_hosts");
        root::write(&known_hosts, 0o600, &files::known_hosts(&self.description, &keys))?;
        let ssh_config = files::ssh_config(&self.description, &self.key(), &known_hosts);
        root::write(&self.ssh_config(), 0o644, &ssh_config)?;
        events(Event::Wrote {
            path: self.ssh_config(),
        });
        let path = self.cluster_file();
        let wanted = files::cluster(&self.description, &self.ssh_config());
        match fs::read_to_string(&path) {
            Ok(there) if there == wanted => Ok(()),
            // Someone's own cluster file by now, not to be taken from them.
            Ok(there) if there != files::cluster(before, &self.ssh_config()) => {
                events(Event::LeftAlone { path });
                Ok(())
            }
            _ => {
                root::write(&path, 0o644, &wanted)?;
                events(Event::Wrote { path });
                Ok(())
            }
        }
    }
}

fn only_name() -> Result<String> {
    let mut names = places::names();
    match names.len() {
        0 => Err(Error::NoLab),
        1 => Ok(names.remove(0)),
        _ => Err(Error::WhichLab(names)),
    }
}

fn load(name: &str, state_dir: &Path) -> Result<Description> {
    let path = state_dir.join("lab.json");
    let bytes = match fs::read(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(Error::NoSuchLab {
                name: name.into(),
                known: places::names(),
            });
        }
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return Err(Error::NotRoot),
        bytes => bytes.map_err(Error::file("reading", &path))?,
    };
    serde_json::from_slice(&bytes).map_err(|e| Error::BadDescription {
        path,
        lab: name.into(),
        reason: e.to_string(),
    })
}

/// The description there is, checked against what is asked for, or a new one without machines.
fn describe(options: &Options, state_dir: &Path, events: &mut dyn FnMut(Event)) -> Result<Description> {
    let recipe = |suite: &str, packages: &[String]| Recipe {
        suite: suite.into(),
        extra_packages: packages.to_vec(),
        mirror: options.mirror.clone(),
    };
    match load(&options.name, state_dir) {
        Err(Error::NoSuchLab { .. }) => {}
        Err(e) => return Err(e),
        Ok(mut there) => {
            let differs = |what, have: &str, wanted: &str| Error::Differs {
                lab: options.name.clone(),
                what,
                have: have.into(),
                wanted: wanted.into(),
            };
            if let Some(suite) = options.suite.as_ref().filter(|s| **s != there.suite) {
                return Err(differs("root suite", &there.suite, suite));
            }
            if !options.packages.is_empty() && options.packages != there.packages {
                return Err(differs(
                    "packages",
                    &there.packages.join(" "),
                    &options.packages.join(" "),
                ));
            }
            if let Some(subnet) = options.subnet.filter(|s| *s != there.subnet) {
                return Err(differs("subnet", &there.subnet.to_string(), &subnet.to_string()));
            }
            if let Some(dir) = absolute(options.dir.as_deref())?.filter(|d| *d != there.dir) {
                return Err(differs(
                    "directory",
                    &there.dir.to_string_lossy(),
                    &dir.to_string_lossy(),
                ));
            }
            if !there.root.is_dir() {
                // The cache was cleared. The same tree again fits under the disks there are.
                there.root = root::ensure(&places::cache_dir(), &recipe(&there.suite, &there.packages), events)?;
            }
            there.dial.clone_from(&options.dial);
            return Ok(there);
        }
    }
    let suite = options.suite.as_deref().unwrap_or(SUITE);
    let cache = places::cache_dir();
    check_path(&cache)?;
    let tree = root::ensure(&cache, &recipe(suite, &options.packages), events)?;
    fs::create_dir_all(state_dir)
        .and_then(|()| fs::set_permissions(state_dir, fs::Permissions::from_mode(0o700)))
        .map_err(Error::file("making", state_dir))?;
    let free_mib = crate::sys::free_bytes(state_dir).map_err(Error::file("asking the free space of", state_dir))? >> 20;
    if free_mib < NEEDED_MIB {
        return Err(Error::NoSpace {
            path: state_dir.into(),
            needed_mib: NEEDED_MIB,
            free_mib,
            variable: "XDG_STATE_HOME",
        });
    }
    let overlay = power::overlay_works(&tree, state_dir)?;
    events(Event::Storage { copied: !overlay });
    Ok(Description {
        name: options.name.clone(),
        suite: suite.into(),
        packages: options.packages.clone(),
        root: tree,
        storage: if overlay { Storage::Overlay } else { Storage::Copy },
        dir: absolute(options.dir.as_deref())?.unwrap_or_else(|| state_dir.into()),
        dial: options.dial.clone(),
        subnet: options.subnet.unwrap_or(Subnet::DEFAULT),
        ipv6: Path::new("/proc/net/if_inet6").exists(),
        machines: Vec::new(),
        cuts: Vec::new(),
    })
}

/// Removes ssh_config, and cluster.yaml if it still is the one that was written, from a directory of the user's.
fn remove_written(lab: &Description, events: &mut dyn FnMut(Event)) -> Result<()> {
    let (ssh_config, cluster) = (lab.dir.join("ssh_config"), lab.dir.join("cluster.yaml"));
    root::remove_file(&ssh_config)?;
    match fs::read_to_string(&cluster) {
        Ok(there) if there == files::cluster(lab, &ssh_config) => root::remove_file(&cluster)?,
        Ok(_) => events(Event::LeftAlone { path: cluster }),
        Err(_) => {}
    }
    // If it holds anything else it stays.
    let _ = fs::remove_dir(&lab.dir);
    Ok(())
}

fn check_path(path: &Path) -> Result<()> {
    if path.to_string_lossy().contains([':', ',', '\\']) {
        return Err(Error::BadPath { path: path.into() });
    }
    Ok(())
}

fn absolute(dir: Option<&Path>) -> Result<Option<PathBuf>> {
    dir.map(|dir| std::path::absolute(dir).map_err(Error::file("finding", dir)))
        .transpose()
}

/// Best effort: what is built in needs no module, and what is missing shows in the step that needs it.
fn load_kernel_modules() {
    if Path::new("/lib/modules").is_dir() {
        let mut modprobe = Command::new("modprobe");
        modprobe.args([
            "--all",
            "--quiet",
            "veth",
            "bridge",
            "overlay",
            "nf_tables",
            "tun",
            "br_netfilter",
            "vxlan",
        ]);
        let _ = command::run(&mut modprobe, "");
    }
}

/// 32 hex digits from the kernel.
fn random_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid")
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_hexdigit)
        .collect()
}
