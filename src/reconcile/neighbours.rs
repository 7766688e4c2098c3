//! P: what the hand-written sites mean for us: which sockets we listen on, where we own the answer
//! to unknown names, which names are taken.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::desired::{DefaultServerOf, Entrance, Entrances, Listener, UnsetHttpDirectives};
use crate::nginx::dump::{HandWrittenListen, HandWrittenServer, ListenSocket, Survey};
use crate::settings::{DefaultServer, NginxSettings, Settings};
use crate::vhost::ServerName;

/// The listeners at `port`. `has_ipv6`: whether the host has any IPv6 address.
pub fn listeners(
    settings: &NginxSettings,
    survey: &Survey,
    has_ipv6: bool,
    port: u16,
) -> Vec<Listener> {
    let all = || {
        let v6 = has_ipv6.then_some(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        let v4 = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        std::iter::once(v4).chain(v6).collect()
    };
    let addresses: Vec<IpAddr> = settings.listen.clone().unwrap_or_else(all);
    addresses
        .into_iter()
        .map(|address| {
            let address = SocketAddr::new(address, port);
            let default_server = match settings.default_server {
                DefaultServer::On => true,
                DefaultServer::Off => false,
                DefaultServer::Auto => default_server(survey, address).is_none(),
            };
            Listener {
                address,
                default_server,
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
            false => match default_server(survey, listener.address) {
                Some(place) => DefaultServerOf::HandWritten(place),
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

/// The hand-written default server of that very socket, as `path:line`.
pub fn default_server(survey: &Survey, socket: SocketAddr) -> Option<String> {
    survey
        .servers
        .iter()
        .find(|server| {
            let mut listens = server.listens.iter();
            listens.any(|listen| listen.default_server && socket_of(listen) == Some(socket))
        })
        .map(place)
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
    let ours = [settings.http_port, settings.https_port];
    let mut names = BTreeMap::new();
    for server in &survey.servers {
        let shares = |listen: &HandWrittenListen| match &listen.socket {
            ListenSocket::Tcp { port, .. } | ListenSocket::Name { port, .. } => ours.contains(port),
            ListenSocket::Unix(_) => false,
        };
        if !server.listens.iter().any(shares) {
            continue;
        }
        // what is no plain name (a regular expression, `_`) cannot be a vhost's either
        for name in server.names.iter().flat_map(|name| plain_names(name)) {
            names.entry(name).or_insert_with(|| place(server));
        }
    }
    names
}

/// `.zone` is nginx's way to write `zone` and `*.zone`.
fn plain_names(name: &str) -> Vec<ServerName> {
    let texts = match name.strip_prefix('.') {
        Some(zone) => vec![zone.to_owned(), format!("*.{zone}")],
        None => vec![name.to_owned()],
    };
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// Whether a hand-written server answers any name at all, by being first rather than by saying so.
pub fn is_implicit_catch_all(server: &HandWrittenServer) -> bool {
    let nameless = server
        .names
        .iter()
        .all(|name| matches!(name.as_str(), "_" | "" | "localhost"));
    nameless
        && server
            .listens
            .iter()
            .any(|listen| !listen.default_server && socket_of(listen).is_some())
}

pub fn unset_http_directives(survey: &Survey) -> UnsetHttpDirectives {
    let unset = |directive: &str| !survey.http_directives.contains(directive);
    UnsetHttpDirectives {
        server_names_hash_bucket_size: unset("server_names_hash_bucket_size"),
        server_names_hash_max_size: unset("server_names_hash_max_size"),
    }
}

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
