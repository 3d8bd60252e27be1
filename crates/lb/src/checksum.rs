//! The Internet checksum (RFC 1071) with IPv4 and IPv6 pseudo-headers (RFC 793, RFC 8200 §8.1).

use std::net::IpAddr;

/// A running one's complement sum. Every part but the last must have an even length.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sum(u64);

impl Sum {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        let (pairs, rest) = bytes.as_chunks::<2>();
        self.0 += pairs.iter().map(|p| u64::from(u16::from_be_bytes(*p))).sum::<u64>();
        if let [last] = rest {
            self.0 += u64::from(*last) << 8;
        }
        self
    }

    pub(crate) fn pseudo_header(self, source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Self {
        let mut sum = match (source, destination) {
            (IpAddr::V6(s), IpAddr::V6(d)) => self.bytes(&s.octets()).bytes(&d.octets()),
            (IpAddr::V4(s), IpAddr::V4(d)) => self.bytes(&s.octets()).bytes(&d.octets()),
            // Mixed families come from no packet.
            _ => self,
        };
        sum.0 += u64::from(protocol) + length as u64;
        sum
    }

    /// The field's value; over a message with a valid checksum in it, 0.
    pub(crate) fn checksum(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rfc_1071_example() {
        let data = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(Sum::new().bytes(&data).checksum(), !0xddf2);
        assert_eq!(Sum::new().bytes(&data).bytes(&(!0xddf2u16).to_be_bytes()).checksum(), 0);
        assert_eq!(Sum::new().bytes(&[1]).checksum(), !0x0100);
    }
}
