//! The operator's side: the folder with authorities, secrets and journals, and the identities made from them.
//!
//! ```text
//! .quorate/CLUSTER/            0700
//!   pki/                       authorities and secrets, 0600 (quorate_pki::store)
//!   kubeconfig                 the administrator's, 0600
//!   runs/RUN.jsonl, RUN.plan   journals
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use quorate_facts::{CaFacts, OperatorFacts, SecretBytes, SecretId};
use quorate_machine::proto::Bytes;
use quorate_pki::inventory::{Ca, CertificateWanted, Holder, Owner, Place};
use quorate_pki::issue::Issued;
use quorate_pki::store::{Import, Pki, Store};
use quorate_pki::{SecretText, read};
use quorate_spec::Spec;
use ring::rand::{SecureRandom, SystemRandom};

use crate::error::{Error, io};
use crate::fleet::Fleet;

/// Whoever applies: what they hold, and where. Without a folder nothing is held and nothing written.
#[derive(Clone, Debug)]
pub struct Operator {
    folder: Option<PathBuf>,
    held: Option<Held>,
    program_sha256: String,
}

#[derive(Clone, Debug)]
struct Held {
    store: Store,
    pki: Pki,
    certificate_key: SecretText,
}

/// A client certificate with its key and the authority to check servers with. Lives in memory and in requests only.
#[derive(Clone, Debug)]
pub struct Identity {
    /// PEM: certificate, then key.
    pub client: Bytes,
    pub authority: Bytes,
}

impl Operator {
    /// Opens the folder (`./.quorate/CLUSTER`), or makes it with new authorities and secrets. `program_sha256`: of the
    /// static program that is placed on machines.
    pub fn open(folder: &Path, passphrase: Option<SecretText>, program_sha256: &str) -> Result<Self, Error> {
        make_dir(folder)?;
        let store = Store::new(folder, passphrase);
        let pki = store.ensure(now())?;
        Self::with(folder, store, pki, program_sha256)
    }

    /// Opens the folder if it is there; else an operator who holds nothing, for `plan` before the first `apply`.
    pub fn look(folder: &Path, passphrase: Option<SecretText>, program_sha256: &str) -> Result<Self, Error> {
        let store = Store::new(folder, passphrase);
        if !store.exists() {
            return Ok(Self::nobody(program_sha256));
        }
        let pki = store.load(now())?;
        Self::with(folder, store, pki, program_sha256)
    }

    /// An operator without a folder.
    pub fn nobody(program_sha256: &str) -> Self {
        Self {
            folder: None,
            held: None,
            program_sha256: program_sha256.into(),
        }
    }

    /// Makes the folder from what a control plane holds: authorities, service-account key and encryption key.
    /// A lost folder costs nothing but the journals.
    pub async fn recover(
        folder: &Path,
        passphrase: Option<SecretText>,
        program_sha256: &str,
        fleet: &Fleet,
        control_planes: &[String],
    ) -> Result<Self, Error> {
        let mut reasons = Vec::new();
        for name in control_planes {
            let Some(machine) = fleet.get(name) else {
                reasons.push(format!("{name}: not reached"));
                continue;
            };
            match import(machine).await {
                Ok(import) => return Self::import(folder, passphrase, program_sha256, &import),
                Err(missing) => reasons.extend(missing.into_iter().map(|reason| format!("{name}: {reason}"))),
            }
        }
        Err(Error::Journal {
            path: folder.into(),
            reason: format!("no control plane holds everything: {}", reasons.join("; ")),
        })
    }

    /// Makes the folder with authorities there are already, for a cluster that is yet to be.
    pub fn import(
        folder: &Path,
        passphrase: Option<SecretText>,
        program_sha256: &str,
        import: &Import,
    ) -> Result<Self, Error> {
        make_dir(folder)?;
        let store = Store::new(folder, passphrase);
        let pki = store.import(import, now())?;
        Self::with(folder, store, pki, program_sha256)
    }

    /// A control plane that already has a cluster authority this operator does not hold. Checked before an apply.
    pub async fn foreign(&self, fleet: &Fleet, control_planes: &[String]) -> Option<String> {
        let own = self
            .held
            .as_ref()
            .map(|held| held.pki.cluster.certificate_pem().trim().to_owned());
        for name in control_planes {
            let Some(machine) = fleet.get(name) else { continue };
            let Ok(found) = machine.read("/etc/kubernetes/pki/ca.crt", 64 << 10).await else {
                continue;
            };
            if own.as_deref() != Some(String::from_utf8_lossy(&found).trim()) {
                return Some(name.clone());
            }
        }
        None
    }

    fn with(folder: &Path, store: Store, pki: Pki, program_sha256: &str) -> Result<Self, Error> {
        let certificate_key = certificate_key(&store.path().join("secrets/kubeadm-certificate-key"))?;
        Ok(Self {
            folder: Some(folder.into()),
            held: Some(Held {
                store,
                pki,
                certificate_key,
            }),
            program_sha256: program_sha256.into(),
        })
    }

    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    pub(crate) fn pki(&self) -> Option<&Pki> {
        self.held.as_ref().map(|held| &held.pki)
    }

    /// A certificate as of `now` (Unix seconds), for a drill that needs one that has expired. `None` without authorities.
    pub fn issue(&self, wanted: &CertificateWanted, now: i64) -> Result<Option<Issued>, Error> {
        let Some(pki) = self.pki() else { return Ok(None) };
        Ok(Some(pki.authority(wanted.ca).issue(wanted, now)?))
    }

    /// What the plan may know.
    pub fn facts(&self) -> OperatorFacts {
        let mut facts = OperatorFacts {
            program_sha256: self.program_sha256.clone(),
            ..OperatorFacts::default()
        };
        let Some(held) = &self.held else { return facts };
        for ca in Ca::ALL {
            let authority = held.pki.authority(ca);
            let found = authority.found();
            facts.authorities.insert(
                ca.name().into(),
                CaFacts {
                    certificate: authority.certificate_pem().into(),
                    spki_sha256: found.spki_sha256.clone(),
                    not_after_unix: found.not_after,
                },
            );
        }
        facts.secrets = held.secrets();
        facts
    }

    /// A super-administrator's certificate for Quorate's own requests, made anew for each run and valid for a day.
    /// `None` without authorities.
    pub fn identity(&self) -> Result<Option<Identity>, Error> {
        let Some(held) = &self.held else { return Ok(None) };
        let issued = held.for_today()?;
        let client = format!("{}{}", issued.certificate_pem, issued.key_pem.expose());
        Ok(Some(Identity {
            client: client.into(),
            authority: held.pki.cluster.certificate_pem().into(),
        }))
    }

    /// The same as a kubeconfig, for a program's standard input; empty without authorities. Never to be written.
    pub fn memory_kubeconfig(&self, spec: &Spec) -> Result<String, Error> {
        let Some(held) = &self.held else {
            return Ok(String::new());
        };
        let text = kubeconfig(
            &spec.name,
            &spec.admin_url(),
            held.pki.cluster.certificate_pem(),
            "quorate",
            &held.for_today()?,
        );
        Ok(text.expose().to_owned())
    }

    /// The administrator's kubeconfig in the folder, written when it is absent, about to expire, or leads elsewhere.
    /// `None` without a folder.
    pub fn admin_kubeconfig(&self, spec: &Spec) -> Result<Option<PathBuf>, Error> {
        let (Some(held), Some(folder)) = (&self.held, &self.folder) else {
            return Ok(None);
        };
        let inventory = quorate_plan::certificates(spec);
        let Some(wanted) = inventory
            .certificates
            .iter()
            .find(|row| row.id == "admin" && row.holder == Holder::Operator)
        else {
            return Ok(None);
        };
        let issued = match held.store.read_issued("admin")? {
            Some(issued) if held.serves(wanted, &issued) => issued,
            _ => {
                let issued = held.pki.cluster.issue(wanted, now())?;
                held.store.write_issued("admin", &issued)?;
                issued
            }
        };
        let text = kubeconfig(
            &spec.name,
            &spec.admin_url(),
            held.pki.cluster.certificate_pem(),
            "admin",
            &issued,
        );
        let path = folder.join("kubeconfig");
        if fs::read(&path).ok().as_deref() != Some(text.expose().as_bytes()) {
            write_private(&path, text.expose().as_bytes())?;
        }
        Ok(Some(path))
    }
}

impl Held {
    fn for_today(&self) -> Result<Issued, Error> {
        let wanted = CertificateWanted {
            id: "quorate-run".into(),
            holder: Holder::Operator,
            place: Place::Files {
                certificate: String::new(),
                key: String::new(),
            },
            ca: Ca::Cluster,
            common_name: "quorate".into(),
            organizations: vec!["system:masters".into()],
            dns: Vec::new(),
            ips: Vec::new(),
            server: false,
            client: true,
            days: 1,
            owner: Owner::root(),
        };
        Ok(self.pki.cluster.issue(&wanted, now())?)
    }

    fn secrets(&self) -> BTreeMap<SecretId, SecretBytes> {
        let Pki {
            cluster,
            etcd,
            front_proxy,
            service_account,
            secrets,
        } = &self.pki;
        let (id, secret) = secrets.bootstrap_token.expose().split_once('.').unwrap_or_default();
        let vrrp_password = vrrp_password(secrets.vrrp_key.expose());
        BTreeMap::from(
            [
                (SecretId::EncryptionKey, secrets.encryption_key.expose()),
                (SecretId::BootstrapTokenId, id),
                (SecretId::BootstrapTokenSecret, secret),
                (SecretId::VrrpKey, secrets.vrrp_key.expose()),
                (SecretId::VrrpPassword, &vrrp_password),
                (SecretId::StatisticsPassword, secrets.stats_password.expose()),
                (SecretId::KubeadmCertificateKey, self.certificate_key.expose()),
                (SecretId::ServiceAccountKey, service_account.private_pem.expose()),
                (SecretId::ServiceAccountPublicKey, &service_account.public_pem),
                (SecretId::ClusterCaKey, cluster.key_pem().expose()),
                (SecretId::EtcdCaKey, etcd.key_pem().expose()),
                (SecretId::FrontProxyCaKey, front_proxy.key_pem().expose()),
            ]
            .map(|(id, value)| (id, SecretBytes::new(value.as_bytes()))),
        )
    }

    fn serves(&self, wanted: &CertificateWanted, issued: &Issued) -> bool {
        let found = read::certificate_with_key(&issued.certificate_pem, issued.key_pem.expose());
        found.is_ok_and(|found| read::differences(wanted, &found, self.pki.cluster.found(), now()).is_empty())
    }
}

/// See [`SecretId::VrrpPassword`].
fn vrrp_password(key: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, format!("VRRP 2 password of {key}").as_bytes());
    digest.as_ref()[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A kubeconfig with everything embedded, as `kubectl` reads it. `server`: URL.
pub fn kubeconfig(cluster: &str, server: &str, ca_pem: &str, user: &str, issued: &Issued) -> SecretText {
    let user = format!("{user}@{cluster}");
    let (ca, certificate, key) = (
        STANDARD.encode(ca_pem),
        STANDARD.encode(&issued.certificate_pem),
        STANDARD.encode(issued.key_pem.expose()),
    );
    SecretText::new(format!(
        "apiVersion: v1\n\
         kind: Config\n\
         current-context: {user}\n\
         clusters:\n\
         - name: {cluster}\n  \
           cluster:\n    \
             server: {server}\n    \
             certificate-authority-data: {ca}\n\
         contexts:\n\
         - name: {user}\n  \
           context:\n    \
             cluster: {cluster}\n    \
             user: {user}\n\
         users:\n\
         - name: {user}\n  \
           user:\n    \
             client-certificate-data: {certificate}\n    \
             client-key-data: {key}\n"
    ))
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // The kernel's generator fails only where there is none; then run ids repeat, which the journal refuses.
    let _ = SystemRandom::new().fill(&mut bytes);
    bytes
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("making the folder", path))
}

/// 0600, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> Result<(), Error> {
    write_private_with(path, |file| file.write_all(content))
}

/// As [`write_private`], for what need not be in memory as a whole.
pub(crate) fn write_private_with(
    path: &Path,
    content: impl FnOnce(&mut dyn Write) -> std::io::Result<()>,
) -> Result<(), Error> {
    let aside = path.with_extension(format!("new.{}", hex(&random::<4>())));
    let written = (|| {
        let mut file = std::io::BufWriter::new(
            fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&aside)?,
        );
        content(&mut file)?;
        file.into_inner()?.sync_all()?;
        fs::rename(&aside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.map_err(io("writing", path))
}

/// 32 bytes in hex; `kubeadm init --upload-certs` encrypts what it uploads with it.
fn certificate_key(path: &Path) -> Result<SecretText, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(SecretText::new(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut bytes = [0; 32];
            SystemRandom::new()
                .fill(&mut bytes)
                .map_err(|_| quorate_pki::Error::Random)?;
            let key = SecretText::new(hex(&bytes));
            write_private(path, key.expose().as_bytes())?;
            Ok(key)
        }
        Err(error) => Err(io("reading", path)(error)),
    }
}

async fn import(machine: &quorate_machine::MachineRef) -> Result<Import, Vec<String>> {
    let mut files = BTreeMap::new();
    let names = Ca::ALL
        .iter()
        .flat_map(|ca| [format!("{}.crt", ca.stem()), format!("{}.key", ca.stem())])
        .chain(["sa.key".to_owned()]);
    for name in names {
        if let Ok(content) = machine.read(&format!("/etc/kubernetes/pki/{name}"), 64 << 10).await {
            files.insert(name, SecretText::new(String::from_utf8_lossy(&content).into_owned()));
        }
    }
    let mut import = Import::from_control_plane(&files)?;
    let encryption = machine.read("/etc/kubernetes/encryption.yaml", 64 << 10).await.ok();
    if let Some(key) = encryption.and_then(|text| first_key(&String::from_utf8_lossy(&text))) {
        import.secrets.insert("encryption-key".into(), key);
    }
    if let Ok(key) = machine.read("/etc/quorate/vrrp.key", 4 << 10).await {
        import.secrets.insert(
            "vrrp-key".into(),
            SecretText::new(String::from_utf8_lossy(&key).trim().to_owned()),
        );
    }
    Ok(import)
}

/// The first `secret:` of an EncryptionConfiguration.
fn first_key(text: &str) -> Option<SecretText> {
    let line = text
        .lines()
        .find_map(|line| line.trim().trim_start_matches("- ").strip_prefix("secret:"))?;
    Some(SecretText::new(line.trim().trim_matches('"').to_owned()))
}
