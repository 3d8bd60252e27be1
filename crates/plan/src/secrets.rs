//! Marks that stand for secrets in templates, and putting the values in at the last moment.

use std::collections::BTreeMap;

use quorate_facts::{SecretBytes, SecretId};

/// `{{secret:encryption-key}}`
pub fn mark(id: SecretId) -> String {
    format!("{{{{secret:{}}}}}", name(id))
}

/// The template with every mark replaced, or `None` while one of its secrets does not exist.
pub fn render(template: &str, ids: &[SecretId], values: &BTreeMap<SecretId, SecretBytes>) -> Option<Vec<u8>> {
    let mut text = template.as_bytes().to_vec();
    for id in ids {
        let value = values.get(id)?.expose();
        text = replace(&text, mark(*id).as_bytes(), value);
    }
    Some(text)
}

/// Whether a text found on a machine holds keys or tokens itself, as kubeconfigs of kubeadm do; ours name files.
pub(crate) fn holds_credentials(text: &str) -> bool {
    ["PRIVATE KEY", "client-key-data:", "token:", "password:"]
        .iter()
        .any(|mark| text.contains(mark))
}

fn replace(text: &[u8], mark: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len() + value.len());
    let mut rest = text;
    while let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(value);
        rest = &rest[at + mark.len()..];
    }
    out.extend_from_slice(rest);
    out
}

fn name(id: SecretId) -> &'static str {
    match id {
        SecretId::EncryptionKey => "encryption-key",
        SecretId::BootstrapTokenId => "bootstrap-token-id",
        SecretId::BootstrapTokenSecret => "bootstrap-token-secret",
        SecretId::VrrpKey => "vrrp-key",
        SecretId::VrrpPassword => "vrrp-password",
        SecretId::StatisticsPassword => "statistics-password",
        SecretId::KubeadmCertificateKey => "kubeadm-certificate-key",
        SecretId::ServiceAccountKey => "service-account-key",
        SecretId::ServiceAccountPublicKey => "service-account-public-key",
        SecretId::ClusterCaKey => "cluster-ca-key",
        SecretId::EtcdCaKey => "etcd-ca-key",
        SecretId::FrontProxyCaKey => "front-proxy-ca-key",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_replaced_and_a_missing_secret_is_no_text() {
        let values = BTreeMap::from([(SecretId::BootstrapTokenId, SecretBytes::new("abcdef"))]);
        let template = format!("a={0} b={0}", mark(SecretId::BootstrapTokenId));
        assert_eq!(
            render(&template, &[SecretId::BootstrapTokenId], &values).unwrap(),
            b"a=abcdef b=abcdef"
        );
        assert!(render(&template, &[SecretId::BootstrapTokenId, SecretId::VrrpKey], &values).is_none());
    }
}
