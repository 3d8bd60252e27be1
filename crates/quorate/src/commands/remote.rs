//! `quorate remote`: the far end of a connection, started over SSH. Not for people.

use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Duration;

use quorate_agent::arp;
use quorate_facts::{LinkSeen, Router};
use quorate_machine::local::LinkTools;

/// Serves requests on standard input and output until the other side hangs up.
#[derive(Debug, clap::Args)]
pub(crate) struct RemoteArgs {}

pub(crate) async fn run(RemoteArgs {}: RemoteArgs) -> anyhow::Result<ExitCode> {
    quorate_machine::local::set_link_tools(LinkTools {
        ask: ask_link,
        send_vrrp,
    });
    quorate_machine::remote::serve_stdio().await?;
    Ok(ExitCode::SUCCESS)
}

/// What the agent knows of ARP and VRRP, put the way a machine tells it. The address probes run while VRRP is heard.
fn ask_link(interface: &str, addresses: &[IpAddr], duration: Duration) -> Result<LinkSeen, String> {
    let mut seen = LinkSeen::default();
    std::thread::scope(|scope| {
        let probes: Vec<_> = addresses
            .iter()
            .map(|address| (address, scope.spawn(|| arp::vip_in_use(interface, *address, duration))))
            .collect();
        let routers = arp::listen_vrrp(interface, duration).map_err(|error| error.to_string())?;
        seen.routers = routers
            .into_iter()
            .map(|router| Router {
                vrid: router.vrid,
                version: router.version,
                priority: router.priority,
                source: router.source,
            })
            .collect();
        for (address, probe) in probes {
            let owner = probe.join().map_err(|_| "internal error: a probe died".to_owned())?;
            if let Some(owner) = owner.map_err(|error| error.to_string())? {
                let mac: Vec<String> = owner.mac.iter().map(|byte| format!("{byte:02x}")).collect();
                seen.owners.insert(*address, mac.join(":"));
            }
        }
        Ok(seen)
    })
}

fn send_vrrp(interface: &str, packets: &[(IpAddr, IpAddr)], payload: &[u8]) -> Result<Vec<bool>, String> {
    arp::send_vrrp(interface, packets, payload).map_err(|error| error.to_string())
}
