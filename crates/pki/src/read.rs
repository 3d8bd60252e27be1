//! Reading certificates back, and saying why one must be re-issued.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    pem::Pem,
    prelude::FromDer,
    x509::X509Name,
};

use crate::{
    DAY, Error,
    inventory::{Ca, CertificateWanted, RENEW_BEFORE_DAYS},
    keys,
    secret::hex,
    sha256_hex,
};

/// What a certificate says. Times are Unix seconds; identifiers and fingerprints lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateFound {
    pub common_name: String,
    pub organizations: Vec<String>,
    /// The issuer's whole name as one line, for example `CN=kubernetes`.
    pub issuer: String,
    /// The subject's, in the same form.
    pub subject: String,
    /// Sorted.
    pub dns: Vec<String>,
    /// Sorted.
    pub ips: Vec<IpAddr>,
    /// Extended key usages `serverAuth` and `clientAuth`.
    pub server: bool,
    pub client: bool,
    pub is_ca: bool,
    pub subject_key_id: Option<String>,
    pub authority_key_id: Option<String>,
    pub not_before: i64,
    pub not_after: i64,
    pub serial: String,
    /// SHA-256 of the SubjectPublicKeyInfo; for a CA this is kubeadm's discovery hash without its `sha256:`.
    pub spki_sha256: String,
    /// SHA-256 of the certificate's DER.
    pub fingerprint: String,
    /// Whether the key lying beside it belongs to it; `None` when no key was looked at.
    pub key_matches: Option<bool>,
}

/// The first certificate of a PEM text (a bundle's first is the leaf).
pub fn certificate(pem: &str) -> Result<CertificateFound, Error> {
    found(&parse(&first_der(pem)?)?)
}

/// Every certificate of a PEM bundle, in order.
pub fn bundle(pem: &str) -> Result<Vec<CertificateFound>, Error> {
    ders(pem)?.iter().map(|der| found(&parse(der)?)).collect()
}

/// As [`certificate`], and whether `key_pem` is its private key. An unreadable key counts as not matching: what a
/// server cannot load is as useless to it as a foreign key.
pub fn certificate_with_key(pem: &str, key_pem: &str) -> Result<CertificateFound, Error> {
    let mut found = certificate(pem)?;
    found.key_matches = Some(key_spki_sha256(key_pem).is_ok_and(|spki| spki == found.spki_sha256));
    Ok(found)
}

/// Whether the private key belongs to the certificate.
pub fn key_matches(certificate_pem: &str, key_pem: &str) -> Result<bool, Error> {
    Ok(key_spki_sha256(key_pem)? == certificate(certificate_pem)?.spki_sha256)
}

/// SHA-256 (hex) of a private key's public part; identifies a key without showing it.
pub fn key_spki_sha256(key_pem: &str) -> Result<String, Error> {
    let key = keys::load(key_pem)?;
    Ok(keys::spki_sha256(&key))
}

/// SHA-256 (hex) of a `PUBLIC KEY` PEM's SubjectPublicKeyInfo, comparable with [`key_spki_sha256`].
pub fn public_key_spki_sha256(public_pem: &str) -> Result<String, Error> {
    let block = Pem::iter_from_buffer(public_pem.as_bytes())
        .filter_map(Result::ok)
        .find(|block| block.label == "PUBLIC KEY")
        .ok_or_else(|| Error::parse("the public key", "no PUBLIC KEY block in the PEM text"))?;
    Ok(sha256_hex(&block.contents))
}

/// Whether `ca_pem`'s first certificate signed the certificate: names, CA flag and signature. Validity in time is not
/// looked at; [`differences`] does that. The reason is in the error.
pub fn chain_ok(certificate_pem: &str, ca_pem: &str) -> Result<(), String> {
    let (der, ca_der) = (
        first_der(certificate_pem).map_err(|error| error.to_string())?,
        first_der(ca_pem).map_err(|error| error.to_string())?,
    );
    let (leaf, ca) = (
        parse(&der).map_err(|error| error.to_string())?,
        parse(&ca_der).map_err(|error| error.to_string())?,
    );
    if leaf.issuer().as_raw() != ca.subject().as_raw() {
        return Err(format!("issued by {}, not by {}", leaf.issuer(), ca.subject()));
    }
    if !ca.is_ca() {
        return Err(format!("{} is no CA", ca.subject()));
    }
    leaf.verify_signature(Some(ca.public_key()))
        .map_err(|_| format!("signed by another key than that of {} with the same name", ca.subject()))
}

/// kubeadm's `--discovery-token-ca-cert-hash`: `sha256:` and the SHA-256 of the CA's SubjectPublicKeyInfo.
pub fn ca_cert_hash(ca_pem: &str) -> Result<String, Error> {
    Ok(format!("sha256:{}", certificate(ca_pem)?.spki_sha256))
}

/// The client certificate embedded in a kubeconfig (PEM), with its key compared. `Ok(None)` when it names files.
pub fn kubeconfig_certificate(kubeconfig: &str) -> Result<Option<CertificateFound>, Error> {
    let Some(pem) = embedded(kubeconfig, "client-certificate-data")? else {
        return Ok(None);
    };
    Ok(Some(match embedded(kubeconfig, "client-key-data")? {
        Some(key) => certificate_with_key(&pem, &key)?,
        None => certificate(&pem)?,
    }))
}

/// Why the certificate must be re-issued; empty when it serves. `ca` is the authority that should have signed it.
pub fn differences(
    wanted: &CertificateWanted,
    found: &CertificateFound,
    ca: &CertificateFound,
    now: i64,
) -> Vec<String> {
    let mut reasons = Vec::new();
    let mut differ = |differs: bool, reason: String| {
        if differs {
            reasons.push(reason);
        }
    };
    differ(
        found.key_matches == Some(false),
        "its key file does not belong to it".into(),
    );
    differ(
        found.issuer != ca.subject,
        format!("issued by {}, wanted {}", found.issuer, ca.subject),
    );
    differ(
        found.issuer == ca.subject
            && found.authority_key_id.is_some()
            && ca.subject_key_id.is_some()
            && found.authority_key_id != ca.subject_key_id,
        format!("signed by another {} CA of the same name", wanted.ca.name()),
    );
    differ(
        found.common_name != wanted.common_name,
        format!("common name {:?}, wanted {:?}", found.common_name, wanted.common_name),
    );
    let organizations = |list: &[String]| {
        if list.is_empty() {
            "none".to_owned()
        } else {
            list.join(", ")
        }
    };
    differ(
        found.organizations != wanted.organizations,
        format!(
            "organization {}, wanted {}",
            organizations(&found.organizations),
            organizations(&wanted.organizations)
        ),
    );
    let names = |list: &[String], addresses: &[IpAddr]| -> Vec<String> {
        list.iter()
            .map(|name| name.to_ascii_lowercase())
            .chain(addresses.iter().map(ToString::to_string))
            .collect()
    };
    let (has, wants) = (names(&found.dns, &found.ips), names(&wanted.dns, &wanted.ips));
    let lacking: Vec<_> = wants.iter().filter(|name| !has.contains(name)).cloned().collect();
    let surplus: Vec<_> = has.iter().filter(|name| !wants.contains(name)).cloned().collect();
    differ(!lacking.is_empty(), format!("not valid for {}", lacking.join(", ")));
    // A name that went to another machine must not stay valid here.
    differ(
        !surplus.is_empty(),
        format!("valid for {}, which is no longer wanted", surplus.join(", ")),
    );
    differ(
        wanted.server && !found.server,
        "usage server authentication is missing".into(),
    );
    differ(
        wanted.client && !found.client,
        "usage client authentication is missing".into(),
    );
    differ(
        !wanted.client && found.client,
        "usage client authentication is not wanted".into(),
    );
    differ(
        !wanted.server && found.server,
        "usage server authentication is not wanted".into(),
    );
    differ(found.is_ca, "it is a CA certificate".into());
    differ(found.not_before > now, "not valid yet; compare the clocks".into());
    reasons.extend(expires(wanted.days, found.not_after, ca.not_after, now));
    reasons
}

/// Why an authority's certificate on a machine must be replaced by the operator's.
pub fn authority_differences(which: Ca, wanted: &CertificateFound, found: &CertificateFound) -> Vec<String> {
    if found.fingerprint == wanted.fingerprint {
        return Vec::new();
    }
    vec![if found.spki_sha256 == wanted.spki_sha256 {
        format!("another certificate for the same {} CA key", which.name())
    } else {
        format!(
            "another {} CA: {} with key {}",
            which.name(),
            found.subject,
            &found.spki_sha256[..16]
        )
    }]
}

/// Why a leaf that lives for `days` must be renewed, its end and its authority's being known; `None` while it serves.
pub fn expires(days: u32, not_after: i64, ca_not_after: i64, now: i64) -> Option<String> {
    let left = not_after - now;
    if left < 0 {
        return Some(format!("expired {} days ago", (-left).div_euclid(DAY)));
    }
    // A leaf never outlives its CA: near the CA's own end a new leaf would gain nothing and be re-issued forever.
    let best = (now + i64::from(days) * DAY).min(ca_not_after);
    let renew_before = i64::from(RENEW_BEFORE_DAYS.min(days / 3)) * DAY;
    (left < renew_before && best > not_after + DAY).then(|| format!("expires in {} days", left / DAY))
}

pub(crate) fn first_der(pem: &str) -> Result<Vec<u8>, Error> {
    Ok(ders(pem)?.swap_remove(0))
}

/// At least one.
fn ders(pem: &str) -> Result<Vec<Vec<u8>>, Error> {
    let mut ders = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|error| Error::parse("the certificate", format!("damaged PEM: {error}")))?;
        if block.label == "CERTIFICATE" {
            ders.push(block.contents);
        }
    }
    if ders.is_empty() {
        return Err(Error::parse("the certificate", "no CERTIFICATE block in the PEM text"));
    }
    Ok(ders)
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, Error> {
    let (rest, certificate) = X509Certificate::from_der(der).map_err(|error| Error::parse("the certificate", error))?;
    if rest.is_empty() {
        Ok(certificate)
    } else {
        Err(Error::parse("the certificate", "bytes after its end"))
    }
}

fn found(certificate: &X509Certificate<'_>) -> Result<CertificateFound, Error> {
    let mut out = CertificateFound {
        common_name: attributes(certificate.subject()).0,
        organizations: attributes(certificate.subject()).1,
        issuer: certificate.issuer().to_string(),
        subject: certificate.subject().to_string(),
        dns: Vec::new(),
        ips: Vec::new(),
        server: false,
        client: false,
        is_ca: certificate.is_ca(),
        subject_key_id: None,
        authority_key_id: None,
        not_before: certificate.validity().not_before.timestamp(),
        not_after: certificate.validity().not_after.timestamp(),
        serial: hex(certificate.raw_serial()),
        spki_sha256: sha256_hex(certificate.public_key().raw),
        fingerprint: sha256_hex(certificate.as_raw()),
        key_matches: None,
    };
    for extension in certificate.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                let names = alternative_names(&names.general_names);
                (out.dns, out.ips) = (names.dns, names.ips);
            }
            ParsedExtension::ExtendedKeyUsage(usage) => {
                (out.server, out.client) = (usage.server_auth || usage.any, usage.client_auth || usage.any);
            }
            ParsedExtension::SubjectKeyIdentifier(id) => out.subject_key_id = Some(hex(id.0)),
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                out.authority_key_id = id.key_identifier.as_ref().map(|id| hex(id.0));
            }
            ParsedExtension::ParseError { error } => {
                return Err(Error::parse("the certificate's extensions", error));
            }
            _ => {}
        }
    }
    Ok(out)
}

/// Common name (empty when absent) and organizations in order.
pub(crate) fn attributes(name: &X509Name<'_>) -> (String, Vec<String>) {
    let common_name = name
        .iter_common_name()
        .filter_map(|part| part.as_str().ok())
        .last()
        .unwrap_or_default();
    let organizations = name
        .iter_organization()
        .filter_map(|part| part.as_str().ok())
        .map(Into::into)
        .collect();
    (common_name.into(), organizations)
}

pub(crate) struct AlternativeNames {
    pub(crate) dns: Vec<String>,
    pub(crate) ips: Vec<IpAddr>,
    /// Anything but DNS names and addresses: mail, URI, other names.
    pub(crate) other: Vec<String>,
}

pub(crate) fn alternative_names(names: &[GeneralName<'_>]) -> AlternativeNames {
    let mut out = AlternativeNames {
        dns: Vec::new(),
        ips: Vec::new(),
        other: Vec::new(),
    };
    for name in names {
        match name {
            GeneralName::DNSName(name) => out.dns.push((*name).into()),
            GeneralName::IPAddress(bytes) => match address(bytes) {
                Some(address) => out.ips.push(address),
                None => out.other.push(name.to_string()),
            },
            _ => out.other.push(name.to_string()),
        }
    }
    out.dns.sort();
    out.ips.sort();
    out
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

/// A base64 value of a kubeconfig. Every writer of kubeconfigs puts it on one line.
fn embedded(kubeconfig: &str, key: &str) -> Result<Option<String>, Error> {
    use base64::Engine;
    let value = kubeconfig
        .lines()
        .filter_map(|line| {
            line.trim()
                .trim_start_matches("- ")
                .strip_prefix(key)?
                .trim_start()
                .strip_prefix(':')
        })
        .map(|value| value.trim().trim_matches(['"', '\'']))
        .find(|value| !value.is_empty());
    let Some(value) = value else { return Ok(None) };
    let what = format!("{key} of the kubeconfig");
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(value)
        .map_err(|error| Error::parse(&what, error))?;
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Error::parse(&what, "not PEM"))
}
