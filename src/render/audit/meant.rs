//! P: blocks → the tree that their file must have.
//!
//! Written a second time beside the templates, so that what a template loses, doubles or moves is
//! seen. What is not here is tuning: see the lists in `audit`.

use crate::render::block::{
    AssetMap, Base, CertificatePair, ChallengeAnswers, DefaultHttp, DefaultHttps, Listen,
    ProbeLocation, Reserved, ServerBlock, Site, UpstreamBlock, VhostFile,
};
use crate::render::token::Token;

/// A directive that must be there: its words, as nginx sees them without quotes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Meant<'a> {
    pub(super) words: Vec<&'a str>,
    /// `None` where it ends with `;`.
    pub(super) block: Option<Vec<Meant<'a>>>,
}

pub(super) fn vhost_file(file: &VhostFile) -> Vec<Meant<'_>> {
    let maps = file.asset_maps.iter().map(asset_map);
    let upstreams = file.upstreams.iter().map(upstream);
    let servers = file.servers.iter().map(server);
    maps.chain(upstreams).chain(servers).collect()
}

pub(super) fn base_file(base: &Base) -> Vec<Meant<'_>> {
    let mut tree = Vec::new();
    let sizes = [
        ("server_names_hash_bucket_size", &base.hash_bucket_size),
        ("server_names_hash_max_size", &base.hash_max_size),
    ];
    for (name, size) in sizes {
        tree.extend(size.iter().map(|size| simple([name, size.as_str()])));
    }
    for (from, to, lines) in MAPS {
        let lines = lines.iter().map(|line| simple(line.iter().copied()));
        tree.push(block(["map", from, to], lines.collect()));
    }
    tree.push(asset_map(&base.assets));
    tree.extend(base.default_http.as_ref().map(default_http));
    tree.extend(base.default_https.iter().map(default_https));
    tree.push(reserved(&base.reserved));
    tree
}

pub(super) fn entry<'a>(number: &'a str, files: &[&'a str]) -> Vec<Meant<'a>> {
    let number = block(
        ["map", "", "$vhostd_generation"],
        vec![simple(["default", number])],
    );
    let files = files.iter().map(|file| simple(["include", file]));
    std::iter::once(number).chain(files).collect()
}

fn asset_map(map: &AssetMap) -> Meant<'_> {
    let patterns = map.patterns.iter();
    let lines = std::iter::once(simple(["default", ""]))
        .chain(patterns.map(|pattern| simple([pattern.as_str(), map.value.as_str()])));
    block(
        ["map", "$status $uri", map.variable.as_str()],
        lines.collect(),
    )
}

fn upstream(upstream: &UpstreamBlock) -> Meant<'_> {
    let servers = upstream.servers.iter();
    let servers = servers.map(|address| simple(["server", address.as_str()]));
    block(["upstream", upstream.name.as_str()], servers.collect())
}

fn server(server: &ServerBlock) -> Meant<'_> {
    let mut tree = listens(&server.listen, &[], server.http2);
    let names = server.names.iter().map(Token::as_str);
    tree.push(simple(std::iter::once("server_name").chain(names)));
    tree.push(simple(["access_log", server.access_log.as_str()]));
    let certificates = server.tls.iter().flat_map(|tls| &tls.certificates);
    tree.extend(certificates.flat_map(certificate));
    tree.push(probe(&server.probe, true));
    let answers = server.challenge_files.as_ref();
    tree.extend(server.challenge.iter().map(|it| challenge(it, answers)));
    tree.extend(server.redirect.as_ref().map(|target| {
        let redirect = simple(["return", "301", target.as_str()]);
        block(["location", "/"], vec![redirect])
    }));
    tree.extend(server.site.iter().flat_map(site));
    block(["server"], tree)
}

fn site(site: &Site) -> Vec<Meant<'_>> {
    let mut tree = Vec::new();
    let mut page = Vec::new();
    if let Some(files) = &site.files {
        tree.push(simple(["root", files.root.as_str()]));
        tree.push(simple([
            "disable_symlinks",
            "if_not_owner",
            "from=$document_root",
        ]));
        let header = files.cache_control.iter();
        page.extend(header.map(|value| simple(["add_header", "Cache-Control", value.as_str()])));
        let siblings = [
            ("gzip_static", files.gzip_static),
            ("brotli_static", files.brotli_static),
        ];
        let wanted = siblings.into_iter().filter(|(_, wanted)| *wanted);
        page.extend(wanted.map(|(name, _)| simple([name, "on"])));
    }
    let hidden = vec![simple(["access_log", "off"]), simple(["return", "404"])];
    tree.push(block(["location", "~", HIDDEN], hidden));
    if !site.directories.is_empty() {
        let files = vec![try_files(&site.directories)];
        tree.push(block(["location", "~", "/$"], files));
    }
    page.push(try_files(&site.pages));
    tree.push(block(["location", "/"], page));
    if let Some(proxy) = &site.proxy {
        if proxy.tls {
            tree.push(simple(["proxy_ssl_server_name", "on"]));
            tree.push(simple(["proxy_ssl_name", "$host"]));
        }
        for header in ["Host", "X-Forwarded-Host"] {
            tree.push(simple(["proxy_set_header", header, proxy.host.as_str()]));
        }
        for name in ["@app", "@stream"] {
            let pass = simple(["proxy_pass", proxy.pass.as_str()]);
            tree.push(block(["location", name], vec![pass]));
        }
    }
    tree
}

fn try_files(files: &[Token]) -> Meant<'_> {
    simple(std::iter::once("try_files").chain(files.iter().map(Token::as_str)))
}

fn default_http(server: &DefaultHttp) -> Meant<'_> {
    let mut tree = listens(&server.listen, &["default_server"], false);
    tree.extend([simple(["server_name", ""]), simple(["access_log", "off"])]);
    let answers = server.challenge_files.as_ref();
    tree.extend(server.challenge.iter().map(|it| challenge(it, answers)));
    tree.push(block(["location", "/"], vec![simple(["return", "444"])]));
    block(["server"], tree)
}

fn default_https(server: &DefaultHttps) -> Meant<'_> {
    let mut tree = listens(&server.listen, &["default_server"], server.http2);
    tree.extend([simple(["server_name", ""]), simple(["access_log", "off"])]);
    if server.certificates.is_empty() {
        tree.push(simple(["ssl_reject_handshake", "on"]));
    }
    tree.extend(server.certificates.iter().flat_map(certificate));
    tree.push(simple(["return", server.refusal.as_str()]));
    block(["server"], tree)
}

fn reserved(server: &Reserved) -> Meant<'_> {
    let mut tree = listens(&server.listen, &[], server.http2);
    tree.push(simple(["server_name", server.name.as_str()]));
    tree.push(simple(["access_log", "off"]));
    tree.extend(server.certificate.iter().flat_map(certificate));
    tree.push(probe(&server.probe, false));
    tree.push(block(["location", "/"], vec![simple(["return", "444"])]));
    block(["server"], tree)
}

fn listens<'a>(listens: &'a [Listen], further: &[&'a str], http2: bool) -> Vec<Meant<'a>> {
    let listen = |listen: &'a Listen| {
        let parameters = [("ssl", listen.ssl), ("http2", listen.http2)];
        let parameters = parameters.into_iter().filter(|(_, present)| *present);
        let words = ["listen", listen.address.as_str()].into_iter();
        let words = words.chain(parameters.map(|(word, _)| word));
        simple(words.chain(further.iter().copied()))
    };
    let mut tree: Vec<Meant<'_>> = listens.iter().map(listen).collect();
    tree.extend(http2.then(|| simple(["http2", "on"])));
    tree
}

fn certificate(pair: &CertificatePair) -> [Meant<'_>; 2] {
    [
        simple(["ssl_certificate", pair.chain.as_str()]),
        simple(["ssl_certificate_key", pair.key.as_str()]),
    ]
}

fn probe(probe: &ProbeLocation, of_vhost: bool) -> Meant<'_> {
    let mut tree = vec![simple(["return", "200", probe.answer.as_str()])];
    // the other servers with a probe log nothing at all
    tree.extend(of_vhost.then(|| simple(["access_log", "off"])));
    block(["location", "=", probe.path.as_str()], tree)
}

fn challenge<'a>(answer: &'a Token, files: Option<&'a ChallengeAnswers>) -> Meant<'a> {
    let answer = simple(["return", "200", answer.as_str()]);
    let answers = match files {
        None => vec![answer],
        Some(files) => {
            let path = files.path.as_str();
            vec![
                simple(["alias", path]),
                simple(["disable_symlinks", "on", files.from.as_str()]),
                simple(["open_file_cache", "off"]),
                block(["if", "(", "!-f", path, ")"], vec![answer]),
            ]
        }
    };
    let token = block(["location", "~", CHALLENGE_TOKEN], answers);
    let tree = vec![token, simple(["return", "404"])];
    block(["location", "^~", CHALLENGES], tree)
}

fn simple<'a>(words: impl IntoIterator<Item = &'a str>) -> Meant<'a> {
    Meant {
        words: words.into_iter().collect(),
        block: None,
    }
}

fn block<'a>(words: impl IntoIterator<Item = &'a str>, inside: Vec<Meant<'a>>) -> Meant<'a> {
    Meant {
        block: Some(inside),
        ..simple(words)
    }
}

type Map = (&'static str, &'static str, [[&'static str; 2]; 2]);

/// The maps that all vhosts share.
const MAPS: [Map; 3] = [
    (
        "$http_upgrade",
        "$vhostd_upgrade",
        [["default", ""], ["~*^websocket$", "websocket"]],
    ),
    (
        "$vhostd_upgrade",
        "$vhostd_connection",
        [["default", ""], ["websocket", "upgrade"]],
    ),
    (
        "$http_accept",
        "$vhostd_app",
        [["default", "@app"], ["~*text/event-stream", "@stream"]],
    ),
];

/// Hidden files, but for `/.well-known/`.
const HIDDEN: &str = r"^/+\.(?!well-known/)|[^/]/+\.";
const CHALLENGES: &str = "/.well-known/acme-challenge/";
/// RFC 8555 §8.3: a token is base64url.
const CHALLENGE_TOKEN: &str = r"^/\.well-known/acme-challenge/([A-Za-z0-9_-]+)$";
