//! The servers and what is in front of them, each on a machine of its own.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quorate_agent::admin::{Request, request};
use quorate_bundle::Bundle;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};

use crate::netns::{Lab, Machine, Process, must, until};

pub(crate) const SERVERS: usize = 3;
/// Machines with the servers come first; then the balancers', then the clients'.
const BALANCER: usize = SERVERS;
const CLIENTS: usize = SERVERS + 1;
/// TimeoutStopSec of the unit that `quorate apply` writes.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);
pub(crate) const NAMESPACE: &str = "quorate-drill";

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Balancer {
    Agent,
    /// With a TCP check every 500 ms, as it is usually set up.
    Haproxy,
}

impl Balancer {
    pub(crate) fn port(self) -> u16 {
        match self {
            Self::Agent => 6443,
            Self::Haproxy => 7443,
        }
    }
}

/// What the agent says of one server.
#[derive(Clone, Debug)]
pub(crate) struct Backend {
    pub(crate) availability: String,
    pub(crate) total: u64,
    pub(crate) resets: u64,
}

pub(crate) struct Cluster {
    pub(crate) quorate: PathBuf,
    pub(crate) ca_pem: String,
    /// Certificate and key of an administrator.
    pub(crate) identity_pem: String,
    /// Certificates of the servers, by which clients know where they are.
    pub(crate) certificates: Vec<Vec<u8>>,
    socket: PathBuf,
    api: RefCell<Vec<Option<Process>>>,
    /// The server that was told to end, and when.
    stopping: Cell<Option<(usize, Instant)>>,
    etcd: Vec<Process>,
    _balancers: Vec<Process>,
    programs: PathBuf,
    // Last, so that its processes end before its namespaces do.
    pub(crate) lab: Lab,
}

impl Cluster {
    pub(crate) fn start(bundle: &Bundle, quorate: PathBuf) -> Self {
        let lab = Lab::new("api", 5);
        let programs = lab.directory.join("bin");
        std::fs::create_dir_all(&programs).expect("directory");
        for name in ["etcd", "kube-apiserver"] {
            let blob = bundle.blob(name).expect("blob");
            let path = programs.join(name);
            bundle.extract(blob, &path).expect("unpacking");
            must("chmod", &["755", path.to_str().expect("path")]);
        }
        let (ca_pem, identity_pem, certificates) = credentials(&lab);
        let etcd = lab.machines[..SERVERS]
            .iter()
            .map(|m| etcd(&lab, &programs, m))
            .collect();
        let api = lab.machines[..SERVERS]
            .iter()
            .map(|m| Some(api_server(&lab, &programs, m)))
            .collect();
        let socket = lab.directory.join("agent.sock");
        let mut cluster = Self {
            quorate,
            ca_pem,
            identity_pem,
            certificates,
            socket,
            api: RefCell::new(api),
            stopping: Cell::new(None),
            etcd,
            _balancers: Vec::new(),
            programs,
            lab,
        };
        cluster._balancers = cluster.balancers();
        cluster.settle();
        cluster
    }

    fn balancers(&self) -> Vec<Process> {
        let machine = &self.lab.machines[BALANCER];
        let address = machine.v4();
        let mut agent = format!(
            "apiVersion: quorate.dev/v1\nkind: Agent\nnode: balancer\nadmin: {{socket: {}}}\nfrontends:\n- name: api\n  \
             listen: [\"{address}:{}\"]\n  health: {{kind: https, ca: {}}}\n  backends:\n",
            self.socket.display(),
            Balancer::Agent.port(),
            self.lab.directory.join("ca.crt").display(),
        );
        let mut haproxy = format!(
            "global\n  maxconn 4000\ndefaults\n  mode tcp\n  option redispatch\n  retries 3\n  timeout connect 1s\n  \
             timeout client 1h\n  timeout server 1h\n  timeout check 500ms\nlisten api\n  bind {address}:{}\n  \
             balance roundrobin\n  default-server inter 500ms fall 3 rise 2 on-marked-down shutdown-sessions\n",
            Balancer::Haproxy.port(),
        );
        for (number, server) in self.lab.machines[..SERVERS].iter().enumerate() {
            let _ = writeln!(agent, "  - {{name: s{number}, address: \"{}:6443\"}}", server.v4());
            let _ = writeln!(haproxy, "  server s{number} {}:6443 check", server.v4());
        }
        let agent = self.lab.write("agent.yaml", &agent);
        let agent = [
            self.quorate.to_str().expect("path"),
            "agent",
            "run",
            "--unsupervised",
            "--config",
            agent.to_str().expect("path"),
        ];
        let mut started = vec![machine.start_program(&agent, &self.lab.log("agent.log"))];
        let haproxy = self.lab.write("haproxy.cfg", &haproxy);
        if crate::full() && crate::netns::found("haproxy") {
            let haproxy = ["haproxy", "-db", "-q", "-f", haproxy.to_str().expect("path")];
            started.push(machine.start_program(&haproxy, &self.lab.log("haproxy.log")));
        }
        started
    }

    pub(crate) fn client(&self) -> &Machine {
        &self.lab.machines[CLIENTS]
    }

    pub(crate) fn endpoint(&self, balancer: Balancer) -> std::net::SocketAddr {
        (self.lab.machines[BALANCER].v4(), balancer.port()).into()
    }

    /// Everything runs, and the agent knows.
    pub(crate) fn settle(&self) {
        (0..SERVERS).for_each(|server| self.mend(server));
        let up = || (0..SERVERS).all(|server| self.backend(server).availability == "up");
        assert!(until(Duration::from_secs(60), up), "not all servers are up");
    }

    pub(crate) fn backend(&self, server: usize) -> Backend {
        let shown = request(&self.socket, &Request::Show).unwrap_or_default();
        let one = &shown["frontends"][0]["backends"][server];
        Backend {
            availability: one["availability"].as_str().unwrap_or_default().to_owned(),
            total: one["total"].as_u64().unwrap_or_default(),
            resets: one["resets"].as_u64().unwrap_or_default(),
        }
    }

    pub(crate) fn api_server(&self, server: usize, signal: &str) {
        if let Some(process) = &self.api.borrow()[server] {
            process.signal(signal);
        }
    }

    pub(crate) fn etcd(&self, server: usize, signal: &str) {
        self.etcd[server].signal(signal);
    }

    pub(crate) fn link(&self, server: usize, connected: bool) {
        self.lab.machines[server].connect(connected);
    }

    /// Waits for its end, and starts it again.
    fn revive(&self, server: usize) {
        let mut api = self.api.borrow_mut();
        if let Some(process) = &mut api[server] {
            process.wait();
        }
        api[server] = Some(api_server(&self.lab, &self.programs, &self.lab.machines[server]));
    }

    pub(crate) fn stop(&self, server: usize) {
        self.api_server(server, "TERM");
        self.stopping.set(Some((server, Instant::now())));
    }

    /// As systemd: a server that ends in order would wait a minute for open watches, but its unit says less.
    pub(crate) fn supervise(&self) {
        if let Some((server, since)) = self.stopping.get()
            && since.elapsed() > STOP_TIMEOUT
        {
            self.api_server(server, "KILL");
            self.stopping.set(None);
        }
    }

    /// Takes back whatever was done to a server.
    pub(crate) fn mend(&self, server: usize) {
        self.link(server, true);
        self.etcd(server, "CONT");
        self.api_server(server, "CONT");
        let gone = self.api.borrow_mut()[server]
            .as_mut()
            .is_none_or(|p| p.wait_for(Duration::ZERO));
        if gone {
            self.revive(server);
        }
    }

    /// Waits until the server is up again; before that it must get no connection.
    pub(crate) fn returns_without_traffic(&self, server: usize) {
        let begin = Instant::now();
        let mut before = None;
        loop {
            let seen = self.backend(server);
            if seen.availability == "up" {
                return;
            }
            // Those that were being made when it was taken out of service.
            if begin.elapsed() > Duration::from_millis(300) || seen.availability == "down" {
                let first = *before.get_or_insert(seen.total);
                assert_eq!(seen.total, first, "a server that is not ready got a connection");
            }
            assert!(begin.elapsed() < Duration::from_secs(60), "it does not come back");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A server whose etcd member does not lead.
    pub(crate) fn follower(&self) -> usize {
        let follows = |server: &usize| {
            let (_, metrics) = self.lab.machines[*server].try_run("curl", &["-s", "http://127.0.0.1:2379/metrics"]);
            metrics.lines().any(|line| line == "etcd_server_is_leader 0")
        };
        (0..SERVERS).find(follows).expect("a follower; curl shows who leads")
    }
}

pub(crate) fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

fn etcd(lab: &Lab, programs: &Path, machine: &Machine) -> Process {
    let name = format!("e{}", machine.number);
    let peers: Vec<String> = lab.machines[..SERVERS]
        .iter()
        .map(|m| format!("e{}=http://{}:2380", m.number, m.v4()))
        .collect();
    let peer = format!("http://{}:2380", machine.v4());
    let arguments = [
        programs.join("etcd").display().to_string(),
        format!("--name={name}"),
        format!("--data-dir={}", lab.directory.join(&name).display()),
        "--listen-client-urls=http://127.0.0.1:2379".into(),
        "--advertise-client-urls=http://127.0.0.1:2379".into(),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster={}", peers.join(",")),
        // This is about servers in front of it; three members share a disk here.
        "--unsafe-no-fsync=true".into(),
        // As `etcd.electionTimeout` has it unless given.
        "--heartbeat-interval=50".into(),
        "--election-timeout=500".into(),
        "--log-level=warn".into(),
    ];
    start(machine, &arguments, &lab.log(&format!("{name}.log")))
}

fn api_server(lab: &Lab, programs: &Path, machine: &Machine) -> Process {
    let file = |name: &str| lab.directory.join(name).display().to_string();
    let own = |suffix: &str| file(&format!("server{}.{suffix}", machine.number));
    let arguments = [
        programs.join("kube-apiserver").display().to_string(),
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={}", machine.v4()),
        "--secure-port=6443".into(),
        format!("--tls-cert-file={}", own("crt")),
        format!("--tls-private-key-file={}", own("key")),
        format!("--client-ca-file={}", file("ca.crt")),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("sa.pub")),
        format!("--service-account-signing-key-file={}", file("sa.key")),
        "--service-cluster-ip-range=10.96.0.0/24".into(),
        "--shutdown-delay-duration=3s".into(),
    ];
    start(machine, &arguments, &lab.log(&format!("server{}.log", machine.number)))
}

fn start(machine: &Machine, arguments: &[String], log: &Path) -> Process {
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    machine.start_program(&arguments, log)
}

/// Written to the lab's folder; the authority, an administrator, and the servers' certificates.
fn credentials(lab: &Lab) -> (String, String, Vec<Vec<u8>>) {
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "kubernetes");
    let key = || KeyPair::generate().expect("key");
    let authority = CertifiedIssuer::self_signed(authority, key()).expect("authority");
    lab.write("ca.crt", &authority.pem());
    let tokens = key();
    lab.write("sa.key", &tokens.serialize_pem());
    lab.write("sa.pub", &tokens.public_key_pem());
    let mut administrator = CertificateParams::new(Vec::new()).expect("parameters");
    administrator.distinguished_name.push(DnType::CommonName, "admin");
    administrator
        .distinguished_name
        .push(DnType::OrganizationName, "system:masters");
    let own = key();
    let signed = administrator.signed_by(&own, &authority).expect("certificate");
    let identity = signed.pem() + &own.serialize_pem();
    let server = |machine: &Machine| {
        let mut server = CertificateParams::new(vec!["kubernetes".into()]).expect("parameters");
        server.subject_alt_names.push(SanType::IpAddress(machine.v4()));
        let own = key();
        let signed = server.signed_by(&own, &authority).expect("certificate");
        lab.write(&format!("server{}.crt", machine.number), &signed.pem());
        lab.write(&format!("server{}.key", machine.number), &own.serialize_pem());
        signed.der().to_vec()
    };
    let servers = lab.machines[..SERVERS].iter().map(server).collect();
    (authority.pem(), identity, servers)
}
