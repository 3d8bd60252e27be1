//! `balancer: haproxy`: the files it gives, and whether the programs take them.

#![expect(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stderr,
    reason = "a test gives the files to the programs they are for, and says what it skips"
)]

mod fabricated;

use std::path::Path;
use std::process::Command;

use quorate_facts::MachineFacts;
use quorate_plan::{Action, Content, Plan, plan};

use crate::fabricated::{fresh, load};

const FILE: &str = "
apiVersion: quorate.dev/v1
kind: Cluster
spec:
  endpoint:
    vip: 10.77.0.100
    on: load-balancers
    priorities: {lb1: 110, lb2: 100}
    maxConnections: 20000
    interval: INTERVAL
    statistics: {port: 9000, user: admin}
  balancer: haproxy
  machines:
    - {name: lb1, address: 10.77.0.9, roles: [load-balancer]}
    - {name: lb2, address: 10.77.0.10, roles: [load-balancer]}
    - {name: m1, address: 10.77.0.11, roles: [control-plane], weight: 3}
    - {name: m2, address: 10.77.0.12, roles: [control-plane]}
    - {name: m3, address: 10.77.0.13, roles: [control-plane]}
    - {name: w1, address: 10.77.0.14, roles: [worker]}
";

#[test]
fn a_load_balancer_s_files() {
    let mut text = String::new();
    for (path, mode, content) in files(&planned("100ms"), "lb1") {
        if path.starts_with("/etc/quorate/") && !path.ends_with(".crt") || path.contains("/system/") {
            text.push_str(&format!("=== {mode:o} {path}\n{content}\n"));
        }
    }
    insta::assert_snapshot!(text);
}

#[test]
fn an_interval_of_whole_seconds_is_vrrp_2_with_its_password_in_a_private_file() {
    let files = files(&planned("1s"), "lb2");
    let find = |name: &str| files.iter().find(|(path, ..)| path.ends_with(name)).unwrap();
    let (_, _, config) = find("keepalived.conf");
    assert!(config.contains("version 2") && config.contains("include /etc/quorate/keepalived-password.conf"));
    let (_, mode, password) = find("keepalived-password.conf");
    assert_eq!(*mode, 0o600);
    assert!(password.contains("auth_pass {{secret:vrrp-password}}"));
}

#[test]
fn haproxy_and_keepalived_take_the_files() {
    for program in ["haproxy", "keepalived"] {
        if !Path::new("/usr/sbin").join(program).exists() {
            eprintln!("skipped: {program} is not installed");
            return;
        }
    }
    let Some(interface) = interface() else {
        eprintln!("skipped: keepalived wants an interface beside lo, and there is none");
        return;
    };
    for interval in ["100ms", "1s"] {
        let folder = std::env::temp_dir().join(format!("qt-plan-haproxy-{}-{interval}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let here = folder.display().to_string();
        for (path, mode, content) in files(&planned(interval), "lb1") {
            let Some(name) = path.strip_prefix("/etc/quorate/") else {
                continue;
            };
            let content = content
                .replace("/etc/quorate", &here)
                .replace("{{secret:vrrp-password}}", "01234567")
                .replace("{{secret:statistics-password}}", "secret")
                .replace("eth0", &interface);
            let content = if name == "ca.crt" { ca() } else { content };
            std::fs::write(folder.join(name), content).unwrap();
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(mode)).unwrap();
        }
        takes(
            "/usr/sbin/haproxy",
            &[
                "-c",
                "-f",
                &format!("{here}/haproxy.cfg"),
                "-f",
                &format!("{here}/haproxy-statistics.cfg"),
            ],
        );
        takes(
            "/usr/sbin/keepalived",
            &["--config-test", "-f", &format!("{here}/keepalived.conf")],
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

fn takes(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program}: {}\n{said}", output.status);
    // What it would only grumble about is wrong as well; but for what belongs to this test's surroundings.
    let grumbles: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("WARNING") || line.contains("Warning") || line.contains("nknown"))
        .collect();
    assert!(grumbles.is_empty(), "{program}: {grumbles:#?}");
}

fn planned(interval: &str) -> Plan {
    let spec = load(&FILE.replace("INTERVAL", interval));
    let mut facts = fresh(&spec);
    for machine in facts.machines.values_mut() {
        if let MachineFacts::Found(host) = machine {
            for program in ["haproxy", "keepalived"] {
                host.programs
                    .insert(program.into(), Some(format!("/usr/sbin/{program}")));
            }
        }
    }
    plan(&spec, &facts)
}

/// Path, mode and content of every file that is written on a machine.
fn files(plan: &Plan, machine: &str) -> Vec<(String, u32, String)> {
    plan.steps()
        .filter(|step| step.machine == machine)
        .filter_map(|step| match &step.action {
            Action::Files { files } => Some(files),
            _ => None,
        })
        .flatten()
        .map(|file| {
            let content = match &file.content {
                Content::Text { text } => text.clone(),
                Content::Template { template, .. } => template.clone(),
                other => format!("{other:?}"),
            };
            (file.path.clone(), file.mode, content)
        })
        .collect()
}

fn interface() -> Option<String> {
    std::fs::read_dir("/sys/class/net")
        .ok()?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|name| name != "lo")
}

/// Any authority's certificate will do.
fn ca() -> String {
    std::fs::read_to_string("/etc/ssl/certs/ca-certificates.crt")
        .ok()
        .and_then(|all| {
            all.split_inclusive("-----END CERTIFICATE-----\n")
                .next()
                .map(str::to_owned)
        })
        .unwrap()
}
