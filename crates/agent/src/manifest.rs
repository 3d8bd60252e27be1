//! How systemd runs the agent. How a kubelet does is [`quorate_lb::pod`].

use std::path::Path;

/// A systemd unit that runs `program` with the configuration at `config`.
pub fn unit(program: &Path, config: &Path) -> String {
    let (program, config) = (program.display(), config.display());
    format!(
        "\
[Unit]
Description=Quorate agent: virtual addresses and load balancing of the Kubernetes API
Documentation=https://quorate.dev/docs/guide/agent
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
