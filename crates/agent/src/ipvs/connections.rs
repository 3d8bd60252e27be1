//! Which local connections IPVS sends to a backend, from /proc/net/ip_vs_conn: the sockets themselves only know the
//! virtual address.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Client addresses of the connections to `service` that go to `backend`.
pub(super) fn clients(table: &str, service: SocketAddr, backend: SocketAddr) -> HashSet<SocketAddr> {
    table
        .lines()
        .filter_map(read)
        .filter(|(_, to, at)| *to == service && *at == backend)
        .map(|(from, ..)| from)
        .collect()
}

/// The clients of `service` that are connected to any other backend than `backend`.
pub(super) fn elsewhere(table: &str, service: SocketAddr, backend: SocketAddr) -> HashSet<SocketAddr> {
    table
        .lines()
        .filter_map(read)
        .filter(|(_, to, at)| *to == service && *at != backend)
        .map(|(from, ..)| from)
        .collect()
}

/// Client, virtual address and backend of one line of the table.
fn read(line: &str) -> Option<(SocketAddr, SocketAddr, SocketAddr)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let &["TCP", from, from_port, to, to_port, at, at_port, ..] = &fields[..] else {
        return None;
    };
    let address = |ip: &str, port: &str| Some(SocketAddr::new(read_ip(ip)?, u16::from_str_radix(port, 16).ok()?));
    Some((address(from, from_port)?, address(to, to_port)?, address(at, at_port)?))
}

/// `0A090909`, or an IPv6 address in eight full groups, bare or in brackets (which differs between kernels).
fn read_ip(text: &str) -> Option<IpAddr> {
    let text = text.trim_matches(['[', ']']);
    if text.contains(':') {
        return text.parse::<Ipv6Addr>().ok().map(Into::into);
    }
    u32::from_str_radix(text, 16)
        .ok()
        .map(|bits| Ipv4Addr::from(bits).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
Pro FromIP   FPrt ToIP     TPrt DestIP   DPrt State       Expires PEName PEData
TCP 0A090909 9C40 0A090909 192B 0A000001 192B ESTABLISHED     897
TCP 0A090909 9C41 0A090909 192B 0A000002 192B ESTABLISHED     897
UDP 0A090909 9C42 0A090909 192B 0A000001 192B UDP             297
TCP fd00:0000:0000:0000:0000:0000:0000:0009 9C43 fd00:0000:0000:0000:0000:0000:0000:0009 01BB fd00:0000:0000:0000:0000:0000:0000:0001 192B ESTABLISHED     900
garbage
";

    #[test]
    fn only_connections_of_that_backend_are_found() {
        let address = |text: &str| -> SocketAddr { text.parse().expect("address") };
        let found = clients(TABLE, address("10.9.9.9:6443"), address("10.0.0.1:6443"));
        assert_eq!(found, HashSet::from([address("10.9.9.9:40000")]));
        let found = clients(TABLE, address("[fd00::9]:443"), address("[fd00::1]:6443"));
        assert_eq!(found, HashSet::from([address("[fd00::9]:40003")]));
        assert!(clients(TABLE, address("10.9.9.8:6443"), address("10.0.0.1:6443")).is_empty());
        let others = elsewhere(TABLE, address("10.9.9.9:6443"), address("10.0.0.1:6443"));
        assert_eq!(others, HashSet::from([address("10.9.9.9:40001")]));
    }
}
