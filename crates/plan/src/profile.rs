//! What a machine's Facts mean for the programs on it. Everything host-specific is decided here, from what was found.

use quorate_facts::{CgroupVersion, Feature, HostFacts};
use quorate_spec::ProxyMode;

/// Decisions that follow from one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) cgroup_v2: bool,
    /// runc asks systemd for cgroups; needs v2 and a running systemd.
    pub(crate) systemd_cgroups: bool,
    /// `oom_score_adj` may be lowered: the machine has CAP_SYS_RESOURCE.
    pub(crate) oom_adjustable: bool,
    pub(crate) conntrack_writable: bool,
    /// Swap that cannot be turned off from inside (a container's host has it).
    pub(crate) swap_immutable: bool,
    /// Most open files a unit may ask for; `None`: no limit known.
    pub(crate) file_limit: Option<u64>,
    /// Given to Pods instead of `/etc/resolv.conf` when that points at a stub on loopback.
    pub(crate) resolv_conf: Option<String>,
    pub(crate) proxy_mode: &'static str,
    pub(crate) nftables: bool,
}

/// systemd-resolved's file with the real upstream servers; its stub on 127.0.0.53 would loop inside a Pod.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

impl Profile {
    pub(crate) fn of(host: &HostFacts, wanted: ProxyMode) -> Self {
        let cgroup_v2 = host.cgroup.version == CgroupVersion::V2;
        let stub = host.dns_servers.iter().any(|server| server.starts_with("127."));
        let nftables = nftables_usable(host);
        Self {
            cgroup_v2,
            systemd_cgroups: cgroup_v2 && host.systemd.is_some(),
            oom_adjustable: host.oom_score_adj_writable,
            conntrack_writable: host.conntrack_writable,
            swap_immutable: host.container.is_some() && !host.swaps.is_empty(),
            // Raising the hard limit needs the same capability as lowering the score.
            file_limit: (!host.oom_score_adj_writable).then_some(UNPRIVILEGED_FILES),
            resolv_conf: (stub && host.files.get(RESOLVED).is_some_and(|file| file.exists()))
                .then(|| RESOLVED.to_owned()),
            proxy_mode: match wanted {
                ProxyMode::Nftables => "nftables",
                ProxyMode::Iptables => "iptables",
                ProxyMode::Ipvs => "ipvs",
                ProxyMode::Auto if nftables => "nftables",
                ProxyMode::Auto => "iptables",
            },
            nftables,
        }
    }
}

impl Profile {
    /// A machine of which nothing special is known.
    pub(crate) fn plain() -> Self {
        Self {
            cgroup_v2: true,
            systemd_cgroups: true,
            oom_adjustable: true,
            conntrack_writable: true,
            swap_immutable: false,
            file_limit: None,
            resolv_conf: None,
            proxy_mode: "nftables",
            nftables: true,
        }
    }
}

/// Without CAP_SYS_RESOURCE a unit may not go above the hard limit it inherits; container managers commonly give this much.
const UNPRIVILEGED_FILES: u64 = 16_384;

/// KEP-3866: kube-proxy's nftables mode needs Linux 5.13 and the `nft` program. So does flannel's.
fn nftables_usable(host: &HostFacts) -> bool {
    nftables_kernel(host) && host.firewall.nft.is_some() && nft_is_recent(host)
}

pub(crate) fn nftables_kernel(host: &HostFacts) -> bool {
    let tables = !matches!(host.kernel_features.get("nf_tables"), Some(Feature::Absent));
    tables && kernel_at_least(&host.kernel, 5, 13)
}

/// Both go through sigs.k8s.io/knftables, which refuses an `nft` before 1.0.1.
pub(crate) fn nft_is_recent(host: &HostFacts) -> bool {
    let version = host.firewall.nft_version.as_deref();
    version.is_none_or(|version| numbers(version) >= [1, 0, 1])
}

/// `release`: as `uname -r` says.
pub fn kernel_at_least(release: &str, major: u32, minor: u32) -> bool {
    numbers(release) >= [major, minor, 0]
}

/// The first three of a version; what is missing counts as 0.
fn numbers(version: &str) -> [u32; 3] {
    let mut parts = version.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    std::array::from_fn(|_| parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_compare_by_number() {
        for (release, at_least) in [
            ("6.1.0-18-amd64", true),
            ("5.13.0", true),
            ("5.4.0-150-generic", false),
            ("5.9", false),
            ("", false),
            ("10.0", true),
        ] {
            assert_eq!(kernel_at_least(release, 5, 13), at_least, "{release}");
        }
    }

    #[test]
    fn an_nft_that_kube_proxy_refuses_is_not_planned_for() {
        let mut host = HostFacts {
            kernel: "5.15.0-91-generic".into(),
            ..HostFacts::default()
        };
        host.firewall.nft = Some("/usr/sbin/nft".into());
        for (version, mode) in [
            (None, "nftables"),
            (Some("0.9.3"), "iptables"),
            (Some("1.0.0"), "iptables"),
            (Some("1.0.1"), "nftables"),
            (Some("1.1"), "nftables"),
        ] {
            host.firewall.nft_version = version.map(str::to_owned);
            assert_eq!(Profile::of(&host, ProxyMode::Auto).proxy_mode, mode, "{version:?}");
        }
    }
}
