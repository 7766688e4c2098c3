//! What nginx does with the rendered files, as docs/served.md promises it.

mod bodies;
mod files;
mod fixture;
mod requests;
mod tls;

use std::fs;
use std::io::{BufReader, Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::thread;

use fixture::{Served, THUMBPRINT};

use crate::support::app::App;
use crate::support::client::{self, Trust};
use crate::support::nginx::free_port;

const NAME: &str = "hello.example.com";

/// The four-key file, on a host with trusted certificates.
fn hello(app: &App) -> Served {
    let served = Served::new();
    served.file("index.html", "front");
    let root = served.root();
    served.serve(&[(
        "hello",
        &format!(
            "server_name: [\"{NAME}\", \"*.wild.example.com\"]\n\
             redirect_from: [\"www.{NAME}\"]\n\
             root: \"{root}\"\n\
             proxy_pass_url: \"{}\"\n\
             cache_assets: true\n\
             tls: internal\n",
            app.url()
        ),
    )])
}

/// An app alone.
fn without_files(app: &App) -> Served {
    let url = app.url();
    let keys = format!("server_name: \"{NAME}\"\nproxy_pass_url: \"{url}\"\n");
    Served::new().serve(&[("hello", &keys)])
}

#[test]
fn spoofed_forwarding_headers_do_not_reach_the_app() {
    let app = App::start();
    let served = hello(&app);
    let spoofed: Vec<(&str, &str)> = SPOOFED.iter().map(|name| (*name, "spoofed")).collect();
    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let answer = client::exchange(stream, "GET", NAME, "/echo", &spoofed).unwrap();
    let text = answer.text().to_lowercase();
    assert!(!text.contains("spoofed"), "{text}");
    for expected in [
        format!("host: {NAME}\n"),
        format!("x-forwarded-host: {NAME}\n"),
        "x-forwarded-port: 443\n".to_owned(),
        "x-forwarded-ssl: on\n".to_owned(),
        "x-forwarded-for: 127.0.0.1\n".to_owned(),
        "x-forwarded-proto: https\n".to_owned(),
        "x-real-ip: 127.0.0.1\n".to_owned(),
    ] {
        assert!(text.contains(&expected), "{expected} is not in {text}");
    }
    assert!(
        !text.contains("\nconnection:") && !text.contains("\nupgrade:"),
        "{text}"
    );
}

#[test]
fn a_websocket_passes_and_no_other_upgrade_does() {
    let app = App::start();
    for served in [hello(&app), without_files(&app)] {
        websockets_alone_are_upgraded(&served);
    }
}

fn websockets_alone_are_upgraded(served: &Served) {
    let mut stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let upgrade = [("Connection", "Upgrade"), ("Upgrade", "websocket")];
    client::send(&mut stream, "GET", NAME, "/ws", &upgrade).unwrap();
    let mut reader = BufReader::new(stream);
    assert_eq!(client::head(&mut reader).unwrap().0, 101);
    for message in [&b"first"[..], b"second"] {
        reader.get_mut().write_all(message).unwrap();
        let mut echoed = vec![0; message.len()];
        reader.read_exact(&mut echoed).unwrap();
        assert_eq!(echoed, message);
    }
    let smuggled = [
        ("Connection", "Upgrade, HTTP2-Settings"),
        ("Upgrade", "h2c"),
    ];
    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let answer = client::exchange(stream, "GET", NAME, "/echo", &smuggled).unwrap();
    assert!(
        !answer.text().to_lowercase().contains("upgrade"),
        "{}",
        answer.text()
    );
}

#[test]
fn both_kinds_of_event_streams_pass_at_once() {
    let app = App::start();
    let served = hello(&app);
    for path in ["/events/chunked", "/events/close"] {
        let mut stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
        let accept = [("Accept", "text/event-stream")];
        client::send(&mut stream, "GET", NAME, path, &accept).unwrap();
        let mut reader = BufReader::new(stream);
        assert_eq!(client::head(&mut reader).unwrap().0, 200);
        // the app sends nothing more: a buffering proxy would let this time out
        let mut seen = Vec::new();
        let mut byte = [0];
        while !seen.ends_with(b"data: 1\n\n") {
            reader
                .read_exact(&mut byte)
                .unwrap_or_else(|error| panic!("{path}: {error}"));
            seen.push(byte[0]);
        }
    }
}

#[test]
fn an_app_without_files_gets_everything() {
    let app = App::start();
    let served = without_files(&app);
    for path in ["/", "/x/", "/x.html?a=b"] {
        assert!(served.get(path).text().starts_with(&format!("GET {path} ")));
    }
    assert!(served.get("/.env").text().starts_with("GET /.env "));
}

#[test]
fn an_error_page_of_the_admins_is_shown_where_an_app_does_not_answer() {
    let url = format!("http://127.0.0.1:{}", free_port());
    for root in [false, true] {
        let served = Served::new();
        let page = "error_page 502 https://status.example.com/;\n";
        served.host().site("errors", page);
        let mut keys = format!("server_name: \"{NAME}\"\nproxy_pass_url: \"{url}\"\n");
        if root {
            keys.push_str(&format!("root: \"{}\"\n", served.root()));
        }
        let served = served.serve(&[("hello", &keys)]);
        let answer = served.get("/");
        let location = answer.header("Location");
        let expected = (302, Some("https://status.example.com/"));
        assert_eq!((answer.status, location), expected, "{root}");
    }
}

#[test]
fn a_challenge_is_answered_for_any_vhost_and_before_it_exists() {
    let app = App::start();
    let served = hello(&app);
    let path = "/.well-known/acme-challenge/aB-_9";
    for name in [
        NAME,
        "a.wild.example.com",
        "www.hello.example.com",
        "not.yet.example",
    ] {
        let answer = client::get(served.http(), name, path).unwrap();
        assert_eq!(answer.status, 200, "{name}");
        assert_eq!(answer.text(), format!("aB-_9.{THUMBPRINT}"), "{name}");
        assert_eq!(answer.header("Content-Type"), Some("text/plain"));
    }
    for path in [
        "/.well-known/acme-challenge/",
        "/.well-known/acme-challenge/a.b",
        "/.well-known/acme-challenge/a/b",
    ] {
        assert_eq!(
            client::get(served.http(), NAME, path).unwrap().status,
            404,
            "{path}"
        );
    }
}

#[test]
fn unknown_names_reach_no_vhost() {
    let app = App::start();
    let served = hello(&app);
    for path in ["/", "/index.html", "/.well-known/vhostd/secret"] {
        assert!(
            client::get(served.http(), "unknown.example", path).is_err(),
            "{path}"
        );
    }
    for name in ["unknown.example", "deep.a.wild.example.org"] {
        let error = client::connect_tls(served.https(), name, &Trust::Anyone, &[])
            .err()
            .unwrap();
        assert!(error.to_string().contains("UnrecognisedName"), "{error}");
    }
    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let answer = client::exchange(stream, "GET", "unknown.example", "/", &[]).unwrap();
    assert_eq!(answer.status, 421);
    assert_eq!(app.connections(), 0);
}

#[test]
fn an_nginx_that_cannot_refuse_handshakes_still_serves_no_vhost_to_unknown_names() {
    let served = Served::plain();
    let root = served.root();
    let keys = format!("server_name: \"{NAME}\"\nroot: \"{root}\"\ncache_assets: true\n");
    let served = served.serve(&[("hello", &keys)]);
    served.file("index.html", "front");
    assert_eq!(served.get("/").text(), "front");
    let trust = Trust::Anyone;
    assert!(client::get_tls(served.https(), "unknown.example", "/", &trust).is_err());
    assert!(client::connect_tls(served.https(), "unknown.example", &trust, &[]).is_ok());
}

#[test]
fn an_app_behind_tls_gets_the_visitors_host_as_its_sni() {
    let served = Served::new();
    let port = free_port();
    let (chain, key) = (served.path("chain.pem"), served.path("key.pem"));
    served.host().site(
        "app",
        &format!(
            "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; \
             return 200 \"$ssl_server_name $http_x_forwarded_proto\"; }}",
            chain.display(),
            key.display()
        ),
    );
    let url = format!("https://127.0.0.1:{port}");
    let keys = format!("server_name: \"{NAME}\"\nproxy_pass_url: [\"{url}\"]\n");
    let served = served.serve(&[("hello", &keys)]);
    assert_eq!(served.get("/").text(), format!("{NAME} https"));
}

#[test]
fn apps_on_unix_sockets_and_several_apps_are_one_site() {
    let (one, two) = (App::start(), App::start());
    let served = Served::new();
    let socket = served.path("app.sock");
    let unix = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o777)).unwrap();
    thread::spawn(move || {
        for mut stream in unix.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nunix");
        }
    });
    let unix_keys = format!(
        "server_name: \"www.{NAME}\"\nproxy_pass_url: \"http://unix:{}\"\n",
        socket.display()
    );
    let keys = format!(
        "server_name: \"{NAME}\"\nproxy_pass_url: [\"{}\", \"{}\"]\n",
        one.url(),
        two.url()
    );
    let served = served.serve(&[("Hello", &unix_keys), ("hello", &keys)]);
    for _ in 0..6 {
        assert_eq!(served.get("/echo").status, 200);
    }
    assert_eq!((one.connections(), two.connections()), (1, 1));
    let www = format!("www.{NAME}");
    let answer = client::get_tls(served.https(), &www, "/", &served.trust()).unwrap();
    assert_eq!(answer.text(), "unix");
}

#[test]
fn an_upload_of_100_megabytes_passes_and_one_of_101_is_refused() {
    let app = App::start();
    let served = hello(&app);
    let mut stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let length = (100 << 20).to_string();
    client::send(
        &mut stream,
        "POST",
        NAME,
        "/upload",
        &[("Content-Length", &length)],
    )
    .unwrap();
    let chunk = vec![b'x'; 1 << 20];
    for _ in 0..100 {
        stream.write_all(&chunk).unwrap();
    }
    stream.flush().unwrap();
    let answer = client::response(&mut BufReader::new(stream), "POST").unwrap();
    assert_eq!(answer.text(), format!("{length} bytes\n"));

    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &[]).unwrap();
    let length = (101 << 20).to_string();
    let headers = [("Content-Length", length.as_str())];
    let answer = client::exchange(stream, "POST", NAME, "/upload", &headers).unwrap();
    assert_eq!(answer.status, 413);
}

#[test]
fn plain_http_redirects_once_the_certificate_is_trusted_and_serves_before() {
    let app = App::start();
    let served = hello(&app);
    let location = |address: SocketAddr, tls: bool, name: &str| {
        let answer = match tls {
            true => client::get_tls(address, name, "/a?b=c", &served.trust()),
            false => client::get(address, name, "/a?b=c"),
        }
        .unwrap();
        (answer.status, answer.header("Location").map(str::to_owned))
    };
    let to = |name: &str| (301, Some(format!("https://{name}/a?b=c")));
    assert_eq!(location(served.http(), false, NAME), to(NAME));
    assert_eq!(
        location(served.http(), false, "a.wild.example.com"),
        to("a.wild.example.com")
    );
    let www = format!("www.{NAME}");
    assert_eq!(location(served.http(), false, &www), to(NAME));
    assert_eq!(location(served.https(), true, &www), to(NAME));

    let served = Served::untrusted();
    let keys = format!(
        "server_name: \"{NAME}\"\nproxy_pass_url: \"{}\"\n",
        app.url()
    );
    let served = served.serve(&[("hello", &keys)]);
    let answer = client::get(served.http(), NAME, "/plain").unwrap();
    assert!(answer.text().starts_with("GET /plain "));
    assert!(answer.text().contains("X-Forwarded-Proto: http\n"));
}

#[test]
fn upstream_connections_are_kept_alive() {
    let app = App::start();
    let served = hello(&app);
    for _ in 0..10 {
        assert_eq!(served.get("/echo").status, 200);
    }
    assert_eq!(app.connections(), 1);
}

#[test]
fn the_generation_is_answered_by_every_block_with_its_vhosts_name() {
    let app = App::start();
    let served = hello(&app);
    let path = "/.well-known/vhostd/secret";
    let www = format!("www.{NAME}");
    for (name, answerer) in [
        (NAME, "hello"),
        ("a.wild.example.com", "hello"),
        (www.as_str(), "hello"),
        ("vhostd.invalid", "vhostd.invalid"),
    ] {
        for address in [served.http(), served.http_v6()] {
            let answer = client::get(address, name, path).unwrap();
            assert_eq!(answer.status, 200, "{name}");
            assert_eq!(answer.text(), format!("7 {answerer}"), "{name}");
        }
        for address in [served.https(), served.https_v6()] {
            let answer = client::get_tls(address, name, path, &Trust::Anyone).unwrap();
            assert_eq!(answer.status, 200, "{name}");
            assert_eq!(answer.text(), format!("7 {answerer}"), "{name}");
        }
    }
    let other = client::get(served.http(), NAME, "/.well-known/vhostd/guess").unwrap();
    assert_eq!(other.status, 301);
}

#[test]
fn ipv6_and_http2_are_served() {
    let app = App::start();
    let served = hello(&app);
    let answer = client::get_tls(served.https_v6(), NAME, "/echo", &served.trust()).unwrap();
    assert!(
        answer.text().contains("X-Real-IP: ::1\n"),
        "{}",
        answer.text()
    );
    let alpn = ["h2", "http/1.1"];
    let stream = client::connect_tls(served.https(), NAME, &served.trust(), &alpn).unwrap();
    assert_eq!(stream.conn.alpn_protocol(), Some(&b"h2"[..]));
}

#[test]
fn a_stopped_nginx_starts_again_with_the_files_alone() {
    let app = App::start();
    let served = hello(&app);
    served.host().stop();
    assert!(client::get(served.http(), NAME, "/").is_err());
    served.host().start();
    assert_eq!(served.get("/").text(), "front");
}

#[test]
fn a_hand_written_site_keeps_its_names_beside_ours() {
    let app = App::start();
    let served = hello(&app);
    let port = served.http().port();
    served.host().site(
        "theirs",
        &format!(
            "server {{ listen 127.0.0.1:{port}; server_name theirs.example; return 200 theirs; }}"
        ),
    );
    served.host().reload();
    crate::support::wait_for("the hand-written site", || {
        let answer = client::get(served.http(), "theirs.example", "/").ok()?;
        (answer.text() == "theirs").then_some(())
    });
    assert_eq!(client::get(served.http(), NAME, "/").unwrap().status, 301);
}

/// Every header by which some framework believes where a request came from.
const SPOOFED: [&str; 22] = [
    "Client-IP",
    "Forwarded",
    "Front-End-Https",
    "Proxy",
    "True-Client-IP",
    "X-Accel-Mapping",
    "X-Client-IP",
    "X-Cluster-Client-IP",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Forwarded-Scheme",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Original-URL",
    "X-Real-IP",
    "X-Rewrite-URL",
    "X-Sendfile-Type",
    "X-Url-Scheme",
    "X_Forwarded_For",
];
