//! Reading the configuration file and the files it names.

use std::path::{Path, PathBuf};

use quorate_lb::AgentConfig;
use quorate_lb::config::{Finding, HealthKind};
use quorate_lb::vrrp::{Keyring, SecretKey};

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is not an agent configuration: {message}", path.display())]
    Parse { path: PathBuf, message: String },
    #[error("{} has {} mistake(s):{}", path.display(), findings.len(), list(findings))]
    Invalid { path: PathBuf, findings: Vec<Finding> },
}

fn list(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|f| format!("\n  {}: {} ({})", f.path, f.message, f.hint))
        .collect()
}

/// The file's contents, not validated.
///
/// # Errors
/// Unreadable, or not of the right form.
pub fn parse(path: &Path) -> Result<AgentConfig, Error> {
    let text = std::fs::read_to_string(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    serde_saphyr::from_str(&text).map_err(|e| Error::Parse {
        path: path.to_owned(),
        message: e.to_string().trim().to_owned(),
    })
}

/// Everything wrong with a configuration, the files it names included.
pub fn check(config: &AgentConfig) -> Vec<Finding> {
    let mut findings = config.validate();
    if let Err(more) = keys(config) {
        findings.extend(more);
    }
    for (i, set) in config.backend_sets().enumerate() {
        if set.health.kind == HealthKind::Https
            && set.health.ca.is_some()
            && let Err(e) = crate::health::tls_config(set.health)
        {
            findings.push(Finding {
                code: "health.tls",
                path: format!("set[{i}] {}.health", set.name),
                message: e,
                hint: "give PEM files this process may read".into(),
            });
        }
    }
    if let Some(login) = config.stats.as_ref().and_then(|s| s.login.as_ref())
        && let Err(e) = password(&login.password_file)
    {
        findings.push(Finding {
            code: "stats.login",
            path: "stats.login.passwordFile".into(),
            message: e,
            hint: "write the password into a file of mode 0600".into(),
        });
    }
    findings
}

/// A configuration fit to run.
///
/// # Errors
/// See [`Error`]; all findings at once.
pub fn load(path: &Path) -> Result<AgentConfig, Error> {
    let config = parse(path)?;
    let findings = check(&config);
    if findings.is_empty() {
        Ok(config)
    } else {
        Err(Error::Invalid {
            path: path.to_owned(),
            findings,
        })
    }
}

/// The configuration at `path` and the keys it names, as `sha256sum` prints them: a line each, `<hex>  <path>`. They are what a
/// reload reads again.
///
/// # Errors
/// One of them cannot be read.
pub fn sums(path: &Path, config: &AgentConfig) -> std::io::Result<String> {
    let keys = config.vrrp.iter().flat_map(|v| &v.auth.keys).map(|key| &key.file);
    let mut files = vec![path];
    for key in keys {
        if !files.contains(&key.as_path()) {
            files.push(key);
        }
    }
    let sum = |file: &Path| {
        let digest = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(file)?);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("{hex}  {}\n", file.display()))
    };
    files.into_iter().map(sum).collect()
}

/// The secrets of all virtual routers.
///
/// # Errors
/// A finding for each file that cannot be used.
pub fn keys(config: &AgentConfig) -> Result<Keyring, Vec<Finding>> {
    let mut ring = Keyring::new();
    let mut findings = Vec::new();
    for (i, v) in config.vrrp.iter().enumerate() {
        let mut keys = Vec::new();
        for (k, key) in v.auth.keys.iter().enumerate() {
            let outcome = secret(&key.file)
                .and_then(|bytes| SecretKey::new(key.id, &bytes).map_err(|e| format!("{}: {e}", key.file.display())));
            match outcome {
                Ok(key) => keys.push(key),
                Err(message) => findings.push(Finding {
                    code: "vrrp.auth.key",
                    path: format!("vrrp[{i}].auth.keys[{k}].file"),
                    message,
                    hint: "a file of mode 0600 with at least 16 random bytes, the same on every machine".into(),
                }),
            }
        }
        ring.insert(v.name.clone(), keys);
    }
    if findings.is_empty() { Ok(ring) } else { Err(findings) }
}

/// The password of the statistics page.
pub(crate) fn password(path: &Path) -> Result<Vec<u8>, String> {
    let secret = secret(path)?;
    if secret.is_empty() {
        Err(format!("{} is empty", path.display()))
    } else {
        Ok(secret)
    }
}

/// Reads a secret, white space around it removed. Nobody else may be able to read it.
fn secret(path: &Path) -> Result<Vec<u8>, String> {
    use std::os::unix::fs::PermissionsExt;
    let fail = |e: std::io::Error| format!("cannot read {}: {e}", path.display());
    let mode = std::fs::metadata(path).map_err(fail)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(format!(
            "{} can be read by others (mode {:04o})",
            path.display(),
            mode & 0o7777
        ));
    }
    Ok(std::fs::read(path).map_err(fail)?.trim_ascii().to_vec())
}

/// JSON schema of the configuration file.
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(AgentConfig).to_value()
}
