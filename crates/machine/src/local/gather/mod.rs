//! Everything there is to know about this host, at once. What is slow (other programs, hashing) runs side by side.

mod files;
mod kernel;
mod system;

use std::{collections::BTreeMap, sync::Arc};

use quorate_facts::{HostFacts, KeptRun, SystemdFacts};
use tokio::join;

use super::{
    Session, blobs, blocking,
    exec::{PATH, tool},
    files as kept, host, netlink,
    owners::Owners,
    procfs, units,
};
use crate::{error::RemoteError, proto::GatherQuery};

/// Time services whose activity tells who keeps the clock; firewalls that would be in the way.
const TIME_SERVICES: [&str; 6] = [
    "chrony.service",
    "chronyd.service",
    "systemd-timesyncd.service",
    "ntpsec.service",
    "ntp.service",
    "ntpd.service",
];
const FIREWALLD: &str = "firewalld.service";
const TOOL_TIMEOUT_MS: u64 = 5_000;

pub(super) async fn gather(session: Arc<Session>, query: GatherQuery) -> Result<HostFacts, RemoteError> {
    let query = Arc::new(query);
    let (files, own) = (session.clone(), session.clone());
    let (asked, walked) = (query.clone(), query.clone());
    let watched: Vec<String> = query
        .units
        .iter()
        .cloned()
        .chain(TIME_SERVICES.into_iter().chain([FIREWALLD]).map(str::to_owned))
        .collect();
    let (host, files, units, manager, tables, nft, iptables) = join!(
        blocking(move || Ok(of_host(&own, &asked))),
        blocking(move || files::walk(&files, &walked)),
        units::status(&watched),
        tool(
            &["systemctl", "show", "--property=Version,SystemState,Environment"],
            b"",
            TOOL_TIMEOUT_MS
        ),
        tool(&["nft", "list", "chains"], b"", TOOL_TIMEOUT_MS),
        tool(&["nft", "--version"], b"", TOOL_TIMEOUT_MS),
        tool(&["iptables", "--version"], b"", TOOL_TIMEOUT_MS),
    );
    let (mut facts, found) = (host?, files?);
    facts.files = found.files;
    facts.certificates = found.certificates;
    facts.keys = found.keys;
    facts.problems.extend(found.problems);

    if units::need_systemd().is_ok() {
        match units {
            Ok(mut units) => {
                let active = |name: &str| units.get(name).is_some_and(|unit| unit.is_active());
                facts.clock.service = TIME_SERVICES
                    .into_iter()
                    .find(|name| active(name))
                    .map(|name| name.trim_end_matches(".service").to_owned());
                facts.firewall.firewalld_active = active(FIREWALLD);
                units.retain(|name, _| query.units.contains(name));
                facts.units = units;
            }
            Err(error) => facts.problems.push(format!("units: {error}")),
        }
        facts.systemd = manager.ok().map(|text| systemd(&text));
    }
    match tables {
        Ok(text) => {
            (facts.firewall.nft_tables, facts.firewall.dropping) = tables_and_dropping_chains(&text);
        }
        Err(error) if facts.firewall.nft.is_some() => facts.problems.push(format!("nftables: {error}")),
        Err(_) => {}
    }
    facts.firewall.nft_version = nft.ok().and_then(|text| nft_version(&text));
    facts.firewall.iptables_backend = iptables.ok().map(|text| {
        if text.contains("nf_tables") {
            "nf_tables"
        } else {
            "legacy"
        }
        .to_owned()
    });
    facts.clock.unix_ns = system::now_ns();
    session.hashes.save();
    Ok(facts)
}

/// What files of /proc, /sys and /etc tell.
fn of_host(session: &Session, query: &GatherQuery) -> HostFacts {
    let mut facts = HostFacts::default();
    system::fill(&mut facts);
    match netlink::network() {
        Ok(network) => facts.network = network,
        Err(error) => facts.problems.push(format!("addresses and routes: {error}")),
    }
    facts.listening = procfs::listening();
    facts.kernel_features = kernel::features(&query.modules, &query.options);
    facts.firewall.nft = program("nft");
    facts.firewall.iptables = program("iptables");
    facts.firewall.ufw_active = procfs::text("/etc/ufw/ufw.conf")
        .lines()
        .any(|line| line.trim() == "ENABLED=yes");
    facts.hosts = host::hosts_file();
    facts.sysctls = query
        .sysctls
        .iter()
        .map(|name| (name.clone(), host::read_sysctl(name)))
        .collect();
    facts.users = Owners::load().users(&query.users);
    facts.programs = query
        .programs
        .iter()
        .map(|name| (name.clone(), program(name)))
        .collect();
    let (blobs, damaged) = blobs::verified(session);
    facts.blobs = blobs;
    facts.problems.extend(damaged);
    let mut runs: Vec<String> = std::fs::read_dir(session.state_dir.join("kept"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    runs.sort();
    facts.kept_runs = runs
        .into_iter()
        .map(|run_id| KeptRun {
            paths: kept::kept_paths(&session.state_dir, &run_id),
            run_id,
        })
        .collect();
    facts
}

/// Of `nft list chains`: every table, and the chains at the input hook whose policy is to drop.
fn tables_and_dropping_chains(listed: &str) -> (Vec<String>, Vec<String>) {
    let (mut tables, mut dropping) = (Vec::new(), Vec::new());
    let mut chain = "";
    for line in listed.lines().map(str::trim) {
        if let Some(table) = line.strip_prefix("table ") {
            tables.push(table.trim_end_matches(" {").to_owned());
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {").trim_end_matches(" }");
        } else if line.contains("hook input ")
            && line.contains("policy drop")
            && let Some(table) = tables.last()
        {
            dropping.push(format!("{table} {chain}"));
        }
    }
    (tables, dropping)
}

/// Where a program is on root's usual path.
fn program(name: &str) -> Option<String> {
    PATH.split(':')
        .map(|dir| format!("{dir}/{name}"))
        .find(|path| std::path::Path::new(path).is_file())
}

fn systemd(shown: &str) -> SystemdFacts {
    let properties: BTreeMap<&str, &str> = shown.lines().filter_map(|line| line.split_once('=')).collect();
    let version = properties.get("Version").copied().unwrap_or_default();
    let digits: String = version
        .chars()
        .skip_while(|c| !c.is_ascii_digit())
        .take_while(char::is_ascii_digit)
        .collect();
    let environment = properties.get("Environment").copied().unwrap_or_default();
    let variables: Vec<(&str, &str)> = environment
        .split_whitespace()
        .filter_map(|word| word.trim_matches('"').split_once('='))
        .filter(|(_, value)| !value.is_empty())
        .collect();
    SystemdFacts {
        version: digits.parse().unwrap_or(0),
        state: properties.get("SystemState").copied().unwrap_or_default().to_owned(),
        https_proxy: variables
            .iter()
            .any(|(name, _)| name.eq_ignore_ascii_case("HTTPS_PROXY")),
        no_proxy: variables
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case("NO_PROXY"))
            .map(|(_, value)| (*value).to_owned()),
    }
}

/// Of `nftables v1.0.6 (Lester Gooch #5)`.
fn nft_version(printed: &str) -> Option<String> {
    let word = printed.split_whitespace().find_map(|word| word.strip_prefix('v'))?;
    word.starts_with(|first: char| first.is_ascii_digit())
        .then(|| word.to_owned())
}

#[cfg(test)]
mod tests {
    use quorate_facts::Feature;

    use super::*;
    use crate::{LocalMachine, Machine};

    #[test]
    fn chains_that_drop() {
        let text = "table inet filter {\n\tchain input {\n\t\ttype filter hook input priority filter; policy drop;\n\t}\n\tchain other {\n\t}\n\tchain forward {\n\t\ttype filter hook forward priority filter; policy drop;\n\t}\n}\ntable ip nat {\n}\n";
        let (tables, dropping) = tables_and_dropping_chains(text);
        assert_eq!(tables, ["inet filter", "ip nat"]);
        assert_eq!(dropping, ["inet filter input"]);
    }

    #[test]
    fn versions_of_systemd() {
        for (text, version) in [
            ("Version=252.39-1~deb12u1\nSystemState=running", 252),
            ("Version=v255-stable", 255),
            ("", 0),
        ] {
            assert_eq!(systemd(text).version, version, "{text}");
        }
    }

    #[test]
    fn a_proxy_is_told_without_its_password() {
        let found = systemd(
            "Version=252\nEnvironment=LANG=C HTTPS_PROXY=http://user:secret@proxy:3128 no_proxy=10.0.0.0/8,.local \"X=a b\" http_proxy=\n",
        );
        assert!(found.https_proxy);
        assert_eq!(found.no_proxy.as_deref(), Some("10.0.0.0/8,.local"));
        assert!(!format!("{found:?}").contains("secret"));
        assert!(!systemd("Version=252\nEnvironment=LANG=C https_proxy=\n").https_proxy);
    }

    #[test]
    fn versions_of_nft() {
        assert_eq!(
            nft_version("nftables v1.0.6 (Lester Gooch #5)\n").as_deref(),
            Some("1.0.6")
        );
        assert_eq!(nft_version("nft: very new\n"), None);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn facts_of_this_host() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("etc");
        std::fs::create_dir_all(root.join("deep")).unwrap();
        std::fs::write(root.join("deep/app.conf"), "a: 1\n").unwrap();
        std::fs::write(root.join(".app.conf.quorate~"), "half").unwrap();
        std::fs::write(root.join("bad.crt"), "no certificate").unwrap();
        let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let machine: &dyn Machine = &LocalMachine::with_state_dir("here", dir.path().join("state"));
        let query = GatherQuery {
            paths: vec![path("none")],
            text_roots: vec![path("")],
            certificates: vec![path("")],
            sysctls: vec!["kernel.ostype".into(), "no.such".into()],
            options: vec!["CONFIG_PROC_FS".into(), "CONFIG_NO_SUCH".into()],
            users: vec!["root".into(), "no-such-user".into()],
            programs: vec!["sh".into(), "no-such-program".into()],
            ..GatherQuery::default()
        };
        let start = std::time::Instant::now();
        let facts = machine.gather(query).await.unwrap();
        let took = start.elapsed();
        assert!(took < std::time::Duration::from_secs(5), "{took:?}");

        assert!(!facts.kernel.is_empty() && facts.cpus > 0 && facts.memory_bytes > 0 && !facts.os.id.is_empty());
        assert!(facts.mounts.iter().any(|mount| mount.target == "/"));
        assert_eq!(facts.files[&path("deep/app.conf")].text.as_deref(), Some("a: 1\n"));
        assert!(!facts.files[&path("none")].exists());
        assert!(
            !facts.files.contains_key(&path(".app.conf.quorate~")),
            "a file being written is not there yet"
        );
        assert!(facts.certificates[&path("bad.crt")].error.is_some());
        assert_eq!(facts.sysctls["kernel.ostype"].as_deref(), Some("Linux"));
        assert_eq!(facts.sysctls["no.such"], None);
        // Where the configuration cannot be read, nothing is held against the kernel.
        let found = (
            facts.kernel_features["CONFIG_PROC_FS"],
            facts.kernel_features["CONFIG_NO_SUCH"],
        );
        let (known, unknown) = (
            (Feature::Present, Feature::Absent),
            (Feature::Unknown, Feature::Unknown),
        );
        assert!(found == known || found == unknown, "{found:?}");
        assert_eq!(facts.users["root"].as_ref().unwrap().uid, 0);
        assert!(
            facts.users["no-such-user"].is_none()
                && facts.programs["no-such-program"].is_none()
                && facts.programs["sh"].is_some()
        );
    }
}
