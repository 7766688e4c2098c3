//! P: private keys and signing requests. (The generator draws its own randomness: a key that a
//! test could predict is no key.)

use std::fmt;
use std::sync::{Mutex, PoisonError};

use rcgen::{
    CertificateParams, DistinguishedName, KeyPair, PublicKeyData, RsaKeySize, SanType, SerialNumber,
};

use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use crate::certificate::Identifier;
use crate::settings::KeyType;

/// A private key, PKCS#8 in PEM, or of files in whatever form OpenSSL takes. It is never shown: not in messages, not in `Debug`.
#[derive(Clone)]
pub struct PrivateKeyPem(String);

/// Why a key, a signing request or a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("use `{identifier}` as an identifier: {source}")]
    Identifier {
        identifier: Identifier,
        #[source]
        source: rcgen::Error,
    },
    #[error("make a key: {0}")]
    Make(#[source] rcgen::Error),
    #[error("draw a serial number: the system gives no randomness")]
    Random,
    #[error("read a private key: {0}")]
    Read(#[source] rcgen::Error),
    #[error("sign: {0}")]
    Sign(#[source] rcgen::Error),
}

impl PrivateKeyPem {
    pub fn new(pem: impl Into<String>) -> Self {
        Self(pem.into())
    }

    /// Makes a new key. RSA takes 0.1 to 0.2 s of computing: not on the daemon's loop.
    pub fn generate(key_type: KeyType) -> Result<Self, KeyError> {
        let pair = match key_type {
            KeyType::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            KeyType::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            KeyType::Rsa2048 => generate_rsa(),
        };
        pair.map(|pair| Self(pair.serialize_pem()))
            .map_err(KeyError::Make)
    }

    /// The secret itself, to be written with mode 0600 and nowhere else.
    pub fn expose(&self) -> &str {
        &self.0
    }

    pub(crate) fn pair(&self) -> Result<KeyPair, KeyError> {
        KeyPair::from_pem(&self.0).map_err(KeyError::Read)
    }

    /// DER SubjectPublicKeyInfo (RFC 5280 §4.1.2.7), to compare with a certificate's.
    pub fn public_key_info(&self) -> Result<Vec<u8>, KeyError> {
        self.pair().map(|pair| pair.subject_public_key_info())
    }

    /// Whether it is of that type; a pending order with another one is not resumed.
    pub fn is_of(&self, key_type: KeyType) -> bool {
        let wanted = match key_type {
            KeyType::EcdsaP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            KeyType::EcdsaP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            KeyType::Rsa2048 => &rcgen::PKCS_RSA_SHA256,
        };
        self.pair().is_ok_and(|pair| pair.algorithm() == wanted)
    }
}

/// One at a time, so that a host of two cores serves and reloads while hundreds are made.
fn generate_rsa() -> Result<KeyPair, rcgen::Error> {
    let _turn = RSA_TURN.lock().unwrap_or_else(PoisonError::into_inner);
    KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, RsaKeySize::_2048)
}

/// Whether an RSA key would be made now, and not after others.
pub(crate) fn is_rsa_free() -> bool {
    RSA_TURN.try_lock().is_ok()
}

static RSA_TURN: Mutex<()> = Mutex::new(());

/// Of a DER SubjectPublicKeyInfo; `None`: of one that is never made here.
pub(crate) fn type_of(public_key_info: &[u8]) -> Option<KeyType> {
    let (_, info) = SubjectPublicKeyInfo::from_der(public_key_info).ok()?;
    match info.parsed().ok()? {
        PublicKey::EC(point) if point.key_size() == 256 => Some(KeyType::EcdsaP256),
        PublicKey::EC(point) if point.key_size() == 384 => Some(KeyType::EcdsaP384),
        PublicKey::RSA(key) if key.key_size() == 2048 => Some(KeyType::Rsa2048),
        _ => None,
    }
}

impl fmt::Debug for PrivateKeyPem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKeyPem(…)")
    }
}

/// A PKCS#10 request for `identifiers`, DER. Its subject is empty: Let's Encrypt reads a common
/// name as one more identifier.
pub fn signing_request(
    identifiers: &[Identifier],
    key: &PrivateKeyPem,
) -> Result<Vec<u8>, KeyError> {
    let request = parameters(identifiers)?
        .serialize_request(&key.pair()?)
        .map_err(KeyError::Sign)?;
    Ok(request.der().to_vec())
}

/// 126 bits that nobody foresees, positive (RFC 5280 §4.1.2.2).
pub(crate) fn serial_number() -> Result<SerialNumber, KeyError> {
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    let mut bytes = [0; 16];
    random.fill(&mut bytes).map_err(|_| KeyError::Random)?;
    bytes[0] = bytes[0] & 0x3f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Certificate parameters with these alternative names, an empty subject, and rcgen's other
/// defaults (the validity among them: set it before signing).
pub(crate) fn parameters(identifiers: &[Identifier]) -> Result<CertificateParams, KeyError> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.subject_alt_names = identifiers
        .iter()
        .map(alternative_name)
        .collect::<Result<_, _>>()?;
    Ok(parameters)
}

fn alternative_name(identifier: &Identifier) -> Result<SanType, KeyError> {
    match identifier {
        Identifier::Ip(address) => Ok(SanType::IpAddress(*address)),
        Identifier::Dns(name) => name
            .as_str()
            .try_into()
            .map(SanType::DnsName)
            .map_err(|source| KeyError::Identifier {
                identifier: identifier.clone(),
                source,
            }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_not_shown_by_debug() {
        let key = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
        assert_eq!(format!("{key:?}"), "PrivateKeyPem(…)");
        assert!(key.expose().contains("PRIVATE KEY"));
    }

    #[test]
    fn a_key_knows_its_type() {
        let key = PrivateKeyPem::generate(KeyType::EcdsaP384).unwrap();
        assert!(key.is_of(KeyType::EcdsaP384));
        assert!(!key.is_of(KeyType::EcdsaP256));
    }

    #[test]
    fn the_type_of_a_key_is_known_from_its_public_half() {
        for key_type in [KeyType::EcdsaP256, KeyType::EcdsaP384, KeyType::Rsa2048] {
            let key = PrivateKeyPem::generate(key_type).unwrap();
            assert_eq!(type_of(&key.public_key_info().unwrap()), Some(key_type));
        }
        let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        assert_eq!(type_of(&other.subject_public_key_info()), None);
    }

    #[test]
    fn a_signing_request_has_an_empty_subject_and_exactly_the_identifiers() {
        use x509_parser::prelude::*;

        let key = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
        let identifiers = [
            Identifier::Dns("a.example".into()),
            Identifier::Ip("192.0.2.1".parse().unwrap()),
        ];
        let der = signing_request(&identifiers, &key).unwrap();
        let (_, request) = X509CertificationRequest::from_der(&der).unwrap();
        assert_eq!(request.certification_request_info.subject.iter().count(), 0);
        let names: Vec<String> = request
            .requested_extensions()
            .unwrap()
            .filter_map(|extension| match extension {
                ParsedExtension::SubjectAlternativeName(names) => Some(names),
                _ => None,
            })
            .flat_map(|names| names.general_names.iter().map(|name| name.to_string()))
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}
