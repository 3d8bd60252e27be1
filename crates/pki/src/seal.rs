//! Sealing of the operator's secret files with a passphrase: scrypt (RFC 7914) for the key, ChaCha20-Poly1305
//! (RFC 8439) for the content. The file's purpose is authenticated too, so that two sealed files cannot be swapped.

use base64::{Engine, engine::general_purpose::STANDARD};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};
use zeroize::Zeroizing;

use crate::{Error, SecretText};

/// First line of a sealed file; says what it is to whoever opens it in an editor.
const HEADER: &str = "quorate sealed file v1: scrypt + chacha20-poly1305";
/// scrypt N = 2^16, r = 8, p = 1: 64 MiB and about 0.2 s for each guess (OWASP asks for 2^17; kept below so that
/// the dozen files of a folder open in a few seconds).
const LOG_N: u8 = 16;
const SALT_LEN: usize = 16;

pub(crate) fn is_sealed(text: &str) -> bool {
    text.starts_with(HEADER)
}

pub(crate) fn seal(purpose: &str, plain: &SecretText, passphrase: &SecretText) -> Result<String, Error> {
    let mut head = [0; SALT_LEN + NONCE_LEN];
    SystemRandom::new().fill(&mut head).map_err(|_| Error::Random)?;
    let (salt, nonce) = head.split_at(SALT_LEN);
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Random)?;
    let mut content = Zeroizing::new(plain.expose().as_bytes().to_vec());
    let tag = key(passphrase, salt)?
        .seal_in_place_separate_tag(nonce, Aad::from(purpose.as_bytes()), &mut content)
        .map_err(|_| Error::issue(purpose, "sealing failed"))?;
    let sealed = [head.as_slice(), &content, tag.as_ref()].concat();
    Ok(format!("{HEADER}\n{}\n", STANDARD.encode(sealed)))
}

/// `None` when the passphrase is wrong or the file was changed.
pub(crate) fn open(purpose: &str, sealed: &str, passphrase: &SecretText) -> Result<Option<SecretText>, Error> {
    let body = sealed.trim_start_matches(HEADER).trim();
    let bytes = STANDARD.decode(body).map_err(|error| Error::parse(format!("the sealed {purpose}"), error))?;
    let Some((head, content)) = bytes.split_at_checked(SALT_LEN + NONCE_LEN) else { return Ok(None) };
    let (salt, nonce) = head.split_at(SALT_LEN);
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| Error::Random)?;
    let mut content = Zeroizing::new(content.to_vec());
    let key = key(passphrase, salt)?;
    let Ok(plain) = key.open_in_place(nonce, Aad::from(purpose.as_bytes()), &mut content) else { return Ok(None) };
    Ok(std::str::from_utf8(plain).ok().map(|text| SecretText::new(text.into())))
}

fn key(passphrase: &SecretText, salt: &[u8]) -> Result<LessSafeKey, Error> {
    let failed = |_| Error::issue("a passphrase's key", "scrypt refused its parameters");
    let params = scrypt::Params::new(LOG_N, 8, 1).map_err(|_| failed(()))?;
    let mut key = Zeroizing::new([0; 32]);
    scrypt::scrypt(passphrase.expose().as_bytes(), salt, &params, key.as_mut_slice()).map_err(|_| failed(()))?;
    UnboundKey::new(&CHACHA20_POLY1305, key.as_slice()).map(LessSafeKey::new).map_err(|_| failed(()))
}
