//! Netlink message and attribute encoding (RFC 3549 §2.2, include/uapi/linux/netlink.h).
//!
//! Pure bytes: no socket is touched here, so every codec built on it is tested with fixtures.

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER_LEN: usize = 16;
/// Nested attribute flag of `nla_type`.
const NLA_F_NESTED: u16 = 0x8000;
/// Bits of `nla_type` that are the type itself.
const NLA_TYPE_MASK: u16 = 0x3fff;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;
pub(crate) const NLM_F_REQUEST: u16 = 0x01;
pub(crate) const NLM_F_ACK: u16 = 0x04;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_REPLACE: u16 = 0x100;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
/// The kernel capped the echoed request in an error message (attributes follow at once).
const NLM_F_CAPPED: u16 = 0x100;
/// Extended-acknowledgement attributes follow the echoed request.
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;

fn align4(n: usize) -> usize {
    (n + 3) & !3
}

/// Builds one netlink request.
#[derive(Debug)]
pub(crate) struct MessageBuilder {
    bytes: Vec<u8>,
}

impl MessageBuilder {
    /// Starts a request; the sequence number is filled in when it is sent.
    pub(crate) fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = vec![0; HEADER_LEN];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | NLM_F_REQUEST).to_ne_bytes());
        Self { bytes }
    }

    /// Appends the fixed part of the protocol's own header.
    pub(crate) fn fixed(mut self, data: &[u8]) -> Self {
        self.push_padded(data);
        self
    }

    pub(crate) fn attr(mut self, kind: u16, data: &[u8]) -> Self {
        self.push_attr(kind, data);
        self
    }

    pub(crate) fn attr_u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends a NUL-terminated string attribute.
    pub(crate) fn attr_str(self, kind: u16, value: &str) -> Self {
        let mut data = value.as_bytes().to_vec();
        data.push(0);
        self.attr(kind, &data)
    }

    /// Appends an attribute whose payload is made of the attributes `fill` adds.
    pub(crate) fn nested(mut self, kind: u16, fill: impl FnOnce(Self) -> Self) -> Self {
        let start = self.bytes.len();
        self.push_attr(kind | NLA_F_NESTED, &[]);
        let mut done = fill(self);
        let length = (done.bytes.len() - start) as u16;
        done.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        done
    }

    /// The finished message with its sequence number.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = self.bytes.len() as u32;
        self.bytes[0..4].copy_from_slice(&length.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.bytes
    }

    fn push_attr(&mut self, kind: u16, data: &[u8]) {
        let length = (4 + data.len()) as u16;
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.push_padded(data);
    }

    fn push_padded(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(align4(self.bytes.len()), 0);
    }
}

/// One received message; `payload` starts behind the netlink header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) payload: &'a [u8],
}

/// Splits a datagram into messages; stops at the first one that does not fit.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(0..4)?.try_into().ok()?) as usize;
        if length < HEADER_LEN || length > bytes.len() {
            return None;
        }
        let message = Message {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            payload: &bytes[HEADER_LEN..length],
        };
        bytes = bytes.get(align4(length)..).unwrap_or_default();
        Some(message)
    })
}

/// Splits attributes into `(type, payload)`; flags of the type are removed.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = u16_at(bytes, 0)? as usize;
        if length < 4 || length > bytes.len() {
            return None;
        }
        let kind = u16_at(bytes, 2)? & NLA_TYPE_MASK;
        let data = &bytes[4..length];
        bytes = bytes.get(align4(length)..).unwrap_or_default();
        Some((kind, data))
    })
}

/// The outcome of an `NLMSG_ERROR`: `Ok` is an acknowledgement; `Err` is (errno, the kernel's own words if it sent any).
pub(crate) fn acknowledgement(message: &Message<'_>) -> Result<(), (i32, Option<String>)> {
    let code = u32_at(message.payload, 0).map_or(libc::EBADMSG, |code| -(code as i32));
    if code == 0 {
        return Ok(());
    }
    let text = (message.flags & NLM_F_ACK_TLVS != 0)
        .then(|| {
            let echoed = u32_at(message.payload, 4)? as usize;
            let skip = if message.flags & NLM_F_CAPPED != 0 {
                HEADER_LEN
            } else {
                align4(echoed)
            };
            let tlvs = message.payload.get(4 + skip..)?;
            attributes(tlvs)
                .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
                .map(|(_, data)| string(data))
        })
        .flatten();
    Err((code, text))
}

/// A string attribute without its trailing NUL.
pub(crate) fn string(data: &[u8]) -> String {
    String::from_utf8_lossy(data.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_attributes_carry_their_length() {
        let bytes = MessageBuilder::new(0x10, NLM_F_ACK)
            .fixed(&[1, 2, 3, 4])
            .nested(1, |inner| inner.attr_str(2, "ab").attr_u32(3, 7))
            .finish(9);
        let message = messages(&bytes).next().expect("one message");
        assert_eq!((message.kind, message.flags, message.sequence), (0x10, 5, 9));
        let (kind, data) = attributes(&message.payload[4..]).next().expect("one attribute");
        assert_eq!(kind, 1);
        let inner: Vec<_> = attributes(data).map(|(kind, data)| (kind, data.to_vec())).collect();
        assert_eq!(inner, [(2, b"ab\0".to_vec()), (3, 7u32.to_ne_bytes().to_vec())]);
    }

    #[test]
    fn truncated_input_ends_the_iteration() {
        let bytes = MessageBuilder::new(1, 0).attr_u32(1, 1).finish(1);
        for cut in 0..bytes.len() {
            assert_eq!(messages(&bytes[..cut]).count(), 0);
        }
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0, "length below the header");
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0, "length beyond the end");
    }

    #[test]
    fn extended_acknowledgement_is_read() {
        // error -EINVAL, echoed header of 16 bytes (capped), then attribute 1 = "no such scheduler".
        let mut payload = (-22i32).to_ne_bytes().to_vec();
        payload.extend_from_slice(&16u32.to_ne_bytes());
        payload.extend_from_slice(&[0; 12]);
        let text = b"no such scheduler\0";
        payload.extend_from_slice(&((4 + text.len()) as u16).to_ne_bytes());
        payload.extend_from_slice(&1u16.to_ne_bytes());
        payload.extend_from_slice(text);
        let message = Message {
            kind: NLMSG_ERROR,
            flags: NLM_F_CAPPED | NLM_F_ACK_TLVS,
            sequence: 1,
            payload: &payload,
        };
        assert_eq!(
            acknowledgement(&message),
            Err((22, Some("no such scheduler".to_owned())))
        );
    }
}
