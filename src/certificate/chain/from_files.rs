//! P: a chain that an operator wrote, as nginx reads it.
//!
//! OpenSSL takes the first certificate of the file for the server's, and sends the others as they
//! come. It skips every other kind of block, and has no limit for a lifetime or a number.

use std::net::IpAddr;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{CERTIFICATE, Chain, ChainError, address};
use crate::certificate::Identifier;
use crate::certificate::key::PrivateKeyPem;
use crate::certificate::pem::{self, Block};

impl Chain {
    /// The certificates of a file, each once. [`ChainError::Empty`]: it has none.
    pub fn from_files(pem: &[u8]) -> Result<Self, ChainError> {
        Self::from_blocks(&pem::blocks(pem))
    }

    /// As OpenSSL, which reads every block of the file, and none that is damaged.
    pub(crate) fn from_blocks(blocks: &[Block]) -> Result<Self, ChainError> {
        let mut certificates: Vec<Vec<u8>> = Vec::new();
        if let Some(index) = blocks.iter().position(|block| block.contents.is_none()) {
            return Err(ChainError::Damaged { nth: index + 1 });
        }
        let found = blocks.iter().filter(|block| is_certificate(block));
        for (index, block) in found.enumerate() {
            let der = der(block).map_err(|reason| ChainError::Parse {
                nth: index + 1,
                reason,
            })?;
            if !certificates.contains(&der) {
                certificates.push(der);
            }
        }
        Self::of_certificates(certificates, |leaf| Ok(identifiers(leaf)))
    }

    /// Which certificate `key` belongs to, from 1.
    pub fn nth_of_key(&self, key: &PrivateKeyPem) -> Option<usize> {
        let (parsed, own) = (self.parsed().ok()?, key.public_key_info().ok()?);
        let nth = parsed.iter().position(|it| it.public_key().raw == own)?;
        Some(nth + 1)
    }
}

fn is_certificate(block: &Block) -> bool {
    LABELS.contains(&block.label.as_str())
}

fn der(block: &Block) -> Result<Vec<u8>, String> {
    let contents = block.contents.as_deref().unwrap_or_default();
    let (rest, _) = X509Certificate::from_der(contents).map_err(|error| error.to_string())?;
    // what `openssl x509 -trustout` adds
    match rest.is_empty() || block.label == TRUSTED {
        true => Ok(contents[..contents.len() - rest.len()].to_vec()),
        false => Err("bytes after its end".to_owned()),
    }
}

/// Its alternative names that are hosts and addresses; of a certificate without any, the name of its
/// subject, which some clients still accept (RFC 6125 §6.4.4).
fn identifiers(leaf: &X509Certificate<'_>) -> Vec<Identifier> {
    let names = leaf.subject_alternative_name().ok().flatten();
    let names = names.map_or(&[][..], |names| &names.value.general_names);
    let identifiers = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(Identifier::Dns(name.to_ascii_lowercase())),
        GeneralName::IPAddress(bytes) => address(bytes).map(Identifier::Ip).ok(),
        _ => None,
    });
    let mut identifiers: Vec<Identifier> = identifiers.collect();
    if identifiers.is_empty() {
        identifiers.extend(common_name(leaf));
    }
    identifiers.sort();
    identifiers.dedup();
    identifiers
}

fn common_name(leaf: &X509Certificate<'_>) -> Option<Identifier> {
    let name = leaf.subject().iter_common_name().last()?.as_str().ok()?;
    if let Ok(address) = name.parse::<IpAddr>() {
        return Some(Identifier::Ip(address));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '*');
    let is_host = name.contains('.') && name.chars().all(plain);
    is_host.then(|| Identifier::Dns(name.to_ascii_lowercase()))
}

const TRUSTED: &str = "TRUSTED CERTIFICATE";
/// OpenSSL's names of one thing.
const LABELS: [&str; 3] = [CERTIFICATE, TRUSTED, "X509 CERTIFICATE"];
