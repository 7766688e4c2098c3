//! P: requests that the protocol library does not make, signed (RFC 7515; RFC 8555 §6.2).
//!
//! instant-acme binds an account to an external one, and changes its key, only with keys that it
//! makes itself. Ours must be on disk before the CA is told of it: nginx answers challenges with
//! its thumbprint, and after a crash it must not be lost.

use std::fmt;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::certificate::key::{KeyError, PrivateKeyPem};

/// Who a request is from.
#[derive(Clone, Copy, Debug)]
pub enum Sender<'a> {
    /// The account with that URL.
    Account(&'a str),
    /// Whoever has the key: there is no account yet, or it is looked for.
    Key,
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum JwsError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("sign a request to the CA: the account key is not a P-256 key")]
    NotP256,
    #[error("sign a request to the CA: the system gives no randomness")]
    Randomness,
}

/// The key of an external account. It is never shown.
#[derive(Clone, Eq, PartialEq)]
pub struct MacKey(Vec<u8>);

impl MacKey {
    /// CAs give it in base64url, some with padding or in plain base64; `None`: it is neither.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim().trim_end_matches('=');
        let url_safe = text.replace('+', "-").replace('/', "_");
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(url_safe).ok()?;
        (!bytes.is_empty()).then_some(Self(bytes))
    }
}

impl fmt::Debug for MacKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MacKey(…)")
    }
}

/// The body of a POST to `url`, ES256. `payload`: `None` for a POST-as-GET (RFC 8555 §6.3).
/// `nonce`: `None` only for the inner object of a key change (§7.3.5).
pub fn signed(
    key: &PrivateKeyPem,
    sender: Sender<'_>,
    nonce: Option<&str>,
    url: &str,
    payload: Option<&Value>,
) -> Result<Value, JwsError> {
    let mut header = json!({"alg": "ES256", "url": url});
    match sender {
        Sender::Account(account) => header["kid"] = account.into(),
        Sender::Key => header["jwk"] = jwk(key)?,
    }
    if let Some(nonce) = nonce {
        header["nonce"] = nonce.into();
    }
    let (protected, payload) = parts(&header, payload);
    let pkcs8 = key.pair()?.serialize_der();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pkcs8)
        .map_err(|_| JwsError::NotP256)?;
    let text = format!("{protected}.{payload}");
    let signature = pair
        .sign(&SystemRandom::new(), text.as_bytes())
        .map_err(|_| JwsError::Randomness)?;
    Ok(flattened(&protected, &payload, signature.as_ref()))
}

/// What binds `key`'s account to the external one (RFC 8555 §7.3.4). `url`: of newAccount.
pub fn binding(
    key: &PrivateKeyPem,
    key_id: &str,
    mac_key: &MacKey,
    url: &str,
) -> Result<Value, JwsError> {
    let header = json!({"alg": "HS256", "kid": key_id, "url": url});
    let (protected, payload) = parts(&header, Some(&jwk(key)?));
    let mac_key = hmac::Key::new(hmac::HMAC_SHA256, &mac_key.0);
    let tag = hmac::sign(&mac_key, format!("{protected}.{payload}").as_bytes());
    Ok(flattened(&protected, &payload, tag.as_ref()))
}

/// RFC 7638 §3: over the required members in lexicographic order, without white space.
pub fn thumbprint(key: &PrivateKeyPem) -> Result<String, KeyError> {
    let [x, y] = coordinates(key)?;
    let jwk = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
    Ok(BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(jwk.as_bytes())))
}

/// The public key (RFC 7518 §6.2.1).
pub fn jwk(key: &PrivateKeyPem) -> Result<Value, KeyError> {
    let [x, y] = coordinates(key)?;
    Ok(json!({"crv": "P-256", "kty": "EC", "x": x, "y": y}))
}

fn coordinates(key: &PrivateKeyPem) -> Result<[String; 2], KeyError> {
    let pair = key.pair()?;
    // an uncompressed point (SEC 1 §2.3.3): 4, then x and y
    let coordinates = pair.public_key_raw().get(1..).unwrap_or_default();
    let (x, y) = coordinates.split_at(coordinates.len() / 2);
    Ok([x, y].map(|bytes| BASE64_URL_SAFE_NO_PAD.encode(bytes)))
}

fn parts(header: &Value, payload: Option<&Value>) -> (String, String) {
    let encode = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    (encode(header), payload.map_or_else(String::new, encode))
}

fn flattened(protected: &str, payload: &str, signature: &[u8]) -> Value {
    let signature = BASE64_URL_SAFE_NO_PAD.encode(signature);
    json!({"protected": protected, "payload": payload, "signature": signature})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_key_is_read_in_every_spelling_that_cas_give_and_never_shown() {
        let key = MacKey(vec![0xfb, 0xff, 0xbf, 1]);
        for text in ["-_-_AQ", "-_-_AQ==", "+/+/AQ==", " +/+/AQ\n"] {
            assert_eq!(MacKey::parse(text), Some(key.clone()), "{text}");
        }
        for text in ["", " ", "==", "a b", "é", "a"] {
            assert_eq!(MacKey::parse(text), None, "{text}");
        }
        assert_eq!(format!("{key:?}"), "MacKey(…)");
    }

    #[test]
    fn a_binding_is_the_hmac_of_the_account_key_for_that_url() {
        let key = PrivateKeyPem::generate(crate::settings::KeyType::EcdsaP256).unwrap();
        let mac_key = MacKey::parse("AQID").unwrap();
        let bound = binding(&key, "kid-1", &mac_key, "https://ca.example/new-account").unwrap();
        let text = |name: &str| bound[name].as_str().unwrap().to_owned();
        let decoded = |name: &str| {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(text(name)).unwrap();
            serde_json::from_slice::<Value>(&bytes)
        };
        assert_eq!(decoded("payload").unwrap(), jwk(&key).unwrap());
        let header = decoded("protected").unwrap();
        assert_eq!(
            (&header["alg"], &header["kid"]),
            (&json!("HS256"), &json!("kid-1"))
        );
        assert_eq!(header.get("nonce"), None);
        let signed = format!("{}.{}", text("protected"), text("payload"));
        let tag = BASE64_URL_SAFE_NO_PAD.decode(text("signature")).unwrap();
        let verifier = hmac::Key::new(hmac::HMAC_SHA256, &[1, 2, 3]);
        hmac::verify(&verifier, signed.as_bytes(), &tag).unwrap();
    }
}
