//! Netfilter's part: masquerading of connections through the virtual addresses, and silence about them on the link.
//!
//! One table of our own, written as a whole by `nft -f -` (one transaction). Whether anybody changed the rule set since
//! is asked from the kernel by its generation number, so that the usual check costs one netlink message.

use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

use super::Error;
use crate::netlink::codec::{self, MessageBuilder};
use crate::netlink::{Netlink, Protocol};

const TABLE: &str = "quorate_ipvs";
/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN`.
const GET_GENERATION: u16 = 10 << 8 | 16;
const GENERATION_ID: u16 = 1;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// Keeps our tables as they should be.
#[derive(Debug, Default)]
pub(super) struct Rules {
    /// Last rules written, and the rule set's generation right after.
    written: Option<(String, Option<u32>)>,
}

impl Rules {
    /// Makes the tables fit; returns whether anything had to be written.
    pub(super) fn ensure(&mut self, masqueraded: &[IpAddr], silent: &[IpAddr]) -> Result<bool, Error> {
        let wanted = rules(masqueraded, silent);
        if wanted.is_empty() {
            return self.remove();
        }
        let generation = generation();
        if let Some((written, at)) = &mut self.written
            && *written == wanted
        {
            if generation.is_some() && generation == *at {
                return Ok(false);
            }
            if present(silent) {
                *at = generation;
                return Ok(false);
            }
        }
        nft(&(removal() + &wanted))?;
        self.written = Some((wanted, self::generation()));
        Ok(true)
    }

    /// Removes our tables; returns whether there were any as far as we know.
    pub(super) fn remove(&mut self) -> Result<bool, Error> {
        if self.written.take().is_none() {
            return Ok(false);
        }
        nft(&removal()).map(|()| true)
    }

    /// Removes tables that an earlier process left.
    pub(super) fn remove_leftovers() {
        // Without nft there can be none.
        let _ = nft(&removal());
    }
}

/// The tables as a script.
fn rules(masqueraded: &[IpAddr], silent: &[IpAddr]) -> String {
    let list = |addresses: &[IpAddr], v4: bool| -> String {
        let texts: Vec<String> = addresses
            .iter()
            .filter(|one| one.is_ipv4() == v4)
            .map(IpAddr::to_string)
            .collect();
        texts.join(", ")
    };
    let mut text = String::new();
    if !masqueraded.is_empty() {
        text += &format!(
            "table inet {TABLE} {{\n chain postrouting {{\n  type nat hook postrouting priority 100; policy accept;\n"
        );
        for (v4, word) in [(true, "ip"), (false, "ip6")] {
            let addresses = list(masqueraded, v4);
            if !addresses.is_empty() {
                // The connection as its client began it: IPVS has rewritten the packet by now.
                text += &format!("  ct original {word} daddr {{ {addresses} }} masquerade\n");
            }
        }
        text += " }\n}\n";
    }
    let v4 = list(silent, true);
    if !v4.is_empty() {
        // Every machine has the address, so none may answer for it; IPv6 does not answer for other interfaces' addresses.
        text += &format!(
            "table arp {TABLE} {{\n chain input {{\n  type filter hook input priority 0; policy accept;\n  arp daddr ip {{ {v4} }} drop\n }}\n}}\n"
        );
    }
    text
}

/// A table has to exist to be deleted.
fn removal() -> String {
    ["inet", "arp"]
        .iter()
        .map(|family| format!("table {family} {TABLE}\ndelete table {family} {TABLE}\n"))
        .collect()
}

fn present(silent: &[IpAddr]) -> bool {
    let listed = |family: &str, word: &str| {
        let output = Command::new("nft")
            .args(["list", "table", family, TABLE])
            .stdin(Stdio::null())
            .output();
        output.is_ok_and(|output| output.status.success() && String::from_utf8_lossy(&output.stdout).contains(word))
    };
    listed("inet", "masquerade") && (silent.iter().all(IpAddr::is_ipv6) || listed("arp", "drop"))
}

/// Grows with each change of anybody's rules; `None` if the kernel does not tell.
fn generation() -> Option<u32> {
    let mut netlink = Netlink::open(Protocol::Netfilter).ok()?;
    let mut found = None;
    let message = MessageBuilder::new(GET_GENERATION, 0).fixed(&[0; HEADER]);
    let answer = netlink.query("asking for the rule set's generation", message, |message| {
        let body = message.payload.get(HEADER..).unwrap_or_default();
        found = codec::attributes(body)
            .find(|(kind, _)| *kind == GENERATION_ID)
            .and_then(|(_, data)| data.try_into().ok().map(u32::from_be_bytes));
    });
    answer.ok().and(found)
}

fn nft(script: &str) -> Result<(), Error> {
    let failed = |reason: String| Error::Rules { reason };
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(format!("cannot start nft: {error}; install nftables")))?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(script.as_bytes())
            .map_err(|error| failed(error.to_string()))?;
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failed(text.lines().next().unwrap_or("nft failed").to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_own_rule() {
        let addresses: Vec<IpAddr> = ["10.9.9.9", "fd00::9"].map(|text| text.parse().expect("ip")).into();
        let text = rules(&addresses, &addresses);
        assert!(text.contains("ct original ip daddr { 10.9.9.9 } masquerade"), "{text}");
        assert!(text.contains("ct original ip6 daddr { fd00::9 } masquerade"), "{text}");
        assert!(text.contains("arp daddr ip { 10.9.9.9 } drop"), "{text}");
        assert_eq!(rules(&[], &[]), "");
        assert!(
            !rules(&[], &addresses[..1]).contains("inet"),
            "no masquerading unless asked for"
        );
    }
}
