//! Authentication: an HMAC-SHA-256 trailer behind the advertisement.
//!
//! ```text
//! "QRT1" | key id (1) | 0 0 0 | boot id (8) | counter (8) | HMAC-SHA-256 (32)      56 octets
//! ```
//! The HMAC covers a fixed label, the sender's address, the advertisement and the trailer before it. A
//! receiver remembers the highest (boot id, counter) of each sender; what is not higher is a replay. The
//! boot id must therefore grow with every start of a machine's agent ([`next_boot`]). A receiver that restarts has forgotten: until the sender speaks
//! again, old packets of it are believed. The trailer lies outside of the VRRP checksum.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::packet::Discard;
use crate::config::AuthMode;

const MAGIC: [u8; 4] = *b"QRT1";
const LABEL: &[u8] = b"quorate vrrp advertisement";
const SIGNED: usize = 24;
const TAG: usize = 32;
/// Octets of a trailer.
pub const TRAILER: usize = SIGNED + TAG;
const LEAST_KEY: usize = 16;

/// A shared secret; never printed.
#[derive(Clone)]
pub struct SecretKey {
    id: u8,
    /// None: it is not known here.
    mac: Option<Hmac<Sha256>>,
}

/// A secret too short to be one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("VRRP key {id} has {length} octets; at least {LEAST_KEY} are needed (e.g. from `openssl rand -hex 32`)")]
pub struct ShortKey {
    pub id: u8,
    pub length: usize,
}

/// The boot id of a start at `now` (Unix time in milliseconds) after one with `last`. It grows even where the machine's
/// clock was set back: or peers would take every advertisement for a replay, and hold the VIP as well.
pub fn next_boot(last: Option<u64>, now: u64) -> u64 {
    last.map_or(now, |last| now.max(last.saturating_add(1)))
}

impl SecretKey {
    /// `secret` as read from the key file, without surrounding white space.
    pub fn new(id: u8, secret: &[u8]) -> Result<Self, ShortKey> {
        let secret = secret.trim_ascii();
        let short = ShortKey {
            id,
            length: secret.len(),
        };
        if secret.len() < LEAST_KEY {
            return Err(short);
        }
        // HMAC takes keys of any length.
        let mac = Hmac::new_from_slice(secret).map_err(|_| short)?;
        Ok(Self { id, mac: Some(mac) })
    }

    /// Stands for a key in a replay: its signatures are zeros, and of what it is to verify the recording must tell.
    pub fn unknown(id: u8) -> Self {
        Self { id, mac: None }
    }

    fn sign(&self, source: IpAddr, body: &[u8], trailer: &[u8]) -> [u8; TAG] {
        let mac = self.over(source, body, trailer);
        mac.map_or([0; TAG], |mac| mac.finalize().into_bytes().into())
    }

    fn signed(&self, source: IpAddr, body: &[u8], trailer: &[u8]) -> bool {
        let mac = self.over(source, body, &trailer[..SIGNED]);
        mac.is_some_and(|mac| mac.verify_slice(&trailer[SIGNED..]).is_ok())
    }

    fn over(&self, source: IpAddr, body: &[u8], trailer: &[u8]) -> Option<Hmac<Sha256>> {
        let address = match source {
            IpAddr::V4(a) => a.to_ipv6_mapped(),
            IpAddr::V6(a) => a,
        };
        let mut mac = self.mac.clone()?;
        mac.update(LABEL);
        mac.update(&address.octets());
        mac.update(body);
        mac.update(trailer);
        Some(mac)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey {{ id: {} }}", self.id)
    }
}

/// Signs what one instance sends and checks what it receives.
#[derive(Clone, Debug)]
pub(super) struct Authenticator {
    mode: AuthMode,
    keys: Vec<SecretKey>,
    boot: u64,
    counter: u64,
    newest: BTreeMap<IpAddr, (u64, u64)>,
}

impl Authenticator {
    pub(super) fn new(mode: AuthMode, keys: Vec<SecretKey>, boot: u64) -> Self {
        Self {
            mode,
            keys,
            boot,
            counter: 0,
            newest: BTreeMap::new(),
        }
    }

    /// New mode and keys; what was seen stays seen.
    pub(super) fn reconfigure(&mut self, mode: AuthMode, keys: Vec<SecretKey>) {
        self.mode = mode;
        self.keys = keys;
    }

    /// How many senders are remembered.
    pub(super) fn senders(&self) -> usize {
        self.newest.len()
    }

    /// Appends a trailer if this mode signs.
    pub(super) fn sign(&mut self, source: IpAddr, packet: &mut Vec<u8>) {
        let signs = matches!(self.mode, AuthMode::Enforce | AuthMode::Permissive);
        let Some(key) = self.keys.first().filter(|_| signs) else {
            return;
        };
        self.counter += 1;
        let body = packet.len();
        packet.extend(MAGIC);
        packet.extend([key.id, 0, 0, 0]);
        packet.extend(self.boot.to_be_bytes());
        packet.extend(self.counter.to_be_bytes());
        let tag = key.sign(source, &packet[..body], &packet[body..]);
        packet.extend(tag);
    }

    /// Whether `trailer` is of the key it names; None where nothing depends on it.
    pub(super) fn judge(&self, source: IpAddr, body: &[u8], trailer: &[u8]) -> Option<bool> {
        let looks = self.mode != AuthMode::None && is_signed(trailer);
        let key = self.keys.iter().find(|k| looks && k.id == trailer[4])?;
        Some(key.signed(source, body, trailer))
    }

    /// `trailer` is what follows the advertisement `body`. Only senders that pass `is_peer` are remembered,
    /// so that memory is bounded. `authentic`: what [`Self::judge`] would say, where that is known.
    pub(super) fn verify(
        &mut self,
        source: IpAddr,
        body: &[u8],
        trailer: &[u8],
        is_peer: bool,
        authentic: Option<bool>,
    ) -> Result<(), Discard> {
        if self.mode == AuthMode::None {
            return Ok(());
        }
        if !is_signed(trailer) {
            return match self.mode {
                AuthMode::Enforce => Err(Discard::Unsigned),
                _ => Ok(()),
            };
        }
        let key = self
            .keys
            .iter()
            .find(|k| k.id == trailer[4])
            .ok_or(Discard::UnknownKey)?;
        if !authentic.unwrap_or_else(|| key.signed(source, body, trailer)) {
            return Err(Discard::Signature);
        }
        let number = |at: usize| {
            trailer[at..at + 8]
                .iter()
                .fold(0u64, |n, byte| n << 8 | u64::from(*byte))
        };
        let stamp = (number(8), number(16));
        if self.newest.get(&source).is_some_and(|newest| stamp <= *newest) {
            return Err(Discard::Replay);
        }
        if is_peer {
            self.newest.insert(source, stamp);
        }
        Ok(())
    }
}

fn is_signed(trailer: &[u8]) -> bool {
    trailer.len() == TRAILER && trailer[..4] == MAGIC
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));
    const BODY: &[u8] = b"advertisement";

    fn key(id: u8) -> SecretKey {
        SecretKey::new(id, &[id | 0x80; 32]).unwrap()
    }

    fn auth(mode: AuthMode, ids: &[u8], boot: u64) -> Authenticator {
        Authenticator::new(mode, ids.iter().map(|id| key(*id)).collect(), boot)
    }

    fn signed(a: &mut Authenticator) -> Vec<u8> {
        let mut packet = BODY.to_vec();
        a.sign(A, &mut packet);
        packet.split_off(BODY.len())
    }

    #[test]
    fn modes() {
        use AuthMode::{Enforce, None, Permissive, ReceiveOnly};
        let good = signed(&mut auth(Enforce, &[1], 1));
        let foreign = signed(&mut auth(Enforce, &[9], 1));
        for (mode, sends, unsigned, foreign_key) in [
            (Enforce, true, Err(Discard::Unsigned), Err(Discard::UnknownKey)),
            (Permissive, true, Ok(()), Err(Discard::UnknownKey)),
            (ReceiveOnly, false, Ok(()), Err(Discard::UnknownKey)),
            (None, false, Ok(()), Ok(())),
        ] {
            let mut a = auth(mode, &[1], 1);
            assert_eq!(!signed(&mut a).is_empty(), sends, "{mode:?}");
            assert_eq!(a.verify(A, BODY, &good, true, Option::None), Ok(()), "{mode:?}");
            assert_eq!(a.verify(A, BODY, &[], true, Option::None), unsigned, "{mode:?}");
            assert_eq!(a.verify(A, BODY, &foreign, true, Option::None), foreign_key, "{mode:?}");
        }
    }

    #[test]
    fn any_changed_bit_address_or_length_is_refused() {
        let good = signed(&mut auth(AuthMode::Enforce, &[1], 1));
        let mut receiver = auth(AuthMode::Enforce, &[1], 1);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(receiver.verify(A, BODY, &bad, true, None).is_err(), "bit {bit}");
        }
        assert_eq!(receiver.verify(B, BODY, &good, true, None), Err(Discard::Signature));
        assert_eq!(
            receiver.verify(A, b"advertisemenT", &good, true, None),
            Err(Discard::Signature)
        );
        assert_eq!(
            receiver.verify(A, BODY, &good[..TRAILER - 1], true, None),
            Err(Discard::Unsigned)
        );
        assert_eq!(receiver.verify(A, BODY, &good, true, None), Ok(()));
    }

    #[test]
    fn replays_are_refused_over_restarts_of_the_sender() {
        let mut sender = auth(AuthMode::Enforce, &[1], 100);
        let (first, second) = (signed(&mut sender), signed(&mut sender));
        let reborn = signed(&mut auth(AuthMode::Enforce, &[1], 101));
        let mut receiver = auth(AuthMode::Enforce, &[1], 5);
        assert_eq!(receiver.verify(A, BODY, &second, true, None), Ok(()));
        assert_eq!(receiver.verify(A, BODY, &second, true, None), Err(Discard::Replay));
        assert_eq!(receiver.verify(A, BODY, &first, true, None), Err(Discard::Replay));
        assert_eq!(receiver.verify(A, BODY, &reborn, true, None), Ok(()));
        assert_eq!(
            receiver.verify(A, BODY, &signed(&mut sender), true, None),
            Err(Discard::Replay)
        );
    }

    #[test]
    fn a_boot_id_grows_whatever_the_clock_does() {
        for (last, now, next) in [
            (None, 7, 7),
            (Some(7), 9, 9),
            (Some(7), 7, 8),
            (Some(7), 0, 8),
            (Some(u64::MAX), 9, u64::MAX),
        ] {
            assert_eq!(next_boot(last, now), next, "{last:?}, {now}");
        }
    }

    #[test]
    fn keys_rotate_without_a_gap() {
        let mut nodes = [auth(AuthMode::Enforce, &[1], 1), auth(AuthMode::Enforce, &[1], 1)];
        let steps: [&[u8]; 4] = [&[1], &[1, 2], &[2, 1], &[2]];
        for step in steps {
            for node in 0..2 {
                nodes[node].reconfigure(AuthMode::Enforce, step.iter().map(|id| key(*id)).collect());
                let (left, right) = nodes.split_at_mut(1);
                assert_eq!(
                    right[0].verify(A, BODY, &signed(&mut left[0]), true, None),
                    Ok(()),
                    "{step:?}"
                );
                assert_eq!(
                    left[0].verify(A, BODY, &signed(&mut right[0]), true, None),
                    Ok(()),
                    "{step:?}"
                );
            }
        }
    }

    #[test]
    fn secrets_are_long_and_unprinted() {
        assert_eq!(
            SecretKey::new(3, b" short \n").unwrap_err(),
            ShortKey { id: 3, length: 5 }
        );
        assert_eq!(format!("{:?}", key(7)), "SecretKey { id: 7 }");
    }
}
