//! The agent's configuration and unit: VIP and proxy on the endpoint's machines, a way to the API on every node.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use quorate_facts::HostFacts;
use quorate_lb::config::*;
use quorate_lb::pod::Pod;
use quorate_spec::{Access, Balancer, Bootstrap, Machine, RunAs, Spec};

use crate::components::kubeadm::INPUTS;
use crate::components::unit::{Flags, Unit};
use crate::components::{apiserver, etcd};
use crate::paths;
use crate::profile::Profile;
use crate::yaml;

pub(crate) const CONFIG: &str = "/etc/quorate/agent.yaml";
pub(crate) const VRRP_KEY: &str = "/etc/quorate/vrrp.key";
pub(crate) const STATISTICS_PASSWORD: &str = "/etc/quorate/statistics.password";
/// Where the agent itself tells its state to this machine only.
pub(crate) const LOCAL_STATS: &str = "127.0.0.1:9445";
/// The cluster CA where machines without Kubernetes files (load balancers, etcd) have it.
pub(crate) const CA: &str = "/etc/quorate/ca.crt";

/// There while it runs.
pub(crate) const SOCKET: &str = "/run/quorate/agent.sock";
/// There it says which files it runs with.
pub(crate) const RUNNING: &str = "/run/quorate/agent.running";
/// Where its kubelet finds it, when it is a static Pod.
pub(crate) const MANIFEST: &str = "/etc/kubernetes/manifests/quorate-agent.yaml";
/// Its unit while the machine is joining, when it is a static Pod afterwards.
pub(crate) const UNTIL_JOINED: &str = "quorate-agent-joining.service";

/// VRRP id of the VIP in front of etcd is the cluster file's own.
const ETCD_FRONTEND: &str = "etcd";
const API_FRONTEND: &str = "api";
const NODE_FRONTEND: &str = "node";

/// All that this machine balances, whoever does it; nothing, on a machine without such a part.
pub(crate) fn work(spec: &Spec, machine: &Machine, host: &HostFacts) -> AgentConfig {
    let mut config = AgentConfig::new(&machine.name);
    if let Some(endpoint) = &spec.endpoint
        && spec.vip_holders().iter().any(|holder| holder.name == machine.name)
    {
        let holders = spec.vip_holders();
        config.frontends.push(frontend(
            API_FRONTEND,
            vec![listen_any(endpoint.vip, endpoint.port)],
            spec,
            machine,
        ));
        if let Some(last) = config.frontends.last_mut()
            && let Some(limit) = endpoint.max_connections
        {
            last.max_connections = limit;
        }
        config.vrrp.push(vrrp(
            API_FRONTEND,
            endpoint.vip,
            endpoint.vrid,
            endpoint.interval_ms,
            &endpoint.priorities,
            &holders,
            machine,
            host,
            endpoint.interface.as_deref(),
        ));
        if let Some(statistics) = &endpoint.statistics {
            config.stats = Some(Stats {
                listen: listen_any(endpoint.vip, statistics.port),
                login: Some(Login {
                    user: statistics.user.clone(),
                    password_file: STATISTICS_PASSWORD.into(),
                }),
            });
        }
    }
    if let Some(vip) = &spec.etcd.vip
        && spec.etcd_members().iter().any(|member| member.name == machine.name)
    {
        let members = spec.etcd_members();
        let mut front = Frontend {
            backends: members
                .iter()
                .map(|member| Backend::new(&member.name, SocketAddr::new(member.address, etcd::CLIENT_PORT)))
                .collect(),
            health: Health {
                kind: HealthKind::Tcp,
                ..Health::default()
            },
            ..frontend(
                ETCD_FRONTEND,
                vec![SocketAddr::new(vip.address, vip.port)],
                spec,
                machine,
            )
        };
        mark_local(&mut front, machine);
        config.frontends.push(front);
        config.vrrp.push(vrrp(
            ETCD_FRONTEND,
            vip.address,
            vip.vrid,
            100,
            &vip.priorities,
            &members,
            machine,
            host,
            None,
        ));
    }
    // Control planes use their own API server, so only workers need a way of their own.
    // kubeadm's programs on a control plane go by the way of the nodes.
    let also_control_planes =
        matches!(spec.access, Access::Proxy { .. }) || spec.kubernetes.bootstrap == Bootstrap::Kubeadm;
    if machine.is_node() && (!machine.is_control_plane() || also_control_planes) {
        match &spec.access {
            Access::Endpoint => {}
            Access::Proxy { listen } => config
                .frontends
                .push(frontend(NODE_FRONTEND, vec![*listen], spec, machine)),
            Access::Ipvs { virtual_address, .. } => config.ipvs.push(IpvsService {
                name: NODE_FRONTEND.into(),
                virtual_address: *virtual_address,
                scheduler: Scheduler::default(),
                backends: backends(spec, machine),
                health: health(spec, machine),
                masquerade: true,
            }),
            Access::Ebpf { virtual_address } => config.ebpf.push(EbpfService {
                name: NODE_FRONTEND.into(),
                virtual_address: *virtual_address,
                backends: backends(spec, machine),
                health: health(spec, machine),
                cgroup: None,
                pin: "/sys/fs/bpf/quorate".into(),
            }),
        }
    }
    config
}

/// What of a machine's work is the agent's, and what haproxy's and keepalived's; `None` for whom nothing is left. Kernel
/// work is the agent's in any case.
pub(crate) fn divide(work: AgentConfig, balancer: Balancer) -> (Option<AgentConfig>, Option<AgentConfig>) {
    let idle = |config: &AgentConfig| {
        config.frontends.is_empty() && config.vrrp.is_empty() && config.ipvs.is_empty() && config.ebpf.is_empty()
    };
    let (mut by_agent, by_haproxy) = match balancer {
        Balancer::Quorate => (work, None),
        Balancer::Haproxy => {
            let mut kernel = AgentConfig::new(&work.node);
            let mut rest = work;
            kernel.ipvs = std::mem::take(&mut rest.ipvs);
            kernel.ebpf = std::mem::take(&mut rest.ebpf);
            (kernel, Some(rest).filter(|rest| !idle(rest)))
        }
    };
    if by_agent.stats.is_none() {
        by_agent.stats = LOCAL_STATS.parse().ok().map(|listen| Stats { listen, login: None });
    }
    (Some(by_agent).filter(|config| !idle(config)), by_haproxy)
}

/// The agent's share and haproxy's before anything is known of the host. Which interface carries the VIP, the only thing asked
/// of it, makes no difference to what is asked of them.
fn shares(spec: &Spec, machine: &Machine) -> (Option<AgentConfig>, Option<AgentConfig>) {
    divide(work(spec, machine, &HostFacts::default()), spec.balancer)
}

/// Whether the machine's agent, if it has one, is a static Pod.
pub(crate) fn is_pod(spec: &Spec, machine: &Machine) -> bool {
    let (by_agent, _) = shares(spec, machine);
    spec.balancer_as == RunAs::StaticPod && by_agent.is_some()
}

/// Where the balancers of a machine listen, and by which program.
pub(crate) fn listens(spec: &Spec, machine: &Machine) -> Vec<(SocketAddr, &'static str)> {
    let (by_agent, by_haproxy) = shares(spec, machine);
    let mut found = Vec::new();
    for (config, program) in [(by_agent, "quorate"), (by_haproxy, "haproxy")] {
        let Some(config) = config else { continue };
        let statistics = config.stats.iter().map(|stats| stats.listen);
        let listen = config
            .frontends
            .iter()
            .flat_map(|frontend| frontend.listen.iter().copied());
        found.extend(listen.chain(statistics).map(|address| (address, program)));
    }
    found
}

/// Programs of the distribution that a machine needs for its part in the balancing.
pub(crate) fn programs(spec: &Spec, machine: &Machine) -> Vec<&'static str> {
    let (_, by_haproxy) = shares(spec, machine);
    let Some(work) = by_haproxy else { return Vec::new() };
    let vrrp = (!work.vrrp.is_empty()).then_some("keepalived");
    std::iter::once("haproxy").chain(vrrp).collect()
}

/// Whether the agent has rules of its own beside IPVS, which it loads by `nft`.
pub(crate) fn masquerades(spec: &Spec, machine: &Machine) -> bool {
    let (by_agent, _) = shares(spec, machine);
    by_agent.is_some_and(|config| !config.ipvs.is_empty())
}

pub(crate) fn render(config: &AgentConfig) -> String {
    yaml::render(&serde_json::to_value(config).unwrap_or_default())
}

/// What it reads again when told to, if it is to run this configuration.
pub(crate) fn reloads(config: &AgentConfig) -> Vec<&'static str> {
    let key = needs_key(config).then_some(VRRP_KEY);
    std::iter::once(CONFIG).chain(key).collect()
}

/// What of the configuration is in force with the next start only, in sixteen digits.
fn fixed(config: &AgentConfig) -> String {
    let ipv6 = |vip: &&Vip| vip.address.is_ipv6();
    let fixed = AgentConfig {
        ipvs: Vec::new(),
        ebpf: Vec::new(),
        frontends: Vec::new(),
        vrrp: Vec::new(),
        ..config.clone()
    };
    // The supervisor, which is there for virtual routers only, knows IPv6 VIPs of before by their addresses.
    let vips: Vec<&Vip> = config
        .vrrp
        .iter()
        .flat_map(|router| &router.vips)
        .filter(ipv6)
        .collect();
    let all = serde_json::json!({"fixed": fixed, "supervised": !config.vrrp.is_empty(), "vips": vips});
    crate::want::sha256(all.to_string().as_bytes())[..16].to_owned()
}

pub(crate) fn unit(config: &AgentConfig, profile: &Profile) -> String {
    let mut flags = Flags::default();
    flags.set("config", CONFIG);
    Unit {
        description: "Quorate agent: VIP and balancing of the Kubernetes API",
        documentation: "https://quorate.dev/docs/guide/agent",
        after: &[],
        program: format!("{} agent run", paths::bin("quorate")),
        flags,
        notify: true,
        service: vec![
            // A VIP must not outlive the process that announces it, however that process ended.
            format!("ExecStartPre=-{} agent purge --config={CONFIG}", paths::bin("quorate")),
            format!("ExecStopPost=-{} agent purge --config={CONFIG}", paths::bin("quorate")),
            // Ends when it is done, and says why if it is refused.
            format!(
                "ExecReload={} agent ctl reload --socket={SOCKET}",
                paths::bin("quorate")
            ),
            "RuntimeDirectory=quorate".into(),
            "RuntimeDirectoryPreserve=yes".into(),
            // The supervisor is the main process; the agent under it reports.
            "NotifyAccess=all".into(),
            "KillMode=mixed".into(),
            "WatchdogSec=5".into(),
            // The VIP is gone within milliseconds of SIGTERM; what may take longer is the draining of connections.
            "TimeoutStopSec=10".into(),
            "LimitMEMLOCK=infinity".into(),
        ]
        .into_iter()
        // Raising a limit needs the same right as raising the others.
        .filter(|line| profile.oom_adjustable || !line.starts_with("LimitMEMLOCK"))
        .collect(),
        oom_score: -999,
        files: 1_048_576,
    }
    .render(profile)
        + &format!("# in force with a start: {}\n", fixed(config))
}

/// The manifest of the static Pod. `inputs`: what it was made of; another one makes its kubelet replace the Pod.
pub(crate) fn pod(config: &AgentConfig, image: &str, inputs: &str) -> String {
    quorate_lb::pod::manifest(&Pod {
        image,
        path: Path::new(CONFIG),
        config,
        annotation: Some((INPUTS, inputs)),
    })
}

/// A unit that ends with the boot, or when the Pod relieves it: for a machine whose kubelet does not run Pods yet. It waits for
/// a predecessor of an earlier attempt to end, but not for ever.
pub(crate) fn until_joined() -> Vec<String> {
    [
        "systemd-run",
        "--quiet",
        "--collect",
        "--no-block",
        &format!("--unit={}", UNTIL_JOINED.trim_end_matches(".service")),
        "--description=Quorate agent until the machine has joined",
        "--property=Type=notify",
        "--property=NotifyAccess=all",
        "--property=Restart=on-failure",
        "--property=RestartSec=1",
        "--property=StartLimitIntervalSec=600",
        "--property=StartLimitBurst=60",
        "--property=KillMode=mixed",
        "--property=TimeoutStopSec=10",
        &paths::bin("quorate"),
        "agent",
        "run",
        "--take-over",
        &format!("--config={CONFIG}"),
    ]
    .map(str::to_owned)
    .to_vec()
}

/// Whether the machine takes part in VRRP, and so needs the shared key.
pub(crate) fn needs_key(config: &AgentConfig) -> bool {
    !config.vrrp.is_empty()
}

fn frontend(name: &str, listen: Vec<SocketAddr>, spec: &Spec, machine: &Machine) -> Frontend {
    Frontend {
        name: name.into(),
        listen,
        balance: Algorithm::default(),
        max_connections: 20_000,
        per_source: 0,
        queue: Queue::default(),
        proxy_protocol: ProxyProtocol::None,
        connect_timeout: Span::from_secs(5),
        hedge_after: Span::from_millis(75),
        backends: backends(spec, machine),
        health: health(spec, machine),
        // A server that just came back still fills its caches.
        slow_start: Span::from_secs(10),
    }
}

fn backends(spec: &Spec, machine: &Machine) -> Vec<Backend> {
    spec.control_planes()
        .into_iter()
        .map(|control_plane| Backend {
            // The cluster file counts weights from 1 to 256, 1 being usual; the agent's usual weight is 100.
            weight: control_plane.weight,
            local: control_plane.name == machine.name,
            ..Backend::new(
                &control_plane.name,
                SocketAddr::new(control_plane.address, apiserver::PORT),
            )
        })
        .collect()
}

fn mark_local(frontend: &mut Frontend, machine: &Machine) {
    for backend in &mut frontend.backends {
        backend.local = backend.name == machine.name;
    }
}

fn health(_spec: &Spec, machine: &Machine) -> Health {
    Health {
        kind: HealthKind::Https,
        path: "/readyz".into(),
        ca: Some(
            if machine.is_node() {
                paths::pki("ca.crt")
            } else {
                CA.to_owned()
            }
            .into(),
        ),
        server_name: Some("kubernetes".into()),
        ..Health::default()
    }
}

/// All addresses of the VIP's family, so that the listener is there before the VIP is.
fn listen_any(vip: IpAddr, port: u16) -> SocketAddr {
    let any = if vip.is_ipv4() {
        IpAddr::from([0, 0, 0, 0])
    } else {
        IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)
    };
    SocketAddr::new(any, port)
}

#[expect(
    clippy::too_many_arguments,
    reason = "one call per kind of VIP, all of it given by the cluster file"
)]
fn vrrp(
    name: &str,
    vip: IpAddr,
    vrid: u8,
    interval_ms: u32,
    priorities: &std::collections::BTreeMap<String, u8>,
    holders: &[&Machine],
    machine: &Machine,
    host: &HostFacts,
    interface: Option<&str>,
) -> VrrpInstance {
    let interface = machine
        .interface
        .as_deref()
        .or(interface)
        .or_else(|| host.network.interface_of(machine.address))
        .unwrap_or("eth0");
    let same_family = |machine: &Machine| {
        machine
            .all_addresses()
            .into_iter()
            .find(|address| address.is_ipv4() == vip.is_ipv4())
    };
    VrrpInstance {
        name: name.into(),
        vrid,
        interface: interface.into(),
        source: same_family(machine).unwrap_or(machine.address),
        vips: vec![Vip {
            address: vip,
            prefix: if vip.is_ipv4() { 32 } else { 128 },
        }],
        priority: priorities.get(&machine.name).copied().unwrap_or(100),
        interval: Span::from_millis(interval_ms.into()),
        version: VrrpVersion::V3,
        // Moving back costs clients their connections and gains nothing: all holders are alike.
        preempt: false,
        preempt_delay: Span::ZERO,
        peers: holders
            .iter()
            .filter(|holder| holder.name != machine.name)
            .filter_map(|holder| same_family(holder))
            .collect(),
        multicast: false,
        min_ttl: 255,
        auth: VrrpAuth {
            mode: AuthMode::Enforce,
            keys: vec![KeyFile {
                id: 1,
                file: VRRP_KEY.into(),
            }],
        },
        checksum: ChecksumForm::Rfc,
        garp: Garp::default(),
        track: Track {
            frontend: Some(name.into()),
            interface: true,
        },
    }
}
