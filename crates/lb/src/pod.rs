//! The agent as a static Pod: the manifest a kubelet runs it by.
//!
//! Static Pods need no API server, so the agent is there before the API it balances and comes back after a power cut
//! without it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::config::AgentConfig;

/// Name of the Pod (the node's name is added by its kubelet) and of the manifest's file.
pub const NAME: &str = "quorate-agent";
/// The program's name in the image, which is that of the process on the machine.
pub const PROGRAM: &str = "/quorate-agent";

/// What a manifest depends on.
#[derive(Debug)]
pub struct Pod<'a> {
    /// Its entry point is [`PROGRAM`].
    pub image: &'a str,
    /// Where the configuration lies on the machine.
    pub path: &'a Path,
    pub config: &'a AgentConfig,
    /// Key and value, to tell Pods of different inputs apart.
    pub annotation: Option<(&'a str, &'a str)>,
}

/// A directory or file of the machine inside of the Pod, at the same place.
struct Mount {
    path: PathBuf,
    kind: &'static str,
    writable: bool,
    /// What is mounted below it later is seen as well.
    follows: bool,
}

/// A manifest for `/etc/kubernetes/manifests`, on the machine's own network.
pub fn manifest(pod: &Pod<'_>) -> String {
    let annotations = pod.annotation.map_or_else(String::new, |(key, value)| {
        format!("  annotations: {{{key}: {value}}}\n")
    });
    let (mut mounts, mut volumes) = (String::new(), String::new());
    for (i, mount) in mounted(pod).iter().enumerate() {
        let path = mount.path.display();
        let follows = if mount.follows {
            ", mountPropagation: HostToContainer"
        } else {
            ""
        };
        let _ = writeln!(
            mounts,
            "    - {{name: v{i}, mountPath: {path}, readOnly: {}{follows}}}",
            !mount.writable
        );
        let _ = writeln!(
            volumes,
            "  - {{name: v{i}, hostPath: {{path: {path}, type: {}}}}}",
            mount.kind
        );
    }
    format!(
        "\
apiVersion: v1
kind: Pod
metadata:
  name: {NAME}
  namespace: kube-system
  labels: {{app.kubernetes.io/name: {NAME}, tier: control-plane}}
{annotations}spec:
  hostNetwork: true
  # The last to be evicted, and killed when memory is short: who balances the API must outlive those who use it.
  priority: 2000001000
  priorityClassName: system-node-critical
  # The VIP is gone within milliseconds; what may take longer is the draining of connections.
  terminationGracePeriodSeconds: 10
  securityContext:
    seccompProfile: {{type: RuntimeDefault}}
  containers:
  - name: agent
    image: {image}
    imagePullPolicy: IfNotPresent
    command: [{PROGRAM}]
    # The agent that serves the machine until its kubelet runs is relieved without a refused connection.
    args: [agent, run, --take-over, --config, {config}]
    securityContext:
      readOnlyRootFilesystem: true
{rights}    resources:
      requests: {{cpu: 100m, memory: 64Mi}}
{probes}    volumeMounts:
{mounts}  volumes:
{volumes}",
        image = pod.image,
        config = pod.path.display(),
        rights = rights(pod.config),
        probes = probes(pod.config),
    )
}

/// VRRP sends raw packets in real time; addresses and packet rules are the network's administration; BPF programs and the
/// sockets in Pods' own network namespaces are the system's.
fn rights(config: &AgentConfig) -> String {
    if !config.ipvs.is_empty() {
        // IPVS has kernel parameters, which are read-only in any other container; kube-proxy has this for the same reason.
        return "      privileged: true\n".to_owned();
    }
    let mut capabilities = vec!["NET_ADMIN", "NET_BIND_SERVICE"];
    if !config.vrrp.is_empty() {
        capabilities.extend(["NET_RAW", "SYS_NICE", "IPC_LOCK"]);
    }
    if !config.ebpf.is_empty() {
        capabilities.extend(["SYS_ADMIN", "BPF", "PERFMON"]);
    }
    format!(
        "      allowPrivilegeEscalation: false\n      capabilities:\n        drop: [ALL]\n        add: [{}]\n",
        capabilities.join(", ")
    )
}

/// An agent that hangs is replaced at once: draining would only prolong it.
fn probes(config: &AgentConfig) -> String {
    let stats = config.stats.as_ref().map(|stats| stats.listen);
    let Some(listen) = stats.or(config.metrics.as_ref().map(|metrics| metrics.listen)) else {
        return String::new();
    };
    let host = match listen.ip() {
        ip if !ip.is_unspecified() => ip.to_string(),
        ip if ip.is_ipv4() => "127.0.0.1".to_owned(),
        _ => "::1".to_owned(),
    };
    let get = format!("httpGet: {{host: \"{host}\", path: /healthz, port: {}}}", listen.port());
    format!(
        "    \
         livenessProbe:\n      {get}\n      periodSeconds: 2\n      timeoutSeconds: 2\n      failureThreshold: 3\n      \
         terminationGracePeriodSeconds: 1\n    \
         readinessProbe:\n      {get}\n      periodSeconds: 2\n"
    )
}

/// The configuration's directory, so that a reload sees what was replaced; the control socket's, so that `agent ctl` works
/// on the machine; what virtual routers and services in the kernel remember; of everything else the file alone: beside a CA's certificate may lie its key.
fn mounted(pod: &Pod<'_>) -> Vec<Mount> {
    let parent = |file: &Path| file.parent().map(Path::to_path_buf).unwrap_or_default();
    let directory = |path: PathBuf, writable| Mount {
        path,
        kind: "DirectoryOrCreate",
        writable,
        follows: false,
    };
    let own = parent(pod.path);
    let mut all = vec![
        directory(own.clone(), false),
        directory(parent(&pod.config.admin.socket), true),
    ];
    let in_kernel = !pod.config.ipvs.is_empty() || !pod.config.ebpf.is_empty();
    if !pod.config.vrrp.is_empty() || in_kernel {
        all.push(directory(pod.config.state.clone(), true));
    }
    let mut files: Vec<&Path> = Vec::new();
    for set in pod.config.backend_sets() {
        let named = [&set.health.ca, &set.health.client_cert, &set.health.client_key];
        files.extend(named.into_iter().flatten().map(PathBuf::as_path));
    }
    let keys = pod.config.vrrp.iter().flat_map(|router| &router.auth.keys);
    files.extend(keys.map(|key| key.file.as_path()));
    let login = pod.config.stats.as_ref().and_then(|stats| stats.login.as_ref());
    files.extend(login.map(|login| login.password_file.as_path()));
    files.sort_unstable();
    files.dedup();
    all.extend(
        files
            .into_iter()
            .filter(|file| !file.starts_with(&own))
            .map(|file| Mount {
                path: file.to_owned(),
                kind: "File",
                writable: false,
                follows: false,
            }),
    );
    if !pod.config.ebpf.is_empty() {
        // Pins, and the root of the control groups, which a container does not see by itself.
        all.push(directory("/sys/fs".into(), true));
    }
    if in_kernel {
        // Clients of a dead server are freed in the Pods' network namespaces, too.
        all.push(Mount {
            follows: true,
            ..directory("/run/netns".into(), false)
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(config: &AgentConfig) -> serde_json::Value {
        let text = manifest(&Pod {
            image: "quorate.dev/agent:1",
            path: Path::new("/etc/quorate/agent.yaml"),
            config,
            annotation: Some(("quorate.dev/inputs", "q12")),
        });
        serde_saphyr::from_str(&text).unwrap()
    }

    fn names<'a>(pod: &'a serde_json::Value, pointer: &str, key: &str) -> Vec<&'a str> {
        let all = pod.pointer(pointer).and_then(serde_json::Value::as_array).unwrap();
        all.iter()
            .filter_map(|one| {
                if key.is_empty() {
                    one.as_str()
                } else {
                    one[key].as_str()
                }
            })
            .collect()
    }

    fn config(text: &str) -> AgentConfig {
        serde_saphyr::from_str(&format!("apiVersion: quorate.dev/v1\nkind: Agent\nnode: m1\n{text}")).unwrap()
    }

    #[test]
    fn a_holder_of_a_vip() {
        let pod = parsed(&config(
            "vrrp: [{name: api, vrid: 51, interface: eth0, source: 10.0.0.1, vips: [10.0.0.9], peers: [10.0.0.2], \
             auth: {keys: [{id: 1, file: /etc/quorate/vrrp.key}]}}]\n\
             frontends: [{name: api, listen: ['0.0.0.0:8443'], backends: [{name: m1, address: '10.0.0.1:6443'}], \
             health: {kind: https, ca: /etc/kubernetes/pki/ca.crt}}]\nstats: {listen: '127.0.0.1:9445'}",
        ));
        assert_eq!(
            names(&pod, "/spec/containers/0/volumeMounts", "mountPath"),
            [
                "/etc/quorate",
                "/run/quorate",
                "/var/lib/quorate/agent",
                "/etc/kubernetes/pki/ca.crt"
            ]
        );
        assert_eq!(
            names(&pod, "/spec/containers/0/securityContext/capabilities/add", ""),
            ["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW", "SYS_NICE", "IPC_LOCK"]
        );
        assert_eq!(pod["spec"]["containers"][0]["livenessProbe"]["httpGet"]["port"], 9445);
        assert_eq!(pod["metadata"]["annotations"]["quorate.dev/inputs"], "q12");
        assert_eq!(pod["spec"]["hostNetwork"], true);
    }

    #[test]
    fn kernel_work_sees_the_machines_pins_and_namespaces() {
        let pod = parsed(&config(
            "ebpf: [{name: node, virtual: '10.103.97.2:6443', backends: [{name: m1, address: '10.0.0.1:6443'}]}]",
        ));
        assert_eq!(
            names(&pod, "/spec/volumes", "name").len(),
            names(&pod, "/spec/containers/0/volumeMounts", "name").len()
        );
        let mounts = names(&pod, "/spec/containers/0/volumeMounts", "mountPath");
        assert_eq!(
            mounts,
            [
                "/etc/quorate",
                "/run/quorate",
                "/var/lib/quorate/agent",
                "/sys/fs",
                "/run/netns"
            ]
        );
        let capabilities = names(&pod, "/spec/containers/0/securityContext/capabilities/add", "");
        assert!(
            capabilities.contains(&"BPF") && !capabilities.contains(&"NET_RAW"),
            "{capabilities:?}"
        );
        let pod = parsed(&config(
            "ipvs: [{name: node, virtual: '10.103.97.2:6443', backends: [{name: m1, address: '10.0.0.1:6443'}]}]",
        ));
        assert_eq!(pod["spec"]["containers"][0]["securityContext"]["privileged"], true);
    }
}
