//! As much of DNS (RFC 1035 §4) as one question and its answer need.

use std::net::{IpAddr, Ipv4Addr};

const TYPE_A: u16 = 1;
const CLASS_IN: u16 = 1;

/// A recursive question for the IPv4 addresses of `name`.
pub(crate) fn query(name: &str, id: u16) -> Result<Vec<u8>, String> {
    let mut packet = Vec::with_capacity(64);
    for word in [id, 0x0100, 1, 0, 0, 0] {
        packet.extend_from_slice(&word.to_be_bytes());
    }
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len())
            .ok()
            .filter(|length| (1..64).contains(length))
            .ok_or_else(|| format!("{name:?} is no name"))?;
        packet.push(length);
        packet.extend_from_slice(label.as_bytes());
    }
    packet.push(0);
    packet.extend_from_slice(&TYPE_A.to_be_bytes());
    packet.extend_from_slice(&CLASS_IN.to_be_bytes());
    Ok(packet)
}

/// The addresses in the reply to question `id`; a name without any is an error that says why.
pub(crate) fn addresses(packet: &[u8], id: u16) -> Result<Vec<IpAddr>, String> {
    let word = |at: usize| Some(u16::from_be_bytes([*packet.get(at)?, *packet.get(at + 1)?]));
    let short = || "the reply is cut short".to_owned();
    if word(0) != Some(id) {
        return Err("the reply is to another question".into());
    }
    match word(2).ok_or_else(short)? & 0x000f {
        0 => {}
        3 => return Err("no such name (NXDOMAIN)".into()),
        code => return Err(format!("the name server refused with code {code}")),
    }
    let (questions, answers) = (word(4).ok_or_else(short)?, word(6).ok_or_else(short)?);
    let mut at = 12;
    for _ in 0..questions {
        at = skip_name(packet, at).ok_or_else(short)? + 4;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        at = skip_name(packet, at).ok_or_else(short)?;
        let (kind, length) = (
            word(at).ok_or_else(short)?,
            usize::from(word(at + 8).ok_or_else(short)?),
        );
        let data = packet.get(at + 10..at + 10 + length).ok_or_else(short)?;
        if let (TYPE_A, &[a, b, c, d]) = (kind, data) {
            found.push(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
        }
        at += 10 + length;
    }
    if found.is_empty() {
        Err("the name has no addresses".into())
    } else {
        Ok(found)
    }
}

/// Offset behind the name at `at`; a compression pointer ends it.
fn skip_name(packet: &[u8], mut at: usize) -> Option<usize> {
    loop {
        match *packet.get(at)? {
            0 => return Some(at + 1),
            length if length & 0xc0 == 0xc0 => return Some(at + 2),
            length => at += usize::from(length) + 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_damaged_ones_are_errors() {
        let mut reply = query("kubernetes.default.svc.cluster.local", 7).unwrap();
        reply[2] = 0x81;
        reply[7] = 1;
        reply.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4, 10, 96, 0, 1]);
        assert_eq!(addresses(&reply, 7).unwrap(), ["10.96.0.1".parse::<IpAddr>().unwrap()]);
        assert!(addresses(&reply, 8).is_err());
        for length in 0..reply.len() {
            assert!(addresses(&reply[..length], 7).is_err(), "cut at {length}");
        }
        reply[3] = 3;
        assert!(addresses(&reply, 7).unwrap_err().contains("NXDOMAIN"));
    }

    #[test]
    fn impossible_names_are_refused() {
        for name in ["", "a..b", &"x".repeat(64)] {
            assert!(query(name, 1).is_err(), "{name:?}");
        }
    }
}
