//! How service managers run the agent: a systemd unit, or a static Pod for the kubelet.

use std::path::Path;

use quorate_lb::AgentConfig;

/// A systemd unit that runs `program` with the configuration at `config`.
pub fn unit(program: &Path, config: &Path) -> String {
    let (program, config) = (program.display(), config.display());
    format!(
        "\
[Unit]
Description=Quorate agent: virtual addresses and load balancing of the Kubernetes API
Documentation=https://quorate.dev/docs/reference/agent
Wants=network-online.target
After=network-online.target
# Starting again and again is better than giving up: the API depends on it.
StartLimitIntervalSec=0

[Service]
Type=notify
NotifyAccess=all
# Nothing of a predecessor's addresses is left, whatever became of it.
ExecStartPre=-{program} agent purge --config {config}
ExecStart={program} agent run --config {config}
ExecReload=/bin/kill -HUP $MAINPID
ExecStopPost=-{program} agent purge --config {config}
Restart=always
RestartSec=100ms
WatchdogSec=10s
TimeoutStopSec=40s
# Two descriptors per proxied connection.
LimitNOFILE=1048576
LimitMEMLOCK=infinity
LimitRTPRIO=50
OOMScoreAdjust=-900
RuntimeDirectory=quorate
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW CAP_NET_BIND_SERVICE CAP_SYS_NICE CAP_IPC_LOCK CAP_BPF CAP_PERFMON CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_DAC_READ_SEARCH CAP_KILL
NoNewPrivileges=yes
ProtectHome=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes

[Install]
WantedBy=multi-user.target
"
    )
}

/// A static Pod running `image` on the host's network. Directories of all files the configuration names are mounted.
pub fn static_pod(image: &str, config_path: &Path, config: &AgentConfig) -> String {
    let mut dirs: Vec<String> = Vec::new();
    let mut add = |file: &Path| {
        if let Some(dir) = file.parent().map(|d| d.display().to_string()).filter(|d| !d.is_empty())
            && !dirs.contains(&dir)
        {
            dirs.push(dir);
        }
    };
    add(config_path);
    add(&config.admin.socket);
    for s in config.backend_sets() {
        [&s.health.ca, &s.health.client_cert, &s.health.client_key]
            .into_iter()
            .flatten()
            .for_each(|f| add(f));
    }
    config.vrrp.iter().flat_map(|v| &v.auth.keys).for_each(|k| add(&k.file));
    if let Some(l) = config.stats.as_ref().and_then(|s| s.login.as_ref()) {
        add(&l.password_file);
    }
    if !config.ebpf.is_empty() {
        dirs.push("/sys/fs".into());
    }
    let writable = |d: &str| {
        config
            .admin
            .socket
            .parent()
            .is_some_and(|p| p.display().to_string() == d)
            || d == "/sys/fs"
    };
    let mounts: String = dirs
        .iter()
        .enumerate()
        .map(|(i, d)| format!("    - {{name: d{i}, mountPath: {d}, readOnly: {}}}\n", !writable(d)))
        .collect();
    let volumes: String = dirs
        .iter()
        .enumerate()
        .map(|(i, d)| format!("  - {{name: d{i}, hostPath: {{path: {d}, type: DirectoryOrCreate}}}}\n"))
        .collect();
    let probe = config.stats.as_ref().map(|s| s.listen).or(config.metrics.as_ref().map(|m| m.listen)).map_or_else(
        String::new,
        |listen| {
            let host = if listen.ip().is_unspecified() { "127.0.0.1".to_owned() } else { listen.ip().to_string() };
            format!(
                "    livenessProbe:\n      httpGet: {{host: \"{host}\", path: /healthz, port: {}}}\n      periodSeconds: 5\n      failureThreshold: 3\n",
                listen.port()
            )
        },
    );
    format!(
        "\
apiVersion: v1
kind: Pod
metadata:
  name: quorate-agent
  namespace: kube-system
  labels: {{app.kubernetes.io/name: quorate-agent, tier: control-plane}}
spec:
  hostNetwork: true
  priorityClassName: system-node-critical
  terminationGracePeriodSeconds: 40
  containers:
  - name: agent
    image: {image}
    args: [agent, run, --config, {config}]
    securityContext:
      capabilities:
        drop: [ALL]
        add: [NET_ADMIN, NET_RAW, NET_BIND_SERVICE, SYS_NICE, IPC_LOCK{more}]
    resources:
      requests: {{cpu: 25m, memory: 32Mi}}
{probe}    volumeMounts:
{mounts}  volumes:
{volumes}",
        config = config_path.display(),
        more = if config.ebpf.is_empty() {
            ""
        } else {
            ", BPF, PERFMON, SYS_ADMIN"
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_is_yaml_and_names_every_directory() {
        let config = AgentConfig::new("m1");
        let text = static_pod("quorate:dev", Path::new("/etc/quorate/agent.yaml"), &config);
        let pod: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let mounts = pod["spec"]["containers"][0]["volumeMounts"].as_array().unwrap();
        assert_eq!(mounts.len(), 2);
        assert_eq!(mounts[0]["mountPath"], "/etc/quorate");
        assert_eq!(mounts[1]["readOnly"], false);
    }
}
