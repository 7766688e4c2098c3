//! P: the structs that the templates see, in nginx's words.
//!
//! Everything is decided here; a template lays out what is present. Every word is a finished
//! [`Token`], so that a placeholder is always one whole token.

mod asset;
mod base;
mod challenge;
mod misdirected;
mod redirect;
mod site;

pub use asset::{AssetMap, CacheControl};
pub use base::{Base, DefaultHttp, DefaultHttps, Hops, HttpsPort, Reserved};
pub use challenge::{ChallengeFile, ChallengeLocation};
pub use misdirected::MisdirectedMap;
pub use site::{Files, MediaType, Proxy, ProxyLocation, Site};

use std::net::SocketAddr;
use std::path::Path;

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::token::{Part, Token, TokenError};
use crate::desired::{
    CertificateFiles, DesiredTls, DesiredVhost, Features, HostFacts, Listener, Probe,
};
use crate::settings::RealIp;
use crate::vhost::{ServerName, UpstreamAddress, VhostName};

/// One file of a generation: the vhosts of one app.
#[derive(Debug, Serialize)]
pub struct VhostFile {
    pub asset_maps: Vec<AssetMap>,
    pub misdirected_maps: Vec<MisdirectedMap>,
    pub upstreams: Vec<UpstreamBlock>,
    pub servers: Vec<ServerBlock>,
}

/// `upstream NAME { server ADDRESS FAILURES; … }`
#[derive(Debug, Serialize)]
pub struct UpstreamBlock {
    pub name: Token,
    pub servers: Vec<UpstreamServer>,
}

#[derive(Debug, Serialize)]
pub struct UpstreamServer {
    pub address: Token,
    /// How long nginx asks only the others after a failure: not at all on this host, where asking
    /// again costs nothing; else for a second, because a host that is gone costs a timeout.
    pub failures: Token,
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
    pub real_ip: Option<RealIpTokens>,
    pub tls: Option<Tls>,
    pub probe: ProbeLocation,
    /// On both ports: a CA follows redirects to HTTPS.
    pub challenge: Option<ChallengeLocation>,
    /// Where everything else goes: 301, and 308 for methods that may have a body.
    pub redirect: Option<Token>,
    pub site: Option<Site>,
}

/// `listen ADDRESS [ssl] [http2]`
#[derive(Clone, Debug, Serialize)]
pub struct Listen {
    pub address: Token,
    pub ssl: bool,
    /// As a parameter, where `http2 on;` does not exist.
    pub http2: bool,
}

/// `set_real_ip_from FROM; …; real_ip_header HEADER;`
#[derive(Clone, Debug, Serialize)]
pub struct RealIpTokens {
    pub from: Vec<Token>,
    pub header: Token,
}

/// `ssl_certificate` and what belongs to it.
#[derive(Clone, Debug, Serialize)]
pub struct Tls {
    /// At least one; of each kind of key one at most.
    pub certificates: Vec<CertificatePair>,
    pub curves: Token,
    /// The variable that is set for a request of another host than the handshake's.
    pub misdirected: Token,
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
            misdirected_maps: Vec::new(),
            upstreams: Vec::new(),
            servers: Vec::new(),
        };
        for vhost in vhosts {
            file.asset_maps.extend(AssetMap::own(&vhost.spec)?);
            file.misdirected_maps.extend(MisdirectedMap::own(vhost)?);
            if !vhost.spec.upstreams.is_empty() {
                file.upstreams.push(upstream(vhost)?);
            }
            for names in [Names::Served, Names::Uncovered, Names::Redirected] {
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
    /// Those that are served on plain HTTP, because the certificate is not good for them. On HTTPS
    /// they are in the first block.
    Uncovered,
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
    let served = vhost.spec.server_names.iter().map(|name| &name.value);
    let answered: Vec<&ServerName> = match names {
        Names::Served if port == Port::Https => served.collect(),
        Names::Served => served.filter(|name| !is_uncovered(vhost, name)).collect(),
        Names::Uncovered if port == Port::Https => return Ok(None),
        Names::Uncovered => served.filter(|name| is_uncovered(vhost, name)).collect(),
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
            curves: curves(host.features)?,
            misdirected: misdirected::misdirected(vhost)?,
        }),
    };
    if answered.is_empty() {
        return Ok(None);
    }
    let redirect = redirect::redirect(vhost, names, port)?;
    let site = match redirect {
        Some(_) => None,
        None => Some(site::site(host, vhost)?),
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
        real_ip: host.real_ip.as_ref().map(real_ip).transpose()?,
        tls,
        probe: probe_location(&host.probe, &vhost.spec.name.to_string())?,
        challenge: ChallengeLocation::for_vhost(host, vhost)?,
        redirect,
        site,
    }))
}

/// Whether HTTPS would show a certificate that is not good for it, while others of the vhost have one.
fn is_uncovered(vhost: &DesiredVhost, name: &ServerName) -> bool {
    match &vhost.tls {
        DesiredTls::Off => false,
        DesiredTls::On { uncovered, .. } => uncovered.contains(name),
    }
}

fn upstream(vhost: &DesiredVhost) -> Result<UpstreamBlock, TokenError> {
    let server = |address: &UpstreamAddress| {
        let (address, local) = match address {
            UpstreamAddress::Socket(address) => (address.to_string(), address.ip().is_loopback()),
            UpstreamAddress::Unix(path) => (format!("unix:{}", path_token(path)?), true),
        };
        Ok(UpstreamServer {
            address: Token::literal(&address)?,
            failures: Token::literal(if local {
                "max_fails=0"
            } else {
                "fail_timeout=1s"
            })?,
        })
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

/// The beginning of the SHA-256 of `text`, in hex: `bytes` bytes of it.
fn short_digest(text: &str, bytes: usize) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let digest = digest.iter().take(bytes);
    digest.map(|byte| format!("{byte:02x}")).collect()
}

fn probe_location(probe: &Probe, answerer: &str) -> Result<ProbeLocation, TokenError> {
    Ok(ProbeLocation {
        path: Token::literal(&format!("/.well-known/vhostd/{}", probe.secret))?,
        answer: Token::expression(&[Part::Ours("$vhostd_generation "), Part::Value(answerer)])?,
    })
}

/// Mozilla's intermediate curves, after the post-quantum one where this nginx has it.
fn curves(features: Features) -> Result<Token, TokenError> {
    Token::literal(match features.post_quantum_curve {
        true => "X25519MLKEM768:X25519:prime256v1:secp384r1",
        false => "X25519:prime256v1:secp384r1",
    })
}

fn real_ip(real_ip: &RealIp) -> Result<RealIpTokens, TokenError> {
    Ok(RealIpTokens {
        from: networks(real_ip)?,
        header: Token::literal(&real_ip.header)?,
    })
}

fn networks(real_ip: &RealIp) -> Result<Vec<Token>, TokenError> {
    let from = real_ip.from.iter();
    from.map(|network| Token::literal(network)).collect()
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
                http2: listener.http2 && !features.http2_directive,
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
