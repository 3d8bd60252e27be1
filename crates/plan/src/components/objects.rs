//! Kubernetes objects of a cluster: who may do what, and how nodes join.

use quorate_pki::inventory::{ADMIN_GROUP, KUBELET_CLIENT_NAME};
use serde_json::{Value, json};

use crate::model::ApiObject;
use quorate_facts::SecretId;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// RBAC that every cluster needs before the first node joins.
pub(crate) fn rbac() -> Vec<ApiObject> {
    vec![
        cluster_role_binding("quorate:cluster-admins", "cluster-admin", &[group(ADMIN_GROUP)]),
        cluster_role_binding(
            "quorate:kube-apiserver-to-kubelet",
            "system:kubelet-api-admin",
            &[user(KUBELET_CLIENT_NAME)],
        ),
        cluster_role_binding(
            "quorate:kubelet-bootstrap",
            "system:node-bootstrapper",
            &[group(JOINING_GROUP)],
        ),
        cluster_role_binding(
            "quorate:node-autoapprove-bootstrap",
            "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
            &[group(JOINING_GROUP)],
        ),
        cluster_role_binding(
            "quorate:node-autoapprove-certificate-rotation",
            "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
            &[group("system:nodes")],
        ),
    ]
}

/// The same of a cluster by kubeadm, which brings the others itself.
pub(crate) fn kubeadm_rbac() -> Vec<ApiObject> {
    rbac()
        .into_iter()
        .filter(|object| object.path.ends_with("/quorate:kube-apiserver-to-kubelet"))
        .collect()
}

/// Groups of whoever joins with the bootstrap token.
pub(crate) const JOINING_GROUP: &str = "system:bootstrappers:quorate";

/// The bootstrap token (KEP: bootstrap tokens); only present while nodes are joining.
pub(crate) fn bootstrap_token(path: &str, group: &str) -> ApiObject {
    ApiObject {
        path: path.to_owned(),
        body: json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": "bootstrap-token-{{secret:bootstrap-token-id}}", "namespace": "kube-system"},
            "stringData": {
                "token-id": "{{secret:bootstrap-token-id}}",
                "token-secret": "{{secret:bootstrap-token-secret}}",
                "usage-bootstrap-authentication": "true",
                "auth-extra-groups": group,
            },
        }),
        secrets: vec![SecretId::BootstrapTokenId, SecretId::BootstrapTokenSecret],
        before: None,
    }
}

/// Path of the token's Secret; its id is substituted when the request is made.
pub(crate) const BOOTSTRAP_TOKEN_PATH: &str =
    "/api/v1/namespaces/kube-system/secrets/bootstrap-token-{{secret:bootstrap-token-id}}";

pub(crate) fn flannel_rbac() -> Vec<ApiObject> {
    vec![
        cluster_role(
            "quorate:flannel",
            json!([
                {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]},
                {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch"]},
                {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
            ]),
        ),
        cluster_role_binding("quorate:flannel", "quorate:flannel", &[group("system:nodes")]),
    ]
}

pub(crate) fn cluster_role(name: &str, rules: Value) -> ApiObject {
    object(
        format!("{RBAC}/clusterroles/{name}"),
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": name}, "rules": rules}),
    )
}

pub(crate) fn cluster_role_binding(name: &str, role: &str, subjects: &[Value]) -> ApiObject {
    object(
        format!("{RBAC}/clusterrolebindings/{name}"),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": subjects,
        }),
    )
}

pub(crate) fn service_account_subject(name: &str, namespace: &str) -> Value {
    json!({"kind": "ServiceAccount", "name": name, "namespace": namespace})
}

pub(crate) fn group(name: &str) -> Value {
    json!({"kind": "Group", "apiGroup": "rbac.authorization.k8s.io", "name": name})
}

fn user(name: &str) -> Value {
    json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": name})
}

pub(crate) fn object(path: String, body: Value) -> ApiObject {
    ApiObject {
        path,
        body,
        secrets: Vec::new(),
        before: None,
    }
}
