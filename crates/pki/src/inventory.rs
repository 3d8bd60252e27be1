//! Every authority, certificate and key pair a cluster wants, as one table computed from its inputs.
//!
//! Pure: the planner calls it. Subjects and usages are those of kubeadm's `certlist.go`, with two differences made on
//! purpose: the API server's kubelet client has no privileged group (its common name is bound by RBAC to
//! `system:kubelet-api-admin`, as kubeadm 1.37 does), and `system:masters` never lies on a machine.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Where things lie on a machine. kubeadm's layout, and `/etc/etcd/pki` for an etcd that runs as its own user.
pub mod paths {
    pub const PKI: &str = "/etc/kubernetes/pki";
    pub const ETCD_PKI: &str = "/etc/etcd/pki";
    pub const CA_CRT: &str = "/etc/kubernetes/pki/ca.crt";
    pub const CA_KEY: &str = "/etc/kubernetes/pki/ca.key";
    pub const FRONT_PROXY_CA_CRT: &str = "/etc/kubernetes/pki/front-proxy-ca.crt";
    pub const FRONT_PROXY_CA_KEY: &str = "/etc/kubernetes/pki/front-proxy-ca.key";
    /// The etcd CA as API servers use it.
    pub const ETCD_CA_CRT: &str = "/etc/kubernetes/pki/etcd/ca.crt";
    pub const ETCD_CA_KEY: &str = "/etc/kubernetes/pki/etcd/ca.key";
    pub const SA_KEY: &str = "/etc/kubernetes/pki/sa.key";
    pub const SA_PUB: &str = "/etc/kubernetes/pki/sa.pub";
}

/// RBAC group of the everyday administrator; to be bound to `cluster-admin` by the planner's manifests.
pub const ADMIN_GROUP: &str = "quorate:cluster-admins";
/// The same with kubeadm, which binds it itself.
pub const KUBEADM_ADMIN_GROUP: &str = "kubeadm:cluster-admins";
/// Common name of the API server when it calls kubelets; to be bound to ClusterRole `system:kubelet-api-admin`.
pub const KUBELET_CLIENT_NAME: &str = "kube-apiserver-kubelet-client";

/// Days a leaf is valid, as with kubeadm (8760 h).
pub const LEAF_DAYS: u32 = 365;
/// Days an authority is valid, as with kubeadm.
pub const CA_DAYS: u32 = 3650;
/// A leaf is re-issued when fewer days than this remain: a third of its life, so that two missed maintenance windows
/// still leave time.
pub const RENEW_BEFORE_DAYS: u32 = 120;

/// Everything the table depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    pub bootstrap: Bootstrap,
    pub control_planes: Vec<Host>,
    /// etcd members; the same machines as `control_planes` when stacked.
    pub etcd_members: Vec<Host>,
    /// Machines with a kubelet that are not control planes.
    pub workers: Vec<Host>,
    /// How etcd runs, which decides its folder and owner.
    pub etcd: EtcdRun,
    /// Names and addresses of the endpoint: VIP, load balancers.
    pub endpoint_names: Vec<String>,
    pub endpoint_addresses: Vec<IpAddr>,
    /// First address of each service range (the `kubernetes` Service).
    pub service_addresses: Vec<IpAddr>,
    /// For example `cluster.local`.
    pub domain: String,
    /// Further names and addresses for the API servers' certificate.
    pub extra_names: Vec<String>,
    pub extra_addresses: Vec<IpAddr>,
    /// Whether kube-proxy runs as a unit with a certificate of its own (with `Binary` and not replaced by the CNI).
    pub kube_proxy: bool,
}

/// A machine as certificates see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The machine's and node's name.
    pub name: String,
    /// Further DNS names.
    pub names: Vec<String>,
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Bootstrap {
    /// systemd units; kubeconfigs name certificate files, so they hold no secret and clients reload on renewal.
    Binary,
    /// Static Pods by upstream kubeadm; credentials are embedded in its kubeconfigs.
    Kubeadm,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EtcdRun {
    /// systemd unit as this user and group, certificates in [`paths::ETCD_PKI`].
    Systemd { user: String, group: String },
    /// kubeadm's static Pod, certificates in `/etc/kubernetes/pki/etcd`, root.
    StaticPod,
}

/// The table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    pub authorities: Vec<AuthorityWanted>,
    pub certificates: Vec<CertificateWanted>,
    pub key_pairs: Vec<KeyPairWanted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ca {
    Cluster,
    Etcd,
    FrontProxy,
}

impl Ca {
    pub const ALL: [Self; 3] = [Self::Cluster, Self::Etcd, Self::FrontProxy];

    /// As in messages: `cluster`, `etcd`, `front-proxy`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cluster => "cluster",
            Self::Etcd => "etcd",
            Self::FrontProxy => "front-proxy",
        }
    }

    /// kubeadm's common name.
    pub fn common_name(self) -> &'static str {
        match self {
            Self::Cluster => "kubernetes",
            Self::Etcd => "etcd-ca",
            Self::FrontProxy => "front-proxy-ca",
        }
    }

    /// Path below a pki folder without its ending: `ca`, `etcd/ca`, `front-proxy-ca`.
    pub fn stem(self) -> &'static str {
        match self {
            Self::Cluster => "ca",
            Self::Etcd => "etcd/ca",
            Self::FrontProxy => "front-proxy-ca",
        }
    }
}

/// Who holds a certificate.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Holder {
    Machine(String),
    /// The operator's folder only; `place` is relative to its `pki`.
    Operator,
}

/// An authority's certificate, and where needed its key, on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityWanted {
    pub ca: Ca,
    pub machine: String,
    pub certificate: String,
    /// Present on control planes: the controller-manager signs kubelets' requests with the cluster CA, `kubeadm certs
    /// renew` needs all three, and a lost operator's folder is fetched back from there.
    pub key: Option<String>,
    pub owner: Owner,
}

/// A leaf certificate wanted at one place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateWanted {
    /// Stable name of the row, for example `apiserver`, `etcd-server`; with the holder it is unique.
    pub id: String,
    pub holder: Holder,
    pub place: Place,
    pub ca: Ca,
    pub common_name: String,
    /// At most one in practice; a second is refused when issuing.
    pub organizations: Vec<String>,
    /// Sorted, no doubles.
    pub dns: Vec<String>,
    pub ips: Vec<IpAddr>,
    pub server: bool,
    pub client: bool,
    pub days: u32,
    pub owner: Owner,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// PEM files; the certificate 0644, the key 0600.
    Files { certificate: String, key: String },
    /// Embedded in a kubeconfig (0600).
    Kubeconfig { path: String },
}

/// The service-account key pair, the same on every control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyPairWanted {
    pub id: String,
    pub machine: String,
    pub private: String,
    pub public: String,
    pub owner: Owner,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    pub user: String,
    pub group: String,
}

impl Owner {
    pub fn root() -> Self {
        Self {
            user: "root".into(),
            group: "root".into(),
        }
    }
}

/// The whole table, in a stable order: by row, then by machine as given.
pub fn inventory(inputs: &Inputs) -> Inventory {
    Inventory {
        authorities: authorities(inputs),
        certificates: certificates(inputs),
        key_pairs: key_pairs(inputs),
    }
}

impl Inventory {
    /// The rows of one machine.
    pub fn on(&self, machine: &str) -> impl Iterator<Item = &CertificateWanted> {
        self.certificates
            .iter()
            .filter(move |row| matches!(&row.holder, Holder::Machine(name) if name == machine))
    }

    /// A row by its id and machine.
    pub fn find(&self, id: &str, machine: &str) -> Option<&CertificateWanted> {
        self.certificates
            .iter()
            .find(|row| row.id == id && matches!(&row.holder, Holder::Machine(name) if name == machine))
    }
}

fn authorities(inputs: &Inputs) -> Vec<AuthorityWanted> {
    let mut rows = Vec::new();
    for host in &inputs.control_planes {
        for ca in Ca::ALL {
            rows.push(AuthorityWanted {
                ca,
                machine: host.name.clone(),
                certificate: format!("{}/{}.crt", paths::PKI, ca.stem()),
                key: Some(format!("{}/{}.key", paths::PKI, ca.stem())),
                owner: Owner::root(),
            });
        }
    }
    for host in &inputs.workers {
        rows.push(AuthorityWanted {
            ca: Ca::Cluster,
            machine: host.name.clone(),
            certificate: paths::CA_CRT.into(),
            key: None,
            owner: Owner::root(),
        });
    }
    if let EtcdRun::Systemd { .. } = inputs.etcd {
        for host in &inputs.etcd_members {
            rows.push(AuthorityWanted {
                ca: Ca::Etcd,
                machine: host.name.clone(),
                certificate: format!("{}/ca.crt", paths::ETCD_PKI),
                key: None,
                owner: etcd_owner(inputs),
            });
        }
    }
    rows
}

fn key_pairs(inputs: &Inputs) -> Vec<KeyPairWanted> {
    let row = |host: &Host| KeyPairWanted {
        id: "service-account".into(),
        machine: host.name.clone(),
        private: paths::SA_KEY.into(),
        public: paths::SA_PUB.into(),
        owner: Owner::root(),
    };
    inputs.control_planes.iter().map(row).collect()
}

fn certificates(inputs: &Inputs) -> Vec<CertificateWanted> {
    let mut rows = Vec::new();
    for host in &inputs.control_planes {
        rows.push(apiserver(inputs, host));
        rows.push(client(
            host,
            "apiserver-kubelet-client",
            Ca::Cluster,
            KUBELET_CLIENT_NAME,
        ));
        rows.push(client(
            host,
            "apiserver-etcd-client",
            Ca::Etcd,
            "kube-apiserver-etcd-client",
        ));
        rows.push(client(host, "front-proxy-client", Ca::FrontProxy, "front-proxy-client"));
        rows.push(component(
            inputs,
            host,
            "controller-manager",
            "system:kube-controller-manager",
        ));
        rows.push(component(inputs, host, "scheduler", "system:kube-scheduler"));
        if inputs.bootstrap == Bootstrap::Kubeadm {
            let mut admin = component(inputs, host, "admin", "kubernetes-admin");
            admin.organizations = vec![KUBEADM_ADMIN_GROUP.into()];
            rows.push(admin);
        }
    }
    for host in &inputs.etcd_members {
        rows.extend(etcd(inputs, host));
    }
    if inputs.kube_proxy && inputs.bootstrap == Bootstrap::Binary {
        for host in inputs.control_planes.iter().chain(&inputs.workers) {
            rows.push(client(host, "kube-proxy", Ca::Cluster, "system:kube-proxy"));
        }
    }
    let group = match inputs.bootstrap {
        Bootstrap::Binary => ADMIN_GROUP,
        Bootstrap::Kubeadm => KUBEADM_ADMIN_GROUP,
    };
    rows.push(operator("admin", "kubernetes-admin", group));
    rows.push(operator("super-admin", "kubernetes-super-admin", "system:masters"));
    rows
}

fn apiserver(inputs: &Inputs, host: &Host) -> CertificateWanted {
    let domain = &inputs.domain;
    let mut dns = vec![
        host.name.clone(),
        "kubernetes".into(),
        "kubernetes.default".into(),
        "kubernetes.default.svc".into(),
        format!("kubernetes.default.svc.{domain}"),
        // Components of this machine, and the local proxy of the nodes, are reached over loopback.
        "localhost".into(),
    ];
    dns.extend(
        [&host.names, &inputs.endpoint_names, &inputs.extra_names]
            .into_iter()
            .flatten()
            .cloned(),
    );
    let mut ips = loopback();
    ips.extend(
        [
            &host.addresses,
            &inputs.service_addresses,
            &inputs.endpoint_addresses,
            &inputs.extra_addresses,
        ]
        .into_iter()
        .flatten(),
    );
    let mut row = client(host, "apiserver", Ca::Cluster, "kube-apiserver");
    (row.server, row.client) = (true, false);
    (row.dns, row.ips) = (sorted(dns), sorted(ips));
    row
}

/// Server, peer and health check of one member. etcd checks both usages on its server certificate too, because the
/// gRPC gateway of a member is a client of the member itself.
fn etcd(inputs: &Inputs, host: &Host) -> Vec<CertificateWanted> {
    let folder = match inputs.etcd {
        EtcdRun::Systemd { .. } => paths::ETCD_PKI.to_owned(),
        EtcdRun::StaticPod => format!("{}/etcd", paths::PKI),
    };
    let names = sorted(
        host.names
            .iter()
            .cloned()
            .chain([host.name.clone(), "localhost".into()])
            .collect(),
    );
    let addresses = sorted(loopback().into_iter().chain(host.addresses.iter().copied()).collect());
    ["server", "peer", "healthcheck-client"]
        .map(|file| {
            let is_client_only = file == "healthcheck-client";
            let mut row = client(host, &format!("etcd-{file}"), Ca::Etcd, &host.name);
            row.place = files(&format!("{folder}/{file}"));
            row.owner = etcd_owner(inputs);
            if is_client_only {
                row.common_name = "kube-etcd-healthcheck-client".into();
            } else {
                row.server = true;
                (row.dns, row.ips) = (names.clone(), addresses.clone());
            }
            row
        })
        .into()
}

/// A client of the API server that reads a kubeconfig.
fn component(inputs: &Inputs, host: &Host, id: &str, common_name: &str) -> CertificateWanted {
    let mut row = client(host, id, Ca::Cluster, common_name);
    if inputs.bootstrap == Bootstrap::Kubeadm {
        row.place = Place::Kubeconfig {
            path: format!("/etc/kubernetes/{id}.conf"),
        };
    }
    row
}

fn client(host: &Host, id: &str, ca: Ca, common_name: &str) -> CertificateWanted {
    CertificateWanted {
        id: id.into(),
        holder: Holder::Machine(host.name.clone()),
        place: files(&format!("{}/{id}", paths::PKI)),
        ca,
        common_name: common_name.into(),
        organizations: Vec::new(),
        dns: Vec::new(),
        ips: Vec::new(),
        server: false,
        client: true,
        days: LEAF_DAYS,
        owner: Owner::root(),
    }
}

fn operator(id: &str, common_name: &str, group: &str) -> CertificateWanted {
    CertificateWanted {
        id: id.into(),
        holder: Holder::Operator,
        place: files(id),
        ca: Ca::Cluster,
        common_name: common_name.into(),
        organizations: vec![group.into()],
        dns: Vec::new(),
        ips: Vec::new(),
        server: false,
        client: true,
        days: LEAF_DAYS,
        owner: Owner::root(),
    }
}

fn files(stem: &str) -> Place {
    Place::Files {
        certificate: format!("{stem}.crt"),
        key: format!("{stem}.key"),
    }
}

fn etcd_owner(inputs: &Inputs) -> Owner {
    match &inputs.etcd {
        EtcdRun::Systemd { user, group } => Owner {
            user: user.clone(),
            group: group.clone(),
        },
        EtcdRun::StaticPod => Owner::root(),
    }
}

fn loopback() -> Vec<IpAddr> {
    vec![IpAddr::from([127, 0, 0, 1]), IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)]
}

fn sorted<T: Ord>(mut items: Vec<T>) -> Vec<T> {
    items.sort();
    items.dedup();
    items
}
