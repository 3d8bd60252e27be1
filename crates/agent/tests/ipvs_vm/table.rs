//! The table itself: what `ipvs` writes against what `ipvsadm` reads, healing and removal, without the rest of the agent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quorate_agent::ipvs::{self, Ipvs, Report};
use quorate_lb::config::IpvsService;
use quorate_lb::{Availability, Reason};

use crate::load::{Held, StopOnDrop};
use crate::netns::{self, until};
use crate::setting::{
    Setting, VIRTUAL4, VIRTUAL6, answers, connect_within, expected, foreign_services, kernel_settings, saved,
};

/// Opens IPVS in the calling thread's namespace with both services, both servers up.
fn open(setting: &Setting) -> Ipvs {
    let mut ipvs = Ipvs::open().expect("IPVS");
    ipvs.configure(&[service("four", VIRTUAL4), service("six", VIRTUAL6)]);
    ipvs.set_backends("four", &setting.views(false));
    ipvs.set_backends("six", &setting.views(true));
    ipvs
}

fn service(name: &str, address: &str) -> IpvsService {
    serde_json::from_value(serde_json::json!({"name": name, "virtual": address, "backends": [], "scheduler": "wrr"}))
        .expect("service")
}

fn clean(report: Report) -> Vec<String> {
    assert_eq!(report.errors, Vec::<String>::new());
    report.changes
}

pub(crate) fn rules_are_ipvsadms() {
    ipvs::supported().expect("IPVS");
    let setting = Setting::new("rules");
    setting.node().enter(|| {
        let mut ipvs = open(&setting);
        let changes = clean(ipvs.reconcile());
        println!("first time: {changes:?}");
        assert_eq!(saved(), expected());
        assert_eq!(
            clean(ipvs.reconcile()),
            Vec::<String>::new(),
            "a second time changes nothing"
        );
        let settings = kernel_settings();
        for name in ["expire_nodest_conn", "conntrack"] {
            assert_eq!(settings[name], "1", "{name}");
        }
        assert!(netns::must("ip", &["address", "show", "dev", "quorate-ipvs"]).contains("10.99.0.1/32"));
        // Local clients, which need masquerading, of both families.
        assert_eq!(answers(VIRTUAL4, 10), [5, 5]);
        assert_eq!(answers(VIRTUAL6, 10), [5, 5]);
    });
    let pod = setting.pod();
    assert_eq!(pod.enter(|| answers(VIRTUAL4, 4)), [2, 2], "from a Pod");
    // Nobody on the link hears of the virtual address.
    let asked = pod.enter(|| {
        quorate_agent::arp::vip_in_use(
            "eth0",
            "10.99.0.1".parse().expect("address"),
            Duration::from_millis(500),
        )
    });
    assert_eq!(
        asked.expect("probe"),
        None,
        "the node answers ARP for the virtual address"
    );
}

/// Since Linux 5.9 the kernel forgets the connections of a server that is taken out (`expire_nodest_conn`). Whether its clients are
/// to be freed may be known later only.
pub(crate) fn clients_are_freed_though_the_kernel_forgot_them() {
    let setting = Setting::new("forgot");
    let mut ipvs = setting.node().enter(|| open(&setting));
    setting.node().enter(|| clean(ipvs.reconcile()));
    let held: Vec<Held> = (0..4).map(|_| Held::new(setting.node())).collect();
    let (theirs, others): (Vec<Held>, Vec<Held>) = held.into_iter().partition(|held| held.server == "m1");
    let mut views = setting.views(false);
    (views[0].availability, views[0].reason) = (Availability::Down, Reason::Silent);
    let freed = setting.node().enter(|| {
        ipvs.set_backends("four", &views);
        clean(ipvs.reconcile());
        std::thread::sleep(Duration::from_millis(200));
        ipvs.free_clients("four", views[0].address).expect("freeing")
    });
    assert_eq!(freed, theirs.len());
    assert!(until(Duration::from_secs(1), || theirs
        .iter()
        .all(|held| held.ended().is_some())));
    assert!(others.iter().all(Held::goes_on));
}

pub(crate) fn foreign_deletions_are_healed() {
    let setting = Setting::new("foreign");
    let mut ipvs = setting.node().enter(|| open(&setting));
    setting.node().enter(|| clean(ipvs.reconcile()));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ending = StopOnDrop(&stop);
        let (node, stop) = (setting.node(), &stop);
        scope.spawn(move || {
            node.enter(|| {
                while !stop.load(Ordering::Relaxed) {
                    clean(ipvs.reconcile());
                    std::thread::sleep(Duration::from_millis(500));
                }
            });
        });
        let deletions: [&[&str]; 5] = [
            &["ipvsadm", "-C"],
            &["ipvsadm", "-d", "-t", VIRTUAL4, "-r", "10.231.0.1:6443"],
            &["ip", "address", "del", "10.99.0.1/32", "dev", "quorate-ipvs"],
            &["ip", "link", "del", "quorate-ipvs"],
            &["nft", "flush", "ruleset"],
        ];
        for deletion in deletions {
            let begin = Instant::now();
            let healed = setting.node().enter(|| {
                netns::must(deletion[0], &deletion[1..]);
                until(Duration::from_secs(3), || {
                    saved() == expected() && connect_within(VIRTUAL4, Duration::from_millis(50)).is_ok()
                })
            });
            assert!(healed, "{deletion:?} was not healed");
            println!("healed {:?} after {deletion:?}", begin.elapsed());
            assert!(begin.elapsed() <= Duration::from_secs(1), "took longer than a second");
        }
        drop(ending);
    });
}

pub(crate) fn removal_leaves_what_is_not_ours() {
    let setting = Setting::new("removal");
    setting.node().enter(|| {
        foreign_services();
        let foreign = saved();
        let mut ipvs = open(&setting);
        clean(ipvs.reconcile());
        assert_eq!(saved().len(), foreign.len() + expected().len());
        drop(ipvs);

        // Another agent, with one service less: the orphan is recognised by its address.
        let mut next = Ipvs::open().expect("IPVS");
        next.configure(&[service("four", VIRTUAL4)]);
        let changes = clean(next.reconcile());
        assert!(saved().iter().all(|line| !line.contains(VIRTUAL6)), "{changes:?}");
        assert!(
            saved().contains(&format!("-a -t {VIRTUAL4} -r 10.231.0.1:6443 -m -w 100")),
            "the set of before goes on serving"
        );

        let settings = kernel_settings();
        clean(next.remove());
        assert_eq!(saved(), foreign);
        assert_eq!(kernel_settings(), settings, "others may need them");
        assert!(
            !netns::run("ip", &["link", "show", "quorate-ipvs"]).0,
            "the interface is left"
        );
        assert!(
            !netns::must("nft", &["list", "ruleset"]).contains("quorate"),
            "rules are left"
        );
    });
}
