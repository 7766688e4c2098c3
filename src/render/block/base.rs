//! P: what all vhosts share: maps, the answers to unknown names, the reserved name.

use std::net::SocketAddr;

use serde::Serialize;

use super::{
    AssetMap, CertificatePair, ChallengeLocation, Listen, ProbeLocation, certificate, curves,
    http_listen, https_listens, networks, probe_location, short_digest,
};
use crate::desired::{
    CertificateFiles, DesiredState, HostFacts, Listener, Probe, RESERVED_NAME, spoken_at,
};
use crate::render::token::{Part, Token, TokenError};

/// `base.conf`
#[derive(Debug, Serialize)]
pub struct Base {
    /// `server_names_hash_bucket_size`, where a name needs it and no hand-written file has it.
    pub hash_bucket_size: Option<Token>,
    /// The networks of the proxies in front of nginx; empty: there are none.
    pub trusted_peers: Vec<Token>,
    pub https_port: Option<HttpsPort>,
    pub hops: Hops,
    pub assets: AssetMap,
    pub default_http: Option<DefaultHttp>,
    /// One for each certificate that speaks for addresses, and one for the other sockets.
    pub default_https: Vec<DefaultHttps>,
    pub reserved: Reserved,
}

/// nginx's own ports, as a client writes them after a host (`:8080`), where a client that names the
/// one for plain HTTP finds HTTPS on another port than the standard one.
#[derive(Debug, Serialize)]
pub struct HttpsPort {
    pub http: Token,
    pub https: Token,
}

/// The value of `X-Vhostd-Hops`: a mark of this nginx for each time that it has passed a request on.
/// A few are right: an app may hand the headers of a request on to another vhost.
#[derive(Debug, Serialize)]
pub struct Hops {
    /// The pattern of a request in a circle.
    pub circle: Token,
    pub first: Token,
    pub further: Token,
}

/// Unknown names on the ports for plain HTTP where the answer is ours.
#[derive(Debug, Serialize)]
pub struct DefaultHttp {
    pub listen: Vec<Listen>,
    pub challenge: Option<ChallengeLocation>,
}

/// Unknown names on the ports for HTTPS where the answer is ours.
#[derive(Debug, Serialize)]
pub struct DefaultHttps {
    pub listen: Vec<Listen>,
    pub http2: bool,
    /// For clients of an address, who name no host; none: the handshake is rejected.
    pub certificates: Vec<CertificatePair>,
    pub curves: Token,
    /// Where it speaks for an address: a CA follows redirects to HTTPS.
    pub challenge: Option<ChallengeLocation>,
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
    pub curves: Token,
    pub probe: ProbeLocation,
}

impl Base {
    pub fn new(desired: &DesiredState) -> Result<Self, TokenError> {
        let host = &desired.host;
        let bucket_size = host.names_hash_bucket_size;
        Ok(Self {
            hash_bucket_size: bucket_size
                .map(|size| Token::literal(&size.to_string()))
                .transpose()?,
            trusted_peers: match &host.real_ip {
                Some(real_ip) => networks(real_ip)?,
                None => Vec::new(),
            },
            https_port: https_port(host)?,
            hops: hops(&host.probe)?,
            assets: AssetMap::shared()?,
            default_http: default_http(host)?,
            default_https: default_https(desired)?,
            reserved: reserved(host)?,
        })
    }
}

fn https_port(host: &HostFacts) -> Result<Option<HttpsPort>, TokenError> {
    let number = |listeners: &[Listener]| listeners.first().map(|first| first.address.port());
    let (Some(http), Some(https)) = (number(&host.http), number(&host.https)) else {
        return Ok(None);
    };
    if https == HTTPS_PORT {
        return Ok(None);
    }
    Ok(Some(HttpsPort {
        http: Token::literal(&format!(":{http}"))?,
        https: Token::literal(&format!(":{https}"))?,
    }))
}

/// The mark is made from the probe's secret and does not tell it.
fn hops(probe: &Probe) -> Result<Hops, TokenError> {
    let mark = short_digest(&format!("hops {}", probe.secret), 8);
    let circle = [Part::Ours("~(?:"), Part::Value(&mark), Part::Ours(".*){4}")];
    let further = [Part::Ours("$http_x_vhostd_hops "), Part::Value(&mark)];
    Ok(Hops {
        circle: Token::expression(&circle)?,
        first: Token::literal(&mark)?,
        further: Token::expression(&further)?,
    })
}

fn default_http(host: &HostFacts) -> Result<Option<DefaultHttp>, TokenError> {
    let owned = owned(&host.http);
    if owned.is_empty() {
        return Ok(None);
    }
    Ok(Some(DefaultHttp {
        listen: owned.iter().map(http_listen).collect::<Result<_, _>>()?,
        challenge: ChallengeLocation::for_unknown_names(host)?,
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
    let speaks = !files.is_empty();
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
        curves: curves(host.features)?,
        challenge: match speaks {
            true => ChallengeLocation::for_unknown_names(host)?,
            false => None,
        },
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
        curves: curves(host.features)?,
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

/// RFC 9110 §15.5.20: another server than the one of the handshake is asked for.
const MISDIRECTED: &str = "421";
const HTTPS_PORT: u16 = 443;
/// nginx's own: the connection is closed without an answer.
const CLOSE: &str = "444";
