//! P: the structs that the templates see, in nginx's words.
//!
//! Everything is decided here; a template lays out what is present. Every word is a finished
//! [`Token`], so that a placeholder is always one whole token.

mod asset;
mod base;
mod site;

pub use asset::AssetMap;
pub use base::{Base, DefaultHttp, DefaultHttps, Reserved};
pub use site::{Files, Proxy, Site};

use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;

use super::token::{Part, Token, TokenError};
use crate::desired::{
    CertificateFiles, DesiredTls, DesiredVhost, Features, HostFacts, Listener, Probe,
};
use crate::vhost::{ServerName, UpstreamAddress, VhostName};

/// One file of a generation: the vhosts of one app.
#[derive(Debug, Serialize)]
pub struct VhostFile {
    pub asset_maps: Vec<AssetMap>,
    pub upstreams: Vec<UpstreamBlock>,
    pub servers: Vec<ServerBlock>,
}

/// `upstream NAME { server ADDRESS; … }`
#[derive(Debug, Serialize)]
pub struct UpstreamBlock {
    pub name: Token,
    pub servers: Vec<Token>,
}

/// `server { … }` of a vhost.
#[derive(Debug, Serialize)]
pub struct ServerBlock {
    pub listen: Vec<Listen>,
    /// `http2 on;`, where that is this nginx's syntax.
    pub http2: bool,
    pub names: Vec<Token>,
    pub access_log: Token,
    pub keepalive_min_timeout: bool,
    pub tls: Option<Tls>,
    pub probe: ProbeLocation,
    /// `token.thumbprint` (RFC 8555 §8.3); plain HTTP only.
    pub challenge: Option<Token>,
    /// Answers that go before it.
    pub challenge_files: Option<ChallengeAnswers>,
    /// Where everything else goes, 301.
    pub redirect: Option<Token>,
    pub site: Option<Site>,
}

/// Files with answers to challenges of other account keys.
#[derive(Debug, Serialize)]
pub struct ChallengeAnswers {
    /// With the token that was asked for in it.
    pub path: Token,
    /// `from=DIRECTORY`: what is below it is no symbolic link.
    pub from: Token,
}

/// `listen ADDRESS [ssl] [http2]`
#[derive(Clone, Debug, Serialize)]
pub struct Listen {
    pub address: Token,
    pub ssl: bool,
    /// As a parameter, where `http2 on;` does not exist.
    pub http2: bool,
}

/// `ssl_certificate` and what belongs to it.
#[derive(Clone, Debug, Serialize)]
pub struct Tls {
    /// At least one; of each kind of key one at most.
    pub certificates: Vec<CertificatePair>,
    pub post_quantum: bool,
}

#[derive(Clone, Debug, Serialize)]
pub struct CertificatePair {
    pub chain: Token,
    pub key: Token,
}

/// `location = /.well-known/vhostd/SECRET`, answering `GENERATION VHOST`.
#[derive(Clone, Debug, Serialize)]
pub struct ProbeLocation {
    pub path: Token,
    pub answer: Token,
}

impl VhostFile {
    /// The blocks of `vhosts`, which are all of one app.
    pub fn new(host: &HostFacts, vhosts: &[&DesiredVhost]) -> Result<Self, TokenError> {
        let mut file = Self {
            asset_maps: Vec::new(),
            upstreams: Vec::new(),
            servers: Vec::new(),
        };
        for vhost in vhosts {
            file.asset_maps.extend(AssetMap::own(&vhost.spec)?);
            if !vhost.spec.upstreams.is_empty() {
                file.upstreams.push(upstream(vhost)?);
            }
            for names in [Names::Served, Names::Redirected] {
                for port in [Port::Http, Port::Https] {
                    file.servers.extend(server(host, vhost, names, port)?);
                }
            }
        }
        Ok(file)
    }
}

/// Which of a vhost's names a server block answers.
#[derive(Clone, Copy)]
enum Names {
    Served,
    Redirected,
}

/// Which of our ports a server block is on.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Port {
    Http,
    Https,
}

/// `None` where there are no such names, or no such port.
fn server(
    host: &HostFacts,
    vhost: &DesiredVhost,
    names: Names,
    port: Port,
) -> Result<Option<ServerBlock>, TokenError> {
    let answered: Vec<&ServerName> = match names {
        Names::Served => vhost
            .spec
            .server_names
            .iter()
            .map(|name| &name.value)
            .collect(),
        Names::Redirected => vhost
            .spec
            .redirect_from
            .iter()
            .map(|name| &name.value)
            .collect(),
    };
    let tls = match (port, &vhost.tls) {
        (Port::Http, _) => None,
        (Port::Https, DesiredTls::Off) => return Ok(None),
        (Port::Https, DesiredTls::On { files, .. }) => Some(Tls {
            certificates: files.iter().map(certificate).collect::<Result<_, _>>()?,
            post_quantum: host.features.post_quantum_curve,
        }),
    };
    if answered.is_empty() {
        return Ok(None);
    }
    let redirect = redirect(host, vhost, names, port)?;
    let site = match redirect {
        Some(_) => None,
        None => Some(site::site(host, vhost, port == Port::Https)?),
    };
    Ok(Some(ServerBlock {
        listen: match port {
            Port::Http => host
                .http
                .iter()
                .map(http_listen)
                .collect::<Result<_, _>>()?,
            Port::Https => https_listens(&host.https, host.features)?,
        },
        http2: port == Port::Https && host.features.http2_directive,
        names: answered
            .iter()
            .map(|name| Token::literal(name.as_str()))
            .collect::<Result<_, _>>()?,
        access_log: access_log(host, &vhost.spec.name)?,
        keepalive_min_timeout: host.features.keepalive_min_timeout,
        tls,
        probe: probe_location(&host.probe, &vhost.spec.name.to_string())?,
        challenge: match port {
            Port::Http => challenge(host)?,
            Port::Https => None,
        },
        challenge_files: match port {
            Port::Http => challenge_answers(host)?,
            Port::Https => None,
        },
        redirect,
        site,
    }))
}

/// Where a server block sends everything, if it does.
fn redirect(
    host: &HostFacts,
    vhost: &DesiredVhost,
    names: Names,
    port: Port,
) -> Result<Option<Token>, TokenError> {
    let trusted = matches!(vhost.tls, DesiredTls::On { trusted: true, .. });
    let to_https = port == Port::Https || trusted;
    let names_served = &vhost.spec.server_names;
    let exact = names_served
        .iter()
        .map(|name| &name.value)
        .find(|name| !name.is_wildcard());
    let target = match names {
        Names::Served if port == Port::Https || !trusted => return Ok(None),
        // every name of a vhost serves: the client keeps the one that it asked for
        Names::Served if names_served.len() > 1 => None,
        Names::Served => exact,
        // with wildcards alone there is nowhere to go, and the client's own name would be a loop
        Names::Redirected if exact.is_none() => return Ok(None),
        Names::Redirected => exact,
    };
    let (listeners, standard) = match to_https {
        true => (&host.https, HTTPS_PORT),
        false => (&host.http, HTTP_PORT),
    };
    let scheme = if to_https { "https://" } else { "http://" };
    let number = listeners
        .first()
        .map(|listener| listener.address.port())
        .filter(|number| *number != standard)
        .map(|number| number.to_string());
    let mut parts = vec![Part::Ours(scheme)];
    parts.push(match target {
        Some(name) => Part::Value(name.as_str()),
        None => Part::Ours("$host"),
    });
    if let Some(number) = &number {
        parts.extend([Part::Ours(":"), Part::Value(number)]);
    }
    parts.push(Part::Ours("$request_uri"));
    Token::expression(&parts).map(Some)
}

fn upstream(vhost: &DesiredVhost) -> Result<UpstreamBlock, TokenError> {
    let server = |address: &UpstreamAddress| match address {
        UpstreamAddress::Socket(address) => Token::literal(&address.to_string()),
        UpstreamAddress::Unix(path) => Token::literal(&format!("unix:{}", path_token(path)?)),
    };
    Ok(UpstreamBlock {
        name: Token::literal(&upstream_name(&vhost.spec.name))?,
        servers: vhost
            .spec
            .upstreams
            .iter()
            .map(|upstream| server(upstream.address()))
            .collect::<Result<_, _>>()?,
    })
}

/// What nginx calls the vhost's app.
pub(crate) fn upstream_name(name: &VhostName) -> String {
    format!("vhostd_{}", identifier(&name.to_string()))
}

/// An injective form of `name` in `[a-z0-9_]`, all that a variable's name may have; nginx compares
/// the names of upstreams and variables without case.
fn identifier(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => out.push(char::from(byte)),
            other => out.push_str(&format!("_{other:02x}")),
        }
    }
    out
}

fn probe_location(probe: &Probe, answerer: &str) -> Result<ProbeLocation, TokenError> {
    Ok(ProbeLocation {
        path: Token::literal(&format!("/.well-known/vhostd/{}", probe.secret))?,
        answer: Token::expression(&[Part::Ours("$vhostd_generation "), Part::Value(answerer)])?,
    })
}

fn challenge(host: &HostFacts) -> Result<Option<Token>, TokenError> {
    host.thumbprint
        .as_deref()
        .map(|thumbprint| Token::expression(&[Part::Ours("$1."), Part::Value(thumbprint)]))
        .transpose()
}

fn challenge_answers(host: &HostFacts) -> Result<Option<ChallengeAnswers>, TokenError> {
    let both = host.challenge_files.as_ref().zip(host.thumbprint.as_ref());
    let Some((directory, _)) = both else {
        return Ok(None);
    };
    let directory = path_token(directory)?;
    Ok(Some(ChallengeAnswers {
        path: Token::expression(&[Part::Value(directory.as_str()), Part::Ours("/$1")])?,
        from: Token::literal(&format!("from={directory}"))?,
    }))
}

fn access_log(host: &HostFacts, name: &VhostName) -> Result<Token, TokenError> {
    path_token(&host.access_log(name))
}

fn http_listen(listener: &Listener) -> Result<Listen, TokenError> {
    Ok(Listen {
        address: address_token(listener.address)?,
        ssl: false,
        http2: false,
    })
}

fn https_listens(listeners: &[Listener], features: Features) -> Result<Vec<Listen>, TokenError> {
    listeners
        .iter()
        .map(|listener| {
            Ok(Listen {
                address: address_token(listener.address)?,
                ssl: true,
                http2: !features.http2_directive,
            })
        })
        .collect()
}

fn certificate(files: &CertificateFiles) -> Result<CertificatePair, TokenError> {
    Ok(CertificatePair {
        chain: path_token(&files.chain)?,
        key: path_token(&files.key)?,
    })
}

fn address_token(address: SocketAddr) -> Result<Token, TokenError> {
    Token::literal(&address.to_string())
}

/// A relative path would be nginx's to resolve, and `engine:` or `syslog:` a language of its own.
pub(super) fn path_token(path: &Path) -> Result<Token, TokenError> {
    if !path.is_absolute() {
        return Err(TokenError::NotAbsolute);
    }
    Token::literal(path.to_str().ok_or(TokenError::NotUtf8)?)
}

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_injective_even_without_case() {
        let names = ["a", "A", "a_", "a_5f", "a#1", "a.1", "a-1", "_41", "a1"];
        let mut identifiers: Vec<String> = names
            .iter()
            .map(|name| identifier(name).to_ascii_lowercase())
            .collect();
        assert!(identifiers.iter().all(|text| {
            text.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        }));
        identifiers.sort();
        identifiers.dedup();
        assert_eq!(identifiers.len(), names.len());
    }

    #[test]
    fn a_path_is_absolute() {
        assert_eq!(
            path_token(Path::new("engine:x")),
            Err(TokenError::NotAbsolute)
        );
        assert!(path_token(Path::new("/x y")).is_ok());
    }
}
