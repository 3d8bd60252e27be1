//! The little type information that the per-socket map asks for (Documentation/bpf/btf.rst): an `int` and an array of it.

use super::layout;

/// Type id of the map's key, a 32-bit integer.
pub(super) const KEY: u32 = 1;
/// Type id of the map's value, an array of that.
pub(super) const VALUE: u32 = 2;

const MAGIC: u16 = 0xeb9f;
const HEADER: u32 = 24;
const KIND_INT: u32 = 1 << 24;
const KIND_ARRAY: u32 = 3 << 24;
const SIGNED: u32 = 1 << 24;

/// BTF of `int` and `int[SOCKET / 4]`.
pub(super) fn socket_storage() -> Vec<u8> {
    let strings = b"\0int\0";
    let types: [u32; 10] = [
        1,
        KIND_INT,
        4,
        SIGNED | 32, // "int", 4 octets, signed, 32 bits
        0,
        KIND_ARRAY,
        0,
        KEY,
        KEY,
        layout::SOCKET as u32 / 4, // no name, element, index, length
    ];
    let type_length = size_of_val(&types) as u32;
    let mut bytes = MAGIC.to_ne_bytes().to_vec();
    bytes.extend([1, 0]); // version, flags
    for field in [HEADER, 0, type_length, type_length, strings.len() as u32] {
        bytes.extend(field.to_ne_bytes());
    }
    bytes.extend(types.iter().flat_map(|word| word.to_ne_bytes()));
    bytes.extend(strings);
    bytes
}
