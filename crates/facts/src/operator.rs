//! What the operator's folder holds: authorities and shared secrets.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize, Serializer};

/// The shared secrets of one cluster. Values never leave memory except into 0600 files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SecretId {
    /// 32 random bytes, base64: the secretbox key of encryption at rest.
    EncryptionKey,
    /// `id` half of the bootstrap token (6 characters; public by design, it names the Secret).
    BootstrapTokenId,
    /// `secret` half of the bootstrap token (16 characters).
    BootstrapTokenSecret,
    /// Key of the VRRP HMAC trailer, hex.
    VrrpKey,
    /// Password of VRRP 2: 8 characters (RFC 2338, section 5.3.6.1), which go over the network as they are. Follows from
    /// the key, which does not follow from it.
    VrrpPassword,
    /// Password of the statistics page.
    StatisticsPassword,
    /// kubeadm's certificate key (32 bytes, hex).
    KubeadmCertificateKey,
    /// Service-account signing key, PKCS#8 PEM.
    ServiceAccountKey,
    /// Public half of the service-account key, PKIX PEM.
    ServiceAccountPublicKey,
    ClusterCaKey,
    EtcdCaKey,
    FrontProxyCaKey,
}

/// Bytes that print, debug and serialise as `***`.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretBytes(Vec<u8>);

impl SecretBytes {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// The value itself; callers write it into 0600 files or frames, nowhere else.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

impl Serialize for SecretBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

/// The operator's side: what exists before anything is planned.
#[derive(Clone, Debug, Default, Serialize)]
pub struct OperatorFacts {
    /// By the name used in the certificate inventory: `cluster`, `etcd`, `front-proxy`.
    pub authorities: BTreeMap<String, CaFacts>,
    /// Shared secrets; empty before the first `apply`.
    pub secrets: BTreeMap<SecretId, SecretBytes>,
    /// SHA-256 (hex) of the static program that will be placed on machines.
    pub program_sha256: String,
}

/// One certificate authority's public half.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CaFacts {
    /// PEM of the certificate.
    pub certificate: String,
    /// SHA-256 (hex) of the public key, for `sha256:…` pins.
    pub spki_sha256: String,
    /// Seconds since 1970.
    pub not_after_unix: i64,
}
