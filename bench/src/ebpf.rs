//! Connect-time balancing by eBPF against connections without it, in a cgroup and with pins of this program's own.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use quorate_agent::bpf::{self, Balancer};

use crate::load::World;
use crate::measure::Plan;
use crate::report::{Goal, Results, Side};

/// On no interface.
const VIRTUAL: ([u8; 4], u16) = ([10, 99, 99, 99], 443);
const CONNECTS: u32 = 3_000;

/// Throughput through the virtual address and without it, and what a connect costs more.
pub(crate) fn ebpf(dir: &Path, plan: &Plan, results: &mut Results) -> anyhow::Result<()> {
    if let Err(reason) = bpf::supported() {
        results.note(format!("eBPF against direct connections: skipped: {reason}"));
        return Ok(());
    }
    let place = Place::new(dir)?;
    let (mut world, backends) = World::new(1)?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let one_shot = listener.local_addr()?;
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let through = SocketAddr::from(VIRTUAL);
    for _ in 0..plan.rounds {
        let balancer = place.attach()?;
        balancer.set(through, &[(backends[0], 100)])?;
        for streams in [1, 64] {
            for (side, address) in [(Side::Ours, through), (Side::Peer, backends[0])] {
                world.target(address);
                world.stream(streams, plan.time)?;
                let rate = world.seen.bytes as f64 / f64::from(1 << 30) / plan.time.as_secs_f64();
                let name = format!(
                    "eBPF: throughput, {streams} stream{}",
                    if streams > 1 { "s" } else { "" }
                );
                results.against("direct", &name, "GiB/s", side, rate, Goal::AtLeast(0.98));
                world.clear();
                world.turn(Duration::from_millis(50))?;
            }
        }
        balancer.set(through, &[(one_shot, 100)])?;
        let ours = connect_time(through)?;
        drop(balancer);
        place.detach()?;
        let direct = connect_time(one_shot)?;
        let name = "eBPF: processor time of a connect and close";
        results.against("direct", name, "µs", Side::Ours, ours, Goal::None);
        results.against("direct", name, "µs", Side::Peer, direct, Goal::None);
        let more = "eBPF: a connect costs more than a direct one by";
        results.against("direct", more, "µs", Side::Ours, ours - direct, Goal::Below(2.0));
    }
    Ok(())
}

/// Microseconds of this thread's processor time, so that other load does not count; the least of several tries.
fn connect_time(address: SocketAddr) -> anyhow::Result<f64> {
    let spent = || -> anyhow::Result<u64> {
        let text = fs::read_to_string("/proc/thread-self/schedstat")?;
        Ok(text.split(' ').next().unwrap_or_default().parse()?)
    };
    let mut least = f64::MAX;
    for _ in 0..5 {
        let start = spent()?;
        for _ in 0..CONNECTS / 5 {
            drop(TcpStream::connect(address)?);
        }
        least = least.min((spent()? - start) as f64 / 1e3 / f64::from(CONNECTS / 5));
    }
    Ok(least)
}

/// This process in a cgroup of its own, and a file system for pins; both gone with the value.
struct Place {
    cgroup: PathBuf,
    before: PathBuf,
    bpffs: PathBuf,
}

impl Place {
    fn new(dir: &Path) -> anyhow::Result<Self> {
        let root = bpf::cgroup_root().map_err(anyhow::Error::msg)?;
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let own = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap_or_default();
        let place = Self {
            cgroup: root.join(format!("quorate-bench-{}", std::process::id())),
            before: root.join(own),
            bpffs: dir.join("bpf"),
        };
        fs::create_dir_all(&place.cgroup).with_context(|| format!("{}", place.cgroup.display()))?;
        fs::create_dir_all(&place.bpffs)?;
        let mounted = Command::new("mount")
            .args(["-t", "bpf", "bpf"])
            .arg(&place.bpffs)
            .status()?;
        ensure!(mounted.success(), "mounting {}", place.bpffs.display());
        enter(&place.cgroup)?;
        Ok(place)
    }

    fn attach(&self) -> anyhow::Result<Balancer> {
        Ok(Balancer::attach(&self.cgroup, &self.bpffs.join("quorate"))?)
    }

    fn detach(&self) -> anyhow::Result<()> {
        bpf::remove(&self.bpffs.join("quorate"))?;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = self.detach();
        let _ = enter(&self.before);
        let _ = Command::new("umount").arg(&self.bpffs).status();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

fn enter(cgroup: &Path) -> anyhow::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
        .with_context(|| format!("moving into {}", cgroup.display()))
}
