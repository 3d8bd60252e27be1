//! Choosing a backend for one connection.
//!
//! A [`Snapshot`] is built from each [`Action::Backends`](crate::Action::Backends) and shared by all workers
//! (`Arc<Snapshot>`); the counters in it survive from one snapshot to the next. A pick allocates
//! nothing, takes no lock and reserves its place at the backend, so `maxConnections` holds over all workers.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::config::{Algorithm, MAX_BACKENDS};
use crate::io::{Availability, BackendView};

/// A backend set at one moment.
#[derive(Debug)]
pub struct Snapshot {
    algorithm: Algorithm,
    members: Vec<Member>,
    tiers: [Tier; TIERS],
}

/// One backend of a snapshot.
#[derive(Debug)]
pub struct Member {
    pub view: BackendView,
    pub load: Arc<Load>,
    hash: u64,
}

/// Counters of one backend, shared by all workers and snapshots.
#[derive(Debug, Default)]
pub struct Load {
    active: AtomicU32,
    total: AtomicU64,
}

impl Load {
    /// Connections now, dials under way included.
    pub fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    /// Connections and dials ever.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}

/// A place at a backend, given back on drop.
#[derive(Debug)]
pub struct Reservation(Arc<Load>);

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Backends already tried for this connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Excluded([u64; MAX_BACKENDS / 64]);

impl Excluded {
    pub fn add(&mut self, index: usize) {
        if index < MAX_BACKENDS {
            self.0[index / 64] |= 1 << (index % 64);
        }
    }

    pub fn contains(&self, index: usize) -> bool {
        index >= MAX_BACKENDS || self.0[index / 64] & (1 << (index % 64)) != 0
    }
}

/// What to do with a connection.
#[derive(Debug)]
pub enum Pick {
    /// Dial `snapshot.members()[index]`; keep the reservation for as long as the connection lives.
    Backend { index: usize, reservation: Reservation },
    /// Every usable backend is at `maxConnections`: queue.
    Full,
    /// No backend is usable, or all were tried: reset the client.
    None,
}

impl Snapshot {
    /// `previous` hands on counters of backends with the same name and address.
    pub fn new(algorithm: Algorithm, backends: &[BackendView], previous: Option<&Self>) -> Self {
        let members: Vec<Member> = backends
            .iter()
            .take(MAX_BACKENDS)
            .map(|view| Member {
                load: previous
                    .and_then(|p| p.member(&view.name, view.address))
                    .map_or_else(Arc::default, |m| Arc::clone(&m.load)),
                hash: fnv(view.name.as_bytes()),
                view: view.clone(),
            })
            .collect();
        let tiers = std::array::from_fn(|level| {
            let cursor = previous.map_or(0, |p| p.tiers[level].cursor.load(Ordering::Relaxed));
            Tier::new(&members, level, cursor)
        });
        Self {
            algorithm,
            members,
            tiers,
        }
    }

    pub fn members(&self) -> &[Member] {
        &self.members
    }

    pub fn member(&self, name: &str, address: SocketAddr) -> Option<&Member> {
        self.members
            .iter()
            .find(|m| m.view.name == name && m.view.address == address)
    }

    /// Whether a connection accepted now could be passed on at all.
    pub fn is_usable(&self) -> bool {
        self.tiers.iter().any(|t| !t.indices.is_empty())
    }

    /// Chooses a backend for a client. `entropy` is a fresh random number.
    ///
    /// Backups are tried when nothing else is up or everything else was tried; backends of last resort
    /// (alive, not ready) after those.
    pub fn pick(&self, client: IpAddr, excluded: &Excluded, entropy: u64) -> Pick {
        for tier in &self.tiers {
            let mut all_full = false;
            // A candidate can be taken by another worker between look and reservation: then look again.
            while let Some(index) = self.choose(tier, client, excluded, entropy, &mut all_full) {
                if let Some(reservation) = self.members[index].reserve() {
                    return Pick::Backend { index, reservation };
                }
            }
            if all_full {
                return Pick::Full;
            }
        }
        Pick::None
    }

    fn choose(
        &self,
        tier: &Tier,
        client: IpAddr,
        excluded: &Excluded,
        entropy: u64,
        all_full: &mut bool,
    ) -> Option<usize> {
        if tier.indices.is_empty() {
            return None;
        }
        *all_full = false;
        let free = |i: usize| !excluded.contains(i) && !self.members[i].is_full();
        let chosen = match self.algorithm {
            Algorithm::LeastConnections => self.less_loaded_of_two(tier, entropy, free),
            Algorithm::RoundRobin => tier.next(free),
            Algorithm::Source => self.by_source(tier, client, free),
        };
        if chosen.is_none() {
            *all_full = tier.indices.iter().any(|&i| !excluded.contains(usize::from(i)));
        }
        chosen
    }

    fn less_loaded_of_two(&self, tier: &Tier, entropy: u64, free: impl Fn(usize) -> bool) -> Option<usize> {
        let n = tier.indices.len() as u64;
        let first = (entropy & 0xffff_ffff) % n;
        let second = if n > 1 {
            (first + 1 + (entropy >> 32) % (n - 1)) % n
        } else {
            first
        };
        let at = |k: u64| usize::from(tier.indices[k as usize]);
        let (a, b) = (at(first), at(second));
        match (free(a), free(b)) {
            (true, true) if self.members[b].cost() < self.members[a].cost() => Some(b),
            (true, _) => Some(a),
            (false, true) => Some(b),
            (false, false) => {
                let all = tier.indices.iter().map(|&i| usize::from(i));
                all.filter(|&i| free(i)).min_by_key(|&i| self.members[i].cost())
            }
        }
    }

    fn by_source(&self, tier: &Tier, client: IpAddr, free: impl Fn(usize) -> bool) -> Option<usize> {
        let client = match client {
            IpAddr::V4(a) => fnv(&a.octets()),
            IpAddr::V6(a) => fnv(&a.octets()),
        };
        let all = tier.indices.iter().map(|&i| usize::from(i)).filter(|&i| free(i));
        all.max_by(|&a, &b| {
            let (a, b) = (&self.members[a], &self.members[b]);
            a.affinity(client).total_cmp(&b.affinity(client))
        })
    }
}

impl Member {
    fn is_full(&self) -> bool {
        self.view.max_connections != 0 && self.load.active() >= self.view.max_connections
    }

    fn reserve(&self) -> Option<Reservation> {
        let before = self.load.active.fetch_add(1, Ordering::Relaxed);
        if self.view.max_connections != 0 && before >= self.view.max_connections {
            self.load.active.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        self.load.total.fetch_add(1, Ordering::Relaxed);
        Some(Reservation(Arc::clone(&self.load)))
    }

    /// Load relative to weight. A local backend looks an eighth less loaded: saves a hop without
    /// drawing all traffic to one machine.
    fn cost(&self) -> u64 {
        let cost = ((u64::from(self.load.active()) + 1) << 20) / u64::from(self.view.weight.max(1));
        if self.view.local { cost - cost / 8 } else { cost }
    }

    /// Weighted rendezvous score: -weight / ln(u), u uniform in (0, 1) from (client, backend).
    fn affinity(&self, client: u64) -> f64 {
        let u = ((mix(client ^ self.hash) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        -f64::from(self.view.weight) / u.ln()
    }
}

const TIERS: usize = 3;

/// Backends of equal standing: 0 up, 1 backups up, 2 last resort.
#[derive(Debug)]
struct Tier {
    indices: Vec<u16>,
    /// Smooth weighted round robin, worked out beforehand for one full turn.
    schedule: Vec<u16>,
    cursor: AtomicU64,
}

impl Tier {
    fn new(members: &[Member], level: usize, cursor: u64) -> Self {
        let belongs = |v: &BackendView| {
            let own_level = match v.availability {
                Availability::Up if !v.backup => 0,
                Availability::Up => 1,
                Availability::LastResort => 2,
                Availability::Down => return false,
            };
            own_level == level && v.weight > 0
        };
        let indices: Vec<u16> = (0..members.len())
            .filter(|&i| belongs(&members[i].view))
            .map(|i| i as u16)
            .collect();
        let weights: Vec<u64> = indices
            .iter()
            .map(|&i| u64::from(members[usize::from(i)].view.weight))
            .collect();
        let schedule = smooth_turn(&weights).into_iter().map(|k| indices[k]).collect();
        Self {
            indices,
            schedule,
            cursor: AtomicU64::new(cursor),
        }
    }

    fn next(&self, free: impl Fn(usize) -> bool) -> Option<usize> {
        let n = self.schedule.len();
        let start = self.cursor.fetch_add(1, Ordering::Relaxed);
        (0..n)
            .map(|step| usize::from(self.schedule[(start as usize).wrapping_add(step) % n]))
            .find(|&i| free(i))
    }
}

/// One turn of smooth weighted round robin (nginx's): positions into `weights`, evenly interleaved.
fn smooth_turn(weights: &[u64]) -> Vec<usize> {
    // Longer turns would be more exact than anyone can see.
    const LONGEST: u64 = 1024;
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let sum: u64 = weights.iter().map(|w| w / divisor).sum();
    let longest = LONGEST.max(weights.len() as u64);
    let scaled: Vec<i64> = weights
        .iter()
        .map(|w| w / divisor)
        .map(|w| if sum > longest { (w * longest / sum).max(1) } else { w } as i64)
        .collect();
    let total: i64 = scaled.iter().sum();
    let mut current = vec![0i64; scaled.len()];
    let mut turn = Vec::with_capacity(total as usize);
    for _ in 0..total {
        let mut best = 0;
        for k in 0..scaled.len() {
            current[k] += scaled[k];
            if current[k] > current[best] {
                best = k;
            }
        }
        current[best] -= total;
        turn.push(best);
    }
    turn
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn fnv(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3)
    }))
}

/// Finaliser of splitmix64.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Reason;

    fn view(n: u8, weight: u16) -> BackendView {
        BackendView {
            name: format!("m{n}"),
            address: SocketAddr::from(([10, 0, 0, n], 6443)),
            weight,
            max_connections: 0,
            backup: false,
            local: false,
            availability: Availability::Up,
            reason: Reason::Ready,
        }
    }

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    struct Picker {
        snapshot: Snapshot,
        seed: u64,
        held: Vec<Reservation>,
    }

    impl Picker {
        fn new(algorithm: Algorithm, views: &[BackendView]) -> Self {
            Self {
                snapshot: Snapshot::new(algorithm, views, None),
                seed: 1,
                held: Vec::new(),
            }
        }

        fn pick(&mut self, client: IpAddr, excluded: &Excluded) -> Option<usize> {
            self.seed += 1;
            match self
                .snapshot
                .pick(client, excluded, mix(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            {
                Pick::Backend { index, reservation } => {
                    self.held.push(reservation);
                    Some(index)
                }
                Pick::Full | Pick::None => None,
            }
        }

        fn shares(&mut self, picks: usize) -> Vec<usize> {
            let mut counts = vec![0; self.snapshot.members.len()];
            for _ in 0..picks {
                counts[self.pick(CLIENT, &Excluded::default()).unwrap()] += 1;
            }
            counts
        }
    }

    #[test]
    fn least_connections_follows_weights() {
        let mut p = Picker::new(Algorithm::LeastConnections, &[view(1, 100), view(2, 100), view(3, 50)]);
        let shares = p.shares(1000);
        for (got, wanted) in shares.iter().zip([400, 400, 200]) {
            assert!(got.abs_diff(wanted) < 40, "{shares:?}");
        }
    }

    #[test]
    fn a_local_backend_gets_a_little_more() {
        let mut views = [view(1, 100), view(2, 100)];
        views[1].local = true;
        let shares = Picker::new(Algorithm::LeastConnections, &views).shares(1000);
        assert!(shares[1] > 510 && shares[1] < 580, "{shares:?}");
    }

    #[test]
    fn round_robin_is_exact_and_interleaved() {
        let mut p = Picker::new(Algorithm::RoundRobin, &[view(1, 50), view(2, 10), view(3, 10)]);
        let order: Vec<_> = (0..7).map(|_| p.pick(CLIENT, &Excluded::default()).unwrap()).collect();
        assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
    }

    #[test]
    fn source_keeps_its_backend_when_another_leaves() {
        let views: Vec<_> = (1..=5).map(|n| view(n, 100)).collect();
        let mut before = Picker::new(Algorithm::Source, &views);
        let mut fewer = views.clone();
        fewer[2].availability = Availability::Down;
        let mut after = Picker::new(Algorithm::Source, &fewer);
        let mut counts = [0; 5];
        for n in 0..2000u32 {
            let client = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            let (a, b) = (
                before.pick(client, &Excluded::default()),
                after.pick(client, &Excluded::default()),
            );
            counts[a.unwrap()] += 1;
            assert!(a == b || a == Some(2), "{client} moved from {a:?} to {b:?}");
        }
        assert!(counts.iter().all(|c| (300..500).contains(c)), "{counts:?}");
    }

    #[test]
    fn every_algorithm_honours_exclusion_and_tiers() {
        for algorithm in [Algorithm::LeastConnections, Algorithm::RoundRobin, Algorithm::Source] {
            let mut views = [view(1, 100), view(2, 100), view(3, 100), view(4, 100), view(5, 0)];
            views[1].backup = true;
            views[2].availability = Availability::LastResort;
            views[3].availability = Availability::Down;
            let mut p = Picker::new(algorithm, &views);
            let mut excluded = Excluded::default();
            for wanted in [Some(0), Some(1), Some(2), None] {
                let got = p.pick(CLIENT, &excluded);
                assert_eq!(got, wanted, "{algorithm:?}");
                got.into_iter().for_each(|i| excluded.add(i));
            }
        }
    }

    #[test]
    fn full_backends_queue_and_places_come_back() {
        let mut views = [view(1, 100), view(2, 100)];
        views[0].max_connections = 3;
        views[1].max_connections = 2;
        for algorithm in [Algorithm::LeastConnections, Algorithm::RoundRobin, Algorithm::Source] {
            let mut p = Picker::new(algorithm, &views);
            assert_eq!(p.shares(5), [3, 2]);
            assert!(matches!(p.snapshot.pick(CLIENT, &Excluded::default(), 7), Pick::Full));
            p.held.pop();
            assert!(p.pick(CLIENT, &Excluded::default()).is_some());
        }
    }

    #[test]
    fn counters_survive_a_new_set() {
        let mut p = Picker::new(Algorithm::LeastConnections, &[view(1, 100), view(2, 100)]);
        p.shares(10);
        let next = Snapshot::new(Algorithm::RoundRobin, &[view(2, 100), view(3, 100)], Some(&p.snapshot));
        assert_eq!(next.members[0].load.active(), p.snapshot.members[1].load.active());
        assert_eq!(next.members[1].load.active(), 0);
        p.held.clear();
        assert_eq!((next.members[0].load.active(), next.members[0].load.total()), (0, 5));
        assert!(!Snapshot::new(Algorithm::Source, &[], None).is_usable());
    }
}
