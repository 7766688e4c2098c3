//! P: what a vhost serves: files from disk first, then its app.

use std::path::Path;

use serde::Serialize;

use super::{asset, path_token, upstream_name};
use crate::desired::{DesiredVhost, HostFacts, Listener};
use crate::render::token::{Part, Token, TokenError};
use crate::vhost::UpstreamScheme;

/// The locations of a server block that does not redirect.
#[derive(Debug, Serialize)]
pub struct Site {
    pub files: Option<Files>,
    /// The arguments of `try_files` for any URI.
    pub pages: Vec<Token>,
    /// The same for URIs that end in `/`; empty without files. Apart, because `$uri.html` would
    /// be the hidden file `/.html`, and `$uri` with `index.html` behind it `/fooindex.html`.
    pub directories: Vec<Token>,
    pub proxy: Option<Proxy>,
}

/// `root`, and how its files are sent.
#[derive(Debug, Serialize)]
pub struct Files {
    pub root: Token,
    /// The variable with the Cache-Control of a file.
    pub cache_control: Option<Token>,
    pub gzip_static: bool,
    pub brotli_static: bool,
}

/// `proxy_pass`
#[derive(Debug, Serialize)]
pub struct Proxy {
    /// `SCHEME://UPSTREAM`
    pub pass: Token,
    /// The value of the Host header.
    pub host: Token,
    pub tls: bool,
}

pub(super) fn site(
    host: &HostFacts,
    vhost: &DesiredVhost,
    https: bool,
) -> Result<Site, TokenError> {
    let files = match &vhost.spec.root {
        Some(root) => Some(files(host, vhost, root.as_path())?),
        None => None,
    };
    let (pages, directories): (&[&'static str], &[&'static str]) =
        match (files.is_some(), vhost.spec.upstreams.is_empty()) {
            // the variable gives `@app` or `@stream`
            (true, false) => (
                &["$uri", "$uri.html", "$vhostd_app"],
                &["${uri}index.html", "$vhostd_app"],
            ),
            (true, true) => (
                &["$uri", "$uri.html", "$uri/", "=404"],
                &["${uri}index.html", "=404"],
            ),
            // `/.` is never a regular file: straight to the app
            (false, false) => (&["/.", "$vhostd_app"], &[]),
            (false, true) => (&["/.", "=404"], &[]),
        };
    Ok(Site {
        files,
        pages: ours(pages)?,
        directories: ours(directories)?,
        proxy: proxy(host, vhost, https)?,
    })
}

fn files(host: &HostFacts, vhost: &DesiredVhost, root: &Path) -> Result<Files, TokenError> {
    let cache_control = asset::cache_control(&vhost.spec)?;
    let precompressed = cache_control.is_some();
    Ok(Files {
        root: path_token(root)?,
        cache_control,
        gzip_static: precompressed && host.features.gzip_static,
        brotli_static: precompressed && host.features.brotli_static,
    })
}

fn proxy(host: &HostFacts, vhost: &DesiredVhost, https: bool) -> Result<Option<Proxy>, TokenError> {
    let Some(first) = vhost.spec.upstreams.first() else {
        return Ok(None);
    };
    let scheme = match first.scheme() {
        UpstreamScheme::Http => "http",
        UpstreamScheme::Https => "https",
    };
    let (listeners, standard) = match https {
        true => (&host.https, super::HTTPS_PORT),
        false => (&host.http, super::HTTP_PORT),
    };
    Ok(Some(Proxy {
        pass: Token::literal(&format!("{scheme}://{}", upstream_name(&vhost.spec.name)))?,
        host: host_header(listeners, standard)?,
        tls: first.scheme() == UpstreamScheme::Https,
    }))
}

/// `$host` is what selected the server block, without the port, which belongs to it elsewhere
/// than on the standard port. (`$http_host` may name another host than the request line did.)
fn host_header(listeners: &[Listener], standard: u16) -> Result<Token, TokenError> {
    let everywhere_standard = listeners
        .iter()
        .all(|listener| listener.address.port() == standard);
    Token::expression(&[Part::Ours(if everywhere_standard {
        "$host"
    } else {
        "$host:$server_port"
    })])
}

fn ours(texts: &[&'static str]) -> Result<Vec<Token>, TokenError> {
    texts
        .iter()
        .map(|text| Token::expression(&[Part::Ours(text)]))
        .collect()
}
