//! `spec.network` and `spec.dns`: ranges, what fits into them, and that nothing overlaps.

use ipnet::IpNet;

use super::address::{self, family};
use super::machines::Draft;
use crate::derive::{nth_address, share_count, usable};
use crate::document::{Document, Path, at};
use crate::file::{CniFile, DnsFile, FlannelFile, KubeletFile, NetworkFile, OneOrMany};
use crate::spec::*;

/// kubelet's own default.
pub(super) const DEFAULT_MAX_PODS: u32 = 110;
/// kube-controller-manager refuses more shares than 2^16 (`NewCIDRSet`: "subnet mask size difference").
const MAX_SHARE_BITS: u8 = 16;
/// kubeadm's `MaximumBitsForServiceSubnet`.
const MAX_SERVICE_BITS: u8 = 20;
/// The 10th address is DNS's; kubeadm's `MinimumAddressesInServiceSubnet`, rounded up to a prefix length.
const MIN_SERVICE_BITS: u8 = 4;
/// A share below 16 addresses holds fewer Pods than a node's own system Pods and a rolling update need.
const MIN_NODE_BITS: u8 = 4;

pub(super) fn network(document: &mut Document<'_>, file: &NetworkFile, drafts: &[Draft<'_>]) -> Option<Network> {
    let at = at!["spec", "network"];
    let machines_v6 = drafts.iter().find_map(|d| d.address).is_some_and(|a| a.is_ipv6());
    // A range of the wrong family would be a second finding about what the user never wrote: follow what is given.
    let first_is_v6 = |given: &Option<OneOrMany>| {
        given
            .as_ref()
            .and_then(|g| g.as_slice().first())
            .map(|text| text.contains(':'))
    };
    let v6 = first_is_v6(&file.pods)
        .or(first_is_v6(&file.services))
        .unwrap_or(machines_v6);
    let pods = ranges(
        document,
        &at.join("pods"),
        file.pods.as_ref(),
        if v6 { "fd00:10:244::/56" } else { "10.244.0.0/16" },
        "the Pod range",
    );
    let services = ranges(
        document,
        &at.join("services"),
        file.services.as_ref(),
        if v6 { "fd00:10:96::/112" } else { "10.96.0.0/16" },
        "the Service range",
    );
    let node_mask_v4 = file.pods_per_node_mask.unwrap_or(24);
    let node_mask_v6 = file.pods_per_node_mask_v6.unwrap_or(64);
    for (i, net) in pods.iter().flatten().enumerate() {
        let (mask, field) = if net.addr().is_ipv4() {
            (node_mask_v4, "podsPerNodeMask")
        } else {
            (node_mask_v6, "podsPerNodeMaskV6")
        };
        let range_at = item(&at.join("pods"), file.pods.as_ref(), i);
        shares(document, &at.join(field), &range_at, *net, mask, drafts);
    }
    for (i, net) in services.iter().flatten().enumerate() {
        service_size(document, &item(&at.join("services"), file.services.as_ref(), i), *net);
    }
    if let (Some(pods), Some(services)) = (&pods, &services) {
        families(document, &at, pods, services, drafts);
    }
    let cni = cni(document, file);
    let node_ports = node_ports(
        document,
        &at.join("nodePorts"),
        file.node_ports.as_deref().unwrap_or("30000-32767"),
    );
    Some(Network {
        pods: pods?,
        services: services?,
        node_mask_v4,
        node_mask_v6,
        cni,
        node_ports: node_ports?,
    })
}

pub(super) fn dns(
    document: &mut Document<'_>,
    file: &DnsFile,
    network: Option<&Network>,
    drafts: &[Draft<'_>],
) -> Option<Dns> {
    let at = at!["spec", "dns", "clusterIp"];
    let nodes = drafts.iter().filter(|d| d.is_node()).count();
    let replicas = file.replicas.unwrap_or(if nodes == 1 { 1 } else { 2 });
    let network = network?;
    let Some(given) = &file.cluster_ip else {
        // Upstream's convention (kubeadm `GetDNSIP`). Ranges too small for it were reported.
        let cluster_ips = network
            .services
            .iter()
            .filter_map(|net| nth_address(*net, 10))
            .collect();
        return Some(Dns { replicas, cluster_ips });
    };
    let mut cluster_ips = Vec::new();
    for (i, text) in given.as_slice().iter().enumerate() {
        let here = item(&at, Some(given), i);
        let Some(address) = address::host(document, &here, text, "the DNS address") else {
            continue;
        };
        let inside = network.services.iter().find(|net| net.contains(&address));
        let why = match inside {
            None => Some("it is outside of the Service range".to_owned()),
            Some(net) if nth_address(*net, 1) == Some(address) => {
                Some("the first address is the `kubernetes` Service's".to_owned())
            }
            Some(net) if address == net.network() || (address.is_ipv4() && address == net.broadcast()) => {
                Some("the range's network and broadcast addresses are not given out".to_owned())
            }
            Some(_) => None,
        };
        if let Some(why) = why {
            let tenth = network.services.iter().find_map(|net| nth_address(*net, 10));
            document
                .error(
                    "bad-dns-address",
                    &here,
                    format!("the DNS Service cannot have the address {address}"),
                )
                .reason(why)
                .fix(tenth.map_or_else(
                    || "leave it out".to_owned(),
                    |a| format!("leave it out to get {a}, the 10th address"),
                ));
        }
        cluster_ips.push(address);
    }
    let same_families = cluster_ips.len() == network.services.len()
        && cluster_ips
            .iter()
            .zip(&network.services)
            .all(|(a, net)| a.is_ipv4() == net.addr().is_ipv4());
    if !same_families && cluster_ips.len() == given.as_slice().len() {
        document
            .error(
                "family-mismatch",
                &at,
                "`dns.clusterIp` does not have one address for each Service range",
            )
            .reason("DNS is reached over every family that the Services have")
            .fix("give one address per range, in the order of `network.services`, or leave it out");
    }
    Some(Dns { replicas, cluster_ips })
}

/// kubelet's `maxPods`, which may be no more than a node's share.
pub(super) fn max_pods(document: &mut Document<'_>, file: &KubeletFile, network: &Network) -> u32 {
    let room = network
        .pods
        .iter()
        .map(|net| usable(*net, network.node_mask(*net)))
        .min()
        .unwrap_or(u128::MAX);
    let room = u32::try_from(room).unwrap_or(u32::MAX);
    match file.max_pods {
        None => DEFAULT_MAX_PODS.min(room),
        Some(wanted) => {
            if wanted > room {
                document
                    .error(
                        "pods-do-not-fit",
                        &at!["spec", "kubernetes", "kubelet", "maxPods"],
                        format!(
                            "{wanted} Pods do not fit on a node, whose share of the Pod range has {room} addresses"
                        ),
                    )
                    .reason("the Pods beyond that would hang in ContainerCreating, with no address")
                    .fix(format!(
                        "write at most {room}, or make the node's share larger: a smaller `network.podsPerNodeMask`"
                    ));
            }
            wanted
        }
    }
}

/// Where the `i`-th of one or many stands.
pub(super) fn item(at: &Path, given: Option<&OneOrMany>, i: usize) -> Path {
    match given {
        Some(OneOrMany::Many(_)) => at.join(i),
        _ => at.clone(),
    }
}

fn ranges(
    document: &mut Document<'_>,
    at: &Path,
    given: Option<&OneOrMany>,
    default: &str,
    what: &str,
) -> Option<Vec<IpNet>> {
    let Some(given) = given else {
        return default.parse().ok().map(|net| vec![net]);
    };
    // `a,b` is how the components' flags are written.
    if let OneOrMany::One(text) = given
        && text.contains(',')
    {
        document
            .error("bad-cidr", at, format!("{what} `{text}` is no address range"))
            .reason("two ranges are written as a list here")
            .fix(format!(
                "write `[\"{}\"]`",
                text.split(',').map(str::trim).collect::<Vec<_>>().join("\", \"")
            ));
        return None;
    }
    let nets: Vec<Option<IpNet>> = given
        .as_slice()
        .iter()
        .enumerate()
        .map(|(i, text)| address::range(document, &item(at, Some(given), i), text, what))
        .collect();
    let nets: Vec<IpNet> = nets.into_iter().collect::<Option<_>>()?;
    let fix = "give one range, or one IPv4 and one IPv6 range";
    if nets.is_empty() {
        document
            .error("family-mismatch", at, format!("{what} is an empty list"))
            .reason("there is no cluster without it")
            .fix(fix);
        return None;
    }
    if nets.len() > 2 || (nets.len() == 2 && nets[0].addr().is_ipv4() == nets[1].addr().is_ipv4()) {
        let message = format!("{what} is given {} times, not once per address family", nets.len());
        document
            .error("family-mismatch", at, message)
            .reason("Kubernetes has at most one range of each family")
            .fix(fix);
        return None;
    }
    Some(nets)
}

fn shares(document: &mut Document<'_>, mask_at: &Path, range_at: &Path, net: IpNet, mask: u8, drafts: &[Draft<'_>]) {
    let machines = at!["spec", "machines"];
    let at = [mask_at, range_at]
        .into_iter()
        .find(|at| document.is_written(at))
        .unwrap_or(&machines);
    if mask < net.prefix_len() {
        document
            .error(
                "pod-range-too-small",
                at,
                format!("a node's share (/{mask}) is larger than the whole Pod range {net}"),
            )
            .reason("no node would get Pod addresses")
            .fix(format!(
                "use a larger Pod range, or a longer mask: /{} gives 16 nodes",
                (net.prefix_len() + 4).min(net.max_prefix_len())
            ));
        return;
    }
    if net.max_prefix_len() - mask < MIN_NODE_BITS {
        let pods = usable(net, mask);
        document
            .error(
                "node-share-too-small",
                at,
                format!("a node's share of /{mask} has room for {pods} Pods only"),
            )
            .reason("a node's own system Pods and one rolling update need more than that")
            .fix(format!(
                "use a mask of at most /{}",
                net.max_prefix_len() - MIN_NODE_BITS
            ));
        return;
    }
    if mask - net.prefix_len() > MAX_SHARE_BITS {
        document
            .error(
                "too-many-shares",
                at,
                format!("{net} in shares of /{mask} makes more than 65536 shares"),
            )
            .reason("kube-controller-manager refuses to count so many")
            .fix(format!("use a mask of at most /{}", net.prefix_len() + MAX_SHARE_BITS));
        return;
    }
    let (room, nodes) = (
        share_count(net, mask),
        drafts.iter().filter(|d| d.is_node()).count() as u128,
    );
    let wider = (0..net.prefix_len())
        .rev()
        .find(|p| 1u128.checked_shl(u32::from(mask - p)).is_none_or(|n| n >= nodes));
    if nodes > room {
        document
            .error(
                "nodes-do-not-fit",
                at,
                format!("{nodes} nodes do not fit: {net} in shares of /{mask} is enough for {room}"),
            )
            .reason("the nodes beyond that get no Pod addresses and never become Ready")
            .fix(match wider {
                Some(prefix) => format!("use a Pod range of at least /{prefix}, or a longer mask"),
                None => "use a longer mask".to_owned(),
            });
    } else if nodes == room && room > 1 {
        document
            .warn(
                "no-room-to-grow",
                at,
                format!("{net} in shares of /{mask} is enough for {room} nodes, and there are {nodes} already"),
            )
            .reason("a Pod range cannot be changed later, so not one node could be added")
            .fix("use a larger Pod range or a longer mask now");
    }
}

fn service_size(document: &mut Document<'_>, at: &Path, net: IpNet) {
    let bits = net.max_prefix_len() - net.prefix_len();
    if bits < MIN_SERVICE_BITS {
        document
            .error(
                "service-range-too-small",
                at,
                format!("the Service range {net} has {} addresses", 1u32 << bits),
            )
            .reason("the 10th is DNS's, and every Service needs one")
            .fix(format!(
                "use at least /{}; /16 is usual",
                net.max_prefix_len() - MIN_SERVICE_BITS
            ));
    } else if bits > MAX_SERVICE_BITS {
        document
            .error(
                "service-range-too-large",
                at,
                format!("the Service range {net} is too large"),
            )
            .reason(format!(
                "Kubernetes keeps a bitmap of it and accepts at most 2^{MAX_SERVICE_BITS} addresses"
            ))
            .fix(format!("use /{} or longer", net.max_prefix_len() - MAX_SERVICE_BITS));
    }
}

fn families(document: &mut Document<'_>, at: &Path, pods: &[IpNet], services: &[IpNet], drafts: &[Draft<'_>]) {
    let text = document.text;
    let spell = |nets: &[IpNet]| nets.iter().map(|n| family(n.addr())).collect::<Vec<_>>().join(" and ");
    if spell(pods) != spell(services) {
        let span = document.span(&at.join("pods"));
        document
            .error(
                "family-mismatch",
                &at.join("services"),
                format!("Services have {}, Pods have {}", spell(services), spell(pods)),
            )
            .reason("a Service of one family cannot lead to Pods of the other")
            .fix("give `pods` and `services` the same families in the same order")
            .also(text, span, format!("Pods have {}", spell(pods)));
        return;
    }
    let Some((first, address)) = drafts.iter().find_map(|d| d.address.map(|a| (d, a))) else {
        return;
    };
    if address.is_ipv4() != pods[0].addr().is_ipv4() {
        let (machine, pod) = (family(address), family(pods[0].addr()));
        let span = document.span(&first.at().join("address"));
        document
            .error(
                "family-mismatch",
                &at.join("pods"),
                format!("the first Pod range is {pod}, the machines' addresses are {machine}"),
            )
            .reason("the API server's own Service has the first family, and leads to the control planes' addresses")
            .fix(if pods.len() == 2 {
                format!("put the {machine} ranges first")
            } else {
                format!("give {machine} ranges for `pods` and `services`")
            })
            .also(text, span, machine);
    } else if pods.len() == 2 {
        for draft in drafts.iter().filter(|d| d.is_node()) {
            let addresses = draft.all_addresses();
            if !addresses.is_empty()
                && pods
                    .iter()
                    .any(|net| addresses.iter().all(|a| a.is_ipv4() != net.addr().is_ipv4()))
            {
                let missing = if address.is_ipv4() { "IPv6" } else { "IPv4" };
                document
                    .error(
                        "dual-stack-address-missing",
                        &draft.at(),
                        format!(
                            "machine `{}` has no {missing} address, but the cluster is dual-stack",
                            draft.name
                        ),
                    )
                    .reason("a node needs an address of each family that its Pods have")
                    .fix(format!(
                        "add `addresses: [\"{}\"]`",
                        if missing == "IPv6" { "fd00::11" } else { "10.0.0.11" }
                    ));
            }
        }
    }
}

fn cni(document: &mut Document<'_>, file: &NetworkFile) -> Cni {
    let at = at!["spec", "network", "flannel"];
    let default = FlannelFile::default();
    let flannel = file.flannel.as_ref().unwrap_or(&default);
    if file.cni == Some(CniFile::None) {
        if file.flannel.is_some() {
            document
                .warn(
                    "options-unused",
                    &at,
                    "flannel's settings are not used with `cni: none`",
                )
                .reason("no Pod network is installed")
                .fix("leave them out, or write `cni: flannel`");
        }
        return Cni::None;
    }
    let backend = flannel.backend.map_or(FlannelBackend::Vxlan, Into::into);
    let mtu = match flannel.mtu.as_deref() {
        None | Some("auto") => None,
        Some(text) => match text.parse::<u16>() {
            Ok(mtu) if mtu >= 1280 => Some(mtu),
            _ => {
                document
                    .error("bad-mtu", &at.join("mtu"), format!("`{text}` is no MTU"))
                    .reason("IPv6 needs 1280 bytes (RFC 8200), and an interface has at most 65535")
                    .fix("write `auto`, or a number such as 1450");
                None
            }
        },
    };
    if backend == FlannelBackend::HostGw && flannel.port.is_some() {
        document
            .warn(
                "options-unused",
                &at.join("port"),
                "`port` is not used with `backend: host-gw`",
            )
            .reason("host-gw sets routes and encapsulates nothing")
            .fix("leave it out");
    }
    // flannel's default on Linux.
    Cni::Flannel(Flannel {
        backend,
        port: flannel.port.unwrap_or(8472),
        mtu,
    })
}

fn node_ports(document: &mut Document<'_>, at: &Path, text: &str) -> Option<PortRange> {
    let range = text
        .split_once('-')
        .and_then(|(a, b)| Some((a.trim().parse().ok()?, b.trim().parse().ok()?)));
    let Some((first, last)) = range.filter(|(first, last): &(u16, u16)| first <= last && *first > 0) else {
        document
            .error("bad-port-range", at, format!("`{text}` is no range of ports"))
            .reason("two ports from 1 to 65535 are wanted, the smaller one first")
            .fix("write e.g. `30000-32767`");
        return None;
    };
    Some(PortRange { first, last })
}
