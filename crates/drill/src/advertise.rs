//! A stranger's VRRP advertisements: unauthenticated, of the highest priority.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use quorate_lb::config::{ChecksumForm, VrrpVersion};
use quorate_lb::vrrp::{Advert, PROTOCOL};
use socket2::{Domain, Protocol, Socket, Type};

const EVERY: Duration = Duration::from_millis(100);

/// Sends to each of `to` every 100 ms. Needs the right to open raw sockets.
pub fn advertise(vrid: u8, vip: IpAddr, to: &[IpAddr], length: Duration) -> io::Result<()> {
    let domain = if vip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(PROTOCOL))))?;
    // Anything less is thrown away unread (RFC 9568 §5.1.1.3).
    if vip.is_ipv4() {
        socket.set_ttl_v4(255)?
    } else {
        socket.set_unicast_hops_v6(255)?
    }
    let advert = Advert {
        version: VrrpVersion::V3,
        vrid,
        priority: 255,
        interval: EVERY,
        vips: vec![vip],
    };
    let source = if vip.is_ipv4() {
        IpAddr::from([0, 0, 0, 0])
    } else {
        IpAddr::from([0u16; 8])
    };
    let ends = Instant::now() + length;
    while Instant::now() < ends {
        for address in to {
            socket.send_to(
                &advert.encode(source, *address, ChecksumForm::Rfc),
                &SocketAddr::new(*address, 0).into(),
            )?;
        }
        std::thread::sleep(EVERY);
    }
    Ok(())
}
