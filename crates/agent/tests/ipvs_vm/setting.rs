//! Where all of it happens: two real servers, a node with IPVS and a Pod behind it.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use quorate_lb::{Availability, BackendView, Reason};

use crate::netns::{self, Lab, Machine, Process, until};

pub(crate) const VIRTUAL4: &str = "10.99.0.1:6443";
pub(crate) const VIRTUAL6: &str = "[fd99::1]:6443";
pub(crate) const PORT: u16 = 6443;
/// How /proc/net/ip_vs writes them.
const SERVICE_LINE: &str = "TCP  0A630001:192B ";
const SERVER_LINE: &str = "  -> 0AE700";

/// A real server: ready when it is asked by HTTP, and everything else is answered with the machine's name.
pub(crate) fn serve() {
    let name = std::env::var("QT_NAME").expect("name");
    let listener = TcpListener::bind(format!("[::]:{PORT}")).expect("listening");
    for stream in listener.incoming().flatten() {
        let name = name.clone();
        std::thread::spawn(move || answer(stream, &name));
    }
}

fn answer(mut stream: TcpStream, name: &str) {
    let mut asked = [0; 1024];
    while let Ok(1..) = stream.read(&mut asked) {
        if asked.starts_with(b"GET ") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
            return;
        }
        if stream.write_all(name.as_bytes()).is_err() {
            return;
        }
    }
}

/// Machines 1 and 2 are real servers, 3 is the node with IPVS, 4 a Pod behind it.
pub(crate) struct Setting {
    pub(crate) lab: Lab,
    servers: Vec<Option<Process>>,
}

impl Setting {
    pub(crate) fn new(what: &str) -> Self {
        let lab = Lab::new(what, 4);
        let mut setting = Self {
            lab,
            servers: vec![None, None],
        };
        setting.start(1);
        setting.start(2);
        let node = setting.node().v4().to_string();
        setting
            .node()
            .must("sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]);
        setting.pod().must("ip", &["route", "add", "10.99.0.1", "via", &node]);
        setting
    }

    /// Starts real server `number` and waits until it listens.
    pub(crate) fn start(&mut self, number: u8) {
        let machine = self.server(number);
        let name = format!("m{number}");
        let process = machine.start(
            &[("QT_ROLE", "server"), ("QT_NAME", &name)],
            &self.lab.log(&format!("{name}.log")),
        );
        let address = SocketAddr::new(machine.v4(), PORT);
        let listening = || {
            self.node()
                .enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok())
        };
        assert!(until(Duration::from_secs(10), listening), "{name} does not listen");
        self.servers[usize::from(number) - 1] = Some(process);
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, number: u8) {
        self.servers[usize::from(number) - 1] = None;
    }

    pub(crate) fn server(&self, number: u8) -> &Machine {
        &self.lab.machines[usize::from(number) - 1]
    }

    pub(crate) fn node(&self) -> &Machine {
        &self.lab.machines[2]
    }

    pub(crate) fn pod(&self) -> &Machine {
        &self.lab.machines[3]
    }

    pub(crate) fn views(&self, v6: bool) -> Vec<BackendView> {
        let view = |machine: &Machine| BackendView {
            name: format!("m{}", machine.number),
            address: SocketAddr::new(if v6 { machine.v6() } else { machine.v4() }, PORT),
            weight: 100,
            max_connections: 0,
            backup: false,
            local: false,
            availability: Availability::Up,
            reason: Reason::Ready,
        };
        vec![view(self.server(1)), view(self.server(2))]
    }

    /// Which real servers the node's kernel gives new connections to the IPv4 virtual address. From /proc, since that is quick
    /// enough to be looked at all the time.
    pub(crate) fn served(&self) -> Vec<u8> {
        let text = self
            .node()
            .enter(|| std::fs::read_to_string("/proc/thread-self/net/ip_vs").expect("table"));
        let ours = text.lines().skip_while(|line| !line.starts_with(SERVICE_LINE)).skip(1);
        // Address and port, forwarding, weight.
        ours.map_while(|line| line.strip_prefix(SERVER_LINE))
            .filter(|rest| rest.split_whitespace().nth(2) != Some("0"))
            .map(|rest| u8::from_str_radix(&rest[..2], 16).expect("address"))
            .collect()
    }
}

/// `ipvsadm -Sn` of the calling thread's namespace, sorted.
pub(crate) fn saved() -> Vec<String> {
    let text = netns::must("ipvsadm", &["-S", "-n"]);
    let mut lines: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    lines.sort();
    lines
}

/// Services such as kube-proxy's, in the calling thread's namespace.
pub(crate) fn foreign_services() {
    let services: [&[&str]; 6] = [
        &["-A", "-t", "10.96.0.1:443", "-s", "rr"],
        &["-a", "-t", "10.96.0.1:443", "-r", "10.231.0.1:6443", "-m"],
        &["-A", "-t", "[fd96::1]:443", "-s", "rr", "-p", "10800"],
        &["-A", "-u", "10.96.0.10:53", "-s", "rr"],
        &["-a", "-u", "10.96.0.10:53", "-r", "10.231.0.2:53", "-m"],
        &["-a", "-u", "10.96.0.10:53", "-r", "10.231.0.1:53", "-m"],
    ];
    for service in services {
        netns::must("ipvsadm", service);
    }
}

/// All kernel settings of IPVS in the calling thread's namespace.
pub(crate) fn kernel_settings() -> BTreeMap<String, String> {
    let files = std::fs::read_dir("/proc/sys/net/ipv4/vs").expect("settings").flatten();
    files
        .map(|file| {
            let value = std::fs::read_to_string(file.path()).expect("setting");
            let name = file.file_name().into_string().expect("name");
            (name, value.trim().to_owned())
        })
        .collect()
}

/// What it prints when both servers are behind both virtual addresses.
pub(crate) fn expected() -> Vec<String> {
    let mut lines = Vec::new();
    for (at, prefix) in [(VIRTUAL4, "10.231.0."), (VIRTUAL6, "fd31::")] {
        lines.push(format!("-A -t {at} -s wrr"));
        for number in [1, 2] {
            let address = if at == VIRTUAL4 {
                format!("{prefix}{number}")
            } else {
                format!("[{prefix}{number}]")
            };
            lines.push(format!("-a -t {at} -r {address}:{PORT} -m -w 100"));
        }
    }
    lines.sort();
    lines
}

pub(crate) fn connect(address: &str) -> std::io::Result<(String, TcpStream)> {
    connect_within(address, Duration::from_secs(2))
}

/// A new connection, and the name of the server that answers it.
pub(crate) fn connect_within(address: &str, patience: Duration) -> std::io::Result<(String, TcpStream)> {
    let mut stream = TcpStream::connect_timeout(&address.parse().expect("address"), patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"?")?;
    let mut name = [0; 2];
    stream.read_exact(&mut name)?;
    Ok((String::from_utf8_lossy(&name).into_owned(), stream))
}

pub(crate) fn answers(address: &str, count: usize) -> [usize; 2] {
    let names: Vec<String> = (0..count).map(|_| connect(address).expect("an answer").0).collect();
    ["m1", "m2"].map(|name| names.iter().filter(|one| *one == name).count())
}
