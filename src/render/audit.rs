//! P: re-reads the rendered bytes with a second implementation of nginx's grammar.
//!
//! The tree must have the server blocks that were meant, with their names, and nothing but
//! allowed directives; where a value reaches files, sockets or another server, it must be one of
//! the values that were meant. Whatever a template or the quoter got wrong ends here.

use std::collections::{BTreeMap, BTreeSet};

use super::block::{Base, ServerBlock, Tls, VhostFile};
use super::token::Token;
use crate::nginx::syntax::{self, Directive, SyntaxError};

/// What is wrong with rendered bytes. Lines are those of the rendered file.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum AuditError {
    #[error("line {line}: the directive {name:?} is not one that vhostd renders")]
    Directive { line: usize, name: String },
    #[error("the files included are not the generation's")]
    Includes,
    #[error("the server blocks answer {found:?} instead of {expected:?}")]
    Servers {
        found: Vec<Vec<String>>,
        expected: Vec<Vec<String>>,
    },
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    #[error("line {line}: {name} has the value {value:?}, which no vhost asked for")]
    Value {
        line: usize,
        name: String,
        value: String,
    },
}

/// What a rendered file must say.
#[derive(Debug, Default)]
pub struct Expectation<'a> {
    /// The names of each server block.
    servers: Vec<Vec<&'a str>>,
    /// Directive → the values that it may have; see [`CONFINED`].
    values: BTreeMap<&'static str, BTreeSet<&'a str>>,
}

/// Whether `bytes` say what was expected, and nothing else.
pub fn audit(bytes: &[u8], expected: &Expectation<'_>) -> Result<(), AuditError> {
    let tree = syntax::parse(bytes)?;
    check(&tree, TOP, &expected.values)?;
    let found = tree
        .iter()
        .filter(|directive| directive.name == "server")
        .map(|server| sorted(server_names(server).collect()))
        .collect();
    let found = sorted(found);
    let expected = sorted(
        expected
            .servers
            .iter()
            .map(|names| sorted(names.iter().map(|name| (*name).to_owned()).collect()))
            .collect(),
    );
    if found != expected {
        return Err(AuditError::Servers { found, expected });
    }
    Ok(())
}

/// Whether the entry includes exactly `files`, in this order, and defines nothing but the number.
pub fn entry(bytes: &[u8], files: &[&str]) -> Result<(), AuditError> {
    let tree = syntax::parse(bytes)?;
    for directive in &tree {
        if !matches!(directive.name.as_str(), "include" | "map") {
            return Err(not_ours(directive));
        }
    }
    let included = tree.iter().filter(|directive| directive.name == "include");
    match included
        .map(|include| include.args.join(" "))
        .eq(files.iter().copied())
    {
        true => Ok(()),
        false => Err(AuditError::Includes),
    }
}

pub(super) fn base_expectation(base: &Base) -> Expectation<'_> {
    let mut expected = Expectation::default();
    if let Some(server) = &base.default_http {
        expected.servers.push(vec![""]);
        expected.allow("listen", server.listen.iter().map(|listen| &listen.address));
    }
    if let Some(server) = &base.default_https {
        expected.servers.push(vec![""]);
        expected.allow("listen", server.listen.iter().map(|listen| &listen.address));
        expected.allow_pair(server.certificate.as_ref());
    }
    let reserved = &base.reserved;
    expected.servers.push(vec![reserved.name.as_str()]);
    expected.allow(
        "listen",
        reserved.listen.iter().map(|listen| &listen.address),
    );
    expected.allow_pair(reserved.certificate.as_ref());
    expected
}

pub(super) fn vhost_expectation(file: &VhostFile) -> Expectation<'_> {
    let mut expected = Expectation::default();
    for upstream in &file.upstreams {
        expected.allow("server", &upstream.servers);
    }
    for server in &file.servers {
        expected.expect_server(server);
    }
    expected
}

impl<'a> Expectation<'a> {
    fn expect_server(&mut self, server: &'a ServerBlock) {
        self.servers
            .push(server.names.iter().map(Token::as_str).collect());
        self.allow("listen", server.listen.iter().map(|listen| &listen.address));
        self.allow("access_log", [&server.access_log]);
        let pair = server
            .tls
            .as_ref()
            .map(|Tls { certificate, .. }| certificate);
        self.allow_pair(pair);
        let Some(site) = &server.site else { return };
        self.allow("root", site.files.iter().map(|files| &files.root));
        self.allow("proxy_pass", site.proxy.iter().map(|proxy| &proxy.pass));
    }

    fn allow_pair(&mut self, pair: Option<&'a super::block::CertificatePair>) {
        self.allow("ssl_certificate", pair.map(|pair| &pair.chain));
        self.allow("ssl_certificate_key", pair.map(|pair| &pair.key));
    }

    fn allow(&mut self, name: &'static str, values: impl IntoIterator<Item = &'a Token>) {
        let values = values.into_iter().map(Token::as_str);
        self.values.entry(name).or_default().extend(values);
    }
}

fn check(
    directives: &[Directive],
    allowed: &[&str],
    values: &BTreeMap<&'static str, BTreeSet<&str>>,
) -> Result<(), AuditError> {
    for directive in directives {
        let name = directive.name.as_str();
        if allowed.binary_search(&name).is_err() {
            return Err(not_ours(directive));
        }
        let value = directive.args.first().map_or("", String::as_str);
        let confined = CONFINED.contains(&name) && directive.block.is_none();
        let off = name == "access_log" && value == "off";
        if confined
            && !off
            && !values
                .get(name)
                .is_some_and(|values| values.contains(value))
        {
            return Err(AuditError::Value {
                line: directive.line,
                name: name.to_owned(),
                value: value.to_owned(),
            });
        }
        let inside = match name {
            // its lines are pairs of values, not directives
            "map" => continue,
            "upstream" => UPSTREAM,
            _ => SERVER,
        };
        check(directive.children(), inside, values)?;
    }
    Ok(())
}

fn server_names(server: &Directive) -> impl Iterator<Item = String> {
    server
        .children()
        .iter()
        .filter(|directive| directive.name == "server_name")
        .flat_map(|directive| directive.args.clone())
}

fn sorted<T: Ord>(mut list: Vec<T>) -> Vec<T> {
    list.sort();
    list
}

fn not_ours(directive: &Directive) -> AuditError {
    AuditError::Directive {
        line: directive.line,
        name: directive.name.clone(),
    }
}

/// Directives whose first argument reaches a file, a socket or another server.
const CONFINED: [&str; 7] = [
    "access_log",
    "listen",
    "proxy_pass",
    "root",
    "server",
    "ssl_certificate",
    "ssl_certificate_key",
];

/// In alphabetical order, as are the following.
const TOP: &[&str] = &[
    "map",
    "server",
    "server_names_hash_bucket_size",
    "server_names_hash_max_size",
    "upstream",
];

const UPSTREAM: &[&str] = &[
    "ip_hash",
    "keepalive",
    "keepalive_requests",
    "keepalive_timeout",
    "least_conn",
    "server",
];

/// In a server and its locations: what the shipped templates use, and what an override may add
/// without reaching files, other servers or code.
const SERVER: &[&str] = &[
    "absolute_redirect",
    "access_log",
    "add_header",
    "brotli",
    "brotli_static",
    "client_body_timeout",
    "client_header_timeout",
    "client_max_body_size",
    "default_type",
    "disable_symlinks",
    "error_page",
    "etag",
    "expires",
    "gzip",
    "gzip_comp_level",
    "gzip_min_length",
    "gzip_proxied",
    "gzip_static",
    "gzip_types",
    "gzip_vary",
    "http2",
    "internal",
    "keepalive_min_timeout",
    "keepalive_requests",
    "keepalive_timeout",
    "large_client_header_buffers",
    "listen",
    "location",
    "proxy_buffer_size",
    "proxy_buffering",
    "proxy_buffers",
    "proxy_connect_timeout",
    "proxy_hide_header",
    "proxy_http_version",
    "proxy_next_upstream",
    "proxy_pass",
    "proxy_read_timeout",
    "proxy_redirect",
    "proxy_request_buffering",
    "proxy_send_timeout",
    "proxy_set_header",
    "proxy_ssl_name",
    "proxy_ssl_server_name",
    "reset_timedout_connection",
    "return",
    "root",
    "send_timeout",
    "sendfile",
    "server_name",
    "server_tokens",
    "ssl_certificate",
    "ssl_certificate_key",
    "ssl_ciphers",
    "ssl_ecdh_curve",
    "ssl_prefer_server_ciphers",
    "ssl_protocols",
    "ssl_reject_handshake",
    "ssl_session_cache",
    "ssl_session_tickets",
    "ssl_session_timeout",
    "tcp_nodelay",
    "tcp_nopush",
    "try_files",
];

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expectation<'static> {
        let mut expected = Expectation {
            servers: vec![vec!["a.example", "b.example"]],
            ..Expectation::default()
        };
        expected.values.insert("root", BTreeSet::from(["/srv/a"]));
        expected
    }

    fn audited(text: &str) -> Result<(), AuditError> {
        audit(text.as_bytes(), &expected())
    }

    #[test]
    fn what_was_meant_passes() {
        let text = "server { server_name b.example a.example; root \"/srv/a\"; }";
        assert_eq!(audited(text), Ok(()));
    }

    #[test]
    fn a_foreign_directive_is_found_at_any_depth() {
        for text in [
            "include /etc/shadow;",
            "server {\nlocation / { location /a { alias /etc/; } } }",
            "server { location / { include x; } }",
            "upstream u { zone x 1m; }",
            "http { }",
        ] {
            let error = audited(text).unwrap_err();
            assert!(
                matches!(error, AuditError::Directive { .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_missing_an_additional_and_a_renamed_server_are_found() {
        let meant = "server { server_name a.example b.example; }";
        for text in [
            String::new(),
            format!("{meant}{meant}"),
            format!("{meant} server {{ }}"),
            "server { server_name a.example; }".to_owned(),
            "server { server_name a.example b.example c.example; }".to_owned(),
        ] {
            let error = audited(&text).unwrap_err();
            assert!(
                matches!(error, AuditError::Servers { .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_value_that_nobody_asked_for_is_found() {
        let error = audited("server {\n server_name a.example b.example; root /etc; }");
        assert_eq!(
            error.unwrap_err().to_string(),
            "line 2: root has the value \"/etc\", which no vhost asked for"
        );
        assert!(audited("server { listen 1; }").is_err());
        assert!(audited("server { access_log syslog:server=1.2.3.4; }").is_err());
    }

    #[test]
    fn the_allow_lists_are_sorted() {
        for list in [TOP, UPSTREAM, SERVER] {
            assert!(list.is_sorted());
        }
    }

    #[test]
    fn the_entry_includes_the_files_and_nothing_else() {
        let files = ["/a/base.conf"];
        assert_eq!(
            entry(b"map \"\" $x { default 1; } include /a/base.conf;", &files),
            Ok(())
        );
        assert_eq!(entry(b"include /a/*;", &files), Err(AuditError::Includes));
        assert_eq!(entry(b"", &files), Err(AuditError::Includes));
        assert!(entry(b"include /a/base.conf; server { }", &files).is_err());
    }
}
