//! P: what all vhosts share: maps, the answers to unknown names, the reserved name.

use std::net::SocketAddr;

use serde::Serialize;

use super::{
    AssetMap, CertificatePair, ChallengeAnswers, Listen, ProbeLocation, certificate, challenge,
    challenge_answers, http_listen, https_listens, probe_location,
};
use crate::desired::{
    CertificateFiles, DesiredState, HostFacts, Listener, RESERVED_NAME, spoken_at,
};
use crate::render::token::{Token, TokenError};

/// `base.conf`
#[derive(Debug, Serialize)]
pub struct Base {
    /// `server_names_hash_bucket_size`, where no hand-written file has it.
    pub hash_bucket_size: Option<Token>,
    /// `server_names_hash_max_size`, likewise.
    pub hash_max_size: Option<Token>,
    pub assets: AssetMap,
    pub default_http: Option<DefaultHttp>,
    /// One for each certificate that speaks for addresses, and one for the other sockets.
    pub default_https: Vec<DefaultHttps>,
    pub reserved: Reserved,
}

/// Unknown names on the ports for plain HTTP where the answer is ours.
#[derive(Debug, Serialize)]
pub struct DefaultHttp {
    pub listen: Vec<Listen>,
    pub challenge: Option<Token>,
    pub challenge_files: Option<ChallengeAnswers>,
}

/// Unknown names on the ports for HTTPS where the answer is ours.
#[derive(Debug, Serialize)]
pub struct DefaultHttps {
    pub listen: Vec<Listen>,
    pub http2: bool,
    /// For clients of an address, who name no host; none: the handshake is rejected.
    pub certificates: Vec<CertificatePair>,
    pub post_quantum: bool,
    /// The status for a request whose Host is not the name of its handshake.
    pub refusal: Token,
}

/// The reserved name, on every listener.
#[derive(Debug, Serialize)]
pub struct Reserved {
    pub listen: Vec<Listen>,
    pub http2: bool,
    pub name: Token,
    /// `None` while nothing listens for HTTPS.
    pub certificate: Option<CertificatePair>,
    pub probe: ProbeLocation,
}

impl Base {
    pub fn new(desired: &DesiredState) -> Result<Self, TokenError> {
        let host = &desired.host;
        let unset = host.unset_http_directives;
        Ok(Self {
            hash_bucket_size: number(unset.server_names_hash_bucket_size, HASH_BUCKET_SIZE)?,
            hash_max_size: number(unset.server_names_hash_max_size, hash_max_size(desired))?,
            assets: AssetMap::shared()?,
            default_http: default_http(host)?,
            default_https: default_https(desired)?,
            reserved: reserved(host)?,
        })
    }
}

fn default_http(host: &HostFacts) -> Result<Option<DefaultHttp>, TokenError> {
    let owned = owned(&host.http);
    if owned.is_empty() {
        return Ok(None);
    }
    Ok(Some(DefaultHttp {
        listen: owned.iter().map(http_listen).collect::<Result<_, _>>()?,
        challenge: challenge(host)?,
        challenge_files: challenge_answers(host)?,
    }))
}

fn default_https(desired: &DesiredState) -> Result<Vec<DefaultHttps>, TokenError> {
    let host = &desired.host;
    let sockets: Vec<SocketAddr> = host.https.iter().map(|it| it.address).collect();
    let mut groups: Vec<(Vec<CertificateFiles>, Vec<Listener>)> = Vec::new();
    for listener in owned(&host.https) {
        let files = spoken_at(listener.address, &sockets, desired);
        match groups.iter_mut().find(|(others, _)| *others == files) {
            Some((_, listeners)) => listeners.push(listener),
            None => groups.push((files, vec![listener])),
        }
    }
    let groups = groups.iter();
    groups
        .map(|(files, listeners)| default_https_of(host, files, listeners))
        .collect()
}

fn default_https_of(
    host: &HostFacts,
    files: &[CertificateFiles],
    listeners: &[Listener],
) -> Result<DefaultHttps, TokenError> {
    let rejects = host.features.ssl_reject_handshake;
    let (files, refusal) = match (files.is_empty(), rejects) {
        (true, true) => (files, MISDIRECTED),
        (true, false) => (std::slice::from_ref(&host.probe.certificate), CLOSE),
        (false, _) => (files, MISDIRECTED),
    };
    Ok(DefaultHttps {
        listen: https_listens(listeners, host.features)?,
        http2: host.features.http2_directive,
        certificates: files.iter().map(certificate).collect::<Result<_, _>>()?,
        post_quantum: host.features.post_quantum_curve,
        refusal: Token::literal(refusal)?,
    })
}

fn reserved(host: &HostFacts) -> Result<Reserved, TokenError> {
    let mut listen = host
        .http
        .iter()
        .map(http_listen)
        .collect::<Result<Vec<_>, _>>()?;
    listen.extend(https_listens(&host.https, host.features)?);
    let https = !host.https.is_empty();
    Ok(Reserved {
        listen,
        http2: https && host.features.http2_directive,
        name: Token::literal(RESERVED_NAME)?,
        certificate: match https {
            true => Some(certificate(&host.probe.certificate)?),
            false => None,
        },
        probe: probe_location(&host.probe, RESERVED_NAME)?,
    })
}

fn owned(listeners: &[Listener]) -> Vec<Listener> {
    listeners
        .iter()
        .copied()
        .filter(|listener| listener.default_server)
        .collect()
}

fn number(wanted: bool, value: usize) -> Result<Option<Token>, TokenError> {
    match wanted {
        true => Token::literal(&value.to_string()).map(Some),
        false => Ok(None),
    }
}

/// Grows in steps, so that the base file does not change with every name.
fn hash_max_size(desired: &DesiredState) -> usize {
    let names: usize = desired
        .vhosts
        .iter()
        .map(|vhost| vhost.spec.all_names().count())
        .sum();
    names.next_power_of_two().max(HASH_MAX_SIZE)
}

/// RFC 9110 §15.5.20: another server than the one of the handshake is asked for.
const MISDIRECTED: &str = "421";
/// nginx's own: the connection is closed without an answer.
const CLOSE: &str = "444";

/// A name of 253 characters needs 512; the default of 64 makes one of 47 fatal for everything.
const HASH_BUCKET_SIZE: usize = 512;
/// Quiet up to twenty thousand names.
const HASH_MAX_SIZE: usize = 16_384;
