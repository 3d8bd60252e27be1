//! kubeconfig files that name certificates by path, so that the file itself holds no secret.

use serde_json::json;

/// `server`: URL; the rest: paths on the machine.
pub(crate) fn by_path(cluster: &str, server: &str, ca: &str, user: &str, certificate: &str, key: &str) -> String {
    render(
        cluster,
        server,
        ca,
        user,
        json!({"client-certificate": certificate, "client-key": key}),
    )
}

/// The kubelet's first kubeconfig: a bootstrap token, marked for substitution.
pub(crate) fn bootstrap(cluster: &str, server: &str, ca: &str) -> String {
    let token = "{{secret:bootstrap-token-id}}.{{secret:bootstrap-token-secret}}";
    render(cluster, server, ca, "kubelet-bootstrap", json!({"token": token}))
}

fn render(cluster: &str, server: &str, ca: &str, user: &str, credentials: serde_json::Value) -> String {
    crate::yaml::render(&json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": cluster, "cluster": {"server": server, "certificate-authority": ca}}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "default", "context": {"cluster": cluster, "user": user}}],
        "current-context": "default",
    }))
}
