//! P: where a server block sends all requests, if it does.

use super::{Names, Port, is_uncovered};
use crate::desired::{DesiredTls, DesiredVhost};
use crate::render::token::{Part, Token, TokenError};
use crate::vhost::ServerName;

/// `None` where the block serves the vhost itself.
///
/// The port is the one that the client named: behind a forwarded port nginx's own is another one.
pub(super) fn redirect(
    vhost: &DesiredVhost,
    names: Names,
    port: Port,
) -> Result<Option<Token>, TokenError> {
    let trusted = matches!(vhost.tls, DesiredTls::On { trusted: true, .. });
    let target: Option<&ServerName> = match names {
        Names::Served if port == Port::Https || !trusted => return Ok(None),
        Names::Uncovered => return Ok(None),
        // every name of a vhost serves: the client keeps the one that it asked for
        Names::Served if vhost.spec.server_names.len() > 1 => None,
        Names::Served => Some(vhost.spec.canonical()).filter(|name| !name.is_wildcard()),
        Names::Redirected => Some(vhost.spec.redirect_target()),
    };
    let covered = |name| trusted && !is_uncovered(vhost, name);
    let to_https = matches!(names, Names::Served) || target.is_some_and(covered);
    let (scheme, number) = match (port, to_https) {
        (Port::Https, _) => ("https://", "$vhostd_host_port"),
        (Port::Http, true) => ("https://", "$vhostd_https_port"),
        (Port::Http, false) => ("http://", "$vhostd_host_port"),
    };
    let host = match target {
        Some(name) => Part::Value(name.as_str()),
        None => Part::Ours("$host"),
    };
    let parts = [
        Part::Ours(scheme),
        host,
        Part::Ours(number),
        Part::Ours("$request_uri"),
    ];
    Token::expression(&parts).map(Some)
}
