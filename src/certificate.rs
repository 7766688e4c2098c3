//! P: what a certificate is, which ones exist, and which one a vhost should serve.
//!
//! Words here are RFC 8555's: order, authorization, challenge, identifier.
//! The protocol is in `order` (with `account` and `http`, the only users of instant-acme); what is
//! on disk in `store`, `ledger`, `account` and `internal`; when something happens in `schedule`.

pub mod account; // W the ACME account's key and URL
pub mod advice; // P DNS records that let one account of one CA issue
pub mod anchors; // R whether a chain leads to a root that this system trusts
pub mod answers; // W challenges that nginx cannot answer by itself
pub mod attempts; // P what failed, and when it is tried again
pub mod budget; // P what a CA allows, and what was used of it
pub mod chain; // P PEM → a certificate chain that is what was asked for
pub mod dns01; // N texts in DNS that prove control of a name
pub mod external_account; // R the key of the customer's account, where a CA wants one
pub mod fallback; // P which of several CAs is asked, and when another one
pub mod glance; // P a certificate of whoever, in words
pub mod http; // N one origin, short waits, small answers: how the CA is spoken to
pub mod inquire; // N a CA is asked when to renew, and its answer is remembered
pub mod internal; // W vhostd's own CA (`tls: internal`)
mod inventory; // P what is stored, and which of it a vhost serves
pub mod jws; // P requests that the protocol library does not make, signed
pub mod key; // P private keys and signing requests
pub mod ledger; // W attempts, pending orders and the lock, per certificate
pub(crate) mod listing; // R what is in a directory that may not be there yet
pub mod order; // N CertificateRequest → IssuedCertificate over ACME
pub(crate) mod pem; // P the blocks of a PEM file
pub mod pem_files; // R a certificate from files that somebody else renews
pub mod preflight; // P what must fail, and what looks odd, before an order
pub mod renew; // W lock → still due? → order → check → store: what the daemon and `renew` call
pub mod renewal_info; // P when the CA wants a certificate renewed
pub mod reuse; // R the key of a renewal: a new one, or the one that is there
pub mod schedule; // P what is due now, and when to look again
pub mod store; // W versioned directories ↔ CertificateInventory
pub mod subset; // P identifiers that an order leaves out because they keep failing
pub(crate) mod words; // P a stranger's words, fit for a terminal and a status file

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::certificate::attempts::Attempts;
pub use crate::certificate::inventory::CertificateInventory;
use crate::certificate::key::PrivateKeyPem;
use crate::certificate::renewal_info::RenewalId;
use crate::settings::{AcmeSettings, KeyType};

/// What a certificate speaks for (RFC 8555 §9.7.7, RFC 8738).
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Identifier {
    /// An A-label host name in lower case, or `*.` and one.
    Dns(String),
    Ip(IpAddr),
}

impl Identifier {
    pub fn is_address(&self) -> bool {
        matches!(self, Self::Ip(_))
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns(name) => f.write_str(name),
            Self::Ip(address) => address.fmt(f),
        }
    }
}

/// Names a certificate in the store and in every message: its first identifier, with `*` written
/// as `_wildcard`, so that it is a safe file name and the mapping is injective. Of one that leaves
/// no room for a file name's endings, the beginning and a digest.
#[derive(Clone, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(transparent)]
pub struct CertificateName(String);

impl CertificateName {
    pub fn of(first: &Identifier) -> Self {
        let whole = first
            .to_string()
            .replace('*', "_wildcard")
            .replace(':', "_");
        Self(match whole.get(..LONGEST_NAME) {
            None => whole,
            Some(beginning) => {
                let digest = Sha256::digest(whole.as_bytes());
                let digest = digest.iter().take(8).map(|byte| format!("{byte:02x}"));
                format!("{beginning}-{}", digest.collect::<String>())
            }
        })
    }

    /// Of the same identifiers, with a further type of key: no identifier has a `+`.
    pub fn of_further(&self, key_type: KeyType) -> Self {
        Self(format!("{}{FURTHER}{}", self.base(), key_type.as_str()))
    }

    /// A name that is one plain, visible file name; `None` for any other text.
    pub fn from_file_name(name: &str) -> Option<Self> {
        let (base, further) = match name.split_once(FURTHER) {
            Some((base, further)) => (base, Some(further)),
            None => (name, None),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let safe = !base.is_empty() && !base.starts_with('.') && base.chars().all(plain);
        let known = further.is_none_or(|further| KeyType::named(further).is_some());
        (safe && known).then(|| Self(name.to_owned()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the further type of key.
    pub fn base(&self) -> &str {
        self.0.split_once(FURTHER).map_or(&self.0, |(base, _)| base)
    }

    /// The type of key, where it is a further one beside the one that is always there.
    pub fn further(&self) -> Option<KeyType> {
        KeyType::named(self.0.split_once(FURTHER)?.1)
    }
}

/// A file name has 255 bytes, of which a further type of key, and a temporary's beginning and end,
/// take some eighty.
const LONGEST_NAME: usize = 150;

const FURTHER: char = '+';

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who signed a certificate.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Issuer {
    Acme,
    /// Whoever wrote the files that a vhost names.
    File,
    /// vhostd's own CA (`tls: internal`).
    Internal,
    /// Nobody: self-signed, only so that nginx starts.
    Placeholder,
}

/// A certificate that some vhost should have.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WantedCertificate {
    pub name: CertificateName,
    /// At least one; the first names the certificate; no duplicates.
    pub identifiers: Vec<Identifier>,
    /// `Acme`, `Internal` or `File`.
    pub issuer: Issuer,
    /// Certificate profile (draft-ietf-acme-profiles); `None`: the CA chooses.
    #[serde(default)]
    pub profile: Option<String>,
    #[serde(default)]
    pub key_type: KeyType,
    #[serde(default)]
    pub challenge: Challenge,
    /// Where it is taken from; with `File` only.
    #[serde(default)]
    pub files: Option<PemFiles>,
    /// The user whose vhost file asks for it.
    #[serde(default)]
    pub uid: u32,
    /// The app that it is for: where many certificates wait, apps are served in turns.
    #[serde(default)]
    pub app: Option<Box<str>>,
}

/// How control of the identifiers is proven (RFC 8555 §8).
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub enum Challenge {
    /// nginx answers.
    #[default]
    #[serde(rename = "http-01")]
    Http01,
    /// The texts are published by the settings' DNS provider of this name.
    #[serde(rename = "dns-01")]
    Dns01(Box<str>),
}

/// A certificate that somebody else renews: absolute, normalized paths.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PemFiles {
    /// PEM, leaf first.
    pub chain: PathBuf,
    pub key: PathBuf,
    /// The user who names them, and with whose rights they are opened.
    #[serde(default)]
    pub uid: u32,
}

impl WantedCertificate {
    /// Whether nginx answers the CA's challenges for it (RFC 8555 §8.3).
    pub fn is_ordered_by_http01(&self) -> bool {
        self.issuer == Issuer::Acme && self.challenge == Challenge::Http01
    }

    /// Of no profile, with an ECDSA P-256 key.
    pub fn new(identifiers: Vec<Identifier>, issuer: Issuer) -> Option<Self> {
        let name = CertificateName::of(identifiers.first()?);
        Some(Self {
            name,
            identifiers,
            issuer,
            profile: None,
            key_type: KeyType::default(),
            challenge: Challenge::default(),
            files: None,
            uid: 0,
            app: None,
        })
    }

    /// The same with a further type of key: a certificate of its own, with a schedule of its own.
    pub fn further(&self, key_type: KeyType) -> Self {
        Self {
            name: self.name.of_further(key_type),
            key_type,
            ..self.clone()
        }
    }
}

/// Where certificates come from. A stored one of another origin is replaced.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Terms {
    /// The URL of the ACME directory (RFC 8555 §7.1.1).
    pub directory: String,
    /// Those of the CAs that are asked when that one keeps failing: what they issued stays.
    pub fallbacks: Vec<String>,
}

impl Terms {
    /// Of the directories that are asked, the one that it is from; of one whose origin nobody wrote
    /// down, the first.
    pub fn directory_of(&self, stored: &StoredCertificate) -> Option<&str> {
        let Some(origin) = &stored.origin else {
            return Some(&self.directory);
        };
        let mut known = std::iter::once(&self.directory).chain(&self.fallbacks);
        known
            .find(|known| **known == origin.directory)
            .map(String::as_str)
    }
}

impl From<&AcmeSettings> for Terms {
    fn from(settings: &AcmeSettings) -> Self {
        Self {
            directory: settings.directory.clone(),
            fallbacks: settings
                .fallbacks
                .iter()
                .map(|ca| ca.directory.clone())
                .collect(),
        }
    }
}

/// Where a certificate from ACME comes from.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Origin {
    /// The URL of the directory.
    pub directory: String,
    /// The profile that was asked for.
    pub profile: Option<String>,
}

/// One certificate to be obtained now, and what was true when that was decided.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CertificateRequest {
    pub name: CertificateName,
    /// At least one; no duplicates: those of `wanted` that are ordered.
    pub identifiers: Vec<Identifier>,
    /// All that the certificate should have; the first names it.
    pub wanted: Vec<Identifier>,
    /// Those that failed before, where a good certificate with all the others is stored: the order
    /// gains nothing while they fail.
    pub retried: Vec<Identifier>,
    /// `Acme` or `Internal`.
    pub issuer: Issuer,
    /// Certificate profile (draft-ietf-acme-profiles); `None`: the CA chooses.
    pub profile: Option<String>,
    pub key_type: KeyType,
    pub challenge: Challenge,
    /// The user whose vhost file asks for it.
    pub uid: u32,
    /// The serial of the stored version that this one follows. Once another version is there,
    /// somebody else has done the work.
    pub replaces: Option<String>,
    /// What its CA calls it (RFC 9773 §5); `None` where that one cannot know it.
    pub renewal_id: Option<RenewalId>,
    /// When it ends.
    pub expires: Option<OffsetDateTime>,
    /// Because of its age alone: right before the order the CA is asked once more whether it is
    /// time.
    pub by_age: bool,
    /// The stored version's key, to be used again; `None`: a new one is made.
    pub reuse_key: Option<PathBuf>,
    /// A person asked for it now: what the CA is known to allow is told, not waited for.
    pub insisted: bool,
    /// A person knows better than what we see of DNS: it is sent whatever that says.
    pub forced: bool,
    /// [`Attempts::failures`] at that time: one more means that somebody else has just tried.
    pub failures: u32,
    /// [`WantedCertificate::app`]
    pub app: Option<Box<str>>,
}

impl CertificateRequest {
    pub fn new(
        wanted: &WantedCertificate,
        stored: Option<&StoredCertificate>,
        attempts: Option<&Attempts>,
    ) -> Self {
        Self {
            name: wanted.name.clone(),
            identifiers: wanted.identifiers.clone(),
            wanted: wanted.identifiers.clone(),
            retried: Vec::new(),
            issuer: wanted.issuer,
            profile: wanted.profile.clone(),
            key_type: wanted.key_type,
            challenge: wanted.challenge.clone(),
            uid: wanted.uid,
            replaces: stored.map(|stored| stored.serial.clone()),
            renewal_id: stored
                // another client's account may not replace its own certificate (RFC 9773 §5)
                .filter(|stored| stored.issuer == Issuer::Acme && !stored.adopted)
                .and_then(|stored| RenewalId::of(&stored.leaf)),
            expires: stored.map(|stored| stored.validity.not_after),
            by_age: false,
            reuse_key: None,
            insisted: false,
            forced: false,
            failures: attempts.map_or(0, |attempts| attempts.failures),
            app: wanted.app.clone(),
        }
    }

    /// What it is for.
    pub fn to_wanted(&self) -> WantedCertificate {
        WantedCertificate {
            name: self.name.clone(),
            identifiers: self.wanted.clone(),
            issuer: self.issuer,
            profile: self.profile.clone(),
            key_type: self.key_type,
            challenge: self.challenge.clone(),
            files: None,
            uid: self.uid,
            app: self.app.clone(),
        }
    }

    /// The same, without some of the identifiers.
    pub fn without(mut self, omitted: &[Identifier]) -> Self {
        self.identifiers.retain(|one| !omitted.contains(one));
        self
    }

    /// What is wanted and not in this order.
    pub fn omitted(&self) -> Vec<Identifier> {
        let omitted = self.wanted.iter();
        let omitted = omitted.filter(|wanted| !self.identifiers.contains(wanted));
        omitted.cloned().collect()
    }
}

/// What a CA answered: a chain as it came, not yet checked, and the key that was made for it.
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// PEM, leaf first (RFC 8555 §9.1).
    pub chain_pem: String,
    /// PKCS#8.
    pub key_pem: PrivateKeyPem,
    /// `None`: it is not from ACME.
    pub origin: Option<Origin>,
    /// Another client obtained it.
    pub adopted: bool,
}

/// From `not_before` up to and including `not_after` (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Validity {
    #[serde(with = "time::serde::rfc3339")]
    pub not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    pub not_after: OffsetDateTime,
}

/// How far the CA's clock may be ahead of ours before its certificates count as "not yet valid".
pub const CLOCK_SKEW: Duration = Duration::minutes(10);

impl Validity {
    /// As [`Validity::contains`], for a host whose clock is a little behind the CA's: a certificate
    /// is not ordered again, nor withheld from nginx, because of seconds.
    pub fn is_usable(&self, now: OffsetDateTime) -> bool {
        self.not_before - CLOCK_SKEW <= now && now <= self.not_after
    }

    /// Not negative where it was ever valid.
    pub fn lifetime(&self) -> Duration {
        self.not_after - self.not_before
    }

    pub fn contains(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// One version of a certificate on disk. Its directory never changes: a renewal is a new one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct StoredCertificate {
    pub name: CertificateName,
    /// Names the version's directory: the X.509 serial number in lower-case hex, of a certificate
    /// from files with a digest of the chain.
    pub serial: String,
    pub issuer: Issuer,
    /// The identifiers of the certificate itself, sorted.
    pub identifiers: Vec<Identifier>,
    pub validity: Validity,
    /// `None`: it is not from ACME, or from a time when nobody wrote it down.
    pub origin: Option<Origin>,
    /// Another client obtained it: it was never on our terms, and serves until its renewal.
    pub adopted: bool,
    /// The user whose vhost file it was obtained for, and whose files alone it serves. `None`: it is from
    /// a vhostd that did not write that down.
    pub uid: Option<u32>,
    /// `None`: of a type that is never asked for.
    pub key_type: Option<KeyType>,
    /// Absolute path of `fullchain.pem`.
    pub chain: PathBuf,
    /// Absolute path of `privkey.pem`.
    pub key: PathBuf,
    /// The leaf, DER.
    pub leaf: Vec<u8>,
}

impl StoredCertificate {
    /// Whether every one of `identifiers` is in it, itself or by a wildcard (RFC 6125 §6.4.3).
    pub fn covers(&self, identifiers: &[Identifier]) -> bool {
        identifiers
            .iter()
            .all(|wanted| covers(&self.identifiers, wanted))
    }

    /// Those of `identifiers` that are not in it.
    pub fn missing(&self, identifiers: &[Identifier]) -> Vec<Identifier> {
        let missing = identifiers.iter();
        let missing = missing.filter(|wanted| !covers(&self.identifiers, wanted));
        missing.cloned().collect()
    }

    fn covers_any(&self, identifiers: &[Identifier]) -> bool {
        identifiers
            .iter()
            .any(|wanted| covers(&self.identifiers, wanted))
    }
}

/// Whether `wanted` is one of `have`, or below a wildcard of them (RFC 6125 §6.4.3).
pub(crate) fn covers(have: &[Identifier], wanted: &Identifier) -> bool {
    have.iter()
        .any(|have| have == wanted || wildcard_covers(have, wanted))
}

fn wildcard_covers(have: &Identifier, wanted: &Identifier) -> bool {
    let (Identifier::Dns(have), Identifier::Dns(wanted)) = (have, wanted) else {
        return false;
    };
    match (have.strip_prefix("*."), wanted.split_once('.')) {
        (Some(zone), Some((label, rest))) => rest == zone && label != "*",
        _ => false,
    }
}
