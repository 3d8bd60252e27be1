//! Advertisements on the wire: VRRP version 2 (RFC 3768) and 3 (RFC 9568), IPv4 and IPv6.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::checksum::Sum;
use crate::config::{ChecksumForm, VrrpVersion};

/// IP protocol number.
pub const PROTOCOL: u8 = 112;
pub const GROUP_V4: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 18);
pub const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x12);

const HEADER: usize = 8;
const TYPE_ADVERTISEMENT: u8 = 1;
/// Version 2 ends in eight octets of authentication data, used or not.
const V2_AUTH: usize = 8;

/// One advertisement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advert {
    pub version: VrrpVersion,
    pub vrid: u8,
    /// 0: the sender is stopping.
    pub priority: u8,
    /// Whole seconds in version 2, centiseconds in version 3.
    pub interval: Duration,
    pub vips: Vec<IpAddr>,
}

/// Why a packet was dropped. The order is the order of the checks (keepalived's).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Discard {
    /// Shorter than its address count says, or too short at all.
    Length,
    Ttl,
    Version,
    /// No trailer where one is required.
    Unsigned,
    /// Trailer with a key id not known here.
    UnknownKey,
    /// Trailer that does not fit the packet.
    Signature,
    /// Signed, but not newer than the last one.
    Replay,
    /// Version 2 with a password or AH.
    AuthType,
    /// Version 2 with another interval, or an interval of zero.
    Interval,
    Type,
    Checksum,
    /// Multicast where unicast is configured, or the reverse.
    Destination,
    /// Sent by this machine itself: a loop, or its address is used twice.
    OwnSource,
    UnknownPeer,
    /// No instance with this VRID on the interface.
    UnknownRouter,
}

impl Discard {
    pub const ALL: [Self; 15] = [
        Self::Length,
        Self::Ttl,
        Self::Version,
        Self::Unsigned,
        Self::UnknownKey,
        Self::Signature,
        Self::Replay,
        Self::AuthType,
        Self::Interval,
        Self::Type,
        Self::Checksum,
        Self::Destination,
        Self::OwnSource,
        Self::UnknownPeer,
        Self::UnknownRouter,
    ];

    /// Name in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Length => "length",
            Self::Ttl => "ttl",
            Self::Version => "version",
            Self::Unsigned => "unsigned",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::Replay => "replay",
            Self::AuthType => "auth-type",
            Self::Interval => "interval",
            Self::Type => "type",
            Self::Checksum => "checksum",
            Self::Destination => "destination",
            Self::OwnSource => "own-source",
            Self::UnknownPeer => "unknown-peer",
            Self::UnknownRouter => "unknown-router",
        }
    }
}

/// Whether a packet is addressed to a VRRP group.
pub fn is_group(destination: IpAddr) -> bool {
    destination == GROUP_V4 || destination == GROUP_V6
}

impl Advert {
    /// The message as sent from `source` to `destination`.
    ///
    /// `form` matters for version 3 over IPv4 alone; IPv6 always has the pseudo-header, version 2 never.
    pub fn encode(&self, source: IpAddr, destination: IpAddr, form: ChecksumForm) -> Vec<u8> {
        let count = self.vips.len().min(255);
        let mut p = Vec::with_capacity(HEADER + count * 16 + V2_AUTH);
        let timing = match self.version {
            VrrpVersion::V2 => [0, self.interval.as_secs().clamp(1, 255) as u8],
            VrrpVersion::V3 => ((self.interval.as_millis() / 10).clamp(1, 0xfff) as u16).to_be_bytes(),
        };
        let version = u8::from(self.version) << 4 | TYPE_ADVERTISEMENT;
        p.extend([
            version,
            self.vrid,
            self.priority,
            count as u8,
            timing[0],
            timing[1],
            0,
            0,
        ]);
        for vip in &self.vips[..count] {
            match vip {
                IpAddr::V4(a) => p.extend(a.octets()),
                IpAddr::V6(a) => p.extend(a.octets()),
            }
        }
        if self.version == VrrpVersion::V2 {
            p.extend([0; V2_AUTH]);
        }
        let with_pseudo_header = match self.version {
            VrrpVersion::V2 => false,
            VrrpVersion::V3 => !source.is_ipv4() || form == ChecksumForm::Keepalived,
        };
        let sum = match with_pseudo_header {
            true => Sum::new().pseudo_header(source, destination, PROTOCOL, p.len()),
            false => Sum::new(),
        };
        let sum = sum.bytes(&p).checksum();
        p[6..8].copy_from_slice(&sum.to_be_bytes());
        p
    }
}

/// A message whose length fits its header; nothing else is checked yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message<'a> {
    /// Header, addresses and, in version 2, authentication data.
    pub(super) body: &'a [u8],
    /// Whatever follows: our trailer, or padding.
    pub(super) rest: &'a [u8],
    ipv4: bool,
}

impl<'a> Message<'a> {
    pub(super) fn split(payload: &'a [u8], ipv4: bool) -> Result<Self, Discard> {
        let header = payload.get(..HEADER).ok_or(Discard::Length)?;
        let addresses = usize::from(header[3]) * if ipv4 { 4 } else { 16 };
        let auth = if header[0] >> 4 == 2 { V2_AUTH } else { 0 };
        let (body, rest) = payload
            .split_at_checked(HEADER + addresses + auth)
            .ok_or(Discard::Length)?;
        Ok(Self { body, rest, ipv4 })
    }

    pub(super) fn version(&self) -> Result<VrrpVersion, Discard> {
        match (self.body[0] >> 4, self.ipv4) {
            (2, true) => Ok(VrrpVersion::V2),
            (3, _) => Ok(VrrpVersion::V3),
            _ => Err(Discard::Version),
        }
    }

    /// Version 2: type 0 is none; passwords and AH are not spoken here.
    pub(super) fn has_foreign_auth(&self) -> bool {
        self.body[0] >> 4 == 2 && self.body[4] != 0
    }

    pub(super) fn is_advertisement(&self) -> bool {
        self.body[0] & 0xf == TYPE_ADVERTISEMENT
    }

    pub(super) fn interval(&self) -> Duration {
        match self.body[0] >> 4 {
            2 => Duration::from_secs(u64::from(self.body[5])),
            _ => {
                let field = u16::from_be_bytes([self.body[4], self.body[5]]);
                Duration::from_millis(u64::from(field & 0xfff) * 10)
            }
        }
    }

    /// Both forms are accepted for version 3 over IPv4.
    pub(super) fn has_valid_checksum(&self, source: IpAddr, destination: IpAddr) -> bool {
        let plain = || Sum::new().bytes(self.body).checksum() == 0;
        let full = || {
            let header = Sum::new().pseudo_header(source, destination, PROTOCOL, self.body.len());
            header.bytes(self.body).checksum() == 0
        };
        match (self.body[0] >> 4, self.ipv4) {
            (2, _) => plain(),
            (_, true) => plain() || full(),
            (_, false) => full(),
        }
    }

    pub(super) fn vips(&self) -> impl Iterator<Item = IpAddr> + 'a {
        let count = usize::from(self.body[3]);
        let size = if self.ipv4 { 4 } else { 16 };
        self.body[HEADER..HEADER + count * size]
            .chunks_exact(size)
            .filter_map(|a| {
                let v4 = || <[u8; 4]>::try_from(a).map(IpAddr::from);
                let v6 = || <[u8; 16]>::try_from(a).map(IpAddr::from);
                v4().or_else(|_| v6()).ok()
            })
    }

    pub(super) fn priority(&self) -> u8 {
        self.body[2]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advert(version: VrrpVersion, vips: &[&str]) -> Advert {
        Advert {
            version,
            vrid: 51,
            priority: 100,
            interval: Duration::from_secs(1),
            vips: vips.iter().map(|v| v.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn version_2_matches_a_capture_of_keepalived() {
        // vrid 51, priority 100, 1 s, 192.168.1.100, no authentication.
        let bytes = advert(VrrpVersion::V2, &["192.168.1.100"]).encode(
            "192.168.1.11".parse().unwrap(),
            GROUP_V4.into(),
            ChecksumForm::Rfc,
        );
        assert_eq!(bytes[..6], [0x21, 51, 100, 1, 0, 1]);
        assert_eq!(bytes[8..], [192, 168, 1, 100, 0, 0, 0, 0, 0, 0, 0, 0]);
        let words: u32 = [0x2133u32, 0x6401, 0x0001, 0xc0a8, 0x0164].iter().sum();
        let folded = (words & 0xffff) + (words >> 16);
        assert_eq!(u16::from_be_bytes([bytes[6], bytes[7]]), !(folded as u16));
    }

    #[test]
    fn each_form_is_read_back_and_its_checksum_holds() {
        let (s4, d4): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let (s6, d6): (IpAddr, IpAddr) = ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap());
        for (version, vips, s, d, form) in [
            (
                VrrpVersion::V2,
                &["10.0.0.9", "10.0.0.8"][..],
                s4,
                d4,
                ChecksumForm::Rfc,
            ),
            (VrrpVersion::V3, &["10.0.0.9"], s4, d4, ChecksumForm::Rfc),
            (VrrpVersion::V3, &["10.0.0.9"], s4, d4, ChecksumForm::Keepalived),
            (VrrpVersion::V3, &["fe80::1", "fd00::9"], s6, d6, ChecksumForm::Rfc),
        ] {
            let advert = advert(version, vips);
            let bytes = advert.encode(s, d, form);
            let m = Message::split(&bytes, s.is_ipv4()).unwrap();
            assert!(m.has_valid_checksum(s, d), "{version:?} {form:?}");
            assert!(m.rest.is_empty() && m.is_advertisement() && !m.has_foreign_auth());
            assert_eq!(m.version(), Ok(version));
            assert_eq!(
                (m.body[1], m.priority(), m.interval()),
                (51, 100, Duration::from_secs(1))
            );
            assert_eq!(m.vips().collect::<Vec<_>>(), advert.vips);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                let flipped = Message::split(&bad, s.is_ipv4());
                assert!(
                    flipped.is_err() || !flipped.unwrap().has_valid_checksum(s, d),
                    "bit {bit}"
                );
            }
            for cut in 0..bytes.len() {
                assert_eq!(Message::split(&bytes[..cut], s.is_ipv4()).unwrap_err(), Discard::Length);
            }
        }
    }

    #[test]
    fn centiseconds_cover_the_whole_field() {
        for ms in [10, 100, 990, 40_950] {
            let mut a = advert(VrrpVersion::V3, &["10.0.0.9"]);
            a.interval = Duration::from_millis(ms);
            let bytes = a.encode("10.0.0.1".parse().unwrap(), GROUP_V4.into(), ChecksumForm::Rfc);
            assert_eq!(Message::split(&bytes, true).unwrap().interval(), a.interval);
        }
    }

    #[test]
    fn an_independent_decoder_sees_protocol_112_in_an_intact_packet() {
        let bytes = advert(VrrpVersion::V3, &["10.0.0.9"]).encode(
            "10.0.0.1".parse().unwrap(),
            GROUP_V4.into(),
            ChecksumForm::Keepalived,
        );
        // The pseudo-header form is what TCP uses: etherparse's sum must agree.
        let sum = etherparse::checksum::Sum16BitWords::new()
            .add_4bytes([10, 0, 0, 1])
            .add_4bytes(GROUP_V4.octets())
            .add_2bytes([0, PROTOCOL])
            .add_2bytes((bytes.len() as u16).to_be_bytes())
            .add_slice(&bytes)
            .ones_complement();
        assert_eq!(sum, 0);
    }
}
