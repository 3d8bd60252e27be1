//! The configuration file: a short one, a full one, and every mistake by its code.

use quorate_lb::AgentConfig;
use quorate_lb::config::{Algorithm, HealthKind, Span};

const MINIMAL: &str = "
apiVersion: quorate.dev/v1
kind: Agent
node: m1
vrrp:
  - {name: api, vrid: 51, interface: eth0, source: 10.77.0.11, vips: [10.77.0.100], peers: [10.77.0.12, 10.77.0.13]}
frontends:
  - name: api
    listen: ['0.0.0.0:8443']
    backends:
      - {name: m1, address: '10.77.0.11:6443', local: true}
      - {name: m2, address: '10.77.0.12:6443'}
    health: {kind: https, ca: /etc/kubernetes/pki/ca.crt}
";

const FULL: &str = "
apiVersion: quorate.dev/v1
kind: Agent
node: m1
vrrp:
  - name: api
    vrid: 51
    interface: eth0
    source: fd00::11
    vips: [fd00::100/64, fd00::101]
    priority: 240
    interval: 50ms
    version: 3
    preempt: true
    preemptDelay: 10s
    peers: [fd00::12]
    auth: {mode: permissive, keys: [{id: 1, file: /etc/quorate/vrrp.key}]}
    checksum: keepalived
    garp: {repeat: 3, delay: 1s, refresh: 30s}
    track: {frontend: api, interface: true}
frontends:
  - name: api
    listen: ['[::]:8443', '0.0.0.0:8443']
    balance: source
    maxConnections: 5000
    perSource: 100
    queue: {length: 10, timeout: 2s}
    proxyProtocol: v2
    connectTimeout: 3s
    hedgeAfter: 50ms
    backends:
      - {name: m1, address: '[fd00::11]:6443', weight: 50, maxConnections: 1000, backup: true}
    health:
      {kind: https, path: /readyz, ca: /a, serverName: kubernetes, clientCert: /b, clientKey: /c, interval: 2s,
       fastInterval: 200ms, timeout: 1s, rise: 3, fall: 2}
    slowStart: 30s
ipvs:
  - {name: node, virtual: '10.103.97.2:6443', scheduler: rr, masquerade: false,
     backends: [{name: m1, address: '10.77.0.11:6443'}]}
ebpf:
  - {name: bpf, virtual: '10.103.97.2:6443', cgroup: /sys/fs/cgroup, pin: /sys/fs/bpf/q,
     backends: [{name: m1, address: '10.77.0.11:6443'}]}
stats: {listen: '127.0.0.1:8404', login: {user: ops, passwordFile: /etc/quorate/stats}}
metrics: {listen: '127.0.0.1:9404'}
admin: {socket: /run/q.sock}
record: /var/log/quorate/inputs.jsonl
";

fn parse(text: &str) -> AgentConfig {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn a_minimal_file_has_sensible_defaults() {
    let c = parse(MINIMAL);
    assert_eq!(c.validate(), []);
    let v = &c.vrrp[0];
    assert_eq!((v.priority, v.interval, v.preempt), (100, Span::from_millis(100), true));
    let f = &c.frontends[0];
    assert_eq!(f.balance, Algorithm::LeastConnections);
    assert_eq!(f.hedge_after, Span::from_millis(75));
    assert_eq!((f.health.kind, f.health.path.as_str()), (HealthKind::Https, "/readyz"));
    assert_eq!(c.admin.socket.to_str(), Some("/run/quorate/agent.sock"));
}

#[test]
fn the_guide_s_file_is_good() {
    let page = include_str!("../../../docs/guide/agent.md");
    let file = page.split("```").find_map(|part| part.strip_prefix("yaml\n")).unwrap();
    assert_eq!(parse(file).validate(), []);
}

#[test]
fn every_field_reads_and_survives_a_round_trip() {
    let c = parse(FULL);
    assert_eq!(c.validate(), []);
    let json = serde_json::to_string(&c).unwrap();
    assert_eq!(serde_json::from_str::<AgentConfig>(&json).unwrap(), c);
    let yaml = serde_saphyr::to_string(&c).unwrap();
    assert_eq!(parse(&yaml), c);
}

#[test]
fn unknown_fields_are_refused() {
    for (from, to) in [
        ("vrid: 51", "vrid: 51, virtualRouterId: 3"),
        ("node: m1", "node: m1\nnodes: 3"),
        ("kind: Agent", "kind: Agnet"),
        ("quorate.dev/v1", "quorate.dev/v9"),
        ("local: true", "lokal: true"),
        ("ca: /etc", "cacert: /etc"),
        ("vips: [10.77.0.100]", "vips: [10.77.0.100/99]"),
    ] {
        assert!(MINIMAL.contains(from), "{from}");
        let text = MINIMAL.replacen(from, to, 1);
        assert!(serde_saphyr::from_str::<AgentConfig>(&text).is_err(), "{to}");
    }
}

#[test]
fn each_mistake_has_a_code_and_a_place() {
    for (from, to, code, path) in [
        ("node: m1", "node: ' '", "node", "node"),
        ("vrid: 51", "vrid: 0", "vrrp.vrid", "vrrp[0].vrid"),
        (
            "vrid: 51",
            "vrid: 51, priority: 255",
            "vrrp.priority",
            "vrrp[0].priority",
        ),
        (
            "vrid: 51",
            "vrid: 51, interval: 15ms",
            "vrrp.interval",
            "vrrp[0].interval",
        ),
        (
            "vrid: 51",
            "vrid: 51, interval: 41s",
            "vrrp.interval",
            "vrrp[0].interval",
        ),
        ("vrid: 51", "vrid: 51, version: 2", "vrrp.interval", "vrrp[0].interval"),
        (
            "vrid: 51",
            "vrid: 51, multicast: true",
            "vrrp.peers.multicast",
            "vrrp[0].peers",
        ),
        (
            "peers: [10.77.0.12, 10.77.0.13]",
            "peers: []",
            "vrrp.peers.none",
            "vrrp[0].peers",
        ),
        ("10.77.0.13]", "10.77.0.11]", "vrrp.peers.self", "vrrp[0].peers[1]"),
        ("10.77.0.13]", "10.77.0.12]", "vrrp.peers.duplicate", "vrrp[0].peers[1]"),
        ("10.77.0.13]", "fd00::3]", "vrrp.family", "vrrp[0].peers[1]"),
        ("10.77.0.13]", "10.77.0.100]", "vrrp.vip.peer", "vrrp[0].vips[0]"),
        ("vips: [10.77.0.100]", "vips: []", "vrrp.vips.none", "vrrp[0].vips"),
        (
            "vips: [10.77.0.100]",
            "vips: [fd00::1]",
            "vrrp.family",
            "vrrp[0].vips[0]",
        ),
        (
            "vips: [10.77.0.100]",
            "vips: [10.77.0.11]",
            "vrrp.vip.own",
            "vrrp[0].vips[0]",
        ),
        (
            "vips: [10.77.0.100]",
            "vips: [127.0.0.1]",
            "vrrp.vip.kind",
            "vrrp[0].vips[0]",
        ),
        (
            "vips: [10.77.0.100]",
            "vips: [10.77.0.100, 10.77.0.100/24]",
            "vrrp.vip.duplicate",
            "vrrp[0].vips[1]",
        ),
        (
            "vrid: 51",
            "vrid: 51, track: {frontend: web}",
            "vrrp.track",
            "vrrp[0].track.frontend",
        ),
        (
            "vrid: 51",
            "vrid: 51, auth: {mode: enforce}",
            "vrrp.auth",
            "vrrp[0].auth.keys",
        ),
        (
            "vrid: 51",
            "vrid: 51, preempt: false, preemptDelay: 1s",
            "vrrp.preempt",
            "vrrp[0].preemptDelay",
        ),
        (
            "interface: eth0",
            "interface: 'a/b'",
            "vrrp.interface",
            "vrrp[0].interface",
        ),
        (
            "10.77.0.12:6443",
            "10.77.0.11:6443",
            "frontend.backend.duplicate",
            "frontends[0].backends[1].address",
        ),
        (
            "10.77.0.12:6443",
            "10.77.0.12:0",
            "frontend.backend.address",
            "frontends[0].backends[1].address",
        ),
        (
            "10.77.0.12:6443",
            "0.0.0.0:8443",
            "frontend.loop",
            "frontends[0].backends[1].address",
        ),
        (
            "{name: m2,",
            "{name: m1,",
            "frontend.backend.name",
            "frontends[0].backends[1].name",
        ),
        (
            "{name: m2,",
            "{weight: 257, name: m2,",
            "frontend.backend.weight",
            "frontends[0].backends[1].weight",
        ),
        (
            "kind: https,",
            "kind: https, rise: 0,",
            "health.rise",
            "frontends[0].health",
        ),
        (
            "kind: https,",
            "kind: https, path: x,",
            "health.path",
            "frontends[0].health.path",
        ),
        (
            "kind: https,",
            "kind: https, timeout: 0s,",
            "health.interval",
            "frontends[0].health.timeout",
        ),
        (
            "kind: https, ca:",
            "kind: https, clientKey:",
            "health.ca",
            "frontends[0].health.ca",
        ),
        (
            "'0.0.0.0:8443'",
            "'0.0.0.0:8443', '10.0.0.1:8443'",
            "frontend.listen.clash",
            "frontends[0].listen[1]",
        ),
        ("'0.0.0.0:8443'", "", "frontend.listen.none", "frontends[0].listen"),
    ] {
        assert!(MINIMAL.contains(from), "{from}");
        let found = parse(&MINIMAL.replacen(from, to, 1)).validate();
        assert!(
            found
                .iter()
                .any(|f| f.code == code && f.path == path && !f.hint.is_empty()),
            "{to}: wanted {code} at {path}, got {found:#?}"
        );
    }
}

#[test]
fn there_is_a_json_schema() {
    let schema = serde_json::to_value(schemars::schema_for!(AgentConfig)).unwrap();
    assert_eq!(schema["additionalProperties"], false);
    assert!(schema["$defs"]["VrrpInstance"]["properties"]["preemptDelay"].is_object());
}
