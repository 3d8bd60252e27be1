//! The conflist that follows from flannel's subnet file: the upstream `bridge` plugin with `host-local` addresses.
//!
//! flannel's own CNI plugin does the same translation at every Pod start; doing it once, when flannel says it is ready,
//! needs no further plugin.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// `subnet_env`: `FLANNEL_NETWORK=…`, `FLANNEL_SUBNET=10.244.1.1/24`, `FLANNEL_MTU=1450`, `FLANNEL_IPMASQ=true`, and the
/// `FLANNEL_IPV6_…` pair of a dual-stack network.
pub fn conflist(subnet_env: &str) -> Result<String, String> {
    let values: BTreeMap<&str, &str> = subnet_env.lines().filter_map(|line| line.split_once('=')).collect();
    let mtu: u32 = values
        .get("FLANNEL_MTU")
        .and_then(|text| text.trim().parse().ok())
        .ok_or("no FLANNEL_MTU in the subnet file")?;
    let ranges: Vec<Value> = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]
        .iter()
        .filter_map(|key| values.get(key))
        .map(|subnet| subnet.trim())
        .filter(|subnet| !subnet.is_empty())
        .map(|subnet| network(subnet).map(|network| json!([{"subnet": network}])))
        .collect::<Result<_, _>>()?;
    if ranges.is_empty() {
        return Err("no FLANNEL_SUBNET in the subnet file".into());
    }
    let networks = ["FLANNEL_NETWORK", "FLANNEL_IPV6_NETWORK"]
        .iter()
        .filter_map(|key| values.get(key))
        .flat_map(|list| list.split(','));
    let routes: Vec<Value> = networks
        .map(str::trim)
        .filter(|network| !network.is_empty())
        .map(|network| json!({"dst": network}))
        .collect();
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "quorate",
        "plugins": [
            {
                "type": "bridge", "bridge": "cni0", "isGateway": true, "isDefaultGateway": true, "hairpinMode": true, "mtu": mtu,
                // flannel masquerades what leaves the Pod network.
                "ipMasq": false,
                "ipam": {"type": "host-local", "ranges": ranges, "routes": routes},
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    });
    Ok(format!("{list:#}\n"))
}

/// `10.244.1.1/24` → `10.244.1.0/24`
fn network(subnet: &str) -> Result<String, String> {
    let bad = || format!("FLANNEL_SUBNET {subnet:?} is no subnet");
    let (address, prefix) = subnet.split_once('/').ok_or_else(bad)?;
    let prefix: u32 = prefix.parse().map_err(|_| bad())?;
    Ok(match address.parse().map_err(|_| bad())? {
        std::net::IpAddr::V4(address) if prefix <= 32 => {
            let mask = u32::MAX.checked_shl(32 - prefix).unwrap_or(0);
            format!("{}/{prefix}", std::net::Ipv4Addr::from_bits(address.to_bits() & mask))
        }
        std::net::IpAddr::V6(address) if prefix <= 128 => {
            let mask = u128::MAX.checked_shl(128 - prefix).unwrap_or(0);
            format!("{}/{prefix}", std::net::Ipv6Addr::from_bits(address.to_bits() & mask))
        }
        _ => return Err(bad()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subnet_file_becomes_a_bridge() {
        let text =
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.3.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
        let list: Value = serde_json::from_str(&conflist(text).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["ipam"]["ranges"][0][0]["subnet"], "10.244.3.0/24");
        assert_eq!(list["plugins"][0]["mtu"], 1450);
    }

    #[test]
    fn a_half_written_file_is_an_error() {
        for text in [
            "",
            "FLANNEL_SUBNET=10.244.3.1/24\n",
            "FLANNEL_MTU=1450\n",
            "FLANNEL_MTU=1450\nFLANNEL_SUBNET=10.244.3.1\n",
        ] {
            assert!(conflist(text).is_err(), "{text:?}");
        }
    }
}
