//! rtnetlink: addresses, links, and events about both (rtnetlink(7)).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, BorrowedFd};

use super::codec::{self, Message, MessageBuilder, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use super::{Error, Netlink, Protocol, RECEIVE_BUFFER, RawSocket};
use crate::vrrp_io::LEASE;

/// Origin marker of addresses that Quorate added (`IFA_PROTO`, kernel ≥ 5.18; `ip address` prints it as `proto 0x51`).
/// Values below 4 belong to the kernel; 0x51 is "Q" and unused by iproute2's rt_addrprotos.
pub const ADDRESS_PROTOCOL: u8 = 0x51;
/// Origin marker of the addresses of virtual servers (IPVS), which stay when the agent dies: the kernel goes on serving.
const VIRTUAL_SERVER_PROTOCOL: u8 = 0x52;
/// Label of the IPv4 ones, for kernels without `IFA_PROTO`.
const VIRTUAL_SERVER_LABEL: &str = "quorate:ipvs";
/// `RT_SCOPE_HOST`: never chosen as a source towards others.
const SCOPE_HOST: u8 = 254;
/// Label suffix of IPv4 VIPs, so that they are recognised on kernels without `IFA_PROTO` too.
const LABEL_SUFFIX: &str = ":vip";
/// Used where the interface's name leaves no room for the suffix.
const LABEL_LONG: &str = "quorate:vip";
/// IFNAMSIZ without the NUL.
const LABEL_MAX: usize = 15;

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_DELNEIGH: u16 = 29;
const RTMGRP_LINK: u32 = 0x1;
const RTMGRP_IPV4_IFADDR: u32 = 0x10;
const RTMGRP_IPV6_IFADDR: u32 = 0x100;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_LABEL: u16 = 3;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
const IFA_PROTO: u16 = 11;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

const NDA_DST: u16 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFF_NOARP: u32 = 0x80;
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_RUNNING: u32 = 0x40;
const IF_OPER_UP: u8 = 6;
const IF_OPER_UNKNOWN: u8 = 0;

/// A network interface as the kernel describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Kernel number of the interface.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Hardware address, if it is an Ethernet one.
    pub mac: Option<[u8; 6]>,
    /// Largest IP packet in bytes.
    pub mtu: u32,
    /// Administratively up, with carrier.
    pub up: bool,
    /// The loopback interface.
    pub loopback: bool,
}

/// An address on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Kernel number of the interface.
    pub index: u32,
    /// The address.
    pub address: IpAddr,
    /// Prefix length in bits.
    pub prefix: u8,
    /// `true` if it carries Quorate's mark.
    pub ours: bool,
    /// `true` if it carries the mark of a virtual server's address.
    pub virtual_server: bool,
    /// `IFA_F_DEPRECATED`: not chosen as a source address.
    pub deprecated: bool,
}

/// Something that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A link appeared or changed.
    Link(Link),
    /// A link was removed.
    LinkGone {
        /// Its kernel number.
        index: u32,
    },
    /// An address appeared or changed.
    AddressAdded(Address),
    /// An address was removed.
    AddressRemoved(Address),
    /// The kernel dropped events because we were slow: look at everything again.
    Lost,
}

/// Requests about addresses and links.
#[derive(Debug)]
pub struct Routes(Netlink);

impl Routes {
    /// Opens a request socket in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        Netlink::open(Protocol::Route).map(Self)
    }

    /// All links.
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        let request = || MessageBuilder::new(RTM_GETLINK, 0).fixed(&[0; 16]);
        self.0.dump("listing links", request, read_link)
    }

    /// The link with this name.
    pub fn link(&mut self, name: &str) -> Result<Link, Error> {
        self.links()?
            .into_iter()
            .find(|link| link.name == name)
            .ok_or_else(|| Error::NoInterface { name: name.to_owned() })
    }

    /// All addresses of both families.
    pub fn addresses(&mut self) -> Result<Vec<Address>, Error> {
        let request = || MessageBuilder::new(RTM_GETADDR, 0).fixed(&[0; 8]);
        self.0.dump("listing addresses", request, read_address)
    }

    /// Adds a VIP for the time of [`LEASE`]. Idempotent for addresses that carry our mark; one that the machine has from elsewhere is refused with
    /// EEXIST, since taking it away later could cut the machine off.
    ///
    /// It gets no prefix route (the subnet belongs to the interface's own address) and is not preferred as a source for
    /// the host's own connections: IPv6 by `preferred_lft 0`, IPv4 by being added behind the interface's own address.
    /// Duplicate address detection is off: VRRP has decided already, and waiting would cost a second of the failover.
    pub fn add_vip(&mut self, link: &Link, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let operation = format!("adding {address}/{prefix} to {}", link.name);
        let message = vip_message(RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, link, address, prefix);
        let refused = match self.0.request(&operation, message) {
            Err(error) if error.errno() == Some(libc::EEXIST) => error,
            other => return other,
        };
        let found = self
            .addresses()?
            .into_iter()
            .find(|found| found.address == address && found.index == link.index);
        // IPv6 addresses cannot be marked before kernel 5.18, but nobody else makes them like this.
        match found {
            Some(found) if found.ours || (found.address.is_ipv6() && found.deprecated) => Ok(()),
            _ => Err(refused),
        }
    }

    /// Forgets where `address` was on the link, and fails the packets that wait to learn it. A connection this machine
    /// began before it got the address itself would wait for ARP's three seconds: TCP sends no second SYN while the first
    /// is in the neighbour's queue (`skb_still_in_host_queue`). `false`: there was no such entry.
    pub(crate) fn forget_neighbour(&mut self, link: &Link, address: IpAddr) -> Result<bool, Error> {
        // struct ndmsg.
        let mut header = [0; 12];
        header[0] = if address.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        } as u8;
        header[4..8].copy_from_slice(&link.index.to_ne_bytes());
        let message = MessageBuilder::new(RTM_DELNEIGH, 0)
            .fixed(&header)
            .attr(NDA_DST, &octets(address));
        match self
            .0
            .request(&format!("forgetting the neighbour {address} on {}", link.name), message)
        {
            Ok(()) => Ok(true),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Lets a VIP that is there live on for another [`LEASE`].
    pub(crate) fn renew_vip(&mut self, link: &Link, address: IpAddr, prefix: u8) -> Result<(), Error> {
        let message = vip_message(RTM_NEWADDR, NLM_F_REPLACE, link, address, prefix);
        self.0
            .request(&format!("renewing {address}/{prefix} on {}", link.name), message)
    }

    /// Adds the address of a virtual server, with a host prefix. Idempotent.
    pub(crate) fn add_virtual_server(&mut self, link: &Link, address: IpAddr) -> Result<(), Error> {
        let prefix = if address.is_ipv4() { 32 } else { 128 };
        let message = virtual_server_message(link, address, prefix);
        self.0
            .request(&format!("adding {address}/{prefix} to {}", link.name), message)
    }

    /// Adds an interface that carries addresses and nothing else, and sets it up.
    pub(crate) fn add_dummy(&mut self, name: &str) -> Result<(), Error> {
        let mut header = [0; 16];
        // Up, and no ARP: struct ifinfomsg's flags and change mask.
        header[8..12].copy_from_slice(&(IFF_UP | IFF_NOARP).to_ne_bytes());
        header[12..16].copy_from_slice(&(IFF_UP | IFF_NOARP).to_ne_bytes());
        let message = MessageBuilder::new(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL)
            .fixed(&header)
            .attr_str(IFLA_IFNAME, name)
            .nested(IFLA_LINKINFO, |info| info.attr_str(IFLA_INFO_KIND, "dummy"));
        self.0.request(&format!("adding interface {name}"), message)
    }

    /// The free text that is kept with an interface (`ip link` prints it as `alias`); `None` if there is none, or no such
    /// interface.
    pub(crate) fn alias(&mut self, name: &str) -> Result<Option<String>, Error> {
        let request = || MessageBuilder::new(RTM_GETLINK, 0).fixed(&[0; 16]);
        let aliases = self
            .0
            .dump("listing links", request, |message| read_alias(message, name))?;
        Ok(aliases.into_iter().next())
    }

    /// Keeps a free text with an interface, at most 255 bytes.
    pub(crate) fn set_alias(&mut self, link: &Link, text: &str) -> Result<(), Error> {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&link.index.to_ne_bytes());
        let message = MessageBuilder::new(RTM_NEWLINK, 0)
            .fixed(&header)
            .attr_str(IFLA_IFALIAS, text);
        self.0
            .request(&format!("setting the alias of interface {}", link.name), message)
    }

    /// Removes an interface.
    pub(crate) fn delete_link(&mut self, index: u32) -> Result<(), Error> {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        self.0.request(
            &format!("removing interface {index}"),
            MessageBuilder::new(RTM_DELLINK, 0).fixed(&header),
        )
    }

    /// Removes an address. `Ok(false)` if it was not there.
    pub fn delete_address(&mut self, index: u32, address: IpAddr, prefix: u8) -> Result<bool, Error> {
        let message = address_message(RTM_DELADDR, 0, index, address, prefix);
        match self
            .0
            .request(&format!("removing {address}/{prefix} from interface {index}"), message)
        {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.errno(), Some(libc::EADDRNOTAVAIL | libc::ENODEV)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A socket that receives link and address events. Non-blocking; put its descriptor into a poll set.
#[derive(Debug)]
pub struct Monitor {
    socket: RawSocket,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes in the calling thread's network namespace.
    pub fn open() -> Result<Self, Error> {
        let socket = RawSocket::open(
            libc::NETLINK_ROUTE,
            RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR,
        )
        .map_err(|source| Error::Socket {
            operation: "subscribing to link and address events",
            source,
        })?;
        // Hosts with hundreds of Pods see bursts of link events; 1 MiB holds several thousand of them.
        socket.set_receive_buffer(1 << 20);
        Ok(Self {
            socket,
            buffer: vec![0; RECEIVE_BUFFER],
        })
    }

    /// Reads what is there without waiting and hands each event to `each`.
    pub fn read(&mut self, mut each: impl FnMut(Event)) -> Result<(), Error> {
        loop {
            match self.socket.receive(&mut self.buffer, false) {
                Ok(datagram) => codec::messages(datagram)
                    .filter_map(|message| read_event(&message))
                    .for_each(&mut each),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => each(Event::Lost),
                Err(source) => {
                    return Err(Error::Socket {
                        operation: "reading link and address events",
                        source,
                    });
                }
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn vip_message(kind: u16, flags: u16, link: &Link, address: IpAddr, prefix: u8) -> MessageBuilder {
    let mut address_flags = IFA_F_NOPREFIXROUTE;
    let lease = LEASE.as_secs() as u32;
    let mut preferred = lease;
    if address.is_ipv6() {
        address_flags |= IFA_F_NODAD;
        preferred = 0;
    }
    let mut lifetimes = [0; 16];
    lifetimes[0..4].copy_from_slice(&preferred.to_ne_bytes());
    lifetimes[4..8].copy_from_slice(&lease.to_ne_bytes());
    let mut message = address_message(kind, flags, link.index, address, prefix)
        .attr_u32(IFA_FLAGS, address_flags)
        .attr(IFA_CACHEINFO, &lifetimes)
        .attr(IFA_PROTO, &[ADDRESS_PROTOCOL]);
    if address.is_ipv4() {
        let label = format!("{}{LABEL_SUFFIX}", link.name);
        message = message.attr_str(IFA_LABEL, if label.len() <= LABEL_MAX { &label } else { LABEL_LONG });
    }
    message
}

fn virtual_server_message(link: &Link, address: IpAddr, prefix: u8) -> MessageBuilder {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    } as u8;
    let mut fixed = [family, prefix, 0, SCOPE_HOST, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&link.index.to_ne_bytes());
    let octets = octets(address);
    let message = MessageBuilder::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
        .fixed(&fixed)
        .attr(IFA_LOCAL, &octets)
        .attr(IFA_ADDRESS, &octets)
        .attr(IFA_PROTO, &[VIRTUAL_SERVER_PROTOCOL]);
    if address.is_ipv4() {
        message.attr_str(IFA_LABEL, VIRTUAL_SERVER_LABEL)
    } else {
        message.attr_u32(IFA_FLAGS, IFA_F_NODAD)
    }
}

fn address_message(kind: u16, flags: u16, index: u32, address: IpAddr, prefix: u8) -> MessageBuilder {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    } as u8;
    let mut fixed = [family, prefix, 0, 0, 0, 0, 0, 0];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    let octets = octets(address);
    MessageBuilder::new(kind, flags)
        .fixed(&fixed)
        .attr(IFA_LOCAL, &octets)
        .attr(IFA_ADDRESS, &octets)
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn read_event(message: &Message<'_>) -> Option<Event> {
    match message.kind {
        RTM_NEWLINK => read_link(message).map(Event::Link),
        RTM_DELLINK => codec::u32_at(message.payload, 4).map(|index| Event::LinkGone { index }),
        RTM_NEWADDR => read_address(message).map(Event::AddressAdded),
        RTM_DELADDR => read_address(message).map(Event::AddressRemoved),
        _ => None,
    }
}

fn read_link(message: &Message<'_>) -> Option<Link> {
    let index = codec::u32_at(message.payload, 4)?;
    let flags = codec::u32_at(message.payload, 8)?;
    let mut link = Link {
        index,
        name: String::new(),
        mac: None,
        mtu: 0,
        up: flags & IFF_UP != 0 && flags & IFF_RUNNING != 0,
        loopback: flags & IFF_LOOPBACK != 0,
    };
    for (kind, data) in codec::attributes(message.payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = codec::string(data),
            IFLA_ADDRESS => link.mac = data.try_into().ok(),
            IFLA_MTU => link.mtu = codec::u32_at(data, 0)?,
            IFLA_OPERSTATE => link.up &= matches!(data.first(), Some(&(IF_OPER_UP | IF_OPER_UNKNOWN))),
            _ => {}
        }
    }
    Some(link)
}

/// The alias, if this message is about the interface of that name.
fn read_alias(message: &Message<'_>, name: &str) -> Option<String> {
    let (mut is_it, mut alias) = (false, None);
    for (kind, data) in codec::attributes(message.payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => is_it = codec::string(data) == name,
            IFLA_IFALIAS => alias = Some(codec::string(data)),
            _ => {}
        }
    }
    alias.filter(|_| is_it)
}

fn read_address(message: &Message<'_>) -> Option<Address> {
    let &[family, prefix, ..] = message.payload else {
        return None;
    };
    let index = codec::u32_at(message.payload, 4)?;
    let (mut local, mut peer, mut flags) = (None, None, 0);
    let (mut ours, mut virtual_server) = (false, false);
    for (kind, data) in codec::attributes(message.payload.get(8..)?) {
        match kind {
            IFA_LOCAL => local = read_ip(family, data),
            IFA_ADDRESS => peer = read_ip(family, data),
            IFA_FLAGS => flags = codec::u32_at(data, 0)?,
            IFA_PROTO => {
                ours |= data == [ADDRESS_PROTOCOL];
                virtual_server |= data == [VIRTUAL_SERVER_PROTOCOL];
            }
            IFA_LABEL => {
                let label = codec::string(data);
                ours |= label.ends_with(LABEL_SUFFIX);
                virtual_server |= label == VIRTUAL_SERVER_LABEL;
            }
            _ => {}
        }
    }
    let deprecated = flags & IFA_F_DEPRECATED != 0;
    Some(Address {
        index,
        address: local.or(peer)?,
        prefix,
        ours,
        virtual_server,
        deprecated,
    })
}

fn read_ip(family: u8, data: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(data).ok()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(data).ok()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Link {
        Link {
            index: 7,
            name: "eth0".to_owned(),
            mac: None,
            mtu: 1500,
            up: true,
            loopback: false,
        }
    }

    #[test]
    fn vip_message_is_read_back_as_ours() {
        for (address, prefix) in [("10.77.0.100", 32), ("fd00::100", 128)] {
            let address: IpAddr = address.parse().expect("address");
            let bytes = vip_message(RTM_NEWADDR, 0, &link(), address, prefix).finish(1);
            let message = codec::messages(&bytes).next().expect("one message");
            let read = read_address(&message).expect("address message");
            assert_eq!(
                (read.index, read.address, read.prefix, read.ours),
                (7, address, prefix, true)
            );
        }
    }

    #[test]
    fn an_alias_is_read_of_its_own_interface_only() {
        let bytes = MessageBuilder::new(RTM_NEWLINK, 0)
            .fixed(&[0; 16])
            .attr_str(IFLA_IFNAME, "quorate-ipvs")
            .attr_str(IFLA_IFALIAS, "some words")
            .finish(1);
        let message = codec::messages(&bytes).next().expect("one message");
        assert_eq!(read_alias(&message, "quorate-ipvs").as_deref(), Some("some words"));
        assert_eq!(read_alias(&message, "quorate"), None);
    }

    #[test]
    fn foreign_address_is_not_ours() {
        let bytes = address_message(RTM_NEWADDR, 0, 3, "10.0.0.1".parse().expect("address"), 24)
            .attr_str(IFA_LABEL, "eth0")
            .finish(1);
        let message = codec::messages(&bytes).next().expect("one message");
        assert!(!read_address(&message).expect("address message").ours);
    }

    #[test]
    fn long_interface_names_are_marked_too() {
        let long = Link {
            name: "enp129s0f0np12".to_owned(),
            ..link()
        };
        let bytes = vip_message(RTM_NEWADDR, 0, &long, "10.0.0.1".parse().expect("address"), 32).finish(1);
        let message = codec::messages(&bytes).next().expect("one message");
        let label = codec::attributes(&message.payload[8..]).find(|(kind, _)| *kind == IFA_LABEL);
        assert_eq!(label.map(|(_, data)| codec::string(data)).as_deref(), Some(LABEL_LONG));
    }
}
