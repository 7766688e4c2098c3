//! P: which requests are for another host than their TLS handshake (RFC 9110 §15.5.20).

use serde::Serialize;

use super::short_digest;
use crate::certificate::Identifier;
use crate::desired::{DesiredTls, DesiredVhost};
use crate::render::token::{Part, Token, TokenError};

/// `map "$ssl_server_name $host" VARIABLE { … }`: empty for a request that may be answered.
///
/// A client may send requests for all names of a certificate on one connection (RFC 9113 §9.1.1),
/// so the handshake may be for any of them. A client of an address names no host in its handshake.
#[derive(Debug, Serialize)]
pub struct MisdirectedMap {
    pub variable: Token,
    /// The handshakes of the certificate beside that of the request's own host.
    pub patterns: Vec<Token>,
}

impl MisdirectedMap {
    /// The map that `vhost` needs for itself, if its certificates are for more than one host.
    pub(super) fn own(vhost: &DesiredVhost) -> Result<Option<Self>, TokenError> {
        let covered = shared_handshakes(vhost);
        if covered.is_empty() {
            return Ok(None);
        }
        Ok(Some(Self {
            variable: Token::variable(&own_variable(vhost))?,
            patterns: covered
                .iter()
                .map(|it| pattern(it))
                .collect::<Result<_, _>>()?,
        }))
    }
}

/// The variable of the map that applies to `vhost`.
pub(super) fn misdirected(vhost: &DesiredVhost) -> Result<Token, TokenError> {
    match shared_handshakes(vhost).is_empty() {
        true => Token::variable(SHARED_VARIABLE),
        false => Token::variable(&own_variable(vhost)),
    }
}

/// The identifiers of the certificates, each once; empty where the vhost has only one host, which is
/// the only one of its certificates.
fn shared_handshakes(vhost: &DesiredVhost) -> Vec<&Identifier> {
    let DesiredTls::On { covered, .. } = &vhost.tls else {
        return Vec::new();
    };
    let mut all: Vec<&Identifier> = Vec::new();
    for identifier in covered {
        if !all.contains(&identifier) {
            all.push(identifier);
        }
    }
    match all[..] {
        [Identifier::Dns(only)] if !only.starts_with("*.") => Vec::new(),
        _ => all,
    }
}

/// Of the map's key: the name of the handshake, a space, any host.
fn pattern(identifier: &Identifier) -> Result<Token, TokenError> {
    match identifier {
        Identifier::Ip(_) => Token::expression(&[Part::Ours("~^ ")]),
        Identifier::Dns(name) => {
            let (label, name) = match name.strip_prefix("*.") {
                Some(zone) => (r"~*^[^. ]+\.", zone),
                None => ("~*^", name.as_str()),
            };
            if let Some(odd) = name
                .chars()
                .find(|character| !is_name_character(*character))
            {
                return Err(TokenError::Character(odd));
            }
            let escaped = name.replace('.', r"\.");
            let parts = [
                Part::Ours(label),
                Part::Value(&escaped),
                Part::Ours(r"\.? "),
            ];
            Token::expression(&parts)
        }
    }
}

/// Of those only the dot means something to PCRE here.
fn is_name_character(character: char) -> bool {
    character.is_ascii_alphanumeric() || matches!(character, '-' | '.' | '_')
}

/// A digest: a variable's name of 47 bytes makes nginx refuse everything.
fn own_variable(vhost: &DesiredVhost) -> String {
    format!(
        "vhostd_sni_{}",
        short_digest(&vhost.spec.name.to_string(), 12)
    )
}

const SHARED_VARIABLE: &str = "vhostd_misdirected";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_is_matched_literally_and_a_wildcard_for_one_label() {
        let pattern = |text: &str| pattern(&Identifier::Dns(text.into()));
        assert_eq!(pattern("a.example").unwrap().as_str(), r"~*^a\.example\.? ");
        assert_eq!(
            pattern("*.a.example").unwrap().as_str(),
            r"~*^[^. ]+\.a\.example\.? "
        );
        assert_eq!(pattern("a|b"), Err(TokenError::Character('|')));
    }
}
