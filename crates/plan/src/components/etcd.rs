//! etcd ≥ 3.6 under its own user. Flags: <https://etcd.io/docs/v3.6/op-guide/configuration/>.

use quorate_spec::Etcd;

use crate::components::unit::{Flags, Unit};
use crate::names::{Member, host_port};
use crate::paths;
use crate::profile::Profile;

pub(crate) const CLIENT_PORT: u16 = 2379;
pub(crate) const PEER_PORT: u16 = 2380;
pub(crate) const METRICS_PORT: u16 = 2381;

/// Largest database, bytes. 8 GiB is the most etcd's documentation advises.
const GIB: u64 = 1 << 30;

pub(crate) fn flags(member: &Member, etcd: &Etcd) -> Flags {
    let address = member.address;
    let mut flags = Flags::default();
    let pki = |file: &str| format!("{}/pki/{file}", paths::ETCD);
    flags
        .set("name", &member.name)
        .set("data-dir", &etcd.data_dir)
        .set(
            "listen-client-urls",
            format!(
                "https://127.0.0.1:{CLIENT_PORT},https://{}",
                host_port(address, CLIENT_PORT)
            ),
        )
        .set(
            "advertise-client-urls",
            format!("https://{}", host_port(address, CLIENT_PORT)),
        )
        .set("listen-peer-urls", format!("https://{}", host_port(address, PEER_PORT)))
        .set(
            "initial-advertise-peer-urls",
            format!("https://{}", host_port(address, PEER_PORT)),
        )
        .set("listen-metrics-urls", format!("http://127.0.0.1:{METRICS_PORT}"))
        .set("cert-file", pki("server.crt"))
        .set("key-file", pki("server.key"))
        .set("trusted-ca-file", pki("ca.crt"))
        .set("client-cert-auth", "true")
        .set("peer-cert-file", pki("peer.crt"))
        .set("peer-key-file", pki("peer.key"))
        .set("peer-trusted-ca-file", pki("ca.crt"))
        .set("peer-client-cert-auth", "true")
        .set("tls-min-version", "TLS1.2")
        .set("feature-gates", "InitialCorruptCheck=true,CompactHashCheck=true")
        .set("watch-progress-notify-interval", "5s")
        // The API answers nothing that must be up to date while members elect a leader.
        .set("heartbeat-interval", etcd.heartbeat_ms().to_string())
        .set("election-timeout", etcd.election_timeout_ms.to_string())
        .set("quota-backend-bytes", (u64::from(etcd.quota_gib) * GIB).to_string())
        .set("logger", "zap")
        .set("log-level", "info");
    flags
}

pub(crate) fn unit(flags: Flags, data: &str, profile: &Profile) -> String {
    Unit {
        description: "etcd, the cluster's store",
        documentation: "https://etcd.io/docs/",
        after: &[],
        program: paths::bin("etcd"),
        flags,
        notify: true,
        service: vec![
            "User=etcd".into(),
            "Group=etcd".into(),
            format!("EnvironmentFile=-{}/bootstrap.env", paths::ETCD),
            format!("WorkingDirectory={data}"),
            "NoNewPrivileges=yes".into(),
        ],
        oom_score: -999,
        files: 65_536,
    }
    .render(profile)
}

/// What only a member without data reads. Kept out of the unit so that growing the cluster changes no other member.
pub(crate) fn bootstrap(members: &[Member], token: &str, existing: bool) -> String {
    let cluster = members
        .iter()
        .map(|member| format!("{}=https://{}", member.name, host_port(member.address, PEER_PORT)))
        .collect::<Vec<_>>()
        .join(",");
    let state = if existing { "existing" } else { "new" };
    format!(
        "# Read by a member that has no data yet; ignored afterwards.\n\
         ETCD_INITIAL_CLUSTER={cluster}\n\
         ETCD_INITIAL_CLUSTER_STATE={state}\n\
         ETCD_INITIAL_CLUSTER_TOKEN={token}\n"
    )
}
