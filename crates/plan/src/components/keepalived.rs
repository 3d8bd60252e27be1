//! keepalived ≥ 2.2 in the place of the agent's VRRP (`balancer: haproxy`), from the same values.
//!
//! The program is the distribution's; configuration and unit are Quorate's own. Keywords: keepalived.conf(5).

use std::fmt::Write;

use quorate_facts::{HostFacts, SecretId};
use quorate_lb::config::{AgentConfig, VrrpInstance};

use crate::components::haproxy;
use crate::components::unit::{Flags, Unit};
use crate::model::Content;
use crate::profile::Profile;
use crate::secrets;

pub(crate) const UNIT: &str = "keepalived-quorate.service";
pub(crate) const CONFIG: &str = "/etc/quorate/keepalived.conf";
/// Apart from the rest, which may be read and shown: it holds the password.
pub(crate) const PASSWORD: &str = "/etc/quorate/keepalived-password.conf";
pub(crate) const SCRIPT: &str = "/etc/quorate/keepalived-check";

/// Asks this machine's haproxy whether a frontend has a server to go to. Without any program but the shell.
pub(crate) fn script() -> String {
    let (host, port) = haproxy::LOCAL_STATE.rsplit_once(':').unwrap_or_default();
    format!(
        "#!/bin/bash\n\
         # Written by quorate. keepalived gives the VIP up while this fails: haproxy is dead, or reaches no server.\n\
         exec 3<>\"/dev/tcp/{host}/{port}\" 2>/dev/null || exit 1\n\
         printf 'GET /usable/%s HTTP/1.0\\r\\n\\r\\n' \"$1\" >&3\n\
         read -r -t 2 _ status _ <&3 && [ \"$status\" = 200 ]\n"
    )
}

pub(crate) fn config(work: &AgentConfig) -> String {
    let mut text = format!(
        "# Written by quorate; changed by `quorate apply`.\n\
         global_defs {{\n    \
         router_id {}\n    \
         # The check script is root's own and no one else can change it; keepalived refuses others.\n    \
         script_user root\n    \
         enable_script_security\n    \
         # Advertisements are taken from the listed peers only, and only from this network (TTL 255).\n    \
         vrrp_check_unicast_src\n    \
         # Switches that lost the new place of the VIP learn it again within a minute.\n    \
         vrrp_garp_master_refresh 60\n    \
         # Advertisements must leave in time also while the machine has no CPU to spare.\n    \
         vrrp_rt_priority 50\n    \
         vrrp_no_swap\n\
         }}\n",
        work.node
    );
    for instance in &work.vrrp {
        track(&mut text, instance);
        router(&mut text, instance);
    }
    text
}

/// Passwords are a matter of VRRP 2. `None`: every instance advertises more often than that can.
pub(crate) fn password(work: &AgentConfig) -> Option<Content> {
    if !work.vrrp.iter().any(version_two) {
        return None;
    }
    let template = format!(
        "# Written by quorate. Mode 0600.\n\
         authentication {{\n    auth_type PASS\n    auth_pass {}\n}}\n",
        secrets::mark(SecretId::VrrpPassword)
    );
    Some(Content::Template {
        template,
        secrets: vec![SecretId::VrrpPassword],
    })
}

pub(crate) fn unit(work: &AgentConfig, host: &HostFacts, profile: &Profile) -> String {
    let keepalived = haproxy::program(host, "keepalived");
    let mut service = vec![
        format!("ExecStartPre={keepalived} --config-test --use-file={CONFIG}"),
        "ExecReload=/bin/kill -HUP $MAINPID".into(),
        "RuntimeDirectory=quorate".into(),
        "RuntimeDirectoryPreserve=yes".into(),
        "KillMode=mixed".into(),
        "TimeoutStopSec=10".into(),
    ];
    // A VIP must not outlive the process that announces it, however that process ended.
    for instance in &work.vrrp {
        for vip in &instance.vips {
            service.push(format!(
                "ExecStopPost=-/bin/ip address delete {}/{} dev {}",
                vip.address, vip.prefix, instance.interface
            ));
        }
    }
    Unit {
        description: "keepalived: the VIP of the Kubernetes API",
        documentation: "https://www.keepalived.org/manpage.html",
        after: &[haproxy::UNIT],
        program: format!(
            "{keepalived} --dont-fork --vrrp --use-file={CONFIG} --pid=/run/quorate/keepalived.pid \
             --vrrp_pid=/run/quorate/keepalived-vrrp.pid"
        ),
        flags: Flags::default(),
        notify: false,
        service,
        oom_score: -999,
        files: 4_096,
    }
    .render(profile)
}

fn track(text: &mut String, instance: &VrrpInstance) {
    let Some(frontend) = &instance.track.frontend else {
        return;
    };
    let _ = write!(
        text,
        "\nvrrp_script {frontend} {{\n    \
         script \"{SCRIPT} {frontend}\"\n    \
         interval 1\n    \
         timeout 2\n    \
         # Twice, for a busy machine may be late once.\n    \
         fall 2\n    \
         rise 2\n    \
         # A machine that just started has no path until it was seen to have one.\n    \
         init_fail\n\
         }}\n"
    );
}

fn router(text: &mut String, instance: &VrrpInstance) {
    let interval = std::time::Duration::from(instance.interval);
    let version = if version_two(instance) { 2 } else { 3 };
    let _ = write!(
        text,
        "\nvrrp_instance {} {{\n    \
         # All start as backup and none takes the VIP back: moving it costs clients their connections and gains nothing.\n    \
         state BACKUP\n    \
         nopreempt\n    \
         interface {}\n    \
         virtual_router_id {}\n    \
         priority {}\n    \
         version {version}\n    \
         advert_int {}\n    \
         unicast_src_ip {}\n    \
         unicast_ttl 255\n",
        instance.name,
        instance.interface,
        instance.vrid,
        instance.priority,
        interval.as_secs_f64(),
        instance.source,
    );
    if !instance.peers.is_empty() {
        text.push_str("    unicast_peer {\n");
        for peer in &instance.peers {
            let _ = writeln!(text, "        {peer} min_ttl 255");
        }
        text.push_str("    }\n");
    }
    if version == 2 {
        let _ = writeln!(text, "    include {PASSWORD}");
    } else {
        text.push_str(
            "    # Advertisements within a second are VRRP 3, which has no password (RFC 9568, section 9); with an interval\n    \
             # of whole seconds VRRP 2's is used. Who may speak is limited to the peers above.\n",
        );
    }
    text.push_str("    virtual_ipaddress {\n");
    for vip in &instance.vips {
        let _ = writeln!(
            text,
            "        {}/{} dev {}",
            vip.address, vip.prefix, instance.interface
        );
    }
    text.push_str("    }\n");
    if instance.track.frontend.is_some() {
        let _ = write!(
            text,
            "    # Without weight: who fails it gives the VIP up. A lower priority alone would keep it, for nobody preempts.\n    \
             track_script {{\n        {}\n    }}\n",
            instance.track.frontend.as_deref().unwrap_or_default()
        );
    }
    text.push_str("}\n");
}

/// RFC 3768 counts whole seconds and is IPv4's only; where it fits it is used, for its password.
fn version_two(instance: &VrrpInstance) -> bool {
    let interval = std::time::Duration::from(instance.interval);
    interval.subsec_millis() == 0 && instance.source.is_ipv4()
}
