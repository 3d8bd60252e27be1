//! The four programs. Each is under a hundred instructions, without loops.
//!
//! `connect`: look up (address, port) of a TCP connect among the services; if it is one, choose a slot at random, keep
//! virtual address and backend with the socket, and rewrite the destination. A service without backends refuses.
//! `getpeername`: if the peer is the backend that was kept, show the virtual address instead.

use super::asm::{Assembler, FP, R, Width};
use super::layout;

const MAP_LOOKUP_ELEM: i32 = 1;
const GET_PRANDOM_U32: i32 = 7;
const SK_STORAGE_GET: i32 = 107;
/// Kernel ≥ 5.18.
const SET_RETVAL: i32 = 187;
const STORAGE_CREATE: i32 = 1;

// Fields of struct bpf_sock_addr.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;
const PROTOCOL: i16 = 36;
const SK: i16 = 64;

// Stack: the key (which is the virtual address) directly below the backend's address, so that both together are the
// value kept with the socket.
const VALUE: i16 = -(layout::SOCKET as i16);
const KEY: i16 = VALUE;
const BACKEND: i16 = VALUE + layout::ADDRESS as i16;
/// ::ffff:0:0/96, third word, as it lies in memory.
const MAPPED: i32 = i32::from_ne_bytes([0, 0, 0xff, 0xff]);
const ALLOW: i32 = 1;
const REFUSE: i32 = 0;

/// Which of the two address families a program is attached for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Descriptors of the maps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maps {
    pub(super) services: i32,
    pub(super) sockets: i32,
}

/// `connect4` or `connect6`. With `retval`, a service without backends answers ECONNREFUSED, else EPERM.
pub(super) fn connect(family: Family, maps: Maps, retval: bool) -> Option<Vec<u8>> {
    let mut asm = Assembler::default();
    let (allow, refuse) = (asm.label(), asm.label());
    let (context, service) = (R(6), R(7));
    asm.copy(context, R(1));
    asm.load(Width::Word, R(1), context, PROTOCOL);
    asm.jump_if_not(R(1), libc::IPPROTO_TCP, allow);

    read_address(&mut asm, family, context, KEY);
    asm.load_map(R(1), maps.services);
    asm.copy(R(2), FP);
    asm.add(R(2), i32::from(KEY));
    asm.call(MAP_LOOKUP_ELEM);
    asm.jump_if_equal(R(0), 0, allow);
    asm.copy(service, R(0));
    asm.load(Width::Word, R(1), service, 0);
    asm.jump_if_equal(R(1), 0, refuse);

    asm.call(GET_PRANDOM_U32);
    asm.and(R(0), layout::SLOTS as i32 - 1);
    asm.multiply(R(0), layout::ADDRESS as i32);
    asm.add_register(service, R(0));
    for word in 0..layout::ADDRESS as i16 / 4 {
        asm.load(Width::Word, R(1), service, layout::HEADER as i16 + word * 4);
        asm.store(Width::Word, FP, BACKEND + word * 4, R(1));
    }

    // Kept first: a peer name that shows the backend is a blemish, a connection without one is not worth failing.
    let rewrite = asm.label();
    asm.load_map(R(1), maps.sockets);
    asm.load(Width::Double, R(2), context, SK);
    asm.copy(R(3), FP);
    asm.add(R(3), i32::from(VALUE));
    asm.set(R(4), STORAGE_CREATE);
    asm.call(SK_STORAGE_GET);
    asm.jump_if_equal(R(0), 0, rewrite);
    // The socket may have one from an earlier, failed attempt.
    for double in 0..layout::SOCKET as i16 / 8 {
        asm.load(Width::Double, R(1), FP, VALUE + double * 8);
        asm.store(Width::Double, R(0), double * 8, R(1));
    }
    asm.here(rewrite);
    write_address(&mut asm, family, context, FP, BACKEND);

    asm.here(allow);
    asm.exit_with(ALLOW);
    asm.here(refuse);
    if retval {
        asm.set(R(1), -libc::ECONNREFUSED);
        asm.call(SET_RETVAL);
    }
    asm.exit_with(REFUSE);
    asm.finish()
}

/// `getpeername4` or `getpeername6`.
pub(super) fn getpeername(family: Family, maps: Maps) -> Option<Vec<u8>> {
    let mut asm = Assembler::default();
    let done = asm.label();
    let (context, kept) = (R(6), R(7));
    asm.copy(context, R(1));
    asm.load_map(R(1), maps.sockets);
    asm.load(Width::Double, R(2), context, SK);
    asm.set(R(3), 0);
    asm.set(R(4), 0);
    asm.call(SK_STORAGE_GET);
    asm.jump_if_equal(R(0), 0, done);
    asm.copy(kept, R(0));
    // A socket that was connected elsewhere after a failed attempt still carries the old value: compare.
    for (field, word) in fields(family) {
        asm.load(Width::Word, R(1), context, field);
        asm.load(Width::Word, R(2), kept, (layout::ADDRESS + word) as i16);
        asm.jump_if_different(R(1), R(2), done);
    }
    write_address(&mut asm, family, context, kept, 0);
    asm.here(done);
    asm.exit_with(ALLOW);
    asm.finish()
}

/// Writes the address of the context to the stack in the maps' form.
fn read_address(asm: &mut Assembler, family: Family, context: R, to: i16) {
    if family == Family::V4 {
        asm.store_value(Width::Double, FP, to, 0);
        asm.store_value(Width::Word, FP, to + 8, MAPPED);
    }
    for (field, at) in fields(family) {
        asm.load(Width::Word, R(1), context, field);
        asm.store(Width::Word, FP, to + at as i16, R(1));
    }
}

/// Overwrites the address of the context with the one at `from + offset`.
fn write_address(asm: &mut Assembler, family: Family, context: R, from: R, offset: i16) {
    for (field, at) in fields(family) {
        asm.load(Width::Word, R(1), from, offset + at as i16);
        asm.store(Width::Word, context, field, R(1));
    }
}

/// Fields of the context with their places in an address of the maps' form.
fn fields(family: Family) -> impl Iterator<Item = (i16, usize)> {
    let address: Vec<(i16, usize)> = match family {
        Family::V4 => vec![(USER_IP4, 12)],
        Family::V6 => (0..4)
            .map(|word: usize| (USER_IP6 + word as i16 * 4, word * 4))
            .collect(),
    };
    address.into_iter().chain([(USER_PORT, 16)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    const MAPS: Maps = Maps {
        services: 3,
        sockets: 4,
    };
    const CONTEXT_AT: u64 = 0x1000;
    const STACK_END: u64 = 0x3000;
    const SERVICE_AT: u64 = 0x10_000;
    const SOCKET_AT: u64 = 0x20_000;

    /// A machine for exactly the instructions we emit; anything else, and any stray access, panics.
    struct Machine {
        context: Vec<u8>,
        stack: Vec<u8>,
        /// Key and value of the one service.
        service: (Vec<u8>, Vec<u8>),
        /// What is kept with the socket.
        socket: Option<Vec<u8>>,
        random: u64,
        retval: Option<i64>,
    }

    impl Machine {
        fn new(virtual_address: &str, backends: &[&str], random: u64) -> Self {
            let backends: Vec<(SocketAddr, u16)> = backends
                .iter()
                .map(|text| (text.parse().expect("address"), 1))
                .collect();
            let key = layout::encode(virtual_address.parse().expect("address")).to_vec();
            let mut context = vec![0; 72];
            context[36..40].copy_from_slice(&6u32.to_ne_bytes());
            Self {
                context,
                stack: vec![0xaa; 512],
                service: (key, layout::service(&backends)),
                socket: None,
                random,
                retval: None,
            }
        }

        fn aim(&mut self, address: &str) {
            let address: SocketAddr = address.parse().expect("address");
            let bytes = layout::encode(address);
            self.context[4..8].copy_from_slice(&bytes[12..16]);
            self.context[8..24].copy_from_slice(&bytes[..16]);
            self.context[24..28].copy_from_slice(&bytes[16..20]);
        }

        fn aimed_at(&self, family: Family) -> SocketAddr {
            let mut bytes = layout::encode("0.0.0.0:0".parse().expect("address"));
            match family {
                Family::V4 => bytes[12..16].copy_from_slice(&self.context[4..8]),
                Family::V6 => bytes[..16].copy_from_slice(&self.context[8..24]),
            }
            bytes[16..20].copy_from_slice(&self.context[24..28]);
            layout::decode(&bytes).expect("address")
        }

        fn memory(&mut self, at: u64, length: usize) -> &mut [u8] {
            let (start, region) = match at {
                0x1000..0x2000 => (CONTEXT_AT, &mut self.context),
                0x2000..0x3000 => (STACK_END - 512, &mut self.stack),
                0x10_000..0x20_000 => (SERVICE_AT, &mut self.service.1),
                _ => (SOCKET_AT, self.socket.as_mut().expect("a stray access")),
            };
            let offset = (at - start) as usize;
            &mut region[offset..offset + length]
        }

        fn run(&mut self, program: &[u8]) -> i64 {
            let code: Vec<[u8; 8]> = program
                .chunks_exact(8)
                .map(|one| one.try_into().expect("eight"))
                .collect();
            let mut r = [0u64; 11];
            (r[1], r[10]) = (CONTEXT_AT, STACK_END);
            let mut at = 0usize;
            loop {
                let one = code[at];
                at += 1;
                let (to, from) = (usize::from(one[1] & 15), usize::from(one[1] >> 4));
                let offset = i16::from_ne_bytes([one[2], one[3]]);
                let value = i64::from(i32::from_ne_bytes([one[4], one[5], one[6], one[7]]));
                let target = at.wrapping_add_signed(isize::from(offset));
                let width = if one[0] & 0x18 == 0x18 { 8 } else { 4 };
                match one[0] {
                    0x61 | 0x79 => {
                        let mut bytes = [0; 8];
                        bytes[..width].copy_from_slice(self.memory(r[from].wrapping_add_signed(offset.into()), width));
                        r[to] = u64::from_ne_bytes(bytes);
                    }
                    0x62 | 0x7a => {
                        let bytes = value.to_ne_bytes();
                        self.memory(r[to].wrapping_add_signed(offset.into()), width)
                            .copy_from_slice(&bytes[..width]);
                    }
                    0x63 | 0x7b => {
                        let bytes = r[from].to_ne_bytes();
                        self.memory(r[to].wrapping_add_signed(offset.into()), width)
                            .copy_from_slice(&bytes[..width]);
                    }
                    0xb7 => r[to] = value as u64,
                    0xbf => r[to] = r[from],
                    0x07 => r[to] = r[to].wrapping_add_signed(value),
                    0x0f => r[to] = r[to].wrapping_add(r[from]),
                    0x57 => r[to] &= value as u64,
                    0x27 => r[to] = r[to].wrapping_mul(value as u64),
                    0x15 if r[to] == value as u64 => at = target,
                    0x55 if r[to] != value as u64 => at = target,
                    0x5d if r[to] != r[from] => at = target,
                    0x15 | 0x55 | 0x5d => {}
                    0x05 => at = target,
                    0x18 => {
                        r[to] = value as u64;
                        at += 1;
                    }
                    0x85 => {
                        r[0] = self.help(value as i32, [r[1], r[2], r[3], r[4]]);
                        r[1..6].fill(0xdead_dead);
                    }
                    0x95 => return r[0] as i64,
                    other => panic!("unknown instruction {other:#x}"),
                }
            }
        }

        fn help(&mut self, helper: i32, argument: [u64; 4]) -> u64 {
            match helper {
                MAP_LOOKUP_ELEM => {
                    assert_eq!(argument[0], MAPS.services as u64);
                    let key = self.memory(argument[1], layout::ADDRESS).to_vec();
                    if key == self.service.0 { SERVICE_AT } else { 0 }
                }
                GET_PRANDOM_U32 => self.random,
                SK_STORAGE_GET => {
                    assert_eq!(argument[0], MAPS.sockets as u64);
                    if self.socket.is_none() && argument[3] == 1 {
                        self.socket = Some(self.memory(argument[2], layout::SOCKET).to_vec());
                    }
                    if self.socket.is_some() { SOCKET_AT } else { 0 }
                }
                SET_RETVAL => {
                    self.retval = Some(argument[0] as i64);
                    0
                }
                other => panic!("unknown helper {other}"),
            }
        }
    }

    #[test]
    fn connect_rewrites_and_getpeername_shows_the_virtual_address() {
        let cases = [
            (Family::V4, "10.9.9.9:443", "10.0.0.1:6443"),
            (Family::V6, "[fd00::9]:443", "[fd00::1]:6443"),
            // A dual-stack socket that connects to an IPv4 address.
            (Family::V6, "10.9.9.9:443", "10.0.0.1:6443"),
        ];
        for (family, virtual_address, backend) in cases {
            let mut machine = Machine::new(virtual_address, &[backend], 77);
            machine.aim(virtual_address);
            assert_eq!(machine.run(&connect(family, MAPS, true).expect("program")), 1);
            assert_eq!(machine.aimed_at(family), backend.parse().expect("address"));
            machine.aim(backend);
            assert_eq!(machine.run(&getpeername(family, MAPS).expect("program")), 1);
            assert_eq!(machine.aimed_at(family), virtual_address.parse().expect("address"));
        }
    }

    #[test]
    fn every_slot_is_reachable_and_inside_the_value() {
        let backends = ["10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1"];
        let program = connect(Family::V4, MAPS, true).expect("program");
        let mut seen = std::collections::BTreeMap::new();
        for random in 0..1024u64 {
            let mut machine = Machine::new("10.9.9.9:443", &backends, random * 0x0101_0101);
            machine.aim("10.9.9.9:443");
            machine.run(&program);
            *seen.entry(machine.aimed_at(Family::V4)).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 3);
        assert!(seen.values().all(|count| (300..400).contains(count)), "{seen:?}");
    }

    #[test]
    fn everything_else_is_left_alone() {
        let program = connect(Family::V4, MAPS, true).expect("program");
        for (address, protocol) in [("10.9.9.9:444", 6), ("10.9.9.8:443", 6), ("10.9.9.9:443", 17)] {
            let mut machine = Machine::new("10.9.9.9:443", &["10.0.0.1:1"], 0);
            machine.aim(address);
            machine.context[36] = protocol;
            assert_eq!(machine.run(&program), 1);
            assert_eq!(machine.aimed_at(Family::V4), address.parse().expect("address"));
            assert_eq!(machine.socket, None);
        }
    }

    #[test]
    fn no_backend_refuses() {
        for (retval, expected) in [(true, Some(-111)), (false, None)] {
            let mut machine = Machine::new("10.9.9.9:443", &[], 0);
            machine.aim("10.9.9.9:443");
            assert_eq!(machine.run(&connect(Family::V4, MAPS, retval).expect("program")), 0);
            assert_eq!(machine.retval, expected);
        }
    }

    #[test]
    fn a_socket_connected_elsewhere_later_keeps_its_true_peer() {
        let mut machine = Machine::new("10.9.9.9:443", &["10.0.0.1:1"], 0);
        machine.aim("10.9.9.9:443");
        machine.run(&connect(Family::V4, MAPS, true).expect("program"));
        machine.aim("10.5.5.5:80");
        machine.run(&getpeername(Family::V4, MAPS).expect("program"));
        assert_eq!(machine.aimed_at(Family::V4), "10.5.5.5:80".parse().expect("address"));
    }
}
