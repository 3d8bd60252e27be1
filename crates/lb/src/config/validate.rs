//! What the types cannot refuse: contradictions inside one file.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use super::{AgentConfig, AuthMode, Backend, Health, HealthKind, SetKind, Span, VrrpInstance, VrrpVersion};

/// One thing wrong, where, and the way out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable, for tests and documentation: `vrrp.vrid`, `frontend.listen.clash`.
    pub code: &'static str,
    /// Path into the file: `vrrp[0].vips[1]`.
    pub path: String,
    pub message: String,
    pub hint: String,
}

/// Backends of one set: an exclusion list in the dial path is a fixed bit set of this size.
pub const MAX_BACKENDS: usize = 256;

struct Findings(Vec<Finding>);

impl Findings {
    fn add(
        &mut self,
        code: &'static str,
        path: impl Into<String>,
        message: impl Into<String>,
        hint: impl Into<String>,
    ) {
        self.0.push(Finding {
            code,
            path: path.into(),
            message: message.into(),
            hint: hint.into(),
        });
    }
}

pub(super) fn validate(config: &AgentConfig) -> Vec<Finding> {
    let mut f = Findings(Vec::new());
    if config.node.trim().is_empty() {
        f.add("node", "node", "the node has no name", "write the machine's name");
    }
    check_vrrp(config, &mut f);
    check_sets(config, &mut f);
    check_listeners(config, &mut f);
    f.0
}

fn check_vrrp(config: &AgentConfig, f: &mut Findings) {
    let set_names: BTreeSet<&str> = config.backend_sets().map(|s| s.name).collect();
    let mut names = BTreeSet::new();
    let mut routers = BTreeSet::new();
    let mut vips: BTreeMap<IpAddr, String> = BTreeMap::new();
    for (i, v) in config.vrrp.iter().enumerate() {
        let at = format!("vrrp[{i}]");
        if v.name.is_empty() || !names.insert(&v.name) {
            f.add(
                "vrrp.name",
                format!("{at}.name"),
                format!("instance name {:?} is empty or used twice", v.name),
                "give each instance a name of its own",
            );
        }
        check_instance(v, &at, f);
        if !routers.insert((&v.interface, v.vrid, v.source.is_ipv4())) {
            f.add(
                "vrrp.vrid.duplicate",
                format!("{at}.vrid"),
                format!("VRID {} is used twice on {}", v.vrid, v.interface),
                "each virtual router of an interface and address family needs its own VRID",
            );
        }
        for (j, vip) in v.vips.iter().enumerate() {
            let path = format!("{at}.vips[{j}]");
            if let Some(first) = vips.insert(vip.address, path.clone()) {
                f.add(
                    "vrrp.vip.duplicate",
                    path,
                    format!("VIP {} is already in {first}", vip.address),
                    "name each VIP once",
                );
            }
        }
        if let Some(frontend) = &v.track.frontend
            && !set_names.contains(frontend.as_str())
        {
            f.add(
                "vrrp.track",
                format!("{at}.track.frontend"),
                format!("no frontend is named {frontend:?}"),
                format!("one of: {}", set_names.iter().copied().collect::<Vec<_>>().join(", ")),
            );
        }
    }
}

fn check_instance(v: &VrrpInstance, at: &str, f: &mut Findings) {
    if v.vrid == 0 {
        f.add(
            "vrrp.vrid",
            format!("{at}.vrid"),
            "VRID 0 is reserved",
            "choose 1 to 255",
        );
    }
    if v.priority == 0 || v.priority == 255 {
        f.add(
            "vrrp.priority",
            format!("{at}.priority"),
            format!(
                "priority {} is reserved (0 = stopping, 255 = address owner)",
                v.priority
            ),
            "choose 1 to 254",
        );
    }
    if v.interface.is_empty() || v.interface.len() > 15 || v.interface.contains(['/', ' ']) {
        f.add(
            "vrrp.interface",
            format!("{at}.interface"),
            format!("{:?} cannot be a network interface", v.interface),
            "write the name `ip link` shows",
        );
    }
    if v.vips.is_empty() {
        f.add("vrrp.vips.none", format!("{at}.vips"), "no VIP", "name at least one");
    }
    if v.vips.len() > usize::from(u8::MAX) {
        f.add(
            "vrrp.vips.many",
            format!("{at}.vips"),
            "more than 255 VIPs",
            "split the instance",
        );
    }
    for (j, vip) in v.vips.iter().enumerate() {
        let path = format!("{at}.vips[{j}]");
        if vip.address.is_ipv4() != v.source.is_ipv4() {
            f.add(
                "vrrp.family",
                &path,
                format!("VIP {} and source {} are of different families", vip.address, v.source),
                "make one instance for IPv4 and one for IPv6",
            );
        }
        if vip.address == v.source {
            f.add(
                "vrrp.vip.own",
                &path,
                format!("VIP {} is this machine's own address", vip.address),
                "a VIP must be an address no machine has",
            );
        }
        if v.peers.contains(&vip.address) {
            f.add(
                "vrrp.vip.peer",
                &path,
                format!("VIP {} is also a peer's own address", vip.address),
                "a VIP must be an address no machine has",
            );
        }
        if !usable(vip.address) {
            f.add(
                "vrrp.vip.kind",
                &path,
                format!("{} is loopback, multicast or unspecified", vip.address),
                "use a free unicast address of the interface's network",
            );
        }
    }
    check_interval(v, at, f);
    check_peers(v, at, f);
    check_auth(v, at, f);
    if v.version == VrrpVersion::V2 && !v.source.is_ipv4() {
        f.add(
            "vrrp.version",
            format!("{at}.version"),
            "VRRP version 2 does not know IPv6",
            "use version 3",
        );
    }
    if !v.preempt && !v.preempt_delay.is_zero() {
        f.add(
            "vrrp.preempt",
            format!("{at}.preemptDelay"),
            "preemptDelay has no effect with preempt: false",
            "remove one of them",
        );
    }
}

fn check_interval(v: &VrrpInstance, at: &str, f: &mut Findings) {
    let interval = v.interval.get();
    let path = format!("{at}.interval");
    match v.version {
        VrrpVersion::V3 => {
            let fits = (Duration::from_millis(10)..=Duration::from_millis(40_950)).contains(&interval);
            if !fits || !interval.subsec_micros().is_multiple_of(10_000) {
                f.add(
                    "vrrp.interval",
                    path,
                    format!("{} cannot be sent in version 3", v.interval),
                    "10ms to 40950ms in steps of 10ms",
                );
            }
        }
        VrrpVersion::V2 => {
            if interval.subsec_nanos() != 0 || interval.as_secs() == 0 || interval.as_secs() > 255 {
                f.add(
                    "vrrp.interval",
                    path,
                    format!("{} cannot be sent in version 2", v.interval),
                    "whole seconds, 1s to 255s; version 3 knows shorter ones",
                );
            }
        }
    }
}

fn check_peers(v: &VrrpInstance, at: &str, f: &mut Findings) {
    let path = format!("{at}.peers");
    if v.multicast && !v.peers.is_empty() {
        f.add(
            "vrrp.peers.multicast",
            &path,
            "peers are listed and multicast is on",
            "keep one of them",
        );
    }
    // keepalived before 2.2.4 silently went multicast here; a lone node must say so instead.
    if !v.multicast && v.peers.is_empty() {
        f.add(
            "vrrp.peers.none",
            &path,
            "no peers and no multicast: every machine would hold the VIP",
            "list the other machines' addresses, or write multicast: true",
        );
    }
    let mut seen = BTreeSet::new();
    for (j, peer) in v.peers.iter().enumerate() {
        let path = format!("{path}[{j}]");
        if *peer == v.source {
            f.add(
                "vrrp.peers.self",
                &path,
                format!("{peer} is this machine's own address"),
                "list only the other machines",
            );
        }
        if peer.is_ipv4() != v.source.is_ipv4() {
            f.add(
                "vrrp.family",
                &path,
                format!("peer {peer} and source {} are of different families", v.source),
                "make one instance for IPv4 and one for IPv6",
            );
        }
        if !seen.insert(peer) {
            f.add(
                "vrrp.peers.duplicate",
                &path,
                format!("{peer} is listed twice"),
                "list it once",
            );
        }
    }
}

fn check_auth(v: &VrrpInstance, at: &str, f: &mut Findings) {
    let path = format!("{at}.auth.keys");
    match (v.auth.mode, v.auth.keys.is_empty()) {
        (AuthMode::None, false) => f.add(
            "vrrp.auth",
            &path,
            "keys are given but auth.mode is none",
            "set auth.mode: enforce, or remove the keys",
        ),
        (AuthMode::Enforce | AuthMode::Permissive | AuthMode::ReceiveOnly, true) => f.add(
            "vrrp.auth",
            &path,
            "auth.mode needs at least one key",
            "add keys: [{id: 1, file: /etc/quorate/vrrp.key}]",
        ),
        _ => {}
    }
    let mut ids = BTreeSet::new();
    for key in &v.auth.keys {
        if !ids.insert(key.id) {
            f.add(
                "vrrp.auth.id",
                &path,
                format!("key id {} is used twice", key.id),
                "give each key its own id",
            );
        }
    }
}

fn check_sets(config: &AgentConfig, f: &mut Findings) {
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    let mut counts = [0usize; 3];
    for set in config.backend_sets() {
        let (slot, word) = match set.kind {
            SetKind::Proxy => (0, "frontends"),
            SetKind::Ipvs => (1, "ipvs"),
            SetKind::Ebpf => (2, "ebpf"),
        };
        let at = format!("{word}[{}]", counts[slot]);
        counts[slot] += 1;
        if set.name.is_empty() {
            f.add("frontend.name", format!("{at}.name"), "no name", "name it, e.g. api");
        } else if let Some(first) = names.insert(set.name, at.clone()) {
            f.add(
                "frontend.name",
                format!("{at}.name"),
                format!("name {:?} is already used by {first}", set.name),
                "names are unique over frontends, ipvs and ebpf together",
            );
        }
        check_backends(set.backends, &at, f);
        check_health(set.health, &at, f);
    }
    for (i, s) in config.ipvs.iter().enumerate() {
        check_virtual(s.virtual_address, &s.backends, &format!("ipvs[{i}]"), f);
    }
    for (i, s) in config.ebpf.iter().enumerate() {
        check_virtual(s.virtual_address, &s.backends, &format!("ebpf[{i}]"), f);
    }
    for (i, s) in config.frontends.iter().enumerate() {
        if s.max_connections == 0 {
            f.add(
                "frontend.maxConnections",
                format!("frontends[{i}].maxConnections"),
                "0 would accept no connection",
                "leave it out for the default of 20000",
            );
        }
        if s.connect_timeout.is_zero() {
            f.add(
                "frontend.connectTimeout",
                format!("frontends[{i}].connectTimeout"),
                "0s would fail every connection",
                "5s is the default",
            );
        }
    }
}

fn check_backends(backends: &[Backend], at: &str, f: &mut Findings) {
    let path = format!("{at}.backends");
    if backends.is_empty() {
        f.add(
            "frontend.backends.none",
            &path,
            "no backends",
            "name at least one server",
        );
    }
    if backends.len() > MAX_BACKENDS {
        f.add(
            "frontend.backends.many",
            &path,
            format!("{} backends; {MAX_BACKENDS} is the most", backends.len()),
            "split the frontend",
        );
    }
    if !backends.is_empty() && backends.iter().all(|b| b.weight == 0) {
        f.add(
            "frontend.weight.none",
            &path,
            "every backend has weight 0",
            "at least one must take connections",
        );
    }
    let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
    for (j, b) in backends.iter().enumerate() {
        let path = format!("{path}[{j}]");
        if b.name.is_empty() || !names.insert(&b.name) {
            f.add(
                "frontend.backend.name",
                format!("{path}.name"),
                format!("backend name {:?} is empty or used twice", b.name),
                "give each backend a name of its own",
            );
        }
        if !addresses.insert(b.address) {
            f.add(
                "frontend.backend.duplicate",
                format!("{path}.address"),
                format!("{} is listed twice", b.address),
                "list each server once; use weight for a larger share",
            );
        }
        if b.address.port() == 0 || b.address.ip().is_unspecified() || b.address.ip().is_multicast() {
            f.add(
                "frontend.backend.address",
                format!("{path}.address"),
                format!("{} cannot be connected to", b.address),
                "write the server's address and port",
            );
        }
        if b.weight > 256 {
            f.add(
                "frontend.backend.weight",
                format!("{path}.weight"),
                format!("weight {} is above 256", b.weight),
                "choose 0 to 256",
            );
        }
    }
}

fn check_health(h: &Health, at: &str, f: &mut Findings) {
    let at = format!("{at}.health");
    if h.kind == HealthKind::Https && h.ca.is_none() {
        f.add(
            "health.ca",
            format!("{at}.ca"),
            "an https check needs a CA to know its server by",
            "write ca: /etc/kubernetes/pki/ca.crt",
        );
    }
    if h.client_cert.is_some() != h.client_key.is_some() {
        f.add(
            "health.client",
            format!("{at}.clientCert"),
            "clientCert and clientKey go together",
            "give both or neither",
        );
    }
    if !h.path.starts_with('/') || h.path.contains([' ', '\r', '\n']) {
        f.add(
            "health.path",
            format!("{at}.path"),
            format!("{:?} is not a path", h.path),
            "start it with /",
        );
    }
    let least = Span::from_millis(10);
    for (value, name) in [
        (h.interval, "interval"),
        (h.fast_interval, "fastInterval"),
        (h.timeout, "timeout"),
    ] {
        if value < least {
            f.add(
                "health.interval",
                format!("{at}.{name}"),
                format!("{value} is too short"),
                format!("{least} is the least"),
            );
        }
    }
    if h.fast_interval > h.interval {
        f.add(
            "health.fastInterval",
            format!("{at}.fastInterval"),
            format!(
                "fastInterval {} is longer than interval {}",
                h.fast_interval, h.interval
            ),
            "a backend in doubt is checked more often, not less",
        );
    }
    if h.rise == 0 || h.fall == 0 {
        f.add(
            "health.rise",
            &at,
            "rise and fall count from 1",
            "rise: 2, fall: 3 are the defaults",
        );
    }
}

fn check_virtual(address: SocketAddr, backends: &[Backend], at: &str, f: &mut Findings) {
    for (j, b) in backends.iter().enumerate() {
        let path = format!("{at}.backends[{j}].address");
        if b.address.is_ipv4() != address.is_ipv4() {
            f.add(
                "virtual.family",
                path,
                format!("{} and virtual {address} are of different families", b.address),
                "the kernel does not translate between IPv4 and IPv6 here",
            );
        } else if b.address == address {
            f.add(
                "virtual.loop",
                path,
                format!("{address} is the virtual address itself"),
                "list the real servers",
            );
        }
    }
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        f.add(
            "virtual.address",
            format!("{at}.virtual"),
            format!("{address} cannot be a virtual address"),
            "a unicast address and a port",
        );
    }
}

fn check_listeners(config: &AgentConfig, f: &mut Findings) {
    let mut bound: Vec<(SocketAddr, String)> = Vec::new();
    for (i, s) in config.frontends.iter().enumerate() {
        if s.listen.is_empty() {
            f.add(
                "frontend.listen.none",
                format!("frontends[{i}].listen"),
                "listens nowhere",
                "name an address, e.g. 0.0.0.0:8443",
            );
        }
        for (j, a) in s.listen.iter().enumerate() {
            bound.push((*a, format!("frontends[{i}].listen[{j}]")));
        }
        for (j, b) in s.backends.iter().enumerate() {
            if s.listen.contains(&b.address) {
                f.add(
                    "frontend.loop",
                    format!("frontends[{i}].backends[{j}].address"),
                    format!("{} is where this frontend itself listens", b.address),
                    "list the real servers, not the VIP",
                );
            }
        }
    }
    bound.extend(config.stats.iter().map(|s| (s.listen, "stats.listen".to_string())));
    // Page and metrics may share one listener: they differ by path.
    if let Some(m) = &config.metrics
        && config.stats.as_ref().is_none_or(|s| s.listen != m.listen)
    {
        bound.push((m.listen, "metrics.listen".to_string()));
    }
    for (i, (a, path)) in bound.iter().enumerate() {
        if a.port() == 0 {
            f.add("frontend.listen.port", path, format!("{a} has no port"), "write one");
        }
        if let Some((b, first)) = bound[..i].iter().find(|(b, _)| clash(*a, *b)) {
            f.add(
                "frontend.listen.clash",
                path,
                format!("{a} clashes with {b} of {first}"),
                "use another port or address",
            );
        }
    }
}

/// Same port and an address one of them covers. `[::]` is bound v6-only, so families never clash.
fn clash(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port()
        && a.is_ipv4() == b.is_ipv4()
        && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

fn usable(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_multicast() || ip.is_unspecified())
}
