//! One virtual router, step by step: what it sends, adds and removes, and when.

use std::net::IpAddr;
use std::time::Duration;

use quorate_lb::config::{AuthMode, ChecksumForm, VrrpInstance, VrrpVersion};
use quorate_lb::frames;
use quorate_lb::vrrp::{Advert, Discard, GROUP_V4, InstanceStatus, Keyring, Routers, SecretKey, goodbyes};
use quorate_lb::{Action, Bytes, Command, ConflictKind, Event, Input, VipChange, VrrpState};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn config(extra: &str) -> VrrpInstance {
    let base =
        "{name: api, vrid: 51, interface: eth0, source: 10.0.0.1, vips: [10.0.0.100], peers: [10.0.0.2, 10.0.0.3]";
    serde_saphyr::from_str(&format!("{base}, {extra}}}")).unwrap()
}

struct Bench {
    routers: Routers,
    now: Duration,
    seen: Vec<Action>,
}

impl Bench {
    fn new(config: VrrpInstance) -> Self {
        Self::with_keys(config, Keyring::new())
    }

    fn with_keys(config: VrrpInstance, keys: Keyring) -> Self {
        let mut b = Self {
            routers: Routers::new(&[config], keys, 1),
            now: Duration::ZERO,
            seen: Vec::new(),
        };
        b.input(Input::Start);
        b.input(link(true));
        b
    }

    fn input(&mut self, input: Input) -> Vec<Action> {
        self.routers.handle(self.now, &input);
        let new: Vec<_> = std::iter::from_fn(|| self.routers.poll_action()).collect();
        self.seen.extend(new.clone());
        new
    }

    /// Lets time pass, waking whenever asked for.
    fn run(&mut self, time: Duration) -> Vec<Action> {
        let (end, from) = (self.now + time, self.seen.len());
        while let Some(at) = self.routers.poll_timeout().filter(|at| *at <= end) {
            self.now = at.max(self.now);
            self.input(Input::Tick);
        }
        self.now = end;
        self.seen[from..].to_vec()
    }

    /// Sleeps through all timers.
    fn sleep(&mut self, time: Duration) {
        self.routers.poll_timeout();
        self.now += time;
    }

    fn hear(&mut self, source: &str, priority: u8) -> Vec<Action> {
        self.input(advert(source, priority))
    }

    fn status(&self) -> InstanceStatus {
        self.routers.status().remove(0)
    }

    fn state(&self) -> VrrpState {
        self.status().state
    }

    fn master(mut self) -> Self {
        self.run(ms(500));
        assert_eq!(self.state(), VrrpState::Master);
        self
    }
}

fn link(up: bool) -> Input {
    Input::Link {
        interface: "eth0".into(),
        up,
        mac: Some(MAC),
        missing: Vec::new(),
    }
}

fn message(priority: u8) -> Advert {
    Advert {
        version: VrrpVersion::V3,
        vrid: 51,
        priority,
        interval: ms(100),
        vips: vec!["10.0.0.100".parse().unwrap()],
    }
}

fn packet(source: &str, destination: &str, ttl: u8, payload: Vec<u8>) -> Input {
    Input::Vrrp {
        interface: "eth0".into(),
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        ttl,
        payload: Bytes(payload),
        authentic: None,
    }
}

fn advert(source: &str, priority: u8) -> Input {
    let (s, d): (IpAddr, IpAddr) = (source.parse().unwrap(), "10.0.0.1".parse().unwrap());
    packet(
        source,
        "10.0.0.1",
        255,
        message(priority).encode(s, d, ChecksumForm::Rfc),
    )
}

fn adds(actions: &[Action]) -> usize {
    actions.iter().filter(|a| matches!(a, Action::AddVip { .. })).count()
}

fn removes(actions: &[Action]) -> usize {
    actions.iter().filter(|a| matches!(a, Action::RemoveVip { .. })).count()
}

/// Priorities of advertisements sent.
fn sent(actions: &[Action]) -> Vec<u8> {
    let priority = |a: &Action| match a {
        Action::SendVrrp { payload, .. } => Some(payload[2]),
        _ => None,
    };
    actions.iter().filter_map(priority).collect()
}

fn announced(actions: &[Action]) -> usize {
    let is = |a: &&Action| matches!(a, Action::SendFrame { frame, .. } if frames::parse_claim(frame).is_some());
    actions.iter().filter(is).count()
}

fn conflicts(actions: &[Action]) -> Vec<ConflictKind> {
    let kind = |a: &Action| match a {
        Action::Report {
            event: Event::Conflict { kind, .. },
        } => Some(*kind),
        _ => None,
    };
    actions.iter().filter_map(kind).collect()
}

#[test]
fn leftover_vips_are_removed_first() {
    let mut routers = Routers::new(&[config("priority: 100")], Keyring::new(), 1);
    routers.handle(Duration::ZERO, &Input::Start);
    assert!(matches!(routers.poll_action(), Some(Action::RemoveVip { .. })));
}

#[test]
fn takes_over_after_three_intervals_and_the_skew() {
    for (priority, skew) in [(100, 60), (254, 0), (1, 99)] {
        let mut b = Bench::new(config(&format!("priority: {priority}")));
        b.run(ms(300 + skew));
        assert_eq!(b.state(), VrrpState::Backup);
        let actions = b.run(ms(2));
        assert_eq!(b.state(), VrrpState::Master);
        let position = |f: fn(&Action) -> bool| actions.iter().position(f).unwrap();
        let add = position(|a| matches!(a, Action::AddVip { .. }));
        let send = position(|a| matches!(a, Action::SendVrrp { .. }));
        let announce = position(|a| matches!(a, Action::SendFrame { .. }));
        assert!(add < send && send < announce, "address, advertisement, announcement");
        assert_eq!((sent(&actions).len(), announced(&actions)), (2, 10));
    }
}

#[test]
fn a_backup_stays_while_it_hears_a_higher_master_and_leaves_on_goodbye() {
    let mut b = Bench::new(config("priority: 200"));
    for _ in 0..50 {
        b.hear("10.0.0.2", 250);
        b.run(ms(100));
    }
    assert_eq!(b.state(), VrrpState::Backup);
    b.hear("10.0.0.2", 0);
    b.run(ms(21));
    assert_eq!(b.state(), VrrpState::Backup);
    b.run(ms(2));
    assert_eq!(b.state(), VrrpState::Master, "skew of priority 200 is 22 ms");
}

#[test]
fn preemption() {
    for (extra, expected_after) in [
        ("priority: 200", Some(400)),
        ("priority: 200, preempt: false", None),
        ("priority: 200, preemptDelay: 2s", Some(2300)),
        ("priority: 50", None),
        ("priority: 100", None),
    ] {
        let mut b = Bench::new(config(extra));
        let mut took = None;
        for n in 0..50u64 {
            b.hear("10.0.0.2", 100);
            b.run(ms(100));
            if took.is_none() && b.state() == VrrpState::Master {
                took = Some(n * 100 + 100);
            }
        }
        assert_eq!(took, expected_after, "{extra}");
    }
}

#[test]
fn version_3_backups_adopt_the_masters_interval() {
    let mut b = Bench::new(config("priority: 100"));
    let mut slow = message(200);
    slow.interval = ms(1000);
    let bytes = slow.encode(
        "10.0.0.2".parse().unwrap(),
        "10.0.0.1".parse().unwrap(),
        ChecksumForm::Rfc,
    );
    b.input(packet("10.0.0.2", "10.0.0.1", 255, bytes));
    b.run(ms(3600));
    assert_eq!(b.state(), VrrpState::Backup);
    b.run(ms(20));
    assert_eq!(b.state(), VrrpState::Master);
    assert_eq!(b.status().counters.interval_differs, 1);
}

#[test]
fn a_master_yields_to_higher_priority_and_to_a_higher_address() {
    for (source, priority, yields) in [
        ("10.0.0.2", 101, true),
        ("10.0.0.2", 100, true),
        ("10.0.0.2", 99, false),
        ("10.0.0.3", 1, false),
    ] {
        let mut b = Bench::new(config("priority: 100")).master();
        b.run(ms(30));
        let actions = b.hear(source, priority);
        assert_eq!(removes(&actions), usize::from(yields), "{source} {priority}");
        assert_eq!(conflicts(&actions), [ConflictKind::TwoMasters]);
        if yields {
            assert_eq!(b.state(), VrrpState::Backup);
            assert!(sent(&actions).is_empty());
        } else {
            assert_eq!(sent(&actions), [100, 100], "told at once");
            assert_eq!(announced(&actions), 2, "and announced");
            let resolved = b.run(ms(400));
            assert_eq!(
                announced(&resolved),
                10,
                "and announced in full once the other is silent"
            );
        }
    }
}

#[test]
fn a_tie_goes_to_the_higher_address_only() {
    let mut c = config("priority: 100");
    c.source = "10.0.0.9".parse().unwrap();
    let mut b = Bench::new(c).master();
    let (s, d): (IpAddr, IpAddr) = ("10.0.0.2".parse().unwrap(), "10.0.0.9".parse().unwrap());
    b.input(packet(
        "10.0.0.2",
        "10.0.0.9",
        255,
        message(100).encode(s, d, ChecksumForm::Rfc),
    ));
    assert_eq!(b.state(), VrrpState::Master);
}

#[test]
fn a_stop_hands_over_without_a_gap() {
    let mut b = Bench::new(config("priority: 100")).master();
    let actions = b.input(Input::Stop);
    assert_eq!(
        (sent(&actions), removes(&actions)),
        (vec![0, 0], 0),
        "says goodbye, keeps the VIP"
    );
    let actions = b.hear("10.0.0.3", 50);
    assert_eq!(removes(&actions), 1);
    assert!(b.routers.is_stopped());
    assert_eq!(b.routers.poll_timeout(), None);
}

#[test]
fn a_stop_of_the_last_one_ends_after_two_intervals() {
    let mut b = Bench::new(config("priority: 100")).master();
    b.input(Input::Stop);
    let actions = b.run(ms(199));
    assert_eq!((sent(&actions), removes(&actions)), (vec![0; 6], 0));
    assert_eq!(removes(&b.run(ms(2))), 1);
    assert!(b.routers.is_stopped());
}

#[test]
fn a_release_lets_others_keep_the_vip_for_a_while() {
    let mut b = Bench::new(config("priority: 200")).master();
    let command = Command::Release {
        instance: "api".into(),
        hold: ms(1000),
    };
    b.input(Input::Command { command });
    b.hear("10.0.0.2", 50);
    assert_eq!(b.state(), VrrpState::Backup);
    for _ in 0..9 {
        b.hear("10.0.0.2", 50);
        b.run(ms(100));
        assert_eq!(b.state(), VrrpState::Backup);
    }
    for _ in 0..6 {
        b.hear("10.0.0.2", 50);
        b.run(ms(100));
    }
    assert_eq!(b.state(), VrrpState::Master);
    let command = Command::Release {
        instance: "web".into(),
        hold: ms(1),
    };
    let refused = b.input(Input::Command { command });
    assert!(matches!(&refused[..], [Action::Report { event: Event::Refused { hint, .. } }] if hint == "one of: api"));
}

#[test]
fn tracking_gives_the_vip_up_at_once() {
    let mut b = Bench::new(config("priority: 100, track: {frontend: api}"));
    assert_eq!(b.state(), VrrpState::Fault, "no path is known yet");
    b.routers.set_path(b.now, "other", true);
    b.routers.set_path(b.now, "api", true);
    let mut b = b.master();
    b.routers.set_path(b.now, "api", false);
    let actions = b.input(Input::Tick);
    assert_eq!(
        (sent(&actions), removes(&actions), b.state()),
        (vec![0, 0], 1, VrrpState::Fault)
    );
    b.routers.set_path(b.now, "api", true);
    let mut b = b.master();
    let actions = b.input(link(false));
    assert_eq!(
        (sent(&actions), removes(&actions), b.state()),
        (vec![], 1, VrrpState::Fault)
    );
    b.run(ms(2000));
    assert_eq!(b.state(), VrrpState::Fault);
    b.input(link(true));
    b.master();
}

/// A router that cannot advertise and takes the VIP all the same is the second owner.
#[test]
fn a_machine_without_its_own_address_leaves_the_vip_to_others() {
    let mut b = Bench::new(config("priority: 254")).master();
    let own: IpAddr = "10.0.0.1".parse().unwrap();
    let told = |missing: Vec<IpAddr>| Input::Link {
        interface: "eth0".into(),
        up: true,
        mac: Some(MAC),
        missing,
    };
    let actions = b.input(told(vec![own]));
    assert_eq!((removes(&actions), b.state()), (1, VrrpState::Fault));
    let named = |a: &Action| matches!(a, Action::Report { event: Event::VrrpState { reason, .. } } if reason.contains("10.0.0.1 is no address"));
    assert!(actions.iter().any(named), "{actions:?}");
    b.run(ms(2000));
    assert_eq!(b.state(), VrrpState::Fault);
    b.input(told(vec!["10.0.0.8".parse().unwrap()]));
    b.master();
}

#[test]
fn a_late_backup_does_not_take_over_before_it_listened() {
    let mut b = Bench::new(config("priority: 100"));
    b.hear("10.0.0.2", 200);
    b.run(ms(340));
    b.sleep(ms(2000));
    let actions = b.input(Input::Tick);
    assert_eq!(b.state(), VrrpState::Backup);
    assert!(actions.iter().any(|a| matches!(
        a,
        Action::Report {
            event: Event::Late { .. }
        }
    )));
    b.hear("10.0.0.2", 200);
    b.run(ms(300));
    assert_eq!(b.state(), VrrpState::Backup);
    b.run(ms(70));
    assert_eq!(b.state(), VrrpState::Master, "the master is really gone");
}

#[test]
fn a_backup_stopped_between_two_inputs_of_one_wake_up_listens_first() {
    let mut b = Bench::new(config("priority: 100"));
    b.hear("10.0.0.2", 200);
    b.run(ms(300));
    // Both are handled without the core being asked for its next timer in between.
    b.hear("10.0.0.2", 200);
    b.now += ms(2000);
    b.input(link(true));
    assert_eq!(b.state(), VrrpState::Backup);
    b.run(ms(300));
    assert_eq!(b.state(), VrrpState::Backup);
    b.run(ms(70));
    assert_eq!(b.state(), VrrpState::Master, "the master is really gone");
}

#[test]
fn a_path_that_comes_late_is_no_lateness() {
    let mut b = Bench::new(config("priority: 100, track: {frontend: api}"));
    b.now += ms(1060);
    b.routers.set_path(b.now, "api", true);
    let seen = b.run(ms(330));
    assert_eq!(b.state(), VrrpState::Backup);
    b.run(ms(40));
    assert_eq!(b.state(), VrrpState::Master);
    assert!(!seen.iter().any(|a| matches!(
        a,
        Action::Report {
            event: Event::Late { .. }
        }
    )));
}

#[test]
fn a_backup_that_is_always_late_takes_over_in_the_end() {
    let mut b = Bench::new(config("priority: 100"));
    for _ in 0..40 {
        b.sleep(ms(150));
        b.input(Input::Tick);
    }
    assert_eq!(b.state(), VrrpState::Master);
}

#[test]
fn a_master_that_slept_gives_the_vip_up_before_anything_else() {
    for first in [Input::Tick, advert("10.0.0.2", 50), link(true), Input::Stop] {
        let mut b = Bench::new(config("priority: 100")).master();
        b.sleep(ms(500));
        let actions = b.input(first.clone());
        let first_deed = actions.iter().find(|a| !matches!(a, Action::Report { .. })).unwrap();
        assert!(matches!(first_deed, Action::RemoveVip { .. }), "{first:?}: {actions:?}");
        assert_ne!(b.state(), VrrpState::Master);
    }
    let mut b = Bench::new(config("priority: 100")).master();
    b.sleep(ms(250));
    assert_eq!(sent(&b.input(Input::Tick)), [100, 100], "others still wait: go on");
}

#[test]
fn gratuitous_arp_comes_again_and_is_refreshed() {
    let mut b = Bench::new(config("priority: 100, garp: {repeat: 3, delay: 1s, refresh: 10s}")).master();
    b.run(ms(300));
    assert_eq!(announced(&b.seen), 6);
    assert_eq!(announced(&b.run(ms(1000))), 6);
    assert_eq!(
        announced(&b.run(ms(30_000))),
        6,
        "a request and a reply each ten seconds"
    );
}

#[test]
fn a_foreign_owner_is_reported_once_and_answered() {
    let claim = |ip: &str, mac| Input::Frame {
        interface: "eth0".into(),
        frame: Bytes(frames::announcement(mac, ip.parse().unwrap()).remove(0)),
    };
    let mut b = Bench::new(config("priority: 100")).master();
    assert!(b.input(claim("10.0.0.100", MAC)).is_empty(), "our own");
    assert!(b.input(claim("10.0.0.7", OTHER)).is_empty(), "another address");
    let actions = b.input(claim("10.0.0.100", OTHER));
    assert_eq!(
        (conflicts(&actions), announced(&actions)),
        (vec![ConflictKind::ForeignOwner], 2)
    );
    let again = b.input(claim("10.0.0.100", OTHER));
    assert!(again.is_empty(), "no storm");
    assert_eq!(b.status().counters.conflicts[&ConflictKind::ForeignOwner], 2);

    let mut b = Bench::new(config("priority: 100"));
    assert!(
        b.seen.iter().any(|a| matches!(a, Action::SendFrame { .. })),
        "asks who has the VIP"
    );
    b.input(claim("10.0.0.100", OTHER));
    b.run(ms(500));
    assert_eq!(
        conflicts(&b.seen),
        [ConflictKind::ForeignOwner],
        "nobody advertises, yet someone answers"
    );
}

#[test]
fn an_ipv6_vip_is_asked_for_too() {
    let text = "{name: api, vrid: 51, interface: eth0, source: 'fd00::1', vips: ['fd00::100'], peers: ['fd00::2']}";
    let vip: IpAddr = "fd00::100".parse().unwrap();
    let mut b = Bench::new(serde_saphyr::from_str(text).unwrap());
    let asked = Bytes(frames::probe(MAC, vip));
    let asks = |a: &Action| matches!(a, Action::SendFrame { frame, .. } if *frame == asked);
    assert!(b.seen.iter().any(asks), "{:?}", b.seen);
    b.input(Input::Frame {
        interface: "eth0".into(),
        frame: Bytes(frames::announcement(OTHER, vip).remove(0)),
    });
    b.run(ms(500));
    assert_eq!(conflicts(&b.seen), [ConflictKind::ForeignOwner]);
}

#[test]
fn a_vip_that_cannot_be_added_is_left_to_others_and_tried_again() {
    let failed = |error: Option<&str>| Input::VipDone {
        instance: "api".into(),
        vip: "10.0.0.100/32".parse().unwrap(),
        change: VipChange::Add,
        error: error.map(String::from),
    };
    let mut b = Bench::new(config("priority: 100")).master();
    let actions = b.input(failed(Some("Operation not permitted")));
    assert_eq!((sent(&actions), b.state()), (vec![0, 0], VrrpState::Fault));
    b.run(ms(1400));
    assert_eq!(b.state(), VrrpState::Master, "after a second");
    b.input(failed(Some("again")));
    b.run(ms(1900));
    assert_eq!(b.state(), VrrpState::Fault, "two seconds now");
    b.run(ms(500));
    b.input(failed(None));
    assert_eq!(b.state(), VrrpState::Master);
    let lost = b.input(Input::VipLost {
        vip: "10.0.0.100/32".parse().unwrap(),
    });
    assert_eq!((adds(&lost), announced(&lost)), (1, 2));
}

#[test]
fn a_vip_that_cannot_be_removed_is_tried_again() {
    let mut b = Bench::new(config("priority: 100"));
    b.input(Input::VipDone {
        instance: "api".into(),
        vip: "10.0.0.100/32".parse().unwrap(),
        change: VipChange::Remove,
        error: Some("No buffer space available".into()),
    });
    for _ in 0..20 {
        b.hear("10.0.0.2", 200);
        b.seen.clear();
        let actions = b.run(ms(100));
        if removes(&actions) > 0 {
            return;
        }
    }
    panic!("the VIP stays");
}

#[test]
fn each_discard_has_its_counter() {
    let good = |form| message(200).encode("10.0.0.2".parse().unwrap(), "10.0.0.1".parse().unwrap(), form);
    let rfc = good(ChecksumForm::Rfc);
    let with = |at: usize, value: u8| {
        let mut p = rfc.clone();
        p[at] = value;
        p
    };
    let mut zero_interval = message(200);
    zero_interval.version = VrrpVersion::V2;
    zero_interval.interval = ms(5000);
    let v2 = zero_interval.encode(
        "10.0.0.2".parse().unwrap(),
        "10.0.0.1".parse().unwrap(),
        ChecksumForm::Rfc,
    );
    let cases = [
        (packet("10.0.0.2", "10.0.0.1", 255, rfc.clone()), None),
        (
            packet("10.0.0.2", "10.0.0.1", 255, good(ChecksumForm::Keepalived)),
            None,
        ),
        (
            packet("10.0.0.2", "10.0.0.1", 255, rfc[..11].to_vec()),
            Some(Discard::Length),
        ),
        (packet("10.0.0.2", "10.0.0.1", 254, rfc.clone()), Some(Discard::Ttl)),
        (packet("10.0.0.2", "10.0.0.1", 255, v2.clone()), Some(Discard::Version)),
        (
            packet("10.0.0.2", "10.0.0.1", 255, with(0, 0x41)),
            Some(Discard::Version),
        ),
        (packet("10.0.0.2", "10.0.0.1", 255, with(0, 0x32)), Some(Discard::Type)),
        (
            packet("10.0.0.2", "10.0.0.1", 255, with(2, 201)),
            Some(Discard::Checksum),
        ),
        (
            packet("10.0.0.2", &GROUP_V4.to_string(), 255, rfc.clone()),
            Some(Discard::Destination),
        ),
        (
            packet("10.0.0.1", "10.0.0.1", 255, rfc.clone()),
            Some(Discard::OwnSource),
        ),
        (
            packet("10.0.0.66", "10.0.0.1", 255, rfc.clone()),
            Some(Discard::UnknownPeer),
        ),
    ];
    for (input, expected) in cases {
        let mut b = Bench::new(config("priority: 100"));
        b.input(input);
        let counters = b.status().counters;
        assert_eq!(
            counters.discarded,
            expected.map(|d| (d, 1)).into_iter().collect(),
            "{expected:?}"
        );
        assert_eq!(b.status().master.is_some(), expected.is_none());
    }
    let mut b = Bench::new(config("priority: 100, version: 2, interval: 1s"));
    b.input(packet("10.0.0.2", "10.0.0.1", 255, v2.clone()));
    let mut password = v2;
    password[4] = 1;
    b.input(packet("10.0.0.2", "10.0.0.1", 255, password));
    let discarded = b.status().counters.discarded;
    assert_eq!(discarded, [(Discard::Interval, 1), (Discard::AuthType, 1)].into());
    b.input(packet("10.0.0.2", "10.0.0.1", 255, with(1, 52)));
    assert_eq!(b.routers.unknown_router_packets(), 1);
}

#[test]
fn strangers_and_other_vips_are_reported_at_most_once_in_ten_seconds() {
    let mut b = Bench::new(config("priority: 100"));
    for _ in 0..200 {
        b.hear("10.0.0.66", 250);
        b.run(ms(100));
    }
    assert_eq!(conflicts(&b.seen), [ConflictKind::ForeignRouter; 2]);
    assert_eq!(b.state(), VrrpState::Master, "a stranger does not keep us from the VIP");
    let mut more = config("priority: 100");
    more.vips.push("10.0.0.101".parse().unwrap());
    let mut b = Bench::new(more);
    b.hear("10.0.0.2", 250);
    assert_eq!(conflicts(&b.seen), [ConflictKind::OtherVips]);
    assert!(b.status().master.is_some(), "reported, not dropped");
}

#[test]
fn authenticated_routers_heed_only_their_own() {
    let keys = || Keyring::from([("api".to_string(), vec![SecretKey::new(1, &[0xa5; 32]).unwrap()])]);
    let mut c = config("priority: 100, auth: {mode: enforce, keys: [{id: 1, file: /k}]}");
    assert_eq!(c.auth.mode, AuthMode::Enforce);
    let mut a = Bench::with_keys(c.clone(), keys());
    a.hear("10.0.0.2", 250);
    assert_eq!(a.status().counters.discarded, [(Discard::Unsigned, 1)].into());
    assert_eq!(conflicts(&a.seen), [ConflictKind::Unauthenticated]);

    c.source = "10.0.0.2".parse().unwrap();
    c.peers = vec!["10.0.0.1".parse().unwrap()];
    c.priority = 200;
    let mut peer = Bench::with_keys(c, keys()).master();
    let sent = peer.run(ms(60));
    let Some(Action::SendVrrp { payload, .. }) = sent.iter().find(|a| matches!(a, Action::SendVrrp { .. })) else {
        panic!("nothing sent")
    };
    a.input(packet("10.0.0.2", "10.0.0.1", 255, payload.0.clone()));
    assert_eq!(a.status().master, Some(("10.0.0.2".parse().unwrap(), 200)));
    a.input(packet("10.0.0.2", "10.0.0.1", 255, payload.0.clone()));
    assert_eq!(a.status().counters.discarded[&Discard::Replay], 1);
}

/// For a process that died without a word its supervisor says goodbye; the next process is heard all the same.
#[test]
fn a_goodbye_for_the_dead_ends_the_wait() {
    let auth = "priority: 200, auth: {mode: enforce, keys: [{id: 7, file: /k}]}";
    let keys = Keyring::from([("api".into(), vec![SecretKey::new(7, &[0xa5; 32]).unwrap()])]);
    let holder = VrrpInstance {
        source: "10.0.0.2".parse().unwrap(),
        peers: vec!["10.0.0.1".parse().unwrap()],
        priority: 250,
        ..config(auth)
    };
    let advertises = |boot: u64| {
        let mut peer = Bench {
            routers: Routers::new(std::slice::from_ref(&holder), keys.clone(), boot),
            now: Duration::ZERO,
            seen: Vec::new(),
        };
        peer.input(Input::Start);
        peer.input(link(true));
        let payload = peer.master().seen.into_iter().find_map(|action| match action {
            Action::SendVrrp { payload, .. } => Some(payload.0),
            _ => None,
        });
        packet("10.0.0.2", "10.0.0.1", 255, payload.expect("an advertisement"))
    };
    let mut b = Bench::with_keys(config(auth), keys.clone());
    b.input(advertises(10));
    let goodbyes = |vip: &str| goodbyes(std::slice::from_ref(&holder), &keys, 11, &[vip.parse().unwrap()]);
    assert_eq!(goodbyes("10.0.0.99"), [], "it held none of ours");
    let goodbye = goodbyes("10.0.0.100");
    assert_eq!(sent(&goodbye), [0]);
    let Action::SendVrrp { payload, .. } = &goodbye[0] else {
        unreachable!("sent")
    };
    b.input(packet("10.0.0.2", "10.0.0.1", 255, payload.0.clone()));
    b.run(ms(30));
    assert_eq!(b.state(), VrrpState::Master, "after its skew time");
    b.input(advertises(12));
    assert_eq!(b.state(), VrrpState::Backup, "the restarted one is heard");
}

#[test]
fn a_reload_keeps_what_did_not_change() {
    let file = |vrrp: Vec<VrrpInstance>| {
        let mut c = quorate_lb::AgentConfig::new("m1");
        c.vrrp = vrrp;
        Input::Config { config: Box::new(c) }
    };
    let mut b = Bench::new(config("priority: 100")).master();
    let actions = b.input(file(vec![config("priority: 150, garp: {repeat: 1}")]));
    assert_eq!(
        (adds(&actions), removes(&actions), b.state()),
        (0, 0, VrrpState::Master)
    );
    assert_eq!(sent(&b.run(ms(60))), [150, 150]);

    let mut vips = config("priority: 150");
    vips.vips = vec!["10.0.0.101".parse().unwrap()];
    let actions = b.input(file(vec![vips.clone()]));
    assert_eq!(
        (adds(&actions), removes(&actions), b.state()),
        (1, 1, VrrpState::Master)
    );

    let mut second = vips.clone();
    (second.name, second.vrid) = ("etcd".into(), 52);
    second.vips = vec!["10.0.0.102".parse().unwrap()];
    b.input(file(vec![vips, second.clone()]));
    b.run(ms(500));
    assert!(
        b.routers.status().iter().all(|s| s.state == VrrpState::Master),
        "the new one knows the link"
    );

    let actions = b.input(file(vec![second]));
    assert_eq!((sent(&actions), removes(&actions)), (vec![0, 0], 1));
    assert_eq!(b.routers.status().len(), 1);
}

#[test]
fn multicast_goes_to_the_group() {
    let base = "{name: api, vrid: 51, interface: eth0, source: fd00::1, vips: ['fd00::100'], multicast: true}";
    let mut b = Bench::new(serde_saphyr::from_str(base).unwrap()).master();
    let sent = b.run(ms(60));
    assert!(sent.iter().any(|a| matches!(a, Action::SendVrrp { destination, .. }
        if *destination == "ff02::12".parse::<IpAddr>().unwrap())));
}
