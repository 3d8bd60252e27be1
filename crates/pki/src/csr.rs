//! The requests of kubelets (PKCS#10), and whether they may be signed.
//!
//! Kubernetes' own approver knows client requests only, and would anyway believe any kubelet about its addresses.
//! Here a serving request is approved only when every name and address in it is the inventory's for that node.
//! Rules of the two signers: <https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/>.

use x509_parser::{
    certification_request::X509CertificationRequest, extensions::ParsedExtension, pem::Pem, prelude::FromDer,
};

use crate::{Error, inventory::Host, read};

pub const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
pub const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
/// Group of kubelets that joined with a bootstrap token made by kubeadm's rules.
pub const BOOTSTRAP_GROUP: &str = "system:bootstrappers:kubeadm:default-node-token";

const NODE_PREFIX: &str = "system:node:";
const NODES_GROUP: &str = "system:nodes";

/// A parsed request whose own signature (proof that the requester has the key) holds.
#[derive(Debug, Clone)]
pub struct Csr {
    pub common_name: String,
    pub organizations: Vec<String>,
    pub dns: Vec<String>,
    pub ips: Vec<std::net::IpAddr>,
    /// Mail addresses, URIs and others; no kubelet asks for any.
    pub other_names: Vec<String>,
    /// The request asks to be a CA.
    pub is_ca: bool,
    pub spki_sha256: String,
    pub(crate) der: Vec<u8>,
}

/// What Kubernetes' CertificateSigningRequest object adds to the PKCS#10 text.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `spec.signerName`
    pub signer: &'a str,
    /// `spec.username` and `spec.groups`, set by the API server, not by the requester.
    pub username: &'a str,
    pub groups: &'a [String],
    /// `spec.usages`
    pub usages: &'a [String],
}

/// A request that was judged good; only [`judge`] makes one, so nothing unjudged can be signed.
#[derive(Debug, Clone)]
pub struct Approved<'a> {
    pub(crate) csr: &'a Csr,
    pub(crate) serving: bool,
}

impl Approved<'_> {
    /// The node's name.
    pub fn node(&self) -> &str {
        self.csr.common_name.strip_prefix(NODE_PREFIX).unwrap_or_default()
    }

    pub fn is_serving(&self) -> bool {
        self.serving
    }
}

/// Reads a PKCS#10 request (PEM `CERTIFICATE REQUEST`) and checks its self-signature.
pub fn parse(pem: &str) -> Result<Csr, Error> {
    let what = "the certificate signing request";
    let block = Pem::iter_from_buffer(pem.as_bytes())
        .next()
        .ok_or_else(|| Error::parse(what, "no PEM block"))?
        .map_err(|error| Error::parse(what, format!("damaged PEM: {error}")))?;
    if !matches!(block.label.as_str(), "CERTIFICATE REQUEST" | "NEW CERTIFICATE REQUEST") {
        return Err(Error::parse(what, format!("the PEM block is a {}", block.label)));
    }
    let (rest, request) =
        X509CertificationRequest::from_der(&block.contents).map_err(|error| Error::parse(what, error))?;
    if !rest.is_empty() {
        return Err(Error::parse(what, "bytes after its end"));
    }
    request
        .verify_signature()
        .map_err(|_| Error::parse(what, "its signature does not fit its key"))?;

    let info = &request.certification_request_info;
    let (common_name, organizations) = read::attributes(&info.subject);
    let mut csr = Csr {
        common_name,
        organizations,
        dns: Vec::new(),
        ips: Vec::new(),
        other_names: Vec::new(),
        is_ca: false,
        spki_sha256: crate::sha256_hex(info.subject_pki.raw),
        der: Vec::new(),
    };
    for extension in request.requested_extensions().into_iter().flatten() {
        match extension {
            ParsedExtension::SubjectAlternativeName(names) => {
                let names = read::alternative_names(&names.general_names);
                (csr.dns, csr.ips, csr.other_names) = (names.dns, names.ips, names.other);
            }
            ParsedExtension::BasicConstraints(constraints) => csr.is_ca = constraints.ca,
            ParsedExtension::ParseError { error } => return Err(Error::parse(what, error)),
            _ => {}
        }
    }
    csr.der = block.contents;
    Ok(csr)
}

/// Judges a request against the machines of the inventory; all reasons when it is refused.
pub fn judge<'a>(csr: &'a Csr, request: &Request<'_>, nodes: &[Host]) -> Result<Approved<'a>, Vec<String>> {
    let serving = match request.signer {
        SERVING_SIGNER => true,
        CLIENT_SIGNER => false,
        other => return Err(vec![format!("signer {other:?} is not one of a kubelet's")]),
    };
    let mut reasons = subject(csr);
    let node = csr
        .common_name
        .strip_prefix(NODE_PREFIX)
        .and_then(|name| nodes.iter().find(|node| node.name == name));
    if node.is_none() && csr.common_name.starts_with(NODE_PREFIX) {
        reasons.push(format!("{:?} is no machine of this cluster", csr.common_name));
    }
    if serving {
        reasons.extend(serving_names(csr, node));
    } else if !csr.dns.is_empty() || !csr.ips.is_empty() {
        reasons.push("a client certificate must name no host or address".into());
    }
    reasons.extend(requester(csr, request, serving));
    reasons.extend(usages(request.usages, serving));
    if reasons.is_empty() {
        Ok(Approved { csr, serving })
    } else {
        Err(reasons)
    }
}

fn subject(csr: &Csr) -> Vec<String> {
    let mut reasons = Vec::new();
    if !csr.common_name.starts_with(NODE_PREFIX) {
        reasons.push(format!("common name {:?}, wanted {NODE_PREFIX}<node>", csr.common_name));
    }
    if csr.organizations != [NODES_GROUP] {
        reasons.push(format!(
            "organization {:?}, wanted {NODES_GROUP} alone",
            csr.organizations
        ));
    }
    if !csr.other_names.is_empty() {
        reasons.push(format!(
            "names other than DNS and addresses: {}",
            csr.other_names.join(", ")
        ));
    }
    if csr.is_ca {
        reasons.push("it asks to be a CA".into());
    }
    reasons
}

fn serving_names(csr: &Csr, node: Option<&Host>) -> Vec<String> {
    let mut reasons = Vec::new();
    if csr.dns.is_empty() && csr.ips.is_empty() {
        reasons.push("a serving certificate must name a host or address".into());
    }
    let Some(node) = node else { return reasons };
    for name in &csr.dns {
        if !std::iter::once(&node.name)
            .chain(&node.names)
            .any(|own| own.eq_ignore_ascii_case(name))
        {
            reasons.push(format!("{name:?} is not a name of {}", node.name));
        }
    }
    for address in &csr.ips {
        if !node.addresses.contains(address) {
            reasons.push(format!("{address} is not an address of {}", node.name));
        }
    }
    reasons
}

/// A node may ask for itself only; a machine that joins may ask for its first client certificate.
fn requester(csr: &Csr, request: &Request<'_>, serving: bool) -> Option<String> {
    let in_group = |group: &str| request.groups.iter().any(|own| own == group);
    let is_itself = request.username == csr.common_name && in_group(NODES_GROUP);
    let joins = !serving && request.username.starts_with("system:bootstrap:") && in_group(BOOTSTRAP_GROUP);
    (!is_itself && !joins).then(|| format!("asked for by {:?}, not by the node itself", request.username))
}

fn usages(asked: &[String], serving: bool) -> Vec<String> {
    let needed = ["digital signature", if serving { "server auth" } else { "client auth" }];
    let mut reasons: Vec<String> = needed
        .iter()
        .filter(|usage| !asked.iter().any(|own| own == *usage))
        .map(|usage| format!("usage {usage:?} is missing"))
        .collect();
    // RSA keys of kubelets also ask for key encipherment.
    let surplus = asked
        .iter()
        .filter(|usage| !needed.contains(&usage.as_str()) && *usage != "key encipherment");
    reasons.extend(surplus.map(|usage| format!("usage {usage:?} is not one of this signer's")));
    reasons
}
