//! What a lab is made of, as kept in its `lab.json`. Everything here is arithmetic on names and addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// First machine's last octet; .1 is the operator, .2 to .10 stay free for whatever a user adds.
const FIRST_HOST: u8 = 11;
/// Machines end below the VIP.
const LAST_HOST: u8 = 99;
const VIP_HOST: u8 = 100;
const OPERATOR_HOST: u8 = 1;

/// Control planes in a lab of at least this many machines; three is the smallest number that outlives a loss.
const QUORUM: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    ControlPlane,
    Worker,
    Etcd,
    LoadBalancer,
}

impl Role {
    /// As written in a cluster file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::Worker => "worker",
            Self::Etcd => "etcd",
            Self::LoadBalancer => "load-balancer",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    pub name: String,
    pub role: Role,
    pub address: Ipv4Addr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address6: Option<Ipv6Addr>,
    /// 32 hex digits, different on every machine; also its product UUID where the host has DMI.
    pub machine_id: String,
}

/// Traffic from one machine to another that is dropped. A cut of both directions is two of these.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cut {
    pub from: String,
    pub to: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// An overlay over the shared root tree.
    Overlay,
    /// A copy of the root tree, where the file system under the lab cannot carry an overlay.
    Copy,
}

/// `lab.json`: the whole of what must be remembered about a lab. Whether a machine runs is never
/// written down, it is asked of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    pub name: String,
    pub suite: String,
    /// In the root tree beyond what every lab has.
    #[serde(default)]
    pub packages: Vec<String>,
    /// The shared root tree, read only from here on.
    pub root: PathBuf,
    pub storage: Storage,
    /// Where ssh_config and cluster.yaml are.
    pub dir: PathBuf,
    /// Program and leading arguments to which `NAME HOST PORT` is added to reach a machine.
    pub dial: Vec<String>,
    pub subnet: Subnet,
    pub ipv6: bool,
    pub machines: Vec<Machine>,
    #[serde(default)]
    pub cuts: Vec<Cut>,
}

impl Description {
    pub fn machine(&self, name: &str) -> Result<&Machine> {
        self.machines
            .iter()
            .find(|m| m.name == name)
            .ok_or_else(|| Error::NoSuchMachine {
                lab: self.name.clone(),
                machine: name.to_owned(),
                known: self.machines.iter().map(|m| m.name.clone()).collect(),
            })
    }

    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &Machine> {
        self.machines.iter().filter(move |m| m.role == role)
    }

    pub fn vip(&self) -> Ipv4Addr {
        self.subnet.host(VIP_HOST)
    }

    /// The operator's own address in the lab's network: the bridge.
    pub fn operator(&self) -> Ipv4Addr {
        self.subnet.host(OPERATOR_HOST)
    }

    pub fn operator6(&self) -> Option<Ipv6Addr> {
        self.ipv6.then(|| v6(OPERATOR_HOST))
    }

    /// An address from `host`: an address as it is, or a machine's name.
    pub fn resolve(&self, host: &str) -> Result<IpAddr> {
        if let Ok(address) = host.parse() {
            return Ok(address);
        }
        self.machines
            .iter()
            .find(|m| m.name == host)
            .map(|m| IpAddr::V4(m.address))
            .ok_or_else(|| Error::UnknownHost {
                lab: self.name.clone(),
                host: host.to_owned(),
            })
    }

    /// Adds what is missing to have `wanted`; machines that are there keep name, role and address.
    /// `new_id` gives a fresh machine id. Errors if fewer are wanted than there are.
    pub(crate) fn grow(&mut self, wanted: Wanted, mut new_id: impl FnMut() -> String) -> Result<()> {
        let plain = self
            .machines
            .iter()
            .filter(|m| matches!(m.role, Role::ControlPlane | Role::Worker))
            .count();
        let groups = [
            ("machines", "m", plain, wanted.machines),
            ("etcd machines", "etcd", self.with_role(Role::Etcd).count(), wanted.etcd),
            (
                "load balancers",
                "lb",
                self.with_role(Role::LoadBalancer).count(),
                wanted.load_balancers,
            ),
        ];
        for (what, prefix, have, want) in groups {
            let want = want.unwrap_or(have);
            if want < have {
                return Err(Error::Shrink {
                    lab: self.name.clone(),
                    what,
                    have,
                    wanted: want,
                });
            }
            let control_planes = if want >= QUORUM { QUORUM } else { 1 };
            for number in have + 1..=want {
                let role = match prefix {
                    "etcd" => Role::Etcd,
                    "lb" => Role::LoadBalancer,
                    _ if self.with_role(Role::ControlPlane).count() < control_planes => Role::ControlPlane,
                    _ => Role::Worker,
                };
                let host = self.free_host()?;
                self.machines.push(Machine {
                    name: format!("{prefix}{number}"),
                    role,
                    address: self.subnet.host(host),
                    address6: self.ipv6.then(|| v6(host)),
                    machine_id: new_id(),
                });
            }
        }
        if self.machines.is_empty() {
            return Err(Error::NoMachines);
        }
        Ok(())
    }

    fn free_host(&self) -> Result<u8> {
        (FIRST_HOST..=LAST_HOST)
            .find(|host| {
                let address = self.subnet.host(*host);
                self.machines.iter().all(|m| m.address != address)
            })
            .ok_or(Error::TooMany {
                max: usize::from(LAST_HOST - FIRST_HOST) + 1,
            })
    }
}

/// How many of each; `None` keeps what is there.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) machines: Option<usize>,
    pub(crate) etcd: Option<usize>,
    pub(crate) load_balancers: Option<usize>,
}

/// An IPv4 /24: the last octet is the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Subnet([u8; 3]);

impl Subnet {
    pub const DEFAULT: Self = Self([10, 77, 0]);

    pub fn host(self, last: u8) -> Ipv4Addr {
        let [a, b, c] = self.0;
        Ipv4Addr::new(a, b, c, last)
    }
}

impl std::str::FromStr for Subnet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::BadSubnet(text.to_owned());
        let address: Ipv4Addr = text.strip_suffix("/24").ok_or_else(bad)?.parse().map_err(|_| bad())?;
        match address.octets() {
            [a, b, c, 0] if a != 0 && a != 127 && a < 224 => Ok(Self([a, b, c])),
            _ => Err(bad()),
        }
    }
}

impl TryFrom<String> for Subnet {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Subnet> for String {
    fn from(subnet: Subnet) -> Self {
        subnet.to_string()
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/24", self.host(0))
    }
}

/// Names go into interface, cgroup, unit and file names, so they are kept to what all of these take.
pub fn check_name(name: &str) -> Result<()> {
    let good = (1..=30).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if good {
        Ok(())
    } else {
        Err(Error::BadName(name.to_owned()))
    }
}

/// fd00:77::11 for the machine at .11: the decimal octet is read as hex digits, so both addresses look alike.
fn v6(host: u8) -> Ipv6Addr {
    let (hundreds, tens, ones) = (host / 100, host / 10 % 10, host % 10);
    let digits = u16::from(hundreds) << 8 | u16::from(tens) << 4 | u16::from(ones);
    Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, digits)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn lab(machines: usize, etcd: usize, load_balancers: usize) -> Description {
        let mut lab = Description {
            name: "demo".into(),
            suite: "bookworm".into(),
            packages: Vec::new(),
            root: "/cache/bookworm-1".into(),
            storage: Storage::Overlay,
            dir: "/labs/demo".into(),
            dial: vec!["/usr/bin/quorate".into(), "lab".into(), "dial".into()],
            subnet: Subnet::DEFAULT,
            ipv6: true,
            machines: Vec::new(),
            cuts: Vec::new(),
        };
        let wanted = Wanted {
            machines: Some(machines),
            etcd: Some(etcd),
            load_balancers: Some(load_balancers),
        };
        lab.grow(wanted, || "0".repeat(32)).unwrap();
        lab
    }

    fn roles(lab: &Description) -> Vec<String> {
        lab.machines
            .iter()
            .map(|m| format!("{} {} {}", m.name, m.address, m.role.as_str()))
            .collect()
    }

    #[test]
    fn five_machines_are_three_control_planes_and_two_workers() {
        assert_eq!(
            roles(&lab(5, 0, 0)),
            [
                "m1 10.77.0.11 control-plane",
                "m2 10.77.0.12 control-plane",
                "m3 10.77.0.13 control-plane",
                "m4 10.77.0.14 worker",
                "m5 10.77.0.15 worker",
            ]
        );
    }

    #[test]
    fn two_machines_have_one_control_plane() {
        assert_eq!(
            roles(&lab(2, 0, 1)),
            [
                "m1 10.77.0.11 control-plane",
                "m2 10.77.0.12 worker",
                "lb1 10.77.0.13 load-balancer"
            ]
        );
    }

    #[test]
    fn growing_keeps_what_is_there() {
        let mut lab = lab(3, 1, 0);
        let before = lab.machines.clone();
        let wanted = Wanted {
            machines: Some(4),
            ..Wanted::default()
        };
        lab.grow(wanted, String::new).unwrap();
        assert_eq!(lab.machines[..4], before[..]);
        assert_eq!(lab.machines[4].name, "m4");
        assert_eq!(lab.machines[4].address, Ipv4Addr::new(10, 77, 0, 15));
        let fewer = Wanted {
            machines: Some(3),
            ..Wanted::default()
        };
        assert!(matches!(
            lab.grow(fewer, String::new),
            Err(Error::Shrink { have: 4, .. })
        ));
    }

    #[test]
    fn a_lab_ends_below_its_vip() {
        let mut lab = lab(89, 0, 0);
        assert_eq!(lab.machines[88].address, Ipv4Addr::new(10, 77, 0, 99));
        let wanted = Wanted {
            machines: Some(90),
            ..Wanted::default()
        };
        assert!(matches!(lab.grow(wanted, String::new), Err(Error::TooMany { max: 89 })));
    }

    #[test]
    fn both_addresses_look_alike() {
        let lab = lab(1, 0, 0);
        assert_eq!(lab.machines[0].address6.unwrap().to_string(), "fd00:77::11");
        assert_eq!(lab.operator6().unwrap().to_string(), "fd00:77::1");
    }

    #[test]
    fn names_and_subnets() {
        for good in ["demo", "a", "qt-lab-123"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", "Demo", "1x", "a.b", "a/b", "..", "a-", "a b", &"x".repeat(31)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert_eq!("10.9.8.0/24".parse::<Subnet>().unwrap().to_string(), "10.9.8.0/24");
        for bad in ["10.0.0.0/16", "10.0.0.1/24", "127.0.0.0/24", "240.0.0.0/24", "x"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
