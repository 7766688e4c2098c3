//! Requests as RFC 8555 §6.2 signs them: ES256, flattened JSON.

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// A signed request, taken apart and not yet verified.
pub struct Signed {
    pub nonce: String,
    pub url: String,
    /// The account's URL, where there is an account.
    pub kid: Option<String>,
    pub jwk: Option<Key>,
    /// Null for a POST-as-GET.
    pub payload: Value,
    message: String,
    signature: Vec<u8>,
}

/// A P-256 public key.
#[derive(Clone, PartialEq)]
pub struct Key {
    x: String,
    y: String,
}

impl Signed {
    pub fn parse(body: &[u8]) -> Option<Self> {
        let value: Value = serde_json::from_slice(body).ok()?;
        let part = |name: &str| value[name].as_str();
        let (protected, payload) = (part("protected")?, part("payload")?);
        let header: Value = serde_json::from_slice(&decode(protected)?).ok()?;
        if header["alg"] != "ES256" {
            return None;
        }
        let text = |name: &str| header[name].as_str().map(str::to_owned);
        Some(Self {
            nonce: text("nonce")?,
            url: text("url")?,
            kid: text("kid"),
            jwk: Key::parse(&header["jwk"]),
            payload: serde_json::from_slice(&decode(payload)?).unwrap_or_default(),
            message: format!("{protected}.{payload}"),
            signature: decode(part("signature")?)?,
        })
    }

    pub fn is_signed_by(&self, key: &Key) -> bool {
        let point = [vec![4], decode(&key.x).unwrap(), decode(&key.y).unwrap()].concat();
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
            .verify(self.message.as_bytes(), &self.signature)
            .is_ok()
    }
}

impl Key {
    fn parse(jwk: &Value) -> Option<Self> {
        let text = |name: &str| jwk[name].as_str().map(str::to_owned);
        Some(Self {
            x: text("x")?,
            y: text("y")?,
        })
    }

    /// RFC 7638.
    pub fn thumbprint(&self) -> String {
        let (x, y) = (&self.x, &self.y);
        let jwk = format!(r#"{{"crv":"P-256","kty":"EC","x":"{x}","y":"{y}"}}"#);
        BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(jwk.as_bytes()))
    }
}

pub fn decode(text: &str) -> Option<Vec<u8>> {
    BASE64_URL_SAFE_NO_PAD.decode(text).ok()
}
