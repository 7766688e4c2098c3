//! P: which peers are proxies in front of nginx, and what they say of the visitor.

use crate::certificate::internal::scope::Subtree;
use crate::diagnostic::Located;
use crate::yaml::{Fields, Problems, quoted};

/// `set_real_ip_from` and `real_ip_header` of every vhost (ngx_http_realip_module).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RealIp {
    /// Networks, as nginx writes them; at least one.
    pub from: Vec<String>,
    /// The request header that has the visitor's address.
    pub header: String,
}

/// The section `real_ip`; `None` where it names no peer.
pub(super) fn parse(mut fields: Fields, problems: &mut Problems) -> Option<RealIp> {
    let at = fields.at;
    let from = fields.strings("from", problems);
    let header = fields.string("header", problems);
    fields.finish(&[], problems);
    if from.is_empty() {
        let hint = "list the addresses or networks of the proxies in front of nginx";
        problems.add_with_hint(at, "`real_ip` has no `from`", Some(hint));
        return None;
    }
    let header = match header {
        None => DEFAULT_HEADER.to_owned(),
        Some(header) => self::header(header, problems)?,
    };
    let from = from.into_iter();
    Some(RealIp {
        from: from
            .filter_map(|network| self::network(network, problems))
            .collect(),
        header,
    })
}

fn network(text: Located<String>, problems: &mut Problems) -> Option<String> {
    let reason = match Subtree::parse(&text.value) {
        Ok(network @ Subtree::Network { .. }) => return Some(network.to_string()),
        Ok(Subtree::Zone(_)) => "not an address or a network".to_owned(),
        Err(error) => error.to_string(),
    };
    let reason = format!("{}: {reason}", quoted(&text.value));
    let hint = "a peer in these networks can claim any address: write 192.0.2.7 or 10.0.0.0/8";
    problems.add_with_hint(text.at, reason, Some(hint));
    None
}

fn header(text: Located<String>, problems: &mut Problems) -> Option<String> {
    let name = &text.value;
    let is_name = !name.is_empty()
        && name.len() <= MAXIMUM_HEADER
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    if is_name {
        return Some(text.value);
    }
    let reason = format!("{} is not the name of a request header", quoted(name));
    let hint = "as in X-Forwarded-For or CF-Connecting-IP";
    problems.add_with_hint(text.at, reason, Some(hint));
    None
}

const DEFAULT_HEADER: &str = "X-Forwarded-For";
const MAXIMUM_HEADER: usize = 64;
