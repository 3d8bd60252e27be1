//! Certificates and keys as facts.

use quorate_facts::{CertificateFacts, KeyFacts};
use quorate_pki::read;

/// Of a certificate's file, or of the client certificate inside a kubeconfig. `None`: a kubeconfig that holds none.
pub(crate) fn certificate(text: &str) -> Option<CertificateFacts> {
    let found = if text.lines().any(|line| line == "kind: Config") {
        read::kubeconfig_certificate(text).transpose()?
    } else {
        read::certificate(text)
    };
    Some(match found {
        Ok(found) => CertificateFacts {
            common_name: found.common_name,
            organizations: found.organizations,
            issuer: found.issuer,
            subject: found.subject,
            dns: found.dns,
            ips: found.ips,
            server: found.server,
            client: found.client,
            is_ca: found.is_ca,
            subject_key_id: found.subject_key_id,
            authority_key_id: found.authority_key_id,
            not_before: found.not_before,
            not_after: found.not_after,
            serial: found.serial,
            spki_sha256: found.spki_sha256,
            fingerprint: found.fingerprint,
            error: None,
        },
        Err(error) => CertificateFacts {
            error: Some(error.to_string()),
            ..CertificateFacts::default()
        },
    })
}

pub(crate) fn key(pem: &str) -> KeyFacts {
    match read::key_spki_sha256(pem) {
        Ok(spki_sha256) => KeyFacts {
            spki_sha256,
            error: None,
        },
        Err(error) => KeyFacts {
            spki_sha256: String::new(),
            error: Some(error.to_string()),
        },
    }
}
