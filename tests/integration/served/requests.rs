//! What an app learns of a request, and which requests reach it at all.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;

use super::fixture::Served;
use super::{NAME, hello};
use crate::support::app::App;
use crate::support::client::{self, Response, Trust};
use crate::support::nginx::free_port;
use crate::support::scripted::Scripted;
use crate::support::{wait_for, wait_within};

const OTHER: &str = "www.hello.example.com";

fn proxied(url: &str) -> String {
    format!("server_name: \"{NAME}\"\nproxy_pass_url: \"{url}\"\n")
}

/// Over TLS, with a handshake for `sni`.
fn ask(served: &Served, sni: &str, host: &str, method: &str, path: &str) -> Response {
    let stream = client::connect_tls(served.https(), sni, &served.trust(), &[]).unwrap();
    client::exchange(stream, method, host, path, &[]).unwrap()
}

#[test]
fn the_port_of_the_visitors_host_reaches_the_app_and_nginxs_own_does_not() {
    let app = App::start();
    let served = Served::new().serve(&[("hello", &proxied(&app.url()))]);
    for (host, expected, port) in [
        (NAME.to_owned(), NAME.to_owned(), "443"),
        (format!("{NAME}:8443"), format!("{NAME}:8443"), "8443"),
        (format!("{NAME}:443"), format!("{NAME}:443"), "443"),
        // the dot at the end of a name belongs to DNS
        (format!("{NAME}.:8443"), format!("{NAME}:8443"), "8443"),
    ] {
        let answer = ask(&served, NAME, &host, "GET", "/echo");
        let text = answer.text().to_lowercase();
        for line in [
            format!("host: {expected}\n"),
            format!("x-forwarded-host: {expected}\n"),
            format!("x-forwarded-port: {port}\n"),
            "x-forwarded-proto: https\n".to_owned(),
            "x-forwarded-ssl: on\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{host}: {line} is not in {text}");
        }
    }
    // the port of another host says nothing
    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let url = format!("https://{NAME}/echo");
    let answer = client::exchange(stream, "GET", "elsewhere.example:99", &url, &[]).unwrap();
    assert!(!answer.text().contains(":99"), "{}", answer.text());
}

#[test]
fn over_plain_http_the_app_is_told_so() {
    let app = App::start();
    let served = Served::untrusted().serve(&[("hello", &proxied(&app.url()))]);
    for (host, port) in [(NAME.to_owned(), "80"), (format!("{NAME}:8080"), "8080")] {
        let answer = client::get(served.http(), &host, "/echo").unwrap();
        let text = answer.text().to_lowercase();
        for line in [
            format!("host: {host}\n"),
            format!("x-forwarded-port: {port}\n"),
            "x-forwarded-proto: http\n".to_owned(),
            "x-forwarded-ssl: off\n".to_owned(),
        ] {
            assert!(text.contains(&line), "{host}: {line} is not in {text}");
        }
    }
}

#[test]
fn redirects_keep_the_port_of_the_visitors_host_and_lead_nginxs_own_to_https() {
    let app = App::start();
    let served = hello(&app);
    let (http, https) = (served.http().port(), served.https().port());
    let location = |address: SocketAddr, tls: bool, host: &str| {
        let answer = match tls {
            true => {
                let sni = host.split(':').next().unwrap();
                let stream = client::connect_tls(address, sni, &served.trust(), &[]).unwrap();
                client::exchange(stream, "GET", host, "/a?b", &[]).unwrap()
            }
            false => client::get(address, host, "/a?b").unwrap(),
        };
        answer.header("Location").unwrap().to_owned()
    };
    for name in [NAME, "a.wild.example.com"] {
        for (port, expected) in [
            (String::new(), String::new()),
            (format!(":{http}"), format!(":{https}")),
            (":8080".to_owned(), String::new()),
        ] {
            let found = location(served.http(), false, &format!("{name}{port}"));
            assert_eq!(found, format!("https://{name}{expected}/a?b"));
        }
    }
    // to the canonical name, at the port where the visitor is
    for port in ["", ":8443"] {
        let found = location(served.https(), true, &format!("{OTHER}{port}"));
        assert_eq!(found, format!("https://{NAME}{port}/a?b"));
    }
}

#[test]
fn a_redirect_keeps_a_method_that_may_have_a_body() {
    let app = App::start();
    let served = hello(&app);
    for (method, status) in [
        ("GET", 301),
        ("HEAD", 301),
        ("POST", 308),
        ("PUT", 308),
        ("PATCH", 308),
        ("DELETE", 308),
        ("OPTIONS", 308),
    ] {
        for (host, tls) in [(NAME, false), (OTHER, false), (OTHER, true)] {
            let answer = match tls {
                true => ask(&served, host, host, method, "/a"),
                false => {
                    let stream = client::connect(served.http()).unwrap();
                    client::exchange(stream, method, host, "/a", &[]).unwrap()
                }
            };
            assert_eq!(answer.status, status, "{method} {host}");
        }
    }
}

#[test]
fn a_request_of_another_vhost_than_its_handshake_gets_421_and_reaches_no_app() {
    let (one, two) = (App::start(), App::start());
    let keys = format!(
        "server_name: \"{OTHER}\"\nproxy_pass_url: \"{}\"\n",
        two.url()
    );
    let first = format!(
        "server_name: [\"{NAME}\", \"*.wild.example.com\"]\nproxy_pass_url: \"{}\"\n\
         tls: internal\n",
        one.url()
    );
    let served = Served::new().serve(&[("hello", &first), ("other", &keys)]);
    for (sni, host, status) in [
        (NAME, NAME, 200),
        (OTHER, OTHER, 200),
        (NAME, OTHER, 421),
        (OTHER, NAME, 421),
        // the names of one certificate share connections
        (NAME, "a.wild.example.com", 200),
        ("a.wild.example.com", NAME, 200),
        ("a.wild.example.com", "b.wild.example.com", 200),
        ("a.wild.example.com", OTHER, 421),
    ] {
        let answer = ask(&served, sni, host, "GET", "/echo");
        assert_eq!(answer.status, status, "{sni} {host}");
        let upper = host.to_uppercase();
        assert_eq!(ask(&served, sni, &upper, "GET", "/echo").status, status);
    }
    // an absolute form names the host as well
    let url = format!("https://{OTHER}/echo");
    assert_eq!(ask(&served, NAME, NAME, "GET", &url).status, 421);
}

#[test]
fn a_circle_of_requests_ends_with_508_after_a_few() {
    let mut served = Served::new();
    let https = served.https();
    let keys = proxied(&format!("https://{https}"));
    served = served.serve(&[("hello", &keys)]);
    assert_eq!(served.get("/echo").status, 508);
    let log = wait_for("the log", || {
        let text = fs::read_to_string(served.path("logs/hello.access.log")).ok()?;
        text.contains("508").then_some(text)
    });
    assert!(log.lines().count() <= 6, "{log}");
}

/// A gateway, or a page that an app renders by asking its own API.
#[test]
fn an_app_may_hand_the_headers_of_a_request_on_to_a_vhost_of_this_host() {
    let app = App::start();
    let served = Served::new().serve(&[("hello", &proxied(&app.url()))]);
    let mut headers: Vec<(String, String)> = Vec::new();
    for _ in 0..3 {
        let passed: Vec<(&str, &str)> = headers
            .iter()
            .filter(|(name, _)| !name.eq_ignore_ascii_case("host"))
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
        let answer = client::exchange(stream, "GET", NAME, "/echo", &passed).unwrap();
        assert_eq!(answer.status, 200);
        headers = answer
            .text()
            .lines()
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
    }
}

#[test]
fn headers_that_say_who_the_visitor_is_do_not_reach_the_app() {
    let app = App::start();
    let served = Served::new().serve(&[("hello", &proxied(&app.url()))]);
    for part in IDENTITY.chunks(20) {
        let forged: Vec<(&str, &str)> = part.iter().map(|name| (*name, "forged")).collect();
        let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
        let answer = client::exchange(stream, "GET", NAME, "/echo", &forged).unwrap();
        assert_eq!(answer.status, 200);
        assert!(!answer.text().contains("forged"), "{}", answer.text());
    }
    // credentials are the app's to judge
    let own = [
        ("Authorization", "Basic eA=="),
        ("Cookie", "a=b"),
        ("X-Api-Key", "k"),
    ];
    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let answer = client::exchange(stream, "GET", NAME, "/echo", &own).unwrap();
    for (name, value) in own {
        assert!(answer.text().contains(&format!("{name}: {value}\n")));
    }
}

#[test]
fn only_a_proxy_of_the_settings_says_who_the_visitor_is() {
    let sent = [
        ("X-Forwarded-For", "192.0.2.66, 192.0.2.7"),
        ("Remote-User", "alice"),
        ("CF-IPCountry", "CH"),
        ("X-Original-URL", "/admin"),
    ];
    let told = |from: &str| {
        let app = App::start();
        let served = Served::behind(from).serve(&[("hello", &proxied(&app.url()))]);
        let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
        let answer = client::exchange(stream, "GET", NAME, "/echo", &sent).unwrap();
        // a websocket takes the same way
        let mut stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
        let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
        client::send(&mut stream, "GET", NAME, "/ws", &upgrade).unwrap();
        let mut reader = std::io::BufReader::new(stream);
        assert_eq!(client::head(&mut reader).unwrap().0, 101, "{from}");
        answer.text().to_lowercase()
    };
    let trusted = told("127.0.0.0/8");
    for line in [
        "host: hello.example.com\n",
        "x-real-ip: 192.0.2.7\n",
        "x-forwarded-for: 192.0.2.7\n",
        "remote-user: alice\n",
        "cf-ipcountry: ch\n",
    ] {
        assert!(trusted.contains(line), "{line} is not in {trusted}");
    }
    assert!(!trusted.contains("/admin"), "{trusted}");
    let foreign = told("192.0.2.0/24");
    assert!(foreign.contains("x-real-ip: 127.0.0.1\n"), "{foreign}");
    for value in ["192.0.2", "alice", "ipcountry", "/admin"] {
        assert!(!foreign.contains(value), "{value} is in {foreign}");
    }
}

/// A sample of each kind.
const IDENTITY: &[&str] = &[
    "Remote-User",
    "Remote-Groups",
    "Remote-Email",
    "Remote-Name",
    "X-Remote-User",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Access-Token",
    "X-Auth-Request-User",
    "X-Auth-Request-Email",
    "X-authentik-username",
    "X-Webauth-User",
    "X-Vouch-User",
    "X-Goog-Authenticated-User-Email",
    "X-Amzn-Oidc-Identity",
    "X-MS-CLIENT-PRINCIPAL-NAME",
    "Cf-Access-Authenticated-User-Email",
    "Tailscale-User-Login",
    "X-Pomerium-Jwt-Assertion",
    "X-SSL-Client-Verify",
    "SSL-Client-Verify",
    "X-SSL-Client-S-DN",
    "X-Client-Cert",
    "X-Forwarded-Client-Cert",
    "X-Forwarded-Tls-Client-Cert",
    "X-ARR-ClientCert",
    "Client-Cert",
    "CF-Connecting-IP",
    "CF-Visitor",
    "CF-IPCountry",
    "Fastly-Client-IP",
    "Fastly-SSL",
    "Fly-Client-IP",
    "True-Client-IP",
    "X-Azure-ClientIP",
    "X-Envoy-External-Address",
    "X-Original-Forwarded-For",
    "X-Original-Host",
    "X-Host",
    "X-Forwarded-Uri",
    "X-Forwarded-Method",
    "X-Original-Method",
    "X-Forwarded-Protocol",
];

#[test]
fn a_dot_segment_is_never_read_from_the_root_and_belongs_to_the_app() {
    let app = App::start();
    let served = hello(&app);
    for path in [
        "/realms/m/.well-known/openid-configuration",
        "/me/repo/src/branch/main/.gitignore",
        "/node_modules/.vite/deps/x.js",
        "/.git/config",
        "/..b",
        "/...",
        "/a/.../b",
        "/.ghost/activitypub/",
        "/dump.sql",
        "/dump.SQL",
        "/app.log",
        "/index.php.bak",
        "/index.php~",
        "/a.orig",
        "/a.swp",
    ] {
        if !path.ends_with('/') {
            served.file(path, "secret");
        }
        for method in ["GET", "POST"] {
            let answer = ask(&served, NAME, NAME, method, path);
            assert!(
                answer
                    .text()
                    .starts_with(&format!("{method} {path} HTTP/1.1\n")),
                "{method} {path}: {}",
                answer.text()
            );
        }
    }
    served.file("/.well-known/security.txt", "contact");
    assert_eq!(served.get("/.well-known/security.txt").text(), "contact");
}

#[test]
fn beside_an_app_only_get_and_head_are_answered_from_files() {
    let app = App::start();
    let served = hello(&app);
    served.file("/about.html", "about");
    served.file("/dir/index.html", "dir");
    for path in ["/", "/about", "/about.html", "/dir/"] {
        assert!(!served.get(path).text().starts_with("GET"), "{path}");
        let head = ask(&served, NAME, NAME, "HEAD", path);
        assert!(head.header("Last-Modified").is_some(), "{path}");
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PROPFIND"] {
            let answer = ask(&served, NAME, NAME, method, path);
            assert!(
                answer.text().starts_with(&format!("{method} {path} ")),
                "{method} {path}: {} {}",
                answer.status,
                answer.text()
            );
        }
    }
}

#[test]
fn an_answer_with_sixteen_kilobytes_of_headers_passes() {
    let app = Scripted::start(|request, stream| {
        let cookies: String = (0..15)
            .map(|number| format!("Set-Cookie: c{number}={}\r\n", "x".repeat(1024)))
            .collect();
        let switch = request.header("upgrade").is_some();
        let upgrade = if switch { "Upgrade: websocket\r\n" } else { "" };
        write!(
            stream,
            "HTTP/1.1 200 OK\r\n{cookies}{upgrade}Content-Length: 2\r\n\r\nok"
        )?;
        Ok(true)
    });
    let served = Served::new().serve(&[("hello", &proxied(&app.url()))]);
    for upgrade in [None, Some(("Upgrade", "websocket"))] {
        let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
        let headers: Vec<_> = upgrade.into_iter().collect();
        let answer = client::exchange(stream, "GET", NAME, "/", &headers).unwrap();
        assert_eq!((answer.status, answer.text()), (200, "ok"), "{upgrade:?}");
    }
}

#[test]
fn an_upgrade_header_of_an_ordinary_answer_does_not_reach_the_visitor() {
    let app = Scripted::start(|request, stream| {
        let status = match request.path.as_str() {
            "/426" => "426 Upgrade Required",
            _ => "200 OK",
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nUpgrade: h2,h2c\r\nConnection: Upgrade\r\n\
             Content-Length: 2\r\n\r\nok"
        )?;
        Ok(true)
    });
    let served = Served::new().serve(&[("hello", &proxied(&app.url()))]);
    for (path, status) in [("/", 200), ("/426", 426)] {
        let answer = served.get(path);
        assert_eq!((answer.status, answer.header("Upgrade")), (status, None));
    }
}

#[test]
fn an_idle_connection_to_an_app_ends_before_apps_end_it() {
    let (told, ended) = std::sync::mpsc::channel();
    let app = Scripted::start(move |_, stream| {
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        let started = std::time::Instant::now();
        // ends when nginx closes
        let _ = std::io::Read::read(stream, &mut [0]);
        let _ = told.send(started.elapsed());
        Ok(false)
    });
    let served = Served::new().serve(&[("hello", &proxied(&app.url()))]);
    assert_eq!(served.get("/").text(), "ok");
    let idle = ended.recv_timeout(std::time::Duration::from_secs(5));
    // gunicorn's threads keep one for two seconds, Node and uvicorn for five
    assert!(idle.is_ok_and(|idle| idle.as_millis() < 1900), "{idle:?}");
}

#[test]
fn apps_that_were_all_restarted_are_asked_again_at_once() {
    let ports = [free_port(), free_port()];
    let keys = format!(
        "server_name: \"{NAME}\"\nproxy_pass_url: [\"http://127.0.0.1:{}\", \"http://127.0.0.1:{}\"]\n",
        ports[0], ports[1]
    );
    let served = Served::new().serve(&[("hello", &keys)]);
    for _ in 0..20 {
        assert_eq!(served.get("/").status, 502);
    }
    let _apps = ports.map(|port| {
        Scripted::at(([127, 0, 0, 1], port).into(), |_, stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
            Ok(false)
        })
    });
    for _ in 0..20 {
        assert_eq!(served.get("/").status, 200);
    }
}

#[test]
fn files_have_the_types_that_browsers_insist_on() {
    let app = App::start();
    let served = hello(&app);
    for (path, expected) in [
        ("/a.mjs", "text/javascript"),
        ("/deep/site.webmanifest", "application/manifest+json"),
        ("/a.wasm", "application/wasm"),
        ("/a.csv", "text/csv"),
        ("/a.ics", "text/calendar"),
        ("/a.md", "text/markdown"),
        ("/a.css.map", "application/json"),
        ("/a.ttf", "font/ttf"),
        ("/a.html", "text/html"),
    ] {
        served.file(path, "file");
        let answer = served.get(path);
        assert_eq!(answer.text(), "file", "{path}");
        assert_eq!(answer.header("Content-Type"), Some(expected), "{path}");
    }
    let missing = served.get("/gone.mjs");
    assert!(missing.text().starts_with("GET /gone.mjs "));
}

#[test]
fn compressed_answers_of_files_and_apps_vary_by_accept_encoding() {
    let app = Scripted::start(|_, stream| {
        let body = "hello ".repeat(100);
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        Ok(true)
    });
    let served = Served::new();
    served.host().site("compression", "gzip on;\n");
    let root = served.root();
    let keys = format!("{}root: \"{root}\"\n", proxied(&app.url()));
    let served = served.serve(&[("hello", &keys)]);
    served.file("/file.html", &"hello ".repeat(100));
    for path in ["/app", "/file.html"] {
        let accept = [("Accept-Encoding", "gzip")];
        let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
        let answer = client::exchange(stream, "GET", NAME, path, &accept).unwrap();
        assert_eq!(answer.header("Content-Encoding"), Some("gzip"), "{path}");
        assert_eq!(answer.header("Vary"), Some("Accept-Encoding"), "{path}");
        // a cache keeps this one for clients that accept nothing else
        assert_eq!(
            served.get(path).header("Vary"),
            Some("Accept-Encoding"),
            "{path}"
        );
    }
}

#[test]
fn a_challenge_is_answered_over_https_as_well() {
    let app = App::start();
    let served = hello(&app);
    let path = "/.well-known/acme-challenge/aB-_9";
    for name in [NAME, OTHER, "a.wild.example.com"] {
        // a CA does not look at the certificate
        let answer = client::get_tls(served.https(), name, path, &Trust::Anyone).unwrap();
        assert_eq!(answer.status, 200, "{name}");
        assert_eq!(
            answer.text(),
            format!("aB-_9.{}", super::THUMBPRINT),
            "{name}"
        );
    }
}

#[test]
fn a_challenge_file_of_another_acme_client_below_the_root_goes_first() {
    let app = App::start();
    let served = hello(&app);
    let path = "/.well-known/acme-challenge/theirs";
    served.file(path, "theirs.other");
    for name in [NAME, OTHER] {
        let answer = client::get(served.http(), name, path).unwrap();
        assert_eq!(
            (answer.status, answer.text()),
            (200, "theirs.other"),
            "{name}"
        );
        let answer = client::get_tls(served.https(), name, path, &Trust::Anyone).unwrap();
        assert_eq!(
            (answer.status, answer.text()),
            (200, "theirs.other"),
            "{name}"
        );
    }
    let ours = client::get(served.http(), NAME, "/.well-known/acme-challenge/ours").unwrap();
    assert_eq!(ours.text(), format!("ours.{}", super::THUMBPRINT));
}

#[test]
fn where_nothing_is_ordered_by_http01_challenges_belong_to_files_and_the_app() {
    let app = App::start();
    let served = Served::with_certificates_from_elsewhere();
    let root = served.root();
    let keys = format!("{}root: \"{root}\"\n", proxied(&app.url()));
    let served = served.serve(&[("hello", &keys)]);
    served.file("/.well-known/acme-challenge/theirs", "theirs.other");
    let get = |token: &str| {
        let path = format!("/.well-known/acme-challenge/{token}");
        served.get(&path).text().to_owned()
    };
    assert_eq!(get("theirs"), "theirs.other");
    let plain = client::get(served.http(), NAME, "/.well-known/acme-challenge/x").unwrap();
    assert_eq!(plain.status, 301);
    assert!(get("apps").starts_with("GET /.well-known/acme-challenge/apps "));
    // a name that no vhost has may be the next order's
    let unknown = wait_within(std::time::Duration::from_secs(5), "an answer", || {
        client::get(
            served.http(),
            "new.example",
            "/.well-known/acme-challenge/x",
        )
        .ok()
    });
    assert_eq!(unknown.text(), format!("x.{}", super::THUMBPRINT));
}
