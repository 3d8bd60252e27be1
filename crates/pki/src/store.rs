//! The operator's folder: authorities, the service-account key and the cluster's secrets.
//!
//! `DIR/pki` is 0700, its secret files 0600, each written whole and renamed into place. A new folder is made aside and
//! renamed as one, so an interrupted creation leaves nothing half-made. Nothing that exists is ever overwritten.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::{
    Error, SecretText,
    inventory::Ca,
    issue::{self, Authority, KeyPairPem},
    seal::{self, Sealer},
    secret::hex,
};

/// The folder, with the passphrase that seals its secret files if there is one.
#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
    sealer: Option<Sealer>,
}

/// Everything the operator holds, in memory.
#[derive(Debug, Clone)]
pub struct Pki {
    pub cluster: Authority,
    pub etcd: Authority,
    pub front_proxy: Authority,
    pub service_account: KeyPairPem,
    pub secrets: Secrets,
}

impl Pki {
    pub fn authority(&self, ca: Ca) -> &Authority {
        match ca {
            Ca::Cluster => &self.cluster,
            Ca::Etcd => &self.etcd,
            Ca::FrontProxy => &self.front_proxy,
        }
    }
}

/// Secrets made once per cluster. [`SecretText::sha256`] of each is stable, for comparing with what machines hold.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// `id.secret` as kubeadm has it: 6 and 16 characters of `[a-z0-9]`.
    pub bootstrap_token: SecretText,
    /// 32 bytes in base64, the `secretbox` key of an EncryptionConfiguration.
    pub encryption_key: SecretText,
    /// 32 bytes in hex, authenticates VRRP advertisements.
    pub vrrp_key: SecretText,
    /// Password of the balancer's statistics page.
    pub stats_password: SecretText,
}

impl Secrets {
    /// The public part of the bootstrap token, naming its Secret `bootstrap-token-<id>`.
    pub fn bootstrap_token_id(&self) -> &str {
        self.bootstrap_token.expose().split_once('.').map_or("", |(id, _)| id)
    }
}

/// What an import takes besides: everything of it is optional and made anew when absent.
#[derive(Debug, Clone, Default)]
pub struct Import {
    /// PEM certificate and private key.
    pub authorities: BTreeMap<Ca, (String, SecretText)>,
    pub service_account: Option<SecretText>,
    /// By file name in `pki/secrets`: `bootstrap-token`, `encryption-key`, `vrrp-key`, `stats-password`.
    /// For a running cluster give its `encryption-key`: with a new one its API servers could read no Secret written
    /// before.
    pub secrets: BTreeMap<String, SecretText>,
}

impl Import {
    /// From the files of a control plane's `/etc/kubernetes/pki`, keyed by their path below it (`ca.crt`,
    /// `etcd/ca.key`, `sa.key`, …). Lists every file that is missing: a cluster must not get a second CA by accident.
    pub fn from_control_plane(files: &BTreeMap<String, SecretText>) -> Result<Self, Vec<String>> {
        let mut import = Self::default();
        let mut missing = Vec::new();
        let mut take = |path: String| {
            let found = files.get(&path).cloned();
            if found.is_none() {
                missing.push(format!(
                    "/etc/kubernetes/pki/{path} is missing; try another control plane"
                ));
            }
            found
        };
        for ca in Ca::ALL {
            let (certificate, key) = (take(format!("{}.crt", ca.stem())), take(format!("{}.key", ca.stem())));
            if let (Some(certificate), Some(key)) = (certificate, key) {
                import.authorities.insert(ca, (certificate.expose().into(), key));
            }
        }
        import.service_account = take("sa.key".into());
        if missing.is_empty() { Ok(import) } else { Err(missing) }
    }

    /// From a folder with kubeadm's file names (`ca.crt`, `ca.key`, `etcd/ca.crt`, …, `sa.key`), for a cluster that is yet to
    /// be. What is not there is made anew; half of a pair, what cannot be read, and a folder with nothing in it are listed.
    pub fn from_folder(folder: &Path) -> Result<Self, Vec<String>> {
        let mut import = Self::default();
        let mut wrong = Vec::new();
        let mut take = |path: String| match fs::read_to_string(folder.join(&path)) {
            Ok(text) => Some(SecretText::new(text)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                wrong.push(format!("{path}: {error}"));
                None
            }
        };
        let pairs = Ca::ALL.map(|ca| {
            (
                ca,
                take(format!("{}.crt", ca.stem())),
                take(format!("{}.key", ca.stem())),
            )
        });
        import.service_account = take("sa.key".into());
        for (ca, certificate, key) in pairs {
            let stem = ca.stem();
            match (certificate, key) {
                (Some(certificate), Some(key)) => {
                    import.authorities.insert(ca, (certificate.expose().into(), key));
                }
                (Some(_), None) => wrong.push(format!("{stem}.crt is there without {stem}.key")),
                (None, Some(_)) => wrong.push(format!("{stem}.key is there without {stem}.crt")),
                (None, None) => {}
            }
        }
        if wrong.is_empty() && import.authorities.is_empty() && import.service_account.is_none() {
            wrong.push("none of ca.crt and ca.key, etcd/ca.crt, front-proxy-ca.crt, sa.key is there".into());
        }
        if wrong.is_empty() { Ok(import) } else { Err(wrong) }
    }
}

const BOOTSTRAP_TOKEN: &str = "bootstrap-token";
const ENCRYPTION_KEY: &str = "encryption-key";
const VRRP_KEY: &str = "vrrp-key";
const STATS_PASSWORD: &str = "stats-password";
const SECRET_NAMES: [&str; 4] = [BOOTSTRAP_TOKEN, ENCRYPTION_KEY, VRRP_KEY, STATS_PASSWORD];

impl Store {
    /// The folder `dir/pki`; nothing is touched yet.
    pub fn new(dir: &Path, passphrase: Option<SecretText>) -> Self {
        Self {
            dir: dir.join("pki"),
            sealer: passphrase.map(Sealer::new),
        }
    }

    /// `dir/pki`
    pub fn path(&self) -> &Path {
        &self.dir
    }

    pub fn exists(&self) -> bool {
        self.dir.join("ca.crt").exists()
    }

    /// Opens the folder, or makes it with new authorities and secrets. `now` in Unix seconds.
    pub fn ensure(&self, now: i64) -> Result<Pki, Error> {
        if self.exists() {
            self.load(now)
        } else {
            self.create(&Import::default(), now)
        }
    }

    /// Makes the folder from existing material, adding what is not given. Refused when the folder exists.
    pub fn import(&self, import: &Import, now: i64) -> Result<Pki, Error> {
        if self.exists() {
            let reason = "there is a cluster's PKI already; move it away first if another is to take its place";
            return Err(self.broken("ca.crt", reason));
        }
        self.create(import, now)
    }

    /// Opens the folder.
    pub fn load(&self, now: i64) -> Result<Pki, Error> {
        Ok(Pki {
            cluster: self.authority(Ca::Cluster, now)?,
            etcd: self.authority(Ca::Etcd, now)?,
            front_proxy: self.authority(Ca::FrontProxy, now)?,
            service_account: issue::import_key_pair(self.read_secret("sa.key")?.expose())?,
            secrets: Secrets {
                bootstrap_token: self.secret(BOOTSTRAP_TOKEN)?,
                encryption_key: self.secret(ENCRYPTION_KEY)?,
                vrrp_key: self.secret(VRRP_KEY)?,
                stats_password: self.secret(STATS_PASSWORD)?,
            },
        })
    }

    /// Writes a certificate the operator holds (`admin`, `super-admin`): `NAME.crt` and `NAME.key`, replaced if there.
    pub fn write_issued(&self, name: &str, issued: &issue::Issued) -> Result<(), Error> {
        self.write_secret(&format!("{name}.key"), &issued.key_pem)?;
        write(
            &self.dir.join(format!("{name}.crt")),
            issued.certificate_pem.as_bytes(),
            0o644,
        )
    }

    /// Reads it back: certificate and key PEM; `None` when it was never written.
    pub fn read_issued(&self, name: &str) -> Result<Option<issue::Issued>, Error> {
        let certificate = self.dir.join(format!("{name}.crt"));
        if !certificate.exists() {
            return Ok(None);
        }
        let key_pem = self.read_secret(&format!("{name}.key"))?;
        Ok(Some(issue::Issued {
            certificate_pem: read(&certificate)?.expose().into(),
            key_pem,
        }))
    }

    fn authority(&self, ca: Ca, now: i64) -> Result<Authority, Error> {
        let certificate = read(&self.dir.join(format!("{}.crt", ca.stem())))?;
        Authority::import(
            ca,
            certificate.expose(),
            self.read_secret(&format!("{}.key", ca.stem()))?,
            now,
        )
    }

    /// A secret that an older version did not know yet is made now.
    fn secret(&self, name: &str) -> Result<SecretText, Error> {
        let path = format!("secrets/{name}");
        if !self.dir.join(&path).exists() {
            self.write_secret(&path, &generate(name)?)?;
        }
        let text = self.read_secret(&path)?;
        let value = text.expose().trim();
        if value.is_empty() {
            Err(self.broken(&path, "it is empty"))
        } else {
            Ok(SecretText::new(value.into()))
        }
    }

    fn create(&self, import: &Import, now: i64) -> Result<Pki, Error> {
        if let Some(other) = import
            .secrets
            .keys()
            .find(|name| !SECRET_NAMES.contains(&name.as_str()))
        {
            return Err(self.broken(&format!("secrets/{other}"), "no such secret"));
        }
        let parent = self.dir.parent().unwrap_or(Path::new("."));
        make_dir(parent)?;
        let aside = Self {
            dir: parent.join(format!(".pki.new.{}", random_hex::<8>()?)),
            ..self.clone()
        };
        let made = aside.fill(import, now).and_then(|()| {
            fs::rename(&aside.dir, &self.dir).map_err(io("moving into place", &self.dir))?;
            sync_dir(parent)
        });
        if made.is_err() {
            // Best effort: the reason of the failure matters more than what is left aside.
            let _ = fs::remove_dir_all(&aside.dir);
            // Another process was first: its folder is as good.
            if !self.exists() || !import.authorities.is_empty() {
                made?;
            }
        }
        self.load(now)
    }

    fn fill(&self, import: &Import, now: i64) -> Result<(), Error> {
        for dir in [self.dir.clone(), self.dir.join("etcd"), self.dir.join("secrets")] {
            make_dir(&dir)?;
        }
        for ca in Ca::ALL {
            let authority = match import.authorities.get(&ca) {
                Some((certificate, key)) => Authority::import(ca, certificate, key.clone(), now)?,
                None => Authority::create(ca, now)?,
            };
            self.write_secret(&format!("{}.key", ca.stem()), authority.key_pem())?;
            write(
                &self.dir.join(format!("{}.crt", ca.stem())),
                authority.certificate_pem().as_bytes(),
                0o644,
            )?;
        }
        let pair = match &import.service_account {
            Some(private) => issue::import_key_pair(private.expose())?,
            None => issue::key_pair()?,
        };
        self.write_secret("sa.key", &pair.private_pem)?;
        write(&self.dir.join("sa.pub"), pair.public_pem.as_bytes(), 0o644)?;
        for name in SECRET_NAMES {
            let value = import.secrets.get(name).cloned().map_or_else(|| generate(name), Ok)?;
            self.write_secret(&format!("secrets/{name}"), &value)?;
        }
        Ok(())
    }

    fn write_secret(&self, path: &str, value: &SecretText) -> Result<(), Error> {
        let file = self.dir.join(path);
        match &self.sealer {
            Some(sealer) => write(&file, sealer.seal(path, value)?.as_bytes(), 0o600),
            None => write(&file, value.expose().as_bytes(), 0o600),
        }
    }

    fn read_secret(&self, path: &str) -> Result<SecretText, Error> {
        let text = read(&self.dir.join(path))?;
        if !seal::is_sealed(text.expose()) {
            return Ok(text);
        }
        let Some(sealer) = &self.sealer else {
            return Err(self.broken(path, "it is sealed; give the passphrase"));
        };
        sealer
            .open(path, text.expose())?
            .ok_or_else(|| self.broken(path, "the passphrase does not open it, or the file was changed"))
    }

    fn broken(&self, path: &str, reason: &str) -> Error {
        Error::Store {
            path: self.dir.join(path),
            reason: reason.into(),
        }
    }
}

fn generate(name: &str) -> Result<SecretText, Error> {
    Ok(SecretText::new(match name {
        BOOTSTRAP_TOKEN => format!("{}.{}", random_text(6)?, random_text(16)?),
        ENCRYPTION_KEY => STANDARD.encode(*random::<32>()?),
        VRRP_KEY => random_hex::<32>()?,
        _ => random_hex::<16>()?,
    }))
}

fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, Error> {
    let mut bytes = Zeroizing::new([0; N]);
    SystemRandom::new()
        .fill(bytes.as_mut_slice())
        .map_err(|_| Error::Random)?;
    Ok(bytes)
}

fn random_hex<const N: usize>() -> Result<String, Error> {
    Ok(hex(random::<N>()?.as_slice()))
}

/// Characters of a bootstrap token; bytes beyond a multiple of 36 are thrown away, or the first letters would be
/// likelier.
fn random_text(length: usize) -> Result<String, Error> {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let bytes = random::<32>()?;
        let fair = bytes.iter().filter(|byte| **byte < 252);
        text.extend(
            fair.take(length - text.len())
                .map(|byte| char::from(ALPHABET[usize::from(byte % 36)])),
        );
    }
    Ok(text)
}

fn make_dir(path: &Path) -> Result<(), Error> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(io("making the folder", path))
}

/// Whole or not at all: a file aside, synced, then renamed.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let aside = path.with_extension(format!("new.{}", random_hex::<4>()?));
    let written = (|| {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&aside)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&aside, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&aside);
    }
    written.map_err(io("writing", path))?;
    path.parent().map_or(Ok(()), sync_dir)
}

fn sync_dir(path: &Path) -> Result<(), Error> {
    fs::File::open(path)
        .and_then(|dir| dir.sync_all())
        .map_err(io("syncing", path))
}

fn read(path: &Path) -> Result<SecretText, Error> {
    fs::read_to_string(path)
        .map(SecretText::new)
        .map_err(io("reading", path))
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io {
        action,
        path: path.into(),
        source,
    }
}
