//! Real machines, so root is needed. Every lab has a name of its own and is taken down, also by a failing test.

#![allow(clippy::print_stdout)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use quorate_lab::{Lab, OPERATOR, Options};

/// A lab's name, and its end.
struct Name(String);

impl Name {
    /// `None`, with the reason printed, where labs cannot be.
    fn new(test: &str) -> Option<Self> {
        let root = fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0);
        if !root {
            println!("skipped: labs need root");
            return None;
        }
        for program in ["/usr/bin/systemd-nspawn", "/usr/sbin/debootstrap"] {
            if !Path::new(program).exists() {
                println!("skipped: {program} is not installed");
                return None;
            }
        }
        Some(Self(format!("qt-lab-{}-{test}", std::process::id())))
    }

    fn options(&self, machines: usize) -> Options {
        let program = example().to_string_lossy().into_owned();
        Options {
            machines: Some(machines),
            ..Options::new(&self.0, vec![program, "dial".into()])
        }
    }

    fn up(&self, machines: usize) -> Lab {
        Lab::up(&self.options(machines), &mut |_| ()).unwrap()
    }

    fn down(&self) {
        Lab::down(&self.0, &mut |_| ()).unwrap();
        assert_eq!(left(&self.0), BTreeSet::new());
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let _ = Lab::down(&self.0, &mut |_| ());
    }
}

/// Built by cargo along with this test.
fn example() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples/lab")
}

/// Everything on this computer that carries the lab's name: namespaces, mounts, control groups, files, processes.
fn left(name: &str) -> BTreeSet<String> {
    let mut left = BTreeSet::new();
    let home = std::env::var_os("XDG_STATE_HOME")
        .map_or_else(|| std::env::home_dir().unwrap().join(".local/state"), PathBuf::from);
    let dirs = [
        "/run/netns".into(),
        "/run/quorate/labs".into(),
        home.join("quorate/labs"),
    ];
    for dir in dirs.into_iter().chain(control_groups()) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(name) {
                left.insert(entry.path().display().to_string());
            }
        }
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let words = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if pid.parse() != Ok(std::process::id()) && String::from_utf8_lossy(&words).contains(name) {
            left.insert(format!("process {pid}"));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    left.extend(mounts.lines().filter(|l| l.contains(name)).map(str::to_owned));
    left
}

fn control_groups() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts
        .lines()
        .filter(|line| line.split(' ').nth(2).is_some_and(|kind| kind.starts_with("cgroup")))
        .filter_map(|line| line.split(' ').nth(1))
        .flat_map(|mount| [PathBuf::from(mount), Path::new(mount).join("system.slice")])
        .collect()
}

/// Runs a command on a machine over SSH.
fn on(lab: &Lab, machine: &str, user: &str, command: &str) -> (bool, String) {
    let output = lab
        .ssh(machine)
        .unwrap()
        .args(["-l", user, command])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), text.trim().to_owned())
}

#[track_caller]
fn works(lab: &Lab, machine: &str, command: &str) -> String {
    let (good, text) = on(lab, machine, "root", command);
    assert!(good, "{machine}: {command}: {text}");
    text
}

#[track_caller]
fn reaches(lab: &Lab, from: &str, to: &str) -> bool {
    on(lab, from, "root", &format!("ping -c 1 -W 1 {to}")).0
}

#[test]
fn a_lab_from_up_to_down() {
    let Some(name) = Name::new("story") else { return };
    let lab = name.up(2);

    // They are different machines, and like hardware.
    assert_ne!(
        works(&lab, "m1", "cat /etc/machine-id"),
        works(&lab, "m2", "cat /etc/machine-id")
    );
    assert_eq!(works(&lab, "m2", "uname -n"), "m2");
    works(
        &lab,
        "m1",
        "sysctl -w net.ipv4.ip_forward=1 && ip link add v type vxlan id 7 dstport 4789 dev eth0 && ip link delete v",
    );
    works(
        &lab,
        "m1",
        "ip tuntap add t mode tun && nft add table inet t && nft delete table inet t && iptables -t nat -S",
    );
    works(
        &lab,
        "m1",
        "cd /var/lib/containerd && mkdir l u w m && mount -t overlay o -o lowerdir=l,upperdir=u,workdir=w m && umount m",
    );
    works(
        &lab,
        "m1",
        "for c in /sys/fs/cgroup /sys/fs/cgroup/memory /sys/fs/cgroup/unified; do \
         [ ! -e $c/cgroup.procs ] || { mkdir $c/trial && rmdir $c/trial; } || exit 1; done; mountpoint /sys/fs/bpf",
    );
    assert!(on(&lab, "m1", "ops", "sudo -n true").0);
    assert!(!on(&lab, "m1", "opspw", "sudo -n true").0);
    assert!(on(&lab, "m1", "opspw", "echo lab-only | sudo -S true").0);

    // A power cut: fast, silent, and the disk stays while the network's state does not.
    works(
        &lab,
        "m1",
        "echo kept | tee /root/file > /var/lib/etcd/file; ip address add 10.77.0.100/32 dev eth0",
    );
    assert!(reaches(&lab, "m2", "10.77.0.100"));
    let mut connection = lab.dial("m1", 22).unwrap();
    let took = lab.off("m1").unwrap();
    assert!(took < Duration::from_millis(1000), "power cut took {took:?}");
    assert!(!lab.is_on("m1").unwrap() && lab.is_on("m2").unwrap());
    connection.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let end = loop {
        // The banner came before; after it a dead machine says nothing, not even that the connection is over.
        match std::io::Read::read(&mut connection, &mut [0; 64]) {
            Ok(0) => break "closed".to_owned(),
            Ok(_) => {}
            Err(e) => break format!("{:?}", e.kind()),
        }
    };
    assert_eq!(end, "WouldBlock");
    lab.off("m1").unwrap();
    lab.on("m1").unwrap();
    assert_eq!(works(&lab, "m1", "cat /root/file /var/lib/etcd/file"), "kept\nkept");
    assert!(!works(&lab, "m1", "ip -brief address").contains("10.77.0.100"));

    // The network: both families, one direction, the operator, and back.
    assert!(reaches(&lab, "m1", "10.77.0.12") && reaches(&lab, "m1", "fd00:77::12"));
    lab.cut("m1", "m2", false).unwrap();
    assert!(!reaches(&lab, "m1", "10.77.0.12") && !reaches(&lab, "m1", "fd00:77::12"));
    assert!(!reaches(&lab, "m2", "10.77.0.11"));
    lab.heal().unwrap();
    lab.cut(OPERATOR, "m2", true).unwrap();
    assert!(reaches(&lab, "m1", "10.77.0.12") && lab.inside(|| lab.dial("m1", 22)).unwrap().is_ok());
    lab.heal().unwrap();
    assert!(reaches(&lab, "m2", "10.77.0.11"));

    // Again: nothing is restarted; more can be added.
    let booted = works(&lab, "m2", "cat /proc/1/stat");
    let lab = name.up(3);
    let field = |stat: &str| stat.split(' ').nth(21).map(str::to_owned);
    assert_eq!(field(&works(&lab, "m2", "cat /proc/1/stat")), field(&booted));
    assert!(reaches(&lab, "m3", "10.77.0.11"));
    assert!(
        lab.cut("m1", "m9", false)
            .unwrap_err()
            .to_string()
            .contains("m1, m2, m3")
    );
    name.down();
    name.down();
}

#[test]
fn up_killed_at_any_moment_is_repaired() {
    let Some(name) = Name::new("killed") else { return };
    // The tree is not what is tested here.
    name.up(2);
    name.down();
    for (round, after) in [5, 30, 60, 90, 130, 180, 250, 600].into_iter().enumerate() {
        let mut up = Command::new(example())
            .args(["up", &name.0, "2"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(after));
        up.kill().unwrap();
        up.wait().unwrap();
        if round % 2 == 0 {
            let lab = name.up(2);
            works(&lab, "m1", "ping -c 1 -W 1 10.77.0.12");
        }
        Lab::down(&name.0, &mut |_| ()).unwrap();
        // What was just being started when its parent died finds its lab gone and ends.
        let gone = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            left(&name.0).is_empty()
        });
        assert!(gone, "after {after} ms: {:?}", left(&name.0));
    }
}

#[test]
fn two_at_once_make_one_lab() {
    let Some(name) = Name::new("twice") else { return };
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| name.up(1));
        }
    });
    let lab = Lab::open(&name.0).unwrap();
    assert_eq!(lab.machines().len(), 1);
    assert_eq!(works(&lab, "m1", "uname -n"), "m1");
    name.down();
}
