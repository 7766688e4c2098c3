#![allow(clippy::disallowed_methods)]

use std::time::Duration;

use super::*;
use crate::certificate::{Challenge, Identifier, Issuer, WantedCertificate};
use crate::desired::{CertificateFiles, Features, HostFacts, Listener, Probe};
use crate::diagnostic::{Located, Position};
use crate::vhost::{AssetPath, CacheAssets, RootDir, ServerName, TlsSpec, Upstream, VhostSpec};

/// Set it to write the snapshots instead of comparing with them.
const UPDATE: &str = "VHOSTD_UPDATE_SNAPSHOTS";

fn listener(address: &str, default_server: bool) -> Listener {
    Listener {
        address: address.parse().unwrap(),
        default_server,
        http2: true,
    }
}

fn host() -> HostFacts {
    HostFacts {
        http: vec![listener("0.0.0.0:80", true), listener("[::]:80", false)],
        https: vec![listener("0.0.0.0:443", true), listener("[::]:443", true)],
        features: Features {
            ssl_reject_handshake: true,
            gzip_static: true,
            ..Features::default()
        },
        thumbprint: Some("thumb-print_1".into()),
        challenge_files: None,
        probe: Probe {
            secret: "c2VjcmV0".into(),
            certificate: certificate("vhostd.invalid"),
        },
        real_ip: None,
        log_dir: "/var/log/nginx".into(),
        names_hash_bucket_size: Some(512),
    }
}

fn certificate(name: &str) -> CertificateFiles {
    CertificateFiles {
        chain: format!("/var/lib/vhostd/certificates/{name}/01/fullchain.pem").into(),
        key: format!("/var/lib/vhostd/certificates/{name}/01/privkey.pem").into(),
    }
}

fn names(texts: &[&str]) -> Vec<Located<ServerName>> {
    texts
        .iter()
        .map(|text| Located {
            value: text.parse::<ServerName>().unwrap(),
            at: Position::default(),
        })
        .collect()
}

fn root(path: &str) -> Option<RootDir> {
    Some(RootDir::parse(path, Position::default(), &["/srv".into(), "/opt".into()]).unwrap())
}

fn assets(paths: &[&str], seconds: u64) -> Option<CacheAssets> {
    Some(CacheAssets {
        paths: paths
            .iter()
            .map(|path| AssetPath::parse(path).unwrap())
            .collect(),
        max_age: Duration::from_secs(seconds),
    })
}

fn vhost_name(app: &str, number: Option<usize>) -> VhostName {
    let app: AppName = app.parse().unwrap();
    number.map_or_else(
        || VhostName::only(&app),
        |number| VhostName::nth(&app, number - 1),
    )
}

fn vhost(app: &str, number: Option<usize>, server_names: &[&str]) -> DesiredVhost {
    DesiredVhost {
        spec: VhostSpec {
            name: vhost_name(app, number),
            at: Position::default(),
            server_names: names(server_names),
            redirect_from: Vec::new(),
            root: None,
            upstreams: Vec::new(),
            cache_assets: None,
            tls: TlsSpec::default(),
        },
        links_checked_below: None,
        tls: DesiredTls::Off,
    }
}

fn with_tls(mut vhost: DesiredVhost, trusted: bool) -> DesiredVhost {
    let name = vhost.spec.canonical().as_str().to_owned();
    let wanted = WantedCertificate::new(vec![Identifier::Dns(name.clone())], Issuer::Acme).unwrap();
    vhost.tls = DesiredTls::On {
        wanted: vec![wanted],
        files: vec![certificate(&name)],
        covered: vhost
            .spec
            .all_names()
            .map(|name| name.value.to_identifier())
            .collect(),
        trusted,
        uncovered: Vec::new(),
    };
    vhost
}

/// The four-key file of the README.
fn hello() -> DesiredVhost {
    let mut vhost = with_tls(vhost("hello", None, &["hello.example.com"]), true);
    vhost.spec.root = root("/srv/hello/public");
    vhost.links_checked_below = Some("/srv/hello/public".into());
    vhost.spec.upstreams = vec!["http://127.0.0.1:8000".parse::<Upstream>().unwrap()];
    vhost.spec.cache_assets = assets(&["/assets/", "/static/"], 31_536_000);
    vhost
}

/// Everything that the four-key file does not have.
fn shop() -> [DesiredVhost; 2] {
    let mut shop = with_tls(
        vhost("shop", Some(1), &["shop.example.com", "shop.example.net"]),
        false,
    );
    shop.spec.redirect_from = names(&["www.shop.example.com"]);
    shop.spec.upstreams = vec![
        "https://127.0.0.1:8443".parse::<Upstream>().unwrap(),
        "https://[::1]:8443".parse::<Upstream>().unwrap(),
    ];
    let mut files = vhost("shop", Some(2), &["*.files.example.com"]);
    files.spec.root = root("/srv/shop files");
    files.links_checked_below = Some("/srv".into());
    files.spec.cache_assets = assets(&["/dist/v1.0/"], 3600);
    [shop, files]
}

/// A file with every kind of block, and its text by the shipped template.
pub(super) fn blocks_of_everything() -> (VhostFile, String) {
    let [mut one, two] = shop();
    one.spec.root = root("/srv/shop");
    let plain = vhost("hello", Some(3), &["plain.example.com"]);
    let mut direct = vhost("hello", Some(4), &["direct.example.com"]);
    direct.spec.upstreams = vec!["http://127.0.0.1:8000".parse::<Upstream>().unwrap()];
    let vhosts = [hello(), one, two, plain, direct];
    let mut host = host();
    host.features.brotli_static = true;
    host.challenge_files = Some("/run/vhostd/challenges".into());
    let blocks = VhostFile::new(&host, &vhosts.iter().collect::<Vec<_>>()).unwrap();
    let bytes = Templates::shipped().unwrap().fill(VHOST, &blocks).unwrap();
    (blocks, String::from_utf8(bytes).unwrap())
}

/// The text of a shipped template.
pub(super) fn shipped(name: &str) -> &'static str {
    template::SHIPPED
        .iter()
        .find(|(have, _)| *have == name)
        .unwrap()
        .1
}

fn desired(vhosts: impl IntoIterator<Item = DesiredVhost>) -> DesiredState {
    DesiredState {
        kept: Vec::new(),
        host: host(),
        vhosts: vhosts.into_iter().collect(),
    }
}

fn rendered(desired: &DesiredState) -> RenderedConfig {
    render(desired, &Templates::shipped().unwrap()).unwrap()
}

fn text<'a>(rendered: &'a RenderedConfig, file: &str) -> &'a str {
    std::str::from_utf8(&rendered.files[Path::new(file)]).unwrap()
}

fn assert_snapshot(name: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/snapshots")
        .join(name);
    if std::env::var_os(UPDATE).is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{name} differs (set {UPDATE}=1 to accept):\n{found}"
    );
}

#[test]
fn the_rendered_files_are_those_of_the_snapshots() {
    let [one, two] = shop();
    let config = rendered(&desired([hello(), one, two]));
    for file in ["base.conf", "vhosts/hello.conf", "vhosts/shop.conf"] {
        assert_snapshot(file, text(&config, file));
    }
    let entry = entry(&config, 12, Path::new("/var/lib/vhostd/generations/12")).unwrap();
    assert_snapshot("http.conf", std::str::from_utf8(&entry).unwrap());
}

#[test]
fn a_newer_nginx_gets_its_own_syntax() {
    let mut desired = desired([hello()]);
    desired.host.features = Features {
        http2_directive: true,
        post_quantum_curve: true,
        keepalive_min_timeout: true,
        brotli_static: true,
        ..Features::default()
    };
    desired.host.thumbprint = None;
    desired.host.names_hash_bucket_size = None;
    let config = rendered(&desired);
    assert_snapshot("newer/base.conf", text(&config, "base.conf"));
    assert_snapshot(
        "newer/vhosts/hello.conf",
        text(&config, "vhosts/hello.conf"),
    );
}

#[test]
fn challenges_are_answered_from_the_root_then_for_other_account_keys_then_for_ours() {
    let mut desired = desired([hello()]);
    let tried = |path: &str, next: &str| format!("try_files \"{path}\" \"{next}\";");
    let (of_root, of_key) = (
        "/srv/hello/public$uri",
        "/run/vhostd/challenges/$vhostd_token",
    );
    let answer = "return 200 \"$vhostd_token.thumb-print_1\";";
    let config = rendered(&desired);
    // on both ports
    let last = tried(of_root, "@vhostd_challenge");
    let vhost = text(&config, "vhosts/hello.conf");
    assert_eq!(
        (vhost.matches(&last).count(), vhost.matches(answer).count()),
        (2, 2)
    );
    assert!(!text(&config, "base.conf").contains("@vhostd_challenge"));
    assert!(text(&config, "base.conf").contains(answer));
    desired.host.challenge_files = Some("/run/vhostd/challenges".into());
    let config = rendered(&desired);
    let first = tried(of_root, "@vhostd_challenge_of_other_keys");
    let last = tried(of_key, "@vhostd_challenge");
    let vhost = text(&config, "vhosts/hello.conf");
    assert_eq!(
        (vhost.matches(&first).count(), vhost.matches(&last).count()),
        (2, 2)
    );
    assert!(text(&config, "base.conf").contains(&last));
    // without an account key there is no answer
    desired.host.thumbprint = None;
    let config = rendered(&desired);
    for file in ["base.conf", "vhosts/hello.conf"] {
        assert!(!text(&config, file).contains("acme-challenge"), "{file}");
    }
}

#[test]
fn a_vhost_for_which_nothing_is_ordered_by_http01_leaves_challenges_to_others() {
    let ordered = |change: &dyn Fn(&mut DesiredVhost)| {
        let mut vhost = hello();
        change(&mut vhost);
        let config = rendered(&desired([vhost]));
        text(&config, "vhosts/hello.conf").contains("acme-challenge")
    };
    let wanting = |issuer, challenge: Option<Challenge>| {
        move |vhost: &mut DesiredVhost| {
            if let DesiredTls::On { wanted, .. } = &mut vhost.tls {
                wanted[0].issuer = issuer;
                wanted[0].challenge = challenge.clone().unwrap_or_default();
            }
        }
    };
    assert!(ordered(&wanting(Issuer::Acme, None)));
    assert!(!ordered(&wanting(Issuer::Internal, None)));
    assert!(!ordered(&wanting(Issuer::File, None)));
    let dns = Challenge::Dns01("p".into());
    assert!(!ordered(&wanting(Issuer::Acme, Some(dns))));
    assert!(!ordered(&|vhost| vhost.tls = DesiredTls::Off));
}

#[test]
fn an_apps_bytes_do_not_depend_on_other_apps() {
    let alone = rendered(&desired([hello()]));
    let [one, two] = shop();
    let together = rendered(&desired([one, hello(), two]));
    assert_eq!(
        text(&alone, "vhosts/hello.conf"),
        text(&together, "vhosts/hello.conf")
    );
    assert_eq!(text(&alone, "base.conf"), text(&together, "base.conf"));
    assert_ne!(alone.digest, together.digest);
}

#[test]
fn the_order_of_the_vhosts_changes_nothing() {
    let [one, two] = shop();
    let there = rendered(&desired([one.clone(), two.clone(), hello()]));
    let back = rendered(&desired([hello(), two, one]));
    assert_eq!(there, back);
}

#[test]
fn each_socket_speaks_for_the_address_that_is_reached_there_and_else_rejects() {
    let address = |app: &str, name: &str| with_tls(vhost(app, None, &[name]), true);
    let both = [
        address("four", "192.0.2.7"),
        address("six", "[2001:db8::7]"),
    ];
    let config = rendered(&desired(both.clone()));
    let base = text(&config, "base.conf");
    assert!(!base.contains("ssl_reject_handshake"), "{base}");
    for (listen, name) in [("0.0.0.0", "192.0.2.7"), ("[::]", "[2001:db8::7]")] {
        let part = base
            .split("server {")
            .find(|part| part.contains(&format!("{listen}:443\" ssl http2 default_server")));
        let files = certificate(name);
        assert!(
            part.unwrap().contains(files.chain.to_str().unwrap()),
            "{base}"
        );
    }
    let [four, _] = both;
    let config = rendered(&desired([four]));
    let base = text(&config, "base.conf");
    assert_eq!(
        base.matches("ssl_reject_handshake on;").count(),
        1,
        "{base}"
    );
    assert_eq!(base.matches("default_server;").count(), 3, "{base}");
}

#[test]
fn a_renewed_certificate_changes_the_digest() {
    let before = rendered(&desired([hello()]));
    let mut renewed = hello();
    if let DesiredTls::On { files, .. } = &mut renewed.tls {
        files[0].chain = "/var/lib/vhostd/certificates/x/02/fullchain.pem".into();
    }
    assert_ne!(before.digest, rendered(&desired([renewed])).digest);
}

#[test]
fn the_digest_leaves_the_number_out_and_the_entry_has_it() {
    let config = rendered(&desired([hello()]));
    let entries = [1, 2].map(|number| entry(&config, number, Path::new("/g")).unwrap());
    assert_ne!(entries[0], entries[1]);
    assert_eq!(config.digest, rendered(&desired([hello()])).digest);
}

#[test]
fn the_entry_never_includes_a_pattern() {
    let config = rendered(&desired([hello()]));
    for directory in ["/var/*/1", "/var/[a]", "/v?r"] {
        let error = entry(&config, 1, Path::new(directory)).unwrap_err();
        assert!(matches!(error, RenderError::Pattern(_)), "{error}");
    }
    let error = entry(&config, 1, Path::new("relative")).unwrap_err();
    assert_eq!(
        error.to_string(),
        "render http.conf: a path is not absolute"
    );
}

#[test]
fn a_redirect_keeps_the_name_where_several_serve() {
    let [shop, _] = shop();
    let config = rendered(&desired([with_tls(shop, true)]));
    let text = text(&config, "vhosts/shop.conf");
    assert!(text.contains("return 301 \"https://$host$vhostd_https_port$request_uri\";"));
    let canonical = "\"https://shop.example.com$vhostd_https_port$request_uri\";";
    assert!(text.contains(&format!("return 308 {canonical}")));
    assert!(text.contains(&format!("return 301 {canonical}")));
}

#[test]
fn names_that_redirect_go_to_the_first_exact_name() {
    let redirecting = |server_names: &[&str]| {
        let mut vhost = with_tls(vhost("a", None, server_names), true);
        vhost.spec.redirect_from = names(&["old.example.com"]);
        vhost.spec.root = root("/srv/a");
        let config = rendered(&desired([vhost]));
        let text = text(&config, "vhosts/a.conf").to_owned();
        let (_, redirect) = text.rsplit_once("server_name \"old.example.com\"").unwrap();
        redirect.to_owned()
    };
    let wildcard_first = redirecting(&["*.example.com", "a.example.org"]);
    assert!(
        wildcard_first
            .contains("return 301 \"https://a.example.org$vhostd_host_port$request_uri\"")
    );
    assert!(!wildcard_first.contains("root \"/srv/a\""));
}

#[test]
fn a_client_that_names_nginxs_own_port_is_led_to_its_port_for_https() {
    let line = |http: &str, https: &str| {
        let mut desired = desired([hello()]);
        desired.host.http = vec![listener(http, true)];
        desired.host.https = vec![listener(https, true)];
        let config = rendered(&desired);
        let base = text(&config, "base.conf");
        let (_, map) = base.split_once("$vhostd_https_port {\n").unwrap();
        let (lines, _) = map.split_once('}').unwrap();
        lines.trim().replace("default \"\";", "").trim().to_owned()
    };
    assert_eq!(
        line("127.0.0.1:8080", "127.0.0.1:8443"),
        "\":8080\" \":8443\";"
    );
    assert_eq!(line("127.0.0.1:80", "127.0.0.1:8443"), "\":80\" \":8443\";");
    // the standard port is not named
    assert_eq!(line("127.0.0.1:8080", "127.0.0.1:443"), "");
}

#[test]
fn an_upstream_on_this_host_is_asked_again_at_once_and_another_after_a_second() {
    let mut vhost = vhost("a", None, &["a.example.com"]);
    let addresses = ["127.0.0.1:1", "[::1]:2", "unix:/srv/a.sock", "10.0.0.5:3"];
    vhost.spec.upstreams = addresses
        .iter()
        .map(|address| format!("http://{address}").parse::<Upstream>().unwrap())
        .collect();
    let config = rendered(&desired([vhost]));
    let text = text(&config, "vhosts/a.conf");
    for line in [
        "server \"127.0.0.1:1\" \"max_fails=0\";",
        "server \"[::1]:2\" \"max_fails=0\";",
        "server \"unix:/srv/a.sock\" \"max_fails=0\";",
        "server \"10.0.0.5:3\" \"fail_timeout=1s\";",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn a_handshake_may_be_for_any_host_of_the_certificates() {
    let variables = |vhost: DesiredVhost| {
        let config = rendered(&desired([vhost]));
        let text = text(&config, "vhosts/a.conf").to_owned();
        let map = text.split_once("map \"$ssl_server_name $host\"");
        let patterns = map.map(|(_, map)| map.split_once('}').unwrap().0.to_owned());
        (patterns, text.contains("if ( \"$vhostd_misdirected\" )"))
    };
    let only = with_tls(vhost("a", None, &["a.example"]), true);
    assert_eq!(variables(only), (None, true));
    let several = with_tls(
        vhost("a", None, &["a.example", "*.b.example", "192.0.2.7"]),
        true,
    );
    let (patterns, shared) = variables(several);
    let patterns = patterns.unwrap();
    assert!(!shared);
    for pattern in [
        r"~*^a\\.example\\.? ",
        r"~*^[^. ]+\\.b\\.example\\.? ",
        "~^ ",
    ] {
        assert!(patterns.contains(pattern), "{pattern}: {patterns}");
    }
}

#[test]
fn tls_without_a_listener_names_the_app() {
    let mut desired = desired([hello()]);
    desired.host.https.clear();
    let error = render(&desired, &Templates::shipped().unwrap()).unwrap_err();
    assert_eq!(error.app(), Some(&"hello".parse::<AppName>().unwrap()));
}

#[test]
fn a_value_that_nginx_would_interpret_names_the_app() {
    let mut desired = desired([hello()]);
    desired.host.log_dir = "/var/log/$host".into();
    let error = render(&desired, &Templates::shipped().unwrap()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "render vhosts/hello.conf: the character '$' cannot be in nginx configuration"
    );
    assert_eq!(error.app(), Some(&"hello".parse::<AppName>().unwrap()));
}

#[test]
fn an_override_that_leaves_the_allow_list_is_refused() {
    for (text, reason) in [
        ("include /etc/passwd;", "include"),
        ("", "lacks"),
        ("server { server_name hello.example.com; ", "unexpected end"),
    ] {
        let overrides = [("vhost.conf".to_owned(), text.to_owned())].into();
        let templates = Templates::with_overrides(overrides).unwrap();
        let error = render(&desired([hello()]), &templates).unwrap_err();
        assert!(matches!(error, RenderError::Audit { .. }));
        assert!(error.to_string().contains(reason), "{error}");
    }
}

/// Names of files, logs, upstreams and variables: each vhost has its own, whatever its app's name.
#[test]
fn every_app_has_a_file_and_every_vhost_a_log_an_upstream_and_a_variable_of_its_own() {
    let longest = "x".repeat(64);
    let apps = [
        "a", "A", "a.conf", "a.access", "a-1", "a_1", "a.1", "base", "http", &longest,
    ];
    let vhosts: Vec<DesiredVhost> = apps
        .iter()
        .enumerate()
        .flat_map(|(app, name)| {
            let vhost = move |number| {
                let server_name = format!("n{number}.app{app}.example.com");
                let mut vhost = vhost(name, Some(number), &[&server_name]);
                vhost.spec.root = root("/srv/a");
                vhost.spec.upstreams = vec!["http://127.0.0.1:1".parse::<Upstream>().unwrap()];
                vhost.spec.cache_assets = assets(&["/x/"], 60);
                vhost
            };
            [vhost(1), vhost(2)]
        })
        .collect();
    let count = vhosts.len();
    let config = rendered(&desired(vhosts));
    assert_eq!(config.apps.len(), apps.len());
    assert!(config.files.keys().all(|file| {
        let name = file.file_name().unwrap().to_str().unwrap();
        name.len() < 100 && !name.starts_with('.') && !name.contains(['/', '#', '$'])
    }));
    let texts: Vec<&str> = config
        .apps
        .keys()
        .map(|file| text(&config, file.to_str().unwrap()))
        .collect();
    // nginx compares the names of upstreams and variables without case
    for (what, case, of_each) in [
        ("access_log \"", true, 1),
        ("upstream ", false, 1),
        ("map ", false, 2),
    ] {
        let lines = texts.iter().flat_map(|text| text.lines());
        let mut found: Vec<String> = lines
            .filter(|line| line.trim_start().starts_with(what))
            .map(|line| {
                if case {
                    line.to_owned()
                } else {
                    line.to_ascii_lowercase()
                }
            })
            .collect();
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count * of_each, "{what}");
    }
}

#[test]
fn a_name_that_the_certificate_lacks_is_served_on_plain_http_and_the_others_are_redirected() {
    let mut shop = with_tls(
        vhost("shop", None, &["a.example.com", "b.example.com"]),
        true,
    );
    shop.spec.redirect_from = names(&["www.example.com"]);
    shop.spec.root = root("/srv/shop");
    let servers = |shop: &DesiredVhost, missing: &[&str]| {
        let mut shop = shop.clone();
        if let DesiredTls::On { uncovered, .. } = &mut shop.tls {
            uncovered.extend(missing.iter().map(|name| name.parse().unwrap()));
        }
        let config = rendered(&desired(vec![shop]));
        let text = text(&config, "vhosts/shop.conf").to_owned();
        let of = |server: &str| {
            let line = |start: &str| {
                let mut lines = server.lines().map(str::trim);
                lines
                    .find(|line| line.starts_with(start))
                    .map(str::to_owned)
            };
            let names = line("server_name ").unwrap();
            let names = names.replace(['"', ';'], "").replace("server_name ", "");
            let tls = if server.contains("ssl_certificate ") {
                "https"
            } else {
                "http"
            };
            let goes = line("return 301 ").map_or("serves".to_owned(), |line| {
                let line = line.replace("return 301 ", "").replace(['"', ';'], "");
                line.replace("$vhostd_https_port", "")
                    .replace("$vhostd_host_port", "")
            });
            format!("{tls} {names}: {goes}")
        };
        let servers = text.split("\nserver {").skip(1);
        servers.map(of).collect::<Vec<_>>()
    };
    assert_eq!(
        servers(&shop, &["b.example.com"]),
        [
            "http a.example.com: https://$host$request_uri",
            "https a.example.com b.example.com: serves",
            "http b.example.com: serves",
            "http www.example.com: https://a.example.com$request_uri",
            "https www.example.com: https://a.example.com$request_uri",
        ]
    );
    // plain HTTP stays plain where the canonical name has no certificate
    assert_eq!(
        servers(&shop, &["a.example.com"])[3..],
        [
            "http www.example.com: http://a.example.com$request_uri",
            "https www.example.com: https://a.example.com$request_uri",
        ]
    );
    assert_eq!(servers(&shop, &["www.example.com"]), servers(&shop, &[]));
}
