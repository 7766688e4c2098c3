//! P: what the hand-written sites mean for us: which sockets we listen on, where we own the answer
//! to unknown names, which names are taken.

pub mod advice; // P what the admin is to know or to change about them

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::desired::{DefaultServerOf, Entrance, Entrances, Listener, NamePattern};
use crate::nginx::dump::{HandWrittenListen, HandWrittenServer, ListenSocket, Survey};
use crate::nginx::names_hash;
use crate::settings::{DefaultServer, NginxSettings, Settings};
use crate::vhost::ServerName;

/// The listeners at `port`. `has_ipv6`: whether the host has any IPv6 address.
pub fn listeners(
    settings: &NginxSettings,
    survey: &Survey,
    has_ipv6: bool,
    port: u16,
) -> Vec<Listener> {
    let addresses = settings.addresses(has_ipv6);
    addresses
        .into_iter()
        .map(|address| {
            let address = SocketAddr::new(address, port);
            let default_server = match settings.default_server {
                DefaultServer::On => true,
                DefaultServer::Off => false,
                DefaultServer::Auto => default_site(survey, address).is_none_or(|it| !it.stays()),
            };
            Listener {
                address,
                default_server,
                http2: without_http2(survey, address).is_none(),
            }
        })
        .collect()
}

/// Who answers clients of an address over HTTPS.
pub fn entrances(settings: &Settings, survey: &Survey, has_ipv6: bool) -> Entrances {
    let nginx = &settings.nginx;
    let ours = listeners(nginx, survey, has_ipv6, nginx.https_port);
    let entrance = |listener: &Listener| Entrance {
        socket: listener.address,
        default_server: match listener.default_server {
            true => DefaultServerOf::Us,
            false => match default_site(survey, listener.address).filter(DefaultSite::stays) {
                Some(site) if site.explicit => DefaultServerOf::HandWritten(site.place),
                Some(site) => DefaultServerOf::FirstHandWritten(site.place),
                None => DefaultServerOf::Nobody,
            },
        },
    };
    let sockets: Vec<SocketAddr> = ours.iter().map(|listener| listener.address).collect();
    Entrances {
        ours: ours.iter().map(entrance).collect(),
        taken: takers(survey, &sockets),
        tls: settings.tls_defaults(),
        kept: Vec::new(),
    }
}

/// The hand-written server that gets a socket's unknown names, or got them before vhostd came.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct DefaultSite {
    /// `path:line`
    pub place: String,
    /// It says `default_server`; else it is the first of the hand-written ones.
    pub explicit: bool,
    /// nginx reads it before our files.
    pub read_first: bool,
}

impl DefaultSite {
    /// Whether it gets unknown names as long as no listener of ours says `default_server`.
    pub fn stays(&self) -> bool {
        self.explicit || self.read_first
    }
}

/// That of `socket`: nginx takes the first server unless one says `default_server`.
pub fn default_site(survey: &Survey, socket: SocketAddr) -> Option<DefaultSite> {
    let sites: Vec<(usize, bool)> = survey
        .servers
        .iter()
        .enumerate()
        .filter_map(|(index, server)| {
            let mut here = listens_at(server, socket).peekable();
            here.peek()?;
            Some((index, here.any(|listen| listen.default_server)))
        })
        .collect();
    let explicit = sites.iter().find(|(_, explicit)| *explicit);
    let (index, explicit) = explicit.or(sites.first()).copied()?;
    Some(DefaultSite {
        place: place(&survey.servers[index]),
        explicit,
        read_first: index < survey.read_first,
    })
}

/// The first hand-written site of `socket`, as `path:line`, where those have no `http2`: before nginx
/// 1.25.1 ours would switch it on for them, too.
pub fn without_http2(survey: &Survey, socket: SocketAddr) -> Option<String> {
    let mut sites = survey
        .servers
        .iter()
        .filter(|server| listens_at(server, socket).next().is_some())
        .peekable();
    let first = place(sites.peek()?);
    let has = sites.any(|server| listens_at(server, socket).any(|listen| listen.http2));
    (!has).then_some(first)
}

fn listens_at(
    server: &HandWrittenServer,
    socket: SocketAddr,
) -> impl Iterator<Item = &HandWrittenListen> {
    let listens = server.listens.iter();
    listens.filter(move |listen| socket_of(listen) == Some(socket))
}

/// Hand-written sockets that take requests for one address away from a wildcard socket of ours.
pub fn takers(survey: &Survey, ours: &[SocketAddr]) -> Vec<(SocketAddr, String)> {
    let mut takers = Vec::new();
    for server in &survey.servers {
        for socket in server.listens.iter().filter_map(socket_of) {
            let taken = !socket.ip().is_unspecified()
                && !ours.contains(&socket)
                && ours.iter().any(|our| {
                    our.port() == socket.port()
                        && our.ip().is_unspecified()
                        && our.is_ipv4() == socket.is_ipv4()
                });
            if taken {
                takers.push((socket, place(server)));
            }
        }
    }
    takers
}

/// The exact names that hand-written sites serve on one of our ports, with `path:line`.
pub fn names(survey: &Survey, settings: &NginxSettings) -> BTreeMap<ServerName, String> {
    let mut names = BTreeMap::new();
    let servers = survey.servers.iter();
    for server in servers.filter(|server| shares(server, settings)) {
        // what is no plain name (a regular expression, `_`) cannot be a vhost's either
        for name in server.names.iter().flat_map(|name| plain_names(name)) {
            names.entry(name).or_insert_with(|| place(server));
        }
    }
    names
}

/// The hand-written names on our ports that stand for many; an error: one that is not understood.
pub fn patterns(
    survey: &Survey,
    settings: &NginxSettings,
) -> impl Iterator<Item = Result<NamePattern, String>> {
    let servers = survey.servers.iter();
    let servers = servers.filter(|server| shares(server, settings));
    servers.flat_map(|server| {
        let place = place(server);
        let names = server.names.iter();
        let patterns = names.filter_map(move |name| {
            let parsed = NamePattern::parse(name, &place)?;
            Some(parsed.map_err(|_| {
                format!(
                    "vhostd does not understand the regular expression `{name}` at {place}: names that it matches are not protected from vhost files"
                )
            }))
        });
        patterns.collect::<Vec<_>>()
    })
}

/// Those that are understood.
pub fn name_patterns(survey: &Survey, settings: &NginxSettings) -> Vec<NamePattern> {
    patterns(survey, settings).filter_map(Result::ok).collect()
}

/// Whether a hand-written site is on one of our ports.
fn shares(server: &HandWrittenServer, settings: &NginxSettings) -> bool {
    let ours = [settings.http_port, settings.https_port];
    let mut listens = server.listens.iter();
    listens.any(|listen| match &listen.socket {
        ListenSocket::Tcp { port, .. } | ListenSocket::Name { port, .. } => ours.contains(port),
        ListenSocket::Unix(_) => false,
    })
}

/// `.zone` is nginx's way to write `zone` and `*.zone`.
fn plain_names(name: &str) -> Vec<ServerName> {
    let texts = match name.strip_prefix('.') {
        Some(zone) => vec![zone.to_owned(), format!("*.{zone}")],
        None => vec![name.to_owned()],
    };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// The `server_names_hash_bucket_size` that we have to set for `ours`; `None` where nginx's default
/// suffices, or a hand-written file says it. Hand-written names are in the same hash.
pub fn names_hash_bucket_size<'a>(
    survey: &'a Survey,
    settings: &NginxSettings,
    ours: impl Iterator<Item = &'a str>,
) -> Option<usize> {
    if survey.http_directives.contains(HASH_BUCKET_SIZE) {
        return None;
    }
    let sharing = survey
        .servers
        .iter()
        .filter(|server| shares(server, settings));
    let theirs = sharing.flat_map(|server| server.names.iter().map(String::as_str));
    names_hash::bucket_size(ours.chain(theirs))
}

pub const HASH_BUCKET_SIZE: &str = "server_names_hash_bucket_size";

fn socket_of(listen: &HandWrittenListen) -> Option<SocketAddr> {
    match &listen.socket {
        ListenSocket::Tcp { address, port } => {
            let address = address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
            Some(SocketAddr::new(address, *port))
        }
        ListenSocket::Name { .. } | ListenSocket::Unix(_) => None,
    }
}

fn place(server: &HandWrittenServer) -> String {
    format!("{}:{}", server.file.display(), server.line)
}

#[cfg(test)]
mod tests;
