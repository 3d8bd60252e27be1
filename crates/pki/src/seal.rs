//! Sealing of the operator's secret files with a passphrase: scrypt (RFC 7914) for the key, ChaCha20-Poly1305
//! (RFC 8439) for the content. The file's purpose is authenticated too, so that two sealed files cannot be swapped.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

use crate::{Error, SecretText};

/// First line of a sealed file; says what it is to whoever opens it in an editor.
const HEADER: &str = "quorate sealed file v1: scrypt + chacha20-poly1305";
/// scrypt N = 2^17, r = 8, p = 1 (OWASP's password storage sheet): 128 MiB and a few tenths of a second per guess.
const LOG_N: u8 = 17;
const SALT_LEN: usize = 16;

pub(crate) fn is_sealed(text: &str) -> bool {
    text.starts_with(HEADER)
}

/// Seals and opens with one passphrase. The files of a folder share their salt, so scrypt runs once for all of them;
/// each has a nonce of its own.
#[derive(Clone)]
pub(crate) struct Sealer {
    passphrase: SecretText,
    last: Arc<Mutex<Option<Derived>>>,
}

struct Derived {
    salt: [u8; SALT_LEN],
    key: LessSafeKey,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sealer(<secret>)")
    }
}

impl Sealer {
    pub(crate) fn new(passphrase: SecretText) -> Self {
        Self {
            passphrase,
            last: Arc::default(),
        }
    }

    pub(crate) fn seal(&self, purpose: &str, plain: &SecretText) -> Result<String, Error> {
        let mut fresh = [0; SALT_LEN + NONCE_LEN];
        SystemRandom::new().fill(&mut fresh).map_err(|_| Error::Random)?;
        let (salt, nonce_bytes) = fresh.split_at(SALT_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce_bytes).map_err(|_| Error::Random)?;
        let mut content = Zeroizing::new(plain.expose().as_bytes().to_vec());
        let salt = self.salt().unwrap_or_else(|| std::array::from_fn(|index| salt[index]));
        let tag = self.with_key(salt, |key| {
            key.seal_in_place_separate_tag(nonce, Aad::from(purpose.as_bytes()), &mut content)
                .map_err(|_| Error::issue(purpose, "sealing failed"))
        })??;
        let sealed = [salt.as_slice(), nonce_bytes, &content, tag.as_ref()].concat();
        Ok(format!("{HEADER}\n{}\n", STANDARD.encode(sealed)))
    }

    /// `None` when the passphrase is wrong or the file was changed.
    pub(crate) fn open(&self, purpose: &str, sealed: &str) -> Result<Option<SecretText>, Error> {
        let body = sealed.trim_start_matches(HEADER).trim();
        let bytes = STANDARD
            .decode(body)
            .map_err(|error| Error::parse(format!("the sealed {purpose}"), error))?;
        let Some((salt, rest)) = bytes.split_first_chunk::<SALT_LEN>() else {
            return Ok(None);
        };
        let Some((nonce, content)) = rest.split_first_chunk::<NONCE_LEN>() else {
            return Ok(None);
        };
        let mut content = Zeroizing::new(content.to_vec());
        self.with_key(*salt, |key| {
            let nonce = Nonce::assume_unique_for_key(*nonce);
            let plain = key
                .open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut content)
                .ok()?;
            std::str::from_utf8(plain).ok().map(|text| SecretText::new(text.into()))
        })
    }

    fn salt(&self) -> Option<[u8; SALT_LEN]> {
        self.last
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .as_ref()
            .map(|last| last.salt)
    }

    fn with_key<T>(&self, salt: [u8; SALT_LEN], act: impl FnOnce(&LessSafeKey) -> T) -> Result<T, Error> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let derived = match last.take() {
            Some(derived) if derived.salt == salt => derived,
            _ => Derived {
                salt,
                key: derive(&self.passphrase, &salt)?,
            },
        };
        Ok(act(&last.insert(derived).key))
    }
}

fn derive(passphrase: &SecretText, salt: &[u8]) -> Result<LessSafeKey, Error> {
    let failed = || Error::issue("a passphrase's key", "scrypt refused its parameters");
    let params = scrypt::Params::new(LOG_N, 8, 1).map_err(|_| failed())?;
    let mut key = Zeroizing::new([0; 32]);
    scrypt::scrypt(passphrase.expose().as_bytes(), salt, &params, key.as_mut_slice()).map_err(|_| failed())?;
    UnboundKey::new(&CHACHA20_POLY1305, key.as_slice())
        .map(LessSafeKey::new)
        .map_err(|_| failed())
}
