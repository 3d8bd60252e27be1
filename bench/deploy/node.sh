# On each machine: what kubeadm wants to find. @ADDRESS@ is the machine's.
modprobe -a overlay br_netfilter 2>/dev/null || true
sysctl -qw net.ipv4.ip_forward=1
sysctl -qw net.bridge.bridge-nf-call-iptables=1 2>/dev/null || true
swapoff -a 2>/dev/null || true
# CoreDNS wants to have somebody to ask.
grep -qs ^nameserver /etc/resolv.conf || echo nameserver 10.77.0.1 >>/etc/resolv.conf
mkdir -p /etc/containerd /etc/cni/net.d /etc/systemd/system/kubelet.service.d
cat >/etc/containerd/config.toml <<END
version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'registry.k8s.io/pause:3.10.2'
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
END
cat >/etc/systemd/system/containerd.service <<END
[Service]
Type=notify
ExecStart=/usr/local/bin/containerd
Delegate=yes
KillMode=process
Restart=always
[Install]
WantedBy=multi-user.target
END
cat >/etc/systemd/system/kubelet.service <<END
[Unit]
After=containerd.service
[Service]
Environment="KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf --kubeconfig=/etc/kubernetes/kubelet.conf"
Environment="KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml"
EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env
ExecStart=/usr/local/bin/kubelet \$KUBELET_KUBECONFIG_ARGS \$KUBELET_CONFIG_ARGS \$KUBELET_KUBEADM_ARGS --node-ip=@ADDRESS@
Restart=always
RestartSec=10
[Install]
WantedBy=multi-user.target
END
# flannel's own plugin does this at every Pod; here once, as soon as flannel has written its file.
cat >/usr/local/bin/cni-conf <<'END'
#!/bin/bash
until [ -s /run/flannel/subnet.env ]; do sleep 0.1; done
. /run/flannel/subnet.env
cat >/etc/cni/net.d/10-flannel.conflist <<CONF
{"cniVersion": "1.0.0", "name": "cbr0", "plugins": [
  {"type": "bridge", "bridge": "cni0", "isDefaultGateway": true, "hairpinMode": true, "mtu": $FLANNEL_MTU,
   "ipam": {"type": "host-local", "ranges": [[{"subnet": "${FLANNEL_SUBNET%.*}.0/24"}]], "routes": [{"dst": "$FLANNEL_NETWORK"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
CONF
END
chmod 755 /usr/local/bin/cni-conf
cat >/etc/systemd/system/cni-conf.service <<END
[Service]
Type=oneshot
ExecStart=/usr/local/bin/cni-conf
END
systemctl daemon-reload
systemctl enable --quiet containerd kubelet
systemctl start containerd
systemctl start --no-block cni-conf
for image in /opt/images/*.tar; do ctr -n k8s.io images import "$image" >/dev/null; done
