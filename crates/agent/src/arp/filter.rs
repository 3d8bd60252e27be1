//! Classic BPF socket filters, so that a socket wakes us for the few frames we ask for (net/core/filter.c).

use std::net::{Ipv4Addr, Ipv6Addr};

/// One `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instruction {
    pub(super) code: u16,
    pub(super) if_true: u8,
    pub(super) if_false: u8,
    pub(super) value: u32,
}

const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_BYTE: u16 = 0x30;
const JUMP_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
const ACCEPT: Instruction = Instruction {
    code: RETURN,
    if_true: 0,
    if_false: 0,
    value: u32::MAX,
};
const REJECT: Instruction = Instruction {
    code: RETURN,
    if_true: 0,
    if_false: 0,
    value: 0,
};

/// Ethernet header length.
pub(super) const ETHERNET: u32 = 14;
/// Offset of the sender protocol address in an ARP frame.
pub(super) const ARP_SENDER_IP: u32 = ETHERNET + 14;
/// Offset of the ICMPv6 type behind a bare IPv6 header.
pub(super) const ICMP6_TYPE: u32 = ETHERNET + 40;
/// Offset of the target address of a neighbour advertisement.
pub(super) const NA_TARGET: u32 = ICMP6_TYPE + 8;
const IP4_PROTOCOL: u32 = ETHERNET + 9;
const IP6_NEXT_HEADER: u32 = ETHERNET + 6;
const NEIGHBOUR_ADVERTISEMENT: u32 = 136;
const PROTOCOL_ICMP6: u32 = 58;
const PROTOCOL_VRRP: u32 = 112;
const ETHERTYPE_IP4: u32 = 0x0800;
const ETHERTYPE_IP6: u32 = 0x86dd;

/// ARP frames (requests and replies) in which somebody claims one of `addresses`.
pub(super) fn arp_claims(addresses: &[Ipv4Addr]) -> Vec<Instruction> {
    let mut program = vec![load(LOAD_WORD, ARP_SENDER_IP)];
    for address in addresses {
        program.extend([jump_equal(u32::from(*address), 0, 1), ACCEPT]);
    }
    program.push(REJECT);
    program
}

/// Neighbour advertisements in which somebody claims one of `addresses`.
pub(super) fn neighbour_claims(addresses: &[Ipv6Addr]) -> Vec<Instruction> {
    let mut program = vec![
        load(LOAD_BYTE, IP6_NEXT_HEADER),
        jump_equal(PROTOCOL_ICMP6, 1, 0),
        REJECT,
        load(LOAD_BYTE, ICMP6_TYPE),
        jump_equal(NEIGHBOUR_ADVERTISEMENT, 1, 0),
        REJECT,
    ];
    for address in addresses {
        let octets = address.octets();
        for word in 0..4u8 {
            let at = usize::from(word) * 4;
            let value = u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
            // A different word skips the rest of this address: two instructions per word left, and the ACCEPT.
            program.extend([
                load(LOAD_WORD, NA_TARGET + at as u32),
                jump_equal(value, 0, (3 - word) * 2 + 1),
            ]);
        }
        program.push(ACCEPT);
    }
    program.push(REJECT);
    program
}

/// VRRP advertisements of both families.
pub(super) fn vrrp() -> Vec<Instruction> {
    vec![
        load(LOAD_HALF, 12),
        jump_equal(ETHERTYPE_IP4, 0, 2),
        load(LOAD_BYTE, IP4_PROTOCOL),
        jump_equal(PROTOCOL_VRRP, 3, 4),
        jump_equal(ETHERTYPE_IP6, 0, 3),
        load(LOAD_BYTE, IP6_NEXT_HEADER),
        jump_equal(PROTOCOL_VRRP, 0, 1),
        ACCEPT,
        REJECT,
    ]
}

fn load(code: u16, offset: u32) -> Instruction {
    Instruction {
        code,
        if_true: 0,
        if_false: 0,
        value: offset,
    }
}

fn jump_equal(value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction {
        code: JUMP_EQUAL,
        if_true,
        if_false,
        value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A classic BPF interpreter for the four instructions used here.
    fn passes(program: &[Instruction], frame: &[u8]) -> bool {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let one = program[at];
            at += 1;
            let offset = one.value as usize;
            let bytes = |length: usize| frame.get(offset..offset + length);
            match one.code {
                LOAD_WORD | LOAD_HALF | LOAD_BYTE => {
                    let length = match one.code {
                        LOAD_WORD => 4,
                        LOAD_HALF => 2,
                        _ => 1,
                    };
                    let Some(bytes) = bytes(length) else { return false };
                    accumulator = bytes.iter().fold(0u32, |value, byte| value << 8 | u32::from(*byte));
                }
                JUMP_EQUAL => {
                    at += usize::from(if accumulator == one.value {
                        one.if_true
                    } else {
                        one.if_false
                    })
                }
                RETURN => return one.value != 0,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }

    #[test]
    fn arp_filter_passes_only_claims_of_the_addresses() {
        let program = arp_claims(&["10.0.0.1".parse().expect("ip"), "10.0.0.2".parse().expect("ip")]);
        let mut frame = [0u8; 42];
        for (address, expected) in [([10, 0, 0, 1], true), ([10, 0, 0, 2], true), ([10, 0, 0, 3], false)] {
            frame[28..32].copy_from_slice(&address);
            assert_eq!(passes(&program, &frame), expected, "{address:?}");
        }
        assert!(!passes(&program, &frame[..20]), "short frame");
    }

    #[test]
    fn neighbour_filter_compares_all_four_words() {
        let ours: [Ipv6Addr; 2] = ["fd00::1:2:3".parse().expect("ip"), "fd00::9".parse().expect("ip")];
        let program = neighbour_claims(&ours);
        let mut frame = [0u8; 86];
        frame[20] = 58;
        frame[54] = 136;
        for (address, expected) in [
            ("fd00::1:2:3", true),
            ("fd00::9", true),
            ("fd00::1:2:4", false),
            ("fd01::9", false),
        ] {
            let address: Ipv6Addr = address.parse().expect("ip");
            frame[62..78].copy_from_slice(&address.octets());
            assert_eq!(passes(&program, &frame), expected, "{address}");
        }
        frame[62..78].copy_from_slice(&ours[0].octets());
        frame[54] = 135;
        assert!(!passes(&program, &frame), "a solicitation claims nothing");
    }

    #[test]
    fn vrrp_filter_knows_both_families() {
        let program = vrrp();
        for (ethertype, at) in [([0x08, 0x00], 23), ([0x86, 0xdd], 20)] {
            let mut frame = [0u8; 60];
            frame[12..14].copy_from_slice(&ethertype);
            assert!(!passes(&program, &frame));
            frame[at] = 112;
            assert!(passes(&program, &frame));
            frame[12] = 0x99;
            assert!(!passes(&program, &frame));
        }
    }
}
