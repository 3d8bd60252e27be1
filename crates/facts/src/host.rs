//! What one machine looked like when it was asked: pure data, no opinion.
//!
//! The types travel as postcard as well as JSON, so no field may be skipped or flattened when serialised.
//! An absent thing is `None` or missing from its map; a thing asked for by name has an entry even if it is absent.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Everything found on one machine in one round trip.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    pub hostname: String,
    pub os: OsFacts,
    /// `uname -r`, e.g. `6.1.0-18-amd64`.
    pub kernel: String,
    /// `uname -m`, e.g. `x86_64` or `aarch64`.
    pub arch: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    pub swaps: Vec<SwapFacts>,
    /// `/etc/machine-id`; two machines with the same one are clones.
    pub machine_id: String,
    /// DMI product UUID, if readable.
    pub product_uuid: Option<String>,
    /// Changes with every boot.
    pub boot_id: String,
    pub uptime_ms: u64,
    /// Name of the container manager (`systemd-nspawn`, `lxc`, …) if the machine is a container.
    pub container: Option<String>,
    pub clock: ClockFacts,
    pub cgroup: CgroupFacts,
    /// `None`: not booted with systemd.
    pub systemd: Option<SystemdFacts>,
    /// Bounding set, e.g. `CAP_NET_ADMIN`, sorted.
    pub capabilities: Vec<String>,
    /// A process may lower its own `oom_score_adj` below its present value.
    pub oom_score_adj_writable: bool,
    /// `net.netfilter.nf_conntrack_max` may be set.
    pub conntrack_writable: bool,
    /// The machine's root is not the kernel's root user.
    pub user_namespace: bool,
    /// The user who logged in and how root was reached.
    pub privilege: Privilege,
    pub security: SecurityFacts,
    pub firewall: FirewallFacts,
    pub network: NetworkFacts,
    pub listening: Vec<Listener>,
    /// By name: `ip_vs`, `nf_tables`, `vxlan`, `overlay`, `br_netfilter`, `dummy`, `bpf`, `inet_diag_destroy`, …; and each
    /// option of the kernel's configuration asked for, such as `CONFIG_MEMCG` (`Unknown` where it cannot be read).
    pub kernel_features: BTreeMap<String, Feature>,
    pub mounts: Vec<MountFacts>,
    /// `nameserver` lines of `/etc/resolv.conf`.
    pub dns_servers: Vec<String>,
    /// Names found in `/etc/hosts`.
    pub hosts: BTreeMap<String, Vec<IpAddr>>,
    /// By absolute path: every path asked for and every file below a root asked for.
    pub files: BTreeMap<String, FileFacts>,
    /// By full unit name (`kubelet.service`).
    pub units: BTreeMap<String, UnitFacts>,
    /// By path of the file.
    pub certificates: BTreeMap<String, CertificateFacts>,
    /// By path of the private key's file. Never the key itself.
    pub keys: BTreeMap<String, KeyFacts>,
    /// By dotted name; `None` if the kernel does not know it.
    pub sysctls: BTreeMap<String, Option<String>>,
    /// Each user asked for.
    pub users: BTreeMap<String, Option<UserFacts>>,
    /// Each program asked for and where it was found on root's usual PATH.
    pub programs: BTreeMap<String, Option<String>>,
    pub kept_runs: Vec<KeptRun>,
    /// SHA-256 (hex) of each undamaged blob in the machine's store.
    pub blobs: Vec<String>,
    /// What could not be found out and why; never silently left out.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OsFacts {
    /// `ID` of os-release, e.g. `debian`.
    pub id: String,
    pub id_like: Vec<String>,
    pub version_id: String,
    pub pretty_name: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwapFacts {
    pub path: String,
    /// `partition`, `file` or `zram`.
    pub kind: String,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockFacts {
    /// Nanoseconds since 1970 by the machine's clock, read while answering.
    pub unix_ns: u64,
    /// What the kernel says of its synchronisation (`adjtimex`).
    pub synchronized: Option<bool>,
    /// The time service that is active: `chronyd`, `systemd-timesyncd`, `ntpd`, …
    pub service: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupVersion {
    /// Controllers on v1 hierarchies (with or without an empty v2 one beside them).
    V1,
    #[default]
    V2,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CgroupFacts {
    pub version: CgroupVersion,
    /// Controllers that may be used, e.g. `cpu`, `memory`, `pids`.
    pub controllers: Vec<String>,
    /// v1 only: controllers whose hierarchy is mounted read-only.
    pub read_only: Vec<String>,
    /// A group can be made.
    pub writable: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SystemdFacts {
    pub version: u32,
    /// `running`, `degraded`, `starting`, …
    pub state: String,
    /// Every unit is started with `HTTPS_PROXY`. Its value may hold a password.
    pub https_proxy: bool,
    /// `NO_PROXY` of the same environment.
    pub no_proxy: Option<String>,
}

/// How `quorate remote` came to run as root, or did not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privilege {
    pub uid: u32,
    /// The user who logged in, if sudo was used.
    pub sudo_user: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecurityFacts {
    /// `enforcing`, `permissive`, or `None` if SELinux is off.
    pub selinux: Option<String>,
    pub apparmor: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirewallFacts {
    /// Path of `nft`.
    pub nft: Option<String>,
    /// As `nft --version` says, e.g. `1.0.6`.
    pub nft_version: Option<String>,
    /// Path of `iptables`.
    pub iptables: Option<String>,
    /// `nf_tables` or `legacy`, as `iptables --version` says.
    pub iptables_backend: Option<String>,
    pub firewalld_active: bool,
    pub ufw_active: bool,
    /// `family name`, e.g. `inet filter`, of every nftables table.
    pub nft_tables: Vec<String>,
    /// Chains at the input hook that drop by default, e.g. `inet filter input`.
    pub dropping: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkFacts {
    pub links: Vec<LinkFacts>,
    pub addresses: Vec<AddressFacts>,
    pub routes: Vec<RouteFacts>,
    /// Interface of the IPv4 (or else IPv6) default route with the lowest metric.
    pub default_interface: Option<String>,
}

impl NetworkFacts {
    /// The interface that carries `address`, if this machine has it.
    pub fn interface_of(&self, address: IpAddr) -> Option<&str> {
        self.addresses
            .iter()
            .find(|a| a.address == address)
            .map(|a| a.interface.as_str())
    }

    /// The interface whose subnet holds `address`: the longest matching prefix of the machine's own addresses.
    pub fn interface_towards(&self, address: IpAddr) -> Option<&str> {
        self.addresses
            .iter()
            .filter(|a| same_prefix(a.address, address, a.prefix))
            .max_by_key(|a| a.prefix)
            .map(|a| a.interface.as_str())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkFacts {
    pub name: String,
    pub mtu: u32,
    /// Lower-case with colons; empty for links without one.
    pub mac: String,
    /// Administratively up.
    pub up: bool,
    /// Has carrier.
    pub running: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressFacts {
    pub interface: String,
    pub address: IpAddr,
    pub prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteFacts {
    /// Network address; unspecified with prefix 0 is the default route.
    pub destination: IpAddr,
    pub prefix: u8,
    pub gateway: Option<IpAddr>,
    pub interface: Option<String>,
    pub metric: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub transport: Transport,
    pub address: IpAddr,
    pub port: u16,
    pub pid: Option<u32>,
    pub process: Option<String>,
}

/// Whether the running kernel has something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// Built in or its module is loaded.
    Present,
    /// A module file exists for the running kernel.
    Loadable,
    Absent,
    Unknown,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountFacts {
    pub source: String,
    pub target: String,
    pub fstype: String,
    pub options: Vec<String>,
    /// 0 for file systems without a size.
    pub total_bytes: u64,
    pub free_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FileKind {
    Absent,
    File,
    Directory,
    Symlink,
    /// Device, socket or pipe.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    pub kind: FileKind,
    /// Permission bits only, e.g. `0o600`.
    pub mode: u32,
    /// User's name, or its number if it has none.
    pub owner: String,
    pub group: String,
    pub size: u64,
    /// Lower-case hex; only of regular files that were hashed.
    pub sha256: Option<String>,
    /// Target of a symbolic link.
    pub target: Option<String>,
    /// Content, of files asked for as text.
    pub text: Option<String>,
}

impl FileFacts {
    /// There is nothing at this path.
    pub fn absent() -> Self {
        Self {
            kind: FileKind::Absent,
            mode: 0,
            owner: String::new(),
            group: String::new(),
            size: 0,
            sha256: None,
            target: None,
            text: None,
        }
    }

    pub fn exists(&self) -> bool {
        self.kind != FileKind::Absent
    }
}

/// systemd's view of one unit (`systemctl show`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitFacts {
    /// `loaded`, `not-found`, `masked`, `bad-setting`, …
    pub load: String,
    /// `enabled`, `disabled`, `static`, `masked`, or empty.
    pub enabled: String,
    /// `active`, `inactive`, `failed`, `activating`, …
    pub active: String,
    /// `running`, `dead`, `auto-restart`, …
    pub sub: String,
    /// `success`, `exit-code`, `timeout`, …
    pub result: String,
    /// Exit status of the main process when it last ended.
    pub exit_status: i32,
    pub main_pid: u32,
    pub restarts: u32,
    /// Seconds since 1970 when it became active or inactive; 0 if never.
    pub since_unix: u64,
    pub needs_daemon_reload: bool,
    /// Path of the unit file.
    pub fragment: String,
}

impl UnitFacts {
    pub fn is_active(&self) -> bool {
        self.active == "active"
    }

    pub fn is_enabled(&self) -> bool {
        self.enabled == "enabled"
    }

    pub fn exists(&self) -> bool {
        !self.load.is_empty() && self.load != "not-found"
    }
}

/// What a certificate says; the same fields as `quorate_pki`'s reading of one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFacts {
    /// Common name of the subject.
    pub common_name: String,
    /// Organisations of the subject.
    pub organizations: Vec<String>,
    /// The issuer's whole name as one line, e.g. `CN=kubernetes`.
    pub issuer: String,
    /// The subject's, in the same form.
    pub subject: String,
    /// DNS names, sorted.
    pub dns: Vec<String>,
    /// IP addresses, sorted.
    pub ips: Vec<IpAddr>,
    /// Extended key usage `serverAuth`.
    pub server: bool,
    /// Extended key usage `clientAuth`.
    pub client: bool,
    pub is_ca: bool,
    /// Lower-case hex, as every identifier here.
    pub subject_key_id: Option<String>,
    pub authority_key_id: Option<String>,
    /// Unix seconds.
    pub not_before: i64,
    /// Unix seconds.
    pub not_after: i64,
    pub serial: String,
    /// SHA-256 of the SubjectPublicKeyInfo: the same as that of the matching private key.
    pub spki_sha256: String,
    /// SHA-256 of the certificate's DER.
    pub fingerprint: String,
    /// Why the file could not be read as a certificate; the other fields are then empty.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyFacts {
    /// SHA-256 of the public half, lower-case hex.
    pub spki_sha256: String,
    /// Why the file could not be read as a private key.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserFacts {
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    pub shell: String,
    pub groups: Vec<String>,
}

/// Files kept before a run replaced them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRun {
    pub run_id: String,
    /// Original absolute paths, sorted.
    pub paths: Vec<String>,
}

fn same_prefix(a: IpAddr, b: IpAddr, prefix: u8) -> bool {
    fn bits(ip: IpAddr) -> (u128, u32) {
        match ip {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()) << 96, 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        }
    }
    let ((a, width), (b, other)) = (bits(a), bits(b));
    let prefix = u32::from(prefix).min(width);
    width == other && (prefix == 0 || (a ^ b) >> (128 - prefix) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interface_towards_an_address_is_that_of_the_longest_prefix() {
        let address = |interface: &str, ip: &str, prefix| AddressFacts {
            interface: interface.into(),
            address: ip.parse().unwrap(),
            prefix,
        };
        let network = NetworkFacts {
            addresses: vec![
                address("eth0", "10.0.0.5", 8),
                address("eth1", "10.77.0.11", 24),
                address("eth1", "fd00::1", 64),
            ],
            ..NetworkFacts::default()
        };
        let towards = |ip: &str| network.interface_towards(ip.parse().unwrap());
        assert_eq!(towards("10.77.0.100"), Some("eth1"));
        assert_eq!(towards("10.1.2.3"), Some("eth0"));
        assert_eq!(towards("fd00::9"), Some("eth1"));
        assert_eq!(towards("192.0.2.1"), None);
        assert_eq!(network.interface_of("10.0.0.5".parse().unwrap()), Some("eth0"));
    }
}
