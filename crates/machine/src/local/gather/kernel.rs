//! What the running kernel can do, found without changing anything.

use std::{collections::BTreeMap, fs::File, io::Read, path::Path};

use flate2::read::GzDecoder;
use quorate_facts::Feature;

use super::super::{
    host::{listed_in, module_present},
    procfs::text,
};

/// Features by module name and the option that builds each in or as a module (`Kconfig` of the kernel).
const FEATURES: [(&str, &str); 13] = [
    ("bpf", "CONFIG_BPF_SYSCALL"),
    ("br_netfilter", "CONFIG_BRIDGE_NETFILTER"),
    ("cgroup_bpf", "CONFIG_CGROUP_BPF"),
    ("dummy", "CONFIG_DUMMY"),
    ("inet_diag_destroy", "CONFIG_INET_DIAG_DESTROY"),
    ("ip_vs", "CONFIG_IP_VS"),
    ("ip_vs_rr", "CONFIG_IP_VS_RR"),
    ("nf_conntrack", "CONFIG_NF_CONNTRACK"),
    ("nf_tables", "CONFIG_NF_TABLES"),
    ("overlay", "CONFIG_OVERLAY_FS"),
    ("veth", "CONFIG_VETH"),
    ("vxlan", "CONFIG_VXLAN"),
    ("wireguard", "CONFIG_WIREGUARD"),
];

/// `more`: further modules. `options`: of the configuration, by their whole names.
pub(super) fn features(more: &[String], options: &[String]) -> BTreeMap<String, Feature> {
    let config = config();
    let mut features: BTreeMap<String, Feature> = FEATURES
        .iter()
        .map(|(name, option)| {
            (
                (*name).to_owned(),
                feature(name, config.as_deref().map(|config| state(config, option))),
            )
        })
        .collect();
    for name in more {
        features.entry(name.clone()).or_insert_with(|| feature(name, None));
    }
    for name in options {
        features.insert(name.clone(), option(config.as_deref(), name));
    }
    features
}

/// One that no module's name stands for. As a module it counts as there: distributions' packages hold what they configure.
fn option(config: Option<&str>, name: &str) -> Feature {
    match config.map(|config| state(config, name)) {
        Some('y') => Feature::Present,
        Some('m') => Feature::Loadable,
        Some(_) => Feature::Absent,
        None => Feature::Unknown,
    }
}

/// `configured`: what the kernel's configuration says (`y`, `m` or `n`), if it is known.
fn feature(name: &str, configured: Option<char>) -> Feature {
    let module_file = || listed_in("modules.dep", &name.replace('-', "_"));
    if module_present(name) {
        return Feature::Present;
    }
    match configured {
        Some('y') => Feature::Present,
        Some('m') if module_file() => Feature::Loadable,
        Some(_) => Feature::Absent,
        None if module_file() => Feature::Loadable,
        // Without its modules' list nothing can be said of what is not visible.
        None if modules_dir_exists() => Feature::Absent,
        None => Feature::Unknown,
    }
}

fn modules_dir_exists() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    Path::new("/lib/modules").join(release).join("modules.dep").exists()
}

/// The running kernel's own configuration, or the one its package left: in /boot, or where images without a /boot have it.
fn config() -> Option<String> {
    if let Ok(file) = File::open("/proc/config.gz") {
        let mut config = String::new();
        return GzDecoder::new(file).read_to_string(&mut config).ok().map(|_| config);
    }
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    [
        format!("/boot/config-{release}"),
        format!("/usr/lib/modules/{release}/config"),
        format!("/usr/lib/kernel/config-{release}"),
        format!("/usr/lib/ostree-boot/config-{release}"),
    ]
    .iter()
    .map(|path| text(path))
    .find(|config| !config.is_empty())
}

fn state(config: &str, option: &str) -> char {
    config
        .lines()
        .find_map(|line| line.strip_prefix(option)?.strip_prefix('=')?.chars().next())
        .unwrap_or('n')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_a_configuration() {
        let config = "CONFIG_IP_VS=m\nCONFIG_IP_VS_RR=y\n# CONFIG_DUMMY is not set\nCONFIG_VXLAN=y\n";
        let states: String = [
            "CONFIG_IP_VS",
            "CONFIG_IP_VS_RR",
            "CONFIG_DUMMY",
            "CONFIG_VXLAN",
            "CONFIG_VX",
        ]
        .map(|option| state(config, option))
        .iter()
        .collect();
        assert_eq!(states, "mynyn");
        let found = ["CONFIG_IP_VS", "CONFIG_IP_VS_RR", "CONFIG_DUMMY"].map(|name| option(Some(config), name));
        assert_eq!(found, [Feature::Loadable, Feature::Present, Feature::Absent]);
        assert_eq!(option(None, "CONFIG_IP_VS"), Feature::Unknown);
        assert_eq!(feature("no_such_module", Some('n')), Feature::Absent);
        assert_eq!(
            feature("proc", None),
            Feature::Present,
            "a file system the kernel lists"
        );
    }
}
