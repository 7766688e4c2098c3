//! Ten thousand hostile documents, each refused or rendered as a benign one is.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use vhostd::certificate::{Identifier, Issuer, WantedCertificate};
use vhostd::desired::{
    CertificateFiles, DesiredState, DesiredTls, DesiredVhost, HostFacts, Listener, Probe,
};
use vhostd::diagnostic::{Located, Position};
use vhostd::render::{RenderedConfig, Templates, entry, render};
use vhostd::vhost::parse::parse;
use vhostd::vhost::{
    App, AssetPath, RootDir, ServerName, TlsMode, Upstream, UpstreamAddress, UpstreamScheme,
    VhostSpec,
};

use super::generator::document;
use crate::support::client;
use crate::support::nginx::{NginxHost, features};

const DOCUMENTS: u64 = 12_000;

#[test]
fn no_hostile_document_changes_the_structure_of_the_configuration() {
    let templates = Templates::shipped().unwrap();
    let host = facts("/var/log/nginx", 80);
    let (mut accepted, mut refused) = (0, 0);
    for number in 0..DOCUMENTS {
        let text = document(number);
        match parsed("hostile", &text) {
            Ok(app) => {
                accepted += 1;
                let found = rendered(&host, &[&app], &templates);
                let (twin, values) = benign(&app);
                let expected = rendered(&host, &[&twin], &templates);
                assert_same_but_for(&values, &found, &expected, &format!("{number}: {text:?}"));
            }
            Err(said) => {
                refused += 1;
                assert_harmless(&said, &format!("{number}: {text:?}"));
            }
        }
    }
    println!("{accepted} documents rendered as benign ones are, {refused} refused");
    // neither all nor none: the generator reaches both
    assert!(accepted > 2_000 && refused > 5_000, "{accepted} {refused}");
}

/// What the parser accepts, hundreds of apps at once, is what nginx serves under their names.
#[test]
fn nginx_takes_the_hostile_documents_that_are_accepted_and_answers_each_name_by_its_vhost() {
    let nginx = NginxHost::new();
    let templates = Templates::shipped().unwrap();
    let mut names = BTreeSet::new();
    let mut apps = Vec::new();
    for number in 0.. {
        // the longest names that an app may have
        let name = format!("a{}-.{number:05}", "X.-_".repeat(14));
        let Ok(mut app) = parsed(&name, &document(number)) else {
            continue;
        };
        for vhost in &mut app.vhosts {
            vhost.tls.mode = Some(TlsMode::Off);
        }
        let all: Vec<String> = app
            .vhosts
            .iter()
            .flat_map(|vhost| vhost.all_names().map(|name| name.value.as_str().to_owned()))
            .collect();
        if all.iter().any(|name| names.contains(name)) {
            continue;
        }
        names.extend(all);
        apps.push(app);
        if apps.len() == 400 {
            break;
        }
    }
    let logs = nginx.path("logs");
    let host = facts(logs.to_str().unwrap(), nginx.http_port);
    let config = rendered(&host, &apps.iter().collect::<Vec<_>>(), &templates);
    let directory = nginx.path("generation");
    fs::create_dir_all(directory.join("vhosts")).unwrap();
    for (file, bytes) in &config.files {
        fs::write(directory.join(file), bytes).unwrap();
    }
    let http = directory.join("http.conf");
    fs::write(&http, entry(&config, 7, &directory).unwrap()).unwrap();
    nginx.site("vhostd", &format!("include {};\n", http.display()));
    nginx.start();
    let address = ([127, 0, 0, 1], nginx.http_port).into();
    for app in &apps {
        for vhost in &app.vhosts {
            for name in vhost.all_names() {
                let asked = name.value.as_str().replace('*', "below");
                let answer = client::get(address, &asked, "/.well-known/vhostd/c2VjcmV0").unwrap();
                assert_eq!(answer.text(), format!("7 {}", vhost.name), "{asked}");
            }
        }
    }
}

fn parsed(name: &str, text: &str) -> Result<App, Vec<String>> {
    let name = name.parse().unwrap();
    let roots = [PathBuf::from("/srv")];
    let file = Path::new("hostile.yml");
    parse(&name, file, text, &roots, &TlsMode::Off.into()).map_err(|diagnostics| {
        assert!(!diagnostics.is_empty());
        diagnostics
            .iter()
            .map(|it| format!("{it} {}", it.hint.clone().unwrap_or_default()))
            .collect()
    })
}

/// A message that a terminal or a log could take for more than a message is none.
fn assert_harmless(said: &[String], document: &str) {
    for message in said {
        assert!(
            !message.chars().any(char::is_control),
            "{document}: {message:?}"
        );
        assert!(message.len() < 2_000, "{document}: {message:?}");
    }
}

fn facts(log_dir: &str, http_port: u16) -> HostFacts {
    let listener = |port| Listener {
        address: ([127, 0, 0, 1], port).into(),
        default_server: true,
        http2: true,
    };
    HostFacts {
        http: vec![listener(http_port)],
        https: vec![listener(443)],
        features: features(),
        thumbprint: Some("thumbprint".into()),
        challenge_files: None,
        probe: Probe {
            secret: "c2VjcmV0".into(),
            certificate: files(),
        },
        real_ip: None,
        log_dir: log_dir.into(),
        names_hash_bucket_size: Some(512),
    }
}

fn files() -> CertificateFiles {
    CertificateFiles {
        chain: "/certificates/x/1/fullchain.pem".into(),
        key: "/certificates/x/1/privkey.pem".into(),
    }
}

fn rendered(host: &HostFacts, apps: &[&App], templates: &Templates) -> RenderedConfig {
    let vhosts: Vec<DesiredVhost> = apps
        .iter()
        .flat_map(|app| &app.vhosts)
        .map(|spec| DesiredVhost {
            spec: spec.clone(),
            links_checked_below: parent(spec),
            tls: match spec.tls.mode {
                Some(TlsMode::Internal) => DesiredTls::On {
                    wanted: vec![wanted(spec)],
                    files: vec![files()],
                    covered: wanted(spec).identifiers,
                    trusted: true,
                    uncovered: Vec::new(),
                },
                _ => DesiredTls::Off,
            },
        })
        .collect();
    let mut host = host.clone();
    if !vhosts
        .iter()
        .any(|vhost| matches!(vhost.tls, DesiredTls::On { .. }))
    {
        host.https.clear();
    }
    render(
        &DesiredState {
            host,
            vhosts,
            kept: Vec::new(),
        },
        templates,
    )
    .unwrap()
}

/// A part of the root's path.
fn parent(spec: &VhostSpec) -> Option<PathBuf> {
    let parent = spec.root.as_ref()?.as_path().parent()?;
    Some(parent.to_path_buf())
}

fn wanted(spec: &VhostSpec) -> WantedCertificate {
    let identifiers: Vec<Identifier> = spec
        .all_names()
        .map(|name| name.value.to_identifier())
        .collect();
    WantedCertificate::new(identifiers, Issuer::Internal).unwrap()
}

/// A marker of the benign twin, and the value that stands there in the other.
type Values = Vec<(String, String)>;

/// The same shape with values that nobody could mistake, each of them only once.
fn benign(app: &App) -> (App, Values) {
    let mut twin = app.clone();
    let mut values = Values::new();
    for (index, vhost) in twin.vhosts.iter_mut().enumerate() {
        let names = vhost
            .server_names
            .iter_mut()
            .chain(&mut vhost.redirect_from);
        for (place, name) in names.enumerate() {
            let marker = match name.value.to_identifier() {
                _ if name.value.is_wildcard() => format!("*.n{index}-{place}.benign.example"),
                Identifier::Dns(_) => format!("n{index}-{place}.benign.example"),
                // of its kind, which decides where it is reached; none begins as another one does
                Identifier::Ip(IpAddr::V4(_)) => format!("198.51.{}.{}", 100 + index, 100 + place),
                Identifier::Ip(IpAddr::V6(_)) => format!("[2001:db8:{index:x}::1:{place:x}]"),
            };
            let marker: ServerName = marker.parse().unwrap();
            // in patterns, too, without the wildcard's label
            let pattern = |name: &str| name.trim_start_matches("*.").replace('.', "\\\\.");
            values.push((pattern(marker.as_str()), pattern(name.value.as_str())));
            values.push((marker.to_string(), name.value.as_str().to_owned()));
            *name = located(marker);
        }
        if let Some(root) = &mut vhost.root {
            // links are checked below its parent
            let parent = format!("/srv/benign-{index}");
            let marker = format!("{parent}/root");
            let written = |path: &Path| path.to_str().unwrap().to_owned();
            values.push((marker.clone(), written(root.as_path())));
            values.push((parent, written(root.as_path().parent().unwrap())));
            *root = RootDir::parse(&marker, Position::default(), &["/srv".into()]).unwrap();
        }
        for (place, upstream) in vhost.upstreams.iter_mut().enumerate() {
            let scheme = match upstream.scheme() {
                UpstreamScheme::Http => "http",
                UpstreamScheme::Https => "https",
            };
            // on this host or not: that decides how nginx asks again
            let network = match upstream.address() {
                UpstreamAddress::Socket(address) if !address.ip().is_loopback() => "192.0.2",
                _ => "127.0.2",
            };
            let marker = format!("{network}.{index}:{}", 9000 + place);
            let written = match upstream.address() {
                UpstreamAddress::Socket(address) => address.to_string(),
                UpstreamAddress::Unix(path) => format!("unix:{}", path.display()),
            };
            values.push((marker.clone(), written));
            *upstream = format!("{scheme}://{marker}").parse::<Upstream>().unwrap();
        }
        let own = |path: &AssetPath| !matches!(path.as_str(), "/assets/" | "/static/");
        if let Some(assets) = &mut vhost.cache_assets {
            for (place, path) in assets.paths.iter_mut().enumerate() {
                if own(path) {
                    let path_text = path.as_str();
                    // a path with one of these has no location of its own
                    let apart = path_text.contains("/.") || path_text.contains('~');
                    let tilde = if apart { "~" } else { "" };
                    let marker = format!("/{tilde}benign-{index}-{place}/");
                    let escaped = path_text.replace('.', "\\\\.");
                    values.push((format!("~^{marker}"), format!("~^{escaped}")));
                    values.push((marker.clone(), path_text.to_owned()));
                    *path = AssetPath::parse(&marker).unwrap();
                }
            }
        }
    }
    (twin, values)
}

fn located(value: ServerName) -> Located<ServerName> {
    let at = Position::default();
    Located { value, at }
}

/// Byte for byte the twin's file, with the values in the markers' places; and no value has a
/// character that could be more than itself there.
fn assert_same_but_for(
    values: &Values,
    found: &RenderedConfig,
    twin: &RenderedConfig,
    document: &str,
) {
    assert!(found.files.keys().eq(twin.files.keys()), "{document}");
    for ((file, found), twin) in found.files.iter().zip(twin.files.values()) {
        let mut expected = String::from_utf8(twin.clone()).unwrap();
        for (marker, value) in values {
            let plain = value.replace("\\\\.", "");
            assert!(
                !plain.contains(|c: char| c.is_control() || "$;{}#\"'\\`".contains(c)),
                "{document}: {value:?}"
            );
            assert!(value.len() <= 1024, "{document}");
            expected = expected.replace(marker, value);
        }
        let found = std::str::from_utf8(found).unwrap();
        assert_eq!(found, expected, "{document}: {}", file.display());
    }
}
