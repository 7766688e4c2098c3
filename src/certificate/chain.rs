//! P: PEM → a certificate chain that is what was asked for.
//!
//! A CA's answer is not trusted: it is parsed, compared with the request, and written again from
//! the parsed bytes, so that nothing but certificates reaches nginx.

mod from_files; // P a chain that an operator wrote, as nginx reads it
mod ordinary; // P what OpenSSL certainly loads
mod path; // P where a chain ends, and what browsers ask of its leaf
mod soundness; // P what browsers and OpenSSL ask of a chain beyond its names

use std::net::IpAddr;

pub use path::PathEnd;

use time::{Duration, OffsetDateTime};
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::certificate::attempts::RetryAdvice;
use crate::certificate::key::{self, KeyError, PrivateKeyPem};
use crate::certificate::pem;
use crate::certificate::words::{first_few, one_line};
use crate::certificate::{Identifier, Issuer, Validity};
use crate::settings::KeyType;

/// Certificates, leaf first, and what the leaf says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Chain {
    /// DER, at least one.
    certificates: Vec<Vec<u8>>,
    /// Lower-case hex without leading zeros; a safe file name of at most 64 characters.
    pub serial: String,
    /// Sorted, no duplicates.
    pub identifiers: Vec<Identifier>,
    pub validity: Validity,
    /// DER SubjectPublicKeyInfo.
    public_key_info: Vec<u8>,
}

/// Why a chain cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error("read block {nth} of the file: it is cut off, or no base64")]
    Damaged { nth: usize },
    #[error("use a chain without any certificate")]
    Empty,
    #[error(
        "use a chain for other names: wanted {}, got {}",
        list(wanted),
        list(got)
    )]
    Identifiers {
        wanted: Vec<Identifier>,
        got: Vec<Identifier>,
    },
    #[error("use the chain: its key is not the one that was made for it")]
    Key,
    #[error(transparent)]
    KeyFile(#[from] KeyError),
    #[error("use a certificate that lasts {} days", validity.lifetime().whole_days())]
    Lifetime { validity: Validity },
    #[error("use the chain: certificate {next} did not sign certificate {nth}: {reason}")]
    Link {
        nth: usize,
        next: usize,
        reason: &'static str,
    },
    #[error("use a chain of more than {MOST_CERTIFICATES} certificates")]
    Long,
    #[error("parse certificate {nth} of the chain: {}", one_line(reason.as_bytes()))]
    Parse { nth: usize, reason: String },
    #[error("use a chain of {bytes} bytes: more than {MAXIMUM_BYTES}")]
    TooLarge { bytes: usize },
    #[error("use a certificate that is not for servers")]
    Usage,
    #[error("use a certificate from {} to {} now, at {now}", validity.not_before, validity.not_after)]
    Validity {
        validity: Validity,
        now: OffsetDateTime,
    },
    #[error("use certificate {nth} of the chain: {reason}")]
    Weak { nth: usize, reason: &'static str },
}

/// More than any real chain with a hundred names; nginx reads it on every reload.
pub const MAXIMUM_BYTES: usize = 256 * 1024;
const CERTIFICATE: &str = "CERTIFICATE";
/// Real ones have two to four; every client gets them with each handshake.
const MOST_CERTIFICATES: usize = 10;
/// A browser's limit is 398 days; private CAs give more. What lasts for ever is never renewed.
const LONGEST_LIFETIME: Duration = Duration::days(4000);

impl Chain {
    /// Parses every certificate of `pem`. Text between them is dropped, other labels are refused.
    pub fn parse(pem: &str) -> Result<Self, ChainError> {
        Self::parse_with(pem, identifiers)
    }

    /// As [`Chain::parse`], for a CA's certificate, which has no identifiers.
    pub fn parse_root(pem: &str) -> Result<Self, ChainError> {
        Self::parse_with(pem, |_| Ok(Vec::new()))
    }

    /// What `issuer` sends: a CA's answer, or files.
    pub fn parse_of(issuer: Issuer, pem: &str) -> Result<Self, ChainError> {
        match issuer {
            Issuer::File => Self::from_files(pem.as_bytes()),
            Issuer::Acme | Issuer::Internal | Issuer::Placeholder => Self::parse(pem),
        }
    }

    fn parse_with(
        pem: &str,
        identifiers: fn(&X509Certificate<'_>) -> Result<Vec<Identifier>, String>,
    ) -> Result<Self, ChainError> {
        if pem.len() > MAXIMUM_BYTES {
            return Err(ChainError::TooLarge { bytes: pem.len() });
        }
        Self::of_certificates(certificates(pem)?, identifiers)
    }

    /// `certificates`: DER, leaf first.
    fn of_certificates(
        certificates: Vec<Vec<u8>>,
        identifiers: fn(&X509Certificate<'_>) -> Result<Vec<Identifier>, String>,
    ) -> Result<Self, ChainError> {
        let leaf = certificates.first().ok_or(ChainError::Empty)?;
        let refused = |reason: String| ChainError::Parse { nth: 1, reason };
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|error| refused(error.to_string()))?;
        let validity = Validity {
            not_before: parsed.validity().not_before.to_datetime(),
            not_after: parsed.validity().not_after.to_datetime(),
        };
        Ok(Self {
            serial: serial(parsed.raw_serial())
                .ok_or_else(|| refused("bad serial number".into()))?,
            identifiers: identifiers(&parsed).map_err(refused)?,
            validity,
            public_key_info: parsed.public_key().raw.to_vec(),
            certificates,
        })
    }

    /// Whether it is for exactly `wanted`, in any order.
    pub fn check_identifiers(&self, wanted: &[Identifier]) -> Result<(), ChainError> {
        let mut sorted = wanted.to_vec();
        sorted.sort();
        sorted.dedup();
        if sorted == self.identifiers {
            return Ok(());
        }
        Err(ChainError::Identifiers {
            wanted: sorted,
            got: self.identifiers.clone(),
        })
    }

    /// Whether the leaf's public key belongs to `key`.
    pub fn check_key(&self, key: &PrivateKeyPem) -> Result<(), ChainError> {
        match key.public_key_info()? == self.public_key_info {
            true => Ok(()),
            false => Err(ChainError::Key),
        }
    }

    /// `None`: of a type that vhostd never makes.
    pub fn key_type(&self) -> Option<KeyType> {
        key::type_of(&self.public_key_info)
    }

    /// Whether it is valid at `now`, or will be in a moment, and not for ever.
    pub fn check_validity(&self, now: OffsetDateTime) -> Result<(), ChainError> {
        let validity = self.validity;
        if !validity.is_usable(now) {
            return Err(ChainError::Validity { validity, now });
        }
        match validity.lifetime() <= LONGEST_LIFETIME {
            true => Ok(()),
            false => Err(ChainError::Lifetime { validity }),
        }
    }

    /// Whether each certificate signs the one before it (RFC 8555 §9.1), for a server, and none is
    /// too weak for OpenSSL.
    pub fn check_soundness(&self) -> Result<(), ChainError> {
        soundness::check(&self.parsed()?)
    }

    /// Whether browsers take the leaf's key, and none is too weak for OpenSSL.
    pub fn check_keys(&self) -> Result<(), ChainError> {
        soundness::check_keys(&self.parsed()?)
    }

    fn parsed(&self) -> Result<Vec<X509Certificate<'_>>, ChainError> {
        let parsed = self.certificates.iter().enumerate().map(|(index, der)| {
            let parsed = X509Certificate::from_der(der);
            parsed
                .map(|(_, parsed)| parsed)
                .map_err(|error| ChainError::Parse {
                    nth: index + 1,
                    reason: error.to_string(),
                })
        });
        parsed.collect()
    }

    /// Whether it has nothing but what OpenSSL certainly loads. What is not ordinary may be fine.
    pub fn is_ordinary(&self) -> bool {
        let mut certificates = self.certificates.iter();
        certificates.all(|der| ordinary::is_ordinary(der))
    }

    /// Whether the leaf is its own issuer.
    pub fn is_self_issued(&self) -> bool {
        self.path_end() == Some(PathEnd::SelfSigned)
    }

    /// DER, leaf first.
    pub fn certificates(&self) -> impl Iterator<Item = &[u8]> {
        self.certificates.iter().map(Vec::as_slice)
    }

    /// The leaf, DER.
    pub fn leaf(&self) -> &[u8] {
        self.certificates.first().map_or(&[], Vec::as_slice)
    }

    /// RFC 7468, encoded anew.
    pub fn to_pem(&self) -> String {
        let certificates = self.certificates.iter();
        certificates
            .map(|der| pem::encode(CERTIFICATE, der))
            .collect()
    }
}

impl ChainError {
    /// A CA's wrong answer may be another one next time; no cause here lies in the request.
    pub fn retry(&self) -> RetryAdvice {
        RetryAdvice::Retry
    }
}

fn certificates(pem: &str) -> Result<Vec<Vec<u8>>, ChainError> {
    let mut certificates = Vec::new();
    for (index, block) in Pem::iter_from_buffer(pem.as_bytes()).enumerate() {
        let refused = |reason: String| ChainError::Parse {
            nth: index + 1,
            reason,
        };
        let block = block.map_err(|error| refused(error.to_string()))?;
        if index == MOST_CERTIFICATES {
            return Err(ChainError::Long);
        }
        if block.label != CERTIFICATE {
            return Err(refused("not a certificate".to_owned()));
        }
        let (rest, _) = X509Certificate::from_der(&block.contents)
            .map_err(|error| refused(error.to_string()))?;
        if !rest.is_empty() {
            return Err(refused("bytes after its end".to_owned()));
        }
        certificates.push(block.contents);
    }
    Ok(certificates)
}

/// RFC 5280 §4.1.2.2 allows 20 octets; a little more is met in the field.
fn serial(raw: &[u8]) -> Option<String> {
    let significant = raw
        .iter()
        .position(|byte| *byte != 0)
        .map_or(&[0][..], |at| &raw[at..]);
    let hex = || {
        significant
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    };
    (significant.len() <= 32).then(hex)
}

fn identifiers(leaf: &X509Certificate<'_>) -> Result<Vec<Identifier>, String> {
    let names = leaf
        .subject_alternative_name()
        .map_err(|error| error.to_string())?
        .ok_or("no subject alternative name")?;
    let mut identifiers = names
        .value
        .general_names
        .iter()
        .map(|name| match name {
            GeneralName::DNSName(name) => Ok(Identifier::Dns(name.to_ascii_lowercase())),
            GeneralName::IPAddress(bytes) => address(bytes).map(Identifier::Ip),
            other => Err(format!("an alternative name of another kind: {other}")),
        })
        .collect::<Result<Vec<_>, _>>()?;
    identifiers.sort();
    identifiers.dedup();
    Ok(identifiers)
}

fn address(bytes: &[u8]) -> Result<IpAddr, String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Ok(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes)
        .map(IpAddr::from)
        .map_err(|_| "an address of a strange length".to_owned())
}

/// They may be a stranger's: a name in a certificate can hold any ASCII.
fn list(identifiers: &[Identifier]) -> String {
    let names: Vec<String> = identifiers
        .iter()
        .map(|identifier| one_line(identifier.to_string().as_bytes()))
        .collect();
    match names.is_empty() {
        true => "none".to_owned(),
        false => first_few(&names, ", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certificate::key::parameters;
    use crate::settings::KeyType;

    fn chain(names: &[&str]) -> (String, PrivateKeyPem, OffsetDateTime) {
        let now = OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap();
        let key = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
        let wanted: Vec<_> = names
            .iter()
            .map(|name| Identifier::Dns((*name).into()))
            .collect();
        let mut parameters = parameters(&wanted).unwrap();
        parameters.not_before = now;
        parameters.not_after = now + Duration::days(90);
        let pem = parameters.self_signed(&key.pair().unwrap()).unwrap().pem();
        (pem, key, now)
    }

    #[test]
    fn a_chain_is_written_again_from_its_parsed_bytes() {
        let (pem, _, _) = chain(&["b.example", "a.example"]);
        let polluted = format!("# injected\n{pem}some words\n{pem}");
        let parsed = Chain::parse(&polluted).unwrap();
        assert_eq!(parsed.to_pem(), format!("{pem}{pem}").replace("\r\n", "\n"));
    }

    #[test]
    fn other_names_than_the_requested_ones_are_refused() {
        let parsed = Chain::parse(&chain(&["b.example", "a.example"]).0).unwrap();
        let a = Identifier::Dns("a.example".into());
        let b = Identifier::Dns("b.example".into());
        parsed.check_identifiers(&[b, a.clone()]).unwrap();
        let error = parsed.check_identifiers(&[a]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "use a chain for other names: wanted a.example, got a.example, b.example"
        );
    }

    #[test]
    fn a_chain_for_another_key_is_refused() {
        let (pem, key, _) = chain(&["a.example"]);
        let parsed = Chain::parse(&pem).unwrap();
        parsed.check_key(&key).unwrap();
        let other = PrivateKeyPem::generate(KeyType::EcdsaP256).unwrap();
        assert!(matches!(parsed.check_key(&other), Err(ChainError::Key)));
    }

    #[test]
    fn a_chain_is_refused_when_expired_or_from_a_future_beyond_the_skew() {
        let (pem, _, now) = chain(&["a.example"]);
        let parsed = Chain::parse(&pem).unwrap();
        parsed.check_validity(now - Duration::minutes(9)).unwrap();
        assert!(parsed.check_validity(now - Duration::minutes(11)).is_err());
        parsed.check_validity(now + Duration::days(90)).unwrap();
        assert!(parsed.check_validity(now + Duration::days(91)).is_err());
    }

    #[test]
    fn a_private_key_among_the_certificates_is_refused() {
        let (pem, key, _) = chain(&["a.example"]);
        let error = Chain::parse(&format!("{pem}{}", key.expose())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "parse certificate 2 of the chain: not a certificate"
        );
    }

    #[test]
    fn an_enormous_chain_is_refused_unread() {
        let error = Chain::parse(&" ".repeat(MAXIMUM_BYTES + 1)).unwrap_err();
        assert!(matches!(error, ChainError::TooLarge { .. }));
        assert!(matches!(Chain::parse("").unwrap_err(), ChainError::Empty));
    }

    #[test]
    fn a_serial_number_is_a_safe_file_name() {
        assert_eq!(serial(&[0, 0xab, 0x01]).unwrap(), "ab01");
        assert_eq!(serial(&[0]).unwrap(), "00");
        assert_eq!(serial(&[1; 33]), None);
    }
}
