//! Generic netlink: finding a family's number (Documentation/userspace-api/netlink/intro-specs).

use super::codec::{self, MessageBuilder};
use super::{Error, Netlink};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// Length of `struct genlmsghdr`.
pub(crate) const HEADER_LEN: usize = 4;

/// `struct genlmsghdr`.
pub(crate) fn header(command: u8, version: u8) -> [u8; HEADER_LEN] {
    [command, version, 0, 0]
}

/// The number the kernel gave to `family`; asking for it also lets the kernel load the module.
pub(crate) fn family_id(netlink: &mut Netlink, family: &'static str) -> Result<u16, Error> {
    let message = MessageBuilder::new(GENL_ID_CTRL, 0)
        .fixed(&header(CTRL_CMD_GETFAMILY, 1))
        .attr_str(CTRL_ATTR_FAMILY_NAME, family);
    let mut found = None;
    let answer = netlink.query("looking up a generic netlink family", message, |message| {
        let attributes = codec::attributes(message.payload.get(HEADER_LEN..).unwrap_or_default());
        for (kind, data) in attributes {
            if kind == CTRL_ATTR_FAMILY_ID {
                found = codec::u16_at(data, 0);
            }
        }
    });
    match answer {
        Err(error) if error.errno() == Some(libc::ENOENT) => Err(Error::NoFamily { family }),
        Err(error) => Err(error),
        Ok(()) => found.ok_or(Error::NoFamily { family }),
    }
}
