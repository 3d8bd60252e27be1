//! `spec.etcd`: members, majority, version, VIP.

use semver::Version;

use super::machines::Draft;
use super::{address, endpoint, milliseconds};
use crate::derive::Quorum;
use crate::document::{Document, Path, at};
use crate::file::{EtcdFile, SpecFile};
use crate::spec::*;

/// etcd's FAQ: "It is recommended to have at most seven members".
const MANY_MEMBERS: usize = 7;

pub(super) fn etcd(
    document: &mut Document<'_>,
    file: &SpecFile,
    endpoint: Option<&Endpoint>,
    drafts: &[Draft<'_>],
) -> Option<Etcd> {
    let at = at!["spec", "etcd"];
    let file = &file.etcd;
    if file.topology.is_none() && document.is_written(&at.join("topology")) {
        return None;
    }
    let with_role: Vec<&Draft<'_>> = drafts.iter().filter(|d| d.has(Role::Etcd)).collect();
    let default = if with_role.is_empty() {
        EtcdTopology::Stacked
    } else {
        EtcdTopology::External
    };
    let topology = file.topology.map_or(default, Into::into);
    let members: Vec<&Draft<'_>> = match topology {
        EtcdTopology::External => with_role.clone(),
        EtcdTopology::Stacked => drafts.iter().filter(|d| d.has(Role::ControlPlane)).collect(),
    };
    if topology == EtcdTopology::External && members.is_empty() {
        document
            .error(
                "etcd-machines-missing",
                &at.join("topology"),
                "`topology: external`, but no machine has the role `etcd`",
            )
            .reason("there would be no database behind the API")
            .fix("give three machines `roles: [etcd]`, or write `topology: stacked`");
    }
    if topology == EtcdTopology::Stacked {
        for draft in with_role {
            document
                .warn(
                    "etcd-role-unused",
                    &draft.at().join("roles"),
                    format!(
                        "machine `{}` has the role `etcd`, which is not used with `topology: stacked`",
                        draft.name
                    ),
                )
                .reason("with stacked etcd the members are the control planes")
                .fix("write `topology: external`, or leave the role out");
        }
    }
    majority(document, &members, topology);
    let version = file
        .version
        .as_deref()
        .and_then(|text| version(document, &at.join("version"), text));
    let data_dir = file.data_dir.clone().unwrap_or_else(|| "/var/lib/etcd".to_owned());
    data_directory(document, &at.join("dataDir"), &data_dir);
    let vip = vip(document, &at, file, topology, endpoint, &members);
    let written = file.election_timeout.as_deref().unwrap_or("500ms");
    let election_timeout_ms = election_timeout(document, &at.join("electionTimeout"), written);
    Some(Etcd {
        topology,
        version,
        data_dir,
        vip,
        quota_gib: file.quota_gib.unwrap_or(8),
        election_timeout_ms: election_timeout_ms?,
    })
}

/// etcd refuses more than 50 s; below 100 ms (heartbeats each 10 ms) a scheduler's hiccup looks like a death.
fn election_timeout(document: &mut Document<'_>, at: &Path, text: &str) -> Option<u32> {
    let millis = milliseconds(text).filter(|ms| (100.0..=50_000.0).contains(ms) && ms.fract() == 0.0);
    if millis.is_none() {
        document
            .error(
                "bad-election-timeout",
                at,
                format!("`{text}` is no election timeout of etcd"),
            )
            .reason("members wait 100ms to 50s for a silent leader, at least ten round trips between them")
            .fix("write `500ms` for members in one place, `1s` and more for members that are far apart");
    }
    millis.map(|ms| ms as u32)
}

fn majority(document: &mut Document<'_>, members: &[&Draft<'_>], topology: EtcdTopology) {
    let at = at!["spec", "machines"];
    let Quorum {
        members: n,
        needed,
        tolerates,
    } = Quorum::of(members.len());
    let (code, what) = match topology {
        EtcdTopology::Stacked => ("even-control-planes", "control planes, each with an etcd member,"),
        EtcdTopology::External => ("even-etcd-members", "etcd members"),
    };
    let failures = |n: usize| match n {
        0 => "none".to_owned(),
        1 => "1 failure".to_owned(),
        _ => format!("{n} failures"),
    };
    if n > 0 && n % 2 == 0 {
        let last = members.last().map_or(at.clone(), |m| m.at());
        let less = failures(tolerates);
        let message = match n {
            2 => format!("2 {what} tolerate no failure, as 1 does"),
            _ => format!("{n} {what} tolerate {less}, as {} do", n - 1),
        };
        document
            .warn(code, &last, message)
            .reason(format!(
                "etcd needs a majority, {needed} of {n}; the last member adds work and risk, but no safety"
            ))
            .fix(format!(
                "use {} or {}, which tolerate {} and {}",
                n - 1,
                n + 1,
                failures(Quorum::of(n - 1).tolerates),
                failures(Quorum::of(n + 1).tolerates)
            ));
    }
    if n == 1 && topology == EtcdTopology::External {
        document
            .warn(
                "single-etcd-member",
                &members[0].at(),
                "there is 1 etcd member: it tolerates no failure",
            )
            .reason("when this machine's disk is lost, so is the cluster's whole state")
            .fix("use 3 etcd members (1 may fail)");
    }
    if n > MANY_MEMBERS {
        document
            .warn(
                "many-etcd-members",
                &members[MANY_MEMBERS].at(),
                format!("{n} etcd members are more than etcd advises"),
            )
            .reason(format!(
                "every write waits for {needed} of them; beyond {MANY_MEMBERS} it gets slower, not safer"
            ))
            .fix("use 5 (2 may fail), or 7 (3 may fail)");
    }
    let away: Vec<&str> = members
        .iter()
        .filter(|m| m.is_away())
        .map(|m| m.name.as_str())
        .collect();
    if n > 1 && away.len() > tolerates && away.len() < n {
        document
            .error(
                "maintenance-breaks-quorum",
                &at,
                format!(
                    "{} of {n} etcd members are under maintenance ({})",
                    away.len(),
                    away.join(", ")
                ),
            )
            .reason(format!(
                "etcd needs {needed} members; with {} it accepts no writes, and nothing can be changed",
                n - away.len()
            ))
            .fix(
                "remove `maintenance: true` from those that are back; to give members up for good, remove the machines",
            );
    }
}

fn version(document: &mut Document<'_>, at: &Path, text: &str) -> Option<Version> {
    let version = Version::parse(text.strip_prefix('v').unwrap_or(text)).ok();
    let known = version.filter(|v| v.major == 3 && matches!(v.minor, 6 | 7) && v.pre.is_empty() && v.build.is_empty());
    if known.is_none() {
        document
            .error(
                "bad-etcd-version",
                at,
                format!("etcd `{text}` is not one that this program can run"),
            )
            .reason("Kubernetes from 1.34 on is built for etcd 3.6; 3.5 has other flags and health checks")
            .fix("write an exact version of 3.6 or 3.7, e.g. `3.6.11`, or leave it out for the bundle's");
    }
    known
}

fn data_directory(document: &mut Document<'_>, at: &Path, dir: &str) {
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '"' | '\'' | '\\' | '$' | '%');
    let why = if !dir.starts_with('/') {
        Some("an absolute path is wanted")
    } else if dir.split('/').any(|part| part == "..") || dir.contains(odd) {
        Some("`..`, white space and quoting characters do not survive unit files and manifests")
    } else if dir.trim_matches('/').split('/').filter(|p| !p.is_empty()).count() < 2 {
        Some("a directory of etcd's own is wanted: Quorate sets its owner and mode, and `reset` empties it")
    } else if ["/tmp/", "/run/", "/dev/", "/proc/", "/sys/", "/etc/"]
        .iter()
        .any(|p| dir.starts_with(p))
    {
        Some("what is there is lost at a reboot, or is not for data")
    } else {
        None
    };
    if let Some(why) = why {
        document
            .error("bad-data-dir", at, format!("`{dir}` cannot be etcd's directory"))
            .reason(why)
            .fix("write e.g. `/var/lib/etcd`");
    }
}

fn vip(
    document: &mut Document<'_>,
    at: &Path,
    file: &EtcdFile,
    topology: EtcdTopology,
    endpoint: Option<&Endpoint>,
    members: &[&Draft<'_>],
) -> Option<EtcdVip> {
    let text = document.text;
    let vip_at = at.join("vip");
    let Some(vip) = &file.vip else {
        for field in ["vipPort", "vrid", "priorities"] {
            if document.is_written(&at.join(field)) && !document.is_written(&vip_at) {
                document
                    .warn(
                        "options-unused",
                        &at.join(field),
                        format!("`etcd.{field}` is not used without `etcd.vip`"),
                    )
                    .reason("API servers know all members by their addresses")
                    .fix("leave it out");
            }
        }
        return None;
    };
    if topology == EtcdTopology::Stacked {
        document
            .error(
                "etcd-vip-with-stacked",
                &vip_at,
                "a VIP in front of etcd needs `topology: external`",
            )
            .reason(
                "with stacked etcd each API server talks to the member on its own machine, so that both fail together",
            )
            .fix("leave `etcd.vip` out, or use machines with the role `etcd`");
    }
    let address = address::host(document, &vip_at, vip, "etcd's VIP")?;
    endpoint::vip_near(document, &vip_at, address, members, "etcd's VIP");
    let vrid = file.vrid.unwrap_or(52);
    if let Some(endpoint) = endpoint {
        if endpoint.vip == address {
            let span = document.span(&at!["spec", "endpoint", "vip"]);
            document
                .error(
                    "same-vip",
                    &vip_at,
                    format!("the endpoint and etcd have the same VIP {address}"),
                )
                .reason("each is held by the machine that can serve it, and they move at different times")
                .fix("choose another unused address")
                .also(text, span, "the endpoint's");
        }
        if endpoint.vrid == vrid {
            let span = document.span(&at!["spec", "endpoint", "vrid"]);
            document
                .error("same-vrid", &at.join("vrid"), format!("the endpoint and etcd have the same VRRP router id {vrid}"))
                .reason("machines of one network tell virtual routers apart by it and would take one for the other (RFC 9568)")
                .fix("give one of them another id")
                .also(text, span, "the endpoint's");
        }
    }
    let priorities = endpoint::priorities(document, &at.join("priorities"), &file.priorities, members);
    Some(EtcdVip {
        address,
        port: file.vip_port.unwrap_or(2379),
        vrid,
        priorities,
    })
}
