//! The probe: one tiny Pod per node that lets `status` and drills ask "what does a Pod on this machine reach?" at any time.

use serde_json::json;

use crate::components::objects::object;
use crate::model::ApiObject;

pub(crate) const DAEMON_SET: &str = "/apis/apps/v1/namespaces/kube-system/daemonsets/quorate-probe";
/// Where a probe Pod listens.
pub const PORT: u16 = 8085;

pub(crate) fn objects(image: &str) -> Vec<ApiObject> {
    let labels = json!({"app.kubernetes.io/name": "quorate-probe"});
    let metadata = json!({"name": "quorate-probe", "namespace": "kube-system", "labels": labels});
    vec![
        object(
            "/api/v1/namespaces/kube-system/services/quorate-probe".to_owned(),
            json!({
                "apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": {"selector": labels, "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": PORT}]},
            }),
        ),
        object(
            DAEMON_SET.to_owned(),
            json!({
                "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata,
                "spec": {
                    "selector": {"matchLabels": labels},
                    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {
                            "automountServiceAccountToken": false,
                            "priorityClassName": "system-node-critical",
                            "terminationGracePeriodSeconds": 1,
                            "tolerations": [{"operator": "Exists"}],
                            "containers": [{
                                "name": "probe",
                                "image": image,
                                "imagePullPolicy": "IfNotPresent",
                                "args": ["--listen", format!(":{PORT}")],
                                "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
                                "resources": {"requests": {"cpu": "1m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                                "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT, "scheme": "HTTP"}, "periodSeconds": 5},
                                "securityContext": {
                                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true, "runAsUser": 65534,
                                    "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"},
                                },
                            }],
                        },
                    },
                },
            }),
        ),
    ]
}
