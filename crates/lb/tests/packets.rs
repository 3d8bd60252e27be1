//! Mutated packets through every decoder: no panic, and nothing believed that was not said.
//!
//! `QUORATE_FUZZ_PACKETS=100000000 cargo test -p quorate-lb --release --test packets` for a long run.
#![allow(
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test reads its settings and tells its speed"
)]

use std::net::IpAddr;
use std::time::{Duration, Instant};

use quorate_lb::config::{ChecksumForm, VrrpInstance, VrrpVersion};
use quorate_lb::frames::{self, Claim};
use quorate_lb::vrrp::{Advert, Keyring, Routers, SecretKey};
use quorate_lb::{Action, Bytes, Input};

const DEFAULT_PACKETS: u64 = 100_000;

fn packets() -> u64 {
    std::env::var("QUORATE_FUZZ_PACKETS")
        .ok()
        .map_or(DEFAULT_PACKETS, |t| t.parse().expect("a number"))
}

/// A third plain IPv4, a third plain IPv6, a third signed.
#[test]
fn mutated_advertisements() {
    let total = packets();
    let started = Instant::now();
    let signer = config("10.0.0.2", "10.0.0.1", "enforce");
    let signed = first_signed(signer);
    std::thread::scope(|scope| {
        for (seed, own, peer, mode) in [
            (1, "10.0.0.1", "10.0.0.2", "none"),
            (2, "fd00::1", "fd00::2", "none"),
            (3, "10.0.0.1", "10.0.0.2", "enforce"),
        ] {
            let signed = &signed;
            scope.spawn(move || receive_mutated(seed, own, peer, mode, signed, total / 3));
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{total} packets in {seconds:.1} s: {:.0} packets/s",
        total as f64 / seconds
    );
}

fn receive_mutated(seed: u64, own: &str, peer: &str, mode: &str, signed: &[u8], rounds: u64) {
    let mut random = Random(seed);
    let mut routers = start(config(own, peer, mode));
    let (source, destination): (IpAddr, IpAddr) = (peer.parse().unwrap(), own.parse().unwrap());
    let originals: Vec<Vec<u8>> = match mode {
        "enforce" => vec![signed.to_vec()],
        _ => originals(source, destination),
    };
    let mut input = Input::Vrrp {
        interface: "eth0".into(),
        source,
        destination,
        ttl: 255,
        payload: Bytes::default(),
        authentic: None,
    };
    for round in 0..rounds {
        let original = &originals[random.below(originals.len())];
        let Input::Vrrp { payload, .. } = &mut input else {
            unreachable!()
        };
        random.mutate(original, &mut payload.0);
        let changed = payload.0 != *original;
        let watched = mode == "enforce" && changed && round % 64 == 0;
        let before = watched.then(|| dropped(&routers));
        routers.handle(Duration::from_millis(1), &input);
        drain(&mut routers);
        if let Some(before) = before {
            assert!(dropped(&routers) > before, "believed: {input:?}");
        }
    }
    let status = routers.status().remove(0);
    let discarded: u64 = status.counters.discarded.values().sum();
    assert!(
        discarded > 0 && status.counters.received > discarded,
        "some are sound, some not"
    );
    // What was not dropped had a valid checksum: the master heard is the peer or none.
    assert!(status.master.is_none_or(|(address, _)| address == source));
}

#[test]
fn mutated_frames() {
    let mut random = Random(9);
    let mac = [2, 0, 0, 0, 0, 7];
    let originals: Vec<Vec<u8>> = ["10.0.0.9", "fd00::9"]
        .iter()
        .flat_map(|ip| frames::announcement(mac, ip.parse().unwrap()))
        .collect();
    let mut frame = Vec::new();
    for _ in 0..packets() {
        let original = &originals[random.below(originals.len())];
        random.mutate(original, &mut frame);
        if let Some(Claim { address, mac }) = frames::parse_claim(&frame) {
            // Whoever is believed said it: address and MAC stand in the frame.
            let octets = match address {
                IpAddr::V4(a) => a.octets().to_vec(),
                IpAddr::V6(a) => a.octets().to_vec(),
            };
            assert!(frame.windows(octets.len()).any(|w| w == octets));
            assert!(frame.windows(6).any(|w| w == mac));
        }
    }
}

/// Any advertisement we can send is heard by a peer as it was meant.
#[test]
fn every_advertisement_is_understood() {
    let mut random = Random(5);
    for _ in 0..2000 {
        let v6 = random.below(2) == 0;
        let (own, peer) = if v6 {
            ("fd00::1", "fd00::2")
        } else {
            ("10.0.0.1", "10.0.0.2")
        };
        let mut c = config(own, peer, "none");
        c.version = if !v6 && random.below(2) == 0 {
            VrrpVersion::V2
        } else {
            VrrpVersion::V3
        };
        let ms = match c.version {
            VrrpVersion::V2 => 1000 * (1 + random.below(255) as u64),
            VrrpVersion::V3 => 10 * (1 + random.below(4095) as u64),
        };
        c.interval = Duration::from_millis(ms).into();
        let priority = 1 + random.below(255) as u8;
        let advert = Advert {
            version: c.version,
            vrid: 51,
            priority,
            interval: c.interval.get(),
            vips: (0..random.below(20))
                .map(|_| if v6 { "fd00::9" } else { "10.0.0.9" }.parse().unwrap())
                .collect(),
        };
        let (source, destination): (IpAddr, IpAddr) = (peer.parse().unwrap(), own.parse().unwrap());
        let form = if random.below(2) == 0 {
            ChecksumForm::Rfc
        } else {
            ChecksumForm::Keepalived
        };
        let mut routers = start(c);
        routers.handle(
            Duration::from_millis(1),
            &Input::Vrrp {
                interface: "eth0".into(),
                source,
                destination,
                ttl: 255,
                payload: Bytes(advert.encode(source, destination, form)),
                authentic: None,
            },
        );
        let status = routers.status().remove(0);
        assert_eq!(status.counters.discarded.len(), 0, "{advert:?}");
        let preempts = priority < 100;
        assert_eq!(status.master, (!preempts).then_some((source, priority)), "{advert:?}");
    }
}

fn config(own: &str, peer: &str, mode: &str) -> VrrpInstance {
    let vip = if own.contains(':') { "fd00::9" } else { "10.0.0.9" };
    let keys = if mode == "none" {
        ""
    } else {
        ", keys: [{id: 1, file: /k}]"
    };
    serde_saphyr::from_str(&format!(
        "{{name: api, vrid: 51, interface: eth0, source: '{own}', vips: ['{vip}'], peers: ['{peer}'], \
         auth: {{mode: {mode}{keys}}}}}"
    ))
    .unwrap()
}

fn start(config: VrrpInstance) -> Routers {
    let key = SecretKey::new(1, &[0xa5; 32]).unwrap();
    let mut routers = Routers::new(&[config], Keyring::from([("api".to_string(), vec![key])]), 1);
    routers.handle(Duration::ZERO, &Input::Start);
    let link = Input::Link {
        interface: "eth0".into(),
        up: true,
        mac: None,
        missing: Vec::new(),
    };
    routers.handle(Duration::ZERO, &link);
    drain(&mut routers);
    routers
}

fn drain(routers: &mut Routers) {
    while routers.poll_action().is_some() {}
}

fn dropped(routers: &Routers) -> u64 {
    let discarded: u64 = routers.status()[0].counters.discarded.values().sum();
    discarded + routers.unknown_router_packets()
}

fn first_signed(config: VrrpInstance) -> Vec<u8> {
    let mut routers = start(config);
    routers.handle(Duration::from_secs(5), &Input::Tick);
    for n in 0..100 {
        while let Some(action) = routers.poll_action() {
            if let Action::SendVrrp { payload, .. } = action {
                return payload.0;
            }
        }
        let at = routers.poll_timeout().unwrap_or(Duration::from_secs(5 + n));
        routers.handle(at, &Input::Tick);
    }
    panic!("nothing sent")
}

fn originals(source: IpAddr, destination: IpAddr) -> Vec<Vec<u8>> {
    let vip: IpAddr = if source.is_ipv4() { "10.0.0.9" } else { "fd00::9" }.parse().unwrap();
    let advert = |version, count| Advert {
        version,
        vrid: 51,
        priority: 100,
        interval: Duration::from_secs(1),
        vips: vec![vip; count],
    };
    let mut all = Vec::new();
    for count in [0, 1, 2, 20, 255] {
        for form in [ChecksumForm::Rfc, ChecksumForm::Keepalived] {
            all.push(advert(VrrpVersion::V3, count).encode(source, destination, form));
        }
        if source.is_ipv4() {
            all.push(advert(VrrpVersion::V2, count).encode(source, destination, ChecksumForm::Rfc));
        }
    }
    all
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    /// Flips bits, sets octets to telling values, cuts, pads.
    fn mutate(&mut self, original: &[u8], into: &mut Vec<u8>) {
        into.clear();
        into.extend_from_slice(original);
        for _ in 0..1 + self.below(4) {
            let at = self.below(into.len());
            match self.below(8) {
                0..=3 if !into.is_empty() => into[at] ^= 1 << self.below(8),
                4 if !into.is_empty() => into[at] = [0, 1, 0x7f, 0x80, 0xfe, 0xff][self.below(6)],
                5 => into.truncate(at),
                6 => into.extend((0..self.below(70)).map(|n| n as u8)),
                // The header decides most.
                _ => {
                    if let Some(octet) = into.get_mut(self.0 as usize % 8) {
                        *octet = (self.0 >> 32) as u8;
                    }
                }
            }
        }
    }
}
