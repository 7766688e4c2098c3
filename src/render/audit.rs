//! P: re-reads the rendered bytes with a second implementation of nginx's grammar.
//!
//! The tree must be the one that the blocks mean: what they decide is there once, in its place and
//! with its value, and nothing else is. Beside that stands only tuning that is on a list, and no
//! comment that the template does not have. Whatever a template or the quoter got wrong ends here.

mod meant; // P blocks → the tree that their file must have

use std::collections::BTreeSet;

use super::block::{Base, VhostFile};
use super::token::Token;
use crate::nginx::syntax::{self, Directive, SyntaxError};
use meant::Meant;

/// What is wrong with rendered bytes. Lines are those of the rendered file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuditError {
    /// A value could have come into it.
    #[error("line {line}: a comment that is not in the template as it is written")]
    Comment { line: usize },
    #[error("line {line}: the directive {name:?} is not one that vhostd renders")]
    Directive { line: usize, name: String },
    #[error("{place} lacks `{wanted}`")]
    Missing { place: String, wanted: String },
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error("line {line}: `{found}` in {place} is not what was meant")]
    Unasked {
        line: usize,
        place: String,
        found: String,
    },
}

/// Whether `bytes`, made by `template`, say what `base` means.
pub(super) fn base_file(bytes: &[u8], base: &Base, template: &str) -> Result<(), AuditError> {
    audit(bytes, &meant::base_file(base), Context::Top, template)
}

/// Whether `bytes`, made by `template`, say what `file` means.
pub(super) fn vhost_file(bytes: &[u8], file: &VhostFile, template: &str) -> Result<(), AuditError> {
    audit(bytes, &meant::vhost_file(file), Context::Top, template)
}

/// Whether the entry gives the number and includes exactly `files`, in this order.
pub(super) fn entry(
    bytes: &[u8],
    number: &Token,
    files: &[Token],
    template: &str,
) -> Result<(), AuditError> {
    let files: Vec<&str> = files.iter().map(Token::as_str).collect();
    let meant = meant::entry(number.as_str(), &files);
    audit(bytes, &meant, Context::Entry, template)
}

fn audit(
    bytes: &[u8],
    meant: &[Meant<'_>],
    context: Context,
    template: &str,
) -> Result<(), AuditError> {
    let (tree, comments) = syntax::parse_with_comments(bytes)?;
    compare(&tree, meant, context, "the file")?;
    let mut comments = comments.into_iter();
    match comments.find(|comment| !template.contains(&comment.text)) {
        Some(comment) => Err(AuditError::Comment { line: comment.line }),
        None => Ok(()),
    }
}

/// Where directives stand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Context {
    Entry,
    Location,
    /// `map` or `types`: its lines are values, in an order that counts; `include` would be one to
    /// nginx.
    Map,
    Server,
    Top,
    Upstream,
}

impl Context {
    /// Of the block that `name` opens here.
    fn inside(name: &str) -> Self {
        match name {
            "geo" | "map" | "types" => Self::Map,
            "upstream" => Self::Upstream,
            "if" | "location" => Self::Location,
            _ => Self::Server,
        }
    }

    /// What a template may say here beyond what the blocks mean.
    fn tuning(self) -> &'static [&'static str] {
        match self {
            Self::Entry | Self::Map | Self::Top => &[],
            Self::Location => LOCATION,
            Self::Server => SERVER,
            Self::Upstream => UPSTREAM,
        }
    }

    fn in_order(self) -> bool {
        matches!(self, Self::Entry | Self::Map)
    }
}

/// `place`: what the directives stand in, for messages.
fn compare(
    found: &[Directive],
    meant: &[Meant<'_>],
    context: Context,
    place: &str,
) -> Result<(), AuditError> {
    let headers: BTreeSet<(&str, String)> = meant
        .iter()
        .filter_map(|meant| header(&meant.words))
        .collect();
    let decided: Vec<&Directive> = found
        .iter()
        .filter_map(|directive| match judge(directive, &headers, context) {
            Ok(Standing::Tuning) => None,
            Ok(Standing::Decided) => Some(Ok(directive)),
            Err(error) => Some(Err(error)),
        })
        .collect::<Result<_, _>>()?;
    let (blocks, mut simple): (Vec<&Directive>, Vec<&Directive>) = decided
        .into_iter()
        .partition(|directive| directive.block.is_some());
    let (meant_blocks, mut meant_simple): (Vec<&Meant<'_>>, Vec<&Meant<'_>>) =
        meant.iter().partition(|meant| meant.block.is_some());
    if !context.in_order() {
        simple.sort_by(|left, right| words(left).cmp(words(right)));
        meant_simple.sort_by(|left, right| left.words.cmp(&right.words));
    }
    same(&simple, &meant_simple, place)?;
    same(&blocks, &meant_blocks, place)?;
    for (directive, meant) in blocks.into_iter().zip(meant_blocks) {
        let inside = meant.block.as_deref().unwrap_or_default();
        let context = Context::inside(&directive.name);
        compare(
            directive.children(),
            inside,
            context,
            &shown(words(directive)),
        )?;
    }
    Ok(())
}

enum Standing {
    /// By the blocks: compared.
    Decided,
    Tuning,
}

fn judge(
    directive: &Directive,
    headers: &BTreeSet<(&str, String)>,
    context: Context,
) -> Result<Standing, AuditError> {
    let name = directive.name.as_str();
    if context == Context::Map || DECIDED.binary_search(&name).is_ok() {
        return Ok(Standing::Decided);
    }
    // a header is tuning unless the blocks have a value for it
    let words: Vec<&str> = words(directive).collect();
    if header(&words).is_some_and(|header| headers.contains(&header)) {
        return Ok(Standing::Decided);
    }
    // so is an error page, unless it is a location of the blocks
    if name == "error_page" && words.last().is_some_and(|uri| uri.starts_with('@')) {
        return Ok(Standing::Decided);
    }
    if context.tuning().binary_search(&name).is_err() || directive.block.is_some() {
        let name = name.to_owned();
        let line = directive.line;
        return Err(AuditError::Directive { line, name });
    }
    Ok(Standing::Tuning)
}

/// The directive and the header, in lower case, where `words` give a header a value.
fn header<'a>(words: &[&'a str]) -> Option<(&'a str, String)> {
    match words {
        [name @ ("add_header" | "proxy_set_header"), header, _, ..] => {
            Some((name, header.to_ascii_lowercase()))
        }
        _ => None,
    }
}

/// Whether the words are the same, one by one.
fn same(found: &[&Directive], meant: &[&Meant<'_>], place: &str) -> Result<(), AuditError> {
    let equal =
        |directive: &Directive, meant: &Meant<'_>| words(directive).eq(meant.words.iter().copied());
    let pairs = found.iter().zip(meant);
    let agreeing = pairs
        .take_while(|(directive, meant)| equal(directive, meant))
        .count();
    let (found, meant) = (&found[agreeing..], &meant[agreeing..]);
    let missing = meant
        .first()
        .filter(|meant| !found.iter().any(|directive| equal(directive, meant)));
    match (found.first(), missing) {
        (None, None) => Ok(()),
        (Some(directive), None) => Err(AuditError::Unasked {
            line: directive.line,
            place: place.to_owned(),
            found: shown(words(directive)),
        }),
        (_, Some(meant)) => Err(AuditError::Missing {
            place: place.to_owned(),
            wanted: shown(meant.words.iter().copied()),
        }),
    }
}

fn words(directive: &Directive) -> impl Iterator<Item = &str> {
    let args = directive.args.iter().map(String::as_str);
    std::iter::once(directive.name.as_str()).chain(args)
}

/// Short, on one line.
fn shown<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<&str> = words
        .map(|word| if word.is_empty() { "\"\"" } else { word })
        .collect();
    let text = words.join(" ");
    let mut short: String = text
        .chars()
        .take(SHOWN_CHARACTERS)
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

const SHOWN_CHARACTERS: usize = 80;

/// What only the blocks decide: it is there as often and where they say. In alphabetical order, as
/// are the following.
const DECIDED: &[&str] = &[
    "access_log",
    "alias",
    "brotli_static",
    "disable_symlinks",
    "geo",
    "gzip_static",
    "http2",
    "if",
    "include",
    "listen",
    "location",
    "map",
    "open_file_cache",
    "proxy_pass",
    "proxy_ssl_name",
    "proxy_ssl_server_name",
    "real_ip_header",
    "real_ip_recursive",
    "return",
    "root",
    "server",
    "server_name",
    "server_names_hash_bucket_size",
    "set_real_ip_from",
    "ssl_certificate",
    "ssl_certificate_key",
    "ssl_reject_handshake",
    "try_files",
    "types",
    "upstream",
];

const UPSTREAM: &[&str] = &[
    "ip_hash",
    "keepalive",
    "keepalive_requests",
    "keepalive_timeout",
    "least_conn",
];

/// In a server: what the shipped templates use, and what an override may add without reaching
/// files, other servers or code.
const SERVER: &[&str] = &[
    "absolute_redirect",
    "add_header",
    "brotli",
    "client_body_timeout",
    "client_header_timeout",
    "client_max_body_size",
    "default_type",
    "error_page",
    "etag",
    "expires",
    "gzip",
    "gzip_comp_level",
    "gzip_min_length",
    "gzip_proxied",
    "gzip_types",
    "gzip_vary",
    "keepalive_min_timeout",
    "keepalive_requests",
    "keepalive_timeout",
    "large_client_header_buffers",
    "proxy_buffer_size",
    "proxy_buffering",
    "proxy_buffers",
    "proxy_busy_buffers_size",
    "proxy_connect_timeout",
    "proxy_headers_hash_bucket_size",
    "proxy_headers_hash_max_size",
    "proxy_hide_header",
    "proxy_http_version",
    "proxy_max_temp_file_size",
    "proxy_next_upstream",
    "proxy_read_timeout",
    "proxy_redirect",
    "proxy_request_buffering",
    "proxy_send_timeout",
    "proxy_set_header",
    "proxy_temp_file_write_size",
    "reset_timedout_connection",
    "send_timeout",
    "sendfile",
    "server_tokens",
    "ssl_ciphers",
    "ssl_ecdh_curve",
    "ssl_prefer_server_ciphers",
    "ssl_protocols",
    "ssl_session_cache",
    "ssl_session_tickets",
    "ssl_session_timeout",
    "tcp_nodelay",
    "tcp_nopush",
];

/// In a location. `proxy_set_header` is missing: one here would undo all those of the server.
const LOCATION: &[&str] = &[
    "add_header",
    "brotli",
    "client_body_timeout",
    "client_max_body_size",
    "default_type",
    "error_page",
    "etag",
    "expires",
    "gzip",
    "gzip_comp_level",
    "gzip_min_length",
    "gzip_proxied",
    "gzip_types",
    "gzip_vary",
    "internal",
    "proxy_buffer_size",
    "proxy_buffering",
    "proxy_buffers",
    "proxy_busy_buffers_size",
    "proxy_connect_timeout",
    "proxy_hide_header",
    "proxy_max_temp_file_size",
    "proxy_next_upstream",
    "proxy_read_timeout",
    "proxy_redirect",
    "proxy_request_buffering",
    "proxy_send_timeout",
    "proxy_temp_file_write_size",
    "send_timeout",
    "sendfile",
    "tcp_nodelay",
    "tcp_nopush",
];

#[cfg(test)]
mod tests;
