//! CoreDNS as upstream deploys it: <https://github.com/coredns/deployment>, with anti-affinity across machines.

use std::net::IpAddr;

use serde_json::json;

use crate::components::objects::{cluster_role, cluster_role_binding, object, service_account_subject};
use crate::model::ApiObject;

pub(crate) const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/kube-system/deployments/coredns";

pub(crate) fn objects(
    image: &str,
    domain: &str,
    replicas: u32,
    addresses: &[IpAddr],
    host_dns: bool,
) -> Vec<ApiObject> {
    let core = |kind: &str, name: &str| format!("/api/v1/namespaces/kube-system/{kind}/{name}");
    let labels = json!({"k8s-app": "kube-dns"});
    let metadata = |name: &str| json!({"name": name, "namespace": "kube-system", "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}});
    let families = addresses
        .iter()
        .map(|address| if address.is_ipv4() { "IPv4" } else { "IPv6" })
        .collect::<Vec<_>>();
    // Without an upstream resolver on the machines there is nothing to forward to; CoreDNS would refuse to start.
    let forward = if host_dns {
        "    forward . /etc/resolv.conf {\n       max_concurrent 1000\n    }\n"
    } else {
        ""
    };
    let corefile = format!(
        ".:53 {{\n    errors\n    health {{\n       lameduck 5s\n    }}\n    ready\n    kubernetes {domain} in-addr.arpa ip6.arpa {{\n       pods insecure\n       fallthrough in-addr.arpa ip6.arpa\n       ttl 30\n    }}\n    prometheus :9153\n{forward}    cache 30\n    loop\n    reload\n    loadbalance\n}}\n"
    );
    vec![
        object(
            core("serviceaccounts", "coredns"),
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata("coredns")}),
        ),
        cluster_role(
            "system:coredns",
            json!([
                {"apiGroups": [""], "resources": ["endpoints", "services", "pods", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ]),
        ),
        cluster_role_binding(
            "system:coredns",
            "system:coredns",
            &[service_account_subject("coredns", "kube-system")],
        ),
        object(
            core("configmaps", "coredns"),
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata("coredns"), "data": {"Corefile": corefile}}),
        ),
        object(
            core("services", "kube-dns"),
            json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "kube-dns", "namespace": "kube-system",
                    "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
                    "annotations": {"prometheus.io/port": "9153", "prometheus.io/scrape": "true"}},
                "spec": {
                    "selector": labels,
                    "clusterIP": addresses[0].to_string(),
                    "clusterIPs": addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                    "ipFamilies": families,
                    "ipFamilyPolicy": if families.len() > 1 { "RequireDualStack" } else { "SingleStack" },
                    "ports": [
                        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
                        {"name": "metrics", "port": 9153, "protocol": "TCP", "targetPort": 9153},
                    ],
                },
            }),
        ),
        object(
            DEPLOYMENT.to_owned(),
            json!({
                "apiVersion": "apps/v1",
                "kind": "Deployment",
                "metadata": metadata("coredns"),
                "spec": {
                    "replicas": replicas,
                    "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
                    "selector": {"matchLabels": labels},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {
                            "priorityClassName": "system-cluster-critical",
                            "serviceAccountName": "coredns",
                            "tolerations": [
                                {"key": "CriticalAddonsOnly", "operator": "Exists"},
                                {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"},
                            ],
                            "nodeSelector": {"kubernetes.io/os": "linux"},
                            "affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{
                                "weight": 100,
                                "podAffinityTerm": {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"},
                            }]}},
                            "dnsPolicy": "Default",
                            "volumes": [{"name": "config-volume", "configMap": {"name": "coredns", "items": [{"key": "Corefile", "path": "Corefile"}]}}],
                            "containers": [{
                                "name": "coredns",
                                "image": image,
                                "imagePullPolicy": "IfNotPresent",
                                "args": ["-conf", "/etc/coredns/Corefile"],
                                "resources": {"limits": {"memory": "170Mi"}, "requests": {"cpu": "100m", "memory": "70Mi"}},
                                "volumeMounts": [{"name": "config-volume", "mountPath": "/etc/coredns", "readOnly": true}],
                                "ports": [
                                    {"containerPort": 53, "name": "dns", "protocol": "UDP"},
                                    {"containerPort": 53, "name": "dns-tcp", "protocol": "TCP"},
                                    {"containerPort": 9153, "name": "metrics", "protocol": "TCP"},
                                ],
                                "livenessProbe": {"httpGet": {"path": "/health", "port": 8080, "scheme": "HTTP"}, "initialDelaySeconds": 60, "timeoutSeconds": 5, "successThreshold": 1, "failureThreshold": 5},
                                "readinessProbe": {"httpGet": {"path": "/ready", "port": 8181, "scheme": "HTTP"}, "periodSeconds": 2},
                                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"add": ["NET_BIND_SERVICE"], "drop": ["ALL"]}, "readOnlyRootFilesystem": true},
                            }],
                        },
                    },
                },
            }),
        ),
    ]
}
