//! Private keys from PEM. ring takes PKCS#8 only, so PKCS#1 and SEC1 (what kubeadm and OpenSSL write) are wrapped.

use rcgen::{KeyPair, PublicKeyData};
use x509_parser::pem::Pem;
use zeroize::Zeroizing;

use crate::{Error, SecretText};

/// A private key from PEM: PKCS#8, PKCS#1 (RSA) or SEC1 (EC P-256, P-384); RSA of 2048 to 4096 bits; Ed25519.
pub(crate) fn load(pem: &str) -> Result<Zeroizing<KeyPair>, Error> {
    let mut labels = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let Pem { label, contents } = block.map_err(|error| Error::Key(format!("not PEM: {error}")))?;
        let contents = Zeroizing::new(contents);
        let pkcs8 = match label.as_str() {
            "PRIVATE KEY" => contents,
            "RSA PRIVATE KEY" => wrap(&RSA, &contents),
            "EC PRIVATE KEY" => wrap(&ec_algorithm(&contents)?, &contents),
            "ENCRYPTED PRIVATE KEY" => {
                return Err(Error::Key(
                    "it is encrypted; decrypt it first (openssl pkey -in ca.key -out plain.key) into a file only you can \
                     read"
                        .into(),
                ));
            }
            _ => {
                labels.push(label);
                continue;
            }
        };
        return KeyPair::try_from(pkcs8.as_slice()).map(Zeroizing::new).map_err(|_| {
            Error::Key(
                "unsupported or damaged; RSA of 2048 to 4096 bits, EC P-256, EC P-384 (with its public key inside) and \
                 Ed25519 work"
                    .into(),
            )
        });
    }
    Err(Error::Key(match labels.as_slice() {
        [] => "no PEM block found".into(),
        found => format!("no private key among the PEM blocks ({})", found.join(", ")),
    }))
}

/// A new ECDSA P-256 key.
pub(crate) fn generate(what: &str) -> Result<Zeroizing<KeyPair>, Error> {
    KeyPair::generate()
        .map(Zeroizing::new)
        .map_err(|error| Error::issue(what, error))
}

/// The same key as PKCS#8 PEM, whatever it came as.
pub(crate) fn to_pem(key: &KeyPair) -> SecretText {
    SecretText::new(key.serialize_pem())
}

/// SHA-256 of the key's public part as SubjectPublicKeyInfo, hex.
pub(crate) fn spki_sha256(key: &KeyPair) -> String {
    crate::sha256_hex(&key.subject_public_key_info())
}

/// AlgorithmIdentifier { rsaEncryption, NULL } (RFC 8017 A.1).
const RSA: [u8; 15] = [
    0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00,
];
/// id-ecPublicKey (RFC 5480 2.1.1), with tag and length.
const EC_PUBLIC_KEY: [u8; 9] = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];

/// The curve stands in the key's own optional parameters (RFC 5915); its identifier occurs nowhere else in it.
fn ec_algorithm(sec1: &[u8]) -> Result<Vec<u8>, Error> {
    let holds = |oid: &[u8]| sec1.windows(oid.len()).any(|window| window == oid);
    let curve: &[u8] = if holds(&P256) {
        &P256
    } else if holds(&P384) {
        &P384
    } else {
        return Err(Error::Key(
            "an EC key on a curve other than P-256 and P-384, or without its curve; convert it with openssl pkcs8 -topk8 \
             -nocrypt"
                .into(),
        ));
    };
    Ok(tlv(0x30, &[&EC_PUBLIC_KEY, curve]).to_vec())
}

/// PrivateKeyInfo (RFC 5208): version 0, the algorithm, the key as an octet string.
fn wrap(algorithm: &[u8], key: &[u8]) -> Zeroizing<Vec<u8>> {
    let octets = tlv(0x04, &[key]);
    tlv(0x30, &[&[0x02, 0x01, 0x00], algorithm, &octets])
}

fn tlv(tag: u8, parts: &[&[u8]]) -> Zeroizing<Vec<u8>> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    // The full capacity at once, so that growing leaves no copy of the key behind.
    let mut out = Zeroizing::new(Vec::with_capacity(length + 6));
    out.push(tag);
    let bytes = (length as u64).to_be_bytes();
    let significant = &bytes[(length.leading_zeros() as usize / 8).min(7)..];
    if length < 0x80 {
        out.push(significant[0]);
    } else {
        out.push(0x80 | significant.len() as u8);
        out.extend_from_slice(significant);
    }
    for part in parts {
        out.extend_from_slice(part);
    }
    out
}
