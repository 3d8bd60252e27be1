//! containerd 2.x, configuration version 3: <https://github.com/containerd/containerd/blob/main/docs/cri/config.md>.

use crate::components::unit::{Flags, Unit};
use crate::paths;
use crate::profile::Profile;

pub(crate) fn config(pause_image: &str, profile: &Profile) -> String {
    let mut text = format!(
        r#"# Written by quorate; changed by `quorate apply`.
version = 3

[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '{pause_image}'

[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '{containerd}/certs.d'

[plugins.'io.containerd.cri.v1.runtime']
"#,
        containerd = paths::CONTAINERD,
    );
    if !profile.oom_adjustable {
        // Without CAP_SYS_RESOURCE a lower score cannot be set and every Pod would fail.
        text.push_str("  restrict_oom_score_adj = true\n");
    }
    text.push_str(&format!(
        r#"
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ['{cni_bin}']
  conf_dir = '{cni_conf}'

[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = '{runc}'
  SystemdCgroup = {systemd}
"#,
        cni_bin = paths::CNI_BIN,
        cni_conf = paths::CNI_CONF,
        runc = paths::bin("runc"),
        systemd = profile.systemd_cgroups,
    ));
    text
}

pub(crate) fn unit(profile: &Profile) -> String {
    let mut flags = Flags::default();
    flags.set("config", format!("{}/config.toml", paths::CONTAINERD));
    Unit {
        description: "containerd container runtime",
        documentation: "https://containerd.io/docs/",
        after: &[],
        program: paths::bin("containerd"),
        flags,
        notify: true,
        service: vec![
            // The shim is found through PATH.
            format!(
                "Environment=PATH={}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                paths::BIN
            ),
            "Delegate=yes".into(),
            // Containers outlive a restart of the runtime.
            "KillMode=process".into(),
            "TasksMax=infinity".into(),
        ],
        oom_score: -999,
        files: 1_048_576,
    }
    .render(profile)
}
