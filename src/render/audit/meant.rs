//! P: blocks → the tree that their file must have.
//!
//! Written a second time beside the templates, so that what a template loses, doubles or moves is
//! seen. What is not here is tuning: see the lists in `audit`.

use crate::render::block::{
    AssetMap, Base, CacheControl, CertificatePair, ChallengeFile, ChallengeLocation, DefaultHttp,
    DefaultHttps, Files, Hops, HttpsPort, Listen, MisdirectedMap, ProbeLocation, RealIpTokens,
    Reserved, ServerBlock, Site, Tls, UpstreamBlock, VhostFile,
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
    let maps = file.asset_maps.iter().flat_map(asset_maps);
    let misdirected = file.misdirected_maps.iter().map(misdirected_map);
    let maps = maps.chain(misdirected);
    let upstreams = file.upstreams.iter().map(upstream);
    let servers = file.servers.iter().map(server);
    maps.chain(upstreams).chain(servers).collect()
}

pub(super) fn base_file(base: &Base) -> Vec<Meant<'_>> {
    let mut tree = Vec::new();
    let size = base.hash_bucket_size.iter();
    tree.extend(size.map(|size| simple(["server_names_hash_bucket_size", size.as_str()])));
    for (from, to, lines) in MAPS {
        if to == "$vhostd_app" {
            tree.push(trusted_peers(&base.trusted_peers));
        }
        let lines = lines.iter().map(|line| simple(line.iter().copied()));
        tree.push(block(["map", from, to], lines.collect()));
    }
    tree.push(https_port_map(base.https_port.as_ref()));
    tree.extend(hops_maps(&base.hops));
    tree.extend(asset_maps(&base.assets));
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

fn asset_maps(map: &AssetMap) -> [Meant<'_>; 2] {
    let value = map.value.as_str();
    let fingerprinted = vec![
        simple(["default", ""]),
        simple([map.pattern.as_str(), value]),
    ];
    let directories = map.directories.iter();
    let any = std::iter::once(simple(["default", map.fingerprinted.as_str()]))
        .chain(directories.map(|directory| simple([directory.as_str(), value])));
    [
        block(["map", "$uri", map.fingerprinted.as_str()], fingerprinted),
        block(["map", "$uri", map.variable.as_str()], any.collect()),
    ]
}

fn trusted_peers(networks: &[Token]) -> Meant<'_> {
    let (kind, from) = match networks.is_empty() {
        true => ("map", ""),
        false => ("geo", "$realip_remote_addr"),
    };
    let lines = networks.iter().map(|it| simple([it.as_str(), "trusted"]));
    let lines = std::iter::once(simple(["default", ""])).chain(lines);
    block([kind, from, "$vhostd_trusted_peer"], lines.collect())
}

fn https_port_map(port: Option<&HttpsPort>) -> Meant<'_> {
    let line = port.map(|port| simple([port.http.as_str(), port.https.as_str()]));
    let lines = std::iter::once(simple(["default", ""])).chain(line);
    block(
        ["map", "$vhostd_host_port", "$vhostd_https_port"],
        lines.collect(),
    )
}

fn hops_maps(hops: &Hops) -> [Meant<'_>; 2] {
    let circle = [["default", ""], [hops.circle.as_str(), "1"]];
    let next = [
        ["default", hops.first.as_str()],
        ["~.", hops.further.as_str()],
    ];
    [("$vhostd_circle", circle), ("$vhostd_hops", next)].map(|(to, lines)| {
        let lines = lines.map(simple).into();
        block(["map", "$http_x_vhostd_hops", to], lines)
    })
}

fn misdirected_map(map: &MisdirectedMap) -> Meant<'_> {
    let patterns = map.patterns.iter();
    let lines = SAME_HOST.map(simple).into_iter();
    let lines = lines.chain(patterns.map(|pattern| simple([pattern.as_str(), ""])));
    block(
        ["map", "$ssl_server_name $host", map.variable.as_str()],
        lines.collect(),
    )
}

fn upstream(upstream: &UpstreamBlock) -> Meant<'_> {
    let servers = upstream.servers.iter();
    let servers = servers.map(|it| simple(["server", it.address.as_str(), it.failures.as_str()]));
    block(["upstream", upstream.name.as_str()], servers.collect())
}

fn server(server: &ServerBlock) -> Meant<'_> {
    let mut tree = listens(&server.listen, &[], server.http2);
    let names = server.names.iter().map(Token::as_str);
    tree.push(simple(std::iter::once("server_name").chain(names)));
    tree.push(simple(["access_log", server.access_log.as_str()]));
    tree.extend(server.real_ip.iter().flat_map(real_ip));
    tree.extend(server.tls.iter().flat_map(tls));
    tree.push(probe(&server.probe, true));
    tree.extend(server.challenge.iter().flat_map(challenge));
    tree.extend(server.redirect.as_ref().map(redirect));
    tree.extend(server.site.iter().flat_map(site));
    block(["server"], tree)
}

fn real_ip(real_ip: &RealIpTokens) -> Vec<Meant<'_>> {
    let from = real_ip.from.iter();
    let from = from.map(|network| simple(["set_real_ip_from", network.as_str()]));
    let header = simple(["real_ip_header", real_ip.header.as_str()]);
    from.chain([header, simple(["real_ip_recursive", "on"])])
        .collect()
}

fn tls(tls: &Tls) -> Vec<Meant<'_>> {
    let mut tree: Vec<Meant<'_>> = tls.certificates.iter().flat_map(certificate).collect();
    tree.push(returning(tls.misdirected.as_str(), "421"));
    tree
}

fn returning<'a>(variable: &'a str, status: &'a str) -> Meant<'a> {
    block(["if", "(", variable, ")"], vec![simple(["return", status])])
}

fn redirect(target: &Token) -> Meant<'_> {
    let target = target.as_str();
    let method = ["if", "(", "$request_method", "!~", "^(?:GET|HEAD)$", ")"];
    let other = block(method, vec![simple(["return", "308", target])]);
    let redirect = vec![other, simple(["return", "301", target])];
    block(["location", "/"], redirect)
}

/// Where a URI is looked at closely: hidden ones first.
fn special<'a>(files: &'a Files, site: &'a Site) -> Meant<'a> {
    let hidden = match site.proxy {
        Some(_) => simple(["try_files", "/.", "$vhostd_app"]),
        None => simple(["return", "404"]),
    };
    let types = files.types.iter().map(|media_type| {
        let extensions = media_type.extensions.iter().map(Token::as_str);
        simple(std::iter::once(media_type.name.as_str()).chain(extensions))
    });
    let typed = vec![block(["types"], types.collect()), try_files(&site.pages)];
    let mut others = page(site, |cached| &cached.any);
    others.push(block(["location", "~", files.typed.as_str()], typed));
    let inside = vec![
        block(["location", "~", HIDDEN], vec![hidden]),
        block(["location", "~", "/$"], vec![try_files(&site.directories)]),
        block(["location", "~", "^"], others),
    ];
    block(["location", "~*", files.special.as_str()], inside)
}

/// A location of files, and what is tried after them.
fn page(site: &Site, header: fn(&CacheControl) -> &Token) -> Vec<Meant<'_>> {
    let mut tree = vec![try_files(&site.pages)];
    if let Some(files) = &site.files {
        let header = files.cache_control.iter().map(header);
        tree.extend(header.map(|value| simple(["add_header", "Cache-Control", value.as_str()])));
        let siblings = [
            ("gzip_static", files.gzip_static),
            ("brotli_static", files.brotli_static),
        ];
        let wanted = siblings.into_iter().filter(|(_, wanted)| *wanted);
        tree.extend(wanted.map(|(name, _)| simple([name, "on"])));
    }
    tree
}

fn site(site: &Site) -> Vec<Meant<'_>> {
    let mut tree = Vec::new();
    if let Some(files) = &site.files {
        tree.push(simple(["root", files.root.as_str()]));
        tree.push(simple([
            "disable_symlinks",
            "if_not_owner",
            files.links_from.as_str(),
        ]));
        tree.push(special(files, site));
        let cached = files.cache_control.iter();
        let directories = cached.flat_map(|cached| &cached.directories);
        tree.extend(directories.map(|directory| {
            let inside = page(site, |cached| &cached.value);
            block(["location", directory.as_str()], inside)
        }));
    }
    if !site.pages.is_empty() {
        let inside = page(site, |cached| &cached.elsewhere);
        tree.push(block(["location", "/"], inside));
    }
    if site.files.is_some() && site.proxy.is_none() {
        let redirect = vec![simple(["try_files", "$uri/", "=404"])];
        tree.push(block(["location", "@directory"], redirect));
    }
    if let Some(proxy) = &site.proxy {
        if proxy.tls {
            tree.push(simple(["proxy_ssl_server_name", "on"]));
            tree.push(simple(["proxy_ssl_name", "$host"]));
        }
        for header in ["Host", "X-Forwarded-Host"] {
            let host = "$host$vhostd_host_port";
            tree.push(simple(["proxy_set_header", header, host]));
        }
        for location in &proxy.locations {
            let mut inside = vec![simple(["proxy_pass", proxy.pass.as_str()])];
            inside.push(returning("$vhostd_circle", "508"));
            inside.extend(location.websockets.as_ref().map(websockets_elsewhere));
            if location.behind_proxy {
                let header =
                    |[name, value]: [&'static str; 2]| simple(["proxy_set_header", name, value]);
                inside.extend(HEADERS_BEHIND_A_PROXY.map(header));
            }
            tree.push(block(["location", location.name.as_str()], inside));
        }
    }
    tree
}

fn websockets_elsewhere(name: &Token) -> Meant<'_> {
    let inside = vec![
        simple(["error_page", "418", "=", name.as_str()]),
        simple(["return", "418"]),
    ];
    block(["if", "(", "$vhostd_upgrade", ")"], inside)
}

fn try_files(files: &[Token]) -> Meant<'_> {
    simple(std::iter::once("try_files").chain(files.iter().map(Token::as_str)))
}

fn default_http(server: &DefaultHttp) -> Meant<'_> {
    let mut tree = listens(&server.listen, &["default_server"], false);
    tree.extend([simple(["server_name", ""]), simple(["access_log", "off"])]);
    tree.extend(server.challenge.iter().flat_map(challenge));
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
    tree.extend(server.challenge.iter().flat_map(challenge));
    let refusal = vec![simple(["return", server.refusal.as_str()])];
    tree.push(block(["location", "/"], refusal));
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

fn challenge(challenge: &ChallengeLocation) -> Vec<Meant<'_>> {
    let answer = simple(["return", "200", challenge.answer.as_str()]);
    let mut further: Vec<Meant<'_>> = challenge.files.iter().map(challenge_file).collect();
    let token = match challenge.files.first() {
        None => answer,
        Some(first) => {
            further.push(block(["location", "@vhostd_challenge"], vec![answer]));
            simple(["try_files", "/.", first.name.as_str()])
        }
    };
    let token = block(["location", "~", CHALLENGE_TOKEN], vec![token]);
    let tree = vec![token, simple(["return", "404"])];
    let challenges = block(["location", "^~", CHALLENGES], tree);
    std::iter::once(challenges).chain(further).collect()
}

fn challenge_file(file: &ChallengeFile) -> Meant<'_> {
    let links = file.links.iter().map(Token::as_str);
    let inside = vec![
        simple(["root", "/"]),
        simple(std::iter::once("disable_symlinks").chain(links)),
        simple(["open_file_cache", "off"]),
        simple(["try_files", file.path.as_str(), file.next.as_str()]),
    ];
    block(["location", file.name.as_str()], inside)
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

type Map = (&'static str, &'static str, &'static [[&'static str; 2]]);

/// The maps that all vhosts share.
const MAPS: [Map; 11] = [
    (
        "$http_upgrade",
        "$vhostd_upgrade",
        &[["default", ""], ["~*^websocket$", "websocket"]],
    ),
    (
        "$vhostd_upgrade",
        "$vhostd_connection",
        &[["default", ""], ["websocket", "upgrade"]],
    ),
    (
        "$vhostd_trusted_peer$vhostd_upgrade",
        "$vhostd_app",
        &[
            ["default", "@app"],
            ["websocket", "@websocket"],
            ["trusted", "@app_behind_proxy"],
            ["trustedwebsocket", "@websocket_behind_proxy"],
        ],
    ),
    (
        "$http_host",
        "$vhostd_host_port",
        &[["default", ""], ["~:[0-9]+$", "$vhostd_port_of_host"]],
    ),
    (
        "$host $http_host",
        "$vhostd_port_of_host",
        &[["default", ""], [r"~*^([^ ]+) \1\.?(:[0-9]+)$", "$2"]],
    ),
    (
        "$scheme$vhostd_host_port",
        "$vhostd_forwarded_port",
        &[
            ["default", ""],
            ["http", "80"],
            ["https", "443"],
            ["~:([0-9]+)$", "$1"],
        ],
    ),
    (
        "$vhostd_host_port",
        "$vhostd_forwarded_http_port",
        &[["default", "80"], ["~:([0-9]+)$", "$1"]],
    ),
    (
        "$vhostd_host_port",
        "$vhostd_forwarded_https_port",
        &[["default", "443"], ["~:([0-9]+)$", "$1"]],
    ),
    (
        "$https",
        "$vhostd_forwarded_ssl",
        &[["default", "off"], ["on", "on"]],
    ),
    (
        "$request_method",
        "$vhostd_unread",
        &[["default", "/."], ["GET", ""], ["HEAD", ""]],
    ),
    ("$ssl_server_name $host", "$vhostd_misdirected", &SAME_HOST),
];

/// What a location says for itself does not inherit the server's.
const HEADERS_BEHIND_A_PROXY: [[&str; 2]; 41] = [
    ["Host", "$host$vhostd_host_port"],
    ["Upgrade", "$vhostd_upgrade"],
    ["Connection", "$vhostd_connection"],
    ["X-Real-IP", "$remote_addr"],
    ["X-Forwarded-For", "$remote_addr"],
    ["X-Forwarded-Proto", "$scheme"],
    ["X-Forwarded-Host", "$host$vhostd_host_port"],
    ["X-Forwarded-Port", "$vhostd_forwarded_port"],
    ["X-Forwarded-Ssl", "$vhostd_forwarded_ssl"],
    ["X-Vhostd-Hops", "$vhostd_hops"],
    ["Client-IP", ""],
    ["Forwarded", ""],
    ["Proxy-Client-IP", ""],
    ["WL-Proxy-Client-IP", ""],
    ["X-Client-IP", ""],
    ["X-Cluster-Client-IP", ""],
    ["X-Original-Forwarded-For", ""],
    ["X-Original-Remote-Addr", ""],
    ["X-ProxyUser-Ip", ""],
    ["X-Remote-Addr", ""],
    ["X-Remote-IP", ""],
    ["Front-End-Https", ""],
    ["Proxy", ""],
    ["X-Forwarded-Method", ""],
    ["X-Forwarded-Path", ""],
    ["X-Forwarded-Prefix", ""],
    ["X-Forwarded-Protocol", ""],
    ["X-Forwarded-Scheme", ""],
    ["X-Forwarded-Server", ""],
    ["X-Forwarded-Uri", ""],
    ["X-Host", ""],
    ["X-Http-Host-Override", ""],
    ["X-Original-Host", ""],
    ["X-Original-Method", ""],
    ["X-Original-URI", ""],
    ["X-Original-URL", ""],
    ["X-Rewrite-URL", ""],
    ["X-Scheme", ""],
    ["X-Url-Scheme", ""],
    ["X-Accel-Mapping", ""],
    ["X-Sendfile-Type", ""],
];

/// Lines of a map that is empty where the handshake is of the request's host.
const SAME_HOST: [[&str; 2]; 2] = [["default", "1"], [r"~*^([^ ]*[^ .])\.? \1$", ""]];
/// Hidden files, but for `/.well-known/`, and leftovers.
const HIDDEN: &str = r"/\.(?!(?<=^/\.)well-known/)|(?i:~|\.(?:bak|log|orig|sql|swp))$";
const CHALLENGES: &str = "/.well-known/acme-challenge/";
/// RFC 8555 §8.3: a token is base64url.
const CHALLENGE_TOKEN: &str = r"^/\.well-known/acme-challenge/(?<vhostd_token>[A-Za-z0-9_-]+)$";
