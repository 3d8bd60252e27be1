//! Making authorities, leaf certificates and key pairs. Randomness comes from ring, the time from the caller.

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use ring::{
    digest,
    rand::{SecureRandom, SystemRandom},
};
use time::OffsetDateTime;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};

use crate::{
    DAY, Error, SecretText,
    csr::{Approved, Csr},
    inventory::{CA_DAYS, Ca, CertificateWanted, LEAF_DAYS},
    keys,
    read::{self, CertificateFound},
};

/// Clocks of machines may be behind the operator's by this much (as with kubeadm).
const BACKDATE_SECONDS: i64 = 300;

/// A certificate authority that can sign.
#[derive(Debug, Clone)]
pub struct Authority {
    which: Ca,
    certificate_pem: String,
    key_pem: SecretText,
    found: CertificateFound,
}

/// A new certificate with its new key (PKCS#8 PEM).
#[derive(Debug, Clone)]
pub struct Issued {
    pub certificate_pem: String,
    pub key_pem: SecretText,
}

/// A key pair without a certificate: PKCS#8 PEM and `PUBLIC KEY` PEM.
#[derive(Debug, Clone)]
pub struct KeyPairPem {
    pub private_pem: SecretText,
    pub public_pem: String,
}

impl Authority {
    /// A new self-signed authority, ECDSA P-256, valid for [`CA_DAYS`].
    pub fn create(which: Ca, now: i64) -> Result<Self, Error> {
        let what = format!("the {} CA", which.name());
        let key = keys::generate(&what)?;
        let mut params = params(
            &what,
            which.common_name(),
            &[],
            now,
            now + i64::from(CA_DAYS) * DAY,
            &*key,
        )?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
        ];
        // Some verifiers want the authority's own name among its alternative names, as kubeadm gives it.
        params.subject_alt_names = vec![dns(&what, which.common_name())?];
        let certificate = params.self_signed(&*key).map_err(|error| Error::issue(&what, error))?;
        Self::import(which, &certificate.pem(), keys::to_pem(&key), now)
    }

    /// An existing authority: RSA (2048 to 4096 bits), EC P-256/P-384 or Ed25519; the key as PKCS#8, PKCS#1 or SEC1 PEM.
    ///
    /// Refused with a reason when it could not sign what clients accept: no CA flag, no right to sign certificates,
    /// expired, a foreign key, or a name that cannot be reproduced exactly.
    pub fn import(which: Ca, certificate_pem: &str, key_pem: SecretText, now: i64) -> Result<Self, Error> {
        let refuse = |reason: String| Error::Authority {
            ca: which.name().into(),
            reason,
        };
        let key = keys::load(key_pem.expose())?;
        let found = read::certificate(certificate_pem)?;
        if keys::spki_sha256(&key) != found.spki_sha256 {
            return Err(refuse(format!(
                "the key does not belong to the certificate {}",
                found.subject
            )));
        }
        if !found.is_ca {
            return Err(refuse(format!(
                "{} is no CA certificate (basicConstraints CA:TRUE is missing)",
                found.subject
            )));
        }
        if found.not_after <= now {
            return Err(refuse(format!(
                "{} has expired; renew it with its key first",
                found.subject
            )));
        }
        let der = read::first_der(certificate_pem)?;
        let parsed = read::parse(&der)?;
        if let Ok(Some(usage)) = parsed.key_usage()
            && !usage.value.key_cert_sign()
        {
            return Err(refuse(format!(
                "{} may not sign certificates (keyUsage keyCertSign is missing)",
                found.subject
            )));
        }
        if !matches!(parsed.name_constraints(), Ok(None)) {
            return Err(refuse(format!(
                "{} has name constraints, which Kubernetes' own names do not meet",
                found.subject
            )));
        }
        let authority = Self {
            which,
            certificate_pem: certificate_pem.into(),
            key_pem: keys::to_pem(&key),
            found,
        };
        authority.probe(now).map_err(|reason| {
            refuse(format!(
                "certificates signed by it would not verify ({reason}); use an authority with a plain name"
            ))
        })?;
        Ok(authority)
    }

    pub fn which(&self) -> Ca {
        self.which
    }

    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// PKCS#8 PEM.
    pub fn key_pem(&self) -> &SecretText {
        &self.key_pem
    }

    pub fn found(&self) -> &CertificateFound {
        &self.found
    }

    /// Issues a row of the table with a new key (ECDSA P-256).
    pub fn issue(&self, wanted: &CertificateWanted, now: i64) -> Result<Issued, Error> {
        let key = keys::generate(&wanted.id)?;
        Ok(Issued {
            certificate_pem: self.certify(wanted, &*key, now)?,
            key_pem: keys::to_pem(&key),
        })
    }

    /// Issues a row of the table for a key that stays on its machine. Only the key is taken from the request: names
    /// and usages are the table's.
    pub fn issue_for_request(&self, wanted: &CertificateWanted, csr: &Csr, now: i64) -> Result<String, Error> {
        self.certify(wanted, &request_key(&wanted.id, csr)?, now)
    }

    /// Signs a judged request of a kubelet, valid for a year; the cluster CA only.
    pub fn sign_kubelet(&self, approved: &Approved<'_>, now: i64) -> Result<String, Error> {
        let what = format!("the kubelet certificate of {}", approved.node());
        if self.which != Ca::Cluster {
            return Err(Error::issue(&what, format!("asked of the {} CA", self.which.name())));
        }
        let csr = approved.csr;
        let names = csr
            .dns
            .iter()
            .map(|name| dns(&what, name))
            .collect::<Result<Vec<_>, _>>()?;
        let names = names
            .into_iter()
            .chain(csr.ips.iter().copied().map(SanType::IpAddress))
            .collect();
        let key = request_key(&what, csr)?;
        let subject = (csr.common_name.as_str(), csr.organizations.as_slice());
        self.leaf(
            &what,
            subject,
            names,
            (approved.serving, !approved.serving),
            LEAF_DAYS,
            &key,
            now,
        )
    }

    fn certify(&self, wanted: &CertificateWanted, key: &impl PublicKeyData, now: i64) -> Result<String, Error> {
        let what = &wanted.id;
        if wanted.ca != self.which {
            let reason = format!(
                "wanted from the {} CA, asked of the {} CA",
                wanted.ca.name(),
                self.which.name()
            );
            return Err(Error::issue(what, reason));
        }
        let names = wanted
            .dns
            .iter()
            .map(|name| dns(what, name))
            .collect::<Result<Vec<_>, _>>()?;
        let names = names
            .into_iter()
            .chain(wanted.ips.iter().copied().map(SanType::IpAddress))
            .collect();
        let subject = (wanted.common_name.as_str(), wanted.organizations.as_slice());
        self.leaf(
            what,
            subject,
            names,
            (wanted.server, wanted.client),
            wanted.days,
            key,
            now,
        )
    }

    #[allow(clippy::too_many_arguments)]
    fn leaf(
        &self,
        what: &str,
        (common_name, organizations): (&str, &[String]),
        names: Vec<SanType>,
        (server, client): (bool, bool),
        days: u32,
        key: &impl PublicKeyData,
        now: i64,
    ) -> Result<String, Error> {
        // Nothing outlives its authority, or clients would see "expired" on a certificate that says it is not.
        let until = (now + i64::from(days) * DAY).min(self.found.not_after);
        let mut params = params(what, common_name, organizations, now, until, key)?;
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let usages = [
            (server, ExtendedKeyUsagePurpose::ServerAuth),
            (client, ExtendedKeyUsagePurpose::ClientAuth),
        ];
        params.extended_key_usages = usages
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, usage)| usage)
            .collect();
        let ca_der = read::first_der(&self.certificate_pem)?.into();
        let ca_key = keys::load(self.key_pem.expose())?;
        let issuer = Issuer::from_ca_cert_der(&ca_der, &*ca_key).map_err(|error| Error::issue(what, error))?;
        Ok(params
            .signed_by(key, &issuer)
            .map_err(|error| Error::issue(what, error))?
            .pem())
    }

    /// Signs a throw-away certificate and verifies it, so that an import fails here rather than on a machine.
    fn probe(&self, now: i64) -> Result<(), String> {
        let key = keys::generate("a probe").map_err(|error| error.to_string())?;
        let leaf = self
            .leaf("a probe", ("probe", &[]), Vec::new(), (false, true), 1, &*key, now)
            .map_err(|error| error.to_string())?;
        read::chain_ok(&leaf, &self.certificate_pem)
    }
}

/// A new service-account key pair, ECDSA P-256 (tokens are then ES256).
pub fn key_pair() -> Result<KeyPairPem, Error> {
    let key = keys::generate("a key pair")?;
    Ok(KeyPairPem {
        private_pem: keys::to_pem(&key),
        public_pem: key.public_key_pem(),
    })
}

/// The pair of an existing private key (RSA, EC or Ed25519).
pub fn import_key_pair(private_pem: &str) -> Result<KeyPairPem, Error> {
    let key = keys::load(private_pem)?;
    Ok(KeyPairPem {
        private_pem: keys::to_pem(&key),
        public_pem: key.public_key_pem(),
    })
}

/// A request for a key that stays where it is: the key (PKCS#8 PEM) and the PKCS#10 PEM naming the row's subject.
pub fn request(wanted: &CertificateWanted) -> Result<(SecretText, String), Error> {
    let what = &wanted.id;
    let key = keys::generate(what)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = name(what, &wanted.common_name, &wanted.organizations)?;
    let names = wanted
        .dns
        .iter()
        .map(|name| dns(what, name))
        .collect::<Result<Vec<_>, _>>()?;
    params.subject_alt_names = names
        .into_iter()
        .chain(wanted.ips.iter().copied().map(SanType::IpAddress))
        .collect();
    let csr = params
        .serialize_request(&*key)
        .map_err(|error| Error::issue(what, error))?;
    Ok((
        keys::to_pem(&key),
        csr.pem().map_err(|error| Error::issue(what, error))?,
    ))
}

fn params(
    what: &str,
    common_name: &str,
    organizations: &[String],
    now: i64,
    not_after: i64,
    key: &impl PublicKeyData,
) -> Result<CertificateParams, Error> {
    let at = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| Error::issue(what, error));
    let mut params = CertificateParams::default();
    params.not_before = at(now - BACKDATE_SECONDS)?;
    params.not_after = at(not_after)?;
    params.serial_number = Some(serial()?);
    params.distinguished_name = name(what, common_name, organizations)?;
    // The key's SHA-1, as everyone computes it (RFC 5280 4.2.1.2 method 1); an identifier, not a protection.
    let id = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, key.der_bytes());
    params.key_identifier_method = KeyIdMethod::PreSpecified(id.as_ref().to_vec());
    Ok(params)
}

fn name(what: &str, common_name: &str, organizations: &[String]) -> Result<DistinguishedName, Error> {
    let mut name = DistinguishedName::new();
    match organizations {
        [] => {}
        [one] => name.push(DnType::OrganizationName, one.as_str()),
        more => {
            return Err(Error::issue(
                what,
                format!("{} organizations; only one is supported", more.len()),
            ));
        }
    }
    name.push(DnType::CommonName, common_name);
    Ok(name)
}

fn dns(what: &str, name: &str) -> Result<SanType, Error> {
    let name = name
        .try_into()
        .map_err(|_| Error::issue(what, format!("{name:?} is not a DNS name in ASCII")))?;
    Ok(SanType::DnsName(name))
}

/// 127 random bits: positive and unique (RFC 5280 4.1.2.2).
fn serial() -> Result<SerialNumber, Error> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Error::Random)?;
    // The first bit off for the sign, the second on so that no leading zero has to be dropped.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

fn request_key(what: &str, csr: &Csr) -> Result<SubjectPublicKeyInfo, Error> {
    let (_, request) = X509CertificationRequest::from_der(&csr.der).map_err(|error| Error::issue(what, error))?;
    let spki = request.certification_request_info.subject_pki.raw;
    SubjectPublicKeyInfo::from_der(spki).map_err(|error| Error::issue(what, error))
}
