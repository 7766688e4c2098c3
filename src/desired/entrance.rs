//! P: who answers a client that names no host.
//!
//! For an address no client sends a name in its handshake (RFC 6066 §3), so nginx takes the
//! certificate of the default server of the socket where the client arrives, and only then finds the
//! vhost by the Host header. So each socket speaks with one certificate for all of its addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::{CertificateFiles, DesiredState, DesiredTls};
use crate::certificate::{CertificateName, Identifier};
use crate::vhost::{App, ServerName, TlsDefaults};

/// One HTTPS socket of ours.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entrance {
    pub socket: SocketAddr,
    pub default_server: DefaultServerOf,
}

/// Whose the default server of a socket is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum DefaultServerOf {
    /// A hand-written site, `path:line`.
    HandWritten(String),
    /// The first hand-written site of the socket, `path:line`, which says nothing of it.
    FirstHandWritten(String),
    /// `nginx.default_server` is off.
    Nobody,
    Us,
}

/// All of them, and what else decides which certificate a client of an address gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Entrances {
    pub ours: Vec<Entrance>,
    /// Hand-written sockets of one address, which take it away from ours; `path:line`.
    pub taken: Vec<(SocketAddr, String)>,
    /// What a vhost has that says nothing of TLS.
    pub tls: TlsDefaults,
    /// Addresses of apps that ask for nothing any more and serve on as they do.
    pub kept: Vec<ServerName>,
}

/// A reason and a hint.
pub(super) type Objection = (String, &'static str);

/// Those of `sockets` where clients of `address` arrive: its own, else the wildcard of its kind, else
/// any of its kind (behind a translation of addresses).
pub fn arrivals(address: IpAddr, sockets: &[SocketAddr]) -> Vec<SocketAddr> {
    let mut alike: Vec<SocketAddr> = sockets.to_vec();
    alike.retain(|socket| socket.is_ipv4() == address.is_ipv4());
    for own in [address, unspecified(address)] {
        if alike.iter().any(|socket| socket.ip() == own) {
            alike.retain(|socket| socket.ip() == own);
        }
    }
    alike
}

fn unspecified(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
    }
}

/// The certificates with which the default server of `socket` speaks for an address; none where no
/// address is reached there.
pub(crate) fn spoken_at(
    socket: SocketAddr,
    sockets: &[SocketAddr],
    desired: &DesiredState,
) -> Vec<CertificateFiles> {
    let here = |address: &IpAddr| arrivals(*address, sockets).contains(&socket);
    let mut files = desired.vhosts.iter().filter_map(|vhost| match &vhost.tls {
        DesiredTls::Off => None,
        DesiredTls::On { files, .. } => {
            let mut names = vhost.spec.all_names();
            let any = names.any(|name| address_of(&name.value).is_some_and(|it| here(&it)));
            any.then(|| files.clone())
        }
    });
    let kept = || {
        let mut kept = desired.kept.iter();
        let found = kept.find(|(address, _)| here(address));
        found.map(|(_, files)| files.clone())
    };
    files.next().unwrap_or_else(|| kept().into_iter().collect())
}

fn address_of(name: &ServerName) -> Option<IpAddr> {
    match name.to_identifier() {
        Identifier::Ip(address) => Some(address),
        Identifier::Dns(_) => None,
    }
}

/// The addresses that `app` serves over TLS, each with its certificate.
pub(super) fn addressed(app: &App, tls: &TlsDefaults) -> BTreeMap<ServerName, CertificateName> {
    let names = || app.vhosts.iter().flat_map(|vhost| vhost.all_names());
    // nearly all apps have none
    if !names().any(|name| name.value.is_address()) {
        return BTreeMap::new();
    }
    let mut addressed = BTreeMap::new();
    for (vhost, wanted) in app.vhosts.iter().zip(super::wanted(app, tls)) {
        let Some(wanted) = wanted.into_iter().next() else {
            continue;
        };
        let addresses = vhost.all_names().filter(|name| name.value.is_address());
        addressed.extend(addresses.map(|name| (name.value.clone(), wanted.name.clone())));
    }
    addressed
}

impl Entrances {
    /// What keeps a client of `name` from getting its certificate; `None` also for what is no address.
    pub(super) fn against(&self, name: &ServerName) -> Option<Objection> {
        let address = address_of(name)?;
        let arrivals = self.arrivals(address);
        let taken = self.taken.iter().find(|(socket, _)| {
            let ports = self.ours.iter().map(|ours| ours.socket.port());
            socket.ip() == address && ports.into_iter().any(|port| port == socket.port())
        });
        if let Some((socket, place)) = taken {
            let reason = format!(
                "{place} listens on {socket} itself, so nginx gives it every request for `{name}`"
            );
            return Some((reason, TAKEN_HINT));
        }
        if arrivals.is_empty() {
            let kind = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            let reason = format!("vhostd listens on no {kind} address, and `{name}` is one");
            return Some((reason, LISTEN_HINT));
        }
        let ours = self.ours.iter();
        let mut here = ours.filter(|entrance| arrivals.contains(&entrance.socket));
        let foreign = here.find_map(|Entrance { socket, default_server }| {
            let why = format!(
                "a client of `{name}` names no host, so it gets the certificate of the default server of {socket}"
            );
            match default_server {
                DefaultServerOf::Us => None,
                DefaultServerOf::HandWritten(place) => {
                    Some((format!("{why}, which is at {place}"), HAND_WRITTEN_HINT))
                }
                DefaultServerOf::FirstHandWritten(place) => {
                    Some((format!("{why}, which is at {place}, the first there"), FIRST_HINT))
                }
                DefaultServerOf::Nobody => {
                    Some((format!("{why}, which is not vhostd's"), OFF_HINT))
                }
            }
        });
        let kept = || {
            let mut kept = self.kept.iter().filter(|kept| *kept != name);
            let other = kept.find(|kept| self.shared(name, kept).is_some())?;
            let reason = format!(
                "clients of `{name}` name no host, and can only get the certificate of `{other}`, which serves on though its file is rejected"
            );
            Some((reason, SHARED_HINT))
        };
        foreign.or_else(kept)
    }

    /// Where clients of both addresses arrive.
    pub(super) fn shared(&self, one: &ServerName, other: &ServerName) -> Option<SocketAddr> {
        let (one, other) = (address_of(one)?, address_of(other)?);
        let others = self.arrivals(other);
        let mut shared = self.arrivals(one).into_iter();
        shared.find(|socket| others.contains(socket))
    }

    /// Where clients of an address arrive; nowhere for what is no address.
    pub(super) fn arrivals_of(&self, name: &ServerName) -> Vec<SocketAddr> {
        address_of(name).map_or_else(Vec::new, |address| self.arrivals(address))
    }

    fn arrivals(&self, address: IpAddr) -> Vec<SocketAddr> {
        let sockets: Vec<SocketAddr> = self.ours.iter().map(|ours| ours.socket).collect();
        arrivals(address, &sockets)
    }
}

pub(super) const SHARED_HINT: &str = "give all addresses to one vhost, or list them under `nginx.listen`, so that each has a socket of its own";
const HAND_WRITTEN_HINT: &str = "take `default_server` out of that `listen`, which vhostd does not touch, or set `tls: off` for this vhost";
const FIRST_HINT: &str = "set `nginx.default_server: on` if vhostd may have that socket's unknown names, or `tls: off` for this vhost";
const LISTEN_HINT: &str = "add it to `nginx.listen`, or set `tls: off` for this vhost";
const OFF_HINT: &str = "set `nginx.default_server: auto`, or `tls: off` for this vhost";
const TAKEN_HINT: &str =
    "take the address out of that `listen`, which vhostd does not touch, or out of this file";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vhost::TlsMode;

    fn sockets(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn clients_arrive_at_the_addresss_own_socket_or_at_the_wildcard_of_its_kind() {
        let all = ["0.0.0.0:443", "[::]:443", "192.0.2.7:443"];
        let at = |address: &str, all: &[&str]| arrivals(address.parse().unwrap(), &sockets(all));
        assert_eq!(at("192.0.2.7", &all), sockets(&["192.0.2.7:443"]));
        assert_eq!(at("192.0.2.8", &all), sockets(&["0.0.0.0:443"]));
        assert_eq!(at("2001:db8::7", &all), sockets(&["[::]:443"]));
        // a public address that is translated to one of these
        let private = ["10.0.0.5:443", "10.0.0.6:443"];
        assert_eq!(at("192.0.2.7", &private), sockets(&private));
        assert_eq!(at("2001:db8::7", &private), []);
    }

    #[test]
    fn a_default_server_that_is_not_ours_is_named() {
        let entrances = |default_server| Entrances {
            ours: vec![Entrance {
                socket: "0.0.0.0:443".parse().unwrap(),
                default_server,
            }],
            taken: vec![("192.0.2.9:443".parse().unwrap(), "/etc/nginx/y:7".into())],
            tls: TlsMode::Auto.into(),
            kept: vec!["192.0.2.10".parse().unwrap()],
        };
        let against = |of: DefaultServerOf, name: &str| {
            let objection = entrances(of).against(&name.parse().unwrap());
            objection.map(|(reason, _)| reason)
        };
        let by_hand = || DefaultServerOf::HandWritten("/etc/nginx/x:3".into());
        assert_eq!(
            against(by_hand(), "192.0.2.7").unwrap(),
            "a client of `192.0.2.7` names no host, so it gets the certificate of the default server of \
             0.0.0.0:443, which is at /etc/nginx/x:3"
        );
        assert!(
            against(DefaultServerOf::Nobody, "192.0.2.7")
                .unwrap()
                .ends_with("not vhostd's")
        );
        let kept = against(DefaultServerOf::Us, "192.0.2.7").unwrap();
        assert!(
            kept.contains("the certificate of `192.0.2.10`, which serves on"),
            "{kept}"
        );
        assert_eq!(against(DefaultServerOf::Us, "192.0.2.10"), None);
        assert_eq!(against(by_hand(), "a.example"), None);
        let taken = against(DefaultServerOf::Us, "192.0.2.9").unwrap();
        assert!(taken.starts_with("/etc/nginx/y:7 listens on 192.0.2.9:443 itself"));
        let none = against(DefaultServerOf::Us, "2001:db8::7").unwrap();
        assert!(none.starts_with("vhostd listens on no IPv6 address"));
    }
}
