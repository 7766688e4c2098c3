//! P: what a vhost serves: files from disk first, then its app.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use super::asset::{self, CacheControl};
use super::{path_token, upstream_name};
use crate::desired::{DesiredVhost, HostFacts};
use crate::render::token::{MAX_BYTES, Part, Token, TokenError};
use crate::vhost::UpstreamScheme;

/// The locations of a server block that does not redirect.
#[derive(Debug, Serialize)]
pub struct Site {
    pub files: Option<Files>,
    /// The arguments of `try_files` for any URI; empty where all is the app's at once.
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
    /// `from=PATH`: nginx checks the links below it.
    pub links_from: Token,
    pub cache_control: Option<CacheControl>,
    pub gzip_static: bool,
    pub brotli_static: bool,
    /// The pattern, without case, of all URIs that may be `hidden` or `typed` or end in `/`, and
    /// of few others: an ordinary URI costs this one match.
    pub special: Token,
    /// The pattern of files that are never read from a root: hidden ones, and what editors and
    /// databases leave behind.
    pub hidden: Token,
    /// The pattern of files whose type is one of `types`.
    pub typed: Token,
    /// Types that nginx's own list lacks.
    pub types: Vec<MediaType>,
}

/// `types { NAME EXTENSION…; … }`
#[derive(Debug, Serialize)]
pub struct MediaType {
    pub name: Token,
    pub extensions: Vec<Token>,
}

/// `proxy_pass`
#[derive(Debug, Serialize)]
pub struct Proxy {
    /// `SCHEME://UPSTREAM`
    pub pass: Token,
    pub tls: bool,
    pub locations: Vec<ProxyLocation>,
}

/// `location NAME { … proxy_pass }`
#[derive(Debug, Serialize)]
pub struct ProxyLocation {
    pub name: Token,
    pub websocket: bool,
    /// Where websockets go from here, if it is not for them.
    pub websockets: Option<Token>,
    /// For requests that a proxy in front of nginx sends, which may say who the visitor is.
    pub behind_proxy: bool,
}

pub(super) fn site(host: &HostFacts, vhost: &DesiredVhost) -> Result<Site, TokenError> {
    let files = match &vhost.spec.root {
        Some(root) => Some(files(host, vhost, root.as_path())?),
        None => None,
    };
    let (pages, directories): (&[&'static str], &[&'static str]) =
        match (files.is_some(), vhost.spec.upstreams.is_empty()) {
            // `$vhostd_app` is a location, and `$vhostd_unread` ends the path of what is no file's
            (true, false) => (
                &[
                    "$uri$vhostd_unread",
                    "$uri.html$vhostd_unread",
                    "$vhostd_app",
                ],
                &["${uri}index.html$vhostd_unread", "$vhostd_app"],
            ),
            (true, true) => (
                &["$uri", "$uri.html", "@directory"],
                &["${uri}index.html", "=404"],
            ),
            (false, false) if host.real_ip.is_none() => (&[], &[]),
            // `/.` is never a regular file: straight to the app
            (false, false) => (&["/.", "$vhostd_app"], &[]),
            (false, true) => (&["/.", "=404"], &[]),
        };
    Ok(Site {
        files,
        pages: ours(pages)?,
        directories: ours(directories)?,
        proxy: proxy(host, vhost)?,
    })
}

fn files(host: &HostFacts, vhost: &DesiredVhost, root: &Path) -> Result<Files, TokenError> {
    let cache_control = asset::cache_control(&vhost.spec)?;
    let precompressed = cache_control.is_some();
    Ok(Files {
        root: path_token(root)?,
        links_from: links_from(root, vhost.links_checked_below.as_deref())?,
        cache_control,
        gzip_static: precompressed && host.features.gzip_static,
        brotli_static: precompressed && host.features.brotli_static,
        special: special()?,
        hidden: hidden()?,
        typed: typed()?,
        types: types()?,
    })
}

/// nginx opens `from` as it is, and checks each component below it (`disable_symlinks`).
fn links_from(root: &Path, trusted: Option<&Path>) -> Result<Token, TokenError> {
    if trusted == Some(root) {
        return Token::expression(&[Part::Ours("from=$document_root")]);
    }
    // a shorter part is as safe
    let fits = |part: &&Path| part.as_os_str().len() + FROM.len() <= MAX_BYTES;
    let part = trusted.and_then(|trusted| trusted.ancestors().find(fits));
    let part = path_token(part.unwrap_or(Path::new("/")))?;
    Token::literal(&format!("{FROM}{part}"))
}

fn proxy(host: &HostFacts, vhost: &DesiredVhost) -> Result<Option<Proxy>, TokenError> {
    let Some(first) = vhost.spec.upstreams.first() else {
        return Ok(None);
    };
    let scheme = match first.scheme() {
        UpstreamScheme::Http => "http",
        UpstreamScheme::Https => "https",
    };
    Ok(Some(Proxy {
        pass: Token::literal(&format!("{scheme}://{}", upstream_name(&vhost.spec.name)))?,
        tls: first.scheme() == UpstreamScheme::Https,
        locations: match vhost.spec.root.is_none() && host.real_ip.is_none() {
            true => direct_locations()?,
            false => locations(host.real_ip.is_some())?,
        },
    }))
}

/// Where neither a file nor another proxy can come into question: `try_files` would ask the disk,
/// and going to a named location costs nginx about a tenth of a request.
fn direct_locations() -> Result<Vec<ProxyLocation>, TokenError> {
    let location = |name, websockets: Option<&str>| {
        Ok(ProxyLocation {
            name: Token::literal(name)?,
            websocket: websockets.is_none(),
            websockets: websockets.map(Token::literal).transpose()?,
            behind_proxy: false,
        })
    };
    Ok(vec![
        location("/", Some("@websocket"))?,
        location("@websocket", None)?,
    ])
}

/// The targets of the map `$vhostd_app`.
fn locations(behind_proxies: bool) -> Result<Vec<ProxyLocation>, TokenError> {
    let all = [
        ("@app", false, false),
        ("@websocket", true, false),
        ("@app_behind_proxy", false, true),
        ("@websocket_behind_proxy", true, true),
    ];
    let needed = all
        .into_iter()
        .filter(|(_, _, behind)| behind_proxies || !behind);
    needed
        .map(|(name, websocket, behind_proxy)| {
            Ok(ProxyLocation {
                name: Token::literal(name)?,
                websocket,
                websockets: None,
                behind_proxy,
            })
        })
        .collect()
}

/// A segment that begins with a dot or is empty, `~` or a `/` at the end stop the first group; else
/// it ends with the URI, whose extension is looked at. The extensions of nearly all assets are
/// excluded first, because each alternative costs nginx about as much as a whole directory.
fn special() -> Result<Token, TokenError> {
    let extensions: Vec<&str> = typed_extensions()
        .chain(LEFTOVERS.iter().copied())
        .collect();
    Token::expression(&[
        Part::Ours(r"^(?:/[^./~][^/~]*+)*+(?:[/~]|(?<!\.js|\.css|\.[jps][npv]g)(?<="),
        Part::Value(&similar(&extensions)),
        Part::Ours("))"),
    ])
}

/// An expression that matches each of `extensions`, which are letters and digits, and few others:
/// an alternative for each length, with the letters that may be in each place.
fn similar(extensions: &[&str]) -> String {
    let mut lengths: BTreeMap<usize, Vec<BTreeSet<char>>> = BTreeMap::new();
    for extension in extensions {
        let places = lengths.entry(extension.len()).or_default();
        places.resize(extension.len(), BTreeSet::new());
        for (place, letter) in places.iter_mut().zip(extension.chars()) {
            place.insert(letter);
        }
    }
    let class = |letters: &BTreeSet<char>| {
        let text: String = letters.iter().collect();
        match letters.len() {
            1 => text,
            _ => format!("[{text}]"),
        }
    };
    let alternative = |places: &Vec<BTreeSet<char>>| {
        let classes: String = places.iter().map(class).collect();
        format!(r"\.{classes}")
    };
    let alternatives: Vec<String> = lengths.values().map(alternative).collect();
    alternatives.join("|")
}

fn hidden() -> Result<Token, TokenError> {
    Token::expression(&[
        Part::Ours(r"/\.(?!(?<=^/\.)well-known/)|(?i:~|\.(?:"),
        Part::Value(&LEFTOVERS.join("|")),
        Part::Ours("))$"),
    ])
}

/// The type of `html` is nginx's own.
fn typed_extensions() -> impl Iterator<Item = &'static str> {
    let extensions = TYPES.iter().flat_map(|(_, extensions)| *extensions);
    extensions.copied().filter(|it| *it != "html")
}

fn typed() -> Result<Token, TokenError> {
    let extensions: Vec<&str> = typed_extensions().collect();
    let extensions = extensions.join("|");
    Token::expression(&[
        Part::Ours(r"\.(?:"),
        Part::Value(&extensions),
        Part::Ours(")$"),
    ])
}

fn types() -> Result<Vec<MediaType>, TokenError> {
    let media_type = |(name, extensions): &(&str, &[&str])| {
        let extensions = extensions.iter().map(|extension| Token::literal(extension));
        Ok(MediaType {
            name: Token::literal(name)?,
            extensions: extensions.collect::<Result<_, _>>()?,
        })
    };
    TYPES.iter().map(media_type).collect()
}

fn ours(texts: &[&'static str]) -> Result<Vec<Token>, TokenError> {
    texts
        .iter()
        .map(|text| Token::expression(&[Part::Ours(text)]))
        .collect()
}

const FROM: &str = "from=";

/// What editors, databases and logs leave behind.
const LEFTOVERS: &[&str] = &["bak", "log", "orig", "sql", "swp"];

/// By IANA's registry and the HTML standard. Browsers run no module script of another type than
/// JavaScript's. `html` is what `about.md.html` is, which stands in for `about.md`.
const TYPES: &[(&str, &[&str])] = &[
    ("application/geo+json", &["geojson"]),
    ("application/manifest+json", &["webmanifest"]),
    ("application/json", &["map"]),
    ("application/ld+json", &["jsonld"]),
    ("application/wasm", &["wasm"]),
    ("application/yaml", &["yaml", "yml"]),
    ("audio/flac", &["flac"]),
    ("audio/mp4", &["m4a"]),
    ("audio/ogg", &["opus"]),
    ("audio/wav", &["wav"]),
    ("font/otf", &["otf"]),
    ("font/ttf", &["ttf"]),
    ("image/avif", &["avif"]),
    ("image/jxl", &["jxl"]),
    ("model/gltf+json", &["gltf"]),
    ("model/gltf-binary", &["glb"]),
    ("text/calendar", &["ics"]),
    ("text/csv", &["csv"]),
    ("text/html", &["html"]),
    ("text/javascript", &["cjs", "mjs"]),
    ("text/markdown", &["md"]),
    ("text/vcard", &["vcf"]),
    ("text/vtt", &["vtt"]),
    ("video/ogg", &["ogv"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_checked_below_the_part_that_only_root_can_change_or_else_on_the_whole_path() {
        let root = Path::new("/srv/app/public");
        for (trusted, expected) in [
            (Some("/srv/app/public"), "from=$document_root"),
            (Some("/srv/app"), "from=/srv/app"),
            (Some("/"), "from=/"),
            (None, "from=/"),
        ] {
            let token = links_from(root, trusted.map(Path::new)).unwrap();
            assert_eq!(token.as_str(), expected);
        }
    }

    #[test]
    fn an_expression_for_similar_extensions_has_an_alternative_for_each_length() {
        let extensions = ["md", "csv", "cjs", "m4a", "wasm"];
        assert_eq!(similar(&extensions), r"\.md|\.[cm][4js][asv]|\.wasm");
    }

    #[test]
    fn a_part_that_is_too_long_for_a_word_is_replaced_by_a_shorter_one() {
        let parent = format!("/srv/{}", "a".repeat(1000));
        let long = format!("{parent}/{}", "b".repeat(14));
        let root = format!("{long}/c");
        let from = |part: &str| links_from(Path::new(&root), Some(Path::new(part))).unwrap();
        assert_eq!(from(&long).as_str(), format!("from={parent}"));
        assert_eq!(from(&root).as_str(), "from=$document_root");
    }
}
