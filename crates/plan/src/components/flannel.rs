//! flannel as a unit: `flanneld --kube-subnet-mgr`, and the conflist its subnet file leads to.

use serde_json::json;

use crate::components::unit::{Flags, Unit};
use crate::paths;
use crate::profile::Profile;

pub(crate) struct Flannel<'a> {
    pub(crate) pods_v4: Option<String>,
    pub(crate) pods_v6: Option<String>,
    pub(crate) backend: &'a str,
    /// UDP port of the overlay.
    pub(crate) port: u16,
    pub(crate) mtu: Option<u32>,
    pub(crate) interface: Option<String>,
    pub(crate) nftables: bool,
}

impl Flannel<'_> {
    pub(crate) fn net_conf(&self) -> String {
        let mut backend = json!({"Type": self.backend, "Port": self.port});
        if let Some(mtu) = self.mtu {
            backend["MTU"] = json!(mtu);
        }
        let mut conf = json!({"Backend": backend, "EnableNFTables": self.nftables});
        conf["EnableIPv4"] = json!(self.pods_v4.is_some());
        if let Some(pods) = &self.pods_v4 {
            conf["Network"] = json!(pods);
        }
        if let Some(pods) = &self.pods_v6 {
            conf["EnableIPv6"] = json!(true);
            conf["IPv6Network"] = json!(pods);
        }
        format!("{conf:#}\n")
    }

    pub(crate) fn unit(&self, node: &str, profile: &Profile) -> String {
        let mut flags = Flags::default();
        flags
            .set("kube-subnet-mgr", "true")
            .set("kubeconfig-file", format!("{}/flannel.conf", paths::KUBERNETES))
            .set("net-config-path", format!("{}/flannel-net.json", paths::KUBERNETES))
            .set("ip-masq", "true")
            .set("subnet-file", "/run/flannel/subnet.env");
        if let Some(interface) = &self.interface {
            flags.set("iface", interface);
        }
        Unit {
            description: "flannel Pod network",
            documentation: "https://github.com/flannel-io/flannel",
            after: &["kubelet.service"],
            program: paths::bin("flanneld"),
            flags,
            notify: true,
            service: vec![
                format!("Environment=NODE_NAME={node}"),
                "RuntimeDirectory=flannel".into(),
                "RuntimeDirectoryPreserve=yes".into(),
                // flannel says READY when the subnet file is there; the conflist follows from it.
                format!(
                    "ExecStartPost={} cni --subnet-env /run/flannel/subnet.env --output {}/{}",
                    paths::bin("quorate"),
                    paths::CNI_CONF,
                    paths::CNI_FILE
                ),
            ],
            oom_score: -999,
            files: 65_536,
        }
        .render(profile)
    }
}
